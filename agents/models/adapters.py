"""Adapters (LoRA and its like, by peft): several on one base that is loaded once."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from blake3 import blake3

from unspoken.agents.models.catalog import is_hub_id
from unspoken.agents.models.quiet import Stage, first_line, quiet_transformers, silent
from unspoken.channels.errors import ModelReferenceError, ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.files import digest_blake3

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterSwitch", "adapted_identity", "adapter_folder"]

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


class AdapterSwitch:
    """Which adapter of a shared model is on; nothing is switched where the right one is on already.

    Args:
        model: The base model, which holds all of its adapters.

    Attributes:
        names: The adapters that were loaded by this switch.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        # Weak, since the weights of a model are known by the model itself.
        self._model = ref(model)
        self.names: set[str] = set()
        self._on: str | None = None

    def adopt(self, other: "AdapterSwitch") -> None:
        """Take over the adapters of a model of which this one's is a copy."""
        self.names, self._on = set(other.names), other._on

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter into the model, unless it is there.

        Raises:
            ModelSupportError: peft is not installed.
            ModelReferenceError: An adapter that does not fit the model.
        """
        if name in self.names:
            return
        try:
            import peft  # noqa: F401 - transformers loads adapters by it
        except ImportError as error:
            raise ModelSupportError(
                "peft, which loads adapters, is not installed",
                expected="unspoken with its extra `adapters`",
                fix='pip install "unspoken[adapters]"',
            ) from error
        model: Any = self._model()
        try:
            with quiet_transformers(Stage("load", silent)), warnings.catch_warnings():
                # Several adapters are the purpose here.
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                info = model.load_adapter(str(folder), adapter_name=name)
        except Exception as error:  # peft raises almost anything here
            self._off()
            raise _misfit(folder, f"could not be loaded: {first_line(error)}") from error
        lost = sorted(getattr(info, "unexpected_keys", None) or ())
        if lost:
            raise _misfit(folder, f"has weights for {lost[0]}, which the model does not have")
        model.eval().requires_grad_(False)
        self.names.add(name)
        self._on = name
        self._off()

    def use(self, name: str | None) -> None:
        """Turn one adapter on and the others off; None leaves the base alone."""
        if name == self._on:
            return
        if name is None:
            self._off()
            return
        model: Any = self._model()
        model.enable_adapters()
        model.set_adapter(name)
        self._on = name

    def _off(self) -> None:
        model: Any = self._model()
        if getattr(model, "_hf_peft_config_loaded", False):
            model.disable_adapters()
        self._on = None


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
        raise ModelSupportError(
            f"the adapter {ref!r} is of the kind {kind}, which puts rows into a context that are "
            "no tokens",
            expected="an adapter of weights, such as LoRA",
            fix="use another adapter",
        )
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
