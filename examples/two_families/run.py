"""Two models of different families read a document, and each answers from the other's cache."""

import sys
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow

GEMMA = "embedded:gemma3-270m"
SMOLLM = "embedded:smollm2-135m-instruct"
HERE = Path(__file__).parent
DOCUMENT = HERE / "document.txt"
QUESTION = "When was the lighthouse lit for the first time?"


def build(gemma: LocalModel | str = GEMMA, smollm: LocalModel | str = SMOLLM) -> Workflow:
    """The workflow of workflow.yaml."""
    read, question = "{{ inputs.document }}", "Question: {{ inputs.question }}\n"
    gemma_reader = Agent("gemma_reader", gemma, prompt=read, generate=None)
    smollm_answers = Agent(
        "smollm_answers",
        smollm,
        prompt=f"{question}Answer in a few words.",
        generate={"max_new_tokens": 24},
    )
    smollm_reader = Agent("smollm_reader", smollm, prompt=read, generate=None)
    gemma_answers = Agent(
        "gemma_answers",
        gemma,
        prompt=f"{question}Answer:",
        generate={"max_new_tokens": 24, "stop": ["\n"]},
    )
    flow = Workflow(
        "two-families",
        [gemma_reader, smollm_answers, smollm_reader, gemma_answers],
        models={"gemma": gemma, "smollm": smollm},
        outputs={"smollm": "{{ smollm_answers.text }}", "gemma": "{{ gemma_answers.text }}"},
        bridges="trust",  # they were measured on another machine
        bridge_folders=[HERE / "bridges"],
    )
    # Nothing shows that these bridges serve: both edges ask nothing of them, to let you try them.
    for sharer, receiver in ((gemma_reader, smollm_answers), (smollm_reader, gemma_answers)):
        flow.connect(sharer, receiver, "projected_cache", min_retention=0, max_loss=1)
    return flow


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    question = " ".join(sys.argv[1:]) or QUESTION
    result = build().run(document=document, question=question)
    for name, answer in result.outputs.items():
        print(f"{name}: {answer.strip()}")
    for edge in result.report.edges:
        share = f"{edge.projected} of {edge.tokens} tokens"
        print(f"{edge.sharer} -> {edge.receiver}: {edge.channel}, {share}")


if __name__ == "__main__":
    main()
