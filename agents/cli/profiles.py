"""``unspoken profiles``: the profiles of fine-tunes at hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.agents.cli.console import print_json, print_table, shown, stdout
from unspoken.agents.cli.figure import draw_profile
from unspoken.agents.cli.profile import print_profile
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import ProfileError

if TYPE_CHECKING:
    from unspoken.channels.finetunes.store import ProfileStore

__all__ = ["list_", "remove", "show"]

FIELDS = ("sharer", "receiver", "dtype", "recompute", "layers", "speedup", "date", "path", "error")
LEAST = 0.01
"""Nats: an edge's own ``max_kl`` where it names none."""

Named = Annotated[
    str,
    typer.Argument(metavar="PROFILE", help="Its folder, or the folder's name in your store."),
]


def list_(as_json: JsonOption = False) -> None:
    """List the profiles in your store, broken ones with their error."""
    store = _store()
    lines = [_line(store, folder) for folder in store.entry_layers()]
    if as_json:
        print_json(lines)
        return
    console = stdout()
    if not lines:
        console.print(shown(f"no profiles in {store.root}; measure one: unspoken profile A B"))
        return
    columns = [
        "sharer",
        "receiver",
        "dtype",
        "layers recomputed at 0.01 nats",
        "speed",
        "date",
        "path",
    ]
    print_table(console, "Profiles", columns, [_row(line) for line in lines], (0, 1, 2, 5, 6))
    for line in lines:
        if line["error"] is not None:
            console.print(shown("broken: " + line["error"].replace("\n", "\n  ")), soft_wrap=True)


def _store() -> "ProfileStore":
    from unspoken.channels.finetunes.store import ProfileStore

    return ProfileStore()


def _line(store: "ProfileStore", folder: Path) -> dict[str, Any]:
    """A profile in JSON, broken or not."""
    try:
        profile = store.read(folder)
    except ProfileError as error:
        return dict.fromkeys(FIELDS) | {"path": str(folder), "error": str(error)}
    within = profile.within(LEAST, moved=False)
    point = within[0] if within else None
    return {
        "sharer": profile.sharer.ref,
        "receiver": profile.receiver.ref,
        "dtype": profile.receiver.layer_dtype,
        "recompute": [list(group) for group in point.layer_ranges] if point else None,
        "layers": point.named if point else None,
        "speedup": point.speedup if point else None,
        "date": profile.created.isoformat(),
        "path": str(folder),
        "error": None,
    }


def _row(line: dict[str, Any]) -> list[str]:
    speed = "–" if line["speedup"] is None else f"{line['speedup']:.2f}x"
    return [
        line["sharer"] or "?",
        line["receiver"] or "?",
        line["dtype"] or "?",
        line["layers"] or "–",
        speed,
        line["date"] or "broken",
        line["path"],
    ]


def show(
    name: Named,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the profile into a .png or .svg file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a profile: its front, as it was measured."""
    store = _store()
    folder = _find(store, name)
    found = store.read(folder)
    if figure is not None:
        draw_profile(found, figure)
    if as_json:
        print_json({"path": str(folder), **found.model_dump(mode="json", by_alias=True)})
        return
    console = stdout()
    print_profile(console, found)
    made = f"measured on {found.created.isoformat()}"
    console.print(shown(f"{made} by: {found.command}" if found.command else made))


def remove(
    name: Named,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a profile, broken or not."""
    store = _store()
    folder = _find(store, name)
    if not yes:
        typer.confirm(f"Remove the profile {folder}?", abort=True, err=True)
    store.remove(folder)
    typer.echo(folder)


def _find(store: "ProfileStore", name: str) -> Path:
    """The folder that a person named."""
    for folder in (Path(name).expanduser(), store.root / name):
        if folder.is_dir():
            return folder
    names = [folder.name for folder in store.entry_layers()]
    raise ProfileError(
        f"there is no profile {name}",
        expected="one of: " + "; ".join(names) if names else "a profile, and there is none yet",
        fix="see `unspoken profiles list`, or measure one: unspoken profile SHARER RECEIVER",
    )
