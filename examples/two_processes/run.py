"""One process reads a document and sends its cache as a signed packet; another answers from it."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.channels import packet_key, read_packet, write_packet

MODEL = "embedded:smollm2-135m-instruct"
DOCUMENT = Path(__file__).with_name("document.txt")
QUESTION = "In which year was the station built?"


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver", model, prompt="Question: {{ inputs.question }}", generate={"max_new_tokens": 32}
    )
    flow = Workflow(
        "two-processes",
        [reader, solver],
        models={"small": model},
        outputs={"answer": "{{ solver.text }}"},
    )
    return flow.connect(reader, solver, "same_model_cache")


def read() -> None:
    """The first process reads a text from stdin and writes a packet to stdout."""
    message = LocalModel.load(MODEL).message(sys.stdin.read(), sharer="reader")
    write_packet(message, sys.stdout.buffer, key=packet_key())


def main() -> None:
    """The second process starts the first and answers from its packet."""
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    question = " ".join(sys.argv[1:]) or QUESTION
    key = secrets.token_hex(32)  # both ends need it; two machines would each have a key file
    model = LocalModel.load(MODEL)
    with subprocess.Popen(
        [sys.executable, __file__, "--read"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "UNSPOKEN_PACKET_KEY": key, "PYTHONIOENCODING": "utf-8"},
    ) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        reader.stdin.write(document.encode())
        reader.stdin.close()
        message = read_packet(reader.stdout, model, key=key.encode())
    result = build(model).run({"reader": message}, document=document, question=question)
    print(result.outputs["answer"])
    (turn,) = result.report.agents["solver"]
    print(f"solver: {turn.reused_tokens} of {turn.prompt_tokens} prompt tokens reused")


if __name__ == "__main__":
    if sys.argv[1:] == ["--read"]:
        read()
    else:
        main()
