"""Edges between different models: whether a bridge serves them."""

from collections.abc import Callable
from shlex import join
from typing import TYPE_CHECKING

from unspoken.agents.planning.audited import asks, held_to_audit
from unspoken.agents.planning.choice import ChannelChoice, EdgeEnds, shifts_keys
from unspoken.agents.planning.same_model import rewritten
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.channels.bridges.bounds import CONTEXTS
from unspoken.channels.errors import ChannelError, ModelSupportError
from unspoken.channels.projected import Bridge

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel


FindBridge = Callable[["AgentModel", "AgentModel"], Bridge | None]
"""The bridge from a sharer's model to a receiver's, or None."""


def other_weights(ends: EdgeEnds, find_bridge: FindBridge, given: Bridge | None) -> ChannelChoice:
    """What a bridge, or the lack of one, makes of an edge between two models."""
    edge, sharer, receiver = ends.edge, ends.sharer, ends.receiver
    changed = rewritten(ends)
    if changed is not None and changed.mode == "text":
        return changed
    unmapped = _unmapped(ends)
    if unmapped is not None:
        return unmapped
    try:
        bridge = given or find_bridge(sharer, receiver)
        if bridge is None:
            return _without_bridge(ends)
        bridge.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        reason = f"the bridge cannot be used: {error.found}"
        return ChannelChoice("text", reason, expected=error.expected, advice=error.fix)
    if not shifts_keys(receiver):
        reason = f"keys of {edge.to}'s model cannot be put at other positions"
        return ChannelChoice("text", reason, expected="a receiver with a known rotary embedding")
    if bridge.measure_here and (given is None or (asks(edge) and not edge.fuse)):
        return _from_elsewhere(bridge, bridge.measure_here, given=given is not None)
    if edge.fuse:
        return _fused(edge, bridge)
    return held_to_audit(edge, bridge)


def _unmapped(ends: EdgeEnds) -> ChannelChoice | None:
    """Text where either model's layers keep anything but rows; None where both keep rows alone."""
    edge, receiver = ends.edge, ends.receiver.geometry
    ways = ((ends.sharer, edge.from_), (ends.receiver, edge.to))
    odd = [(model.geometry, agent) for model, agent in ways if not model.geometry.plain]
    if not odd:
        return None
    layers = " and ".join(f"{agent}'s model {geometry.described()}" for geometry, agent in odd)
    reason = f"a bridge maps rows of keys and values, and of the layers of {layers}"
    if receiver.recurrent:
        reason += (
            f"; with its rows mapped, {edge.to} would still read the message through "
            f"{receiver.described_reading()}"
        )
    return ChannelChoice("text", reason, expected="models whose layers all have keys and values")


def _from_elsewhere(bridge: Bridge, command: str, *, given: bool) -> ChannelChoice:
    """No use of a bridge that comes with a claim of its own and with no other."""
    sharer, receiver = bridge.manifest.sharer.ref, bridge.manifest.receiver.ref
    trust = "Bridge.load(folder, trust=True)" if given else "bridges: trust in the workflow"
    return ChannelChoice(
        "text",
        f"the bridge {sharer} -> {receiver} was made elsewhere and never measured on this machine",
        expected="a bridge that was fitted or audited here",
        advice=f"{command} (or {trust}, to believe its own audit)",
    )


def _fused(edge: EdgeSpec, bridge: Bridge) -> ChannelChoice:
    """Use a bridge's fuse mode where its sharer is shown to add something."""
    sharer, receiver = bridge.manifest.sharer.ref, bridge.manifest.receiver.ref
    name = f"bridge {sharer} -> {receiver}"
    if not bridge.fuses:
        reason = f"the {name} was fitted without fuse mode"
        expected, fit = "a bridge that was fitted with fuse mode", _fit_command(sharer, receiver)
        return ChannelChoice("text", reason, expected=expected, advice=f"{fit} --fuse")
    adds = None if bridge.bounds is None else bridge.bounds.fuse_adds
    shown = adds is not None and adds > 0
    if not shown and edge.min_retention > 0:
        few = f"was not measured on {CONTEXTS} questions"
        measured = few if adds is None else f"may be {adds:.2f}"
        reason = (
            f"fuse mode is experimental: what the {name} gains over another question's sharer "
            f"{measured}"
        )
        advice = f"unspoken bridge audit {join((sharer, receiver))} --save" if adds is None else ""
        allow = "min_retention: 0 on this edge would try it all the same"
        expected = "an audit whose lower bound over another question's sharer is above 0"
        return ChannelChoice(
            "text", reason, expected=expected, advice=", or ".join(filter(None, (advice, allow)))
        )
    of_audit = f"adds at least {adds:.2f}" if shown else "is experimental: nothing of it is shown"
    reason = (
        f"other weights; {edge.to} reads the message itself, and the {name} enriches its cache "
        f"(its fuse mode {of_audit})"
    )
    return ChannelChoice("fused", reason, bridge=bridge)


def _without_bridge(ends: EdgeEnds) -> ChannelChoice:
    edge, sharer, receiver = ends.edge, ends.sharer, ends.receiver
    if sharer.identity == receiver.identity:
        reason = (
            f"{edge.from_} and {edge.to} have the same weights, so no bridge leads between them"
        )
        advice = "use channel: same_model_cache"
        return ChannelChoice("text", reason, expected="two models", advice=advice)
    between = f"{sharer.ref or edge.from_} to {receiver.ref or edge.to}"
    if ends.spec.bridges == "fit" and not edge.fuse:
        reason = (
            f"other weights; no bridge from {between} yet: one is fitted on the first run, "
            "and used if its audit shows what this edge asks for"
        )
        return ChannelChoice("projected", reason, unfitted=True)
    expected = "a bridge from the sharer's model to the receiver's"
    fit = _fit_command(sharer.ref, receiver.ref) + (" --fuse" if edge.fuse else "")
    fit = fit if sharer.ref and receiver.ref else "load both models by reference and fit a bridge"
    reason = f"other weights, and no bridge from {between}"
    return ChannelChoice("text", reason, expected=expected, advice=fit)


def _fit_command(sharer: str, receiver: str) -> str:
    return f"unspoken bridge fit {join((sharer, receiver))}"
