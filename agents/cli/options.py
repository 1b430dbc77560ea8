"""How a run is kept, and in which session it is: options of several commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.spec.spec import WorkflowSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is kept, and in which session; see `unspoken.agents.Workflow.run`."""

    run_id: str | None = None
    store: Path | None = None
    states: bool = False
    anyway: bool = False
    session: str = ""
    anew: bool = False

    @contextmanager
    def of_run(self, spec: "WorkflowSpec") -> Iterator[dict[str, Any]]:
        """The arguments of a run that are no inputs, while its session is open."""
        if not self.session:
            yield {**self._kept, "store": self.store}
            return
        from unspoken.agents.runs import RunStore
        from unspoken.agents.session import Session

        store = RunStore(self.store)
        asks = [*(agent.ask for agent in spec.agents.values()), *(edge.ask for edge in spec.edges)]
        kept = any(asks) or self.run_id is not None or self.states
        with Session(memory=spec.memory, name=self.session, store=store, anew=self.anew) as session:
            yield {**self._kept, "store": store if kept else None, "session": session}

    @property
    def _kept(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "states": self.states, "anyway": self.anyway}


def require_talking(spec: "WorkflowSpec", session: str | None) -> None:
    """Refuse a session that no agent would go on with.

    Raises:
        InputError: There is no such agent, or no name.
    """
    if session is not None and (
        not session or all(agent.memory != "session" for agent in spec.agents.values())
    ):
        raise InputError(
            f"--session is {session!r}, and no agent has memory: session",
            expected="the name of a session, and an agent that goes on with its conversation",
            fix="give an agent memory: session",
        )
