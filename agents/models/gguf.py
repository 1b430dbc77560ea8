"""GGUF files turned, once, into a folder of safetensors in the user's cache."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from unspoken.agents.models.quiet import Stage, quiet_transformers, silent
from unspoken.channels.errors import ModelReferenceError, ModelSupportError, UnspokenError
from unspoken.channels.storage.files import (
    Progress,
    cache_root,
    digest_blake3,
    digest_sha256,
    flush_folder,
    read_json,
    write_json,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MANIFEST = "prepared.json"
FORMAT = 2
"""Raised when a conversion comes out otherwise, so that every GGUF is converted again."""

SMALL = 64 * 1024 * 1024
HEADER = 128 * 1024 * 1024
"""Bytes within which a GGUF's metadata and the list of its tensors end."""

WAIT_LIMIT_S = 3600.0
NO_ROOM = ("os error 28", "os error 27", "No space", "File too large")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSource:
    """Where a GGUF comes from.

    Attributes:
        ref: The reference a person wrote; kept in the manifest.
        name: What the prepared folder is called.
        sha256: Of the whole GGUF, in hex.
        locate: Finds the parts that make the GGUF, in order; called only when they are needed.
        fix: What to do when the parts turn out to have another digest.
        notes: Kept in the manifest (license, path of the source).
    """

    ref: str
    name: str
    sha256: str
    locate: Callable[[], tuple[Path, ...]]
    fix: str
    notes: dict[str, str] = field(default_factory=dict)


def prepared_folder(source: GgufSource) -> Path:
    """Where `source` is, or will be, in safetensors."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-.")[:80] or "model"
    return cache_root() / "models" / f"{name}-{source.sha256[:16]}-v{FORMAT}"


def is_whole(folder: Path, *, verify: bool = False) -> bool:
    """Whether a prepared folder holds what its manifest says.

    Sizes are always compared; digests are where a file is under 64 MiB, where its time of change
    is not the one in the manifest, and everywhere with `verify`.
    """
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest.get("format") != FORMAT:
        return False
    try:
        return all(
            _is_unchanged(folder / name, entry, verify) for name, entry in manifest["files"].items()
        )
    except (OSError, KeyError, TypeError, AttributeError):
        return False


def _is_unchanged(file: Path, entry: dict[str, Any], verify: bool) -> bool:
    stat = file.stat()
    if stat.st_size != entry["size"]:
        return False
    if verify or stat.st_size < SMALL or stat.st_mtime_ns != entry["mtime_ns"]:
        return digest_blake3(file) == str(entry["blake3"])
    return True


def prepare_gguf(
    source: GgufSource, *, verify: bool = False, progress: Progress | None = None
) -> Path:
    """The folder with the model of `source` in float32 safetensors, made if it is not there.

    One process converts, others wait for it. A folder that is broken is made again, and so is one
    of an earlier version, which is then removed. Whatever ends the conversion early leaves nothing
    that a later call would take for a model.

    Args:
        source: The GGUF.
        verify: Compare every digest of a folder that is there already.
        progress: Hears the stages ``waiting for another process``, ``join`` or ``check``,
            ``dequantise``, ``write``, ``digest`` and ``remove …``.

    Raises:
        ModelReferenceError: the GGUF is not what it should be, or the cache cannot be written.
        ModelSupportError: transformers cannot read this GGUF.
    """
    target, report = prepared_folder(source), progress or silent
    if is_whole(target, verify=verify):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_process(target, report):
            if not is_whole(target, verify=verify):
                _build(source, target, report)
    except UnspokenError:
        raise
    except Exception as error:
        raise _explained(source, target, error) from error
    return target


@contextmanager
def _only_process(target: Path, report: Progress) -> Iterator[None]:
    """Hold the target's lock, saying so while another process has it."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        with suppress(Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            report("waiting for another process", 0.0)
            lock.acquire(timeout=WAIT_LIMIT_S)
    except Timeout:
        raise ModelReferenceError(
            f"another process has been preparing {target.name} for {WAIT_LIMIT_S:.0f} s",
            expected=f"a free lock {lock.lock_file}",
            fix="end that process, then try again",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _build(source: GgufSource, target: Path, report: Progress) -> None:
    """Convert beside the target, then put the whole folder in its place. The lock is held."""
    prefix = f".{target.name}.tmp-"
    for stale in target.parent.glob(f"{prefix}*"):  # its process is dead: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        gguf, folder = staging / "source" / "model.gguf", staging / "model"
        gguf.parent.mkdir()
        folder.mkdir()
        _bring(source, gguf, report)
        convert(gguf, folder, report)
        _seal(source, folder, report)
        if target.exists():
            os.replace(target, staging / "broken")
        os.replace(folder, target)
        flush_folder(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for older in _older(target):
        shutil.rmtree(older, ignore_errors=True)
        report("remove what an earlier version converted", 1.0)


def _older(target: Path) -> list[Path]:
    """What earlier versions made of the same GGUF."""
    stem = target.name.removesuffix(f"-v{FORMAT}")
    folders = (target.with_name(f"{stem}-v{number}") for number in range(1, FORMAT))
    return [folder for folder in folders if folder.is_dir()]


def _bring(source: GgufSource, gguf: Path, report: Progress) -> None:
    """Put the checked GGUF alone in a folder, where nothing beside it can be mistaken for its own.

    (transformers would read a tokenizer.json or an adapter_config.json that lies next to it.)
    """
    parts = source.locate()
    joined = len(parts) > 1
    digest = digest_sha256(parts, gguf if joined else None, report)
    if digest != source.sha256:
        found = f"the GGUF of {source.ref} has the sha256 {digest}"
        raise ModelReferenceError(found, expected=source.sha256, fix=source.fix)
    if joined:
        return
    try:
        gguf.symlink_to(parts[0].resolve())
    except OSError:  # Windows without developer mode
        shutil.copyfile(parts[0], gguf)


def _seal(source: GgufSource, folder: Path, report: Progress) -> None:
    """Flush the files and write the manifest that makes the folder count."""
    flush_folder(folder)
    files, entries = sorted(folder.iterdir()), {}
    for done, file in enumerate(files, 1):
        file.chmod(0o644)  # safetensors writes 0600; the folder's own mode is the user's umask
        stat, digest = file.stat(), digest_blake3(file)
        entries[file.name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "blake3": digest}
        report("digest", done / len(files))
    manifest = {"format": FORMAT, "ref": source.ref, "sha256": source.sha256}
    write_json(folder / MANIFEST, source.notes | manifest | {"files": entries})
    folder.joinpath(MANIFEST).chmod(0o644)
    flush_folder(folder)


def convert(gguf: Path, folder: Path, report: Progress) -> None:
    """Write the GGUF's model, in float32, and its tokenizer into `folder`.

    float32 because it holds every GGUF type's values exactly; bfloat16 would round them.

    Raises:
        ModelSupportError: weights are missing, the tokenizer does not survive being saved, or the
            packages of the extra `gguf` are not installed.
    """
    _require_reader()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from unspoken.agents.models.checkpoints.gguf_rope import add_rope_scaling
    from unspoken.agents.models.checkpoints.tokenizer import save_tokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    stage = Stage("dequantise", report)
    with quiet_transformers(stage):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **place)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            trust_remote_code=False,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **place,
        )
        model, info = loaded
        if lost := sorted({*info["missing_keys"], *info["mismatched_keys"]}):
            raise ModelSupportError(
                f"the GGUF gives no values for {len(lost)} weights, such as {lost[0]}",
                expected="a GGUF that holds the whole model",
                fix="use the model's safetensors from the Hub",
            )
        add_rope_scaling(gguf, model.config)
        stage.enter("write")
        model.save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        stage.leave()


def read_gguf_config(parts: Sequence[Path]) -> "PreTrainedConfig":
    """The configuration in a GGUF's header; its weights are neither read nor copied.

    Args:
        parts: The parts that make the GGUF, in order.

    Raises:
        ModelSupportError: The packages of the extra `gguf` are not installed.
    """
    _require_reader()
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder, quiet_transformers(Stage("header", silent)):
        gguf = Path(folder, "model.gguf")
        with gguf.open("wb") as file:
            for part in parts:  # the header stands first; what follows is a hole of the right size
                room = max(HEADER - file.tell(), 0)
                with part.open("rb") as source:
                    file.write(source.read(room))
                if room < part.stat().st_size:
                    break
            file.truncate(sum(part.stat().st_size for part in parts))
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, gguf_file=gguf.name, trust_remote_code=False
        )
        return config


def _require_reader() -> None:
    """Refuse to begin where the packages that read GGUF files are not installed."""
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise ModelSupportError(
                f"{package}, which reads GGUF files, is not installed",
                expected="unspoken with its extra `gguf`",
                fix='pip install "unspoken[gguf]"',
            )


def _explained(source: GgufSource, target: Path, error: Exception) -> UnspokenError:
    """The error a person can act on."""
    text = str(error) or type(error).__name__
    full = any(sign in text for sign in NO_ROOM)
    if full or isinstance(error, OSError):
        free = 0.0
        with suppress(OSError):
            free = shutil.disk_usage(target.parent).free / 1e9
        return ModelReferenceError(
            f"{source.ref} cannot be prepared in {target.parent}: {text}",
            expected=f"a folder with room for the model in float32 ({free:.1f} GB are free)",
            fix="free some space, or set UNSPOKEN_CACHE to another folder",
        )
    return ModelSupportError(
        f"{source.ref} cannot be converted: {text}",
        expected="a GGUF of an architecture and quantisation that transformers can read",
        fix="use the model's safetensors from the Hub",
    )
