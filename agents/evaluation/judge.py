"""A model as the judge: which of two answers is better, asked in both orders.

Judges prefer what stands first or last, whatever it says (Zheng et al. 2023, section 3.3). So an
answer counts as better only where it is preferred in both places; else the two are even.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import structlog

from unspoken.agents.agent import Agent
from unspoken.agents.evaluation.outcome import OWN_FAILURES, Outcome
from unspoken.agents.evaluation.scorers import right_ones
from unspoken.agents.models.base import AgentModel
from unspoken.agents.workflow import Workflow

log = structlog.wrap_logger(logging.getLogger("unspoken.evaluation"))

_PROMPT = """Two answers to one task are given. Which one is better?
{{ inputs.task }}
{% if inputs.right %}
A right answer is: {{ inputs.right }}
{% endif %}
Answer A: {{ inputs.first }}

Answer B: {{ inputs.second }}

The better answer is:"""

EVEN = 0.5


class Judge:
    """Scores an answer beside text's: 1 where it is preferred, 0 where text's is, else a half.

    Text's own score is a half, so the difference of an arm from text is between -0.5 and 0.5.

    Args:
        model: The model that judges, or a reference to it. It chooses by likelihood.
    """

    def __init__(self, model: AgentModel | str) -> None:
        agent = Agent("judge", model, prompt=_PROMPT, generate={"choices": ["A", "B"]})
        self._flow = Workflow("judge", [agent])

    def told(self) -> dict[str, Any]:
        """Who judges and by which words, as plain data."""
        model = self._flow.load().models[self._flow.spec.agents["judge"].model]
        return {"model": asdict(model.identity), "prompt": _PROMPT}

    async def score(
        self, outcome: Outcome, reference: Outcome, inputs: Mapping[str, object]
    ) -> float:
        """How an answer is beside the reference's; a half where the judge's own run fails.

        Args:
            outcome: The answer.
            reference: Text's, of the same row.
            inputs: The row's inputs, which say what the task was.
        """
        if outcome.answer == reference.answer and outcome.error is reference.error:
            return EVEN
        if outcome.error is not None or reference.error is not None:
            return EVEN if outcome.error and reference.error else float(outcome.error is None)
        try:
            before = await self._prefers_first(outcome, reference, inputs)
            after = not await self._prefers_first(reference, outcome, inputs)
        except OWN_FAILURES as error:  # such as two answers that are too long for the judge
            log.warning("the judge fails; even", row=outcome.row, arm=outcome.arm, error=str(error))
            return EVEN
        return float(before) if before is after else EVEN

    async def _prefers_first(
        self, first: Outcome, second: Outcome, inputs: Mapping[str, object]
    ) -> bool:
        result = await self._flow.arun(
            task="\n".join(f"{name}: {value}" for name, value in inputs.items()),
            right="" if first.gold is None else " or ".join(right_ones(first.gold)),
            first=first.answer,
            second=second.answer,
        )
        return result["judge"].text.strip() == "A"
