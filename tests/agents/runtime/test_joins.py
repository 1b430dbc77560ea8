"""What templates say of agents that were skipped, in prompts, conditions and outputs."""

from collections.abc import Mapping

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.spec.graph import validate
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError

ANSWERS = {"desk": "desk", "numbers": "ninety", "prose": "a story", "writer": "done"}


def router(prompt: str, outputs: Mapping[str, str] | None = None) -> tuple[ScriptedModel, Workflow]:
    """A desk that goes on to numbers and not to prose, and a writer that joins the two."""
    model = ScriptedModel(ANSWERS)
    prompts = {"desk": "ask", "numbers": "number", "prose": "tell", "writer": prompt}
    agents = [Agent(name, model, prompt=words) for name, words in prompts.items()]
    flow = Workflow("router", agents, outputs=outputs)
    flow.connect("desk", "numbers", when="desk.text == 'desk'")
    flow.connect("desk", "prose", when="desk.text != 'desk'")
    flow.connect("numbers", "writer", "text").connect("prose", "writer", "text")
    return model, flow


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("[{{ numbers.text }}{{ prose.text }}]", "[ninety]"),
        ("[{{ prose.text | default('-') }}]", "[-]"),
        ("[{{ prose.text if prose is defined else 'none' }}]", "[none]"),
        ("[{{ numbers.text if numbers is defined }}]", "[ninety]"),
        ("[{% if prose %}p{% endif %}{% if numbers %}n{% endif %}]", "[n]"),
        ("[{% if prose.text %}p{% endif %}{% if numbers.text %}n{% endif %}]", "[n]"),
        ("[{% if not prose and (numbers or prose) %}n{% endif %}]", "[n]"),
        ("[{{ prose.text | upper }}{{ 'x' ~ prose.text }}]", "[x]"),
    ],
)
def test_a_prompt_reads_a_branch_that_was_not_taken(prompt: str, read: str) -> None:
    """Its text is empty, it is false, and it is not defined."""
    model, flow = router(prompt)
    assert not validate(flow.spec)
    flow.run()
    assert read in model.prompts["writer"][0]


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("[{{ prose.text }}{{ numbers.text }}]", "[ninety]"),
        ("{{ prose.text | default('-') }}", "-"),
        ("{{ prose.skipped }} {{ numbers.skipped }}", "True False"),
        ("{{ prose is defined }} {{ numbers is defined }}", "False True"),
        ("{% if prose %}p{% endif %}{% if numbers %}n{% endif %}", "n"),
        ("{{ 'p' if prose else 'none' }}", "none"),
    ],
)
def test_an_output_reads_an_agent_that_was_skipped(template: str, shown: str) -> None:
    """Outputs say the same, and know who was skipped."""
    _, flow = router("go", {"x": template})
    assert not validate(flow.spec)
    assert flow.run().outputs["x"].lower() == shown.lower()


@pytest.mark.parametrize("when", ["desk", "desk is defined", "desk.text", "desk and desk.text"])
def test_a_condition_may_ask_whether_its_sharer_is_there(when: str) -> None:
    """It always is."""
    model = ScriptedModel(ANSWERS)
    agents = [Agent(name, model, prompt="go") for name in ("desk", "writer")]
    flow = Workflow("w", agents).connect("desk", "writer", when=when)
    assert not validate(flow.spec)
    assert flow.run()["writer"].text == "done"


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ prose }}",
        "{{- prose -}}",
        "{{ prose ~ 'x' }}",
        "{{ prose | upper }}",
        "{% if prose %}{{ prose }}{% endif %}",
        "{{ 'a' if prose else prose }}",
        "{% set x = prose %}{{ x }}",
    ],
)
def test_an_agent_by_itself_is_not_text(prompt: str) -> None:
    """Only to ask for it is allowed; the message says what to write."""
    _, flow = router(prompt)
    (problem,) = validate(flow.spec)
    assert problem.message == "'prose' is not text by itself"
    assert problem.fix == "write prose.text"


def test_to_ask_for_an_agent_does_not_take_its_message_out_of_the_context() -> None:
    """A message that the prompt does not quote is a turn of its own."""
    model, flow = router("{% if numbers %}Think.{% endif %}")
    flow.run()
    assert "ninety" in model.prompts["writer"][0]


def test_the_result_of_a_skipped_agent_is_empty() -> None:
    """It has no turns; an agent that there is not is refused with the names."""
    _, flow = router("go")
    result = flow.run()
    assert (result["prose"].text, result["prose"].turns) == ("", ())
    with pytest.raises(InputError, match="no agent 'proze'") as caught:
        result["proze"]
    assert "prose" in caught.value.fix


def test_a_join_in_a_loop_reads_the_branch_of_its_round() -> None:
    """In the second round the first one's branch prints as one that was not taken."""
    model = ScriptedModel({})
    desk = Agent("desk", model, prompt="{{ turn }}", generate=None, memory="turn", max_turns=2)
    left, right = (
        Agent(name, model, prompt=name, generate=None, memory="turn") for name in ("left", "right")
    )
    prompt = "L=[{{ left.text | default('-') }}] R=[{{ right.text | default('-') }}]"
    join = Agent("join", model, prompt=prompt, generate=None, memory="turn")
    flow = Workflow("rounds", [desk, left, right, join])
    flow.connect(desk, left, when="'1' in desk.text").connect(desk, right, when="'2' in desk.text")
    flow.connect(left, join).connect(right, join).connect(join, desk, loop=True)
    assert flow.run()["join"].turns == ("L=[left] R=[-]", "L=[-] R=[right]")
