"""One bridge in one folder: its weights, its manifest and its card."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.channels.bridges.card import card
from unspoken.channels.bridges.manifest import (
    AGAIN,
    EMBEDDINGS,
    TENSORS,
    BridgeManifest,
    EmbeddingsFile,
    TensorFile,
)
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.atomic_folder import steady
from unspoken.channels.storage.entry_kind import EntryKind, few
from unspoken.channels.storage.files import digest_blake3

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BRIDGE",
    "CARD",
    "FILES",
    "MANIFEST",
    "check",
    "copy",
    "read",
    "read_embeddings",
    "read_manifest",
    "remove",
    "verify",
    "write",
]

CARD, MANIFEST = "README.md", "bridge.json"
FILES = (MANIFEST, TENSORS, CARD)

MANIFEST_LIMIT = 64 * 1024 * 1024
BRIDGE = EntryKind(
    what="bridge",
    making="making this bridge",
    files=FILES,
    marks=(MANIFEST, TENSORS),
    beside=(EMBEDDINGS, ".cache", ".DS_Store", ".gitattributes"),  # what the Hub and macOS add
    error=BridgeError,
    again=AGAIN,
)


def write(
    folder: Path,
    manifest: BridgeManifest,
    tensors: "Mapping[str, Tensor]",
    embeddings: "Mapping[str, Tensor] | None" = None,
) -> BridgeManifest:
    """Write a bridge into `folder`, in place of the one that is there.

    Args:
        folder: Where; its parents are made.
        manifest: What the bridge is; its ``tensors`` and ``digest`` are filled in here.
        tensors: Its weights by name, of any shape, on any device.
        embeddings: Weights of the bridge of embeddings alone, where the manifest has one.

    Returns:
        The manifest as written.

    Raises:
        BridgeError: No tensors, values that are not finite, or a folder that cannot be written or
            holds other things.
    """
    _require_sound(tensors)
    with BRIDGE.staged(folder) as made:
        digest, size = _save(tensors, made / TENSORS)
        update: dict[str, Any] = {"tensors": TensorFile(blake3=digest, bytes=size)}
        update["embeddings"] = None
        if manifest.embeddings is not None and embeddings is not None:
            digest, size = _save(embeddings, made / EMBEDDINGS)
            file = EmbeddingsFile(blake3=digest, bytes=size)
            update["embeddings"] = manifest.embeddings.model_copy(update={"tensors": file})
        filled = manifest.model_copy(update=update).sealed()
        (made / MANIFEST).write_text(filled.to_json(), encoding="utf-8")
        (made / CARD).write_text(card(filled), encoding="utf-8")
    return filled


def read(folder: Path) -> "tuple[BridgeManifest, dict[str, Tensor]]":
    """Read a bridge, all of it checked; its tensors are on the CPU.

    Nothing is allocated for tensors before the file's size, header and digest have been checked.

    Raises:
        BridgeError: Missing, broken, or with files that are not a bridge's.
    """
    return steady(folder, _read)


def read_embeddings(folder: Path) -> "dict[str, Tensor] | None":
    """Weights of the bridge of embeddings alone, by name, on the CPU; None where there is none.

    Raises:
        BridgeError: The file is missing, or another than the manifest says.
    """

    def once(place: Path) -> "dict[str, Tensor] | None":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        manifest = _check(place, alone=True, links=False)
        if manifest.embeddings is None:
            return None
        _require_digest(place / EMBEDDINGS, manifest.embeddings.tensors.blake3)
        try:
            return dict(load_file(place / EMBEDDINGS))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise BridgeError(f"{place / EMBEDDINGS} cannot be read: {error}", fix=AGAIN) from error

    return steady(folder, once)


def verify(folder: Path) -> BridgeManifest:
    """Check all that `read` checks, digest included, and load no tensor.

    Raises:
        BridgeError: As `read`.
    """
    return steady(folder, _verify)


def check(folder: Path) -> BridgeManifest:
    """Check a bridge's files, manifest and size. The tensors' digest is left to `read` and
    `verify`.

    Raises:
        BridgeError: As `read`.
    """
    return steady(folder, lambda place: _check(place, alone=True, links=False))


def read_manifest(folder: Path) -> BridgeManifest:
    """Read a bridge's manifest alone.

    Raises:
        BridgeError: It is missing or broken.
    """
    return steady(folder, _manifest)


def copy(source: Path, folder: Path, *, links: bool = False) -> BridgeManifest:
    """Copy a bridge, checked at both ends; other files beside it stay behind.

    Args:
        source: The bridge.
        folder: Where to.
        links: Whether its files may be links, as those of the Hub's own cache are.

    Raises:
        BridgeError: `source` is broken, or `folder` cannot be written or holds other things.
    """

    def once(found: Path) -> BridgeManifest:
        with _opened(found, alone=False, links=links):
            pass
        with BRIDGE.staged(folder) as made:
            for name in _files_of(read_manifest(found)):
                shutil.copyfile(found / name, made / name)
            return _verify(made)

    return steady(source, once)


def remove(folder: Path) -> None:
    """Remove a bridge, broken or not, at one stroke.

    Raises:
        BridgeError: There is none, or the folder holds other things or cannot be removed.
    """
    BRIDGE.discard(folder)


def _require_sound(tensors: "Mapping[str, Tensor]") -> None:
    if not tensors:
        raise BridgeError("the bridge has no tensors", expected="at least one")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise BridgeError(
                f"the bridge's tensor {name} has values that are not finite",
                expected="finite values",
                fix="fit it again with more regularisation, or on more text",
            )


def _save(tensors: "Mapping[str, Tensor]", file: Path) -> tuple[str, int]:
    """Write tensors in the order of their names, each on its own; the file's digest and size."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain, seen = {}, set()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        place = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    try:
        save_file(plain, file, metadata={"format": "pt"})
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    return digest_blake3(file), file.stat().st_size


def _read(folder: Path) -> "tuple[BridgeManifest, dict[str, Tensor]]":
    with _opened(folder, alone=True) as (manifest, tensors):
        weights = {name: tensors.get_tensor(name) for name in sorted(tensors.keys())}
    return manifest, weights


def _verify(folder: Path) -> BridgeManifest:
    with _opened(folder, alone=True) as (manifest, _):
        if manifest.embeddings is not None:
            _require_digest(folder / EMBEDDINGS, manifest.embeddings.tensors.blake3)
    return manifest


@contextmanager
def _opened(
    folder: Path, *, alone: bool, links: bool = False
) -> Iterator[tuple[BridgeManifest, Any]]:
    """A bridge whose files, size, header and digest are in order, its tensors not yet loaded."""
    from safetensors import SafetensorError, safe_open

    manifest, file = _check(folder, alone=alone, links=links), folder / TENSORS
    try:
        before = _stamp(file)
        with safe_open(file, framework="pt", device="cpu") as tensors:
            _require_digest(file, manifest.tensors.blake3)
            yield manifest, tensors
        if _stamp(file) != before:  # torch opens the file once more, by its name
            raise BridgeError(
                f"{file} was changed while it was read",
                expected="a file that nobody writes",
                fix="try again",
            )
    except (SafetensorError, OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        raise BridgeError(
            f"{file} cannot be read: {error}", expected="a whole safetensors file", fix=AGAIN
        ) from error


def _stamp(file: Path) -> tuple[int, int, int]:
    """Tells a file from another that takes its place."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check(folder: Path, *, alone: bool, links: bool) -> BridgeManifest:
    """Check names, manifest and size; with `alone`, refuse files that are not a bridge's."""
    _require_files(folder, FILES, alone=alone, perhaps=EMBEDDINGS)
    if not links:
        _refuse_links(folder)
    manifest = _manifest(folder)
    _require_files(folder, _files_of(manifest), alone=alone)
    _require_size(folder / TENSORS, manifest.tensors.bytes)
    if manifest.embeddings is not None:
        _require_size(folder / EMBEDDINGS, manifest.embeddings.tensors.bytes)
    return manifest


def _files_of(manifest: BridgeManifest) -> tuple[str, ...]:
    """Names of a bridge's files."""
    return FILES if manifest.embeddings is None else (*FILES, EMBEDDINGS)


def _require_size(file: Path, wanted: int) -> None:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise BridgeError(f"{file} cannot be read: {error}", fix=AGAIN) from error
    if size != wanted:
        raise BridgeError(
            f"{file} has {size:,} bytes",
            expected=f"{wanted:,} bytes, as {MANIFEST} says",
            fix=AGAIN,
        )


def _require_digest(file: Path, wanted: str) -> None:
    found = digest_blake3(file)
    if found != wanted:
        raise BridgeError(
            f"{file} has the digest {found[:16]}",
            expected=f"{wanted[:16]}, as {MANIFEST} says",
            fix=AGAIN,
        )


def _require_files(folder: Path, files: tuple[str, ...], *, alone: bool, perhaps: str = "") -> None:
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise BRIDGE.missing(folder) from error
    if missing := sorted(set(files) - names):
        raise BridgeError(
            f"the bridge {folder} lacks {few(missing)}", expected=few(files), fix=AGAIN
        )
    if alone and (extra := sorted(names - {*files, perhaps})):
        raise BridgeError(
            f"the bridge {folder} holds {few(extra)} too",
            expected=f"{few(files)} alone",
            fix=f"move {few(extra)} out of the folder",
        )


def _refuse_links(folder: Path) -> None:
    """Refuse files that lie elsewhere, or are none: they lead a reader out of the folder."""
    try:
        strange = [path.name for path in folder.iterdir() if path.is_symlink()]
        strange += [name for name in FILES if not (folder / name).is_file()]
    except OSError as error:
        raise BridgeError(f"{folder} cannot be read: {error}", fix=AGAIN) from error
    if strange:
        raise BridgeError(
            f"the bridge {folder} holds {few(sorted(strange))}, which is a link or no plain file",
            expected=f"{few(FILES)} as plain files",
            fix="copy the bridge with `unspoken bridge push` or `unspoken bridge pull`",
        )


def _manifest(folder: Path) -> BridgeManifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise BRIDGE.missing(folder)
    try:
        if (size := file.stat().st_size) > MANIFEST_LIMIT:
            raise BridgeError(
                f"{file} has {size:,} bytes", expected=f"{MANIFEST_LIMIT:,} at most", fix=AGAIN
            )
        text = file.read_bytes()
    except OSError as error:
        raise BridgeError(f"{file} cannot be read: {error}", fix=AGAIN) from error
    return BridgeManifest.parse(text, str(file))
