"""How an edge's message can serve its receiver: its state continues the context, is spliced in, or is of no use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from shlex import join
from typing import TYPE_CHECKING, Literal

from unspoken.agents.outline import Piece, prints_message
from unspoken.agents.spec import EdgeSpec, WorkflowSpec
from unspoken.agents.templates import references
from unspoken.channels.errors import ChannelError, ModelSupportError
from unspoken.channels.profiles.profile import Profile
from unspoken.channels.projected import Bridge, ProjectedCacheChannel
from unspoken.channels.recompute import Groups, check_groups, named
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = ["FindBridge", "FindProfile", "Verdict", "judge", "make_channel"]

FindBridge = Callable[["LocalModel", "LocalModel"], Bridge | None]
"""The bridge from a sharer's model to a receiver's, or None."""

FindProfile = Callable[["LocalModel", "LocalModel"], Profile | None]
"""The profile of a sharer's model and a receiver's, or None."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can cross an edge.

    Attributes:
        mode: ``text``, ``continuation``, ``splice``, ``recompute``, ``projected``, ``fused`` or ``own``.
        reason: Why so, in a sentence.
        expected: What a cache would have needed, where it is text.
        advice: What would make it faster, empty for nothing.
        bridge: The bridge of a projected edge.
        unfitted: Whether a bridge has to be fitted before this is known.
        groups: Layers that the receiver computes anew of a message from other weights of its base.
        grounds: What speaks for these groups.
        max_kl: The most that the profile's KL may be, by its interval; None without a profile.
        first_only: Whether these groups are for messages alone that stand where they stood at their sharer.
        own: A channel of the workflow's own class, which carries the message.
    """

    mode: str
    reason: str
    expected: str = ""
    advice: str = ""
    bridge: Bridge | None = None
    unfitted: bool = False
    groups: Groups | None = None
    grounds: str = ""
    max_kl: float | None = None
    first_only: bool = False
    own: "Channel | None" = None

    @property
    def channel(self) -> str:
        """Name of the channel that carries it."""
        if self.own is not None:
            return self.own.name
        names = {"text": "text", "projected": "projected_cache", "fused": "projected_cache"}
        return names.get(self.mode, "same_model_cache")


def make_channel(
    edge: EdgeSpec,
    name: str,
    bridge: Bridge | None = None,
    verdict: "Verdict | None" = None,
) -> "Channel":
    """The channel of a name with an edge's options; without its bridge a projected one is text."""
    if verdict is not None and verdict.own is not None:
        return verdict.own
    sink = edge.repair.sink if edge.repair else 0
    if name == "same_model_cache":
        deviation = edge.repair.deviation if edge.repair else 0.0
        across = verdict or Verdict("splice", "")
        return SameModelCacheChannel(
            edge.share,
            edge.as_,
            sink,
            deviation,
            across.groups,
            across.grounds,
            across.first_only,
        )
    if bridge is not None:
        mode: Literal["prefix", "fuse"] = "fuse" if edge.fuse else "prefix"
        return ProjectedCacheChannel(bridge, edge.share, edge.as_, sink, mode)
    return TextChannel(edge.share, edge.as_)


def judge(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_bridge: FindBridge = lambda sharer, receiver: None,
    given: Bridge | None = None,
    find_profile: FindProfile = lambda sharer, receiver: None,
    own: "Channel | None" = None,
) -> Verdict:
    """Decide, before anything ran, how one edge's message can be carried.

    Args:
        spec: A valid workflow.
        number: The edge.
        contexts: Outline of every agent's context.
        models: The loaded model of every agent, by agent.
        find_bridge: Where bridges are looked for.
        given: A bridge that the workflow names for this very edge.
        find_profile: Where profiles of fine-tunes are looked for.
        own: A channel of the workflow's own class that was connected here.
    """
    edge = spec.edges[number]
    if edge.channel == "text":
        return Verdict("text", "the workflow asks for text")
    carries_state = own is None or own.carries_state
    if spec.agents[edge.from_].for_each is not None and carries_state:
        reason = f"{edge.from_} runs once per item, and its items have contexts of their own"
        return Verdict("text", reason, "a sharer with one context")
    sharer, receiver = models[edge.from_], models[edge.to]
    if own is not None:
        return _by_own(own, sharer, receiver)
    if edge.channel == "projected_cache":
        return _other_weights(spec, number, contexts, models, find_bridge, given)
    if _of_one_base(sharer, receiver):
        verdict = _across(spec, number, contexts, models, find_profile)
        if verdict.mode != "text" or edge.channel != "auto":
            return verdict
        other = _other_weights(spec, number, contexts, models, find_bridge, None)
        return other if other.mode != "text" else _neither(verdict, other)
    try:
        make_channel(edge, "same_model_cache").check(sharer, receiver)
    except ChannelError as error:
        if edge.channel != "auto" or sharer.identity == receiver.identity:
            return Verdict("text", error.found, error.expected)
        return _other_weights(spec, number, contexts, models, find_bridge, None)
    verdict = _same_weights(spec, number, contexts)
    if verdict.mode == "splice" and not _shifts_keys(receiver):
        reason = (
            "this model's keys cannot be moved, and the message stands elsewhere than at its sharer"
        )
        return Verdict("text", reason, "the same tokens before the message at both ends")
    return verdict


def _by_own(channel: "Channel", sharer: "LocalModel", receiver: "LocalModel") -> Verdict:
    """A channel of the workflow's own class, where it takes the pair."""
    try:
        channel.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        return Verdict("text", error.found, error.expected)
    reason = f"the workflow's own {type(channel).__name__}, which tells at run time how it carried"
    return Verdict("own", reason, own=channel)


def _neither(across: Verdict, bridged: Verdict) -> Verdict:
    """Text for two reasons: each step down from `auto` is told."""
    if across.reason == bridged.reason:
        return bridged
    advice = ", or ".join(one for one in (across.advice, bridged.advice) if one)
    return Verdict("text", f"{across.reason}; {bridged.reason}", across.expected, advice)


def _of_one_base(sharer: "LocalModel", receiver: "LocalModel") -> bool:
    """Whether two models differ in their weights alone, as fine-tunes of one base do."""
    ours, theirs = receiver.identity, sharer.identity
    equal = ours.config == theirs.config and ours.tokenizer == theirs.tokenizer
    return equal and ours != theirs and sharer.dtype == receiver.dtype


def _across(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_profile: FindProfile,
) -> Verdict:
    """What the edge's policy makes of a cache from other weights of the receiver's base."""
    edge = spec.edges[number]
    sharer, receiver = models[edge.from_], models[edge.to]
    place = _same_weights(spec, number, _with_one_opening(spec, edge, contexts, models))
    if place.mode == "text":
        return place
    moved = place.mode == "splice"
    if moved and not _shifts_keys(receiver):
        reason = f"keys of {edge.to}'s model cannot be put at other positions"
        return Verdict("text", reason, "the same tokens before the message at both ends")
    if edge.recompute is None:
        reason = "other weights of one base, and the workflow refuses their cache (recompute: none)"
        return Verdict("text", reason, "recompute: profile, or groups of layers")
    if edge.recompute != "profile":
        return _by_groups(edge, check_groups(edge.recompute, len(receiver.geometry.layers)))
    try:
        profile = find_profile(sharer, receiver)
    except ChannelError as error:
        reason = f"the profile cannot be used: {error.found}"
        return Verdict("text", reason, error.expected, error.fix)
    ends = f"{_called(sharer, edge.from_)} to {_called(receiver, edge.to)}"
    if profile is None:
        reason = f"other weights of one base, and no profile from {ends}"
        return Verdict("text", reason, "a profile of the pair", _profile_command(sharer, receiver))
    return _by_profile(edge, profile, receiver, ends, moved=moved)


def _with_one_opening(
    spec: WorkflowSpec,
    edge: EdgeSpec,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
) -> Mapping[str, Sequence[Piece]]:
    """The outlines, with one opening at both ends where two models' templates give the same tokens."""
    if any(spec.agents[name].system is not None for name in (edge.from_, edge.to)):
        return contexts
    openings = [models[name].composer.opening(None).ids for name in (edge.from_, edge.to)]
    if openings[0] != openings[1]:
        return contexts
    return {**contexts, edge.to: (contexts[edge.from_][0], *contexts[edge.to][1:])}


def _by_groups(edge: EdgeSpec, groups: Groups) -> Verdict:
    """Layers that the workflow itself names."""
    what = f"layers {named(groups)} computed anew" if groups else "taken as it is"
    reason = f"other weights of one base; {what}, as the workflow says"
    return Verdict("recompute", reason, groups=groups, grounds="as the workflow says")


def _by_profile(
    edge: EdgeSpec, profile: Profile, receiver: "LocalModel", ends: str, *, moved: bool
) -> Verdict:
    """The cheapest point of a profile within the edge's bound."""
    unfit = _unfit(edge, profile, receiver, moved=moved)
    if unfit is not None:
        return Verdict("text", *unfit)
    timed = str(profile.machine.get("device", "")).partition(":")[0] == receiver.device.type
    within = profile.within(edge.max_kl, moved=moved)
    point = next((one for one in within if not (timed and one.slow)), None)
    found = None if point is None else point.worst(moved=moved)
    if point is None or found is None:
        highs = sorted(one.high for one in profile.at(moved=moved))
        reason = f"no choice of layers keeps {ends} within {edge.max_kl:g} nats"
        reason += f"; the nearest keeps {highs[0]:.4f}" if highs else ""
        if within:
            reason = f"what keeps {ends} within {edge.max_kl:g} nats was no faster than text"
        return Verdict("text", reason, "a profile within the edge's max_kl")
    speed = f", {point.speedup:.1f}x" if point.speedup and timed else ""
    grounds = f"profile: {found.kl:.4f} nats, interval up to {found.high:.4f}{speed}"
    what = f"layers {point.named} computed anew" if point.groups else "taken as it is"
    return Verdict(
        "recompute",
        f"other weights of one base; {what} ({grounds}; {edge.max_kl:g} allowed)",
        groups=point.groups,
        grounds=grounds,
        max_kl=found.high,
        first_only=not moved,
    )


def _unfit(
    edge: EdgeSpec, profile: Profile, receiver: "LocalModel", *, moved: bool
) -> tuple[str, str, str] | None:
    """What makes a profile's bound say nothing of an edge: what was found, what was expected, the fix."""
    dtype = str(receiver.dtype).removeprefix("torch.")
    if profile.receiver.layer_dtype != dtype:
        found = f"the profile was measured in {profile.receiver.layer_dtype}, and {edge.to} computes in {dtype}"
        return found, f"a profile in {dtype}", "measure it again in that dtype"
    if edge.codec != "raw":
        found = (
            f"the profile's bound is for a cache as it is, and the edge keeps it as {edge.codec}"
        )
        return found, "codec: raw, or groups of layers", "leave codec out"
    sink = edge.repair.sink if edge.repair else 0
    if moved and sink < profile.settings.get("sink", 0):
        found = (
            f"behind other tokens the profile was measured with the first {profile.settings['sink']} computed anew, "
            f"and the edge repairs {sink}"
        )
        return found, f"repair: {{sink: {profile.settings['sink']}}} or more", "leave repair out"
    return None


def _called(model: "LocalModel", agent: str) -> str:
    if model.adapter is not None:
        return f"{model.ref} with {model.adapter}"
    return model.ref or agent


def _profile_command(sharer: "LocalModel", receiver: "LocalModel") -> str:
    if not sharer.ref or not receiver.ref:
        return "load both models by reference and run `unspoken profile` on them"
    words = ["unspoken", "profile", sharer.ref, receiver.ref]
    for flag, model in (("--sharer-adapter", sharer), ("--receiver-adapter", receiver)):
        words += [flag, model.adapter] if model.adapter is not None else []
    return join(words)


def _other_weights(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_bridge: FindBridge,
    given: Bridge | None,
) -> Verdict:
    """What a bridge, or the lack of one, makes of an edge between two models."""
    edge = spec.edges[number]
    sharer, receiver = models[edge.from_], models[edge.to]
    changed = None if edge.loop else _rewritten(spec, number, contexts)
    if changed is not None and changed.mode == "text":
        return changed
    try:
        bridge = given or find_bridge(sharer, receiver)
        if bridge is None:
            return _without_bridge(spec, edge, sharer, receiver)
        bridge.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        reason = f"the bridge cannot be used: {error.found}"
        return Verdict("text", reason, error.expected, error.fix)
    if not _shifts_keys(receiver):
        reason = f"keys of {edge.to}'s model cannot be put at other positions"
        return Verdict("text", reason, "a receiver with a known rotary embedding")
    if edge.fuse:
        return _fused(edge, bridge)
    return _held_to_retention(edge, bridge, given=given is not None)


def _fused(edge: EdgeSpec, bridge: Bridge) -> Verdict:
    """Use a bridge's fuse mode where it has one; retention says nothing of it, since the receiver reads it all."""
    ends = bridge.manifest
    name = f"bridge {ends.sharer.ref} -> {ends.receiver.ref}"
    if not bridge.fuses:
        reason = f"the {name} was fitted without fuse mode"
        fit = f"{_fit_command(ends.sharer.ref, ends.receiver.ref)} --fuse"
        return Verdict("text", reason, "a bridge that was fitted with --fuse", fit)
    reason = (
        f"other weights; {edge.to} reads the message itself, and the {name} enriches its cache "
        "(audits do not cover fuse mode)"
    )
    return Verdict("fused", reason, bridge=bridge)


def _without_bridge(
    spec: WorkflowSpec, edge: EdgeSpec, sharer: "LocalModel", receiver: "LocalModel"
) -> Verdict:
    if sharer.identity == receiver.identity:
        reason = (
            f"{edge.from_} and {edge.to} have the same weights, so no bridge leads between them"
        )
        return Verdict("text", reason, "two models", "use channel: same_model_cache")
    ends = f"{sharer.ref or edge.from_} to {receiver.ref or edge.to}"
    if spec.bridges == "fit" and not edge.fuse:
        reason = (
            f"other weights; no bridge from {ends} yet: one is fitted on the first run, "
            f"and used if it keeps {edge.min_retention:g}"
        )
        return Verdict("projected", reason, unfitted=True)
    expected = "a bridge from the sharer's model to the receiver's"
    fit = _fit_command(sharer.ref, receiver.ref) + (" --fuse" if edge.fuse else "")
    fit = fit if sharer.ref and receiver.ref else "load both models by reference and fit a bridge"
    return Verdict("text", f"other weights, and no bridge from {ends}", expected, fit)


def _fit_command(sharer: str, receiver: str) -> str:
    return f"unspoken bridge fit {join((sharer, receiver))}"


def _held_to_retention(edge: EdgeSpec, bridge: Bridge, *, given: bool) -> Verdict:
    """Use a bridge that keeps enough; one given as an object needs no audit where the edge asks for nothing."""
    ends, least, earned = bridge.manifest, edge.min_retention, bridge.earned
    name = f"bridge {ends.sharer.ref} -> {ends.receiver.ref}"
    expected = f"an audited retention of {least:g} or more"
    kept = "never audited"
    if earned is not None:
        shown = floor(round(earned * 100, 6)) / 100  # down, so that what is shown is kept
        kept = f"keeps {shown:.2f} for certain ({least:g} asked)"
        if earned < least:
            reason = f"the {name} keeps {shown:.2f} for certain, below this edge's {least:g}"
            allow = f"min_retention: {shown:.2f} on this edge would allow it" if shown >= 0 else ""
            return Verdict("text", reason, expected, allow)
    elif not given or least > 0:
        audit = f"unspoken bridge audit {join((ends.sharer.ref, ends.receiver.ref))}"
        return Verdict("text", f"the {name} was never audited", expected, audit)
    native = bridge.native_layers
    runs = f"; {edge.to} runs its first {native} layers itself" if native else ""
    reason = f"other weights; {name}: {bridge.describe()}, {kept}{runs}"
    return Verdict("projected", reason, bridge=bridge)


def _shifts_keys(model: "LocalModel") -> bool:
    try:
        return model.shifts_keys
    except ModelSupportError:
        return False


def _same_weights(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> Verdict:
    """Whether the same pieces stand before and in the message at both ends."""
    edge = spec.edges[number]
    if edge.loop:
        reason = f"same weights, but it comes after what {edge.to} has written before"
        return Verdict("splice", reason)
    changed = _rewritten(spec, number, contexts)
    if changed is not None:
        return changed
    theirs, ours = contexts[edge.from_], contexts[edge.to]
    last = max(index for index, piece in enumerate(ours) if piece.edge == number)
    for left, right in zip(theirs, ours[: last + 1], strict=False):
        if left.key != right.key:
            reason = f"same weights, but {left.label} at {edge.from_} stands where {edge.to} has {right.label}"
            return Verdict("splice", reason, advice=_advice(spec, number, left, right))
    if len(theirs) <= last:
        return Verdict("splice", f"{edge.to} has more before the message than {edge.from_}")
    reason = (
        f"same weights, and the same tokens stand before the message at {edge.from_} and {edge.to}"
    )
    return Verdict("continuation", reason)


def _rewritten(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> Verdict | None:
    """What becomes of a message that the receiver's prompt may change; None where it stands as it is."""
    edge = spec.edges[number]
    placed = any(piece.edge == number for piece in contexts[edge.to])
    mentioned = any(r.root == edge.from_ for r in references(spec.agents[edge.to].prompt))
    if not placed or (mentioned and spec.share_of(edge) == "context"):
        return _changed_by_the_prompt(spec, edge)
    return None


def _changed_by_the_prompt(spec: WorkflowSpec, edge: EdgeSpec) -> Verdict:
    if spec.share_of(edge) == "context":
        reason = (
            f"whole turns cannot stand inside the prompt of {edge.to}, so it quotes their words"
        )
        return Verdict("text", reason, f"{edge.from_}.text outside the prompt, or share: output")
    if prints_message(spec.agents[edge.to].prompt, edge.from_):
        return Verdict(
            "splice", f"same weights; the prompt of {edge.to} places the message under a condition"
        )
    reason = f"the prompt of {edge.to} changes the message's words, so they are read anew"
    return Verdict("text", reason, f"the whole of {edge.from_}.text, unfiltered")


def _advice(spec: WorkflowSpec, number: int, left: Piece, right: Piece) -> str:
    if "system" in (left.kind, right.kind):
        return "put the instructions into the prompt, and leave the system prompt out at both ends"
    if right.edge not in (None, number) and spec.share_of(spec.edges[number]) != "output":
        return "let this edge come first"
    return ""
