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
    model = pytest.importorskip("lm_eval.api.model")
    lm = workflow_lm(flow(), input="question")
    assert isinstance(lm, model.LM)
    request = SimpleNamespace(args=("What is 2 + 2?", {"until": ["\n"], "do_sample": False}))
    assert lm.generate_until([request, request]) == ["solver: 4", "solver: 4"]
    with pytest.raises(ModelSupportError, match="how likely"):
        lm.loglikelihood([request])
