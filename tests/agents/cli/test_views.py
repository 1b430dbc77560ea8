"""What a person sees of a run: the drawing, the lines, the bars and the errors."""

from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unspoken.agents import Agent, Workflow
from unspoken.agents.cli.console import is_live, print_error, shown
from unspoken.agents.cli.progress import reporting
from unspoken.agents.cli.report_view import print_prompts, print_report
from unspoken.agents.cli.run import _foretold
from unspoken.agents.cli.run_view import LiveView, PlainView, _Row
from unspoken.agents.costs.store import CostStore
from unspoken.agents.events import (
    AgentSkipped,
    ItemFailed,
    MessageCarried,
    PrefillProgress,
    RunStarted,
    TokenWritten,
    TurnFinished,
    TurnStarted,
)
from unspoken.agents.runs.records import PromptTurn
from unspoken.agents.runtime.report import EdgeReport, RunReport, TurnReport
from unspoken.agents.spec.loader import loads
from unspoken.agents.testing import ScriptedModel
from unspoken.channels.errors import InputError, Problem, WorkflowError


def test_terminal_steering_is_taken_out() -> None:
    """Escape sequences in a model's words reach no terminal; line ends do."""
    assert shown("a\x1b[2Jb\nc\x9bd\te").plain == "a\ufffd[2Jb\nc\ufffdd    e"


def test_long_errors_fit_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """A long error, or an endless line, is cut; a long list says how many more."""
    print_error(InputError("\n".join(map(str, range(300))) + "x" * 5000))
    assert len(capsys.readouterr().err.splitlines()) <= 40
    print_error(InputError("x" * 5000))
    assert len(capsys.readouterr().err) < 1100
    print_error(WorkflowError([Problem(f"p{n}") for n in range(11)]))
    assert "and 1 more" in capsys.readouterr().err


def turn_report(generated: int) -> TurnReport:
    return TurnReport(
        turn=1,
        prompt_tokens=30,
        prefilled_tokens=12,
        reused_tokens=18,
        recomputed_tokens=0,
        projected_tokens=0,
        generated_tokens=generated,
        layer_tokens_computed=60,
        ttft_s=0.1,
        seconds=0.5,
    )


CONTINUED = EdgeReport(
    sharer="a",
    receiver="b",
    turn=1,
    planned="auto",
    channel="same_model_cache",
    mode="continuation",
    exact=True,
    reason="same tokens",
    tokens=18,
    reused=18,
    repaired=0,
    bytes=4096,
    seconds=0.01,
)
CARRIED = MessageCarried(CONTINUED)


def frames(width: int = 80) -> Iterator[tuple[LiveView, Any]]:
    text = (
        "name: w\nmodels: {m: x/y}\nagents:\n  a: {model: m, prompt: p}\n"
        "  b: {model: m, prompt: p}\n  c: {model: m, prompt: p}\n"
    )
    console = Console(file=StringIO(), force_terminal=True, width=width, height=30)
    view = LiveView(console, loads(text).spec)

    def frame() -> str:
        with console.capture() as capture:
            console.print(view.picture)
        return capture.get()

    yield view, frame


def test_live_view_shows_each_agent() -> None:
    """The drawing says who waits, prefills, writes, is done or skipped."""
    ((view, frame),) = frames()
    assert frame().count("waiting") == 3
    view(RunStarted("w", ("a", "b", "c"), run_id="r1"))
    view(TurnStarted("a", 1))
    view(PrefillProgress("a", 1, 256, 1300))
    view(AgentSkipped("c"))
    assert "w (r1)" in frame()
    assert "prefilling 256/1,300" in frame()
    assert "skipped" in frame()
    for word in ("in", " the", " end", " [bold]\x1b[2J"):
        view(TokenWritten("a", 1, word))
    assert "decoding 4" in frame()
    assert "in the end [bold]" in frame()
    assert "\x1b[2J" not in frame()
    view(TurnFinished("a", 1, "in the end", turn_report(5)))
    view(CARRIED)
    assert "wrote 5 tokens" in frame()
    assert "a -> b: same_model_cache, 18 tokens, 4.1 kB, exact" in frame()


def test_live_view_shows_items_together() -> None:
    """An agent with for_each has one row: its items' tokens together, the words of the first."""
    ((view, frame),) = frames()
    for item in (0, 1):
        view(TurnStarted("a", 1, item, 2))
        view(PrefillProgress("a", 1, 100, 300, item))
    assert "prefilling 200/600" in frame()
    for word in (" one", " two"):
        view(TokenWritten("a", 1, f"first{word}", 0))
        view(TokenWritten("a", 1, f"second{word}", 1))
    assert "decoding 4" in frame() and "first onefirst two" in frame()
    view(TurnFinished("a", 1, "first", turn_report(5), 0))
    assert "1 of 2 items (" in frame() and "second onesecond two" in frame()
    view(ItemFailed("a", 1, 1, "too long"))
    assert "2 of 2 items (" in frame() and "wrote 5 tokens" in frame()


def test_live_view_keeps_to_its_width() -> None:
    """However much an agent writes, its row shows the end of it and stays one line."""
    ((view, frame),) = frames(width=60)
    view(TurnStarted("a", 2))
    for number in range(500):
        view(TokenWritten("a", 2, f" 字{number}\n"))
    lines = frame().splitlines()
    assert len(lines) == 4
    assert "字499" in lines[1]
    assert "turn 2, decoding 500" in lines[1]


def test_an_earlier_turn_stays_in_sight() -> None:
    """When a loop starts an agent again, the end of what it wrote before is still drawn."""
    ((view, frame),) = frames()
    view(TurnStarted("a", 1))
    view(TurnFinished("a", 1, "the first draft", turn_report(5)))
    view(TurnStarted("a", 2))
    assert "a, turn 1: the first draft" in frame()


def test_piped_items_are_counted() -> None:
    """Off a terminal each item that ends says how many have, and how fast they go."""
    console = Console(file=StringIO(), width=200)
    view = PlainView(console)
    for item in (0, 1):
        view(TurnStarted("a", 1, item, 2))
    view(TurnFinished("a", 1, "x", turn_report(5), 1))
    last = written(console).splitlines()[-1]
    assert "a: turn 1, item 2 finished" in last and "; 1 of 2 items (" in last


def test_prompts_are_shown_with_what_was_written() -> None:
    """Each turn of an agent has its context, role by role, and its own words with their end."""
    read = PromptTurn(role="user", text="Which one?")
    turn = replace(turn_report(5), prompt=(read,), text="The second.", finish="stop", item=1)
    report = RunReport(run_id="r", workflow="w", agents={"a": (turn,)}, edges=(), seconds=0.5)
    console = Console(file=StringIO(), width=80)
    print_prompts(console, report)
    lines = ["a, turn 1, item 2", "user:", "Which one?", "wrote (stop):", "The second."]
    assert [line.strip() for line in written(console).splitlines() if line.strip()] == lines


def test_plain_view_prints_a_line_per_event_of_note() -> None:
    """Off a terminal, tokens and progress are not printed, turns and messages are."""
    console = Console(file=StringIO(), width=40)
    view = PlainView(console)
    view(TurnStarted("a", 1))
    view(PrefillProgress("a", 1, 1, 2))
    view(TokenWritten("a", 1, "x"))
    view(CARRIED)
    view(TurnFinished("a", 1, "x", turn_report(5)))
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "a: turn 1 started",
        "a -> b: same_model_cache, 18 tokens, 4.1 kB, exact: same tokens",
        "a: turn 1 finished, 12 prefilled, 18 reused, 5 generated, 500 ms",
    ]


@pytest.mark.parametrize("projected", [0, 14])
def test_edges_show_what_a_bridge_made(projected: int) -> None:
    """The table of messages has a column of projected tokens where there are any."""
    edge = replace(
        CONTINUED,
        channel="projected_cache",
        mode="projected",
        exact=False,
        reused=0,
        repaired=4,
        bytes=512,
        projected=projected,
    )
    report = RunReport(
        run_id="r1", workflow="w", agents={"a": (turn_report(5),)}, edges=(edge,), seconds=0.5
    )
    console = Console(file=StringIO(), width=120)
    print_report(console, report)
    lines = written(console).splitlines()
    heading = lines.index(next(line for line in lines if line.startswith("Edges")))
    assert ("projected" in lines[heading + 1].split()) == bool(projected)
    tokens = "18 0 4" + " 14" * bool(projected)
    assert " ".join(lines[heading + 3].split()) == f"a b projected_cache no {tokens} 512 B 10 ms"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=Terminal(), force_terminal=True, width=80, height=30)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_preparing_draws_a_bar_per_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal each stage of a model has a bar; elsewhere a line, or nothing when quiet."""
    console = terminal(monkeypatch)
    with reporting(console, "loading") as report:
        for stage in ("waiting for another process", "join", "write"):
            report("small", stage, 0.5)
    assert "small: write" in written(console)
    for quiet, lines in ((False, ["small: join", "small: write"]), (True, [])):
        plain = Console(file=StringIO(), width=80)
        with reporting(plain, "loading", quiet=quiet) as report:
            for stage in ("join", "join", "write"):
                report("small", stage, 0.5)
        assert written(plain).splitlines() == lines


def test_drawing_stays_where_a_run_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run takes its drawing away; a failed one leaves it."""
    spec = loads("name: w\nmodels: {m: x/y}\nagents: {a: {model: m, prompt: p}}\n").spec
    erase = "\x1b[2K"
    done, failed = terminal(monkeypatch), terminal(monkeypatch)
    with LiveView(done, spec) as view:
        view(TurnStarted("a", 1))
    view = LiveView(failed, spec)
    view.__enter__()
    view(TurnStarted("a", 1))
    view.__exit__(ValueError, ValueError("broken"), None)
    assert written(done).rpartition("starting")[2].count(erase) > 1
    assert written(failed).rpartition("starting")[2].count(erase) == 0


def test_nothing_is_drawn_off_a_terminal() -> None:
    """A console whose file is no terminal is not drawn on, whatever colours it is told to use."""
    assert not is_live(Console(file=StringIO(), force_terminal=True))


def test_items_that_begin_do_not_begin_their_turn_again() -> None:
    """Its clock goes on from the first, though none has written a word."""
    row = _Row()
    row.begin(1, 3)
    row.began = began = row.began - 5
    row.begin(1, 3)
    assert row.began == began
    row.begin(2, 3)
    assert row.began > began


def test_a_forecast_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is planned for it where no pace is kept, and what goes wrong with it is nothing."""
    flow = Workflow("w", [Agent("a", ScriptedModel({"a": "x"}), prompt="p")])
    flow.costs, planned = CostStore(tmp_path), []

    def fails(values: object) -> None:
        planned.append(values)
        raise OSError("no room")

    monkeypatch.setattr(flow, "plan", fails)
    assert _foretold(flow, {}) is None and not planned
    (tmp_path / "pace-0.json").write_text("{}", encoding="utf-8")
    assert _foretold(flow, {}) is None and planned == [{}]
