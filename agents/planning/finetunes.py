"""Edges between fine-tunes of one base: what their policy or a profile of the pair allows."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from shlex import join
from typing import TYPE_CHECKING

from unspoken.agents.planning.choice import ChannelChoice, EdgeEnds, shifts_keys
from unspoken.agents.planning.same_model import same_weights
from unspoken.channels.errors import ChannelError
from unspoken.channels.finetunes.profile import Profile
from unspoken.channels.finetunes.recompute import LayerRanges, check_layer_ranges, named
from unspoken.channels.finetunes.store import ProfileStore

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel


FindProfile = Callable[["AgentModel", "AgentModel"], Profile | None]
"""The profile of a sharer's model and a receiver's, or None."""


def stored_profile(sharer: "AgentModel", receiver: "AgentModel") -> Profile | None:
    """The profile in the user's store; it may have been measured since a former plan."""
    return ProfileStore().find(sharer.identity, receiver.identity)


def of_one_base(sharer: "AgentModel", receiver: "AgentModel") -> bool:
    """Whether two models differ in their weights alone, as fine-tunes of one base do."""
    ours, theirs = receiver.identity, sharer.identity
    equal = ours.config == theirs.config and ours.tokenizer == theirs.tokenizer
    return equal and ours != theirs and sharer.dtype == receiver.dtype


def across(ends: EdgeEnds, find_profile: FindProfile) -> ChannelChoice:
    """What the edge's policy makes of a cache from other weights of the receiver's base."""
    edge, sharer, receiver = ends.edge, ends.sharer, ends.receiver
    if not receiver.geometry.plain:
        reason = f"other weights of one base, and of the layers {receiver.geometry.described()}"
        return ChannelChoice("text", reason, expected="layers that all have keys and values")
    place = same_weights(_with_one_opening(ends))
    if place.mode == "text":
        return place
    moved = place.mode == "splice"
    if moved and not shifts_keys(receiver):
        reason = f"keys of {edge.to}'s model cannot be put at other positions"
        expected = "the same tokens before the message at both ends"
        return ChannelChoice("text", reason, expected=expected, advice=place.advice)
    if edge.recompute is None:
        reason = "other weights of one base, and the workflow refuses their cache (recompute: none)"
        return ChannelChoice(
            "text",
            reason,
            expected="recompute: profile, or ranges of layers",
            advice="leave out recompute: none; a profile of the pair then says what serves",
        )
    if edge.recompute != "profile":
        return _by_ranges(check_layer_ranges(edge.recompute, len(receiver.geometry.layers)))
    try:
        profile = find_profile(sharer, receiver)
    except ChannelError as error:
        reason = f"the profile cannot be used: {error.found}"
        return ChannelChoice("text", reason, expected=error.expected, advice=error.fix)
    between = f"{_called(sharer, edge.from_)} to {_called(receiver, edge.to)}"
    if profile is None:
        reason = f"other weights of one base, and no profile from {between}"
        advice = _profile_command(sharer, receiver)
        return ChannelChoice("text", reason, expected="a profile of the pair", advice=advice)
    return _by_profile(ends, profile, between, moved=moved)


def _with_one_opening(ends: EdgeEnds) -> EdgeEnds:
    """The outlines, with one opening at both ends where both templates give the same tokens."""
    agents, edge = ends.spec.agents, ends.edge
    if agents[edge.from_].system is not None or agents[edge.to].system is not None:
        return ends
    theirs, ours = ends.sharer.context_builder, ends.receiver.context_builder
    if theirs.opening(None).ids != ours.opening(None).ids:
        return ends
    return replace(ends, receiver_context=(ends.sharer_context[0], *ends.receiver_context[1:]))


def _by_ranges(layer_ranges: LayerRanges) -> ChannelChoice:
    """Layers that the workflow itself names."""
    what = f"layers {named(layer_ranges)} recomputed" if layer_ranges else "taken as it is"
    reason = f"other weights of one base; {what}, as the workflow says"
    evidence = "as the workflow says"
    return ChannelChoice("recompute", reason, layer_ranges=layer_ranges, evidence=evidence)


def _by_profile(ends: EdgeEnds, profile: Profile, between: str, *, moved: bool) -> ChannelChoice:
    """The cheapest point of a profile within the edge's bound."""
    unfit = _unfit(ends, profile, moved=moved)
    if unfit is not None:
        return unfit
    edge, device = ends.edge, str(profile.machine.get("device", "")).partition(":")[0]
    timed = device == ends.receiver.device.type
    within = profile.within(edge.max_kl, moved=moved)
    point = next((point for point in within if not (timed and point.slow)), None)
    worst = None if point is None else point.worst(moved=moved)
    if point is None or worst is None:
        highs = sorted(divergence.high for divergence in profile.estimates(moved=moved))
        reason = f"no choice of layers keeps {between} within {edge.max_kl:g} nats"
        reason += f"; the nearest keeps {highs[0]:.4f}" if highs else ""
        if within:
            reason = f"no choice within {edge.max_kl:g} nats for {between} was faster than text"
        allow = f"max_kl: {_up(highs[0])} on this edge" if highs and not within else ""
        return ChannelChoice(
            "text", reason, expected="a profile within the edge's max_kl", advice=allow
        )
    speed = f", {point.speedup:.1f}x" if point.speedup and timed else ""
    evidence = f"profile: {worst.kl:.4f} nats, interval up to {worst.high:.4f}{speed}"
    what = f"layers {point.named} recomputed" if point.layer_ranges else "taken as it is"
    return ChannelChoice(
        "recompute",
        f"other weights of one base; {what} ({evidence}; {edge.max_kl:g} allowed)",
        layer_ranges=point.layer_ranges,
        evidence=evidence,
        max_kl=worst.high,
        prefix_only=not moved,
    )


def _up(bound: float) -> str:
    """A bound in nats that allows this one, to four places."""
    return f"{ceil(bound * 10_000) / 10_000:g}"


def _unfit(ends: EdgeEnds, profile: Profile, *, moved: bool) -> ChannelChoice | None:
    """Text, where a profile's bound says nothing of an edge."""
    edge, dtype = ends.edge, str(ends.receiver.dtype).removeprefix("torch.")
    measured = profile.receiver.layer_dtype
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


def _called(model: "AgentModel", agent: str) -> str:
    if model.adapter is not None:
        return f"{model.ref} with {model.adapter}"
    return model.ref or agent


def _profile_command(sharer: "AgentModel", receiver: "AgentModel") -> str:
    if not sharer.ref or not receiver.ref:
        return "load both models by reference and run `unspoken profile fit` on them"
    words = ["unspoken", "profile", "fit", sharer.ref, receiver.ref]
    for flag, model in (("--sharer-adapter", sharer), ("--receiver-adapter", receiver)):
        words += [flag, model.adapter] if model.adapter is not None else []
    return join(words)
