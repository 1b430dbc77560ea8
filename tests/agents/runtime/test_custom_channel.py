"""Channels of a user's own class, in a workflow: the one that the docs show."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flows import DOCUMENT, QUESTION, reader_solver, sibling

from unspoken.agents import Agent, LocalModel
from unspoken.channels import Channel, SameModelCacheChannel
from unspoken.channels.authoring import Arrival, Carry, CausalModel
from unspoken.channels.errors import IdentityMismatch, InputError, WorkflowError
from unspoken.channels.kv.layer_state import LayerState

GIVEN = {"document": DOCUMENT, "question": QUESTION}
PAGE = Path(__file__).parents[3] / "docs/channels.md"


@pytest.fixture(scope="module")
def make() -> Callable[..., Channel]:
    """The class that the page on channels shows, as it stands there."""
    section = PAGE.read_text(encoding="utf-8").split("## How to write a channel")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    found: dict[str, Any] = {"__name__": "shown"}
    exec(block[1], found)  # the page's own code
    made: Callable[..., Channel] = found["ContinuationChannel"]
    return made


def test_an_own_channel_carries_in_a_workflow(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """The shown class continues the reader's state; the solver writes what it does after text."""
    result = reader_solver(model, model, make(share="prompt")).run(**GIVEN)
    plain = reader_solver(model, model, "text", share="prompt").run(**GIVEN)
    (edge,) = result.report.edges
    assert (edge.planned, edge.channel, edge.exact) == ("continuation", "continuation", True)
    assert edge.reused == edge.tokens > 0
    assert result["solver"].text == plain["solver"].text
    assert not result.report.fallbacks


def test_an_own_channel_is_planned_by_its_name(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """Plan and drawing name it, and its bytes are those of the state that it brings."""
    flow = reader_solver(model, model, make(share="prompt"))
    (edge,) = flow.plan().edges
    assert (edge.asked, edge.channel, edge.mode, edge.fallback is not None) == (
        "continuation",
        "continuation",
        "custom",
        False,
    )
    assert edge.bytes_per_token == model.geometry.bytes_per_token(model.dtype.itemsize)


def test_a_pair_that_an_own_channel_refuses_goes_by_text(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """Its `check` is asked when the workflow is planned, and its words are the reason."""
    (edge,) = reader_solver(sibling(model), model, make()).plan().edges
    assert edge.channel == "text" and edge.fallback is not None
    assert "weights" in edge.fallback.cause


def test_an_own_channel_without_fallback_refuses_at_connect(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """With ``fallback="error"`` the pair is refused when it is connected."""
    with pytest.raises(IdentityMismatch):
        reader_solver(sibling(model), model, make(), fallback="error")


def test_the_shown_channel_never_splices(model: LocalModel, make: Callable[..., Channel]) -> None:
    """Behind another system prompt the receiver reads the message itself."""
    flow = reader_solver(model, model, make(share="prompt"), "Be brief.")
    plain = reader_solver(model, model, "text", "Be brief.", share="prompt").run(**GIVEN)
    result = flow.run(**GIVEN)
    (edge,) = result.report.edges
    assert (edge.channel, edge.exact, edge.reused) == ("continuation", True, 0)
    assert edge.bytes == len(DOCUMENT.encode())
    assert result["solver"].text == plain["solver"].text


def test_own_channels_stay_where_they_are_when_others_are_connected(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """An edge that is added later leaves the first with its channel."""
    flow = reader_solver(model, model, make(share="prompt"))
    flow.connect("reader", "solver", "text", share="context", when="inputs.question == ''")
    assert [edge.channel for edge in flow.plan().edges] == ["continuation", "text"]


def test_own_channels_keep_their_cache_in_fewer_bytes(
    model: LocalModel, make: Callable[..., Channel]
) -> None:
    """An edge's `codec` is for every channel that carries state."""
    flow = reader_solver(model, model, make(share="prompt"), codec="int8")
    (edge,) = flow.run(**GIVEN).report.edges
    assert (edge.channel, edge.exact) == ("continuation", False)


def test_a_workflow_with_an_own_channel_has_no_file(
    model: LocalModel, make: Callable[..., Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class cannot be named in a file, and that is said."""
    monkeypatch.setattr(model, "ref", "owner/small")
    with pytest.raises(InputError, match="'continuation', is of a class of your own"):
        reader_solver(model, model, make()).to_yaml()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"name": "text"}, "is called 'text', as a channel of the package"),
        ({"share": None, "as_": "system"}, "as"),
    ],
)
def test_an_own_channel_that_cannot_be_one_is_refused(
    model: LocalModel, make: Callable[..., Channel], change: dict[str, Any], wanted: str
) -> None:
    """A name of the package's channels, or a role that there is not."""
    channel = make()
    other = type("Other", (type(channel),), {"__slots__": (), **change})
    made = object.__new__(other)
    for name, value in {"share": None, "as_": "user", **change}.items():
        if name in ("share", "as_"):
            object.__setattr__(made, name, value)
    with pytest.raises((InputError, WorkflowError), match=wanted):
        reader_solver(model, model, made)


def test_what_is_no_channel_is_refused(model: LocalModel) -> None:
    """An object that is neither a channel nor a name."""
    with pytest.raises(InputError, match="the channel of an edge is int"):
        reader_solver(model, model, 3)


def test_a_class_without_its_fields_is_refused(model: LocalModel) -> None:
    """A subclass that forgot its options."""

    class Bare(Channel):
        def check(self, sharer: Any, receiver: Any) -> None: ...

        def carry(self, arrival: Any, receiver: Any) -> Any: ...

    reader = Agent("reader", model, prompt="x", generate=None)
    with pytest.raises(InputError, match="Bare has no name"):
        reader_solver(model, model, Bare()).connect(reader, "solver")


@dataclass(frozen=True, slots=True)
class Rounded(SameModelCacheChannel):
    """Hands over values that it rounded, and says so in its report alone."""

    name: ClassVar[str] = "rounded"

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        carry = SameModelCacheChannel.carry(self, arrival, receiver)
        assert carry.prefix is not None
        state = carry.prefix.state
        layers = tuple(
            LayerState(one.keys, one.values.bfloat16().float(), one.first) for one in state.layers
        )
        report = replace(carry.report, channel=self.name, mode="custom", exact=False)
        return Carry(report, prefix=replace(carry.prefix, state=replace(state, layers=layers)))


def test_what_a_channel_calls_inexact_is_never_called_exact(model: LocalModel) -> None:
    """Whoever wrote the channel, its own word bounds the report."""
    flow = reader_solver(model, model, Rounded(share="prompt"))
    (edge,) = flow.run(**GIVEN).report.edges
    assert edge.mode == "custom" and not edge.exact and edge.reused > 0
