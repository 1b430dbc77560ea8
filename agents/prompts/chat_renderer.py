"""A model's own chat template, rendered as transformers does, outside of this process.

A chat template comes with a checkpoint, and it is a program. transformers renders it in a sandbox
that is a list of what is forbidden, and that bounds neither time nor memory. So it is rendered by a
process that holds nothing of ours and that the system bounds. There minijinja renders it too: where
both write the same, no object of Python had a part in it.
"""

import atexit
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from unspoken.channels.errors import ModelSupportError, TemplateError

_WAIT = 60.0
"""Seconds for a child to start, and to answer, on a machine that is busy."""


class ChatRenderer:
    """Renders turns with a chat template.

    Args:
        source: The template.
        given: What it reads besides the turns.

    Attributes:
        differs: Whether minijinja wrote something else, or nothing, of turns rendered so far.
    """

    def __init__(self, source: str, given: Mapping[str, object]) -> None:
        self._source, self._given, self.differs = source, dict(given), False

    def __call__(self, turns: Sequence[Mapping[str, object]], prompt: bool) -> str:
        """The text of turns, with the opening of an answer where `prompt` says so.

        Raises:
            TemplateError: The template refuses these turns.
            ModelSupportError: It takes too much time or memory.
        """
        request = {
            "source": self._source,
            "given": self._given,
            "messages": [dict(turn) for turn in turns],
            "prompt": prompt,
        }
        reply = json.loads(_ask(json.dumps(request, default=str)))
        if "refused" in reply:
            raise TemplateError(f"the chat template refuses these turns: {reply['refused']}")
        if "limit" in reply:
            raise ModelSupportError(
                "the model's chat template takes more than 1 s or 128 MB for a few words",
                expected="a template that ends soon",
                fix="use a checkpoint with another chat template",
            )
        self.differs |= not reply["same"]
        return str(reply["value"])


class _Child:
    """The process that renders, started when it is first needed and after it was lost."""

    def __init__(self) -> None:
        self._lock, self._owner = Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, line: bytes) -> bytes:
        with self._lock:
            for _ in range(2):  # time may have run out since this process was stopped for long
                reply = self._asked(line)
                if reply:
                    return reply
                self.close()
        raise ModelSupportError("the process that renders chat templates was lost")

    def _asked(self, line: bytes) -> bytes:
        """What the process answers; nothing where it was lost."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = Timer(_WAIT, process.kill)
        timer.start()
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            timer.cancel()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process, self._owner = _started(), os.getpid()
        return self._process

    def close(self) -> None:
        """End the process, where it is one of ours and not of the process we were forked from."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


def _started() -> "subprocess.Popen[bytes]":
    script = Path(__file__).with_name("chat_child.py")
    # Found and not imported: commands that need no model read this module too.
    packages = [find_spec(name) for name in ("minijinja", "transformers")]
    folders = {str(Path(str(found.origin)).parents[1]) for found in packages if found}
    start = "import json, runpy, sys; sys.path += json.loads(sys.argv[1]); "
    start += "runpy.run_path(sys.argv[2], run_name='__main__')"
    command = [sys.executable, "-I", "-c", start, json.dumps(sorted(folders)), str(script)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={"OMP_NUM_THREADS": "1"}, **pipes)


_child = _Child()
atexit.register(_child.close)
# A model is taken apart with the same few turns whenever one of its kind is loaded.
_ask = lru_cache(maxsize=2048)(lambda request: _child.ask(request.encode()))
