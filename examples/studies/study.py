"""What every study does around its measurement: options, models, progress and printing."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from unspoken.agents.bench import (
    DEFAULT_MODEL,
    DEFAULT_SHARER,
    Measured,
    Progress,
    report,
    require_file,
)
from unspoken.agents.cli.bench import print_result
from unspoken.agents.cli.console import print_error, stderr
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import UnspokenError

__all__ = ["BRIDGE", "QA", "TEXT", "Measured", "Progress", "run"]

TEXT = "plain text to cut passages from, in place of the built-in one"
QA = "question-answering rows"
BRIDGE = "folder of the bridge; your store's if left out"


def run(
    measure: Callable[..., Measured],
    about: str | None,
    *,
    pair: bool = True,
    files: dict[str, str],
    folders: dict[str, str] | None = None,
    made: Callable[[], LocalModel] | None = None,
) -> None:
    """Run a study as its command line asks, and print what it measured.

    Args:
        measure: Takes the model, or the sharer and the receiver, then each file and folder and
            `progress` by keyword.
        about: What the study measures, for its help.
        pair: Whether it measures two models.
        files: The files it may be given, each with its help; None stands for built-in rows.
        folders: The folders it may be given.
        made: Makes the model where none is named; the default one is loaded where this is None.
    """
    name = Path(sys.argv[0]).stem
    default = DEFAULT_MODEL if made is None else "a tiny random one"
    parser = _parser(name, about, pair, {"FILE": files, "DIR": folders or {}}, default)
    given = vars(parser.parse_args())
    as_json, sharer, receiver = (given.pop(key) for key in ("json", "sharer", "receiver"))
    if pair and sharer and not receiver:
        parser.error("name both models, or neither")
    try:
        for option in files:
            require_file(given[option])
        with reporting(stderr(), name, quiet=as_json) as show:
            quiet_libraries()
            if receiver is None and made is not None:
                model = made()
            else:
                model = LocalModel.load(receiver or DEFAULT_MODEL)
            models = [LocalModel.load(sharer or DEFAULT_SHARER), model] if pair else [model]
            measured = measure(*models, **given, progress=lambda line: show(name, line, 0.0))
        result = report(models, measured, builtin=all(given[option] is None for option in files))
        print_result(f"Study {name}", result, as_json=as_json)
    except UnspokenError as error:
        print_error(error)
        sys.exit(error.exit_code)


def _parser(
    name: str, about: str | None, pair: bool, paths: dict[str, dict[str, str]], default: str
) -> ArgumentParser:
    parser = ArgumentParser(prog=f"{name}.py", description=(about or "").partition("\n\n")[0])
    if pair:
        parser.add_argument("sharer", nargs="?", help=f"whose cache is read ({DEFAULT_SHARER})")
        parser.add_argument("receiver", nargs="?", help=f"whose cache is made ({default})")
    else:
        words = f"the model ({default})"
        parser.add_argument("--model", dest="receiver", metavar="REF", help=words)
        parser.set_defaults(sharer=None)
    for metavar, options in paths.items():
        for option, words in options.items():
            flag = f"--{option.replace('_', '-')}"
            parser.add_argument(flag, type=Path, metavar=metavar, help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser
