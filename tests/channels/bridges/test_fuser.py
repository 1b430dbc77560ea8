"""Fuse mode: a fuser is fitted, stored, planned and run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from architectures import make
from fake_bridge import FakeBridge, finder
from flows import DOCUMENT, QUESTION, own_cache, reader_solver, sound, tiny_model
from fusers import CORPUS, PIECES, SMALL, bridge_between, fuser_between
from projections import WORDS, context_of, message_of, report, take
from tiny import tiny_tokenizer
from torch.overrides import TorchFunctionMode

from unspoken.agents import LocalModel, Workflow
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.channels import KVState, ProjectedCacheChannel, SameModelCacheChannel, TextChannel
from unspoken.channels.bridges.align import align
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.fit.fuse_example import fuse_input, fused_context, tail_losses
from unspoken.channels.bridges.fit.fuse_samples import choice_prompt, teach_fusing
from unspoken.channels.bridges.fit.fuse_training import fit_fuser
from unspoken.channels.bridges.fit.progress import FuseProgress
from unspoken.channels.bridges.fit.samples import Sample, Target, prepare
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.errors import BridgeError, WorkflowError

LESSON = Sample("the question of the reader", (Target("", " was in the document"),))


@pytest.fixture(scope="module")
def pair() -> tuple[LocalModel, LocalModel]:
    return make("gemma3"), make("qwen2", 1)


@pytest.mark.parametrize(
    "name", ["llama, yarn", "gemma2", "mistral, window", "gpt-neox, partial rotary"]
)
def test_an_untrained_fuser_leaves_the_receivers_own_cache(name: str) -> None:
    """In every geometry an untrained fuser changes nothing, and a trained one does."""
    sharer, receiver = make("qwen3"), make(name, 1)
    case = prepare(LESSON, sharer, receiver)
    for trained in (False, True):
        fuser = fuser_between(sharer, receiver, trained=trained)
        made = fuse_input(fuser.config, case, sharer, receiver)
        own = receiver.prefill(receiver.tensor(case.ids)).state
        head, state = fused_context(fuser, made, receiver)
        assert (head.start, head.stop, state.stop) == (0, state.start, len(case.ids) - 1)
        same = [
            torch.allclose(mine.keys, layer.keys, atol=1e-4)
            and torch.allclose(mine.values, layer.values, atol=1e-4)
            for mine, layer in zip(
                own.slice(state.start, state.stop).layers, state.layers, strict=True
            )
        ]
        assert all(same) != trained
        ((alone,), (fused,)) = (tail_losses(one, made, receiver) for one in (None, fuser))
        assert torch.isclose(alone, fused, atol=1e-4) != trained


def test_the_state_s_first_positions_stay_the_receiver_s(
    pair: tuple[LocalModel, LocalModel],
) -> None:
    """The attention sink is not touched."""
    sharer, receiver = pair
    fuser = fuser_between(sharer, receiver, trained=True)
    made = fuse_input(fuser.config, prepare(LESSON, sharer, receiver), sharer, receiver)
    own = receiver.prefill(receiver.tensor(made.case.ids)).state
    head, _ = fused_context(fuser, made, receiver)
    assert len(head) >= 4
    for mine, layer in zip(head.layers, own.slice(0, len(head)).layers, strict=True):
        assert torch.equal(mine.keys, layer.keys)


@pytest.mark.parametrize("alone", [False, True])
def test_a_fit_is_seeded_and_never_worse_than_the_receiver(
    pair: tuple[LocalModel, LocalModel], alone: bool
) -> None:
    """The same seed gives the same weights, also with the receiver as its own sharer."""
    sharer, receiver = (pair[1], pair[1]) if alone else pair
    settings = FuseSettings(**SMALL, steps=8, residual_rate=1e-2)
    stages = []
    first = fit_fuser(sharer, receiver, CORPUS, settings, lambda one: stages.append(one.stage))
    second = fit_fuser(sharer, receiver, CORPUS, settings)
    assert stages[0] == "gram" and "train" in stages and stages[-1] == "done"
    assert first.figures["fuse_steps"] == 8 and first.tokens > 700
    gains = [
        value
        for name, value in first.figures.items()
        if "gain" in name and isinstance(value, float)
    ]
    assert sum(gains) >= 0 and bool(gains) == bool(first.fuser.spread.abs().max() > 0)
    for name, tensor in first.fuser.state_dict().items():
        assert torch.equal(tensor, second.fuser.state_dict()[name]), name


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_stopped_fit_ends_where_it_would_have_ended(
    pair: tuple[LocalModel, LocalModel], tmp_path: Path, rounds: int
) -> None:
    """A stopped fit goes on to the same weights and figures."""
    settings = FuseSettings(**{**SMALL, "every": 0.0}, steps=8, residual_rate=1e-2)
    whole = fit_fuser(*pair, CORPUS, settings)
    stages: list[str] = []

    def stop(one: FuseProgress) -> None:
        stages.append(one.stage)
        if stages.count("train") == rounds > 0 or one.stage == "done":
            raise KeyboardInterrupt

    first = settings if rounds else replace(settings, steps=0)
    with pytest.raises(KeyboardInterrupt):
        fit_fuser(*pair, CORPUS, first, stop, work=tmp_path)
    (file,) = tmp_path.glob("fuse-*.pt")
    assert torch.load(file, weights_only=True)["step"] == 2 * rounds
    stages.clear()
    again = fit_fuser(*pair, CORPUS, settings, lambda one: stages.append(one.stage), work=tmp_path)
    assert "gram" not in stages and stages.count("train") == 4 - rounds
    assert again.tokens == whole.tokens
    timeless = [
        {name: value for name, value in one.figures.items() if "minutes" not in name}
        for one in (again, whole)
    ]
    assert timeless[0] == timeless[1] and timeless[0]["fuse_steps"] == 8
    for name, tensor in whole.fuser.state_dict().items():
        assert torch.equal(tensor, again.fuser.state_dict()[name]), name
    other = replace(settings, seed=1, steps=0)
    fit_fuser(*pair, CORPUS, other, lambda one: stages.append(one.stage), work=tmp_path)
    assert "gram" in stages and len(list(tmp_path.iterdir())) == 2  # its own, beside the other's


def test_steps_can_be_taken_in_a_cheaper_dtype(pair: tuple[LocalModel, LocalModel]) -> None:
    """The closed form is that of the models themselves, and the steps run on their casts."""
    train_models = pair[0].cast(torch.bfloat16), pair[1].cast(torch.bfloat16)
    settings = FuseSettings(**SMALL, steps=4, residual_rate=1e-2)
    cast = fit_fuser(*pair, CORPUS, settings, train_models=train_models)
    plain = fit_fuser(*pair, CORPUS, settings)
    assert torch.equal(cast.fuser.mean, plain.fuser.mean)
    assert cast.figures["fuse_steps"] == 4


def test_training_lowers_the_loss_it_trains_on(pair: tuple[LocalModel, LocalModel]) -> None:
    """Gradients reach all parameters, and a few steps on one input help on it."""
    sharer, receiver = pair
    fuser = fuser_between(sharer, receiver, trained=True).requires_grad_(True)
    made = fuse_input(fuser.config, prepare(LESSON, sharer, receiver), sharer, receiver)
    optimizer = torch.optim.Adam(fuser.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        (loss,) = tail_losses(fuser, made, receiver, grad=True)
        torch.autograd.backward(loss)
        assert all(
            one.grad is not None and bool(one.grad.abs().max() > 0) for one in fuser.parameters()
        )
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


def test_held_out_questions_are_never_trained_on() -> None:
    """A question of common knowledge stands on one side only."""

    def asked(*, held_out: bool) -> set[tuple[str, str]]:
        lessons = teach_fusing(iter(lambda: PIECES[0], ""), 3, held_out=held_out)
        drawn = [next(lessons) for _ in range(400)]
        return {
            (one.text.removeprefix("Question: ").partition("\n")[0], one.tails[0].answer)
            for one in drawn if one.tails[0].kind == "choice"
        }  # fmt: skip

    trained, kept = asked(held_out=False), asked(held_out=True)
    assert len(trained) > 50 and len(kept) > 20 and not trained & kept
    assert choice_prompt("who?", "me") == "Question: who?\nHint: me\nAnswer:"


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_fuser_lives_in_its_bridge_s_folder(
    pair: tuple[LocalModel, LocalModel], tmp_path: Path, dtype: str
) -> None:
    """Written and read again it fuses as before; a folder without one has no fuse mode."""
    fuser = fuser_between(*pair, trained=True)
    bridge = bridge_between(*pair, tmp_path / "with", fuser, dtype)
    assert bridge.fuses and bridge.fuser is not None and bridge.fuser.config == fuser.config
    for name, tensor in fuser.state_dict().items():
        torch.testing.assert_close(bridge.fuser.state_dict()[name], tensor, atol=2e-2, rtol=0)
    plain = bridge_between(*pair, tmp_path / "without", None)
    assert not plain.fuses and plain.fuser is None
    state = pair[0].prefill(pair[0].tensor(range(3, 9))).state
    own = pair[1].prefill(pair[1].tensor(range(3, 9))).state
    made = bridge.fuse(state, [4, 5], own, 4, pair[1])
    assert (made.start, made.stop, made.approximate_from) == (4, 6, 4)
    with pytest.raises(BridgeError, match="without fuse mode") as caught:
        plain.fuse(state, [4, 5], own, 4, pair[1])
    assert caught.value.fix == "unspoken bridge fit their/model our/model --fuse"


def test_a_fuser_that_does_not_fit_its_configuration_is_refused(
    pair: tuple[LocalModel, LocalModel], tmp_path: Path
) -> None:
    """Weights without a configuration, or the reverse, are an error."""
    fuser = fuser_between(*pair, trained=True)
    manifest = bridge_between(*pair, tmp_path / "a", fuser).manifest
    config = {name: value for name, value in manifest.config.items() if name != "fuse"}
    projector = Projector(ProjectorConfig.from_dict(config), pair[0].geometry, pair[1].geometry)
    with pytest.raises(BridgeError, match="fuse weights do not fit"):
        Bridge.from_tensors(manifest, tensors_of(projector), "cpu")
    bare = manifest.model_copy(update={"config": config})
    with pytest.raises(BridgeError, match="fuse weights do not fit"):
        Bridge.from_tensors(bare, tensors_of(projector, "int8", fuser), "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalModel]]:
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        two = tiny_tokenizer((" reader", " document", "tion", " and"))
        yield {
            "one": tiny_model(folder / "one"),
            "two": tiny_model(folder / "two", 1, tokenizer=two, num_hidden_layers=3),
        }


@pytest.mark.parametrize("before", ["", "some words first"])
def test_the_channel_enriches_the_receiver_s_own_rows(
    models: dict[str, LocalModel], tmp_path: Path, before: str
) -> None:
    """An untrained fuser writes what text writes; all its tokens count as prefilled."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS, before="something else")
    context = context_of(receiver, *([before] if before else []), message, "who?")
    text = take(receiver, context, (message, TextChannel()))
    for trained in (False, True):
        fuser = fuser_between(sharer, receiver, trained=trained)
        bridge = bridge_between(sharer, receiver, tmp_path / str(trained), fuser, "float32")
        fused = take(receiver, context, (message, ProjectedCacheChannel(bridge, mode="fuse")))
        told, usage = report(fused), fused.usage
        assert told.reason.startswith("fused: bridge their/model -> our/model") and not told.exact
        assert (told.reused, told.repaired, told.projected) == (0, 0, 0) and told.bytes > 0
        assert usage.prefilled_tokens == usage.prompt_tokens == text.usage.prompt_tokens
        (span,) = context.texts(message)
        stop = span.at + span.length
        assert told.layer_tokens == 3 * stop
        assert usage.layer_tokens_computed == told.layer_tokens + 3 * (usage.prompt_tokens - stop)
        assert fused.state is not None and text.state is not None
        close = [
            torch.allclose(one.values, other.values, atol=1e-3)
            for one, other in zip(fused.state.layers, text.state.layers, strict=True)
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
    models: dict[str, LocalModel],
    tmp_path: Path,
    mode: Literal["prefix", "fuse"],
    monkeypatch: pytest.MonkeyPatch,
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
        take(receiver, context, (message, channel))
    heads, rows, size = message.state.layers[0].keys.shape
    (span,), (segment,) = context.texts(message), message.segments
    words = len(set(align(segment.ends, span.ends)))
    assert rows > words and len(message.state.layers) > 1
    assert not any(state is message.state for state in whole)
    layers = {"prefix": 1, "fuse": 2}[mode]
    assert moves.shapes[: 2 * layers] == [(heads, words, size)] * (2 * layers)
    assert (heads, rows, size) not in moves.shapes


def test_two_fused_messages_are_both_enriched(models: dict[str, LocalModel]) -> None:
    """A fused message's prefill replaces neither another's rows nor an exact prefix."""
    sharer, receiver = models["one"], models["two"]
    first, second = (message_of(sharer, f"{n} {WORDS}", name=n) for n in ("a", "b"))
    own = message_of(receiver, WORDS, name="own")
    context = context_of(receiver, own, first, "and", second, "who?")
    fuse = ProjectedCacheChannel(FakeBridge(sharer, receiver), mode="fuse")
    outcome = take(receiver, context, (own, SameModelCacheChannel()), (first, fuse), (second, fuse))
    alone = take(receiver, context)
    assert outcome.state is not None and alone.state is not None
    for span in context.texts(first) + context.texts(second):
        rows = slice(span.at, span.at + span.length)
        for one, other in zip(outcome.state.layers, alone.state.layers, strict=True):
            torch.testing.assert_close(one.values[:, rows], other.values[:, rows] * 1.5)
    usage = outcome.usage
    assert (
        usage.prompt_tokens
        == usage.prefilled_tokens + usage.reused_tokens + usage.recomputed_tokens
    )
    assert report(outcome, 1).reused == report(outcome, 2).reused == 0


def flow_of(models: dict[str, LocalModel], **edge: Any) -> Workflow:
    return reader_solver(models["one"], models["two"], "projected_cache", **edge)


def test_an_edge_asks_for_fuse_mode(models: dict[str, LocalModel], tmp_path: Path) -> None:
    """Planned whatever the audit; without a fuser the edge is text, with advice."""
    bridges = {
        fuses: FakeBridge(models["one"], models["two"], None, fuses=fuses)
        for fuses in (True, False)
    }
    for fuses, bridge in bridges.items():
        flow = flow_of(models, fuse=True, share="prompt")
        flow.bridge_shelf.find = finder(bridge)  # type: ignore[method-assign]
        (edge,) = flow.plan().edges
        assert edge.mode == ("fused" if fuses else "text")
        assert edge.channel == ("projected_cache" if fuses else "text")
        assert edge.retention is None
        assert ("reads the message itself" if fuses else "without fuse mode") in edge.reason
        assert fuses or edge.advice == "unspoken bridge fit their/model our/model --fuse"
        result = flow.run(document=DOCUMENT, question=QUESTION)
        (told,) = sound(result.report).edges
        assert told.channel == edge.channel and told.projected == 0
    assert "fuse: true" in flow.to_yaml()
    (edge,) = flow_of(models, fuse=True).plan().edges
    assert edge.mode == "text" and edge.advice.endswith("--fuse")


def test_fuse_needs_a_projected_edge(models: dict[str, LocalModel]) -> None:
    """Auto never fuses, and other channels cannot."""
    with pytest.raises(WorkflowError, match="fuse stands on an edge with channel auto"):
        reader_solver(models["one"], models["two"], "auto", fuse=True)
    assert not EdgeSpec(from_="a", to="b", channel="projected_cache").fuse


def test_a_channel_object_brings_its_mode(models: dict[str, LocalModel]) -> None:
    """A channel given as an object fuses if it says so; one whose bridge cannot is refused."""
    bridge = FakeBridge(models["one"], models["two"])
    flow = reader_solver(models["one"], models["two"], ProjectedCacheChannel(bridge, mode="fuse"))
    assert flow.spec.edges[0].fuse and flow.plan().edges[0].mode == "fused"
    bridge = FakeBridge(models["one"], models["two"], fuses=False)
    channel = ProjectedCacheChannel(bridge, mode="fuse")
    with pytest.raises(BridgeError, match="without fuse mode"):
        reader_solver(models["one"], models["two"], channel, fallback="error")
