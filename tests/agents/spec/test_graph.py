"""The graph of a workflow: its shape, its faults, its regions and its picture."""

from typing import Any

import pytest
from bad_workflows import GOOD

from unspoken.agents.spec.graph import build_graph, to_mermaid, validate
from unspoken.agents.spec.loader import loads
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import Problem, WorkflowError


def flow(*links: str, **agents: dict[str, Any]) -> WorkflowSpec:
    """Return a workflow of links such as ``a -> b`` and ``b => a`` (a loop)."""
    edges = []
    for link in links:
        sharer, arrow, receiver = link.split()
        edges.append({"from": sharer, "to": receiver, "loop": arrow == "=>"})
    names = dict.fromkeys([edge[key] for edge in edges for key in ("from", "to")]) or {"a": None}
    base = {"model": "m", "prompt": "x", "max_turns": 2}
    return WorkflowSpec.model_validate(
        {
            "name": "w",
            "models": {"m": "r"},
            "inputs": {"doc": "text", "rows": "list"},
            "agents": {name: base | agents.get(str(name), {}) for name in names},
            "edges": edges,
        }
    )


def only(spec: WorkflowSpec) -> Problem:
    (problem,) = validate(spec)
    return problem


def test_graph_carries_the_specification() -> None:
    """Nodes and edges hold their specifications; an edge's key is its index."""
    spec = loads(GOOD).spec
    graph = build_graph(spec)
    assert graph.nodes["reader"]["agent"] is spec.agents["reader"]
    assert graph.edges["critic", "solver", 2]["edge"] is spec.edges[2]
    assert list(graph) == list(spec.agents)


def test_graph_of_an_unknown_agent_is_refused() -> None:
    """An edge to an agent that does not exist is refused, not added as an empty node."""
    spec = flow("a -> b")
    broken = spec.model_copy(update={"agents": {"a": spec.agents["a"]}})
    with pytest.raises(WorkflowError, match="no agent 'b'"):
        build_graph(broken)


@pytest.mark.parametrize(
    "links",
    [
        (),
        ("a -> b", "b -> c", "a -> c"),
        ("a -> b", "b => a"),
        ("a => a",),
        ("a => b", "b => a"),
        ("a -> b", "b -> c", "c => a", "c => b"),
    ],
    ids=str,
)
def test_sound_graph_has_no_problems(links: tuple[str, ...]) -> None:
    """Trees, diamonds and marked loops are fine."""
    assert validate(flow(*links)) == []


def test_cycle_is_named_from_where_it_is_entered() -> None:
    """A cycle is named from the agent that a run enters; the edge back to it is to be marked."""
    problem = only(flow("b -> c", "c -> a", "a -> b", "start -> c"))
    assert "c -> a -> b -> c" in problem.message
    assert problem.where == "edges[0]"
    assert "mark edges[0] (b -> c) with 'loop: true'" in problem.fix


def test_agents_behind_a_cycle_are_named() -> None:
    """Agents that wait for a cycle that cannot start are named too."""
    problem = only(flow("a -> b", "b -> a", "b -> end"))
    assert "end after it could never start" in problem.message


def test_each_knot_is_reported_once() -> None:
    """Two separate cycles are two problems, a thick knot is one."""
    assert len(validate(flow("a -> b", "b -> a", "c -> d", "d -> c"))) == 2
    assert len(validate(flow("a -> b", "b -> c", "c -> a", "b -> a", "c -> b"))) == 1


def test_dense_graph_is_checked_quickly() -> None:
    """A knot with very many cycles does not list them."""
    names = [f"n{n}" for n in range(30)]
    spec = flow(*(f"{a} -> {b}" for a in names for b in names if a != b))
    assert len(validate(spec)) == 1


def test_two_edges_may_share_different_things() -> None:
    """Only a second edge with the same share is a duplicate."""
    spec = flow("a -> b", "a -> b")
    assert only(spec).where == "edges[1]"
    other = spec.edges[1].model_copy(update={"share": "prompt"})
    assert validate(spec.model_copy(update={"edges": (spec.edges[0], other)})) == []


@pytest.mark.parametrize(
    ("place", "template", "candidate"),
    [
        ("prompt", "{{ inputs.dok }}", "inputs.doc"),
        ("prompt", "{{ a.txt }}", "a.text"),
        ("prompt", "{{ a.skipped }}", "a.text"),
        ("prompt", "{{ c.text }}", ""),
        ("prompt", "{{ item }}", ""),
        ("prompt", "{{ item }}{% if", ""),
        ("system", "{{ a.text }}", ""),
        ("system", "{{ turn }}", "inputs.doc"),
        ("for_each", "inputs.doc", "inputs.rows"),
        ("for_each", "a.text", "inputs.rows"),
        ("for_each", "[1, 2]", "inputs.rows"),
    ],
)
def test_template_reading_out_of_reach_is_refused(
    place: str, template: str, candidate: str
) -> None:
    """A name that an agent's template cannot read is refused, with the candidates."""
    problem = only(flow("a -> b", "b -> c", b={place: template}))
    assert problem.where == f"agents.b.{place}"
    assert candidate in problem.expected


@pytest.mark.parametrize(
    "agent",
    [
        {"prompt": "{{ a.text }}{{ inputs.doc }}{{ turn }}"},
        {"prompt": "{{ item.title }}{{ item }}", "for_each": "inputs.rows"},
        {"prompt": "{% for row in inputs.rows %}{{ row.name }}{% endfor %}"},
        {"system": "{{ inputs.doc | upper }}", "for_each": "inputs.rows[:2]"},
    ],
    ids=str,
)
def test_template_within_reach_is_fine(agent: dict[str, Any]) -> None:
    """Inputs, sharers, the turn and the item of a for_each can be read."""
    assert validate(flow("a -> b", b=agent)) == []


def test_condition_reads_its_sharer_and_inputs() -> None:
    """``when`` may use the sharer's text and inputs, and no other agent."""
    spec = flow("a -> b", "b -> c")
    for when, count in (("b.text in inputs.doc", 0), ("a.text", 1), ("turn", 1), ("b.items", 1)):
        edge = spec.edges[1].model_copy(update={"when": when})
        problems = validate(spec.model_copy(update={"edges": (spec.edges[0], edge)}))
        assert [problem.where for problem in problems] == ["edges[1].when"] * count


def test_outputs_read_any_agent() -> None:
    """Outputs may use text, skipped and items of any agent."""
    outputs = {"x": "{{ a.text }}{{ b.skipped }}{{ a.items }}{{ inputs.doc }}"}
    spec = flow("a -> b").model_copy(update={"outputs": outputs})
    assert validate(spec) == []
    wrong = spec.model_copy(update={"outputs": {"x": "{{ a.texts }}{{ turn }}"}})
    assert [problem.where for problem in validate(wrong)] == ["outputs.x", "outputs.x"]


def test_misspelt_end_is_reported_alone() -> None:
    """What only seems to be unconnected because of a misspelt end is not reported beside it."""
    text = GOOD.replace("from: solver, to: critic", "from: solver, to: crtic")
    with pytest.raises(WorkflowError) as caught:
        loads(text)
    assert [problem.where for problem in caught.value.problems] == ["edges[1].to"]


def test_mermaid_shows_channel_share_loop_and_condition() -> None:
    """The picture labels edges, dots loops and numbers agents."""
    assert to_mermaid(loads(GOOD).spec) == (
        "flowchart LR\n"
        '    a0["reader<br/>small, reads only"]\n'
        '    a1["solver<br/>small"]\n'
        '    a2["critic<br/>small"]\n'
        '    a0 -->|"auto: prompt"| a1\n'
        '    a1 -->|"auto: output"| a2\n'
        "    a2 -.->|\"auto: output<br/>when 'no' in critic.text\"| a1\n"
    )


def test_mermaid_escapes_what_it_would_read_as_markup() -> None:
    """Quotes, brackets, pipes and markup in a condition cannot end a label."""
    spec = flow("a -> b")
    edge = spec.edges[0].model_copy(update={"when": '"]|<script>" in a.text\n#`;'})
    drawn = to_mermaid(spec.model_copy(update={"edges": (edge,)}))
    line = drawn.splitlines()[-1]
    label = line.split('|"')[1].split('"|')[0].replace("<br/>", "")
    assert not set(label) & set('"|<>[]`\n')
    assert "#34;" in label
