"""The model card of a bridge, ``README.md``, with the front matter that the Hub reads."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unspoken.channels.bridges.manifest import Audit, BridgeManifest, ModelDescription
from unspoken.channels.sequences import distinct
from unspoken.channels.storage.side import short_name

ORIGINALS = {
    "embedded:gemma3-270m": "google/gemma-3-270m",
    "embedded:smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""What the embedded models are copies of, on the Hub."""


MOST_ROWS = 40


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fit_command(manifest: BridgeManifest) -> str:
    """The command that made the bridge, as it was recorded, or the plainest that makes one."""
    command = manifest.fit.get("command")
    plain = f"unspoken bridge fit {manifest.sharer.ref} {manifest.receiver.ref}"
    return command if isinstance(command, str) and command else plain


def card(manifest: BridgeManifest) -> str:
    """The card: YAML front matter, then what the bridge is, how good, and how to use it."""
    sharer, receiver = manifest.sharer, manifest.receiver
    parts = [
        _front_matter(manifest),
        f"# {short_name(sharer.ref)} → {short_name(receiver.ref)}",
        f"A bridge: it maps a KV cache of {_code(sharer.ref)} into one of {_code(receiver.ref)}, "
        "so that an agent\n"
        "on the second model can take over what an agent on the first has read, without reading it "
        "again. It belongs\n"
        "to these very weights and to no others.",
        _table(("", "sharer", "receiver"), _sizes(sharer, receiver)),
        _table(("bridge", ""), _facts(manifest)),
        "## How good it is",
        _audit(manifest.audit),
        "## How to use it",
        _usage(manifest),
        "## How it was made",
        f"```sh\n{fit_command(manifest)}\n```",
        _table(("setting", "value"), ((name, _shown(x)) for name, x in manifest.config.items())),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: BridgeManifest) -> str:
    refs = (manifest.sharer.ref, manifest.receiver.ref)
    named = (ORIGINALS.get(ref, ref) for ref in refs)
    models = distinct(name for name in named if _HUB_ID.fullmatch(name))
    lines = ["library_name: unspoken", "tags:", *_items(["unspoken", "kv-cache", "bridge"])]
    if models:
        lines += ["base_model:", *_items(models), "base_model_relation: adapter"]
    return "\n".join(["---", *lines, "---"])


def _items(names: Sequence[str]) -> Iterator[str]:
    return (f"- {json.dumps(name)}" for name in names)  # a JSON string is a YAML one too


def _sizes(sharer: ModelDescription, receiver: ModelDescription) -> Iterator[tuple[str, ...]]:
    def listed(side: ModelDescription, field: str) -> str:
        numbers = sorted({getattr(layer, field) for layer in side.geometry.layers})
        return " or ".join(map(str, numbers))

    both = (sharer, receiver)
    yield "model", *(_code(side.ref) for side in both)
    yield "layers", *(str(len(side.geometry.layers)) for side in both)
    yield "KV heads", *(listed(side, "kv_heads") for side in both)
    yield "head size", *(listed(side, "head_dim") for side in both)
    yield "cache fitted in", *(side.layer_dtype for side in both)
    for field in ("weights", "config", "tokenizer"):
        yield field, *(_code(getattr(side.identity, field)[:16]) for side in both)


def _facts(manifest: BridgeManifest) -> Iterator[tuple[str, ...]]:
    data = manifest.data
    yield "size", f"{manifest.tensors.bytes:,} bytes, {manifest.dtype}"
    yield "made", f"{manifest.created.isoformat()} by unspoken {manifest.unspoken}"
    yield "fitted on", f"{data.tokens:,} tokens of {', '.join(data.sources)} (seed {data.seed})"
    for name, value in manifest.fit.items():
        if name != "command":
            yield f"fit: {name}", _shown(value)


def _audit(audit: Audit | None) -> str:
    if audit is None:
        return "Not measured yet: `unspoken bridge audit` does."
    files = ", ".join(f"{file.name} ({file.rows} rows)" for file in audit.files)
    where = f"Measured on {audit.date.isoformat()}" + (f" on {files}." if files else ".")
    figures = audit.summary
    shown = ((name, _shown(value)) for name, value in figures.items())
    columns = distinct(key for row in audit.rows for key in row)
    rows = (tuple(_shown(row.get(key)) for key in columns) for row in audit.rows[:MOST_ROWS])
    more = len(audit.rows) - MOST_ROWS
    table = _table(columns, rows) if columns else ""
    rest = f"{more} rows more are in `bridge.json`." if more > 0 else ""
    parts = (where, _table(("figure", "value"), shown), table, rest)
    return "\n\n".join(part for part in parts if part)


def _usage(manifest: BridgeManifest) -> str:
    sharer, receiver = manifest.sharer.ref, manifest.receiver.ref
    name = f"{short_name(sharer)}-{short_name(receiver)}"
    return (
        "Put it into your store, from this folder or from the Hub:\n\n"
        f"```sh\nunspoken bridge pull ./FOLDER           # or OWNER/{name}\n"
        f"unspoken bridge show {sharer} {receiver}\n```\n\n"
        f"An edge from an agent on {_code(sharer)} to one on {_code(receiver)} finds it there."
    )


def _table(columns: Sequence[str], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [_line(row) for row in rows]
    return "\n".join([_line(columns), "|---" * len(columns) + "|", *lines]) if lines else ""


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells) + " |"


def _code(text: str) -> str:
    return f"`{text}`" if "`" not in text else text


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
