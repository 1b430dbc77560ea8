"""Two readers each hold a part of the evidence, and a solver answers by both.

``python run.py --make FILE --rows STRATEGYQA`` writes rows for ``unspoken eval`` from rows of
StrategyQA's form: a question, a list of facts, and whether the answer is yes.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
INPUTS = {
    "first": "The harbour bridge carries at most 20 tonnes.\nThe bridge was painted in spring.",
    "second": "The new fire engine weighs 26 tonnes.\nThe fire station has two doors.",
    "question": "Can the new fire engine cross the harbour bridge?",
}


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    facts = "Facts:\n{{ inputs.first }}"
    first = Agent("first_reader", model, prompt=facts, generate=None)
    more = "More facts:\n{{ inputs.second }}"
    second = Agent("second_reader", model, prompt=more, generate=None)
    solver = Agent(
        "solver",
        model,
        prompt="Question: {{ inputs.question }}\nAnswer yes or no by the facts above.",
        generate={"choices": ["yes", "no"]},
    )
    flow = Workflow(
        "split-evidence",
        [first, second, solver],
        models={"small": model},
        inputs={
            "first": {"description": "one part of the facts"},
            "second": {"description": "the other part"},
            "question": "text",
        },
        outputs={"answer": "{{ solver.text }}"},
    )
    return flow.connect(first, solver).connect(second, solver)


def split(rows: list[dict[str, Any]], among: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose facts are dealt out to both readers, among facts of other questions.

    Args:
        rows: A question, its facts, and whether the answer is yes.
        among: How many facts of other questions each reader gets.
        seed: Of what is drawn.
    """
    draw = random.Random(seed)
    made = []
    for number, row in enumerate(rows):
        facts = draw.sample(row["facts"], len(row["facts"]))
        others = [fact for at, other in enumerate(rows) if at != number for fact in other["facts"]]
        hands = [facts[0::2], facts[1::2]]
        for hand in hands:
            hand += draw.sample(others, min(among, len(others)))
            draw.shuffle(hand)
        made.append(
            {
                "first": "\n".join(hands[0]),
                "second": "\n".join(hands[1]),
                "question": row["question"],
                "gold": "yes" if row["answer"] else "no",
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, help="rows of StrategyQA's form, as JSON lines")
    parser.add_argument("--make", type=Path, metavar="FILE", help="write rows for unspoken eval")
    parser.add_argument("--among", type=int, default=12, help="facts of others for each reader")
    asked = parser.parse_args()
    if asked.make and asked.rows:
        lines = asked.rows.read_text(encoding="utf-8").splitlines()
        rows = split([json.loads(line) for line in lines if line.strip()], asked.among)
        asked.make.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} rows in {asked.make}")
        return
    result = build().run(**INPUTS)
    print(result.outputs["answer"])
    for edge in result.report.edges:
        print(f"{edge.sharer} -> {edge.receiver}: {edge.mode}, {edge.reused} of {edge.tokens} kept")


if __name__ == "__main__":
    main()
