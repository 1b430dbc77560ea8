"""Workflows of many agents, and prompts that double what they quote."""

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.planning.outline import MOST_PIECES, Outlines
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.agents.testing import ScriptedModel


def chain(agents: int, share: str, prompt: str) -> Workflow:
    """Readers one after the other; ``BEFORE`` in a prompt stands for the one before."""
    model = ScriptedModel({}, max_positions=10**6)
    readers = [
        Agent(f"a{n}", model, prompt=prompt.replace("BEFORE", f"a{n - 1}.text"), generate=None)
        for n in range(1, agents)
    ]
    flow = Workflow("chain", [Agent("a0", model, prompt="x", generate=None), *readers])
    edges = [
        EdgeSpec.model_validate({"from": f"a{n}", "to": f"a{n + 1}", "share": share})
        for n in range(agents - 1)
    ]
    flow.spec = flow.spec.model_copy(update={"edges": tuple(edges)})
    return flow


@pytest.mark.parametrize(("share", "prompt"), [("prompt", "y{{ BEFORE }}"), ("context", "y")])
def test_a_chain_of_hundreds_of_agents_is_planned(share: str, prompt: str) -> None:
    """No plan recurses over the agents."""
    assert len(chain(600, share, prompt).plan().edges) == 599


def test_a_chain_of_hundreds_of_agents_runs() -> None:
    """No run does either."""
    assert len(chain(400, "prompt", "y").run().report.agents) == 400


def test_a_prompt_that_quotes_twice_doubles_no_plan() -> None:
    """Sixty doublings are planned at once, and no edge is called a continuation beyond the cut."""
    flow = chain(60, "prompt", "{{ BEFORE }}{{ BEFORE }}")
    assert len(flow.plan().edges) == 59
    assert len(Outlines(flow.spec)["a59"]) <= MOST_PIECES + 2


def test_a_message_beyond_the_cut_is_a_splice() -> None:
    """What is not compared is not said to be the same, nor to be changed."""
    long = "".join(f"{{{{ inputs.x{n} }}}}" for n in range(MOST_PIECES))
    model = ScriptedModel({})
    reader = Agent("reader", model, prompt="x", generate=None)
    solver = Agent("solver", model, prompt=long + "{{ reader.text }}", generate=None)
    (edge,) = Workflow("w", [reader, solver]).connect(reader, solver).plan().edges
    assert edge.mode == "splice"
