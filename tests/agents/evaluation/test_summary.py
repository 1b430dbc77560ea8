"""An evaluation in figures, on a page, and on a terminal."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from unspoken.agents.cli.evaluation import print_summary
from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.page import render_page
from unspoken.agents.evaluation.summary import Summary, summarise

EVIL = "<script>alert('{{ title }}')</script> & \x1b[31m"


def outcomes(arm: str, right: list[int], seconds: float, **more) -> list[Outcome]:
    return [
        Outcome(
            row=str(n),
            context=f"c{n // 2}",
            arm=arm,
            answer=f"{arm} {EVIL} {n}",
            gold=[EVIL],
            score=float(score),
            first_token_s=seconds,
            seconds=2 * seconds + n,
            computed=100,
            decoded=4,
            carried_bytes=1000 * (n + 1),
            peak_bytes=10_000 * (n + 1),
            **more,
        )
        for n, score in enumerate(right)
    ]


@pytest.fixture(scope="module")
def summary() -> Summary:
    text = outcomes("text", [1, 1, 1, 0, 1, 1], 0.4)
    plan = outcomes("plan", [1, 0, 1, 1, 1, 0], 0.1, reused=80)
    plan[5] = replace(plan[5], answer="", first_token_s=None, error=f"out of time {EVIL}")
    stranger = outcomes("stranger", [0, 0, 0, 0, 1, 0], 0.4)
    design = Design(rows=6, contexts=3, arms=("plan",), draws=2000)
    return summarise([*plan, *text, *stranger], design, list("012345"))


def test_an_agent_alone_is_no_quicker_workflow() -> None:
    """Where the others take no turn, a run's time is not set beside text's."""
    both = [*outcomes("text", [1, 1], 0.4), *outcomes("alone", [0, 0], 0.1)]
    found = summarise(both, Design(rows=2, contexts=1, arms=("alone",), draws=100), ["0", "1"])
    text, alone = found.arms
    assert text.seconds is not None and text.faster is not None
    assert alone.seconds is None and alone.faster is None and alone.sooner is not None
    assert "alone" in render_page(found, title="x", facts=[])


def test_figures_of_an_arm(summary: Summary) -> None:
    """Scores count all rows; times, tokens and bytes are of the rows that ran."""
    text, plan, _ = summary.arms
    assert (text.arm, plan.arm) == ("text", "plan")
    assert plan.score == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert plan.score_low is not None and plan.score_low < plan.score
    assert (plan.rows, plan.failed, plan.reused) == (6, 1, 80)
    assert plan.sooner == pytest.approx(4.0)
    assert plan.carried_bytes == text.carried_bytes == 3000 and plan.peak_bytes == 50_000
    assert text.first_token_s is not None and text.first_token_s.median == 0.4


def test_costs_are_of_rows_that_ran_under_every_arm() -> None:
    """An arm that fails on its dear rows is no cheaper; times are set beside a prefix cache too."""
    text, plan = outcomes("text", [1] * 4, 0.4), outcomes("plan", [1] * 4, 0.1)
    reuse = outcomes("text+reuse", [1] * 4, 0.2)
    plan[2:] = [replace(one, error="out of memory") for one in plan[2:]]
    design = Design(rows=4, contexts=2, arms=("plan",), draws=1000)
    found = {arm.arm: arm for arm in summarise([*text, *reuse, *plan], design, list("0123")).arms}
    assert {arm.carried_bytes for arm in found.values()} == {1500}
    assert (found["plan"].sooner, found["plan"].sooner_than_reuse) == pytest.approx((4.0, 2.0))


def test_controls_have_a_difference_too(summary: Summary) -> None:
    """Beside text, row by row, with an interval of its own; text has none."""
    text, _, stranger = summary.arms
    assert stranger.difference == pytest.approx(-4 / 6) and text.difference is None
    assert stranger.difference_low is not None and stranger.difference_low < -4 / 6


def test_the_worst_rows_are_the_plans(summary: Summary) -> None:
    """Rows on which the plan scores less than text, with both answers; a failure says why."""
    assert [(row.row, row.score, row.reference_score) for row in summary.worst] == [
        ("1", 0.0, 1.0),
        ("5", 0.0, 1.0),
    ]
    assert summary.worst[1].answer.startswith("(failed: out of time")


def test_controls_have_no_verdict(summary: Summary) -> None:
    """Only the arms of the design are claimed something of."""
    assert list(summary.verdicts) == ["plan"]
    assert summary.verdicts["plan"].kind == "not shown"


def test_it_is_plain_data(summary: Summary) -> None:
    """JSON holds it, and says the verdict in words."""
    data = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert data["verdicts"]["plan"]["words"].startswith("not shown: could be as bad as")
    assert data["arms"][1]["first_token_s"]["median"] == 0.1


class Tags(HTMLParser):
    """The tags of a page and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "onload", "onclick")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_stands_alone(summary: Summary) -> None:
    """No script, no link, nothing loaded; what models wrote stands there as words."""
    page = render_page(summary, title=EVIL, facts=[("workflow", EVIL)])
    tags = Tags()
    tags.feed(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.names)
    assert not tags.links and "url(" not in page and "://" not in page
    assert tags.words.count("<script>alert('{{ title }}')</script>") >= 8
    assert tags.names.count("svg") == 7
    numbers = [float(x) for x in re.findall(r' (?:x|y|width|x1|cx)="([^"]+)"', page)]
    assert numbers and all(0 <= number <= 800 for number in numbers)


def test_a_page_of_nothing() -> None:
    """An evaluation that was interrupted before its first row has a page, too."""
    empty = summarise([], Design(rows=4, contexts=4, arms=("plan",)), list("0123"))
    assert "There is none." in render_page(empty, title="none")


def test_the_terminal(summary: Summary) -> None:
    """The table has each arm, the verdict, and no control characters of what models wrote."""
    console = Console(file=StringIO(), width=200, color_system=None)
    print_summary(console, summary)
    assert isinstance(console.file, StringIO)
    shown = console.file.getvalue()
    assert "not shown: could be as bad as" in shown and "4.00x" in shown
    assert "plan: 1 of 6 rows failed" in shown
    assert "\x1b" not in shown
