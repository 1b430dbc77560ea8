"""Draw a run as an SVG: agents as boxes, edges with what they carried.

``unspoken run FILE --json | python docs/_picture.py > docs/run.svg``
"""

import json
import sys
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Point = tuple[float, float]

WIDTH, HEIGHT = 176, 96  # of an agent's box, in pixels
ACROSS, DOWN = 204, 30  # between two columns of agents, and between two agents of a column
MARGIN, FOOT = 20, 62
GROUND, GREEN = "#f5f7fa", "#2f9e77"
COLOURS = {"reused": GREEN, "projected": "#8a63c4", "recomputed": "#e0a030", "prefilled": "#7b8794"}
STYLE = (
    "text{font:13px Helvetica,Arial,sans-serif;fill:#1f2933}"
    ".name{font-size:15px;font-weight:bold}.small{font-size:12px;fill:#52606d}"
)


def corners(report: Mapping[str, Any]) -> dict[str, Point]:
    """The upper left corner of each agent's box, to the right of all agents that it reads."""
    column = dict.fromkeys(report["agents"], 0)
    for _ in column:
        for carried in report["edges"]:
            column[carried["to"]] = max(column[carried["to"]], column[carried["from"]] + 1)
    members: dict[int, list[str]] = {}
    for name, number in column.items():
        members.setdefault(number, []).append(name)
    tallest = max(map(len, members.values()))
    return {
        name: (
            MARGIN + number * (WIDTH + ACROSS),
            MARGIN + (row + (tallest - len(names)) / 2) * (HEIGHT + DOWN),
        )
        for number, names in members.items()
        for row, name in enumerate(names)
    }


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{style} text-anchor="{anchor}">{escape(words)}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"{more}/>'


def agent(name: str, turn: Mapping[str, Any], corner: Point) -> Iterator[str]:
    """A box with the agent's name, the time of its turn, and its prompt as a bar of tokens."""
    x, y = corner
    yield rectangle(x, y, WIDTH, HEIGHT, "#fff", ' rx="8" stroke="#9aa5b1"')
    yield text(x + 12, y + 24, name, "name")
    yield text(x + WIDTH - 12, y + 24, f"{turn['seconds']:.2f} s", "small", "end")
    left = x + 12
    for kind, colour in COLOURS.items():
        share = (WIDTH - 24) * turn[f"{kind}_tokens"] / turn["prompt_tokens"]
        if share:
            yield rectangle(left, y + 35, share, 11, colour)
        left += share
    yield text(x + 12, y + 66, f"{turn['reused_tokens']} of {turn['prompt_tokens']} reused")
    wrote = turn["generated_tokens"]
    yield text(x + 12, y + 84, f"{wrote} tokens written" if wrote else "reads only", "small")


def line(carried: Mapping[str, Any], start: Point, end: Point) -> str:
    """A line from one box to another: whole where the reuse was exact, dashed elsewhere."""
    (x, y), (to_x, to_y) = start, end
    half = (x + to_x) / 2
    dashes = "" if carried["exact"] else ' stroke-dasharray="6 4"'
    return (
        f'<path d="M{x:g} {y:g}C{half:g} {y:g} {half:g} {to_y:g} {to_x - 8:g} {to_y:g}" '
        f'fill="none" stroke="{GREEN}" stroke-width="2"{dashes} marker-end="url(#arrow)"/>'
    )


def label(carried: Mapping[str, Any], start: Point, end: Point) -> Iterator[str]:
    """The mode, tokens, bytes and time of a message, in the middle of its line."""
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    how = f"{carried['mode']}, {'exact' if carried['exact'] else 'approximate'}"
    tokens = f"{carried['reused']} of {carried['tokens']} tokens reused"
    size = f"{carried['bytes'] / 1e6:.1f} MB, {1000 * carried['seconds']:.1f} ms"
    yield rectangle(x - 76, y - 23, 152, 46, GROUND)
    for row, words in enumerate((how, tokens, size)):
        yield text(x, y - 10 + 15 * row, words, "small", "middle")


def picture(report: Mapping[str, Any]) -> str:
    """The whole picture, with the time and the memory of the run at its foot."""
    at = corners(report)
    width = max(x for x, _ in at.values()) + WIDTH + MARGIN
    height = max(y for _, y in at.values()) + HEIGHT + FOOT
    ends = [
        (
            (at[carried["from"]][0] + WIDTH, at[carried["from"]][1] + HEIGHT / 2),
            (at[carried["to"]][0], at[carried["to"]][1] + HEIGHT / 2),
        )
        for carried in report["edges"]
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>A run of {escape(report['workflow'])}</title>",
        f"<style>{STYLE}</style>",
        '<marker id="arrow" markerWidth="9" markerHeight="8" refX="1" refY="4" orient="auto" '
        f'markerUnits="userSpaceOnUse"><path d="M0 0L9 4L0 8z" fill="{GREEN}"/></marker>',
        rectangle(0, 0, width, height, GROUND, ' rx="10"'),
        *(line(carried, *pair) for carried, pair in zip(report["edges"], ends, strict=True)),
    ]
    for carried, pair in zip(report["edges"], ends, strict=True):
        parts += label(carried, *pair)
    for name, turns in report["agents"].items():
        parts += agent(name, turns[-1], at[name])
    foot = height - 24
    for number, (kind, colour) in enumerate(COLOURS.items()):
        parts.append(rectangle(MARGIN + 100 * number, foot - 10, 12, 12, colour))
        parts.append(text(MARGIN + 18 + 100 * number, foot, kind, "small"))
    held = f"{report['peak_state_bytes'] / 1e6:.1f} MB of state held at most"
    summary = f"{report['workflow']}: {report['seconds']:.2f} s, {held}"
    parts.append(text(width - MARGIN, foot, summary, "small", "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(picture(json.load(sys.stdin)))
