"""The projector and its features, against plain formulas and plain transformers."""

import random

import pytest
import torch
from architectures import ARCHITECTURES, make
from transformers import DynamicCache

from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.features import bare_rows, layer_states, width
from unspoken.channels.bridges.fit.example import (
    answer_loss,
    divergence,
    example,
    head_of,
    none_losses,
    student,
    target_rows,
)
from unspoken.channels.bridges.fit.initialization import (
    LEAST,
    projector_bytes,
    start_from,
    widest_rank,
)
from unspoken.channels.bridges.fit.ridge import Gram, choose_layers
from unspoken.channels.bridges.fit.samples import Sample, Target, TokenizedSample, prepare, teach
from unspoken.channels.bridges.fit.validation import swapped
from unspoken.channels.bridges.manifest import BridgeManifest, FitData
from unspoken.channels.bridges.projection import feature_rows, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import GROUP, pack, unpack
from unspoken.channels.data.text import load_corpus
from unspoken.channels.errors import BridgeError, IdentityMismatch
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import rotaries
from unspoken.channels.storage.side import ModelDescription

TEXT = "the reader of the document was that which is for the key and the value of a cache"
LESSON = Sample(TEXT, (Target("", " and this is what comes after"), Target(" question", " answer")))


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def solved(penalty: float, chunks: int = 3) -> tuple[Gram, torch.Tensor, torch.Tensor]:
    x = draws(240, 7, 0) * torch.arange(1, 8) + 40
    y = x @ draws(7, 5, 1) + 0.1 * draws(240, 5, 2) - 3
    gram = Gram(7, 5, torch.device("cpu"))
    for part, target in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
        gram.add(part, target)
    return gram, x, y


def standard(rows: torch.Tensor) -> torch.Tensor:
    return (rows - rows.mean(0)) / rows.std(0, unbiased=False)


def test_the_streamed_solution_is_the_ridge_of_all_rows_at_once() -> None:
    gram, x, y = solved(1e-3)
    a, b = standard(x.double()), standard(y.double())
    plain = torch.linalg.solve(a.T @ a / len(a) + 1e-3 * torch.eye(7), a.T @ b / len(a))
    assert torch.allclose(gram.solve(penalty=1e-3).full().double(), plain, atol=1e-3)


def test_a_full_rank_cut_is_the_uncut_map() -> None:
    solution = solved(1e-3)[0].solve()
    encode, decode = solution.cut(5)
    assert torch.allclose(encode @ decode, solution.full(), atol=1e-4)


def test_a_cut_is_the_best_map_of_its_rank() -> None:
    solution = solved(1e-3)[0].solve()
    encode, decode = solution.cut(2)
    best = torch.linalg.svd(solution.half).S[2:].square().sum()
    kept = solution.factor.T @ encode @ decode
    assert torch.allclose((kept - solution.half).square().sum(), best, rtol=1e-2, atol=1e-5)


def test_a_rank_beyond_what_there_is_is_padded() -> None:
    encode, decode = solved(1e-3)[0].solve().cut(9)
    assert encode.shape == (7, 9) and decode.shape == (9, 5)
    assert not encode[:, 5:].any()


def test_some_columns_are_solved_alone() -> None:
    gram, x, y = solved(1e-3)
    alone = Gram(3, 5, torch.device("cpu"))
    alone.add(x[:, :3], y)
    part = gram.solve(torch.arange(3))
    assert torch.allclose(part.full(), alone.solve().full(), atol=1e-3)


def test_a_column_that_never_varies_says_nothing() -> None:
    gram = Gram(2, 1, torch.device("cpu"))
    x = torch.cat([draws(50, 1, 0), torch.full((50, 1), 3.0)], dim=1)
    gram.add(x, x[:, :1])
    weights = gram.solve().full()
    assert weights[1].abs() < 1e-5 and torch.isfinite(weights).all()


def test_the_layer_that_explains_the_target_is_chosen_first() -> None:
    blocks = [draws(400, 8, seed) for seed in range(4)]
    target = blocks[2] @ draws(8, 6, 9)
    assert choose_layers(blocks, blocks[0][:, :0], target, 1) == (2,)


def test_a_layer_that_repeats_another_is_chosen_last() -> None:
    blocks = [draws(400, 8, seed) for seed in range(3)]
    blocks[1] = blocks[0] + 0.01 * draws(400, 8, 7)
    target = torch.cat([blocks[0] @ draws(8, 6, 9), blocks[2] @ draws(8, 3, 10)], dim=1)
    chosen = choose_layers(blocks, blocks[0][:, :0], target, 2)
    assert 2 in chosen and set(chosen) != {0, 1}


@pytest.mark.parametrize("always", [0, 5])
def test_layers_are_chosen_as_ridges_solved_one_by_one_choose_them(always: int) -> None:
    """Each next layer is the one whose ridge, with all before it, has the least loss."""
    blocks = [draws(300, 6, seed) for seed in range(6)]
    known = draws(300, always, 11)
    target = sum(
        (one @ draws(6, 9, n) * (n + 1) for n, one in enumerate(blocks)), draws(300, 9, 12)
    )
    wanted, *parts = ((one - one.mean(dim=0)) / one.std(dim=0) for one in (target, *blocks))
    base = (known - known.mean(dim=0)) / known.std(dim=0) if always else known
    order: list[int] = []
    while len(order) < 4:
        losses = {}
        for number in sorted(set(range(6)) - set(order)):
            x = torch.cat([base, *(parts[n] for n in (*order, number))], dim=1)
            square = x[:150].mT @ x[:150] + 1.5 * torch.eye(x.shape[1])
            weights = torch.linalg.solve(square, x[:150].mT @ wanted[:150])
            losses[number] = float((wanted[150:] - x[150:] @ weights).square().mean())
        order.append(min(losses, key=losses.__getitem__))
    assert choose_layers(blocks, known, target, 4) == tuple(order)
    assert choose_layers(blocks, known, target, 2) == tuple(order[:2])


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
def test_layer_states_is_the_inverse_of_bare_rows(name: str) -> None:
    model = make(name)
    state = model.prefill(model.tensor(range(5, 25))).state
    layers, positions = range(len(model.geometry.layers)), torch.arange(3, 20)
    rows = bare_rows(state, layers, positions, model.geometry, rotaries(model))
    assert rows.shape == (17, width(model.geometry, layers))
    made = layer_states(rows, layers, positions, 3, model.geometry, rotaries(model), torch.float32)
    for mine, true in zip(made, state.slice(3, 20).layers, strict=True):
        assert torch.allclose(mine.keys, true.keys, atol=1e-4)
        assert torch.equal(mine.values, true.values)


@pytest.fixture(scope="module")
def pair() -> tuple[LocalModel, LocalModel]:
    return make("gemma3"), make("llama", seed=1)


@pytest.fixture(scope="module")
def case(pair: tuple[LocalModel, LocalModel]) -> TokenizedSample:
    return prepare(LESSON, *pair)


def full(model: LocalModel, case: TokenizedSample) -> KVState:
    return model.prefill(model.tensor(case.ids)).state


def config(**changes: int) -> ProjectorConfig:
    return ProjectorConfig(
        **{"source_layers": (1, 2), "rank": 8, "hidden": 16, "bottleneck": 4, **changes}
    )


def test_features_are_sharer_rows_then_this_token_then_the_one_before(
    pair: tuple[LocalModel, LocalModel],
) -> None:
    _, receiver = pair
    ids = (5, 6, 7, 8)
    rows = feature_rows(config(), torch.ones(3, 2), ids, 1, receiver, None)
    embedded = receiver.hf.get_input_embeddings()(torch.tensor(ids))
    assert torch.allclose(rows, torch.cat([torch.ones(3, 2), embedded[1:], embedded[:3]], dim=1))


def test_before_the_first_token_there_is_nothing(pair: tuple[LocalModel, LocalModel]) -> None:
    rows = feature_rows(config(embeddings=3), torch.ones(2, 0), (5, 6), 0, pair[1], None)
    size = pair[1].geometry.hidden_size
    assert not rows[0, size:].any() and not rows[1, 2 * size :].any()
    assert torch.equal(rows[0, :size], rows[1, size : 2 * size])


def test_what_the_full_text_says_is_what_transformers_says(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    sharer, receiver = pair
    made = example(config(), case, sharer, receiver, full(receiver, case))
    for known, (tail, count) in zip(made.taught, case.tails, strict=True):
        logits = receiver.hf(torch.tensor([(*case.ids, *tail)])).logits[0, -count - 1 : -1]
        logs = logits.log_softmax(-1)
        loss = torch.nn.functional.nll_loss(logs, torch.tensor(tail[-count:]))
        assert torch.allclose(known.loss, loss, atol=1e-4)
        assert torch.allclose(known.logs[:, 0], logs.amax(-1), atol=1e-4)


def test_the_receivers_own_rows_give_the_full_texts_answers(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    sharer, receiver = pair
    own = full(receiver, case)
    made = example(config(), case, sharer, receiver, own)
    head = head_of(receiver, case.ids, case.at)
    said = student(receiver, made, own.slice(case.at, len(case.ids)), head)
    for logs, known in zip(said, made.taught, strict=True):
        assert abs(float(divergence(logs, known))) < 1e-5


def test_a_projector_that_knows_the_targets_restores_the_state(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    """An offset that is one token's true rows comes out as that token's keys and values."""
    _, receiver = pair
    own = full(receiver, case)
    layers = range(len(receiver.geometry.layers))
    truth = target_rows(own, case, receiver, layers)
    projector = Projector(config(), make("gemma3").geometry, receiver.geometry)
    torch.nn.init.zeros_(projector.decode)
    projector.offset.copy_(truth[2])
    inputs = sum(config().features(make("gemma3").geometry, receiver.geometry))
    made = projected_state(projector, torch.zeros(len(truth), inputs), (), case.at, receiver)
    at = case.at + 2
    for mine, true in zip(made.layers, own.layers, strict=True):
        assert torch.allclose(mine.keys[:, 2], true.keys[:, at], atol=1e-4)
        assert torch.allclose(mine.values[:, 2], true.values[:, at], atol=1e-5)


def test_the_residual_is_weighted_per_head_and_gated_per_layer() -> None:
    sharer, receiver = make("gemma3").geometry, make("llama").geometry
    torch.manual_seed(0)
    projector = Projector(config(), sharer, receiver)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter)
    code = draws(3, 8, 0)
    found = projector.residual(code)
    hidden = torch.nn.functional.silu(projector.up(code * projector.code_scale))
    delta = projector.down(hidden) @ projector.spread
    weight, at, head = projector.weigh(hidden).sigmoid(), 0, 0
    for layer, shape in enumerate(receiver.layers):
        gate = projector.gate[layer].sigmoid()
        for _ in range(2 * shape.kv_heads):
            stop = at + shape.head_dim
            wanted = gate * weight[:, head, None] * delta[:, at:stop]
            assert torch.allclose(found[:, at:stop], wanted, atol=1e-5)
            at, head = stop, head + 1
    assert at == found.shape[1]


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


def test_gradients_reach_every_weight(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    sharer, receiver = pair
    made = example(config(), case, sharer, receiver, full(receiver, case))
    projector = Projector(config(), sharer.geometry, receiver.geometry)
    torch.manual_seed(0)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = projected_state(projector, made.features, (), made.at, receiver)
    said = student(receiver, made, state, head_of(receiver, made.ids, made.at), grad=True)
    torch.stack([divergence(a, b) for a, b in zip(said, made.taught, strict=True)]).sum().backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_without_the_message_only_its_ends_are_read(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    _, receiver = pair
    (tail, count) = case.tails[1]
    ids = torch.tensor([(*case.ids[:4], case.ids[-1], *tail)])
    logits = receiver.hf(ids, past_key_values=DynamicCache()).logits[0, -count - 1 : -1]
    plain = torch.nn.functional.cross_entropy(logits, torch.tensor(tail[-count:]))
    assert torch.allclose(none_losses(receiver, case)[1], plain, atol=1e-4)
    assert torch.allclose(answer_loss(logits.log_softmax(-1), tail, count), plain, atol=1e-5)


def test_another_examples_state_keeps_the_receivers_own_features(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    sharer, receiver = pair
    made = example(config(), case, sharer, receiver, full(receiver, case))
    short = prepare(Sample("of the key", (Target("", " is"),)), sharer, receiver)
    other = example(config(), short, sharer, receiver, full(receiver, short))
    columns = width(sharer.geometry, (1, 2))
    mixed = swapped(made, other, columns)
    assert torch.equal(mixed.features[:, columns:], made.features[:, columns:])
    assert torch.equal(mixed.features[len(other.features), :columns], other.features[0, :columns])


def test_native_layers_keep_their_own_keys_and_values(
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample
) -> None:
    sharer, receiver = pair
    own = full(receiver, case)
    made = example(config(native_layers=2), case, sharer, receiver, own)
    for mine, true in zip(made.native, own.layers, strict=False):
        assert torch.allclose(mine.keys, true.keys[:, case.at :], atol=1e-4)
        assert torch.allclose(mine.values, true.values[:, case.at :], atol=1e-4)
    assert len(made.native) == 2


def test_lessons_repeat_with_their_seed_and_have_every_kind() -> None:
    corpus = load_corpus(["builtin"])
    first = [next_ for next_, _ in zip(teach(corpus.stream(3), 3), range(60), strict=False)]
    again = [next_ for next_, _ in zip(teach(corpus.stream(3), 3), range(60), strict=False)]
    assert first == again
    kinds = {tail.kind for lesson in first for tail in lesson.tails}
    assert kinds == {"text", "copy", "fact", "cloze", "recall"}


def test_int8_weights_are_within_half_a_step() -> None:
    tensor = draws(130, 67, 0)
    packed = pack({"encode": tensor, "gate": draws(1, 4, 1)[0]})
    assert packed["encode"].dtype == torch.int8 and packed["gate"].dtype == torch.float32
    steps = packed["encode.scale"].float().repeat_interleave(GROUP)[: tensor.numel()]
    error = (unpack(packed)["encode"] - tensor).abs().flatten()
    assert bool((error <= 0.51 * steps).all())


def test_weights_stored_whole_come_back_whole() -> None:
    tensor = draws(130, 67, 0)
    assert torch.equal(unpack(pack({"encode": tensor}, "float32"))["encode"], tensor)


def test_int8_weights_without_scales_are_refused() -> None:
    packed = pack({"encode": draws(130, 67, 0)})
    del packed["encode.scale"]
    with pytest.raises(BridgeError, match=r"'encode' have no scales"):
        unpack(packed)


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
    pair: tuple[LocalModel, LocalModel], case: TokenizedSample, native: int
) -> None:
    """What `project` makes in a turn is what the fit saw for the same message."""
    sharer, receiver = pair
    bridge = bridge_of(sharer, receiver, native_layers=native)
    made = bridge.project(case.state, case.rows.tolist(), case.ids, case.at, receiver)
    seen = example(bridge.projector.config, case, sharer, receiver, full(receiver, case))
    wanted = projected_state(
        bridge.projector, seen.features.float(), seen.native, case.at, receiver
    )
    assert (made.start, made.stop, made.identity) == (case.at, len(case.ids), receiver.identity)
    for mine, true in zip(made.layers, wanted.layers, strict=True):
        assert torch.allclose(mine.keys, true.keys, atol=5e-3)
        assert torch.allclose(mine.values, true.values, atol=5e-3)


def test_a_bridge_refuses_other_models(pair: tuple[LocalModel, LocalModel]) -> None:
    bridge = bridge_of(*pair)
    bridge.check(*pair)
    with pytest.raises(IdentityMismatch, match="the receiver"):
        bridge.check(pair[0], make("llama", seed=9))


def test_weights_of_another_shape_are_refused(pair: tuple[LocalModel, LocalModel]) -> None:
    bridge = bridge_of(*pair)
    tensors = tensors_of(bridge.projector)
    tensors["encode"] = tensors["encode"][:-1]
    with pytest.raises(BridgeError, match="do not fit"):
        Bridge.from_tensors(bridge.manifest, tensors, "cpu")


def test_a_copied_stretch_is_in_the_message() -> None:
    lessons = teach(load_corpus(["builtin"]).stream(1), 1)
    rng = random.Random(0)
    for _ in range(rng.randint(40, 60)):
        lesson = next(lessons)
        for tail in lesson.tails:
            if tail.kind == "copy":
                assert tail.answer in lesson.text


WIDE = CacheGeometry((LayerGeometry(4, 64, "default", None),) * 6, 256, 4096)


def stored(rank: int) -> int:
    """Bytes of a projector's tensors as they are stored."""
    made = Projector(ProjectorConfig((0, 2), rank=rank, hidden=64, bottleneck=32), WIDE, WIDE)
    return sum(one.numel() * one.element_size() for one in pack(made.state_dict()).values())


def test_the_size_of_a_projector_is_what_it_takes_on_disk() -> None:
    config = ProjectorConfig((0, 2), rank=96, hidden=64, bottleneck=32)
    assert projector_bytes(config, WIDE, WIDE) == stored(96)


def test_the_widest_code_is_the_widest_that_fits() -> None:
    """One step more would not fit."""
    config = ProjectorConfig((0, 2), hidden=64, bottleneck=32)
    rank = widest_rank(config, WIDE, WIDE, 4_000_000)
    assert rank > LEAST and rank % 32 == 0
    assert stored(rank) <= 4_000_000 < stored(rank + 32)


def test_a_large_pair_has_a_code_all_the_same_and_a_small_one_no_wider_than_it_is() -> None:
    config = ProjectorConfig((0, 2), hidden=64, bottleneck=32)
    assert widest_rank(config, WIDE, WIDE, 1000) == LEAST
    small = CacheGeometry((LayerGeometry(1, 8, "default", None),) * 3, 16, 64)
    assert widest_rank(config, small, small) == min(4 * 8 + 2 * 16, 6 * 8)
