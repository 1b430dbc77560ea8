"""Events as plain data and back, and one JSON schema for all of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unspoken.agents.runs.store import RunStore
from unspoken.agents.runs.told import Told
from unspoken.agents.runtime import events
from unspoken.agents.runtime.events import Event, MessageCarried, stamped
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import InputError

VERSION = 1
"""Version of the plain data: a key that changes its meaning, or goes, raises it."""

KINDS: Mapping[str, type[Event]] = {
    name: kind
    for name, kind in vars(events).items()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
"""The kinds of events, by name."""


@cache
def _adapter(name: str) -> TypeAdapter[Event]:
    return TypeAdapter(KINDS[name])


def to_dict(event: Event) -> dict[str, Any]:
    """An event as plain data.

    Its kind stands under ``event``, an edge's ends under ``from`` and ``to``, and what a
    `MessageCarried` tells of its edge beside its kind.
    """
    name = type(event).__name__
    data = _adapter(name).dump_python(event, mode="json", by_alias=True)
    carried = data.pop("edge", {})
    return {"event": name, "version": VERSION, **data, **carried}


def from_dict(data: Mapping[str, Any]) -> Event:
    """The event that `to_dict` gave; keys that this version does not know are left aside.

    Raises:
        InputError: It is none of this version's.
    """
    name, version = data.get("event"), data.get("version")
    if not isinstance(name, str) or name not in KINDS or version != VERSION:
        raise InputError(
            f"event {name!r} of version {version!r} is not known",
            expected=f"version {VERSION} of {listed(KINDS)}",
            fix=suggest(str(name), KINDS) or "read it with the version of unspoken that wrote it",
        )
    if KINDS[name] is MessageCarried:
        data = {**data, "edge": data}
    try:
        return _adapter(name).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        found = f"event {name!r} is broken at {where!r}: {first['msg']}"
        raise InputError(found, expected="what to_dict gives") from error


def without_words(event: Event) -> Event | None:
    """An event of a private workflow, without what agents, people and tools say.

    Outputs stay, and errors, which may quote the end of an answer. None for an event that would
    tell of words alone.
    """
    match event:
        case events.TokenWritten():
            return None
        case events.TurnFinished(report=report):
            return replace(event, text="", report=report.without_words())
        case events.ToolCalled():
            return replace(event, arguments={})
        case events.ToolReturned(call=call):
            return replace(event, call=call.without_words())
        case events.QuestionAsked(question=question):
            return replace(event, question=replace(question, text=""))
        case events.RunPaused(questions=questions):
            bare = tuple(replace(question, text="") for question in questions)
            return replace(event, questions=bare)
        case _:
            return event


def private_at(spec: WorkflowSpec, path: Sequence[str]) -> bool:
    """Whether words are left out at a path of turns, as `Event.path` has it."""
    if spec.private or not path:
        return spec.private
    inner = (
        agent.workflow for name, agent in spec.agents.items() if path[0].startswith(f"{name}.")
    )
    return any(one is not None and private_at(one, path[1:]) for one in inner)


def allowed(event: Event, spec: WorkflowSpec) -> Event | None:
    """What may be kept of a run's event: no words of a private workflow, or of one inside of it.

    None for an event that would tell of words alone.
    """
    if private_at(spec, event.path):
        return without_words(event)
    if isinstance(event, events.RunPaused):
        bare = tuple(
            replace(question, text="")
            if private_at(spec, question.agent.split("/")[:-1])
            else question
            for question in event.questions
        )
        return replace(event, questions=bare)
    return event


def _without_prompts(event: Event) -> Event:
    """The same without what models read, which a store has in other events and turns already."""
    match event:
        case events.TurnFinished(report=report):
            return replace(event, report=replace(report, prompt=()))
        case events.RunFinished(report=report):
            agents = {
                name: tuple(replace(turn, prompt=()) for turn in turns)
                for name, turns in report.agents.items()
            }
            return replace(event, report=replace(report, agents=agents))
        case _:
            return event


def keeper(told: Told, spec: WorkflowSpec) -> Callable[[Event], None]:
    """What keeps each event of a run: all but the progress of prefills, and words by the turn.

    Prompts are left out: each has all that stood before it, so they would grow with the square of
    an agent's turns.

    Args:
        told: Takes them.
        spec: The run's workflow; words of a private one, or of one inside of it, are left out.
    """

    def keep(event: Event) -> None:
        if private_at(spec, event.path):
            bare = without_words(event)
            if bare is not None and not isinstance(bare, events.PrefillProgress):
                told.note(to_dict(_without_prompts(bare)))
            return
        match event:
            case events.PrefillProgress():
                return
            case events.TokenWritten(agent, turn, text, item):
                told.words((event.path, agent, turn, item), text)
                return
            case events.TurnRetried(agent=agent, turn=turn, item=item):
                told.forget_words((event.path, agent, turn, item))
            case events.TurnFinished(agent=agent, turn=turn, item=item):
                words = told.words_of((event.path, agent, turn, item))
                if words is not None:
                    written = events.TokenWritten(agent, turn, words, item, path=event.path)
                    told.note(to_dict(stamped(written, event.run_id)))
        bare = allowed(event, spec)
        if bare is not None:
            told.note(to_dict(_without_prompts(bare)))

    return keep


def replay(run_id: str, store: RunStore | str | Path | None = None) -> list[Event]:
    """The events of a run that was kept, in order, as they were told: of a dead run as far as it
    came with its last finished turn.

    A turn's words are one `TokenWritten`, and there is no `PrefillProgress`. A run that went on
    tells of each turn once, as it was told first. After an answer was taken back, or with
    ``anyway``, all of it is what the run told when it went on.

    Args:
        run_id: The run.
        store: Where it is kept, or its folder; None for the user's own.

    Raises:
        StoreError: There is no such run.
        InputError: Another release has told events that this one does not know.
    """
    where = store if isinstance(store, RunStore) else RunStore(store)
    where.get(run_id)
    return [from_dict(json.loads(line)) for line in where.told(run_id)]


def event_schema() -> dict[str, Any]:
    """The JSON schema of every event, as `to_dict` gives it."""
    definitions: dict[str, Any] = {}
    variants = [_variant(name, definitions) for name in KINDS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "unspoken event",
        "oneOf": variants,
        "$defs": definitions,
    }


def _variant(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _adapter(name).json_schema(by_alias=True, mode="serialization")
    definitions.update(schema.pop("$defs", {}))
    if KINDS[name] is MessageCarried:
        del schema["properties"]["edge"]
        carried = definitions["EdgeReport"]
        schema["properties"] |= carried["properties"]
        schema["required"] = list(carried["required"])
    first = {"event": {"const": name}, "version": {"const": VERSION}}
    schema["properties"] = {**first, **schema["properties"]}
    schema["required"] = list(schema["properties"])
    return schema
