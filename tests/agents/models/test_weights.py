"""One lock per set of weights: whoever computes has them to itself, its own adapter on."""

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from flows import Pair, own_cache, stored_model
from processes import LIMIT_S
from sample_adapters import save_adapter

from unspoken.agents import LocalModel
from unspoken.agents.models.weights import holding, weights_of
from unspoken.agents.testing import tiny_model

ROUNDS = 40
WORDS = "the key of the cache is in the document"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A base, and the same with an adapter: two models on one set of weights."""
    root = tmp_path_factory.mktemp("weights")
    with own_cache(root / "cache"):
        base = stored_model(root / "base")
        save_adapter(root / "base", root / "adapter", 1)
        return base, base.with_adapter(str(root / "adapter"))


def values(model: LocalModel) -> torch.Tensor:
    """What a message's state holds on the last layer."""
    state = model.message(WORDS).state
    assert state is not None
    return state.layers[-1].values


def embedded(model: LocalModel) -> torch.Tensor:
    return model.embed(model.tensor(range(3, 20)))


def prefilled(model: LocalModel) -> torch.Tensor:
    return model.prefill(model.tensor(range(3, 20))).logits


def captured(model: LocalModel) -> torch.Tensor:
    return model.read(range(3, 20), capture=(1,)).hidden[1]


def test_models_on_one_set_of_weights_share_it(models: Pair) -> None:
    """A base, its adapters, and another model made of the same object have one lock."""
    base, adapted = models
    again = LocalModel(base.hf, base.tokenizer, identity=base.identity)
    assert base.weights is adapted.weights is again.weights is weights_of(base.hf)


@pytest.mark.parametrize("compute", [values, embedded, prefilled, captured])
def test_models_beside_each_other_compute_what_they_compute_alone(
    models: Pair, compute: Callable[[LocalModel], torch.Tensor]
) -> None:
    """Threads race for the adapter's switch and the hooks; every result is its own model's."""
    alone = [compute(model) for model in models]
    start = threading.Barrier(2)

    def run(number: int) -> int:
        start.wait(LIMIT_S)
        results = [compute(models[number]) for _ in range(ROUNDS)]
        return sum(not torch.equal(result, alone[number]) for result in results)

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(run, range(2))) == [0, 0]


def test_held_weights_are_nobody_elses(models: Pair) -> None:
    """While a fit holds a base, its adapter's model waits; the fit itself computes on."""
    base, adapted = models
    with ThreadPoolExecutor(1) as other:
        with holding([base, adapted]):
            waiting = other.submit(values, adapted)
            values(base)
            assert not waiting.done()
        assert torch.equal(waiting.result(LIMIT_S), values(adapted))


def test_two_who_hold_the_same_weights_do_not_wait_for_each_other() -> None:
    """Whatever the order they name them in."""
    one, two = tiny_model(), tiny_model(1)
    inside: list[int] = []

    def hold(*models: LocalModel) -> bool:
        for _ in range(50):
            with holding(models):
                inside.append(1)
                if len(inside) != 1:
                    return False
                inside.clear()
        return True

    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(hold, one, two, one), threads.submit(hold, two, one)]
        assert [result.result(LIMIT_S) for result in results] == [True, True]


def test_weights_go_with_their_models() -> None:
    """Nothing keeps a model that nobody holds."""
    model = tiny_model()
    weights, held = weakref.ref(model.weights), weakref.ref(model.hf)
    del model
    gc.collect()
    assert weights() is None and held() is None


def test_models_on_one_set_of_weights_hook_it_once(models: tuple[LocalModel, LocalModel]) -> None:
    """Every further model on the same weights costs no further work per token."""
    head = models[0].hf.get_output_embeddings()
    before = len(head._forward_pre_hooks)
    LocalModel(models[0].hf, models[0].tokenizer, identity=models[0].identity)
    assert len(head._forward_pre_hooks) == before == 1
