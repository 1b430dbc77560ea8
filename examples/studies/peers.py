"""The fan-out of `unspoken bench fanout` beside vLLM on a CPU and llama.cpp, end to end.

Each peer has a Python environment of its own, `make peers` installs them, and a process of its own,
which loads its model and warms up before anything is timed. All get the same token ids, read the
shared document once and write equally many tokens. In every round each has its turn.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from study import TEXT, Measured, Progress, run
from unspoken.agents.bench.engine.decoding import written_by_engine
from unspoken.agents.bench.engine.share import Timing, figures, median_seconds, said, timed
from unspoken.agents.bench.engine.team import QUESTIONS, Team
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.models.embedded import EMBEDDED, SCHEME
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelReferenceError
from unspoken.channels.machine import in_turn

SIZES, TOKENS, NEW, ROUNDS = (1, 8), 512, 64, 3

OURS = "unspoken"
WORKERS = Path(__file__).with_name("peer_workers")
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".peers"

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another engine, in a process of its own.

    Attributes:
        name: What to call it.
        environment: Folder of its Python environment, below the others.
        script: What runs in it.
        settings: What that is told besides the ids.
    """

    name: str
    environment: str
    script: str
    settings: Mapping[str, object]


class Worker:
    """A peer's process, ready to take its turns.

    Args:
        process: The process, warmed up.
        device: What it computes on.
    """

    def __init__(self, process: "subprocess.Popen[str]", threads: int) -> None:
        self._process, self._threads = process, threads
        self.written: dict[int, list[Ids]] = {}
        self.about: str = self._answer()["ready"]

    def turn(self, size: int) -> Timing:
        """Have the first agents answer, and time it on its own clock."""
        self._send(size)
        answer = self._answer()
        self.written[size] = [tuple(ids) for ids in answer["written"]]
        share = answer["cpu_seconds"] / (answer["seconds"] * self._threads)
        return Timing(seconds=answer["seconds"], cpu_share=share)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(message)}\n")
        self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"it ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def started(peer: Peer, job: Mapping[str, object], envs: Path) -> Iterator[Worker]:
    """A peer's process, until the block ends.

    Raises:
        FileNotFoundError: Its environment is not there.
        ChildProcessError: It could not begin; what it said of that is on the terminal.
    """
    python = envs / peer.environment / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there; `make peers` installs it")
    command = [str(python), str(WORKERS / peer.script)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(f"{json.dumps({**job, **peer.settings})}\n")
            process.stdin.flush()
            yield Worker(process, torch.get_num_threads())
        finally:
            process.kill()


def peers_of(model: LocalModel) -> list[Peer]:
    """The peers that can read this model: vLLM its folder, llama.cpp the GGUF it came in."""
    peers = []
    if model.hf.name_or_path:
        settings = {"folder": model.hf.name_or_path, "dtype": str(model.dtype).split(".")[-1]}
        peers.append(
            Peer(name="vLLM", environment="vllm", script="vllm_worker.py", settings=settings)
        )
    embedded = EMBEDDED.get(model.ref.removeprefix(SCHEME))
    files = embedded.files() if embedded else ()
    if len(files) == 1:
        peers += [
            Peer(
                name=f"llama.cpp, {weights}",
                environment="llama_cpp",
                script="llama_cpp_worker.py",
                settings={"file": str(files[0]), "float32": weights == "float32"},
            )
            for weights in ("float32", "weights as in the GGUF")
        ]
    if not peers:
        raise ModelReferenceError(
            f"no peer can read {model.ref or 'a model made in memory'}",
            expected="a model from a folder or an embedded one",
            fix="leave --model out",
        )
    return peers


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    envs: Path | None = None,
    progress: Progress,
    peers: Sequence[Peer] | None = None,
) -> Measured:
    """Rows per peer and number of agents, and how many times faster ours is at 8."""
    words = cut_passages(model, text, 1, TOKENS)[0]
    team = Team.make(model, words, QUESTIONS[: max(SIZES)], NEW)
    ours = written_by_engine(team, team.prompts, together=True)
    job = {
        "document": team.message.context,
        "prompts": team.prompts,
        "tokens": NEW,
        "stop_ids": sorted(model.stop_ids),
        "threads": torch.get_num_threads(),
    }
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for peer in peers_of(model) if peers is None else peers:
            try:
                started_worker = started(peer, job, envs or ENVIRONMENTS)
                workers[peer.name] = stack.enter_context(started_worker)
                progress(f"{peer.name}: {workers[peer.name].about}")
            except (OSError, ChildProcessError) as error:
                progress(f"{peer.name} is left out: {error}")
        ways: dict[tuple[str, int], Callable[[], Timing]] = {}
        for size in SIZES:
            flow = team.flow(range(size))
            ways[OURS, size] = partial(timed, partial(team.run, flow), model.device)
            ways |= {(name, size): partial(peer.turn, size) for name, peer in workers.items()}
        timings = in_turn(ways, ROUNDS)
    rows = []
    for (name, size), taken in timings.items():
        written = workers[name].written[size] if name in workers else ours[:size]
        seconds = median_seconds(taken)
        rows.append(
            {
                "way": name,
                "agents": size,
                "ours_is_faster": round(seconds / median_seconds(timings[OURS, size]), 2),
                "rows_equal_to_ours": sum(map(tuple.__eq__, written, ours)),
                **figures(taken),
            }
        )
        progress(f"{size} agents, {name}: {said(taken)}")
    last = [row for row in rows if row["agents"] == max(SIZES) and row["way"] != OURS]
    return rows, {f"speedup_8_vs_{_key(row['way'])}": row["ours_is_faster"] for row in last}


def _key(name: str) -> str:
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower())
    return "_".join(words.split())


if __name__ == "__main__":
    folders = {"envs": "folder of the peers' environments; .peers in the clone if left out"}
    run(measure, __doc__, pair=False, files={"text": TEXT}, folders=folders)
