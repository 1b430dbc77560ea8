"""The examples: both forms are one workflow, and they run on the embedded model."""

import importlib.util
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest

from unspoken.agents import RunResult, Workflow, WorkflowSpec
from unspoken.agents.runs import RunStore

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = (
    "draft_critique_revise",
    "fan_out_panel",
    "map_reduce",
    "question_router",
    "reader_solver",
    "solver_critic",
    "split_evidence",
    "support_router",
    "tool_solver",
    "two_families",
    "two_processes",
)

TRAINED = ("fine_tunes",)
"""Examples that train a model for minutes before they run; here only their workflows are looked at.
"""

ASKING = ("interview",)
"""Examples that pause for a person."""


@cache
def script(name: str, file: str = "run.py") -> ModuleType:
    path = EXAMPLES / name / file
    spec = importlib.util.spec_from_file_location(f"example_{name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def from_file(name: str) -> Workflow:
    return Workflow.from_yaml(EXAMPLES / name / "workflow.yaml")


def inputs(name: str) -> dict[str, Any]:
    """What each example's script gives its workflow."""
    module = script(name)
    known = {"question": getattr(module, "QUESTION", None), "topic": getattr(module, "TOPIC", None)}
    if hasattr(module, "DOCUMENT"):
        known["document"] = module.DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    return {key: known[key] for key in from_file(name).spec.inputs}


@cache
def script_ran(name: str) -> tuple[RunResult, str]:
    """The result of an example's script, run once, and what it printed."""
    results: list[RunResult] = []
    run = Workflow.run

    def spy(flow: Workflow, *given: Any, **inputs: Any) -> RunResult:
        results.append(run(flow, *given, **inputs))
        return results[-1]

    printed = StringIO()
    with (
        TemporaryDirectory() as runs,
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
    ):
        patch.setenv("UNSPOKEN_RUNS", runs)
        patch.setattr("builtins.input", lambda prompt: "")  # whoever is asked agrees
        patch.setattr(Workflow, "run", spy)
        patch.setattr(sys, "argv", ["run.py"])
        script(name).main()
    (result,) = results
    return result, printed.getvalue()


def ran(name: str) -> RunResult:
    return script_ran(name)[0]


def reused(name: str, agent: str) -> list[tuple[int, int]]:
    """Reused and all prompt tokens of each turn."""
    return [(turn.reused_tokens, turn.prompt_tokens) for turn in ran(name).report.agents[agent]]


def test_every_folder_is_tested() -> None:
    """A new example is tested, and has its three files."""
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders == {*NAMES, *TRAINED, *ASKING, "studies"}  # tests/test_studies.py runs those
    for name in (*NAMES, *TRAINED, *ASKING):
        assert {"workflow.yaml", "run.py", "README.md"} <= {
            path.name for path in (EXAMPLES / name).iterdir()
        }


@pytest.mark.parametrize("name", NAMES + TRAINED + ASKING)
def test_both_forms_are_one_workflow(name: str) -> None:
    """The file and the script describe equal workflows."""
    assert script(name).build().spec == from_file(name).spec


def test_both_forms_of_the_debate_are_one_workflow() -> None:
    """It lies beside the bridges of two_families, which it shares."""
    told = Workflow.from_yaml(EXAMPLES / "two_families" / "debate.yaml").spec
    assert script("two_families", "debate.py").build().spec == told


@pytest.mark.model
@pytest.mark.parametrize("name", NAMES)
def test_script_prints_its_outputs(name: str) -> None:
    """Run from Python, an example prints what its agents wrote."""
    result, printed = script_ran(name)
    assert result.outputs
    for text in result.outputs.values():
        assert text.strip()
        assert text in printed


@pytest.mark.model
def test_a_packet_from_another_process_gives_what_the_file_gives() -> None:
    """The solver answers from the packet as from its own process's reader."""
    flow = from_file("two_processes")
    assert flow.run(**inputs("two_processes")).outputs == ran("two_processes").outputs


@pytest.mark.model
def test_solver_reuses_all_that_the_reader_computed() -> None:
    """A continuation takes over the reader's whole context and computes the question alone."""
    ((_, computed),) = reused("reader_solver", "reader")
    ((taken, total),) = reused("reader_solver", "solver")
    assert taken == computed
    assert total - taken < 30
    (edge,) = ran("reader_solver").report.edges
    assert (edge.channel, edge.exact, edge.repaired) == ("same_model_cache", True, 0)


@pytest.mark.model
def test_text_gives_the_same_answer() -> None:
    """With the edge set to text nothing is reused, and the answer is the same letter for letter."""
    flow = from_file("reader_solver")
    data = flow.spec.model_dump(by_alias=True)
    data["edges"][0]["channel"] = "text"
    result = Workflow.from_spec(WorkflowSpec.model_validate(data)).run(**inputs("reader_solver"))
    assert result.report.agents["solver"][0].reused_tokens == 0
    assert result.outputs == ran("reader_solver").outputs
    assert "1887" in result.outputs["answer"]


@pytest.mark.model
def test_panel_reads_its_document_once() -> None:
    """Every solver takes over all that the reader computed; the judge's messages are spliced."""
    ((_, computed),) = reused("fan_out_panel", "reader")
    for solver in ("year", "colours", "drive"):
        ((taken, _),) = reused("fan_out_panel", solver)
        assert taken == computed
    edges = ran("fan_out_panel").report.edges
    assert {edge.exact for edge in edges if edge.sharer == "reader"} == {True}
    answers = [edge for edge in edges if edge.receiver == "judge"]
    assert {(edge.mode, edge.exact) for edge in answers} == {("text", True)}


@pytest.mark.model
def test_loop_gives_the_drafter_a_second_turn() -> None:
    """A "no" sends the drafter back once, and every later turn goes on from a state."""
    result = ran("draft_critique_revise")
    assert len(result["drafter"].turns) == len(result["reviser"].turns) == 2
    assert "no" in result["critic"].turns[0].lower()
    for agent in ("critic", "reviser"):
        for taken, total in reused("draft_critique_revise", agent):
            assert 2 * taken > total
    first, second = result.report.agents["drafter"]
    assert first.reused_tokens == 0 < second.reused_tokens
    assert result.report.fallbacks == ()


@pytest.mark.model
def test_the_router_chooses_whom_the_message_is_for() -> None:
    """The slip is data, the other team is skipped, and a person has seen the reply.

    All of the reader's family go on from its cache; the other family reads words.
    """
    result = ran("support_router")
    assert result["slip"].data.customer == "Edda Brandt"
    assert result["router"].text == "money" and result["technical"].text == ""
    assert result["router"].likelihoods["money"] > 0.5
    modes = {edge.receiver: edge.mode for edge in result.report.edges}
    assert modes == {"slip": "continuation", "router": "continuation", "billing": "text"}
    assert all(edge.exact for edge in result.report.edges) and not result.report.fallbacks
    assert (
        f"billing would say: {result.outputs['reply'].strip()}" in script_ran("support_router")[1]
    )


@pytest.mark.model
def test_the_interview_pauses_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One call of the script asks; another, which knows the id alone, sums up the answer."""
    monkeypatch.setenv("UNSPOKEN_RUNS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run.py"])
    script("interview").main()
    question, *_, told = capsys.readouterr().out.splitlines()
    run = told.split()[4]
    monkeypatch.setattr(sys, "argv", ["run.py", run, "It had", "a walnut tree."])
    script("interview").main()
    stored = RunStore(tmp_path).get(run)
    assert stored.outputs is not None and stored.outputs["question"] == question
    assert stored.outputs["answer"] == "It had a walnut tree."
    assert capsys.readouterr().out.strip() == stored.outputs["summary"].strip() != ""


def test_the_scripts_make_rows_of_public_sets() -> None:
    """Facts are dealt out to both readers, passages become one long document in parts."""
    questions = [
        {"question": f"q{n}", "facts": [f"a{n}", f"b{n}", f"c{n}"], "answer": n == 1}
        for n in range(3)
    ]
    made = script("split_evidence").split(questions, among=2)
    assert [row["gold"] for row in made] == ["no", "yes", "no"]
    for n, row in enumerate(made):
        hands = [set(row[hand].split("\n")) for hand in ("first", "second")]
        own = {f"a{n}", f"b{n}", f"c{n}"}
        assert own <= hands[0] | hands[1] and all(hand & own for hand in hands)
        assert [len(hand - own) for hand in hands] == [2, 2]
    passages = [
        {"context": f"passage {n}", "question": f"q{n}", "answers": [str(n)]} for n in range(4)
    ]
    documents = list(script("map_reduce").long_rows(passages, passages=3, words=4))
    assert [[len(part.split()) for part in row["parts"]] for row in documents] == [[4, 2]] * 4
    assert all(f"passage {row['gold'][0]}" in "\n".join(row["parts"]) for row in documents)


@pytest.mark.model
def test_the_two_families_hand_over_through_their_bridges() -> None:
    """Neither receiver reads the document: what is not its sink is projected."""
    report = ran("two_families").report
    assert not report.fallbacks
    for edge in report.edges:
        assert edge.channel == "projected_cache"
        assert edge.projected > 100
        assert edge.projected + edge.repaired == edge.tokens


@pytest.mark.model
def test_the_two_families_answer_as_their_readme_shows() -> None:
    """Each answers from the other's cache, rightly, and in the words that are printed there."""
    page = (EXAMPLES / "two_families" / "README.md").read_text(encoding="utf-8")
    for name, answer in ran("two_families").outputs.items():
        assert f"    {name}: {answer.strip()}\n" in page
        assert "1861" in answer
