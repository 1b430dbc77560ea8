"""Fuse mode on an edge: carried, planned and run."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from fake_bridge import finder
from flows import DOCUMENT, QUESTION, Models, reader_solver, sound
from fusers import bridge_between, fuser_between
from messages import WORDS, context_of, message_of, report, take_over
from torch.overrides import TorchFunctionMode

from unspoken.agents import Workflow
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.agents.testing import FakeBridge
from unspoken.channels import KVState, ProjectedCacheChannel, SameModelCacheChannel, TextChannel
from unspoken.channels.bridges.align import align
from unspoken.channels.errors import BridgeError, WorkflowError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("before", ["", "some words first"])
def test_the_channel_enriches_the_receiver_s_own_rows(
    models: Models, tmp_path: Path, before: str
) -> None:
    """An untrained fuser writes what text writes; all its tokens count as prefilled."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS, before="something else")
    context = context_of(receiver, *([before] if before else []), message, "who?")
    text = take_over(receiver, context, (message, TextChannel()))
    for trained in (False, True):
        fuser = fuser_between(sharer, receiver, trained=trained)
        bridge = bridge_between(sharer, receiver, tmp_path / str(trained), fuser, "float32")
        fused = take_over(receiver, context, (message, ProjectedCacheChannel(bridge, mode="fuse")))
        how, usage = report(fused), fused.usage
        assert how.mode == "fused" and not how.exact
        assert (how.reused, how.repaired, how.projected) == (0, 0, 0) and how.bytes > 0
        assert usage.prefilled_tokens == usage.prompt_tokens == text.usage.prompt_tokens
        (span,) = context.texts(message)
        stop = span.stop
        assert how.layer_tokens == 3 * stop
        assert usage.layer_tokens_computed == how.layer_tokens + 3 * (usage.prompt_tokens - stop)
        assert fused.state is not None and text.state is not None
        close = [
            torch.allclose(enriched.values, other.values, atol=1e-3)
            for enriched, other in zip(fused.state.layers, text.state.layers, strict=True)
        ]
        assert all(close) != trained
        assert fused.state.approximate_from == span.at


class Moves(TorchFunctionMode):
    """Notes the shapes of keys and values that are brought to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and isinstance(args[-1], torch.device) and args[0].dim() == 3:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["prefix", "fuse"])
def test_only_the_rows_that_a_bridge_reads_go_to_the_receiver_s_device(
    models: Models, tmp_path: Path, mode: Literal["prefix", "fuse"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the layers it reads, the message's tokens, and nothing of what stands around them."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS, before="something else")
    assert message.state is not None
    context = context_of(receiver, message, "who?")
    fuser = fuser_between(sharer, receiver, trained=True)
    channel = ProjectedCacheChannel(bridge_between(sharer, receiver, tmp_path, fuser), mode=mode)
    whole: list[KVState] = []
    monkeypatch.setattr(KVState, "to", lambda state, device: whole.append(state) or state)
    with Moves() as moves:
        take_over(receiver, context, (message, channel))
    heads, rows, size = message.state.layers[0].keys.shape
    (span,), (segment,) = context.texts(message), message.segments
    words = len(set(align(segment.ends, span.ends)))
    assert rows > words and len(message.state.layers) > 1
    assert not any(state is message.state for state in whole)
    layers = {"prefix": 1, "fuse": 2}[mode]
    assert moves.shapes[: 2 * layers] == [(heads, words, size)] * (2 * layers)
    assert (heads, rows, size) not in moves.shapes


def test_two_fused_messages_are_both_enriched(models: Models) -> None:
    """A fused message's prefill replaces neither another's rows nor an exact prefix."""
    sharer, receiver = models["one"], models["two"]
    first, second = (message_of(sharer, f"{n} {WORDS}", name=n) for n in ("a", "b"))
    own = message_of(receiver, WORDS, name="own")
    context = context_of(receiver, own, first, "and", second, "who?")
    fuse = ProjectedCacheChannel(FakeBridge(sharer, receiver), mode="fuse")
    outcome = take_over(
        receiver, context, (own, SameModelCacheChannel()), (first, fuse), (second, fuse)
    )
    alone = take_over(receiver, context)
    assert outcome.state is not None and alone.state is not None
    for span in context.texts(first) + context.texts(second):
        rows = slice(span.at, span.stop)
        for enriched, other in zip(outcome.state.layers, alone.state.layers, strict=True):
            torch.testing.assert_close(enriched.values[:, rows], other.values[:, rows] * 1.5)
    usage = outcome.usage
    assert (
        usage.prompt_tokens
        == usage.prefilled_tokens + usage.reused_tokens + usage.recomputed_tokens
    )
    assert report(outcome, 1).reused == report(outcome, 2).reused == 0


def flow_of(models: Models, **edge: Any) -> Workflow:
    return reader_solver(models["one"], models["two"], "projected_cache", **edge)


def test_an_edge_asks_for_fuse_mode(models: Models, tmp_path: Path) -> None:
    """Planned where its audit shows a gain; without a fuser the edge is text, with advice."""
    bridges = {
        fuses: FakeBridge(models["one"], models["two"], fuses=fuses) for fuses in (True, False)
    }
    sharer, receiver = models["one"].ref, models["two"].ref
    for fuses, bridge in bridges.items():
        flow = flow_of(models, fuse=True, share="prompt")
        flow._preparation.bridge_cache.find = finder(bridge)  # type: ignore[method-assign]
        (edge,) = flow.plan().edges
        assert edge.mode == ("fused" if fuses else "text")
        assert edge.channel == ("projected_cache" if fuses else "text")
        assert edge.retention is None
        assert fuses or edge.advice == f"unspoken bridge fit {sharer} {receiver} --fuse"
        result = flow.run(document=DOCUMENT, question=QUESTION)
        (carried,) = sound(result.report).edges
        assert carried.channel == edge.channel and carried.projected == 0
    assert "fuse: true" in flow.to_yaml()
    (edge,) = flow_of(models, fuse=True).plan().edges
    assert edge.mode == "text" and edge.advice.endswith("--fuse")


def test_fuse_needs_a_projected_edge(models: Models) -> None:
    """Auto never fuses, and other channels cannot."""
    with pytest.raises(WorkflowError, match="fuse stands on an edge with channel auto"):
        reader_solver(models["one"], models["two"], "auto", fuse=True)
    assert not EdgeSpec(from_="a", to="b", channel="projected_cache").fuse


def test_a_channel_object_brings_its_mode(models: Models) -> None:
    """A channel given as an object fuses if it says so; one whose bridge cannot is refused."""
    bridge = FakeBridge(models["one"], models["two"])
    flow = reader_solver(models["one"], models["two"], ProjectedCacheChannel(bridge, mode="fuse"))
    assert flow.spec.edges[0].fuse and flow.plan().edges[0].mode == "fused"
    bridge = FakeBridge(models["one"], models["two"], fuses=False)
    channel = ProjectedCacheChannel(bridge, mode="fuse")
    with pytest.raises(BridgeError, match="without fuse mode"):
        reader_solver(models["one"], models["two"], channel, fallback="error")
