"""Edges between fine-tunes of one base: what their policy or a profile of the pair allows."""

from collections.abc import Callable, Mapping, Sequence
from shlex import join
from typing import TYPE_CHECKING

from unspoken.agents.planning.choice import ChannelChoice, shifts_keys
from unspoken.agents.planning.outline import Piece
from unspoken.agents.planning.same_model import same_weights
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.channels.errors import ChannelError
from unspoken.channels.finetunes.profile import Profile
from unspoken.channels.finetunes.recompute import LayerRanges, check_layer_ranges, named
from unspoken.channels.finetunes.store import ProfileStore

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel

__all__ = ["FindProfile", "across", "of_one_base", "stored_profile"]

FindProfile = Callable[["LocalModel", "LocalModel"], Profile | None]
"""The profile of a sharer's model and a receiver's, or None."""


def stored_profile(sharer: "LocalModel", receiver: "LocalModel") -> Profile | None:
    """The profile in the user's store; it may have been measured since a former plan."""
    return ProfileStore().find(sharer.identity, receiver.identity)


def of_one_base(sharer: "LocalModel", receiver: "LocalModel") -> bool:
    """Whether two models differ in their weights alone, as fine-tunes of one base do."""
    ours, theirs = receiver.identity, sharer.identity
    equal = ours.config == theirs.config and ours.tokenizer == theirs.tokenizer
    return equal and ours != theirs and sharer.dtype == receiver.dtype


def across(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_profile: FindProfile,
) -> ChannelChoice:
    """What the edge's policy makes of a cache from other weights of the receiver's base."""
    edge = spec.edges[number]
    sharer, receiver = models[edge.from_], models[edge.to]
    place = same_weights(spec, number, _with_one_opening(spec, edge, contexts, models))
    if place.mode == "text":
        return place
    moved = place.mode == "splice"
    if moved and not shifts_keys(receiver):
        reason = f"keys of {edge.to}'s model cannot be put at other positions"
        return ChannelChoice(
            "text", reason, expected="the same tokens before the message at both ends"
        )
    if edge.recompute is None:
        reason = "other weights of one base, and the workflow refuses their cache (recompute: none)"
        return ChannelChoice("text", reason, expected="recompute: profile, or ranges of layers")
    if edge.recompute != "profile":
        return _by_groups(edge, check_layer_ranges(edge.recompute, len(receiver.geometry.layers)))
    try:
        profile = find_profile(sharer, receiver)
    except ChannelError as error:
        reason = f"the profile cannot be used: {error.found}"
        return ChannelChoice("text", reason, expected=error.expected, advice=error.fix)
    ends = f"{_called(sharer, edge.from_)} to {_called(receiver, edge.to)}"
    if profile is None:
        reason = f"other weights of one base, and no profile from {ends}"
        return ChannelChoice(
            "text",
            reason,
            expected="a profile of the pair",
            advice=_profile_command(sharer, receiver),
        )
    return _by_profile(edge, profile, receiver, ends, moved=moved)


def _with_one_opening(
    spec: WorkflowSpec,
    edge: EdgeSpec,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
) -> Mapping[str, Sequence[Piece]]:
    """The outlines, with one opening at both ends where both templates give the same tokens."""
    if any(spec.agents[name].system is not None for name in (edge.from_, edge.to)):
        return contexts
    openings = [models[name].context_builder.opening(None).ids for name in (edge.from_, edge.to)]
    if openings[0] != openings[1]:
        return contexts
    return {**contexts, edge.to: (contexts[edge.from_][0], *contexts[edge.to][1:])}


def _by_groups(edge: EdgeSpec, layer_ranges: LayerRanges) -> ChannelChoice:
    """Layers that the workflow itself names."""
    what = f"layers {named(layer_ranges)} recomputed" if layer_ranges else "taken as it is"
    reason = f"other weights of one base; {what}, as the workflow says"
    return ChannelChoice(
        "recompute", reason, layer_ranges=layer_ranges, evidence="as the workflow says"
    )


def _by_profile(
    edge: EdgeSpec, profile: Profile, receiver: "LocalModel", ends: str, *, moved: bool
) -> ChannelChoice:
    """The cheapest point of a profile within the edge's bound."""
    unfit = _unfit(edge, profile, receiver, moved=moved)
    if unfit is not None:
        return unfit
    timed = str(profile.machine.get("device", "")).partition(":")[0] == receiver.device.type
    within = profile.within(edge.max_kl, moved=moved)
    point = next((one for one in within if not (timed and one.slow)), None)
    found = None if point is None else point.worst(moved=moved)
    if point is None or found is None:
        highs = sorted(one.high for one in profile.at(moved=moved))
        reason = f"no choice of layers keeps {ends} within {edge.max_kl:g} nats"
        reason += f"; the nearest keeps {highs[0]:.4f}" if highs else ""
        if within:
            reason = f"no choice within {edge.max_kl:g} nats for {ends} was faster than text"
        return ChannelChoice("text", reason, expected="a profile within the edge's max_kl")
    speed = f", {point.speedup:.1f}x" if point.speedup and timed else ""
    evidence = f"profile: {found.kl:.4f} nats, interval up to {found.high:.4f}{speed}"
    what = f"layers {point.named} recomputed" if point.layer_ranges else "taken as it is"
    return ChannelChoice(
        "recompute",
        f"other weights of one base; {what} ({evidence}; {edge.max_kl:g} allowed)",
        layer_ranges=point.layer_ranges,
        evidence=evidence,
        max_kl=found.high,
        prefix_only=not moved,
    )


def _unfit(
    edge: EdgeSpec, profile: Profile, receiver: "LocalModel", *, moved: bool
) -> ChannelChoice | None:
    """Text, where a profile's bound says nothing of an edge."""
    measured, dtype = profile.receiver.layer_dtype, str(receiver.dtype).removeprefix("torch.")
    sink = edge.repair.sink if edge.repair else 0
    least = profile.settings.get("sink", 0) if moved else 0
    if measured != dtype:
        reason = f"the profile was measured in {measured}, and {edge.to} computes in {dtype}"
        expected, advice = f"a profile in {dtype}", "measure it again in that dtype"
    elif edge.codec != "raw":
        reason = f"the profile's bound is for a raw cache, and the edge keeps it as {edge.codec}"
        expected, advice = "codec: raw, or ranges of layers", "leave codec out"
    elif sink < least:
        reason = (
            f"after other tokens the profile was measured with the first {least} recomputed, "
            f"and the edge repairs {sink}"
        )
        expected, advice = f"repair: {{sink: {least}}} or more", "leave repair out"
    else:
        return None
    return ChannelChoice("text", reason, expected=expected, advice=advice)


def _called(model: "LocalModel", agent: str) -> str:
    if model.adapter is not None:
        return f"{model.ref} with {model.adapter}"
    return model.ref or agent


def _profile_command(sharer: "LocalModel", receiver: "LocalModel") -> str:
    if not sharer.ref or not receiver.ref:
        return "load both models by reference and run `unspoken profile fit` on them"
    words = ["unspoken", "profile", "fit", sharer.ref, receiver.ref]
    for flag, model in (("--sharer-adapter", sharer), ("--receiver-adapter", receiver)):
        words += [flag, model.adapter] if model.adapter is not None else []
    return join(words)
