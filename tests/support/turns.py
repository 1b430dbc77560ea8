"""Turns taken without a workflow."""

from typing import Any

import torch

from unspoken.agents import GenerateSpec, LocalModel
from unspoken.agents.engines.turn import Prefilling, TurnOutcome, TurnRequest, Written, run_turn
from unspoken.agents.prompts.context import ChatTurn, Context

__all__ = ["context_of", "take", "writes"]


def context_of(model: LocalModel, *words: str) -> Context:
    return model.context_builder.compose([ChatTurn("user", (one,)) for one in words])


def writes(tokens: int = 8, **settings: Any) -> GenerateSpec:
    return GenerateSpec(max_new_tokens=tokens, **settings)


def take(model: LocalModel, request: TurnRequest) -> tuple[list[Prefilling | Written], TurnOutcome]:
    """Run a turn to its end: its events and its outcome."""
    steps, events = run_turn(model, request), []
    with torch.no_grad():
        while True:
            try:
                events.append(next(steps))
            except StopIteration as end:
                return events, end.value
