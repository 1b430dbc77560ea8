"""A workflow's turns as a worker is told of them: who waits for whom, and what each one reads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Turn = dict[str, Any]


def prompt_of(turn: Turn, written: Mapping[str, Sequence[int]]) -> list[int]:
    """The ids of a turn's prompt, with what others wrote in its place."""
    prompt: list[int] = []
    for part in turn["parts"]:
        prompt += written[part] if isinstance(part, str) else part
    return prompt


def waves(case: Mapping[str, Any]) -> Iterator[list[Turn]]:
    """The turns in groups: those of one group wait for nobody but earlier groups."""
    left, done = list(case["turns"]), set[str]()
    while left:
        ready = [turn for turn in left if done.issuperset(turn["after"])]
        yield ready
        done.update(turn["name"] for turn in ready)
        left = [turn for turn in left if turn not in ready]


def answers(case: Mapping[str, Any]) -> list[str]:
    """The turns that nobody reads."""
    read = {name for turn in case["turns"] for name in turn["after"]}
    return [turn["name"] for turn in case["turns"] if turn["name"] not in read]


def continued(case: Mapping[str, Any]) -> dict[str, int]:
    """How many turns begin with each turn's whole context."""
    counts = dict.fromkeys((turn["name"] for turn in case["turns"]), 0)
    for turn in case["turns"]:
        if turn["continues"] is not None:
            counts[turn["continues"]] += 1
    return counts
