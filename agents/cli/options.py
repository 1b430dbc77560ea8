"""Options of several commands: how a run is kept, and how bridges are fitted and measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.spec.spec import WorkflowSpec


def _file(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="FILE", help=f"{what}, in place of the built-in ones.")


Text = Annotated[Path | None, _file("--text", "Plain text to measure on")]
Qa = Annotated[Path | None, _file("--qa", "Question-answering rows to measure on")]
Recall = Annotated[Path | None, _file("--recall", "Recall rows to measure on")]
Choice = Annotated[Path | None, _file("--choice", "Questions with options to measure fuse mode on")]
Sharer = Annotated[str, typer.Argument(metavar="SHARER", help="The model whose cache is read.")]
Receiver = Annotated[str, typer.Argument(metavar="RECEIVER", help="The model whose cache is made.")]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Most minutes of training; 0 trains nothing.")
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        help="Float type of both models. One that rounds their weights makes other models of "
        "them, and a bridge leads between the models it was fitted with.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="Device of both models, such as cpu or cuda:1.")
]
TrainDtype = Annotated[
    str | None,
    typer.Option(metavar="DTYPE", help="Float type to train in; the models' own if left out."),
]
Longest = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens of the longest messages that are learnt from, 4,096 if left out. Fewer make "
        "steps quicker.",
    ),
]
Sketch = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Columns that each of the sharer's layers is brought to by its principal components, "
        "so that more layers are read; 0 for none. 256 for wide pairs if left out.",
    ),
]
Length = Annotated[
    list[int] | None,
    typer.Option(
        min=16,
        help="Tokens of the messages that the task is measured at, 256 and 1,024 if left out. May "
        "be repeated. An edge uses the bridge up to twice the longest.",
    ),
]


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
        from unspoken.agents.spec.graph import asks_people

        store = RunStore(self.store)
        kept = asks_people(spec) or self.run_id is not None or self.states
        with Session(memory=spec.memory, name=self.session, store=store, anew=self.anew) as session:
            yield {**self._kept, "store": store if kept else None, "session": session}

    @property
    def _kept(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "states": self.states, "anyway": self.anyway}


def require_open(spec: "WorkflowSpec", show_prompts: bool) -> None:
    """Refuse to show the prompts of a workflow that is private.

    Raises:
        InputError: It is.
    """
    if show_prompts and spec.private:
        raise InputError(
            f"--show-prompts is given, and {spec.name!r} is private",
            expected="a workflow without private: true",
            fix="leave out --show-prompts, or private: true in the file",
        )


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


def given(**options: Any) -> dict[str, Any]:
    """The options that were set; the others have their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def float_type(name: str | None, option: str) -> Any:
    """The float type that an option names; None where it was left out."""
    import torch

    dtype = getattr(torch, name, None) if name else None
    if name and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputError(f"{option} {name!r} is unknown", expected="float32, bfloat16 or float16")
    return dtype
