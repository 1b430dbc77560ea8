"""Adapters (LoRA and its like, by peft): several on one base that is loaded once."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from safetensors import safe_open
from torch import nn

from unspoken.agents.models.catalog import is_hub_id
from unspoken.agents.models.linears.int8 import has_int8
from unspoken.agents.models.quiet import Stage, first_line, quiet_transformers, silent
from unspoken.channels.errors import ModelReferenceError, ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.files import digest_blake3

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

SAVED = "a folder, or a Hub id, with an adapter that peft saved"

UNKEYED = frozenset(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
)
"""Settings that say nothing of what an adapter does."""

PROMPTED = frozenset(
    (
        "ADAPTION_PROMPT",
        "CPT",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
    )
)
"""Kinds that put rows into a context which are no tokens."""

ROWS = "which puts rows into a context that are no tokens"

PROBE = 6

UNMOVING = frozenset(("gaussian", "orthogonal"))
"""Ways to begin an adapter, by name, that leave the base's weights as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A model of its own with an adapter in it; it shares the memory of the base's weights.

    Attributes:
        model: The model.
        logits: What peft computes after a few fixed tokens, (tokens, vocabulary).
        kind: Of the adapter, by peft's name.
        folder: Where the adapter came from.
    """

    model: "PreTrainedModel"
    logits: torch.Tensor
    kind: str
    folder: Path


def adapt(model: "PreTrainedModel", folder: Path) -> Adapted:
    """Copy a base's modules, but not its weights, and have peft load an adapter into the copy.

    The base has no part in it, and nothing is ever switched. It is proved that the base computes
    what it computed before.

    Raises:
        ModelSupportError: peft is not installed, or the adapter is of a kind that cannot be served.
        ModelReferenceError: An adapter that does not fit the model.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ModelSupportError(
            "peft, which loads adapters, is not installed",
            expected="unspoken with its extra `adapters`",
            fix='pip install "unspoken[adapters]"',
        ) from error
    if has_int8(model):
        raise ModelSupportError(
            "the base computes with int8 weights, and adapters need floats",
            expected="a base in a float type",
            fix="load the base with dtype bfloat16, or without dtype",
        )
    before = _probe(model)
    try:
        with quiet_transformers(Stage("load", silent)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            _refuse_kind(config, folder)
            config.inference_mode = True
            wrapped = PeftModel(_twin(model, config, folder), config)
            loaded = wrapped.load_adapter(str(folder), "default", torch_device=str(model.device))
            wrapped.eval().requires_grad_(False)
    except ModelSupportError:
        raise
    except Exception as error:  # peft raises almost anything here
        raise _misfit(folder, f"could not be loaded: {first_line(error)}") from error
    if loaded.unexpected_keys:
        lost = sorted(loaded.unexpected_keys)[0]
        raise _misfit(folder, f"has weights for {lost}, which the model does not have")
    if not torch.equal(before, _probe(model)):
        raise ModelSupportError(
            f"the adapter in {folder} has changed the weights of its base while it was loaded",
            expected="an adapter that leaves its base as it is",
            fix="load the base again, and use another adapter",
        )
    try:
        logits = _probe(wrapped)
    except Exception as error:  # a wrapper may ask for inputs of its own
        why = f"which cannot be computed with: {first_line(error)}"
        raise _unsupported(folder, _kind(config), why) from error
    inner: Any = wrapped.get_base_model()
    return Adapted(model=inner, logits=logits, kind=_kind(config), folder=folder)


def check_adapted(logits: Callable[[torch.Tensor], torch.Tensor], by_peft: Adapted) -> None:
    """Refuse an adapter that computes more than the layers it put in place.

    Args:
        logits: What the model that serves it computes, (tokens, vocabulary), after token ids.
        by_peft: What peft computes.

    Raises:
        ModelSupportError: The two differ.
    """
    theirs = by_peft.logits
    ids = torch.arange(len(theirs), device=theirs.device)
    try:
        error = (logits(ids).float() - theirs.float()).abs().max()
    except Exception as raised:
        why = f"which cannot be computed with: {first_line(raised)}"
        raise _unsupported(by_peft.folder, by_peft.kind, why) from raised
    if not error <= 0.02 * theirs.float().abs().max():
        why = "which computes outside of the model's layers"
        raise _unsupported(by_peft.folder, by_peft.kind, why)


def refuse_adapters(model: "PreTrainedModel", ref: str) -> None:
    """Refuse a model that brings an adapter: nobody would know when it is on.

    Raises:
        ModelSupportError: naming the way to load it.
    """
    if getattr(model, "peft_config", None) or type(model).__module__.startswith("peft."):
        raise ModelSupportError(
            f"{ref or type(model).__name__} has an adapter of peft in it already",
            expected="a base model; its adapters are given by their folders",
            fix="save the adapter with save_pretrained and name its folder: "
            "LocalModel.load(ref, adapter=folder) or model.with_adapter(folder); or merge it into "
            "the weights with merge_and_unload()",
        )


def refuse_adapter_folder(ref: str) -> None:
    """Refuse an adapter in a model's place.

    Raises:
        ModelReferenceError: naming how an adapter is loaded.
    """
    folder = Path(os.path.expanduser(ref))
    if (folder / CONFIG).is_file() and not list(folder.glob("model*.safetensors")):
        base = _settings(folder).get("base_model_name_or_path") or "BASE"
        raise ModelReferenceError(
            f"{ref!r} holds an adapter, not a model",
            expected="a model, and the adapter's folder beside it",
            fix=f"LocalModel.load({str(base)!r}, adapter={ref!r}), or ref and adapter in the file",
        )


def _refuse_kind(config: Any, folder: Path) -> None:
    """Refuse kinds that do more, while a context is computed, than the layers they put in place."""
    if config.is_prompt_learning or _kind(config) in PROMPTED:
        raise _unsupported(folder, _kind(config), ROWS)
    if getattr(config, "alora_invocation_tokens", None):
        raise _unsupported(folder, "aLoRA", "which is on for a part of a context only")


def _kind(config: Any) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _unsupported(folder: Path | str, kind: str, why: str) -> ModelSupportError:
    return ModelSupportError(
        f"the adapter in {folder} is of the kind {kind}, {why}",
        expected="an adapter of weights, such as LoRA",
        fix="use another adapter",
    )


def _twin(model: "PreTrainedModel", config: Any, folder: Path) -> "PreTrainedModel":
    """The same model in modules of its own, on the same memory but for what an adapter moves."""
    begun = (getattr(config, name, None) for name in ("init_lora_weights", "init_weights"))
    if any(isinstance(way, str) and way not in UNMOVING for way in begun):
        return copy.deepcopy(model)  # PiSSA, OLoRA and their like begin by changing the base
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        # An adapter may bring weights of its base: biases, or embeddings that were resized.
        brought = {key.replace(".base_layer", "") for key in file.keys()}  # noqa: SIM118
    named = list(model.named_parameters(remove_duplicate=False))
    moved = {id(value) for name, value in named if f"base_model.model.{name}" in brought}
    return copy.deepcopy(
        model,
        {
            id(value): nn.Parameter(value.detach(), requires_grad=False)
            for _, value in named
            if id(value) not in moved
        },
    )


@torch.no_grad()
def _probe(model: Any) -> torch.Tensor:
    """Logits after `PROBE` fixed tokens, (tokens, vocabulary)."""
    count = min(PROBE, model.config.get_text_config().vocab_size)
    ids = torch.arange(count, device=model.device)[None]
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits


def _misfit(folder: Path, what: str) -> ModelReferenceError:
    return ModelReferenceError(
        f"the adapter in {folder} {what}",
        expected="an adapter that was trained on this base model",
        fix="check the base model that the adapter's adapter_config.json names",
    )


def adapter_folder(ref: str, revision: str | None = None) -> Path:
    """The folder of an adapter: a folder as it is, or a Hub id, downloaded.

    Raises:
        ModelReferenceError: No adapter there, or one without safetensors.
        ModelSupportError: An adapter of a kind that puts rows without tokens into a context.
    """
    folder = Path(os.path.expanduser(ref))
    if not os.path.isdir(folder):
        if os.path.exists(folder) or not is_hub_id(ref):
            raise _no_folder(ref, folder)
        folder = _downloaded(ref, revision)
    if not (folder / CONFIG).is_file():
        raise ModelReferenceError(
            f"{ref!r} is no adapter: it has no {CONFIG}",
            expected=SAVED,
            fix="name the folder that save_pretrained wrote",
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelReferenceError(
            f"the adapter {ref!r} has no {WEIGHTS}",
            expected="weights as safetensors; pickled ones are not read",
            fix="save it again with safe_serialization=True",
        )
    kind = str(_settings(folder).get("peft_type", ""))
    if kind in PROMPTED:
        raise _unsupported(folder, kind, ROWS)
    return folder


def _no_folder(ref: str, folder: Path) -> ModelReferenceError:
    is_file = os.path.exists(folder)
    return ModelReferenceError(
        f"the adapter {ref!r} is a file" if is_file else f"there is no adapter folder {ref!r}",
        expected=f"{SAVED}; a path starts at the current folder, and this one leads to "
        f"{folder.absolute()}",
        fix="name the folder that holds it" if is_file else "check the path",
    )


def adapted_identity(base: ModelIdentity, folder: Path) -> ModelIdentity:
    """Who a base with an adapter is: other weights, of the same configuration and tokenizer."""
    settings = {name: value for name, value in _settings(folder).items() if name not in UNKEYED}
    text = json.dumps(settings, sort_keys=True, default=str)
    parts = "\n".join((base.weights, text, digest_blake3(folder / WEIGHTS)))
    return ModelIdentity(blake3(parts.encode()).hexdigest(), base.config, base.tokenizer)


def _settings(folder: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelReferenceError(
            f"{folder / CONFIG} cannot be read: {error}", expected="an adapter's settings as JSON"
        ) from error
    return settings if isinstance(settings, dict) else {}


def _downloaded(ref: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=["adapter_*"]))
    except (HFValidationError, OSError, ValueError) as error:  # the Hub's own errors are OSErrors
        raise ModelReferenceError(
            f"there is no adapter {ref!r}: {first_line(error)}",
            expected=f"{SAVED}; there is no folder {Path(ref).absolute()} either",
            fix="check the name, or download it to a folder first",
        ) from error


def refuse_second_adapter(ref: str, adapter: str | None) -> None:
    """Refuse a model that has an adapter already.

    Raises:
        ModelSupportError: It has one.
    """
    if adapter is not None:
        raise ModelSupportError(
            f"{ref or 'the model'} has the adapter {adapter!r} already",
            expected="a base model without one",
            fix="call with_adapter on the base",
        )
