"""``unspoken profile``: which layers a fine-tune must compute anew of another's cache."""

import sys
from math import log10
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from unspoken.agents.cli.console import print_json, print_table, shown, size, stderr, stdout
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.finetunes.profile import Estimate, Profile

__all__ = ["print_profile", "profile"]

WIDTH = 24
LEAST, MOST = -6, 0
"""Powers of ten, in nats, between which the bars run."""


def profile(
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
        int, typer.Option(min=12, help="Messages to measure on; a third of them to search with.")
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
    """Measure two fine-tunes of one base, and keep what was found for the planner."""
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

    looked = max(passages // 3, 2)
    settings = Settings(tokens=tokens, search=looked, judge=passages - looked, seed=seed)
    plan = ProfilePlan(data, settings, again, command=join(["unspoken", *sys.argv[1:]]))
    title = f"{sharer} -> {receiver}"
    with reporting(console, f"measuring {title}", quiet=as_json) as report:
        found, folder = profile_pair(
            *models,
            plan,
            report=lambda stage, part: report(title, stage, part),
            draw=draw_profile if can_draw() else None,
        )
    if figure is not None:
        draw_profile(found, figure)
    asked = data is not None and found.data.name != data.name
    if not again and (asked or found.command != plan.command):
        when = f"measured on {found.created} on {found.data.name}"
        console.print(shown(f"this pair has a profile already, {when}; --again measures it again"))
    if not can_draw():
        console.print(
            shown('no figure: matplotlib is not installed (pip install "unspoken[figures]")')
        )
    if as_json:
        print_json({"path": str(folder), **found.model_dump(mode="json", by_alias=True)})
        return
    print_profile(stdout(), found)
    console.print(shown(f"kept in {folder}"))


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


def print_profile(console: Console, profile: "Profile") -> None:
    """Print a profile: a row per point of the front, with a bar for its KL on a scale of powers of
    ten.
    """
    places = list(profile.points[0].places)
    columns = [
        "layers recomputed",
        "share",
        "speed",
        "bytes a token",
        *_columns(places),
        "prefix, log scale",
    ]
    cells = []
    for point in profile.points:
        found = [point.places[place] for place in places]
        speed = "–" if point.speedup is None else f"{point.speedup:.2f}x"
        figures = [text for one in found for text in _cells(one, first=one is found[0])]
        cells.append(
            [
                point.named,
                f"{point.share:.0%}",
                speed,
                size(point.bytes_per_token),
                *figures,
                _bar(found[0].kl),
            ]
        )
    title = f"{profile.sharer.ref} -> {profile.receiver.ref}"
    print_table(console, title, columns, cells, words=[0, len(columns) - 1])
    told = profile.settings
    console.print(
        shown(
            "KL in nats a token to the receiver's own prefill, upper end of its 95 % interval in "
            "brackets; "
            f"{told['judged_on']} messages of {profile.data.name}, {profile.searched} choices "
            "searched on "
            f"{told['searched_on']} others; speed: first token by text over this, "
            f"{told['timed_tokens']} tokens"
        )
    )


def _columns(places: list[str]) -> list[str]:
    return [
        name
        for place in places
        for name in ((f"KL {place}", "top-1") if place == places[0] else (f"KL {place}",))
    ]


def _cells(one: "Estimate", *, first: bool) -> list[str]:
    kl = f"{one.kl:.4f} ({one.high:.4f})"
    return [kl, f"{one.top1:.1%}"] if first else [kl]


def _bar(kl: float) -> str:
    """A bar from 10^-6 to 1 nat."""
    at = min(max(log10(max(kl, 10.0**LEAST)), LEAST), MOST)
    return "█" * round(WIDTH * (at - LEAST) / (MOST - LEAST))
