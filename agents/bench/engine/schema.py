"""Answers bound to a schema, by chance and by a model of noise: how many are valid, at what cost.

What the constraint costs is measured by itself: masks for a batch of rows, applied to logits of the
model's size, and what follows a token. It is held against a step of the same batch without it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.engines.asks import Answer, Compute, compute
from unspoken.agents.engines.base import Grammar, Sampling
from unspoken.agents.engines.constraints import Constraint, masked
from unspoken.agents.engines.sampling import Sampler
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.weights import holding
from unspoken.agents.shapes.shape import shape_of
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.spec.spec import InputSpec
from unspoken.agents.workflow import Workflow

__all__ = ["measure"]

ANSWERS, BATCH, STEPS, TOKENS = SCALES["schema"].rows, 8, 24, 96
"""Answers of each model, rows of a measured step, steps, and the most tokens of an answer."""

Short = Annotated[str, Field(max_length=16)]


class Ticket(BaseModel):
    """A value of each kind."""

    team: Literal["billing", "technical", "other"]
    subject: Short
    urgent: bool
    minutes: Annotated[int, Field(ge=0, le=600)]


class Order(BaseModel):
    """A list of things."""

    items: Annotated[list[Short], Field(min_length=1, max_length=3)]
    price: Annotated[float, Field(ge=0, le=1000)] | None


class Person(BaseModel):
    """A thing in a thing, and text that may go on for ever."""

    name: str
    likes: list[str]
    order: Order | None = None


KINDS: tuple[type[BaseModel], ...] = (Ticket, Order, Person)

TOPICS = ("a lost key", "a late train", "tea", "a broken screen", "the sea", "a bill", "a dog")


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """A row per model and schema; how many of all answers are valid, and what the shape costs.

    `overhead_per_token` is the constraint's share of a step of `BATCH` rows without it; the model's
    own, for the random one's step is over before anything else has begun.
    """
    from unspoken.agents.testing import tiny_model

    answers = count or ANSWERS
    rows: list[dict[str, Any]] = []
    for name, one in (("model", model), ("random", tiny_model())):
        for number, kind in enumerate(KINDS):
            share = answers // len(KINDS) + (number < answers % len(KINDS))
            row = {"by": name, "schema": kind.__name__, **_answers(one, kind, share)}
            rows.append(row)
            progress(f"{name}, {kind.__name__}: {row['valid']} of {row['of']} are valid")
    step, cost = _step_seconds(model), [_cost_seconds(model, grammar) for grammar in _all(model)]
    for row, seconds in zip(rows, cost, strict=False):
        row |= {"step_ms": round(step * 1e3, 2), "shape_ms": round(seconds * 1e3, 3)}
    return rows, {
        "valid": sum(row["valid"] for row in rows),
        "of": sum(row["of"] for row in rows),
        "overhead_per_token": round(max(cost) / step, 4),
        "batch": BATCH,
    }


def _settings(kind: type[BaseModel]) -> GenerateSpec:
    return GenerateSpec.model_validate(
        {"schema": kind, "temperature": 1.0, "seed": 1, "max_new_tokens": TOKENS}
    )


def _all(model: LocalModel) -> Iterator[Grammar]:
    for kind in KINDS:
        grammar = shape_of(_settings(kind), model).grammar
        assert grammar is not None  # every schema has one
        yield grammar


def _answers(model: LocalModel, kind: type[BaseModel], count: int) -> dict[str, Any]:
    """What a run of so many items writes; an item that fails is no valid answer."""
    agent = Agent(
        "writer",
        model,
        prompt="Make up a " + kind.__name__.lower() + " about {{ item }}. Answer in JSON.",
        generate=_settings(kind),
        for_each="inputs.topics",
        on_error="skip",
    )
    flow = Workflow("schema", [agent], inputs={"topics": InputSpec(type="list")})
    result = flow.run(topics=[TOPICS[number % len(TOPICS)] for number in range(count)])
    turns = result.report.agents["writer"]
    return {
        "valid": sum(_is_valid(kind, text) for text in result["writer"].items),
        "of": count,
        "cut": sum(turn.finish == "length" for turn in turns),
        "tokens": sum(turn.generated_tokens for turn in turns),
        "forwards": sum(turn.forwards for turn in turns),
    }


def _is_valid(kind: type[BaseModel], text: str) -> bool:
    try:
        TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError:
        return False
    return True


@torch.no_grad()
def _step_seconds(model: LocalModel) -> float:
    """A step of decoding of `BATCH` rows that may write anything, in seconds."""
    prompt = model.text.encode_words("Make up a ticket about a lost key. Answer in JSON. " * 4)
    asks = [_first_ask(model, prompt, seed) for seed in range(BATCH)]
    seconds: list[float] = []
    with holding([model]):
        for _ in range(1 + STEPS):
            answers = [_answered(one) for one in compute([(ask, len(ask.ids)) for ask in asks])]
            seconds.append(answers[0].seconds)
            asks = [
                replace(ask, ids=one.tokens, positions=[ask.rows.length])
                for ask, one in zip(asks, answers, strict=True)
            ]
    for ask in asks:
        ask.rows.close()
    return median(seconds[1:])  # the first is the prefill


def _first_ask(model: LocalModel, prompt: tuple[int, ...], seed: int) -> Compute:
    settings = Sampling(max_tokens=STEPS, temperature=1.0, seed=seed)
    rows = model.begin((), range(len(prompt)), spare=STEPS + 1)
    sampler = Sampler(settings, prompt, model.device)
    positions = range(len(prompt))
    return Compute(model=model, rows=rows, ids=prompt, positions=positions, sampler=sampler)


def _answered(answer: Answer | Exception) -> Answer:
    if isinstance(answer, Exception):
        raise answer
    return answer


@torch.no_grad()
def _cost_seconds(model: LocalModel, grammar: Grammar) -> float:
    """What the constraint of `BATCH` rows costs a step, in seconds; answers begin as others end."""
    width = model.logits(model.tensor([0]), last=1).shape[-1]
    noise = torch.randn(BATCH, width, generator=torch.Generator().manual_seed(1)).to(model.device)
    bound, spent = [grammar.begin(TOKENS) for _ in range(BATCH)], list[float]()
    for step in range(STEPS):
        logits = torch.split(noise.roll(step * 97, dims=1), 1)
        _wait(model.device)
        began = perf_counter()
        kept = masked([(one, row, ()) for one, row in zip(bound, logits, strict=True)])
        _wait(model.device)
        spent.append(perf_counter() - began)
        tokens = list(map(_likeliest, kept))
        began = perf_counter()
        bound = [
            _after(grammar, one, token, model) for one, token in zip(bound, tokens, strict=True)
        ]
        spent[-1] += perf_counter() - began
    return median(spent[1:])


def _likeliest(logits: torch.Tensor | Exception) -> int:
    if isinstance(logits, Exception):
        raise logits
    return int(logits.argmax())


def _after(grammar: Grammar, one: Constraint, token: int, model: LocalModel) -> Constraint:
    """A constraint after a token, or a new one where the answer has ended."""
    if token not in model.stop_ids:
        one.push(token)
        for forced in one.forced():
            if not one.over:
                one.push(forced)
    return grammar.begin(TOKENS) if token in model.stop_ids or one.over else one


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
