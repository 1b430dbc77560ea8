"""Measuring fine-tunes: which layers their receiver recomputes, what that costs and keeps."""

import datetime as dt
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3

from unspoken.channels.data.rows import read_qa
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import GeometryMismatch, InputError
from unspoken.channels.finetunes.carry import carry_across
from unspoken.channels.finetunes.passages import Settings, Trial, arrival_of, from_rows, from_text
from unspoken.channels.finetunes.profile import Point, Profile
from unspoken.channels.finetunes.recompute import (
    LayerRanges,
    bytes_per_token,
    layers_of,
    require_one_base,
)
from unspoken.channels.finetunes.search import assess, choices_of, entries_of, estimate, search
from unspoken.channels.finetunes.store import ProfileStore
from unspoken.channels.machine import describe_machine, medians
from unspoken.channels.model import Hold, Report, TextModel
from unspoken.channels.storage.side import AuditFile, ModelDescription, running_version

BUILTIN = "builtin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilePlan:
    """How a pair is measured.

    Attributes:
        data: Plain text, or question-answering rows in a ``.jsonl`` file; None for held-out
            built-in text.
        settings: How much of it.
        again: Whether to measure a pair that has a profile.
        clock: Tokens of the message that is timed; 0 for no timing.
        repeats: How often it is timed.
        command: The command to record.
    """

    data: Path | None = None
    settings: Settings = field(default_factory=Settings)
    again: bool = False
    clock: int = 1024
    repeats: int = 5
    command: str = ""


def profile_pair(
    sharer: TextModel,
    receiver: TextModel,
    plan: ProfilePlan | None = None,
    *,
    store: ProfileStore | None = None,
    hold: Hold = nullcontext,
    report: Report = lambda stage, fraction: None,
    draw: Callable[[Profile, Path], object] | None = None,
) -> tuple[Profile, Path]:
    """Measure and keep a pair's profile; one process at a time per pair. Gives it, and its folder.

    Where the pair has a profile already (or another process made one while this one waited), that
    one is taken unless `plan.again`.

    Args:
        sharer: Whose state is read.
        receiver: Who recomputes some layers.
        plan: How.
        store: Where profiles are; the user's if not given.
        hold: Keeps the models' devices from other work meanwhile.
        report: Told of stages.
        draw: Draws the profile into a file of the store's.

    Raises:
        InputError: One model twice, or data that cannot be read or is too short.
        IdentityMismatch: Models of different bases.
        GeometryMismatch: Models in different dtypes.
        ProfileError: The store cannot be written, or the profile there is broken.
    """
    plan = plan or ProfilePlan()
    check_pair(sharer, receiver)
    store = store or ProfileStore()
    ends = sharer.identity, receiver.identity
    with store.lock(*ends, waiting=lambda line: report(line, 0.0)), hold():
        old = None if plan.again else store.find(*ends)
        if old is not None:
            return old, store.folder(old)
        profile = measure_profile(sharer, receiver, plan, report)
        return profile, store.save(
            profile, None if draw is None else _drawing(draw, profile, report)
        )


def _drawing(
    draw: Callable[[Profile, Path], object], profile: Profile, report: Report
) -> Callable[[Path], None]:
    """Draw, or say why not: a figure is not worth the minutes that were measured."""

    def drawn(file: Path) -> None:
        try:
            draw(profile, file)
        except Exception as error:  # matplotlib raises almost anything
            file.unlink(missing_ok=True)
            report(f"no figure: {error}", 1.0)

    return drawn


def check_pair(sharer: TextModel, receiver: TextModel) -> None:
    """Refuse two models that no profile can be of.

    Raises:
        InputError, IdentityMismatch, GeometryMismatch: As `profile_pair`.
    """
    if sharer.identity == receiver.identity:
        raise InputError(
            f"{sharer.ref} and {receiver.ref} have the same weights, and a profile is of two "
            "fine-tunes of one base",
            expected="two models with different weights",
            fix="use channel: same_model_cache between their agents; it needs no profile",
        )
    require_one_base(receiver.identity, sharer.identity, "the sharer's state")
    receiver.geometry.require_rows("a profile")
    if sharer.dtype != receiver.dtype:
        raise GeometryMismatch(
            f"the sharer computes in {sharer.dtype}, the receiver in {receiver.dtype}",
            expected="one dtype at both ends",
        )


def trials_of(
    data: Path | None, model: TextModel, settings: Settings
) -> tuple[list[Trial], AuditFile]:
    """What to measure on, and where it is from.

    Raises:
        InputError: A file that cannot be read, or is too short.
    """
    longest = max(settings.prompts, default=0) + 2 * settings.tokens + settings.forced + 64
    if longest > model.max_positions:
        raise InputError(
            f"messages of {settings.tokens} tokens after prompts of "
            f"{max(settings.prompts, default=0)} "
            f"may take {longest} positions",
            expected=f"at most the {model.max_positions} of {model.ref or 'the model'}",
            fix="measure shorter messages: tokens, or --tokens",
        )
    if data is None:
        corpus = load_corpus(seed=settings.seed)
        trials = from_text("\n\n".join(corpus.validation), model, settings)
        return trials, AuditFile(name=BUILTIN, digest=corpus.digest, rows=len(trials))
    try:
        digest = blake3(data.read_bytes()).hexdigest()
        if data.suffix == ".jsonl":
            trials = from_rows(read_qa(data), model, settings)
        else:
            trials = from_text(data.read_text(encoding="utf-8"), model, settings)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{str(data)!r} cannot be read: {error}",
            expected="plain text in UTF-8, or question-answering rows in a .jsonl file",
        ) from error
    return trials, AuditFile(name=data.name, digest=digest, rows=len(trials))


def measure_profile(
    sharer: TextModel, receiver: TextModel, plan: ProfilePlan, report: Report
) -> Profile:
    """Search on some messages, measure what was found on others, and time it."""
    settings = plan.settings
    trials, data = trials_of(plan.data, receiver, settings)
    looked, assessed = trials[: settings.search], trials[settings.search :]
    choices = search(sharer, receiver, looked, report)
    layers = len(receiver.geometry.layers)
    chosen = choices_of(choices, layers)
    scores = assess(sharer, receiver, assessed, chosen, settings, report)
    times: dict[LayerRanges, float] = {}
    if plan.clock:
        times = clocked(sharer, receiver, assessed, chosen, plan, report)
    points = [
        Point(
            layer_ranges=layer_ranges,
            share=layers_of(layer_ranges) / layers,
            bytes_per_token=bytes_per_token(
                receiver.geometry, receiver.dtype.itemsize, layer_ranges
            ),
            places={
                place: estimate(scored, settings.seed)
                for place, scored in scores[layer_ranges].items()
            },
            speedup=times.get(layer_ranges),
        )
        for layer_ranges in chosen
    ]
    return Profile(
        unspoken=running_version(),
        created=dt.datetime.now(dt.UTC).date(),
        sharer=ModelDescription.of(sharer, _name(sharer)),
        receiver=ModelDescription.of(receiver, _name(receiver)),
        data=data,
        settings={
            "message_tokens": settings.tokens,
            "forced_tokens": settings.forced,
            "searched_on": len(looked),
            "judged_on": len(assessed),
            "timed_tokens": min(plan.clock, _longest(receiver)),
            "sink": settings.sink,
            "seed": settings.seed,
        },
        machine=describe_machine(receiver),
        points=tuple(sorted(points, key=lambda point: point.share)),
        searched=len(choices),
        command=plan.command,
    )


def _name(model: TextModel) -> str:
    return f"{model.ref}+{model.adapter}" if model.adapter else model.ref


@torch.no_grad()
def clocked(
    sharer: TextModel,
    receiver: TextModel,
    trials: Sequence[Trial],
    chosen: Sequence[LayerRanges],
    plan: ProfilePlan,
    report: Report,
) -> dict[LayerRanges, float]:
    """Time to the first token by text over that by each choice.

    Text is the faster of our prefill in chunks and one pass.

    The message, of `plan.clock` tokens, is in the sharer's cache already; 16 tokens of the
    receiver's own follow it.
    """
    words = [token for trial in trials for token in (*trial.words, *trial.forced)]
    before = trials[0].ids[: trials[0].at]
    size = min(plan.clock, _longest(receiver))
    ids = (*before, *(words * (size // len(words) + 1))[:size])
    trial = Trial(ids, len(before), tuple(words[:16]))
    arrival = arrival_of(trial, sharer.read(ids, entries_of(chosen)))
    after = receiver.tensor(trial.forced)

    whole = receiver.tensor((*ids, *trial.forced))
    texts: dict[str, Callable[[], object]] = {
        "chunks": lambda: receiver.prefill(whole),
        "one pass": lambda: receiver.logits(whole, last=1),
    }

    def across(layer_ranges: LayerRanges) -> None:
        carry = carry_across(arrival, receiver, layer_ranges=layer_ranges)
        receiver.prefill(after, [piece.state for piece in carry.pieces])

    conditions: dict[str | LayerRanges, Callable[[], object]] = dict(texts.items())
    conditions |= {layer_ranges: partial(across, layer_ranges) for layer_ranges in chosen}
    seconds = medians(conditions, plan.repeats, receiver.device, partial(report, "time"))
    text = min(seconds[name] for name in texts)
    return {layer_ranges: text / seconds[layer_ranges] for layer_ranges in chosen}


def _longest(model: TextModel) -> int:
    """Tokens of a message that can be timed, its frame and what follows it left room."""
    return model.max_positions - len(model.frame("chat").before) - 32
