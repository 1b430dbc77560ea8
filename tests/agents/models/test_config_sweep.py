"""No entry of a configuration changes what is computed and leaves the identity as it was.

Here for a few architectures; `make sweep` does all that transformers has.
"""

import pytest
from config_sweep import ARCHITECTURES, changes
from transformers import (
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from unspoken.agents.models.identity import config_digest

pytestmark = pytest.mark.long

FEW = ("gemma3_text", "gpt_neox", "llama", "olmoe", "qwen3_moe")


@pytest.mark.parametrize("kind", FEW)
def test_no_entry_changes_what_is_computed_in_silence(kind: str) -> None:
    """Each entry changed alone, on equal weights: where logits change, the digest does."""
    tried = list(changes(kind))
    assert len(tried) >= 25 and any(change.computes for change in tried)
    assert [change for change in tried if change.computes and not change.told] == []


def test_the_sweep_knows_all_causal_decoders() -> None:
    """Those that transformers maps to a causal language model."""
    assert len(ARCHITECTURES) > 150 and set(FEW) <= set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("kind", "entry", "value"),
    [
        (Qwen3MoeConfig, "num_experts_per_tok", 3),
        (Qwen3MoeConfig, "norm_topk_prob", True),
        (OlmoeConfig, "clip_qkv", 0.5),
        (GPTNeoXConfig, "use_parallel_residual", False),
        (LlamaConfig, "an_entry_of_tomorrow", 1),
    ],
)
def test_an_entry_without_a_name_here_counts(
    kind: type[PreTrainedConfig], entry: str, value: object
) -> None:
    """What is not known to be inert makes another model."""
    assert config_digest(kind(**{entry: value})) != config_digest(kind())


@pytest.mark.parametrize(
    ("config", "digest"),
    [(LlamaConfig(), "f116de8a5d958c06"), (Gemma3TextConfig(), "5652b49c60defbdc")],
)
def test_digests_of_stored_bridges_hold(config: PreTrainedConfig, digest: str) -> None:
    """Entries at their class's defaults add nothing, so bridges of before find their models."""
    assert config_digest(config).startswith(digest)
