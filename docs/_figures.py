"""Draw the documentation's figures again, and say which no longer hold.

``make figures DATA=DIR`` reruns every command of ``_figures.yaml``, which takes hours; with
``ONLY=NAME`` those of that name alone. A figure that was published and is not found again is named
with its page, and the exit status is 1.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LIST = DOCS / "_figures.yaml"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure on a page.

    Attributes:
        page: The page, from the repository's root.
        key: Where the command's JSON has it, with dots between levels; in its ``summary``.
        published: The figure as the page prints it.
        words: The words that it stands in on the page.
        low: The lowest value that still bears it out.
        high: The highest.
    """

    page: str
    key: str
    published: str
    words: str
    low: float
    high: float

    def problem(self, found: object) -> str | None:
        """Why a value does not bear it out; None where it does."""
        told = f"{self.page}: {self.key} is published as {self.published}, found {found}"
        if not isinstance(found, bool | int | float):
            return told
        if self.low <= float(found) <= self.high:
            return None
        return f"{told}; {self.low:.4g} to {self.high:.4g} would hold"

    def is_on(self, text: str) -> bool:
        """Whether the page's text has it; line breaks do not matter."""
        return _flat(self.words) in _flat(text)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A command and the figures that come of it.

    Attributes:
        name: Its name.
        command: What is run after ``python``; files of public data stand in braces.
        measured: When and on what machine, as published.
        rows: How many rows, of what.
        figures: The figures.
    """

    name: str
    command: str
    measured: str
    rows: str
    figures: tuple[Figure, ...]


def number(published: str) -> float:
    """A figure as the pages print it: ``15.3x``, ``95.9 %``, ``2,000``, ``yes``."""
    if published in ("yes", "no"):
        return float(published == "yes")
    text = published.replace(",", "").replace("−", "-")
    share = text.endswith("%")
    return float(text.rstrip("%x ")) / (100 if share else 1)


def listed() -> tuple[Mapping[str, Mapping[str, str]], tuple[Measurement, ...]]:
    """The public data with where it is from, and the measurements."""
    told = YAML(typ="safe").load(LIST.read_text(encoding="utf-8"))
    return told["data"], tuple(_measurement(one) for one in told["measurements"])


def _measurement(one: Mapping[str, Any]) -> Measurement:
    figures = []
    for key, entry in one["figures"].items():
        # Without more, a figure is to be within the measurement's tolerance; 0 where it counts.
        given = entry if isinstance(entry, Mapping) else {"published": entry}
        published = str(given["published"])
        value = number(published)
        room = abs(value) * given.get("tolerance", one["tolerance"])
        figures.append(
            Figure(
                page=given.get("page", one["page"]),
                key=key.partition(" ")[0],
                published=published,
                words=given.get("words", f"`{key}`: **{published}**"),
                low=given.get("at_least", -1e300 if "at_most" in given else value - room),
                high=given.get("at_most", 1e300 if "at_least" in given else value + room),
            )
        )
    return Measurement(
        name=one["name"],
        command=one["command"],
        measured=one["measured"],
        rows=one["rows"],
        figures=tuple(figures),
    )


def check(measurement: Measurement, data: Path | None) -> Iterator[str]:
    """Run a measurement and give what no longer holds."""
    missing: list[str] = []
    words = [_filled(word, data, missing) for word in shlex.split(measurement.command)]
    if missing:
        yield f"{measurement.name}: not measured, for there is no {', '.join(missing)} (DATA=DIR)"
        return
    print(f"{measurement.name}: {shlex.join(words)}", flush=True)
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        summary = json.loads(ran.stdout)["summary"] if ran.returncode == 0 else None
    except (ValueError, KeyError, TypeError):
        summary = None
    if not isinstance(summary, dict):
        yield f"{measurement.name}: not measured, exit status {ran.returncode} and no summary"
        return
    for figure in measurement.figures:
        if problem := figure.problem(_at(summary, figure.key)):
            yield problem


def _filled(word: str, data: Path | None, missing: list[str]) -> str:
    """A word of a command, with files of public data in their place."""
    if not (word.startswith("{") and word.endswith("}")):
        return word
    known, _ = listed()
    name = known[word[1:-1]]["file"]
    if data is None or not (data / name).is_file():
        missing.append(name)
        return word
    return str(data / name)


def _at(summary: Mapping[str, Any], key: str) -> object:
    found: Any = summary
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _flat(text: str) -> str:
    return " ".join(text.split())


def main(arguments: Sequence[str] | None = None) -> int:
    """Rerun what is asked for; the exit status."""
    known, measurements = listed()
    names = [one.name for one in measurements]
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--data", type=Path, help="folder of the public data", metavar="DIR")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.only if name not in names]:
        parser.error(f"there is no {unknown[0]!r}; expected one of {', '.join(names)}")
    if asked.list:
        for one in measurements:
            print(f"{one.name}: {one.command}\n  {len(one.figures)} figures; {one.measured}")
        for name, source in known.items():
            print(f"{{{name}}}: {source['file']} from {source['source']}")
        return 0
    wanted = [one for one in measurements if not asked.only or one.name in asked.only]
    data = None if asked.data is None else asked.data.resolve()
    problems = [problem for one in wanted for problem in check(one, data)]
    for problem in problems:
        print(problem)
    asked_for = sum(len(one.figures) for one in wanted)
    print(f"asked for: {asked_for} figures of {len(wanted)} measurements; {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
