"""Code that comes with a checkpoint or an adapter is never run, downloaded or asked about."""

import ast
import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from unspoken.agents import LocalModel
from unspoken.agents.cli.main import app
from unspoken.agents.models.adapters import adapter_folder
from unspoken.channels.errors import ModelReferenceError, ModelSupportError

ROOT = Path(__file__).resolve().parents[3]
AUTO = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
CODE = (
    "from pathlib import Path\nPath({mark!r}).write_text('')\nclass Config: ...\nclass Model: ...\n"
)


class Answers(io.StringIO):
    """A terminal at which somebody says yes to everything."""

    asked = 0

    def readline(self, *size: Any) -> str:
        self.asked += 1
        return "yes\n"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A model's folder to change."""
    return Path(shutil.copytree(made / "llama", tmp_path / "model"))


@pytest.fixture
def mark(folder: Path) -> Path:
    """A file that the folder's code would write."""
    mark = folder.parent / "it-ran"
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    return mark


@pytest.fixture(params=["open", "closed"])
def stdin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    if request.param == "closed":
        answers.close()
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_model_that_needs_code_of_its_own_is_refused(
    folder: Path, mark: Path, stdin: Answers
) -> None:
    """With a clear error, and without a question."""
    change(folder / "config.json", model_type="strange", auto_map=AUTO)
    with pytest.raises(ModelSupportError, match="never run") as caught:
        LocalModel.load(str(folder))
    assert "auto_map" in caught.value.fix and caught.value.expected
    assert not mark.exists() and not stdin.asked


def test_a_model_that_needs_code_of_its_own_cannot_be_shown(folder: Path, mark: Path) -> None:
    change(folder / "config.json", model_type="strange", auto_map=AUTO)
    shown = CliRunner().invoke(app, ["models", "show", str(folder)], input="yes\nyes\n")
    assert shown.exit_code == 2 and "never run" in shown.output and "[y/N]" not in shown.output
    assert not mark.exists()


def test_code_in_a_repository_of_somebody_else_is_not_fetched(
    folder: Path, stdin: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetch(*args: object, **settings: object) -> None:
        raise AssertionError("something was fetched")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, fetch)
    there = {name: f"stranger/code--{place}" for name, place in AUTO.items()}
    change(folder / "config.json", model_type="strange", auto_map=there)
    with pytest.raises(ModelSupportError, match="never run"):
        LocalModel.load(str(folder))
    assert not stdin.asked


def test_a_tokenizer_that_needs_code_of_its_own_is_refused(
    folder: Path, mark: Path, stdin: Answers
) -> None:
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="Strange",
        auto_map={"AutoTokenizer": ["code.Config", None]},
    )
    with pytest.raises(ModelSupportError, match="never run"):
        LocalModel.load(str(folder))
    assert not mark.exists() and not stdin.asked


def test_a_model_that_transformers_has_is_loaded_without_its_code(
    folder: Path, mark: Path, stdin: Answers
) -> None:
    """Many good checkpoints bring code for older versions of transformers."""
    plain = LocalModel.load(str(folder))
    change(folder / "config.json", auto_map=AUTO)
    model = LocalModel.load(str(folder))
    assert model.identity.weights == plain.identity.weights
    assert type(model.hf).__name__ == "LlamaForCausalLM"
    assert not mark.exists() and not stdin.asked


class Harmful:
    """What writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_runs_something_is_refused(folder: Path, mark: Path, how: str) -> None:
    """Weights in a .bin are read as tensors alone."""
    weights = {**load_file(folder / "model.safetensors"), "more": Harmful(mark)}
    (folder / "model.safetensors").unlink()
    if how == "torch":
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(ModelReferenceError, match="could not be loaded"):
        LocalModel.load(str(folder))
    assert not mark.exists()


def test_an_adapter_is_read_from_safetensors_alone(tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    torch.save({"w": Harmful(mark)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelReferenceError, match=r"no adapter_model\.safetensors") as caught:
        adapter_folder(str(tmp_path))
    assert "pickled ones are not read" in caught.value.expected
    assert not mark.exists()


def test_every_load_says_that_code_is_not_trusted() -> None:
    """Left out, transformers asks on the terminal; so no call leaves it out."""
    calls = []
    for file in [*ROOT.glob("agents/**/*.py"), *ROOT.glob("channels/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and owner.startswith("Auto"):
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append(said.get("trust_remote_code"))
    assert len(calls) > 6 and set(calls) == {"False"}
