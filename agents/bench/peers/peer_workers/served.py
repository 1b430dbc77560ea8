"""llama.cpp's server: each turn a request to a slot, which finds what its prompt cache has read.

Where several turns go on from one, its slot is saved to a file and restored into theirs, since
slots do not share what they have read. Turns that can run together are sent together.
"""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from .serving import Case, Job, Loaded, Outcome, serve
from .turns import Turn, continued, prompt_of, waves

SLOTS = 8
PATIENCE_S = 120.0


class Server:
    """The server's process.

    Args:
        job: Its program, the GGUF, and what both are told.
    """

    def __init__(self, job: Job) -> None:
        self._stop_ids, scratch = job["stop_ids"], Path(job["scratch"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        settings = {
            "--model": _in_float32(job, scratch),
            "--port": self._port,
            "--threads": job["threads"],
            "--threads-batch": job["threads"],
            "--parallel": SLOTS,
            "--ctx-size": SLOTS * job["longest"],
            "--slot-save-path": f"{scratch}/",
            "--cache-ram": 0,  # nothing of an earlier run stays
        }
        words = [str(word) for setting in settings.items() for word in setting]
        command = [job["server"], *words, "--kv-unified", "--no-webui"]
        self._process = subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid
        self._wait()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def run(self, case: Case) -> Outcome:
        """Run a workflow."""
        for slot in range(SLOTS):
            self._post(f"/slots/{slot}?action=erase", {})
        outcome, written, uses = Outcome(), dict[str, list[int]](), continued(case)
        slots = _slots(case)
        with ThreadPoolExecutor(SLOTS) as pool:
            for wave in waves(case):
                for turn in wave:
                    other = turn["continues"]
                    if other is not None and slots[turn["name"]] != slots[other]:
                        restored = {"filename": other}
                        self._post(f"/slots/{slots[turn['name']]}?action=restore", restored)
                prompts = [prompt_of(turn, written) for turn in wave]
                given = [slots[turn["name"]] for turn in wave]
                for turn, told in zip(
                    wave, pool.map(self._complete, wave, prompts, given), strict=True
                ):
                    ids, first, computed = told
                    outcome.computed += computed
                    if turn["tokens"]:
                        written[turn["name"]], outcome.first[turn["name"]] = ids, first
                    if uses[turn["name"]] > 1:
                        saved = {"filename": turn["name"]}
                        self._post(f"/slots/{slots[turn['name']]}?action=save", saved)
        outcome.written.update(written)
        return outcome

    def _complete(self, turn: Turn, prompt: list[int], slot: int) -> tuple[list[int], float, int]:
        """What a turn writes, when its first token came, and how many tokens were computed."""
        request = {
            "prompt": prompt,
            "id_slot": slot,
            "n_predict": turn["tokens"],
            "temperature": 0.0,
            "cache_prompt": True,
            "logit_bias": [[token, False] for token in self._stop_ids],
            # A stream would leave out the ids of characters that take several tokens.
            "return_tokens": True,
        }
        answer = self._post("/completion", request)
        ids, times = answer["tokens"], answer["timings"]
        first = perf_counter() - times["predicted_ms"] / 1000
        return ids, first, times["prompt_n"] + max(len(ids) - 1, 0)

    def _post(self, path: str, request: object) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port)
        body = json.dumps(request)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        words = response.read()
        connection.close()
        if response.status != 200:
            raise ChildProcessError(f"{path}: {response.status}, {words!r}")
        return json.loads(words)

    def _wait(self) -> None:
        """Until the server has loaded its model."""
        began = perf_counter()
        while perf_counter() - began < PATIENCE_S:
            if self._process.poll() is not None:
                raise ChildProcessError(f"the server ended with {self._process.returncode}")
            try:
                connection = HTTPConnection("127.0.0.1", self._port)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            sleep(0.2)
        raise ChildProcessError(f"the server was not ready after {PATIENCE_S:g} s")


def _slots(case: Case) -> dict[str, int]:
    """A slot for each turn: that of the turn that it goes on from, which the first takes over."""
    slots: dict[str, int] = {}
    taken: set[str] = set()
    for turn in case["turns"]:
        other = turn["continues"]
        if other is not None and other not in taken:
            taken.add(other)
            slots[turn["name"]] = slots[other]
        else:
            slots[turn["name"]] = max(slots.values(), default=-1) + 1
    return slots


def _in_float32(job: Job, scratch: Path) -> str:
    """The GGUF with all its weights written out, by llama.cpp's own program."""
    path = str(scratch / "float32.gguf")
    command = [job["quantize"], "--allow-requantize", job["gguf"], path, "F32"]
    subprocess.run(command, check=True, stdout=sys.stderr, stderr=subprocess.DEVNULL)
    return path


def load(job: Job) -> Loaded:
    """The server, and what ends it."""
    server = Server(job)
    return Loaded(
        about="llama.cpp's server, float32 weights, cache in float16, a slot for each agent",
        run=server.run,
        pid=server.pid,
        close=server.close,
    )


if __name__ == "__main__":
    serve(load)
