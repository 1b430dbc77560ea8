"""A run as a person follows it: drawn on a terminal, or a line per event of note."""

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from unspoken.agents.cli.console import count, duration, failure, shown, size
from unspoken.agents.runtime.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    MessageDropped,
    PrefillProgress,
    RunFinished,
    RunStarted,
    TokenWritten,
    TurnFailed,
    TurnFinished,
    TurnRetried,
    TurnStarted,
)
from unspoken.agents.runtime.report import EdgeReport
from unspoken.agents.spec.spec import WorkflowSpec

MOST_EDGES = 8
LONGEST_TAIL = 2000
LOOKED_BACK = 100
REFRESHES_A_SECOND = 8


@dataclass(slots=True)
class _Part:
    """A turn under way, or an item of it."""

    done: int = 0
    total: int = 0
    tokens: int = 0
    text: str = ""


@dataclass(slots=True, kw_only=True)
class _Row:
    """What the view knows of one agent.

    Attributes:
        parts: Its turn under way, by None; with ``for_each`` the items under way, by number.
        items, of: Items that have ended, and how many there are.
        read, wrote, text: Tokens and words of what has ended.
    """

    status: str = "waiting"
    turn: int = 0
    parts: dict[int | None, _Part] = field(default_factory=dict)
    items: int = 0
    of: int = 0
    read: int = 0
    wrote: int = 0
    text: str = ""
    began: float = 0.0
    seconds: float | None = None

    def begin(self, turn: int, of: int | None) -> None:
        """A turn begins, or an item of one; what was before the turn is forgotten."""
        if of is not None and self.turn == turn and self.of:
            return
        self.of = of or 0
        self.status, self.turn, self.began, self.seconds = "starting", turn, perf_counter(), None
        self.items = self.read = self.wrote = 0
        self.parts, self.text = {}, ""

    def part(self, item: int | None) -> _Part:
        """A part that goes on."""
        self.status, self.seconds = "working", None
        return self.parts.setdefault(item, _Part())

    def end(self, item: int | None, seconds: float | None = None) -> None:
        """A part is over; the row is done where no other is under way."""
        self.parts.pop(item, None)
        self.items += item is not None
        if not self.parts:
            self.status = "done"
            self.seconds = perf_counter() - self.began if seconds is None else seconds

    def fail(self) -> None:
        """The turn failed, and the run goes on."""
        self.parts, self.status, self.seconds = {}, "failed", perf_counter() - self.began


@dataclass(slots=True, kw_only=True)
class _Picture:
    """All that is drawn; events change it, the terminal's thread renders it."""

    title: str
    rows: dict[str, _Row]
    edges: deque[Text] = field(default_factory=lambda: deque(maxlen=MOST_EDGES))
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold")
        wide = options.max_width
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=1)
        grid.add_column(no_wrap=True, max_width=wide // 4)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, ratio=1, overflow="crop")
        grid.add_column(no_wrap=True, justify="right", width=8)
        longest = max(map(cell_len, self.rows), default=0)
        room = max(8, wide - min(longest, wide // 4) - 38)
        for name, row in list(self.rows.items()):
            seconds = perf_counter() - row.began if row.seconds is None else row.seconds
            clock = Text(duration(seconds) if row.began else "", style="dim")
            grid.add_row(self._mark(row), shown(name), _status(row), _tail(row, room), clock)
        yield grid
        yield from list(self.edges)

    def _mark(self, row: _Row) -> Text | Spinner:
        marks = {"waiting": ("·", "dim"), "done": ("✓", "green"), "skipped": ("–", "dim")}
        marks["failed"] = ("✗", "red")
        return Text(*marks[row.status]) if row.status in marks else self.spinner


def _status(row: _Row) -> Text:
    turn = f"turn {row.turn}, " if row.turn > 1 else ""
    seconds = perf_counter() - row.began if row.seconds is None else row.seconds
    items = f"{progress(row.items, row.of, seconds)}, " if row.of > 1 else ""
    match row.status:
        case "working":
            tokens = row.wrote + sum(part.tokens for part in list(row.parts.values()))
            done, total = _prefilled(row)
            doing = f"decoding {tokens:,}" if tokens else f"prefilling {done:,}/{total:,}"
            return Text(f"{turn}{items}{doing}", style="cyan")
        case "done":
            did = f"wrote {row.wrote:,}" if row.wrote else f"read {row.read:,}"
            return Text(f"{turn}{items}{did} tokens")
        case _:
            return Text(row.status, style="dim")


def progress(done: int, of: int, seconds: float) -> str:
    """How many items are done, and how many a second."""
    rate = done / seconds if done and seconds > 0 else 0.0
    speed = "" if not rate else f" ({rate:.1f}/s)" if rate >= 1 else f" ({60 * rate:.1f}/min)"
    return f"{done:,} of {of:,} items{speed}"


def _prefilled(row: _Row) -> tuple[int, int]:
    """How many tokens of the parts under way are computed, and of how many."""
    parts = list(row.parts.values())
    return sum(part.done for part in parts), sum(part.total for part in parts)


def _tail(row: _Row, room: int) -> Text | ProgressBar:
    """The end of what an agent has written, or how far its prefill is.

    Of several items under way it is the words of the first: those of all would be mixed.
    """
    texts = [part.text for _, part in sorted(row.parts.items(), key=_number) if part.text]
    done, total = _prefilled(row)
    if not texts and total:
        return ProgressBar(total, done, width=min(room, 30))
    words = shown(" ".join((texts or [row.text])[0].split())).plain
    if cell_len(words) <= room:
        return Text(words)
    words = words[-room:]
    while cell_len(words) > room - 1:
        words = words[1:]
    return Text(f"…{words}")


def _number(entry: tuple[int | None, _Part]) -> int:
    return entry[0] or 0


_NOTED = (
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    MessageDropped,
    TurnFailed,
    TurnRetried,
)


class LiveView:
    """Draws a run on a terminal; call it with every event, inside ``with``.

    The drawing goes away when the run is done and stays where it failed.

    Args:
        console: A terminal.
        spec: The workflow.

    Attributes:
        picture: What is drawn.
    """

    def __init__(self, console: Console, spec: WorkflowSpec) -> None:
        self.picture = _Picture(title=spec.name, rows={name: _Row() for name in spec.agents})
        rate = REFRESHES_A_SECOND
        self._live = Live(self.picture, console=console, refresh_per_second=rate, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._live.transient = error is None
        self._live.__exit__(kind, error, trace)

    def __call__(self, event: Event) -> None:
        if isinstance(event, TurnStarted) and event.turn > 1:
            self._look_back(event, self._row(event, event.agent))
        if isinstance(event, _NOTED):
            self.picture.edges.append(Text(f"  {sentence(event)}", style="dim"))
        match event:
            case ItemFailed():
                self._row(event, event.agent).end(event.item)
            case TurnRetried():
                self._row(event, event.agent).parts.pop(event.item, None)
            case TurnFailed():
                self._row(event, event.agent).fail()
            case RunStarted():
                if not event.path:
                    self.picture.title = f"{event.workflow} ({event.run_id})"
            case AgentSkipped():
                self._row(event, event.agent).status = "skipped"
            case TurnStarted() | PrefillProgress() | TokenWritten() | TurnFinished():
                _advance(self._row(event, event.agent), event)

    def _look_back(self, event: TurnStarted, row: _Row) -> None:
        """Leave the end of an earlier turn in sight."""
        if row.text and row.turn < event.turn:
            words = shown(" ".join(row.text.split())[-LOOKED_BACK:]).plain
            line = f"  {event.agent}, turn {row.turn}: {words}"
            self.picture.edges.append(Text(line, style="dim", no_wrap=True))

    def _row(self, event: Event, agent: str) -> _Row:
        """The row of an agent; those of a workflow that is an agent come as they begin."""
        return self.picture.rows.setdefault("/".join((*event.path, agent)), _Row())


def _advance(row: _Row, event: TurnStarted | PrefillProgress | TokenWritten | TurnFinished) -> None:
    match event:
        case TurnStarted():
            row.begin(event.turn, event.of)
        case PrefillProgress():
            part = row.part(event.item)
            part.done, part.total = event.done, event.total
        case TokenWritten():
            part = row.part(event.item)
            part.tokens += 1
            part.text = (part.text + event.text)[-LONGEST_TAIL:]
        case TurnFinished():
            row.read += event.report.prompt_tokens
            row.wrote += event.report.generated_tokens
            row.text = event.text[-LONGEST_TAIL:]
            row.end(event.item, event.report.seconds if event.item is None else None)


@dataclass(slots=True)
class _Items:
    """The items of a turn: how many there are, since when, and how many have ended."""

    of: int
    began: float
    done: int = 0

    def ended(self) -> str:
        """One more has ended; how many by now."""
        self.done += 1
        return progress(self.done, self.of, perf_counter() - self.began)


class PlainView:
    """Prints a line per event of note; call it with every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._items: dict[tuple[tuple[str, ...], str, int], _Items] = {}

    def __call__(self, event: Event) -> None:
        line = sentence(event)
        if isinstance(event, TurnStarted) and event.of is not None:
            key = (event.path, event.agent, event.turn)
            self._items.setdefault(key, _Items(event.of, perf_counter()))
        if isinstance(event, TurnFinished | ItemFailed) and event.item is not None:
            items = self._items.get((event.path, event.agent, event.turn))
            line = f"{line}; {items.ended()}" if items is not None else line
        if line:
            where = "".join(f"{place}/ " for place in event.path)
            self._console.print(shown(f"{where}{line}"), soft_wrap=True)


def sentence(event: Event) -> str:
    """An event of note in a sentence; empty for the others."""
    match event:
        case RunStarted():
            return f"run {event.run_id} of {event.workflow} started"
        case TurnStarted():
            item = "" if event.item is None else f", item {event.item + 1}"
            return f"{event.agent}: turn {event.turn}{item} started"
        case TurnFinished():
            item = "" if event.item is None else f", item {event.item + 1}"
            return f"{event.agent}: turn {event.turn}{item} finished, {_work(event)}"
        case MessageCarried():
            return _carried(event.edge)
        case FallbackTaken():
            return f"{event.sharer} -> {event.receiver}: fell back to text: {event.reason}"
        case AgentSkipped():
            return f"{event.agent}: skipped{f', {event.reason}' if event.reason else ''}"
        case ItemFailed() | TurnFailed():
            return failure(event.error, default=event.default)
        case TurnRetried():
            return f"try {event.attempt} failed and another follows: {event.error}"
        case MessageDropped():
            return f"{event.sharer} -> {event.receiver}: came too late and was dropped"
        case LoopEnded():
            limit = f"{event.receiver} had all its {event.turns} turns"
            return f"{event.sharer} -> {event.receiver}: the loop ended, {limit}"
        case RunFinished():
            return f"run {event.report.run_id} finished in {duration(event.report.seconds)}"
        case _:
            return ""


def _work(event: TurnFinished) -> str:
    report = event.report
    kinds = ("prefilled", "reused", "recomputed", "projected", "generated")
    counts = [(getattr(report, f"{kind}_tokens"), kind) for kind in kinds]
    work = ", ".join(f"{count(number)} {kind}" for number, kind in counts if number)
    return f"{work or 'nothing to do'}, {duration(report.seconds)}"


def _carried(edge: EdgeReport) -> str:
    sort = "exact" if edge.exact else "not exact"
    load = f"{count(edge.tokens)} tokens, {size(edge.bytes)}, {sort}"
    return f"{edge.sharer} -> {edge.receiver}: {edge.channel}, {load}: {edge.reason}"
