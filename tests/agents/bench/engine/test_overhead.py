"""The benchmark of the scheduler's own cost."""

import pytest

from unspoken.agents.bench.engine import overhead


@pytest.mark.parametrize("make", [overhead.chain, overhead.fan_out])
def test_every_agent_takes_its_turn_and_hands_on_its_word(make: type) -> None:
    """What is timed is whole runs: every message is in its reader's context."""
    result = make(overhead.WordModel(), 4).run()
    assert {agent.text for agent in result.agents.values()} == {overhead.WORD}
    reads = [turns[0].prompt_tokens for turns in result.report.agents.values()]
    assert len(result.agents) >= 4 and reads[0] < reads[1] == reads[-1]


def test_overhead_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ratio for each graph, of runs beside each other."""
    pytest.importorskip("langgraph.checkpoint.sqlite", reason="the extra `peers` is not installed")
    for name, value in (("AGENTS", 5), ("ROUNDS", 1)):
        monkeypatch.setattr(overhead, name, value)
    rows, summary = overhead.measure(overhead.WordModel(), progress=lambda line: None)
    seconds = {(row["graph"], row["framework"]): row["seconds"] for row in rows}
    assert len(seconds) == 6 and all(seconds.values())
    graphs = ("chain", "fanout", "checkpointed_chain")
    assert set(summary) == {f"{graph}_ratio_to_langgraph" for graph in graphs}
