"""A workflow as a model of lm-evaluation-harness."""

from types import SimpleNamespace

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.evaluation.harness import workflow_lm
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError, ModelSupportError


def flow() -> Workflow:
    model = ScriptedModel(lambda agent, turn, prompt: f"{agent}: 4\nQuestion: more")
    return Workflow("one", [Agent("solver", model, prompt="{{ inputs.question }}")])


def test_an_unknown_input_is_refused() -> None:
    """Before the harness is looked for."""
    with pytest.raises(InputError, match="no input 'query'"):
        workflow_lm(flow(), input="query")


def test_the_harness_gets_what_an_agent_writes() -> None:
    """Cut where the task says; how likely a text is, a workflow does not say."""
    model = pytest.importorskip("lm_eval.api.model", reason="the extra `lm-eval` is not installed")
    lm = workflow_lm(flow(), input="question")
    assert isinstance(lm, model.LM)
    request = SimpleNamespace(args=("What is 2 + 2?", {"until": ["\n"], "do_sample": False}))
    assert lm.generate_until([request, request]) == ["solver: 4", "solver: 4"]
    with pytest.raises(ModelSupportError, match="how likely"):
        lm.loglikelihood([request])


@pytest.mark.filterwarnings("default")  # the packages of the harness warn of each other
def test_the_harness_scores_a_task_of_local_rows() -> None:
    """The package itself asks, cuts and counts, with one example before each question."""
    harness = pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    datasets = pytest.importorskip("datasets", reason="the extra `lm-eval` is not installed")
    rows = [{"question": "two and two?", "answer": "4"}, {"question": "a colour?", "answer": "red"}]
    task = {
        "task": "local",
        "custom_dataset": lambda **kwargs: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 1,
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    asked: list[str] = []

    def answer(agent: str, turn: int, prompt: str) -> str:
        asked.append(prompt)
        return "4\nmore"

    one = Workflow("one", [Agent("solver", ScriptedModel(answer), prompt="{{ inputs.question }}")])
    lm = workflow_lm(one, input="question")
    told = harness.simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)
    assert told["results"]["local"]["exact_match,none"] == 0.5
    assert len(asked) == 2 and all("colour?" in prompt for prompt in asked)
