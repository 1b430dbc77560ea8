"""``unspoken profile``: which layers a fine-tune must recompute of another's cache."""

import sys
from math import log10
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from unspoken.agents.cli.console import (
    print_json,
    print_stored,
    print_table,
    shown,
    size,
    stderr,
    stdout,
)
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError, ProfileError

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.finetunes.profile import Estimate, Profile
    from unspoken.channels.finetunes.store import ProfileStore
    from unspoken.channels.storage.store import StoreEntry


WIDTH = 24
LEAST, MOST = -6, 0
"""Powers of ten, in nats, between which the bars run."""

BOUND = 0.01
"""Nats: an edge's own ``max_kl`` where it names none."""

Named = Annotated[
    str, typer.Argument(metavar="PROFILE", help="Its folder, or the folder's name in your store.")
]


def no_command(words: list[str]) -> InputError:
    """The error of two models that stand where a command is expected."""
    return InputError(
        f"there is no command `unspoken profile {words[0]}`",
        expected="fit, list, show or remove",
        fix=f"unspoken profile fit {join(words)}",
    )


def fit(
    sharer: Annotated[
        str, typer.Argument(metavar="SHARER", help="The model whose cache is handed over.")
    ],
    receiver: Annotated[
        str, typer.Argument(metavar="RECEIVER", help="A fine-tune of the same base that reads it.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Plain text, or question-answering rows (.jsonl), in place of built-in text.",
        ),
    ] = None,
    sharer_adapter: Annotated[
        str | None, typer.Option(metavar="DIR", help="An adapter on the sharer.")
    ] = None,
    receiver_adapter: Annotated[
        str | None, typer.Option(metavar="DIR", help="An adapter on the receiver.")
    ] = None,
    passages: Annotated[
        int,
        typer.Option(
            min=12, help="How many messages to measure on; a third of them serve the search."
        ),
    ] = 24,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of a message.")] = 256,
    seed: Annotated[int, typer.Option(help="Seed of what is drawn.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Measure a pair again that has a profile.")
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the profile into a .png or .svg file too."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure two fine-tunes of one base, and store the profile for the planner."""
    if data is not None and not data.is_file():
        raise InputError(
            f"there is no file {data}",
            expected="plain text, or rows in a .jsonl file",
            fix="check the path",
        )
    from unspoken.agents.cli.figure import can_draw, draw_profile, require_drawable

    if figure is not None:
        require_drawable(figure)
    console = stderr()
    with reporting(console, "loading models", quiet=as_json) as report:
        models = _loaded((sharer, sharer_adapter), (receiver, receiver_adapter), report)
    from unspoken.channels.finetunes.measure import ProfilePlan, profile_pair
    from unspoken.channels.finetunes.passages import Settings

    searched = max(passages // 3, 2)
    settings = Settings(tokens=tokens, search=searched, assess=passages - searched, seed=seed)
    plan = ProfilePlan(
        data=data, settings=settings, again=again, command=join(["unspoken", *sys.argv[1:]])
    )
    title = f"{sharer} -> {receiver}"
    with reporting(console, f"measuring {title}", quiet=as_json) as report:
        profile, folder = profile_pair(
            *models,
            plan,
            report=lambda stage, part: report(title, stage, part),
            draw=draw_profile if can_draw() else None,
        )
    if figure is not None:
        draw_profile(profile, figure)
    asked = data is not None and profile.data.name != data.name
    if not again and (asked or profile.command != plan.command):
        when = f"measured on {profile.created} on {profile.data.name}"
        console.print(shown(f"this pair has a profile already, {when}; --again measures it again"))
    if not can_draw():
        console.print(
            shown('no figure: matplotlib is not installed (pip install "unspoken[figures]")')
        )
    if as_json:
        print_stored(folder, profile)
        return
    _print_profile(stdout(), profile)
    console.print(shown(f"kept in {folder}"))


def list_(as_json: JsonOption = False) -> None:
    """List the profiles in your store, broken ones with their error."""
    store = _store()
    lines = [_line(entry) for entry in store.entries()]
    if as_json:
        print_json(lines)
        return
    console = stdout()
    if not lines:
        console.print(shown(f"no profiles in {store.root}; measure one: unspoken profile fit A B"))
        return
    columns = ["sharer", "receiver", "dtype", "layers recomputed at 0.01 nats", "speed", "date"]
    rows = [_row(line) for line in lines]
    print_table(console, "Profiles", [*columns, "path"], rows, (0, 1, 2, 5, 6))
    for line in lines:
        if line["error"] is not None:
            console.print(shown("broken: " + line["error"].replace("\n", "\n  ")), soft_wrap=True)


def show(
    name: Named,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the profile into a .png or .svg file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a profile: its front, as it was measured."""
    from unspoken.agents.cli.figure import draw_profile

    store = _store()
    folder = _find(store, name)
    profile = store.manifest(folder)
    if figure is not None:
        draw_profile(profile, figure)
    if as_json:
        print_stored(folder, profile)
        return
    console = stdout()
    _print_profile(console, profile)
    when = f"measured on {profile.created.isoformat()}"
    console.print(shown(f"{when} by: {profile.command}" if profile.command else when))


def remove(
    name: Named, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
) -> None:
    """Remove a profile, broken or not."""
    store = _store()
    folder = _find(store, name)
    if not yes:
        typer.confirm(f"Remove the profile {folder}?", abort=True, err=True)
    store.kind.discard(folder)
    echo(folder)


def _loaded(
    sharer: tuple[str, str | None], receiver: tuple[str, str | None], report: "object"
) -> "tuple[LocalModel, LocalModel]":
    """Both models; one base is loaded once, with an adapter for either end."""
    from unspoken.agents.models.model import LocalModel

    quiet_libraries()
    bases: dict[str, LocalModel] = {}

    def load(ref: str, adapter: str | None) -> LocalModel:
        if ref not in bases:
            bases[ref] = LocalModel.load(ref)
        return bases[ref] if adapter is None else bases[ref].with_adapter(adapter)

    return load(*sharer), load(*receiver)


def _store() -> "ProfileStore":
    from unspoken.channels.finetunes.store import ProfileStore

    return ProfileStore()


def _find(store: "ProfileStore", name: str) -> Path:
    """The folder that a person named."""
    for folder in (Path(name).expanduser(), store.root / name):
        if folder.is_dir():
            return folder
    names = [entry.path.name for entry in store.entries()]
    raise ProfileError(
        f"there is no profile {name}",
        expected="one of: " + "; ".join(names) if names else "a profile, and there is none yet",
        fix="see `unspoken profile list`, or measure one: unspoken profile fit SHARER RECEIVER",
    )


def _line(entry: "StoreEntry[Profile]") -> dict[str, Any]:
    """A profile in JSON, broken or not."""
    profile = entry.manifest if entry.error is None else None
    within = profile.within(BOUND, moved=False) if profile else []
    point = within[0] if within else None
    return {
        "sharer": profile.sharer.ref if profile else None,
        "receiver": profile.receiver.ref if profile else None,
        "dtype": profile.receiver.layer_dtype if profile else None,
        "recompute": [list(layers) for layers in point.layer_ranges] if point else None,
        "layers": point.named if point else None,
        "speedup": point.speedup if point else None,
        "date": profile.created.isoformat() if profile else None,
        "path": str(entry.path),
        "error": str(entry.error) if entry.error else None,
    }


def _row(line: dict[str, Any]) -> list[str]:
    ends = [line[name] or "?" for name in ("sharer", "receiver", "dtype")]
    speed = _speed(line["speedup"])
    return [*ends, line["layers"] or "–", speed, line["date"] or "broken", line["path"]]


def _speed(speedup: float | None) -> str:
    return "–" if speedup is None else f"{speedup:.2f}x"


def _print_profile(console: Console, profile: "Profile") -> None:
    """Print a row per point of the front, with a bar for its KL on a scale of powers of ten."""
    first, *others = profile.points[0].places
    columns = ["layers recomputed", "share", "speed", "bytes a token", f"KL {first}", "top-1"]
    columns += [*(f"KL {place}" for place in others), "prefix, log scale"]
    rows = []
    for point in profile.points:
        at_first = point.places[first]
        rows.append(
            [
                point.named,
                f"{point.share:.0%}",
                _speed(point.speedup),
                size(point.bytes_per_token),
                _kl(at_first),
                f"{at_first.top1:.1%}",
                *(_kl(point.places[place]) for place in others),
                _bar(at_first.kl),
            ]
        )
    title = f"{profile.sharer.ref} -> {profile.receiver.ref}"
    print_table(console, title, columns, rows, words=[0, len(columns) - 1])
    settings = profile.settings
    console.print(
        shown(
            "KL in nats a token to the receiver's own prefill, upper end of its 95 % interval in "
            f"brackets; {settings['judged_on']} messages of {profile.data.name}, "
            f"{profile.searched} choices searched on {settings['searched_on']} others; speed: "
            f"first token by text over this, {settings['timed_tokens']} tokens"
        )
    )


def _kl(estimate: "Estimate") -> str:
    return f"{estimate.kl:.4f} ({estimate.high:.4f})"


def _bar(kl: float) -> str:
    """A bar from 10^-6 to 1 nat."""
    power = min(max(log10(max(kl, 10.0**LEAST)), LEAST), MOST)
    return "█" * round(WIDTH * (power - LEAST) / (MOST - LEAST))
