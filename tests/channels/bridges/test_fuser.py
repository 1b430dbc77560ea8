"""Fuse mode: a fuser is fitted, stored, planned and run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import make
from flows import Pair
from fusers import CORPUS, PIECES, SMALL, bridge_between, fuser_between

from unspoken.channels.bridges.bridge import Bridge, tensors_of
from unspoken.channels.bridges.fit.fuse_example import answer_losses, fuse_input, fused_context
from unspoken.channels.bridges.fit.fuse_samples import choice_prompt, draw_fuse_samples
from unspoken.channels.bridges.fit.fuse_training import FuserFit
from unspoken.channels.bridges.fit.progress import FitProgress
from unspoken.channels.bridges.fit.samples import Sample, Target, prepare
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.errors import BridgeError

SAMPLE = Sample("the question of the reader", (Target("", " was in the document"),))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("gemma3"), make("qwen2", 1)


@pytest.mark.parametrize(
    "name", ["llama, yarn", "gemma2", "mistral, window", "gpt-neox, partial rotary"]
)
def test_an_untrained_fuser_leaves_the_receivers_own_cache(name: str) -> None:
    """In every geometry an untrained fuser changes nothing, and a trained one does."""
    sharer, receiver = make("qwen3"), make(name, 1)
    sample = prepare(SAMPLE, sharer, receiver)
    for trained in (False, True):
        fuser = fuser_between(sharer, receiver, trained=trained)
        given = fuse_input(fuser.config, sample, sharer, receiver)
        full = receiver.prefill(receiver.tensor(sample.ids)).state
        head, state = fused_context(fuser, given, receiver)
        assert (head.start, head.stop, state.stop) == (0, state.start, len(sample.ids) - 1)
        same = [
            torch.allclose(mine.keys, layer.keys, atol=1e-4)
            and torch.allclose(mine.values, layer.values, atol=1e-4)
            for mine, layer in zip(
                full.slice(state.start, state.stop).layers, state.layers, strict=True
            )
        ]
        assert all(same) != trained
        ((alone,), (fused,)) = (answer_losses(module, given, receiver) for module in (None, fuser))
        assert torch.isclose(alone, fused, atol=1e-4) != trained


def test_the_state_s_first_positions_stay_the_receiver_s(pair: Pair) -> None:
    """The attention sink is not touched."""
    sharer, receiver = pair
    fuser = fuser_between(sharer, receiver, trained=True)
    given = fuse_input(fuser.config, prepare(SAMPLE, sharer, receiver), sharer, receiver)
    full = receiver.prefill(receiver.tensor(given.sample.ids)).state
    head, _ = fused_context(fuser, given, receiver)
    assert len(head) >= 4
    for mine, layer in zip(head.layers, full.slice(0, len(head)).layers, strict=True):
        assert torch.equal(mine.keys, layer.keys)


@pytest.mark.parametrize("alone", [False, True])
def test_a_fit_is_seeded_and_never_worse_than_the_receiver(pair: Pair, alone: bool) -> None:
    """The same seed gives the same weights, also with the receiver as its own sharer."""
    sharer, receiver = (pair[1], pair[1]) if alone else pair
    settings = FuseSettings(**SMALL, steps=8, residual_rate=1e-2)
    stages = []
    first = FuserFit(
        sharer, receiver, CORPUS, settings, report=lambda one: stages.append(one.stage)
    ).run()
    second = FuserFit(sharer, receiver, CORPUS, settings).run()
    assert stages[0] == "gram" and "train" in stages and stages[-1] == "done"
    assert first.figures["fuse_steps"] == 8 and first.tokens > 700
    gains = [
        value
        for name, value in first.figures.items()
        if "gain" in name and isinstance(value, float)
    ]
    assert sum(gains) >= 0 and bool(gains) == bool(first.module.spread.abs().max() > 0)
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_stopped_fit_ends_where_it_would_have_ended(
    pair: Pair, tmp_path: Path, rounds: int
) -> None:
    """A stopped fit goes on to the same weights and figures."""
    settings = FuseSettings(**{**SMALL, "every": 0.0}, steps=8, residual_rate=1e-2)
    whole = FuserFit(*pair, CORPUS, settings).run()
    stages: list[str] = []

    def stop(fit: FitProgress) -> None:
        stages.append(fit.stage)
        if stages.count("train") == rounds > 0 or fit.stage == "done":
            raise KeyboardInterrupt

    first = settings if rounds else replace(settings, steps=0)
    with pytest.raises(KeyboardInterrupt):
        FuserFit(*pair, CORPUS, first, report=stop, work=tmp_path).run()
    (file,) = tmp_path.glob("fuse-*.pt")
    assert torch.load(file, weights_only=True)["step"] == 2 * rounds
    stages.clear()
    again = FuserFit(
        *pair, CORPUS, settings, report=lambda fit: stages.append(fit.stage), work=tmp_path
    ).run()
    assert "gram" not in stages and stages.count("train") == 4 - rounds
    assert again.tokens == whole.tokens
    timeless = [
        {name: value for name, value in fit.figures.items() if "minutes" not in name}
        for fit in (again, whole)
    ]
    assert timeless[0] == timeless[1] and timeless[0]["fuse_steps"] == 8
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    other = replace(settings, seed=1, steps=0)
    FuserFit(*pair, CORPUS, other, report=lambda fit: stages.append(fit.stage), work=tmp_path).run()
    assert "gram" in stages and len(list(tmp_path.iterdir())) == 2  # its own, beside the other's


def test_steps_can_be_taken_in_a_cheaper_dtype(pair: Pair) -> None:
    """The closed form is that of the models themselves, and the steps run on their casts."""
    train_models = pair[0].cast(torch.bfloat16), pair[1].cast(torch.bfloat16)
    settings = FuseSettings(**SMALL, steps=4, residual_rate=1e-2)
    cast = FuserFit(*pair, CORPUS, settings, train_models=train_models).run()
    plain = FuserFit(*pair, CORPUS, settings).run()
    assert torch.equal(cast.module.mean, plain.module.mean)
    assert cast.figures["fuse_steps"] == 4


def test_training_lowers_the_loss_it_trains_on(pair: Pair) -> None:
    """Gradients reach all parameters, and a few steps on one input help on it."""
    sharer, receiver = pair
    fuser = fuser_between(sharer, receiver, trained=True).requires_grad_(True)
    given = fuse_input(fuser.config, prepare(SAMPLE, sharer, receiver), sharer, receiver)
    optimizer = torch.optim.Adam(fuser.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        (loss,) = answer_losses(fuser, given, receiver, grad=True)
        torch.autograd.backward(loss)
        assert all(
            weight.grad is not None and bool(weight.grad.abs().max() > 0)
            for weight in fuser.parameters()
        )
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05


def test_held_out_questions_are_never_trained_on() -> None:
    """A question of common knowledge stands on one side only."""

    def asked(*, validation: bool) -> set[tuple[str, str]]:
        samples = draw_fuse_samples(iter(lambda: PIECES[0], ""), 3, validation=validation)
        drawn = [next(samples) for _ in range(400)]
        return {
            (sample.text.removeprefix("Question: ").partition("\n")[0], sample.targets[0].answer)
            for sample in drawn if sample.targets[0].kind == "choice"
        }  # fmt: skip

    trained, validated = asked(validation=False), asked(validation=True)
    assert len(trained) > 50 and len(validated) > 20 and not trained & validated
    assert choice_prompt("who?", "me") == "Question: who?\nHint: me\nAnswer:"


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_fuser_lives_in_its_bridge_s_folder(pair: Pair, tmp_path: Path, dtype: str) -> None:
    """Written and read again it fuses as before; a folder without one has no fuse mode."""
    fuser = fuser_between(*pair, trained=True)
    bridge = bridge_between(*pair, tmp_path / "with", fuser, dtype)
    assert bridge.fuses and bridge.fuser is not None and bridge.fuser.config == fuser.config
    for name, tensor in fuser.state_dict().items():
        torch.testing.assert_close(bridge.fuser.state_dict()[name], tensor, atol=2e-2, rtol=0)
    plain = bridge_between(*pair, tmp_path / "without", None)
    assert not plain.fuses and plain.fuser is None
    state = pair[0].prefill(pair[0].tensor(range(3, 9))).state
    full = pair[1].prefill(pair[1].tensor(range(3, 9))).state
    enriched = bridge.fuse(state, [4, 5], full, 4, pair[1])
    assert (enriched.start, enriched.stop, enriched.approximate_from) == (4, 6, 4)
    with pytest.raises(BridgeError, match="without fuse mode") as caught:
        plain.fuse(state, [4, 5], full, 4, pair[1])
    assert "fuse=FuseSettings()" in caught.value.fix
    assert "`unspoken bridge fit their/model our/model --fuse`" in caught.value.fix


def test_a_fuser_that_does_not_fit_its_configuration_is_refused(pair: Pair, tmp_path: Path) -> None:
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
