"""Adapters: who a model with one is, and several of them on one base, against peft alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from flows import DOCUMENT, QUESTION, own_cache, reader_solver
from peft import PeftModel, PromptTuningConfig, get_peft_model
from sample_adapters import save_adapter
from tiny import tiny_llama
from transformers import AutoModelForCausalLM

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.loader import loads
from unspoken.channels.errors import ModelReferenceError, ModelSupportError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base and two adapters on it."""
    root = tmp_path_factory.mktemp("adapters")
    tiny_llama(root / "base")
    for seed, name in enumerate(("poems", "laws")):
        save_adapter(root / "base", root / name, seed)
    with own_cache(root / "cache"):
        yield root


@pytest.fixture(scope="module")
def base(root: Path) -> LocalModel:
    return LocalModel.load(str(root / "base"))


IDS = tuple(range(5, 25))


def plain(root: Path, name: str | None) -> torch.Tensor:
    """Logits by transformers and peft alone."""
    model = AutoModelForCausalLM.from_pretrained(root / "base").eval()
    if name is not None:
        model = PeftModel.from_pretrained(model, root / name).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


def memory(model: LocalModel) -> int:
    """Where the embeddings lie."""
    return int(model.hf.get_input_embeddings().weight.data_ptr())


def logits(model: LocalModel) -> torch.Tensor:
    return model.logits(model.tensor(IDS))


def test_each_agent_gets_its_own_adapter_whatever_ran_before(root: Path, base: LocalModel) -> None:
    """Base and adapters, in any order, compute what peft computes with that adapter alone."""
    models = {
        None: base,
        "poems": base.with_adapter(str(root / "poems")),
        "laws": base.with_adapter(str(root / "laws")),
    }
    for name in (None, "laws", "poems", None, "poems", "poems", "laws"):
        torch.testing.assert_close(logits(models[name]), plain(root, name), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain(root, "poems"), plain(root, "laws"), atol=1e-2)
    assert memory(models["poems"]) == memory(base)  # loaded once


def test_every_way_to_compute_uses_the_adapter(root: Path, base: LocalModel) -> None:
    """States, single layers and embeddings, each straight after the base had its turn."""
    poems = base.with_adapter(str(root / "poems"))
    with torch.no_grad():
        cache = (
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(root / "base"), root / "poems"
            )
            .eval()(torch.tensor([IDS]), use_cache=True)
            .past_key_values
        )
    base.read(IDS)
    state = poems.read(IDS)
    for mine, theirs in zip(state.layers, cache.layers, strict=True):
        torch.testing.assert_close(mine.values, theirs.values[0], atol=1e-5, rtol=1e-5)
    base.read(IDS)
    positions = torch.arange(len(IDS))
    count = len(poems.geometry.layers)
    _, layers = poems.run_layers(poems.embed(poems.tensor(IDS)), 0, count, positions)
    torch.testing.assert_close(layers[-1].keys, state.layers[-1].keys, atol=1e-5, rtol=1e-5)


def test_an_adapter_makes_another_model(root: Path, base: LocalModel) -> None:
    """Identity differs in the weights alone; a copy of an adapter is the same model."""
    poems, again = (base.with_adapter(str(root / "poems")) for _ in range(2))
    laws = base.with_adapter(str(root / "laws"))
    assert poems.identity == again.identity
    assert len({model.identity.weights for model in (base, poems, laws)}) == 3
    assert (poems.identity.config, poems.identity.tokenizer) == (
        base.identity.config,
        base.identity.tokenizer,
    )
    loaded = LocalModel.load(str(root / "base"), adapter=str(root / "poems"))
    assert loaded.identity == poems.identity


def test_other_settings_make_another_adapter(root: Path, base: LocalModel) -> None:
    """The same weights at another strength are not the same model."""
    save_adapter(root / "base", root / "louder", 0, lora_alpha=32)
    louder = base.with_adapter(str(root / "louder"))
    assert louder.identity != base.with_adapter(str(root / "poems")).identity


def test_a_cache_never_crosses_between_adapters_in_silence(root: Path, base: LocalModel) -> None:
    """Base to adapter goes by text; an adapter to itself goes by its cache, exactly."""
    poems = base.with_adapter(str(root / "poems"))
    flow = reader_solver(base, poems)
    assert flow.plan().edges[0].mode == "text"
    mixed = flow.run(document=DOCUMENT, question=QUESTION)
    assert [edge.channel for edge in mixed.report.edges] == ["text"]
    named = reader_solver(base, poems, "same_model_cache")
    asked = named.run(document=DOCUMENT, question=QUESTION).report
    assert "other weights" in str(asked.fallbacks)
    same = reader_solver(poems, poems).run(document=DOCUMENT, question=QUESTION)
    text = reader_solver(poems, poems, "text").run(document=DOCUMENT, question=QUESTION)
    (edge,) = same.report.edges
    assert (edge.channel, edge.exact) == ("same_model_cache", True)
    assert same.outputs == text.outputs == mixed.outputs


def test_a_workflow_loads_one_base_for_its_adapters(root: Path) -> None:
    """In a file, an adapter is a key of the model; models of one ref share their weights."""
    text = f"""
name: adapters
models:
  plain: {root / "base"}
  poems: {{ref: {root / "base"}, adapter: {root / "poems"}}}
inputs: {{words: text}}
agents:
  one: {{model: plain, prompt: "{{{{ inputs.words }}}}", generate: {{max_new_tokens: 4}}}}
  two: {{model: poems, prompt: "{{{{ inputs.words }}}}", generate: {{max_new_tokens: 4}}}}
"""
    flow = Workflow.from_spec(loads(text, "flow.yaml").spec)
    flow.run(words=DOCUMENT)
    assert memory(flow.models["plain"]) == memory(flow.models["poems"])
    assert flow.models["poems"].adapter == str(root / "poems")
    assert loads(flow.to_yaml(), "again.yaml").spec == flow.spec


def test_python_agents_keep_their_adapter_in_yaml(root: Path, base: LocalModel) -> None:
    """A loaded model with an adapter is written as its ref and its adapter."""
    poems = base.with_adapter(str(root / "poems"))
    flow = Workflow("one", [Agent("writer", poems, "Why?"), Agent("reader", base, "Who?")])
    models = flow.spec.models.values()
    assert {(model.ref, model.adapter) for model in models} == {
        (base.ref, None),
        (base.ref, str(root / "poems")),
    }


def test_adapters_do_not_stack(root: Path, base: LocalModel) -> None:
    """An adapter goes on a base."""
    with pytest.raises(ModelSupportError, match="has the adapter"):
        base.with_adapter(str(root / "poems")).with_adapter(str(root / "laws"))


def test_what_is_no_adapter_is_refused(
    root: Path, base: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with what was found, and none of them disturbs the base."""
    with pytest.raises(ModelReferenceError, match="no adapter"):
        base.with_adapter(str(root / "base"))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelReferenceError, match=r"adapter_model\.safetensors"):
        base.with_adapter(str(bare))
    (bare / "adapter_config.json").write_text("{")
    (bare / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelReferenceError, match="cannot be read"):
        base.with_adapter(str(bare))
    prompt = tmp_path / "prompt"
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(root / "base"), config).save_pretrained(
        prompt
    )
    with pytest.raises(ModelSupportError, match="PROMPT_TUNING"):
        base.with_adapter(str(prompt))
    other = tmp_path / "other"
    tiny_llama(other, hidden_size=64)
    save_adapter(other, tmp_path / "theirs", 0)
    with pytest.raises(ModelReferenceError, match="could not be loaded"):
        base.with_adapter(str(tmp_path / "theirs"))
    torch.testing.assert_close(logits(base), plain(root, None), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ref", ["./nowhere", "nowhere/", "../nowhere", "a/b/nowhere", "/no/where"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(
    ref: str, base: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be a Hub id is a path: the Hub is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(ModelReferenceError, match=f"there is no adapter folder '{ref}'") as caught:
        base.with_adapter(ref)
    assert str(Path(ref).absolute()) in caught.value.expected
    assert caught.value.fix == "check the path"


def test_what_may_be_a_hub_id_is_looked_for_on_the_hub_and_on_disk(
    base: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where neither has it, both places are named."""

    def missing(ref: str, **_: object) -> str:
        raise OSError(f"the Hub has no {ref}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
    with pytest.raises(ModelReferenceError, match="the Hub has no my/poems") as caught:
        base.with_adapter("my/poems")
    assert str(tmp_path / "my" / "poems") in caught.value.expected


def test_a_file_in_the_adapters_place_is_said_to_be_one(root: Path, base: LocalModel) -> None:
    """The folder is what is named, not a file in it."""
    with pytest.raises(ModelReferenceError, match="is a file") as caught:
        base.with_adapter(str(root / "poems" / "adapter_model.safetensors"))
    assert "folder" in caught.value.fix


def test_a_path_starts_at_the_current_folder(
    root: Path, base: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for a model's own folder."""
    monkeypatch.chdir(root)
    named = base.with_adapter(str(root / "poems")).identity
    assert base.with_adapter("poems").identity == base.with_adapter("./poems/").identity == named


def test_a_bad_adapter_of_a_file_is_found_by_line(root: Path, tmp_path: Path) -> None:
    """The error names file, line and column, whatever is wrong with the adapter."""
    file = tmp_path / "flow.yaml"
    for adapter, found in ((tmp_path / "none", "no adapter folder"), (root / "base", "no adapter")):
        file.write_text(
            f"name: one\nmodels:\n  poems:\n    ref: {root / 'base'}\n    adapter: {adapter}\n"
            "agents: {one: {model: poems, prompt: Why?}}\n",
            encoding="utf-8",
        )
        with pytest.raises(ModelReferenceError, match=found) as caught:
            Workflow.from_yaml(file).load()
        assert str(caught.value).startswith(f"{file}:5:14: models.poems.adapter: ")


def test_without_peft_the_error_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft is an extra."""
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    fresh = LocalModel.load(str(root / "base"))
    with pytest.raises(ModelSupportError, match="not installed") as caught:
        fresh.with_adapter(str(root / "laws"))
    assert "unspoken[adapters]" in caught.value.fix
