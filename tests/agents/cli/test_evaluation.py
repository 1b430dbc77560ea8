"""``unspoken eval``: what is told before, the table, and one JSON document."""

import json
from pathlib import Path

import pytest
from command_line import call, done, refused

from unspoken.agents.evaluation.arms import ARMS, CONTROLS


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two questions about each of two documents."""
    texts = ["who is it that was on the document", "the key of the cache is here"]
    told = [
        {"passage": {"text": text}, "question": f"what is {n}", "gold": "a", "context": text}
        for text in texts
        for n in range(2)
    ]
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    return file


def test_a_workflow_is_evaluated_over_rows(workflow: Path, rows: Path, tmp_path: Path) -> None:
    """What is set comes before the table; with --out it goes on, and --json says it."""
    asked = ["eval", workflow, "--data", rows, "--map", "passage.text=inputs.document"]
    asked += ["--arms", "plan,alone", "--limit", 3, "--out", tmp_path / "out", "--all-rows"]
    asked += ["--html", tmp_path / "page.html"]
    result = call(*asked)
    assert result.exit_code == 0, result.stderr
    for words in ("3 of 2 contexts", "arm alone", "smallest difference", "margin", "left"):
        assert words in result.stderr
    for words in ("text", "plan", "alone", "not shown"):
        assert words in result.stdout
    told = json.loads(done(*asked, "--json"))
    assert told["agent"] == "solver" and set(told["what"]) == {"text", "plan", "alone"}
    outcomes = {(one["row"], one["arm"]): one for one in told["outcomes"]}
    lines = (tmp_path / "out" / "outcomes.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(outcomes) == len(lines) == 9
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(one["reused"] > 0 for (_, arm), one in outcomes.items() if arm == "plan")


def test_the_help_names_every_arm() -> None:
    """The names are written out there, for to gather them would load much."""
    told = done("eval", "--help")
    assert all(name in told for name in (*ARMS, *CONTROLS))


def test_what_does_not_fit_is_refused(workflow: Path, rows: Path, tmp_path: Path) -> None:
    """Before any model is loaded, where that can be known."""
    told = refused("eval", workflow, "--data", rows)
    assert "input 'document' has no column" in told and "--map" in told
    assert "no arm 'plann'" in refused("eval", workflow, "--data", rows, "--arms", "plann")
    page = ["--html", tmp_path / "nowhere" / "page.html", "--arms", "text, plan"]
    mapped = ["eval", workflow, "--data", rows, "--map", "passage.text=inputs.document"]
    assert "there is no such folder" in refused(*mapped, *page)
    assert "cannot be read" in refused("eval", workflow, "--data", tmp_path / "none.jsonl")
