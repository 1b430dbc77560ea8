"""How a workflow is run: at once, on an event loop, event by event, or from where it stopped."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.execution import Execution, How
from unspoken.agents.runs.answers import answer_questions
from unspoken.agents.runs.kept import Keeping
from unspoken.agents.runs.offload import elsewhere
from unspoken.agents.runs.store import RunStore
from unspoken.agents.runtime.events import Event, RunFinished, RunPaused, stamped
from unspoken.agents.runtime.people import OnQuestion
from unspoken.agents.runtime.report import RunResult
from unspoken.agents.runtime.stream import EventBuffer, RunStream
from unspoken.agents.session import Session
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import RunWaiting
from unspoken.channels.message import Message

Where = RunStore | str | Path | None
Answers = str | bool | Mapping[str, str | bool] | None


class Options(NamedTuple):
    """The arguments of a run that are no inputs."""

    session: Session | None = None
    run_id: str | None = None
    store: Where = None
    states: bool = False
    anyway: bool = False
    on_question: OnQuestion | None = None


class Runnable(ABC):
    """What has a workflow and an execution, and so can be run."""

    spec: WorkflowSpec
    _execution: Execution

    @abstractmethod
    def to_yaml(self) -> str:
        """The workflow as a file's text."""

    def run(
        self,
        received: Mapping[str, Message] | None = None,
        /,
        *,
        session: Session | None = None,
        run_id: str | None = None,
        store: Where = None,
        states: bool = False,
        anyway: bool = False,
        on_question: OnQuestion | None = None,
        **inputs: object,
    ) -> RunResult:
        """Run to the end; where an event loop runs already, as in a notebook, on another thread.

        That event loop stands still meanwhile; ``await flow.arun(...)`` leaves it free. A run is
        kept where it has an id, a store or somebody to ask; see the page on runs. An input that is
        called like one of these arguments is that input.

        Args:
            received: Messages that agents of these names have published elsewhere, as `read_packet`
                gives them; such an agent takes no turn, its message goes out on its edges.
            session: Whose states are used and added to, and whose conversations agents with
                ``memory: session`` go on with; without one the run's states go with it.
            run_id: The run's id. Where there is a run of this id, it goes on, with the inputs that
                it was begun with if none are given.
            store: Where the run is kept: a `RunStore` or its folder; None for the user's own.
            states: Whether states are kept too, so that none is computed again.
            anyway: Whether a run goes on though it was begun with something else, or cancelled.
            on_question: Answers what the run asks people while it goes on.
            inputs: The workflow's inputs.

        Raises:
            InputError: An input is missing, unknown or of another type, or a message that its agent
                cannot have sent; or the event loop of this thread has a run of the session already.
            IdentityMismatch: A message of another model than its agent's.
            AgentError, RunTimeout: The run failed.
            RunWaiting: A person has to answer before it goes on.
            StoreError: The store cannot be used, or the run goes on elsewhere or is another one.
        """
        if isinstance(session, Session):
            session.require_free_loop()
        options = Options(session, run_id, store, states, anyway, on_question)
        how, given = how_to_run(self.spec, options, inputs)
        return run_anywhere(lambda: self._to_end(received, how, given))

    async def arun(
        self,
        received: Mapping[str, Message] | None = None,
        /,
        *,
        session: Session | None = None,
        run_id: str | None = None,
        store: Where = None,
        states: bool = False,
        anyway: bool = False,
        on_question: OnQuestion | None = None,
        **inputs: object,
    ) -> RunResult:
        """Run to the end; see `run`. A cancel also ends the loading of models."""
        options = Options(session, run_id, store, states, anyway, on_question)
        how, given = how_to_run(self.spec, options, inputs)
        return await self._to_end(received, how, given)

    def stream(
        self,
        received: Mapping[str, Message] | None = None,
        /,
        *,
        session: Session | None = None,
        run_id: str | None = None,
        store: Where = None,
        states: bool = False,
        anyway: bool = False,
        on_question: OnQuestion | None = None,
        **inputs: object,
    ) -> AsyncGenerator[Event, None]:
        """Run, event by event; the last is `RunFinished`, or `RunPaused` where people are asked.

        The run waits for a loop that falls behind. Leaving the loop early ends the run: at once
        in ``async with contextlib.aclosing(flow.stream(...)) as events``, else when the stream is
        no longer referred to. See `run` for the arguments.
        """
        options = Options(session, run_id, store, states, anyway, on_question)
        how, given = how_to_run(self.spec, options, inputs)
        return RunStream(lambda events: self._told(received, how, given, events))

    async def arun_as(
        self, how: How, inputs: Mapping[str, object], received: Mapping[str, Message] | None = None
    ) -> RunResult:
        """Run to the end as `how` says; for what measures workflows.

        Args:
            how: In which session, with whose inputs, and who is told of messages.
            inputs: The workflow's inputs.
            received: Messages of agents that take no turn; see `run`.

        Raises:
            UnspokenError: As `run`.
        """
        return await self._to_end(received, how, inputs)

    def resume(
        self,
        run_id: str,
        answer: Answers = None,
        *,
        again: bool = False,
        session: Session | None = None,
        store: Where = None,
        states: bool = False,
        anyway: bool = False,
        on_question: OnQuestion | None = None,
    ) -> RunResult:
        """Go on with a run that has begun, after an answer to what it asks, if there is one.

        Args:
            run_id: The run.
            answer: The answer to what it asks: a text, True or False to what wants approval, or
                answers by the questions' ids.
            again: Whether the answer takes the place of one that was given before.
            session, store, states, anyway, on_question: See `run`.

        Raises:
            StoreError: There is no such run, or it cannot go on here.
            InputError: It does not ask that.
            UnspokenError: As `run`.
        """
        if isinstance(session, Session):
            session.require_free_loop()
        keeping = _keeping(run_id, store, states=states, anyway=anyway, must_exist=True)
        how = How(session=session, keeping=keeping, on_question=on_question)
        return run_anywhere(lambda: self._resumed(how, answer, again=again))

    async def aresume(
        self,
        run_id: str,
        answer: Answers = None,
        *,
        again: bool = False,
        session: Session | None = None,
        store: Where = None,
        states: bool = False,
        anyway: bool = False,
        on_question: OnQuestion | None = None,
    ) -> RunResult:
        """Go on with a run that has begun; see `resume`."""
        keeping = _keeping(run_id, store, states=states, anyway=anyway, must_exist=True)
        how = How(session=session, keeping=keeping, on_question=on_question)
        return await self._resumed(how, answer, again=again)

    async def _resumed(self, how: How, answer: Answers, *, again: bool) -> RunResult:
        run, store = how.keeping.run_id, how.keeping.store
        if answer is not None:
            assert isinstance(store, RunStore) and run is not None
            await elsewhere(partial(answer_questions, store, run, answer, again=again))
        return await self._to_end(None, how, {})

    async def _to_end(
        self, received: Mapping[str, Message] | None, how: How, inputs: Mapping[str, object]
    ) -> RunResult:
        scheduler, report = await self._execution.run(self.spec, received or {}, inputs, how)
        return RunResult(scheduler.outputs(), scheduler.results(), report)

    async def _told(
        self,
        received: Mapping[str, Message] | None,
        how: How,
        inputs: Mapping[str, object],
        events: EventBuffer,
    ) -> None:
        run = self._execution.run
        try:
            scheduler, report = await run(self.spec, received or {}, inputs, how, events)
        except RunWaiting as waiting:
            events.put(stamped(RunPaused(waiting.questions), waiting.run_id))
        else:
            scheduler.emit(RunFinished(scheduler.outputs(), report))


def how_to_run(
    spec: WorkflowSpec, options: Options, inputs: Mapping[str, object]
) -> tuple[How, dict[str, object]]:
    """How a workflow is run, and its inputs: an option that is called like one is that input."""
    given, none = dict(inputs), Options()
    for name, value in options._asdict().items():
        is_input = name in spec.inputs
        if name == "session":  # what is no session is an input, declared or not
            is_input = not isinstance(value, Session | None)
        if is_input and value != getattr(none, name):
            given[name] = value
        if is_input:
            options = options._replace(**{name: getattr(none, name)})
    keeping = _keeping(options.run_id, options.store, states=options.states, anyway=options.anyway)
    return How(session=options.session, keeping=keeping, on_question=options.on_question), given


def _keeping(
    run_id: str | None, store: Where, *, states: bool, anyway: bool, must_exist: bool = False
) -> Keeping:
    if must_exist and not isinstance(store, RunStore):
        store = RunStore(store)
    return Keeping(run_id=run_id, store=store, states=states, anyway=anyway, must_exist=must_exist)
