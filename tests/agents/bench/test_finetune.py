"""Fine-tunes by a fixed recipe: reproducible, whole or absent, and not their base."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flows import own_cache, stored_model

from unspoken.agents import LocalModel
from unspoken.agents.bench.finetune import KINDS, Kind, Recipe, finetune, finetune_folder
from unspoken.channels.errors import InputError
from unspoken.channels.finetunes.recompute import require_one_base

IDS = tuple(range(5, 25))


def short(kind: Kind) -> Recipe:
    return replace(Recipe.of(kind), steps=2, batch=1, rank=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("base")
    with own_cache(folder / "cache"):
        return stored_model(folder / "model", max_position_embeddings=1024)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tune_is_another_model_of_the_same_base(base: LocalModel, kind: Kind) -> None:
    tuned_model = finetune(base, short(kind))
    require_one_base(base.identity, tuned_model.identity, "it")
    assert tuned_model.identity != base.identity
    ids = base.tensor(IDS)
    assert not torch.allclose(tuned_model.logits(ids), base.logits(ids), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_gives_the_same_weights_twice(
    base: LocalModel, kind: Kind, tmp_path: Path
) -> None:
    first = finetune(base, short(kind), folder=tmp_path / "a")
    second = finetune(base, short(kind), folder=tmp_path / "b")
    other = finetune(base, replace(short(kind), seed=1), folder=tmp_path / "c")
    assert first.identity == second.identity != other.identity


def test_it_is_made_once(base: LocalModel) -> None:
    stages: list[str] = []
    first = finetune(base, short("full"), lambda stage, part: stages.append(stage))
    steps = len(stages)
    again = finetune(base, short("full"), lambda stage, part: stages.append(stage))
    assert steps == 2 == len(stages) and again.identity == first.identity


def test_nothing_is_left_of_one_that_was_interrupted(base: LocalModel) -> None:
    def stop(stage: str, part: float) -> None:
        raise KeyboardInterrupt

    folder = finetune_folder(base, short("full"))
    with pytest.raises(KeyboardInterrupt):
        finetune(base, short("full"), stop)
    assert not folder.exists()
    assert [path for path in folder.parent.iterdir() if not path.name.endswith(".lock")] == []


def test_the_base_is_left_as_it_was(base: LocalModel) -> None:
    before = base.logits(base.tensor(IDS))
    for kind in KINDS:
        finetune(base, short(kind))
    assert torch.equal(base.logits(base.tensor(IDS)), before)


def test_another_recipes_folder_is_not_taken_for_its_own(base: LocalModel, tmp_path: Path) -> None:
    finetune(base, short("full"), folder=tmp_path / "a")
    with pytest.raises(InputError, match="another recipe"):
        finetune(base, replace(short("full"), steps=3), folder=tmp_path / "a")


def test_a_folder_with_other_things_is_left_alone(base: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(InputError, match="other things"):
        finetune(base, short("full"), folder=tmp_path)
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="'half'"):
        Recipe.of("half")  # type: ignore[arg-type]


def test_a_base_without_a_reference_is_refused(base: LocalModel) -> None:
    nameless = LocalModel(base.hf, base.tokenizer, identity=base.identity)
    with pytest.raises(InputError, match="from a model's files"):
        finetune(nameless, short("full"))
