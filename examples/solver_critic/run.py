"""A solver works a problem out with a calculator, a critic judges, a refiner has the last word."""

import sys
from typing import Literal

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.tools import tool

MODEL = "embedded:smollm2-135m-instruct"
QUESTION = "Mira bakes 48 rolls and sells 30 of them for 2 francs each. How much does she earn?"
ANSWER = {"type": "object", "properties": {"answer": {"type": "number"}}, "required": ["answer"]}


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
        prompt="{{ inputs.question }}\nCalculate step by step.",
        generate={"max_new_tokens": 96},
        tools=[calculate],
        min_calls=1,
        max_calls=3,
    )
    critic = Agent(
        "critic",
        model,
        prompt="Is this solution right or wrong?",
        generate={"choices": ["right", "wrong"]},
    )
    refiner = Agent(
        "refiner",
        model,
        prompt="Give the final answer as a number.",
        generate={"max_new_tokens": 24, "schema": ANSWER},
    )
    flow = Workflow(
        "solver-critic",
        [solver, critic, refiner],
        models={"small": model},
        outputs={"verdict": "{{ critic.text }}", "answer": "{{ refiner.data.answer }}"},
    )
    flow.connect(solver, critic, share="context")
    return flow.connect(critic, refiner, share="context")


def main() -> None:
    result = build().run(question=" ".join(sys.argv[1:]) or QUESTION)
    for turn in result.report.agents["solver"]:
        for call in turn.tool_calls:
            print(f"{call.tool}({call.arguments}) -> {call.result}")
    for name, text in result.outputs.items():
        print(f"{name}: {text}")
    for edge in result.report.edges:
        print(f"{edge.sharer} -> {edge.receiver}: {edge.mode}, {edge.reused} of {edge.tokens} kept")


if __name__ == "__main__":
    main()
