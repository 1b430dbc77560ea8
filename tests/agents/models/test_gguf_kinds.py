"""GGUF files of the kinds that people have become the models that they were made from."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_gguf, tiny_llama, tiny_of
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from unspoken.agents.models import catalog
from unspoken.agents.models.checkpoints.gguf_rope import add_rope_scaling
from unspoken.agents.models.checkpoints.tokenizer import difference, read_tokenizer
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelSupportError

IDS = torch.arange(3, 40)[None]


def same_logits(one: Path, other: Path) -> None:
    logits = [AutoModelForCausalLM.from_pretrained(folder)(IDS).logits for folder in (one, other)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "pre", "config"),
    [("qwen2", "qwen2", {}), ("phi3", "default", {"rms_norm_eps": 1e-5, "pad_token_id": 2})],
)
def test_tokenizer_that_transformers_would_build_anew(
    cache: Path, tmp_path: Path, model_type: str, pre: str, config: dict[str, Any]
) -> None:
    """A GGUF whose architecture has a tokenizer class of its own keeps the file's tokenizer."""
    source = tiny_of(tmp_path / "source", model_type, **config)
    file = tiny_gguf(tmp_path / "it.gguf", source, pre=pre)
    folder = catalog.prepare(str(file))
    same_logits(folder, source)
    of_file = AutoTokenizer.from_pretrained(tmp_path, gguf_file="it.gguf")
    assert difference(of_file, read_tokenizer(folder)) is None
    loaded = LocalModel.load(str(file))
    assert loaded.words("the café system")[0] == tuple(of_file("the café system").input_ids)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 512}
IN_FILE = {"type": "yarn", "factor": 4.0, "original_context_length": 512}


def test_llama3_factors_are_kept(cache: Path, tmp_path: Path) -> None:
    """Factors per frequency, which llama.cpp writes for Llama 3, become its rotary settings."""
    source = tiny_llama(tmp_path / "source", rope_parameters=LLAMA3, head_dim=32)
    model = AutoModelForCausalLM.from_pretrained(source)
    plain = 10000.0 ** -(torch.arange(16) / 16)
    freqs = (plain / model.model.rotary_emb.inv_freq).tolist()
    assert max(freqs) == pytest.approx(8.0)
    folder = catalog.prepare(str(tiny_gguf(tmp_path / "it.gguf", source, freqs=freqs)))
    same_logits(folder, source)


def test_yarn_is_kept(cache: Path, tmp_path: Path) -> None:
    """YaRN of a Qwen 2.5 is in the converted model."""
    source = tiny_of(tmp_path / "source", "qwen2", rope_parameters=YARN)
    folder = catalog.prepare(str(tiny_gguf(tmp_path / "it.gguf", source, **IN_FILE)))
    same_logits(folder, source)


def test_other_factors_are_refused(cache: Path, tmp_path: Path) -> None:
    """Factors that no configuration gives are refused, not dropped."""
    source = tiny_llama(tmp_path / "source")
    file = tiny_gguf(tmp_path / "it.gguf", source, freqs=[1.0, 1.0, 2.0, 9.0])
    with pytest.raises(ModelSupportError, match="rotary factors other than Llama 3's"):
        catalog.prepare(str(file))


def test_attention_factor_is_beside_that_of_yarn(made: Path, tmp_path: Path) -> None:
    """llama.cpp multiplies YaRN's own factor by the file's; transformers takes one for both."""
    file = tiny_gguf(tmp_path / "it.gguf", made / "llama", **IN_FILE, attn_factor=1.5)
    config = AutoConfig.from_pretrained(made / "llama")
    own = ROPE_INIT_FUNCTIONS["yarn"](_with(config, YARN), torch.device("cpu"))[1]
    add_rope_scaling(file, config)
    scaled = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))[1]
    assert scaled == pytest.approx(1.5 * own)


@pytest.mark.parametrize("setting", [{"yarn_log_multiplier": 0.1}, {"yarn_ext_factor": 0.5}])
def test_settings_that_would_be_lost_are_refused(
    made: Path, tmp_path: Path, setting: dict[str, float]
) -> None:
    """A setting of the file that no configuration takes over is named."""
    file = tiny_gguf(tmp_path / "it.gguf", made / "llama", **IN_FILE, **setting)
    with pytest.raises(ModelSupportError, match=next(iter(setting))):
        add_rope_scaling(file, AutoConfig.from_pretrained(made / "llama"))


def _with(config: Any, rope: dict[str, Any]) -> Any:
    config = deepcopy(config)
    config.rope_parameters = rope
    return config
