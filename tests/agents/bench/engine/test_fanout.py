"""The benchmark of many solvers runs to its end on a tiny model, and counts what it says."""

import pytest
import torch

from unspoken.agents.bench.engine import fanout
from unspoken.agents.bench.engine.baselines import Plain
from unspoken.agents.bench.engine.copies import count_copies, sample_row
from unspoken.agents.bench.engine.decoding import written_by_engine
from unspoken.agents.bench.engine.graphs import team_graph
from unspoken.agents.bench.engine.team import QUESTIONS, Team
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model

NEW = 5


@pytest.fixture(scope="module")
def team() -> Team:
    model: LocalModel = tiny_model()
    words = model.text.encode_words("the key of the value is one of the keys " * 4)
    return Team.make(model, words, QUESTIONS[:3], NEW)


def test_a_workflow_s_agents_read_and_write_what_the_baselines_do(team: Team) -> None:
    """The prompts are those of the turns; each agent writes what generate writes, as many ids."""
    result = team.run(team.flow(range(3)))
    written = Plain.of(team.model).generate(team.prompts, NEW, exactly=True)
    for number, prompt in enumerate(team.prompts):
        (turn,) = result.report.agents[f"agent_{number}"]
        assert (turn.prompt_tokens, turn.generated_tokens) == (len(prompt), NEW)
        assert result[f"agent_{number}"].text == team.model.text.decode(written[number])
    assert {edge.mode for edge in result.report.edges} == {"continuation"}


def test_a_message_in_place_is_not_read_again(team: Team) -> None:
    """A run with the message computes no token of it."""
    result = team.run(team.flow([1]), read=False)
    (turn,) = result.report.agents["agent_1"]
    assert turn.prefilled_tokens == len(team.prompts[1]) - len(team.message.context)


def test_the_engine_writes_alone_what_it_writes_together(team: Team) -> None:
    """Token for token, and generate's."""
    together = written_by_engine(team, team.prompts, together=True)
    assert together == written_by_engine(team, team.prompts, together=False)
    assert together == Plain.of(team.model).generate(team.prompts, NEW, exactly=True)


def test_copies_are_counted_by_storage(team: Team) -> None:
    """A view shares its storage; a copy counts, one inside a larger tensor as well."""
    row = sample_row(team.message.require_state(), 7)
    before = count_copies(row)
    layer = team.message.require_state().layers[0]
    keys = layer.slice(0, 12).chunks[0][0]
    view = keys[:, 2:]
    assert count_copies(row) == before
    copy = keys.clone()
    assert count_copies(row) == before + 1
    batch = torch.cat([torch.zeros_like(keys), keys, keys])
    assert count_copies(row) == before + 3
    del view, copy, batch
    assert count_copies(row) == before


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("at_a_time", [None, 1])
def test_nodes_of_langgraph_write_the_same(team: Team, cached: bool, at_a_time: int | None) -> None:
    """In both of its forms, in threads or one at a time, the baseline does the same work."""
    pytest.importorskip("langgraph", reason="the extra `peers` is not installed")
    plain = Plain.of(team.model)
    run = team_graph(team, plain, 2, cached=cached, at_a_time=at_a_time)
    assert run() == plain.generate(team.prompts[:2], NEW, exactly=True)


def test_fanout_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way has a row at every size; the ratios are those of the rows."""
    settings = {"SIZES": (1, 2), "GRAPH": 2, "MOST": 2, "TOKENS": 24, "NEW": 4, "ROUNDS": 1}
    for name, value in settings.items():
        monkeypatch.setattr(fanout, name, value)
    rows, summary = fanout.measure(tiny_model(), progress=lambda line: None)
    ways = {(row["way"], row["agents"]): row for row in rows if "way" in row}
    for size in (1, 2):
        assert {(fanout.TOGETHER, size), (fanout.SEQUENTIAL, size), (fanout.GENERATE, size)} <= set(
            ways
        )
    assert summary["tokens_equal"] is True and summary["prefix_copies_8"] >= 1
    sequential = ways[fanout.SEQUENTIAL, 2]
    assert summary["speedup_8_vs_sequential"] == sequential["together_is_faster"]
    assert all("cpu_share" in row for row in ways.values())
    assert {"speedup_8_vs_generate", "speedup_8_vs_langgraph", "speedup_16_vs_sequential"} <= set(
        summary
    )
