"""Whether a bridge's audit shows what an edge asks for, by the lower bounds of its figures."""

from dataclasses import dataclass
from math import floor
from shlex import join

from unspoken.agents.planning.choice import ChannelChoice
from unspoken.agents.spec.edge import MAX_LOSS, MIN_RETENTION
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.channels.bootstrap import unseen
from unspoken.channels.bridges.bounds import CONTEXTS, STYLE, AuditBounds
from unspoken.channels.projected import Bridge


@dataclass(frozen=True, slots=True)
class _Lacking:
    """One thing that an audit does not show.

    Attributes:
        reason: What it shows instead.
        advice: What would help, empty for nothing.
    """

    reason: str
    advice: str = ""


def asks(edge: EdgeSpec) -> bool:
    """Whether an edge asks anything of a bridge's audit."""
    return edge.min_retention > 0 or edge.max_loss < 1


def held_to_audit(edge: EdgeSpec, bridge: Bridge) -> ChannelChoice:
    """Use a bridge whose audit shows that it keeps the message, the sharer's part and the task.

    An edge that asks for nothing takes it as it is.
    """
    sharer, receiver = bridge.manifest.sharer.ref, bridge.manifest.receiver.ref
    name, bounds = f"bridge {sharer} -> {receiver}", bridge.bounds
    native = bridge.native_layers
    runs = f"; {edge.to} runs its first {native} layers itself" if native else ""
    if not asks(edge):
        shown = f"{bridge.describe()}, and this edge asks nothing of its audit"
        return ChannelChoice("projected", f"other weights; {name}: {shown}{runs}", bridge=bridge)
    lacking = _lacking(edge, bounds, join((sharer, receiver)))
    if lacking or bounds is None:
        reason = "; ".join(one.reason for one in lacking)
        return ChannelChoice(
            "text",
            f"the {name} {reason}",
            expected=_expected(edge),
            advice=", or ".join(dict.fromkeys(one.advice for one in lacking if one.advice)),
        )
    shown = f"{bridge.describe()}; {_shown(edge, bounds)}"
    reason = f"other weights; {name}: {shown}{runs}"
    return ChannelChoice("projected", reason, bridge=bridge, longest=bounds.longest)


def _lacking(edge: EdgeSpec, bounds: AuditBounds | None, pair: str) -> list[_Lacking]:
    """What an edge asks for that an audit does not show; empty where it shows all."""
    again = f"unspoken bridge audit {pair} --save"
    if bounds is None:
        return [_Lacking("was never audited", again)]
    if bounds.contexts == 0:
        return [_Lacking("has an audit of an older kind, which shows nothing of a task", again)]
    if bounds.contexts < CONTEXTS:
        few = f"was audited on {bounds.contexts} contexts, and {CONTEXTS} show something"
        return [_Lacking(few, f"{again}, with more rows")]
    if not bounds.compared:
        found = "has an audit that may have asked about the very text it was fitted on"
        return [_Lacking(found, f"{again}, where that text lies as it was")]
    lacking = []
    if edge.min_retention > 0:
        lacking += _of_message(edge, bounds, again)
    if edge.max_loss < 1:
        lacking += _of_task(edge, bounds, again)
    return lacking


def _of_message(edge: EdgeSpec, bounds: AuditBounds, again: str) -> list[_Lacking]:
    """What is not shown of the message, and of the sharer's part in it."""
    least, kept, adds = edge.min_retention, bounds.message_kept, bounds.sharer_adds
    lacking = []
    if kept is None:
        lacking.append(_Lacking("is not shown to keep anything of a message"))
    elif kept < least:
        found = f"keeps at least {down(kept):.2f} of a message, and this edge asks for {least:g}"
        allow = f"min_retention: {down(kept):.2f} on this edge" if down(kept) > 0 else ""
        lacking.append(_Lacking(found, allow))
    if adds is None:
        found = "is not shown to carry more than the receiver's embeddings alone"
        lacking.append(_Lacking(found, f"{again} --with-embeddings-bridge"))
    elif adds <= 0:
        lacking.append(_Lacking(f"may owe its sharer nothing (at least {down(adds):.2f})"))
    return lacking


def _of_task(edge: EdgeSpec, bounds: AuditBounds, again: str) -> list[_Lacking]:
    difference, most = bounds.task_difference, edge.max_loss
    if difference is None:
        found = "is not shown to keep the task's score, or the text adds nothing to it"
        return [_Lacking(found, f"{again} --qa FILE, with questions that need the text")]
    if difference >= -most:
        return []
    if unseen(bounds.contexts) > most:
        found = f"was audited on {bounds.contexts} contexts, too few to show so small a loss as "
        return [_Lacking(f"{found}{most:g}", f"{again}, with more rows")]
    loss = -down(difference)
    found = f"may cost {loss:.2f} of the task's score, and this edge allows {most:g}"
    return [_Lacking(found, f"max_loss: {loss:.2f} on this edge")]


def _shown(edge: EdgeSpec, bounds: AuditBounds) -> str:
    """What an audit shows of what an edge asks for; what it asks less of than usual is said."""
    parts = []
    if edge.min_retention > 0 and bounds.message_kept is not None:
        asked = f"{edge.min_retention:g} asked"
        asked += f", usually {MIN_RETENTION:g}" if edge.min_retention < MIN_RETENTION else ""
        parts.append(f"keeps at least {down(bounds.message_kept):.2f} of a message ({asked})")
        if bounds.sharer_adds is not None:
            parts.append(f"its sharer adds at least {down(bounds.sharer_adds):.2f}")
    else:
        parts.append("this edge asks nothing of the message (min_retention: 0)")
    if edge.max_loss < 1 and bounds.task_difference is not None:
        allowed = f"{edge.max_loss:g} allowed"
        allowed += f", usually {MAX_LOSS:g}" if edge.max_loss > MAX_LOSS else ""
        cost = max(0.0, -down(bounds.task_difference))
        parts.append(f"costs at most {cost:.2f} of the task's score ({allowed})")
    else:
        parts.append("this edge asks nothing of the task's score (max_loss: 1)")
    if bounds.style is not None and bounds.style > STYLE:
        parts.append(f"up to {bounds.style:.2f} of it may be a learnt manner of answering")
    return ", ".join(parts)


def _expected(edge: EdgeSpec) -> str:
    asked = []
    if edge.min_retention > 0:
        asked.append(f"{edge.min_retention:g} of a message kept, more than embeddings alone")
    if edge.max_loss < 1:
        asked.append(f"at most {edge.max_loss:g} of the task's score lost")
    return f"an audit on {CONTEXTS} contexts whose lower bounds show " + ", and ".join(asked)


def down(bound: float) -> float:
    """A lower bound to two places, rounded down, so that what is shown is kept."""
    return floor(round(bound * 100, 6)) / 100
