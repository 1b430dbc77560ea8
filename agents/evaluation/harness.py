"""A workflow as a model of lm-evaluation-harness, for tasks that let a model write.

The harness is the extra ``lm-eval``. It gives each question as one text, which becomes one of the
workflow's inputs; the answer is that of one agent.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.evaluation.arms import target_of
from unspoken.agents.execution import How
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.workflow import Workflow
from unspoken.channels.errors import InputError, ModelSupportError


def workflow_lm(
    flow: Workflow, *, input: str, agent: str | None = None, **inputs: object
) -> "WorkflowLM":
    """A workflow as the harness takes a model: ``simple_evaluate(model=workflow_lm(flow, …))``.

    Args:
        flow: The workflow. How long its agents write is as it says.
        input: The input that takes the harness's text.
        agent: Whose answers count; None for the last agent.
        inputs: The other inputs, equal for all questions.

    Raises:
        InputError: There is no such input or agent, or the harness is not installed.
    """
    if input not in flow.spec.inputs:
        raise InputError(
            f"there is no input {input!r}",
            expected=listed(flow.spec.inputs),
            fix=suggest(input, flow.spec.inputs),
        )
    try:
        base: Any = import_module("lm_eval.api.model").LM
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness cannot be imported: {error}",
            expected="the package lm_eval",
            fix='pip install "unspoken[lm-eval]"',
        ) from error
    # The harness wants a subclass of its own class, which is not there without it.
    made: Any = type("WorkflowLM", (WorkflowLM, base), {})()
    made.flow, made.input, made.inputs = flow, input, inputs
    made.target = target_of(flow.spec, agent)
    model: WorkflowLM = made
    return model


class WorkflowLM:
    """What the harness asks of a model; see `workflow_lm`.

    Attributes:
        flow: The workflow.
        input: The input that takes a question.
        inputs: The other inputs.
        target: The agent whose answers count.
    """

    flow: Workflow
    input: str
    inputs: Mapping[str, object]
    target: str

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to requests of (text, settings), each cut at the settings' ``until``."""
        return [self._answer(*request.args) for request in requests]

    def _answer(self, text: str, settings: Mapping[str, Any]) -> str:
        inputs = {**self.inputs, self.input: text}
        result = run_anywhere(lambda: self.flow.arun_as(How(), inputs))
        answer = result[self.target].text
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answer = answer.partition(stop)[0] if stop else answer
        return answer

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> NoReturn:
        """Refused: a workflow writes its answers.

        Raises:
            ModelSupportError: Always.
        """
        raise ModelSupportError(
            f"a task asks how likely a text is, and the workflow {self.flow.spec.name!r} says only "
            "what it writes",
            expected="a task whose output type is generate_until",
            fix="choose such a task, or give the harness the model itself for this one",
        )

    loglikelihood_rolling = loglikelihood
