"""Every architecture of transformers made tiny, and every entry of its configuration changed."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unspoken.agents.models.hf import Backbone
from unspoken.agents.models.identity import config_digest
from unspoken.agents.models.ragged.forward import refusal

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, TOKENS, MOST = 96, 24, 10_000_000

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MADE = ("layer_types", "mlp_layer_types", "no_rope_layers", "block_types", "hybrid_layer_ids")


ONE_BY_ONE = ("diffllama", "doge", "falcon", "jetmoe")
"""Those that are served and whose turns are not batched: their attention is of another kind."""


@dataclass(frozen=True, slots=True)
class Change:
    """An entry that was changed.

    Attributes:
        entry: Its name.
        value: What it was changed to.
        computes: Whether the logits of equal weights are others, or cannot be computed.
        told: Whether the digest of the configuration is another.
    """

    entry: str
    value: object
    computes: bool
    told: bool


def tiny(kind: str) -> tuple[PreTrainedModel, PreTrainedConfig] | None:
    """A small random model of an architecture, or None where it cannot be made or served."""
    with _quiet():
        try:
            plain = transformers.AutoConfig.for_model(kind).get_text_config()
            entries = {name: value for name, value in plain.to_dict().items() if name not in _MADE}
            entries |= {name: value for name, value in _SHAPE.items() if name in entries}
            config = _config(type(plain), entries)
            with torch.device("meta"):
                size = sum(p.numel() for p in _model(kind, config).parameters())
            if size > MOST:
                return None
            torch.manual_seed(0)
            model = _model(kind, config)
            _logits(model)
            Backbone(model)  # refuses what cannot hand over a cache
            config_digest(config)
        except Exception:  # a class that needs more than a shape
            return None
        return model, config


def changes(kind: str) -> Iterator[Change]:
    """Each entry changed alone, on the same weights; those that change the weights are left out."""
    made = tiny(kind)
    if made is None:
        return
    model, config = made
    before, digest, weights = _logits(model), config_digest(config), model.state_dict()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    entries = config.to_dict()
    for entry, old in entries.items():
        for value in _others(old):
            with _quiet():
                try:
                    given = {name: item for name, item in entries.items() if name not in _MADE}
                    if entry in _MADE:
                        given |= {entry: value}
                    other = _config(type(config), given | {entry: value})
                    told = config_digest(other) != digest
                    if other.to_dict().get(entry) != value:
                        continue  # the class did not take it
                    with no_init_weights():
                        changed = _model(kind, other)
                except Exception:  # a value that cannot be
                    continue
                if {name: t.shape for name, t in changed.state_dict().items()} != shapes:
                    continue  # the weights' own digest tells it
                try:
                    changed.load_state_dict(weights)
                    if any(not torch.equal(changed.state_dict()[n], weights[n]) for n in weights):
                        continue  # tied otherwise: other weights
                    after = _logits(changed)
                    same = after.shape == before.shape and torch.allclose(
                        after, before, rtol=1e-4, atol=1e-5
                    )
                except Exception:
                    same = False
            yield Change(entry, value, not same, told)


def _others(old: object) -> list[object]:
    """Other values of an entry's type."""
    if isinstance(old, bool):
        return [not old]
    if isinstance(old, int):
        return [old + 1, max(old - 1, 0)]
    if isinstance(old, float):
        return [old * 1.5 + 0.25, old * 0.5]
    if isinstance(old, str):
        return ["gelu", "relu"] if old in ("silu", "gelu", "gelu_pytorch_tanh") else [old + "x"]
    if isinstance(old, list):
        return [old[::-1]] if old and old != old[::-1] else []
    if isinstance(old, Mapping):
        return [
            {**old, name: value}
            for name, item in old.items()
            if isinstance(item, (int, float)) and not isinstance(name, int)
            for value in _others(item)[:1]
        ]
    return [True, 1, 0.5, 2] if old is None else []


def _config(kind: type[PreTrainedConfig], entries: Mapping[str, Any]) -> PreTrainedConfig:
    left = ("transformers_version", "architectures", "_name_or_path")
    config = kind(**{name: value for name, value in entries.items() if name not in left})
    soft = getattr(config, "attn_logit_softcapping", None)
    config._attn_implementation = "eager" if soft else "sdpa"
    return config


def _model(kind: str, config: PreTrainedConfig) -> PreTrainedModel:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    model: PreTrainedModel = getattr(transformers, name)(config).eval()
    return model


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(3, 3 + TOKENS)[None]
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, return_dict=True).logits
    return logits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield


def _refusal(kind: str) -> str | None:
    """Why turns of an architecture are computed one by one; None where they are batched."""
    made = tiny(kind)
    assert made is not None
    with _quiet():
        return refusal(Backbone(made[0]))


def main() -> int:
    """Sweep all architectures and print a row for each; the number of those with a fault.

    A fault is a change that is not told, and an architecture whose turns are batched no more.
    """
    totals, faulty, made, batched = [0, 0, 0], 0, 0, 0
    for kind in ARCHITECTURES:
        tried = list(changes(kind))
        if not tried:
            continue
        otherwise = [change for change in tried if change.computes]
        untold = [change for change in otherwise if not change.told]
        made, faulty = made + 1, faulty + bool(untold)
        counts = (len(tried), len(otherwise), len(untold))
        totals = [old + new for old, new in zip(totals, counts, strict=True)]
        why = _refusal(kind)
        batched += why is None
        faulty += why is not None and kind not in ONE_BY_ONE
        how = "batched" if why is None else f"one by one: {why};"
        row = (kind, *counts, how, *(f"{one.entry}={one.value!r}" for one in untold))
        sys.stdout.write(" ".join(map(str, row)) + "\n")
        sys.stdout.flush()
    sys.stdout.write(
        f"{made} architectures: {totals[0]} changes, {totals[1]} compute otherwise, "
        f"{totals[2]} of them untold; {batched} architectures batched; {faulty} faults\n"
    )
    return faulty


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    raise SystemExit(main())
