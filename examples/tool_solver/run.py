"""A solver looks prices up and calculates, by two functions that it may call."""

from typing import Literal

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.spec import InputSpec
from unspoken.agents.tools import tool

MODEL = "embedded:smollm2-135m-instruct"
QUESTIONS = ["What is the price of a melon?", "How much is 12 times 4?"]
PRICES = {"apple": 2, "melon": 4, "bread": 5}


@tool(idempotent=True)
def price(thing: Literal["apple", "melon", "bread"]) -> int:
    """Look up what one thing costs, in euros.

    Args:
        thing: The thing.
    """
    return PRICES[thing]


@tool(idempotent=True)
def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    solver = Agent(
        "solver",
        model,
        prompt="{{ item }}",
        generate={"max_new_tokens": 64, "stop": "\n"},
        tools=[price, multiply],
        max_calls=1,
        min_calls=1,
        for_each="inputs.questions",
    )
    return Workflow(
        "tool-solver",
        [solver],
        models={"small": model},
        inputs={"questions": InputSpec(type="list", default=QUESTIONS)},
        outputs={"answers": "{{ solver.text }}"},
    )


def main() -> None:
    result = build().run(questions=QUESTIONS)
    for turn in result.report.agents["solver"]:
        for call in turn.tool_calls:
            print(f"{call.tool}({call.arguments}) -> {call.result}")
    print(result.outputs["answers"])


if __name__ == "__main__":
    main()
