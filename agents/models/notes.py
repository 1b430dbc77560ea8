"""What is kept on disk of a model's folder, so that it costs once: who it is, what was proved.

A note holds until a file of the folder changes. Size and time of a file are not enough: a copy can
have both of the file that it replaces. So the file's inode and the time of its last change of any
kind, which no program sets, count too.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity, RecurrentPart
from unspoken.channels.storage.files import cache_root, read_json, write_json
from unspoken.channels.storage.side import running_version

KeyPositions = Literal["rotated", "interleaved", "bare", "other"]
"""What a layer's keys hold of their position: its rotary embedding, which turns halves or
neighbours together, nothing, or something else.
"""

FORMAT = 2

KEYED_SUFFIXES = frozenset(
    (".bin", ".gguf", ".jinja", ".json", ".model", ".safetensors", ".tiktoken", ".txt")
)
NOT_KEYED = frozenset(("prepared.json",))


def cached_identity(folder: Path, dtype: torch.dtype | None = None) -> ModelIdentity | None:
    """The identity remembered for `folder`, or None where a file of it has changed since.

    Args:
        folder: Where the model is.
        dtype: What it is loaded as; None for its own type.
    """
    try:
        return ModelIdentity(**_read(folder)[_entry(dtype)])
    except (KeyError, TypeError):
        return None


def remember(
    folder: Path,
    identity: ModelIdentity,
    files: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Keep `identity` for `folder` until one of its files changes.

    Args:
        folder: Where the model was loaded from.
        identity: The model's.
        files: `folder_key` of it, taken before the model was read.
        dtype: What it was loaded as; None for its own type.

    Raises:
        OSError: the user's cache cannot be written.
    """
    note = _read(folder)
    others = note if note.get("key") == dict(files) else {}
    write_json(_note(folder), {**others, "key": dict(files), _entry(dtype): asdict(identity)})


def _entry(dtype: torch.dtype | None) -> str:
    """Name of an identity in a note: types that round nothing have that of the checkpoint."""
    if dtype in (None, torch.float32, torch.float64):
        return "identity"
    return f"identity in {str(dtype).removeprefix('torch.')}"


def cached_positions(folder: Path) -> tuple[KeyPositions, ...] | None:
    """What was proved of each layer's keys in `folder`, or None where nothing holds any more."""
    noted = _read(folder).get("positions")
    if isinstance(noted, list) and all(name in get_args(KeyPositions) for name in noted):
        return tuple(noted)
    return None


def remember_positions(folder: Path, positions: Sequence[str]) -> None:
    """Add what was proved of each layer's keys to a note that still holds, if there is one."""
    note = _read(folder)
    if note:
        with suppress(OSError):  # a cache that cannot be written costs time, not the run
            write_json(_note(folder), {**note, "positions": list(positions)})


def cached_geometry(folder: Path) -> CacheGeometry | None:
    """The cache geometry of the model in `folder` when it was last proved, or None."""
    try:
        noted = _read(folder)["geometry"]
        layers = tuple(_layer(layer) for layer in noted["layers"])
        return CacheGeometry(layers, int(noted["hidden_size"]), int(noted["max_positions"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _layer(noted: Mapping[str, Any]) -> LayerGeometry:
    parts = [
        RecurrentPart(
            name=part["name"], shape=tuple(part["shape"]), dtype=getattr(torch, part["dtype"])
        )
        for part in noted["recurrent"]
    ]
    return LayerGeometry(**{**noted, "recurrent": tuple(parts)})


def remember_geometry(folder: Path, geometry: CacheGeometry) -> None:
    """Add a model's cache geometry to a note that still holds, if there is one that lacks it.

    Without weights not every model can be asked for it: see `hf_geometry`.
    """
    note = _read(folder)
    if not note or "geometry" in note:
        return
    noted = asdict(geometry)
    for part in (part for layer in noted["layers"] for part in layer["recurrent"]):
        part["dtype"] = str(part["dtype"]).removeprefix("torch.")
    with suppress(OSError):
        write_json(_note(folder), {**note, "geometry": noted})


Question = Literal["states", "fills", "layers", "maps", "gradients", "steps", "batches"]
"""What is tried on a model: whether it refuses states, fills, layers apart, maps, and so on."""


def noted_refusal(
    folder: Path, question: Question, how: str, prove: Callable[[], str | None]
) -> str | None:
    """Why the model in `folder` refuses something, from a note that still holds or anew.

    It depends on how this version computes too, so another version's answers do not count.

    Args:
        folder: Where the model was loaded from.
        question: What it may refuse.
        how: All else that the answer depends on, such as the type it computes in.
        prove: Finds the answer: None where it refuses nothing.
    """
    note = _read(folder)
    known = _refusals(note, question)
    if how in known:
        return known[how]
    reason = prove()
    if note:
        with suppress(OSError):
            answers = {"unspoken": running_version(), "answers": {**known, how: reason}}
            write_json(_note(folder), {**note, question: answers})
    return reason


def cached_refusals(folder: Path, question: Question) -> dict[str, str | None]:
    """What is noted of a folder by `noted_refusal`: an answer for each way of computing."""
    return _refusals(_read(folder), question)


def _refusals(note: Mapping[str, Any], question: Question) -> dict[str, str | None]:
    noted = note.get(question)
    if not isinstance(noted, dict) or noted.get("unspoken") != running_version():
        return {}
    known = noted.get("answers")
    known = known if isinstance(known, dict) else {}
    return {how: why for how, why in known.items() if isinstance(why, str | None)}


def folder_key(folder: Path) -> dict[str, Any]:
    """What a note depends on: the folder's files, and what reads them."""
    files = []
    for file in sorted(folder.iterdir()):
        if file.suffix in KEYED_SUFFIXES and file.name not in NOT_KEYED and file.is_file():
            target = file.resolve()  # the Hub's snapshots are links to blobs
            stat = target.stat()
            times = (stat.st_mtime_ns, stat.st_ctime_ns)
            files.append([file.name, target.name, stat.st_size, stat.st_ino, *times])
    readers = {name: metadata.version(name) for name in ("tokenizers", "transformers")}
    return {"format": FORMAT, "folder": str(folder.resolve()), "files": files, "readers": readers}


def _read(folder: Path) -> dict[str, Any]:
    """The note of a folder as it is now; empty where there is none."""
    note = read_json(_note(folder))
    try:
        return note if note and note["key"] == folder_key(folder) else {}
    except (OSError, KeyError, TypeError):
        return {}


def _note(folder: Path) -> Path:
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return cache_root() / "identities" / f"{name}.json"
