"""Renders chat templates for another process: each in a fork with little time and memory.

Run as a script. A line of JSON comes in, a line goes out. transformers is imported once, before any
template is seen; what a template does to its process ends with that process.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import minijinja
from transformers.utils.chat_template_utils import render_jinja_template

SECONDS = 1.0
MEGABYTES = 128
_FUEL = 2_000_000
_MAX_OUTPUT = 2_000_000


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers writes of some turns, and whether minijinja writes the same."""
    turns, source, given = request["messages"], request["source"], request["given"]
    prompt = bool(request["prompt"])
    rendered = render_jinja_template(
        conversations=[turns], chat_template=source, add_generation_prompt=prompt, **given
    )
    text = str(rendered[0][0])
    if len(text) > _MAX_OUTPUT:
        raise MemoryError
    return {"value": text, "same": _by_minijinja(source, turns, prompt, given) == text}


def _by_minijinja(
    source: str, turns: list[dict[str, Any]], prompt: bool, given: Mapping[str, Any]
) -> str | None:
    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = minijinja.Environment(
        fuel=_FUEL, trim_blocks=True, lstrip_blocks=True, filters={"tojson": tojson}
    )
    environment.add_global("raise_exception", raise_exception)
    environment.add_global("strftime_now", lambda form: datetime.now().strftime(form))
    names = {"messages": turns, "tools": None, "documents": None, **given}
    try:
        return environment.render_str(source, "chat", add_generation_prompt=prompt, **names)
    except Exception:
        return None


def _limit() -> None:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
    limits = {resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: 2}
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            held = int(pages.read().split()[0]) * resource.getpagesize()
        limits[resource.RLIMIT_AS] = held + MEGABYTES * 1024 * 1024
    except OSError:
        pass  # another system than Linux: there is no such limit, and the time bounds it
    limits[resource.RLIMIT_NOFILE] = 3  # whatever it opens from here on is refused
    for name, limit in limits.items():
        resource.setrlimit(name, (limit, limit))


def _in_a_fork(line: bytes) -> bytes:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _limit()
        try:
            reply = answer(json.loads(line))
        except MemoryError:
            os._exit(1)
        except BaseException as error:
            reply = {"refused": str(error) or type(error).__name__}
        with os.fdopen(writing, "wb") as out:
            out.write(json.dumps(reply).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as replies:
        reply_line = replies.read()
    os.waitpid(pid, 0)
    return reply_line or b'{"limit": true}'


_FAMILIAR = (
    "{% set ns = namespace(x=1) %}{{ strftime_now('%d %b %Y') }}{{ messages | tojson(indent=2) }}"
    "{% for message in messages %}{{ message['content'] | trim | title }}{% break %}{% endfor %}"
    "{{ 'a' | default('b') | upper | list | join | length }}{{ messages[1:] | selectattr('role') }}"
)

_NOTHING: dict[str, Any] = {"given": {}, "prompt": False}


def _main() -> None:
    # What the engines import late is imported now: a fork opens no file.
    turns = [{"role": "user", "content": "x"}]
    answer({"messages": turns, "source": _FAMILIAR, **_NOTHING})
    for failing in ("{{ raise_exception('x') }}", "{{ 1 / 0 }}"):
        with suppress(Exception):
            answer({"messages": turns, "source": failing, **_NOTHING})
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(_in_a_fork(line) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
