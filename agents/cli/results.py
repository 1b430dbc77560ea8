"""Stdout kept for results: whatever libraries print there meanwhile goes to stderr."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TextIO

import typer

_kept: list[TextIO] = []


def results() -> TextIO:
    """Where results go."""
    return _kept[-1] if _kept else sys.stdout


def echo(text: object, *, nl: bool = True) -> None:
    """Print a result as it is."""
    typer.echo(text, file=results(), nl=nl)


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for `results`; what else is printed there goes to stderr, from C too."""
    with ExitStack() as undo:
        undo.callback(_kept.pop)
        _kept.append(_own_stdout(undo) or sys.stdout)
        undo.enter_context(redirect_stdout(sys.stderr))
        yield


def _own_stdout(undo: ExitStack) -> TextIO | None:
    """Stdout as a file of our own, its number given to stderr; None where it is no file."""
    with suppress(OSError):
        number, other = sys.stdout.fileno(), sys.stderr.fileno()
        sys.stdout.flush()
        kept = os.dup(number)
        undo.callback(os.close, kept)
        code, errors = sys.stdout.encoding, sys.stdout.errors
        stdout = open(kept, "w", encoding=code, errors=errors, closefd=False)  # noqa: SIM115
        os.dup2(other, number)
        undo.callback(os.dup2, kept, number)
        undo.callback(stdout.close)
        return stdout
    return None
