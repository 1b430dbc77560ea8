"""The conversations of a session, and what one run reads and leaves of them.

A run begins with the contexts that the last one left, and puts its own in their place when it has
ended well. One that fails, waits or is cancelled leaves them as they were.
"""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from unspoken.agents.engines.base import Engine, Keep, StateRef
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.jinja import render
from unspoken.agents.runs.engine import computing, settled
from unspoken.agents.runs.offload import elsewhere
from unspoken.agents.runs.packets import read_state, write_state
from unspoken.agents.runs.records import Origin
from unspoken.agents.sessions.conversations import Conversations
from unspoken.agents.sessions.records import Conversation, Earlier, Key, StoredSession, digest_of
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import (
    ChannelError,
    IdentityMismatch,
    InputError,
    StateError,
    StoreError,
)
from unspoken.channels.kv.geometry import ModelIdentity

log = structlog.wrap_logger(logging.getLogger("unspoken.sessions"))

_ANEW = "begin it anew: --anew (in Python, Session(anew=True) or session.forget())"


class Tickets(Protocol):
    """The tickets of a run."""

    def give_away(self, ref: StateRef) -> None:
        """Leave a ticket to somebody who gives it back to the pool."""


def talking(spec: WorkflowSpec) -> tuple[str, ...]:
    """The agents that go on from the last run of a session."""
    return tuple(name for name, agent in spec.agents.items() if agent.memory == "session")


def require_session(spec: WorkflowSpec) -> None:
    """Refuse to run a workflow without a session whose agents go on from one.

    Raises:
        InputError: There is such an agent.
    """
    agents = talking(spec)
    if agents:
        raise InputError(
            f"agent {agents[0]!r} has memory: session, and the run has no session",
            expected="a session to go on from, and to keep the conversation in",
            fix="name one with --session NAME (in Python, session=Session()), or write memory: run",
        )


@asynccontextmanager
async def talk(
    conversations: Conversations, spec: WorkflowSpec, run: str
) -> AsyncIterator["Talk | None"]:
    """What a run reads and leaves; None where none of its agents remembers.

    Args:
        conversations: The session's.
        spec: The workflow.
        run: The run's id; empty for a run that is not kept.

    Raises:
        InputError: The session has no name, and a store.
        StoreError: Another run goes on with it, or it cannot be read.
    """
    if not talking(spec):
        yield None
        return
    if conversations.store is not None and not conversations.name:
        raise InputError(
            "the session has a store and no name",
            expected="the name under which the conversation is kept",
            fix='write Session(name="anna", store=...), or session.named("anna")',
        )
    conversations.take()
    lock = None if conversations.store is None else conversations.store.lock(conversations.name)
    try:
        if lock is not None:
            await elsewhere(lock.acquire)
        yield Talk(conversations, spec, run, await elsewhere(conversations.now))
    finally:
        if lock is not None:
            lock.release()
        conversations.leave()


class Talk:
    """The conversations of a session in one run.

    Args:
        conversations: The session's.
        spec: The workflow.
        run: The run's id.
        session: The session as it was.

    Attributes:
        digests: By agent, of the ids that it begins with; empty where it is asked to begin anew.
    """

    def __init__(
        self, conversations: Conversations, spec: WorkflowSpec, run: str, session: StoredSession
    ) -> None:
        self._all, self._spec, self._run, self._session = conversations, spec, run, session
        self._begun: dict[str, Conversation] = {}
        self._systems: dict[str, str] = {}
        self._tickets: Tickets | None = None
        self.digests: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """The session's name."""
        return self._all.name

    async def begin(
        self,
        models: Mapping[str, AgentModel],
        engines: Mapping[str, Engine],
        inputs: Mapping[str, object],
        tickets: Tickets,
        begun: Origin | None = None,
    ) -> dict[str, Earlier]:
        """What each agent goes on from that has been in the session before.

        Args:
            models: The model of every agent.
            engines: What computes their turns.
            inputs: The run's inputs.
            tickets: The run's.
            begun: What the run was begun with, where it goes on: who began anew does so again.

        Raises:
            IdentityMismatch: Another model had the conversation.
            StoreError: It began with another system prompt.
        """
        earlier, self._tickets = {}, tickets
        was = begun.conversations if begun is not None and begun.session == self.name else {}
        anew = set[str]()
        for name in talking(self._spec):
            model, system = models[name], self._spec.agents[name].system
            words = None if system is None else render(system, {"inputs": dict(inputs), "turn": 1})
            told = model.context_builder.template.tools.introduced(words)
            self._systems[name] = told or ""
            key = self._spec.name, name
            if was.get(name) == "" or self._all.anew(key):
                anew.add(name)
                continue
            known = self._session.find(key)
            if known is None:
                continue
            self._require_same(known, model.identity, self._systems[name])
            if self._run and self._session.run == self._run:
                known = known.begun()  # the run had ended, and is gone through once more
            self._begun[name] = known
            if known.context.ids:
                ref = await self._state(known, engines[name])
                earlier[name] = Earlier(context=known.context, ids=known.ids, state=ref)
        digests = {name: digest_of(one.context) for name, one in earlier.items()}
        self.digests = {**digests, **dict.fromkeys(anew, "")}
        return earlier

    def _require_same(self, known: Conversation, identity: ModelIdentity, system: str) -> None:
        field = identity.differing(known.identity)
        whose = f"the conversation of {known.agent!r} in the session {self.name!r}"
        if field is not None:
            raise IdentityMismatch(
                f"{whose} is of a model with other {field}: {getattr(known.identity, field)[:16]}",
                field=field,
                expected=f"{field} {getattr(identity, field)[:16]}, as the agent's model has",
                fix=f"use that model, or {_ANEW}",
            )
        if known.system != system:
            raise StoreError(
                f"{whose} began with another system prompt: {_shown(known.system)}",
                kind="different",
                expected=f"the agent's own: {_shown(system)}",
                fix=f"write what changes into the prompt, or {_ANEW}",
            )

    async def _state(self, known: Conversation, engine: Engine) -> StateRef | None:
        """A ticket of this run for a state in memory, or on disk; None where there is none."""
        how = Keep(holder=f"session {self.name}")
        held = self._all.held(known, engine)
        if held is not None:
            return await engine.keep(held, known.ids, how)
        store = self._all.store
        if store is None or not known.state:
            return None
        folder = store.folder_of(self.name)
        try:
            ref = await read_state(folder, engine, known.state, known.ids)
        except (StoreError, ChannelError, OSError) as error:
            reason = getattr(error, "found", str(error))
            log.warning("a state is computed again", session=self.name, reason=reason)
            return None
        self._hold(known, engine, await engine.keep(ref, known.ids, how))
        return ref

    def _hold(self, conversation: Conversation, engine: Engine, own: StateRef) -> None:
        assert self._tickets is not None  # the run has begun
        self._tickets.give_away(own)
        self._all.hold(conversation.key, conversation.ids, engine, own)

    async def end(self, engines: Mapping[str, Engine], left: Mapping[str, Earlier]) -> None:
        """Put what a run has left in place of what it began with, all of it at once.

        Args:
            engines: What computed each agent's turns.
            left: What each agent would go on from.

        Raises:
            StoreError: It cannot be written; the session is as it was.
        """
        made: dict[Key, Conversation] = {}
        states: dict[Key, tuple[Engine, StateRef]] = {}
        how = Keep(holder=f"session {self.name}")
        for name, earlier in left.items():
            begun, key = self._begun.get(name), (self._spec.name, name)
            count = 0 if begun is None else len(begun.context.segments)
            if begun is not None and begun.context is earlier.context:
                made[key] = replace(begun, before=count)
                continue
            engine = computing(engines[name])
            ref = await settled(engines[name], earlier.state)
            if ref is not None:
                states[key] = engine, await engine.keep(ref, earlier.ids, how)
            made[key] = Conversation(
                workflow=self._spec.name,
                agent=name,
                identity=engine.facts.identity,
                system=self._systems[name],
                context=earlier.context,
                ids=earlier.ids,
                before=count,
                state=await self._written(engine, name, ref, earlier.ids),
            )
        others = [one for one in self._session.conversations if one.key not in made]
        stay = [replace(one, before=len(one.context.segments)) for one in others]
        session = replace(
            self._session, updated=time.time(), run=self._run, conversations=(*stay, *made.values())
        )
        await elsewhere(partial(self._all.put, session, made.keys()))
        for key, (engine, own) in states.items():
            self._hold(made[key], engine, own)

    async def _written(
        self, engine: Engine, agent: str, ref: StateRef | None, ids: tuple[int, ...]
    ) -> str:
        """The digest of the packet that a state is written to; empty where none is kept."""
        store = self._all.store
        if store is None or not self._all.states or ref is None:
            return ""

        def write() -> str:
            return write_state(store.make(self.name), engine, agent, ref, ids)

        try:
            return await elsewhere(write)
        except StateError as error:  # no packet takes it: it is computed again
            log.info("a state is not kept", session=self.name, reason=error.found)
            return ""


def _shown(system: str) -> str:
    return repr(system if len(system) <= 60 else f"{system[:60]}…") if system else "none"
