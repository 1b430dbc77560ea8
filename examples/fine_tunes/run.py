"""A base model reads a document, and its fine-tune answers from the base's cache."""

import sys
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.bench.finetune import Recipe, finetune
from unspoken.channels.finetunes.measure import profile_pair

BASE = "embedded:smollm2-135m-instruct"
FOLDER = Path(__file__).parent
TUNED = "examples/fine_tunes/full"
DOCUMENT = FOLDER / "document.txt"
QUESTION = "In which year was the station built?"


def build(base: LocalModel | str = BASE, tuned: LocalModel | str = TUNED) -> Workflow:
    """The workflow of workflow.yaml."""
    reader = Agent("reader", base, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver", tuned, prompt="Question: {{ inputs.question }}", generate={"max_new_tokens": 24}
    )
    flow = Workflow(
        "fine-tunes",
        [reader, solver],
        models={"base": base, "tuned": tuned},
        outputs={"answer": "{{ solver.text }}"},
    )
    return flow.connect(reader, solver, "same_model_cache", max_kl=0.01)


def main() -> None:
    """Make the fine-tune and the profile where they are missing, then run."""

    def report(stage: str, part: float) -> None:
        print(f"\r{stage}: {part:.0%}", end="\033[K", file=sys.stderr)

    base = LocalModel.load(BASE)
    tuned = finetune(base, Recipe.of("full"), report, folder=FOLDER / "full")
    profile_pair(base, tuned, report=report)
    print(file=sys.stderr)
    flow = build(base, tuned)
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    result = flow.run(document=document, question=" ".join(sys.argv[1:]) or QUESTION)
    print(result.outputs["answer"].strip())
    (edge,) = result.report.edges
    print(f"{edge.channel}: {edge.reason}")


if __name__ == "__main__":
    main()
