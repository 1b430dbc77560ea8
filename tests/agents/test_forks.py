"""A forked child: it runs workflows, whatever its parent was doing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment
from tiny import tiny_llama

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

CODE = """
import os, signal, sys, threading, warnings
import torch
from unspoken.agents import Agent, LocalModel, Session, Workflow

warnings.simplefilter("ignore")  # newer Pythons warn of every fork beside threads
torch.set_num_threads(2)
model = LocalModel.load(sys.argv[1])
words = "the key of the cache is in the document " * 20
flow = Workflow("w", [Agent("a", model, prompt=words, generate={"max_new_tokens": 4})])
before = flow.run()["a"].text
users = Session()
talker = Agent("a", model, prompt="so", generate={"max_new_tokens": 4}, memory="session")
chat = Workflow("chat", [talker])
chat.run(session=users.named("anna"))
held, over = threading.Event(), threading.Event()

def hold():  # as a fit does
    with model.weights.lock, flow._preparation._lock:
        held.set()
        over.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
child = os.fork()
signal.alarm(600)  # neither waits for ever
if child == 0:
    again = flow.run()["a"].text
    loaded = LocalModel.load(sys.argv[1], dtype="bfloat16")
    assert loaded.identity.tokenizer == model.identity.tokenizer
    assert LocalModel(loaded.hf, loaded.tokenizer).identity.weights
    chat.run(session=users.named("anna"))
    goes_on = len(users.named("anna").conversations()[0].words) == 4
    os._exit(0 if again == before and goes_on else 3)
over.set()
holder.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert flow.run()["a"].text == before
chat.run(session=users.named("anna"))
assert len(users.named("anna").conversations()[0].words) == 4
"""


def test_a_forked_child_runs_the_workflow(tmp_path: Path) -> None:
    """Workers, locks and pools of threads of the parent are not waited for."""
    folder = tiny_llama(tmp_path / "model")
    settings = environment() | {"UNSPOKEN_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", CODE, str(folder)]
    process = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
