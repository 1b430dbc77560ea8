"""Models from the Hugging Face Hub, into its own cache."""

import io
import json
from pathlib import Path
from typing import Any

from unspoken.channels.errors import ModelReferenceError
from unspoken.channels.storage.files import Progress

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
)
UNWANTED = ("*/*", "consolidated*")  # original/, onnx/; a second copy of the same weights
WEIGHTS_BIN = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def download(repo: str, revision: str | None, progress: Progress | None) -> Path:
    """The snapshot folder of `repo`, fetched if need be (``HF_HOME`` and ``HF_HUB_OFFLINE`` apply).

    Only what a causal LM needs is fetched: safetensors (``.bin`` where there are none), the
    configuration and the tokenizer. Progress is reported as the stage ``download``.

    Raises:
        ModelReferenceError: not found, gated, offline, or without a model in it.
    """
    from huggingface_hub import snapshot_download

    settings: dict[str, Any] = {
        "revision": revision,
        "ignore_patterns": list(UNWANTED),
        "tqdm_class": _reporting_bar(progress),
    }
    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(WANTED), **settings))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(repo, allow_patterns=[*WANTED, *WEIGHTS_BIN], **settings)
    except Exception as error:
        cached = _cached(repo, revision)
        if cached is None:
            raise _explained(repo, revision, error) from error
        folder = cached
    require_model_files(folder, repo)
    return folder


def config_folder(repo: str) -> Path:
    """A folder with the ``config.json`` of `repo`, fetched if need be; nothing else is.

    Raises:
        ModelReferenceError: not found, gated, or offline.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, "config.json")).parent
    except Exception as error:
        raise _explained(repo, None, error) from error


def require_model_files(folder: Path, ref: str) -> None:
    """Refuse a folder that lacks the configuration, weights or tokenizer of a model.

    Raises:
        ModelReferenceError: naming what is missing.
    """
    if not folder.joinpath("config.json").is_file():
        raise ModelReferenceError(f"{ref} has no config.json", expected=f"one in {folder}")
    if missing := _missing_weights(folder):
        raise ModelReferenceError(
            f"{ref} lacks weights: {missing[0]}" + (", …" if len(missing) > 1 else ""),
            expected=f"model.safetensors, or all its shards, in {folder}",
            fix="download or copy the model again",
        )
    if not any(folder.joinpath(name).is_file() for name in TOKENIZERS):
        raise ModelReferenceError(
            f"{ref} has no tokenizer",
            expected=f"{', '.join(TOKENIZERS[:-1])} or {TOKENIZERS[-1]} in {folder}",
            fix="save the tokenizer beside the model: tokenizer.save_pretrained(folder)",
        )


def _missing_weights(folder: Path) -> list[str]:
    """Names of the weight files that should be there and are not."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if folder.joinpath(name).is_file():
            return []
        if index.is_file():
            try:
                shards = set(json.loads(index.read_bytes())["weight_map"].values())
            except (ValueError, KeyError, AttributeError):
                return [index.name]
            return sorted(shard for shard in shards if not folder.joinpath(shard).is_file())
    return ["model.safetensors"]


def cached_models() -> list[tuple[str, Path, int]]:
    """Causal LMs in the Hub's cache: id, newest snapshot folder, bytes on disk."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return []
    models = []
    for repo in repos:
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        if repo.repo_type == "model" and newest and _is_causal(newest.snapshot_path):
            models.append((repo.repo_id, newest.snapshot_path, repo.size_on_disk))
    return sorted(models)


def _is_causal(folder: Path) -> bool:
    try:
        names = json.loads((folder / "config.json").read_bytes()).get("architectures") or ()
        return any("CausalLM" in name or "ConditionalGeneration" in name for name in names)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _cached(repo: str, revision: str | None) -> Path | None:
    """A complete snapshot in the cache, for when the Hub cannot be asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        if not isinstance(config, str):
            return None
        require_model_files(Path(config).parent, repo)
    except (ValueError, ModelReferenceError):  # ValueError: not an id the Hub could have
        return None
    return Path(config).parent


def _reporting_bar(progress: Progress | None) -> type[Any]:
    """A tqdm class that prints nothing and reports the bytes it counts."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class ReportingBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            super().__init__(*args, **(settings | {"file": io.StringIO(), "disable": False}))

        def display(self, *_: Any, **__: Any) -> None:
            """Nothing: the caller draws."""

        def update(self, n: float | None = 1) -> object:
            shown: object = super().update(n)
            if progress and self.unit == "B" and self.total:
                progress("download", min(1.0, self.n / self.total))
            return shown

    return ReportingBar


def _explained(repo: str, revision: str | None, error: Exception) -> ModelReferenceError:
    """The error a person can act on."""
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    tried = f"tried {constants.ENDPOINT}/{repo}{at} and the cache {constants.HF_HUB_CACHE}"
    if isinstance(error, errors.GatedRepoError):
        found = f"the Hub model {repo} is gated"
        fix = f"accept its terms at {constants.ENDPOINT}/{repo}, then run `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        found, fix = f"the Hub model {repo} has no revision {revision}", "leave revision out"
    elif isinstance(error, errors.RepositoryNotFoundError):
        found = f"the Hub has no model {repo}, or it is private"
        fix = "check the id; for a private model run `hf auth login`"
    elif constants.is_offline_mode():
        found = f"the Hub model {repo}{at} is not in the cache, and HF_HUB_OFFLINE is set"
        fix = f"unset HF_HUB_OFFLINE and run `unspoken models prepare {repo}` once, or use a folder"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        found = f"the Hub cannot be reached for {repo}{at}, and the cache does not have it"
        fix = "check the network or HF_ENDPOINT, or use a folder or an embedded model"
    else:
        found = f"the Hub model {repo}{at} is not available: {error}"
        fix = "check the network and the free space under HF_HOME, then try again"
    return ModelReferenceError(f"{found} ({tried})", fix=fix)
