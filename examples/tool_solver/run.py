"""A solver answers word problems with two tools: it looks facts up, and it calculates.

``python run.py --rows FILE`` takes rows of GSM8K's form, as JSON lines: a question, and an answer
that ends in ``#### N``. It prints how many the solver gets right.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Literal

from unspoken.agents import Agent, LocalModel, RunResult, Workflow
from unspoken.agents.tools import tool

MODEL = "embedded:smollm2-135m-instruct"
ROWS = Path(__file__).with_name("rows.jsonl")
ANSWER = {"type": "object", "properties": {"answer": {"type": "number"}}, "required": ["answer"]}
FACTS = {
    "minutes in an hour": 60,
    "hours in a day": 24,
    "days in a week": 7,
    "months in a year": 12,
    "things in a dozen": 12,
    "cents in a dollar": 100,
}


@tool(idempotent=True)
def look_up(
    fact: Literal[
        "minutes in an hour",
        "hours in a day",
        "days in a week",
        "months in a year",
        "things in a dozen",
        "cents in a dollar",
    ],
) -> int:
    """Look up how many there are.

    Args:
        fact: Of what.
    """
    return FACTS[fact]


@tool(idempotent=True)
def calculate(a: float, operation: Literal["+", "-", "*", "/"], b: float) -> float:
    """Calculate with two numbers.

    Args:
        a: The first number.
        operation: What to do with both.
        b: The second number.
    """
    match operation:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
    return a / b


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    solver = Agent(
        "solver",
        model,
        prompt="{{ item.question }}",
        generate={"max_new_tokens": 64, "schema": ANSWER},
        tools=[look_up, calculate],
        max_calls=2,
        min_calls=1,
        for_each="inputs.rows",
    )
    return Workflow(
        "tool-solver", [solver], models={"small": model}, outputs={"answers": "{{ solver.text }}"}
    )


def read(file: Path, most: int | None = None) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, the first so many of them."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()][:most]


def score(rows: list[dict[str, Any]], texts: list[str]) -> int:
    """How many answers are the numbers that stand behind ``####`` in the rows."""
    right = 0
    for row, text in zip(rows, texts, strict=True):
        number = float(row["answer"].rpartition("####")[2].replace(",", ""))
        right += json.loads(text)["answer"] == number
    return right


def answers(result: RunResult) -> list[str]:
    """What the solver wrote for each row."""
    return result.outputs["answers"].split("\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=ROWS, help="rows of GSM8K's form")
    parser.add_argument("--most", type=int, help="the first so many rows; all, if left out")
    asked = parser.parse_args()
    rows = read(asked.rows, asked.most)
    result = build().run(rows=rows)
    for turn in result.report.agents["solver"]:
        for call in turn.tool_calls:
            print(f"{call.tool}({call.arguments}) -> {call.result}")
    print(result.outputs["answers"])
    print(f"{score(rows, answers(result))} of {len(rows)} right")


if __name__ == "__main__":
    main()
