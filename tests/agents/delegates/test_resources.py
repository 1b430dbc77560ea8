"""What runs inside of a run hold: memory of the run around them, and nothing after a cancel."""

import anyio
import pytest
from runs import CACHE, FEW

from unspoken.agents import Agent, LocalModel, Session, Workflow
from unspoken.agents.testing import tiny_model
from unspoken.channels import AgentError

DOCUMENT = "the key of the cache is in the document that the reader was for\n" * 12
ROWS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def reads(model: LocalModel, name: str) -> tuple[Agent, Agent]:
    """Somebody who reads a document, and somebody who goes on from there."""
    prompt = "{{ inputs.n }}: {{ inputs.document }}"
    reader = Agent("reader", model, prompt=prompt, generate=None)
    return reader, Agent(name, model, prompt="what of it?", generate=FEW)


def rows(model: LocalModel, **settings: object) -> Workflow:
    """A workflow inside of another, for several rows at a time."""
    reader, solver = reads(model, "solver")
    inputs = {"n": "integer", "document": "text"}
    flow = Workflow("one", [reader, solver], inputs=inputs).connect(reader, solver, CACHE)
    given = {"n": "{{ item }}", "document": "{{ inputs.document }}"}
    each = Agent("each", workflow=flow, inputs=given, for_each="inputs.rows")
    return Workflow("rows", [each], **settings)  # type: ignore[arg-type]


def test_its_states_are_in_the_memory_of_the_run_around_it(model: LocalModel) -> None:
    """Runs inside wait for one another, with the same answers and the same continuations."""
    given = {"rows": ROWS, "document": DOCUMENT}
    plain = rows(model).run(**given)
    most = 200_000  # bytes: one turn's and not two
    result = rows(model, memory=most).run(**given)
    assert result["each"].items == plain["each"].items
    report = result.report
    assert [edge.mode for edge in report.edges] == ["continuation"] * len(ROWS)
    assert 0 < report.peak_state_bytes <= most * 1.1


def test_a_turn_inside_that_never_fits_says_so(model: LocalModel) -> None:
    """Both agents are named."""
    flow = rows(model, memory="20kB")
    with pytest.raises(AgentError, match=r"'each', item 1 .* turn of reader takes .* of state"):
        flow.run(rows=ROWS[:1], document=DOCUMENT)


@pytest.mark.anyio
@pytest.mark.event_loops
async def test_a_cancel_ends_what_is_inside_and_leaves_nothing(model: LocalModel) -> None:
    """A state that waited for its reader goes back, and the next run is as any."""
    ended, hanging, goes_on = list[str](), anyio.Event(), anyio.Event()

    async def hang(text: str) -> str:
        hanging.set()
        try:
            await goes_on.wait()
        except anyio.get_cancelled_exc_class():
            ended.append(text)
            raise
        return text

    reader, solver = reads(model, "solver")
    inner = Workflow("inner", [reader, Agent("hanging", hang, prompt="go"), solver])
    inner.connect(reader, solver, CACHE).connect("hanging", solver)
    inner.connect(reader, "hanging", "text")  # so the reader's state is there, and waits
    given = {"n": "1", "document": "{{ inputs.document }}"}
    flow = Workflow("outer", [Agent("inside", workflow=inner, inputs=given)])
    with Session() as session:

        async def run() -> None:
            await flow.arun(document=DOCUMENT, session=session)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await hanging.wait()
            assert session.statistics().tickets > 0
            tasks.cancel_scope.cancel()
        there = session.statistics()
        assert len(ended) == 1 and there.tickets == there.bytes_leased == 0
        goes_on.set()
        result = await flow.arun(document=DOCUMENT, session=session)
        assert result["inside"].text == result["inside.1/solver"].text != ""
        assert session.statistics().tickets == 0
