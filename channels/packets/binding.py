"""What a signature may bind a packet to: a run, a receiver, a time."""

import datetime as dt
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TypedDict, cast, get_type_hints

from pydantic import ValidationError

from unspoken.channels.errors import IdentityMismatch, InputError, PacketError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.packets.manifest import Binding, Identity


class Bind(TypedDict, total=False):
    """What a packet is for; each may be left out.

    Attributes:
        run: Name of the run, such as a random one that both ends were given.
        receiver: Name of the agent that may read it, or the identity of the model.
        expires: When it stops being valid: a datetime with a time zone, or seconds since 1970.
    """

    run: str
    receiver: str | ModelIdentity
    expires: float | dt.datetime


def binding_of(bind: Bind | None, *, signed: bool) -> Binding | None:
    """What stands in the manifest.

    Raises:
        InputError: Something that a packet cannot be bound to, or nobody who signs it.
    """
    if bind is None:
        return None
    given: object = bind
    keys = tuple(get_type_hints(Bind))
    if not isinstance(given, Mapping) or not given or set(given) - set(keys):
        names = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
        raise InputError(
            f"bind holds {names or 'nothing'}", expected=f"one or more of {', '.join(keys)}"
        )
    if not signed:
        raise InputError(
            "an unsigned packet is to be bound",
            expected="a key, without which anybody can bind it to something else",
            fix="pass key=packet_key()",
        )
    receiver = bind.get("receiver")
    data: dict[str, object] = {
        "run": bind.get("run"),
        "receiver": asdict(receiver) if isinstance(receiver, ModelIdentity) else receiver,
        "expires": seconds_of(bind["expires"]) if "expires" in bind else None,
    }
    try:
        return Binding.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"bind is wrong at {first['loc'][0]}: {first['msg']}",
            expected="names of 1 to 200 characters for run and receiver",
        ) from error


def seconds_of(moment: object) -> float:
    """A moment in seconds since 1970.

    Raises:
        InputError: No number that is finite, and no datetime with a time zone.
    """
    if isinstance(moment, dt.datetime) and moment.tzinfo is not None:
        return moment.timestamp()
    is_number = isinstance(moment, int | float) and not isinstance(moment, bool)
    if is_number and abs(cast("float", moment)) < 2**53:  # neither infinite nor not a number
        return float(cast("float", moment))
    raise InputError(
        f"a moment is given as {str(moment)[:40]!r}",
        expected="a datetime with a time zone, or seconds since 1970",
        fix="use datetime.now(timezone.utc) + timedelta(minutes=5)",
    )


def check_binding(
    bound: Binding | None, *, run: str | None, agent: str | None, now: float | dt.datetime | None
) -> None:
    """Refuse a packet for another run or agent, one that has expired, and one that names none.

    Raises:
        PacketError: of the kind ``bound`` or ``expired``.
        InputError: A `now` that is no moment.
    """
    bound = bound or Binding()
    named = bound.receiver if isinstance(bound.receiver, str) else None
    _check_name("run", "run", bound.run, run)
    _check_name("agent", "receiver", named, agent)
    if bound.expires is None:
        return
    today = time.time() if now is None else seconds_of(now)
    if today >= bound.expires:
        raise PacketError(
            f"the packet expired {today - bound.expires:,.0f} s ago",
            kind="expired",
            expected="a packet that is still valid",
            fix="have the sharer write it again",
        )


def _check_name(what: str, key: str, bound: str | None, asked: str | None) -> None:
    if bound == asked:
        return
    found = f"the packet is bound to the {what} {bound!a}"
    if asked is None:
        raise PacketError(
            f"{found}, and no {what} was named",
            kind="bound",
            expected=f"a reader that says which {what} it reads for",
            fix=f"pass {what}=… to read_packet",
        )
    raise PacketError(
        f"the packet is bound to no {what}" if bound is None else found,
        kind="bound",
        expected=f"a packet for the {what} {asked!a}",
        fix=f"do not use it here; have it written with bind={{{key!r}: {asked!a}}}",
    )


def check_model(bound: Binding | None, receiver: ModelIdentity) -> None:
    """Refuse a packet that is for another model.

    Raises:
        IdentityMismatch: naming what differs.
    """
    if bound is None or not isinstance(bound.receiver, Identity):
        return
    wanted = ModelIdentity(**bound.receiver.model_dump())
    field = wanted.differing(receiver)
    if field is not None:
        raise IdentityMismatch(
            f"the packet is bound to a model with other {field}",
            field=field,
            expected=f"{field} {getattr(receiver, field)[:16]}, as the receiving model has",
            fix="have the sharer write it for this model",
        )
