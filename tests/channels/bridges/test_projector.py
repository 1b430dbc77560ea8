"""The projector and its features, against plain formulas and plain transformers."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, make
from flows import Pair
from transformers import DynamicCache

from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.features import bare_rows, state_of, width
from unspoken.channels.bridges.fit.example import (
    answer_loss,
    divergence,
    example,
    head_of,
    none_losses,
    student,
    target_rows,
)
from unspoken.channels.bridges.fit.initialization import closed_form, start_from
from unspoken.channels.bridges.fit.ridge import Gram
from unspoken.channels.bridges.fit.samples import Sample, Target, TokenizedSample, prepare
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.validation import swapped
from unspoken.channels.bridges.manifest import BridgeManifest, FitData
from unspoken.channels.bridges.projection import feature_rows, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import load_quantized
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import BridgeError, IdentityMismatch
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import rotaries
from unspoken.channels.storage.side import ModelDescription

TEXT = "the reader of the document was that which is for the key and the value of a cache"
SAMPLE = Sample(TEXT, (Target("", " and this is what comes after"), Target(" question", " answer")))


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bare_rows_do_not_depend_on_position_in_the_first_layer(name: str) -> None:
    model = make(name)
    ids = list(range(5, 15))
    near = model.prefill(model.tensor(ids)).state
    far = model.prefill(model.tensor([*range(40, 47), *ids])).state
    geometry, ropes = model.geometry, rotaries(model)
    a = bare_rows(near, [0], torch.arange(10), geometry, ropes)
    b = bare_rows(far, [0], torch.arange(7, 17), geometry, ropes)
    assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_of_is_the_inverse_of_bare_rows(name: str) -> None:
    model = make(name)
    state = model.prefill(model.tensor(range(5, 25))).state
    layers, positions = range(len(model.geometry.layers)), torch.arange(3, 20)
    rows = bare_rows(state, layers, positions, model.geometry, rotaries(model))
    assert rows.shape == (17, width(model.geometry, layers))
    restored = state_of(rows, layers, 3, model)
    for mine, true in zip(restored.layers, state.slice(3, 20).layers, strict=True):
        assert torch.allclose(mine.keys, true.keys, atol=1e-4)
        assert torch.equal(mine.values, true.values)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("gemma3"), make("llama", seed=1)


@pytest.fixture(scope="module")
def sample(pair: Pair) -> TokenizedSample:
    return prepare(SAMPLE, *pair)


def full(model: LocalModel, sample: TokenizedSample) -> KVState:
    return model.prefill(model.tensor(sample.ids)).state


def config(**changes: int) -> ProjectorConfig:
    return ProjectorConfig(
        **{"source_layers": (1, 2), "rank": 8, "hidden": 16, "bottleneck": 4, **changes}
    )


def test_features_are_sharer_rows_then_this_token_then_the_one_before(pair: Pair) -> None:
    _, receiver = pair
    ids = (5, 6, 7, 8)
    rows = feature_rows(config(), torch.ones(3, 2), ids, 1, receiver, None)
    embedded = receiver.hf.get_input_embeddings()(torch.tensor(ids))
    assert torch.allclose(rows, torch.cat([torch.ones(3, 2), embedded[1:], embedded[:3]], dim=1))


def test_before_the_first_token_there_is_nothing(pair: Pair) -> None:
    rows = feature_rows(config(embeddings=3), torch.ones(2, 0), (5, 6), 0, pair[1], None)
    size = pair[1].geometry.hidden_size
    assert not rows[0, size:].any() and not rows[1, 2 * size :].any()
    assert torch.equal(rows[0, :size], rows[1, size : 2 * size])


def test_what_the_full_text_says_is_what_transformers_says(
    pair: Pair, sample: TokenizedSample
) -> None:
    sharer, receiver = pair
    ready = example(config(), sample, sharer, receiver, full(receiver, sample))
    for known, target in zip(ready.teacher, sample.targets, strict=True):
        logits = receiver.hf(torch.tensor([(*sample.ids, *target.ids)])).logits[
            0, -target.count - 1 : -1
        ]
        logs = logits.log_softmax(-1)
        loss = torch.nn.functional.nll_loss(logs, torch.tensor(target.ids[-target.count :]))
        assert torch.allclose(known.loss, loss, atol=1e-4)
        assert torch.allclose(known.logs[:, 0], logs.amax(-1), atol=1e-4)


def test_the_receivers_own_rows_give_the_full_texts_answers(
    pair: Pair, sample: TokenizedSample
) -> None:
    sharer, receiver = pair
    whole = full(receiver, sample)
    ready = example(config(), sample, sharer, receiver, whole)
    head = head_of(receiver, sample.ids, sample.at)
    said = student(receiver, ready, whole.slice(sample.at, len(sample.ids)), head)
    for logs, known in zip(said, ready.teacher, strict=True):
        assert abs(float(divergence(logs, known))) < 1e-5


def test_a_projector_that_knows_the_targets_restores_the_state(
    pair: Pair, sample: TokenizedSample
) -> None:
    """An offset that is one token's true rows comes out as that token's keys and values."""
    _, receiver = pair
    whole = full(receiver, sample)
    layers = range(len(receiver.geometry.layers))
    truth = target_rows(whole, sample, receiver, layers)
    projector = Projector(config(), make("gemma3").geometry, receiver.geometry)
    torch.nn.init.zeros_(projector.decode)
    projector.offset.copy_(truth[2])
    inputs = sum(config().features(make("gemma3").geometry, receiver.geometry))
    restored = projected_state(projector, torch.zeros(len(truth), inputs), (), sample.at, receiver)
    place = sample.at + 2
    for mine, true in zip(restored.layers, whole.layers, strict=True):
        assert torch.allclose(mine.keys[:, 2], true.keys[:, place], atol=1e-4)
        assert torch.allclose(mine.values[:, 2], true.values[:, place], atol=1e-5)


def test_the_residual_is_weighted_per_head() -> None:
    sharer, receiver = make("gemma3").geometry, make("llama").geometry
    torch.manual_seed(0)
    projector = Projector(config(), sharer, receiver)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter)
    code = draws(3, 8, 0)
    residual = projector.residual(code)
    hidden = torch.nn.functional.silu(projector.up(code * projector.code_scale))
    delta = projector.down(hidden) @ projector.spread
    weight, column, head = projector.weigh(hidden).sigmoid(), 0, 0
    for shape in receiver.layers:
        for _ in range(2 * shape.kv_heads):
            stop = column + shape.head_dim
            wanted = weight[:, head, None] * delta[:, column:stop]
            assert torch.allclose(residual[:, column:stop], wanted, atol=1e-5)
            column, head = stop, head + 1
    assert column == residual.shape[1]


def test_the_residual_begins_at_nothing() -> None:
    projector = Projector(config(), make("gemma3").geometry, make("llama").geometry)
    inputs = sum(config().features(make("gemma3").geometry, make("llama").geometry))
    gram = Gram(inputs, projector.offset.numel(), torch.device("cpu"))
    x = draws(300, inputs, 0)
    y = draws(300, projector.offset.numel(), 1) + x[:, :1]
    gram.add(x, y)
    solution = gram.solve()
    start_from(projector, solution, *solution.cut(8))
    plain = (x - solution.mean) * solution.scale @ projector.encode @ projector.decode
    assert torch.allclose(projector(x), plain * solution.deviation + solution.offset, atol=1e-4)
    code = (x - solution.mean) * solution.scale @ projector.encode * projector.code_scale
    assert torch.allclose(code.std(0), torch.ones(8), atol=0.2)


def test_a_sketch_stands_between_the_features_and_the_map(pair: Pair, source: str) -> None:
    """Each block is centred and brought to its components; stored weights do the same."""
    settings = FitSettings(
        sketch=4, source_layers=2, gram_tokens=300, rank=6, hidden=0, longest=None
    )
    form = closed_form(*pair, load_corpus([source]), settings, lambda progress: None)
    projector, ends = form.projector, [model.geometry for model in pair]
    config = projector.config
    assert (config.sketch, config.inputs(*ends)) == (4, (2 * 4, 2 * 8))
    features = draws(9, sum(config.features(*ends)), 3)
    parts = (features - projector.origin).split([size for size, _ in config.blocks(*ends)], dim=1)
    read = torch.cat([part @ getattr(projector, f"sketch_{n}") for n, part in enumerate(parts)], 1)
    code = (read - projector.mean) * projector.scale @ projector.encode
    plain = (code @ projector.decode * projector.deviation + projector.offset).detach()
    assert torch.allclose(projector(features), plain, atol=1e-4)
    stored = load_quantized(lambda: Projector(config, *ends), tensors_of(projector), "weights")
    assert torch.allclose(stored(features), plain, atol=0.1 * float(plain.std()))


def test_gradients_reach_every_weight(pair: Pair, sample: TokenizedSample) -> None:
    sharer, receiver = pair
    ready = example(config(), sample, sharer, receiver, full(receiver, sample))
    projector = Projector(config(), sharer.geometry, receiver.geometry)
    torch.manual_seed(0)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = projected_state(projector, ready.features, (), ready.at, receiver)
    said = student(receiver, ready, state, head_of(receiver, ready.ids, ready.at), grad=True)
    torch.stack(
        [divergence(a, b) for a, b in zip(said, ready.teacher, strict=True)]
    ).sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_without_the_message_only_its_ends_are_read(pair: Pair, sample: TokenizedSample) -> None:
    _, receiver = pair
    target = sample.targets[1]
    answer = torch.tensor(target.ids[-target.count :])
    ids = torch.tensor([(*sample.ids[:4], sample.ids[-1], *target.ids)])
    logits = receiver.hf(ids, past_key_values=DynamicCache()).logits[0, -target.count - 1 : -1]
    plain = torch.nn.functional.cross_entropy(logits, answer)
    assert torch.allclose(none_losses(receiver, sample)[1], plain, atol=1e-4)
    assert torch.allclose(answer_loss(logits.log_softmax(-1), target), plain, atol=1e-5)


def test_another_examples_state_keeps_the_receivers_own_features(
    pair: Pair, sample: TokenizedSample
) -> None:
    sharer, receiver = pair
    ready = example(config(), sample, sharer, receiver, full(receiver, sample))
    short = prepare(Sample("of the key", (Target("", " is"),)), sharer, receiver)
    other = example(config(), short, sharer, receiver, full(receiver, short))
    columns = width(sharer.geometry, (1, 2))
    mixed = swapped(ready, other, columns)
    assert torch.equal(mixed.features[:, columns:], ready.features[:, columns:])
    assert torch.equal(mixed.features[len(other.features), :columns], other.features[0, :columns])


def test_native_layers_keep_their_own_keys_and_values(pair: Pair, sample: TokenizedSample) -> None:
    sharer, receiver = pair
    whole = full(receiver, sample)
    ready = example(config(native_layers=2), sample, sharer, receiver, whole)
    for mine, true in zip(ready.native, whole.layers, strict=False):
        assert torch.allclose(mine.keys, true.keys[:, sample.at :], atol=1e-4)
        assert torch.allclose(mine.values, true.values[:, sample.at :], atol=1e-4)
    assert len(ready.native) == 2


def bridge_of(sharer: LocalModel, receiver: LocalModel, **changes: int) -> Bridge:
    torch.manual_seed(0)
    settings = config(**changes)
    projector = Projector(settings, sharer.geometry, receiver.geometry)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    manifest = BridgeManifest.new(
        ModelDescription.of(sharer, "their/model"),
        ModelDescription.of(receiver, "our/model"),
        config=settings.to_dict(),
        dtype="float32",
        data=FitData(sources=("x",), digest="0", tokens=1, seed=0),
        fit={},
    )
    return Bridge.from_tensors(manifest, tensors_of(projector), "cpu")


@pytest.mark.parametrize("native", [0, 2])
def test_a_bridge_projects_as_its_training_did(
    pair: Pair, sample: TokenizedSample, native: int
) -> None:
    """What `project` makes in a turn is what the fit saw for the same message."""
    sharer, receiver = pair
    bridge = bridge_of(sharer, receiver, native_layers=native)
    state = bridge.project(sample.state, sample.rows.tolist(), sample.ids, sample.at, receiver)
    seen = example(bridge.projector.config, sample, sharer, receiver, full(receiver, sample))
    wanted = projected_state(
        bridge.projector, seen.features.float(), seen.native, sample.at, receiver
    )
    assert (state.start, state.stop, state.identity) == (
        sample.at,
        len(sample.ids),
        receiver.identity,
    )
    for mine, true in zip(state.layers, wanted.layers, strict=True):
        assert torch.allclose(mine.keys, true.keys, atol=5e-3)
        assert torch.allclose(mine.values, true.values, atol=5e-3)


def test_a_bridge_refuses_other_models(pair: Pair) -> None:
    bridge = bridge_of(*pair)
    bridge.check(*pair)
    with pytest.raises(IdentityMismatch, match="the receiver"):
        bridge.check(pair[0], make("llama", seed=9))


def test_a_bridge_fitted_on_wrongly_turned_keys_is_refused() -> None:
    """A manifest that takes a bare layer for rotated was fitted before layers were proved."""
    pair = make("smollm3, no rotation in layer 2"), make("llama", seed=1)
    bridge = bridge_of(*pair)
    bridge.check(*pair)
    stored = json.loads(bridge.manifest.model_dump_json())
    stored["sharer"]["geometry"]["layers"][2]["rope"] = "default"
    bridge.manifest = BridgeManifest.model_validate(stored)
    with pytest.raises(BridgeError, match=r"layer 2 .* rotated by default") as caught:
        bridge.check(*pair)
    assert "--refit" in caught.value.fix


def test_weights_of_another_shape_are_refused(pair: Pair) -> None:
    bridge = bridge_of(*pair)
    tensors = tensors_of(bridge.projector)
    tensors["encode"] = tensors["encode"][:-1]
    with pytest.raises(BridgeError, match="do not fit"):
        Bridge.from_tensors(bridge.manifest, tensors, "cpu")
