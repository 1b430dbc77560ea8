"""``unspoken init``: a workflow to begin with."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from unspoken.agents.cli.console import stderr
from unspoken.channels.errors import InputError


def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")
    ] = Path("workflow.yaml"),
) -> None:
    """Write a small workflow with comments, to run and to change."""
    text = files("unspoken.agents.cli").joinpath("starter.yaml").read_bytes()
    try:
        with file.open("xb") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise InputError(
            f"{str(file)!r} exists",
            expected="a file that is not there yet",
            fix="give another name, or remove it first",
        ) from error
    except OSError as error:
        raise InputError(
            f"{str(file)!r} cannot be written: {error.strerror}",
            expected="a file in a folder that can be written to",
        ) from error
    console = stderr()
    console.print(f"wrote {file}", soft_wrap=True)
    document = "The ferry to the island leaves at nine and comes back at four."
    console.print(f'run it: unspoken run {file} -i document="{document}"', soft_wrap=True)
    console.print("or with a file of your own: -i document=@FILE", soft_wrap=True)
