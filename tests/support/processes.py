"""Other Python processes and threads: how to start them, and how long to wait for them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from unspoken.agents.models import catalog

LIMIT_S = 600.0
"""Seconds after which a test's wait counts as one for ever, on any machine; nothing is compared
with it.
"""


def until(true: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    """Wait for another process, which tells us by way of the disk."""
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "the other process did not get there"
        time.sleep(0.02)


def python(code: str, *args: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` to its end in another process."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """This process's environment, with `unspoken` found where it is found here."""
    here = str(Path(catalog.__file__).parents[3])
    return os.environ | {"PYTHONPATH": here + os.pathsep + os.environ.get("PYTHONPATH", "")}
