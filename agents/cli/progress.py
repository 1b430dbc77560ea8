"""Loading models while a person watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from unspoken.agents.cli.console import is_live, shown

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.agents.spec.loader import LoadedWorkflow
    from unspoken.agents.workflow import Workflow


Report = Callable[[str, str, float], None]


@contextmanager
def reporting(console: Console, title: str, *, quiet: bool = False) -> Iterator[Report]:
    """Show what is told: a model's name, a stage, and how much of it is done (0 to 1).

    On a terminal this is a progress bar, which goes away in the end; elsewhere a line per stage,
    or nothing if `quiet`.
    """
    if not is_live(console):
        yield _lines(console, quiet)
        return
    what = TextColumn("{task.description}", markup=False)
    columns = SpinnerColumn(), what, _LengthColumn(), TimeElapsedColumn(), _LeftColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        yield _bars(bars, bars.add_task(title, total=None))


class _LengthColumn(BarColumn):
    """A bar; nothing for what has no length, which would look full."""

    def render(self, task: Task) -> Any:
        """The bar of a task."""
        return Text() if task.total is None else super().render(task)


class _LeftColumn(ProgressColumn):
    """How much is done, and how long the rest may take."""

    def render(self, task: Task) -> Text:
        """The figures of a task; nothing where it has no length or has done nothing."""
        if task.total is None or not task.completed:
            return Text()
        left = task.time_remaining
        rest = "" if left is None else f", {left:.0f} s left"
        return Text(f"{task.percentage:.0f} %{rest}")


def _lines(console: Console, quiet: bool) -> Report:
    seen: set[tuple[str, str]] = set()

    def report(model: str, stage: str, fraction: float) -> None:
        if not quiet and (model, stage) not in seen:
            seen.add((model, stage))
            console.print(shown(f"{model}: {stage}"))

    return report


def _bars(bars: Progress, waiting: TaskID) -> Report:
    tasks: dict[str, tuple[str, TaskID]] = {}

    def report(model: str, stage: str, fraction: float) -> None:
        known = tasks.get(model)
        if known is None or known[0] != stage:  # each stage has a bar and a clock of its own
            if known is not None:
                bars.remove_task(known[1])
            known = tasks[model] = (stage, bars.add_task(f"{model}: {stage}", total=None))
        # A stage that has told of no part yet may have no length.
        total = 1.0 if fraction else None
        bars.update(known[1], total=total, completed=fraction, visible=fraction < 1)
        bars.update(waiting, visible=fraction >= 1)

    return report


def quiet_libraries() -> None:
    """Keep transformers' own bars and warnings off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_flow(
    source: "LoadedWorkflow",
    console: Console,
    *,
    quiet: bool,
    fit: bool = False,
    allow_tools: bool = False,
) -> "Workflow":
    """The workflow of a valid file, its models loaded and, with `fit`, its bridges fitted."""
    with reporting(console, "loading models", quiet=quiet) as report:
        from unspoken.agents.workflow import Workflow

        quiet_libraries()
        beside = Path(source.file).parent / "bridges"
        flow = Workflow.from_spec(
            source.spec, bridge_folders=[beside], source=source, allow_tools=allow_tools
        ).load(report)
        return flow.fit_bridges(report) if fit and source.spec.bridges == "fit" else flow


def load_pair(
    sharer: str,
    receiver: str,
    console: Console,
    *,
    quiet: bool,
    dtype: str = "auto",
    device: str = "auto",
) -> "tuple[LocalModel, LocalModel]":
    """Both models of a bridge, in a type and on a device as `LocalModel.load` takes them."""
    with reporting(console, "loading models", quiet=quiet) as report:
        from unspoken.agents.loading import step_of
        from unspoken.agents.models.model import LocalModel

        quiet_libraries()

        def load(ref: str) -> LocalModel:
            return LocalModel.load(ref, dtype=dtype, device=device, progress=step_of(report, ref))

        return load(sharer), load(receiver)
