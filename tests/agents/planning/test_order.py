"""One order of parts: what is planned for a context is how it is composed."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents import LocalModel
from unspoken.agents.engines.base import Inbound
from unspoken.agents.planning.choice import EdgeEnds
from unspoken.agents.planning.outline import Outlines
from unspoken.agents.planning.same_model import same_weights
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.order import InEdge, order_of_parts
from unspoken.agents.runtime.inbox import prepare_turn
from unspoken.agents.runtime.outbox import publish
from unspoken.agents.spec.graph import validate
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.testing import tiny_model
from unspoken.channels.message import Message, Segment
from unspoken.channels.text import TextChannel

INPUTS = {"document": "the key of the cache"}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@st.composite
def workflows(draw: st.DrawFn) -> WorkflowSpec:
    """A few agents, each with edges from some before it, and prompts that mention some of those."""
    names = [f"a{number}" for number in range(draw(st.integers(2, 4)))]
    agents: dict[str, Any] = {}
    edges: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        generate = draw(st.sampled_from(["none", {"max_new_tokens": 4}]))
        sharers = names[:number]
        prints = [part for sharer in sharers for part in (f"{{{{ {sharer}.text }}}}", sharer)]
        words = ["read: ", " so? ", "{{ inputs.document }}"]
        parts = draw(st.lists(st.sampled_from([*words, *prints]), min_size=1, max_size=4))
        prompt = "".join(
            f"{{{{ {part}.text | upper }}}}" if part in names else part for part in parts
        )
        system = draw(st.sampled_from(["none", "none", "Be short."]))
        agents[name] = {"model": "m", "prompt": prompt, "system": system, "generate": generate}
        for sharer in sharers:
            shares = [
                "prompt",
                "context",
                *(["output"] if agents[sharer]["generate"] != "none" else []),
            ]
            at_least = int(sharer in prompt)
            for share in draw(
                st.lists(st.sampled_from(shares), min_size=at_least, max_size=2, unique=True)
            ):
                as_ = draw(st.sampled_from(["user", "assistant"]))
                edges.append({"from": sharer, "to": name, "share": share, "as": as_})
    spec = WorkflowSpec.model_validate(
        {
            "name": "any",
            "models": {"m": {"ref": "m"}},
            "inputs": {"document": {}},
            "agents": agents,
            "edges": draw(st.permutations(edges)),
        }
    )
    assert not validate(spec)
    return spec


def compose(model: LocalModel, spec: WorkflowSpec) -> tuple[dict[str, Context], dict[int, Message]]:
    """Every agent's context with what it wrote, and the message of every edge."""
    contexts: dict[str, Context] = {}
    messages: dict[int, Message] = {}
    builder = model.context_builder
    for name, agent in spec.agents.items():
        inbound = [
            Inbound(
                edge=number,
                sharer=edge.from_,
                receiver=name,
                channel=TextChannel(),
                message=messages[number],
                role=edge.as_,
            )
            for number, edge in enumerate(spec.edges)
            if edge.to == name
        ]
        context = prepare_turn(
            builder, agent.prompt, inbound, {"inputs": INPUTS}, system=agent.system, earlier=None
        ).context
        prompt_at = len(context.segments) - 1
        if agent.generate is not None:
            ask, words = builder.ask(), model.text.encode_words(f"the value of {name}")
            ids, content = (*ask, *words, *builder.close()), (len(ask), len(ask) + len(words))
            text = f"the value of {name}"
            context = context.extended(
                Segment(
                    role="assistant", ids=ids, content=content, text=text, position=len(context.ids)
                )
            )
        contexts[name] = context
        for number, edge in enumerate(spec.edges):
            if edge.from_ == name:
                share = spec.share_of(edge)
                messages[number] = publish(name, share, context, prompt_at, model.identity)
    return contexts, messages


def without_repeats(numbers: Iterable[int]) -> list[int]:
    return [number for number, _ in groupby(numbers)]


@given(workflows())
def test_messages_are_composed_in_the_planned_order(model: LocalModel, spec: WorkflowSpec) -> None:
    """The outline's messages, in its order, are those that have a place among the tokens."""
    contexts, messages = compose(model, spec)
    numbers = {id(message): number for number, message in messages.items()}
    for name, context in contexts.items():
        planned = [piece.edge for piece in Outlines(spec)[name] if piece.edge is not None]
        spans = sorted(context.placed, key=lambda placed: placed[1].at)
        composed = [numbers[id(message)] for message, _ in spans]
        assert without_repeats(composed) == without_repeats(planned)


@given(workflows())
def test_a_planned_continuation_has_the_same_tokens(model: LocalModel, spec: WorkflowSpec) -> None:
    """Where the outlines agree up to a message, so do the tokens."""
    contexts, messages = compose(model, spec)
    outlines = Outlines(spec)
    for number, edge in enumerate(spec.edges):
        ends = EdgeEnds(
            spec=spec,
            number=number,
            sharer=model,
            receiver=model,
            sharer_context=outlines[edge.from_],
            receiver_context=outlines[edge.to],
        )
        if same_weights(ends).mode == "continuation":
            spans = contexts[edge.to].spans(messages[number])
            stop = max(span.at + span.length for span in spans)
            ours, theirs = contexts[edge.to].ids[:stop], contexts[edge.from_].ids[:stop]
            assert ours == theirs


def test_a_mention_means_the_first_message_of_an_agent() -> None:
    """Its other messages are turns of their own, and one that is not new brings nothing again."""
    messages = [
        InEdge(number=0, sharer="a", one_turn=True, fresh=False),
        InEdge(number=1, sharer="b", one_turn=False),
        InEdge(number=2, sharer="a", one_turn=True),
        InEdge(number=3, sharer="c", one_turn=True, fresh=False),
    ]
    order = order_of_parts("{{ a.text }} and {{ b.text }}", messages)
    assert order.quoted == {"a": 0, "b": 1, "c": 3}
    assert order.turns == (2,)
    assert order.tokens_kept == frozenset()
