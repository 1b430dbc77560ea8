"""``unspoken bridge``: the trained bridges of this machine, and moving them between machines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.agents.cli.audit_view import figure_of, print_audit
from unspoken.agents.cli.console import (
    print_facts,
    print_json,
    print_stored,
    print_table,
    shown,
    size,
    stderr,
    stdout,
)
from unspoken.agents.cli.figure import draw
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import BridgeError, InputError, ModelReferenceError

if TYPE_CHECKING:
    from unspoken.channels.bridges.manifest import BridgeManifest, ModelDescription
    from unspoken.channels.bridges.store import BridgeEntry, BridgeStore
    from unspoken.channels.kv.geometry import ModelIdentity


MOST_LISTED = 6

LISTED = ("message_kept_low", "sharer_adds_low", "task_difference_low")
"""Figures of an audit that an edge is held to."""

First = Annotated[
    str,
    typer.Argument(
        metavar="SHARER", help="The model whose cache is read. Alone: the bridge's folder."
    ),
]
Second = Annotated[
    str | None, typer.Argument(metavar="RECEIVER", help="The model whose cache is made.")
]


def list_(as_json: JsonOption = False) -> None:
    """List the bridges of your store and of $UNSPOKEN_BRIDGES, broken ones with their error."""
    store = _store()
    entries = store.entries()
    if as_json:
        print_json([_line(entry) for entry in entries])
        return
    console = stdout()
    if not entries:
        console.print(shown(f"no bridges in {_places(store)}; fit one: unspoken bridge fit A B"))
        return
    bounds = ["message kept", "sharer adds", "task difference"]
    columns = ["sharer", "receiver", "size", *bounds, "date", "path"]
    title = "Bridges, by the lower bounds of their audits"
    print_table(console, title, columns, [_row(entry) for entry in entries], (0, 1, 6, 7))
    for entry in entries:
        if entry.error is not None:
            lines = str(entry.error).splitlines()
            console.print(shown("broken: " + "\n  ".join(lines)), soft_wrap=True)
    elsewhere = sum(_from_elsewhere(entry.manifest) for entry in entries if entry.manifest)
    if elsewhere:
        said = f"{elsewhere} not measured here: unspoken bridge audit, or bridges: trust in a file"
        console.print(shown(said), soft_wrap=True)


def _from_elsewhere(manifest: "BridgeManifest") -> bool:
    from unspoken.channels.bridges.trust import measured_here

    return not measured_here(manifest)


def _store() -> "BridgeStore":
    from unspoken.channels.bridges.store import BridgeStore

    return BridgeStore()


def _places(store: "BridgeStore") -> str:
    return ", ".join(map(str, store.roots))


def _line(entry: "BridgeEntry") -> dict[str, Any]:
    """A bridge in JSON, broken or not."""
    manifest, audit = entry.manifest, entry.manifest.audit if entry.manifest else None
    return {
        "sharer": manifest.sharer.ref if manifest else None,
        "receiver": manifest.receiver.ref if manifest else None,
        "bytes": entry.bytes,
        **{name: audit.figure(name) if audit else None for name in LISTED},
        "measured_here": manifest is not None and not _from_elsewhere(manifest),
        "date": manifest.created.isoformat() if manifest else None,
        "path": str(entry.path),
        "error": str(entry.error) if entry.error else None,
    }


def _row(entry: "BridgeEntry") -> list[str]:
    line = _line(entry)
    figures = (figure_of(line[name]) for name in LISTED)
    date = "broken" if entry.error else line["date"]
    return [
        line["sharer"] or "?",
        line["receiver"] or "?",
        size(entry.bytes),
        *figures,
        date,
        line["path"],
    ]


def show(
    first: First,
    second: Second = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the audit into a .png or .svg file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a bridge: whose caches it maps, what it was fitted on, and its audit."""
    from unspoken.channels.bridges.folder import check

    folder = find_folder([first, second] if second else [first])
    manifest = check(folder)
    if figure is not None:
        draw(manifest, figure)
    if as_json:
        print_stored(folder, manifest)
        return
    console = stdout()
    print_facts(console, _facts(folder, manifest))
    if manifest.audit is None:
        console.print("\nNot audited yet: unspoken bridge audit")
        return
    console.print()
    print_audit(console, manifest.audit)


def _facts(folder: Path, manifest: "BridgeManifest") -> Iterator[tuple[str, str]]:
    """A manifest in words."""
    for end in ("sharer", "receiver"):
        side: ModelDescription = getattr(manifest, end)
        yield end, f"{side.ref} ({len(side.geometry.layers)} layers, {side.layer_dtype})"
        yield f"{end}'s weights", side.identity.weights
    yield "folder", str(folder)
    yield "weights", f"{size(manifest.tensors.bytes)} in {manifest.dtype}"
    where = "elsewhere, its audit is not believed" if _from_elsewhere(manifest) else "here"
    yield "made", f"{manifest.created.isoformat()} by unspoken {manifest.unspoken}, {where}"
    data = manifest.data
    yield "fitted on", f"{data.tokens:,} tokens of {', '.join(data.sources)}, seed {data.seed}"
    for name, value in manifest.config.items():
        yield f"config: {name}", figure_of(value)
    for name, value in manifest.fit.items():
        yield f"fit: {name}", figure_of(value)


def remove(
    first: First,
    second: Second = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a bridge, broken or not."""
    from unspoken.channels.bridges.folder import remove as remove_folder

    folder = find_folder([first, second] if second else [first])
    if not yes:
        typer.confirm(f"Remove the bridge {folder}?", abort=True, err=True)
    remove_folder(folder)
    echo(folder)


def push(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="BRIDGE PLACE",
            help="SHARER and RECEIVER, or a bridge's folder; then a Hub id (owner/name) or a "
            "folder (./name).",
        ),
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of a new repository; your account's default if left out.",
        ),
    ] = None,
    message: Annotated[str, typer.Option(metavar="TEXT", help="Message of the commit.")] = "",
) -> None:
    """Copy a bridge to the Hub or to a folder, and print its new place."""
    if len(words) not in (2, 3):
        raise InputError(
            f"push takes two or three arguments, not {len(words)}",
            expected="a bridge's folder, or a sharer and a receiver; then a Hub id or a folder",
            fix="unspoken bridge push SHARER RECEIVER owner/name",
        )
    folder = find_folder(words[:-1])
    echo(_store().push(folder, words[-1], private=private, message=message))


def pull(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="A Hub id (owner/name) or a folder.")
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit of a Hub id.")
    ] = None,
) -> None:
    """Fetch a bridge into your store, check all of it, and print its folder.

    It is used once `unspoken bridge audit` has measured it here, or where a workflow says
    `bridges: trust`.
    """
    folder = _store().pull(place, revision)
    said = (
        f"it is used once this machine has measured it: unspoken bridge audit {quote(str(folder))}"
    )
    stderr().print(shown(said), soft_wrap=True)
    echo(folder)


# Which bridge is meant


def find_folder(words: Sequence[str]) -> Path:
    """The folder of the bridge that a person named, by its path or by both its models.

    Raises:
        BridgeError: There is none, or more than one.
    """
    return _by_path(words[0]) if len(words) == 1 else _by_pair(words[0], words[1])


def _by_path(word: str) -> Path:
    store, path = _store(), Path(word).expanduser()
    if path.is_dir():
        return path
    folders = [entry.path for entry in store.entries() if entry.path.name == word]
    if folders:
        return folders[0]
    raise BridgeError(
        f"there is no bridge at {word}",
        expected=_candidates(store.entries()),
        fix="name its folder, or both its models: SHARER RECEIVER",
    )


def _by_pair(sharer: str, receiver: str) -> Path:
    store = _store()
    entries, ends = store.entries(), (_identity(sharer), _identity(receiver))
    matches = [
        entry
        for entry in entries
        if entry.manifest
        and _is_side(entry.manifest.sharer, sharer, ends[0])
        and _is_side(entry.manifest.receiver, receiver, ends[1])
    ]
    if len({entry.manifest.pair for entry in matches if entry.manifest}) > 1:
        raise BridgeError(
            f"more than one bridge from {sharer} to {receiver}",
            expected="one of " + ", ".join(str(entry.path) for entry in matches),
            fix="name the folder",
        )
    if matches:
        return matches[0].path
    raise BridgeError(
        f"there is no bridge from {sharer} to {receiver}",
        expected=_candidates(entries),
        fix=f"fit one: unspoken bridge fit {sharer} {receiver}",
    )


def _is_side(side: "ModelDescription", ref: str, identity: "ModelIdentity | None") -> bool:
    """Whether an end is the model that was named: by identity where it is known unloaded."""
    return side.ref == ref if identity is None else side.to_identity() == identity


def _identity(ref: str) -> "ModelIdentity | None":
    """A model's identity, if it is on this disk and its identity was computed before."""
    from unspoken.agents.models.catalog import list_models, parse
    from unspoken.agents.models.notes import cached_identity

    try:
        reference = parse(ref)
    except ModelReferenceError:
        return None  # it may have gone since the bridge was made
    if reference.kind == "folder":
        return cached_identity(reference.path) if reference.path else None
    names = {ref, reference.name}
    if reference.path is not None:
        names = {str(reference.path.resolve())}
    lines = [line for line in list_models() if line.kind == reference.kind and line.ref in names]
    folders = [line.path for line in lines if line.prepared and line.path]
    return cached_identity(folders[0]) if folders else None


def _candidates(entries: "Sequence[BridgeEntry]") -> str:
    """What there is instead."""
    named = [
        f"{entry.manifest.sharer.ref} {entry.manifest.receiver.ref}"
        if entry.manifest
        else f"{entry.path} (broken)"
        for entry in entries
    ]
    if not named:
        return f"a bridge in {_places(_store())}, which holds none yet"
    more = len(named) - MOST_LISTED
    rest = f"; and {more} more, see `unspoken bridge list`" if more > 0 else ""
    return "one of: " + "; ".join(named[:MOST_LISTED]) + rest
