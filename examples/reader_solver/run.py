"""A reader reads a document, and a solver answers from the reader's cache."""

import sys
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
DOCUMENT = Path(__file__).with_name("document.txt")
QUESTION = "In which year was the station built?"


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml; a model given by reference is loaded at the first run."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver", model, prompt="Question: {{ inputs.question }}", generate={"max_new_tokens": 32}
    )
    flow = Workflow(
        "reader-solver",
        [reader, solver],
        models={"small": model},
        outputs={"answer": "{{ solver.text }}"},
    )
    return flow.connect(reader, solver, "auto")


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    question = " ".join(sys.argv[1:]) or QUESTION
    result = build().run(document=document, question=question)
    print(result.outputs["answer"])
    (turn,) = result.report.agents["solver"]
    print(f"solver: {turn.reused_tokens} of {turn.prompt_tokens} prompt tokens reused")


if __name__ == "__main__":
    main()
