"""A router says what kind of answer a question wants, and the agent for that kind answers.

``python run.py --make FILE --numbers GSM8K --yes-no STRATEGYQA`` writes rows for ``unspoken eval``:
as many questions of either kind, in turn, with the kind as what is right.
"""

import argparse
import json
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
QUESTION = "A tap drips 3 times a minute. How many times does it drip in 2 hours?"
KINDS = ["a number", "yes or no"]


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml."""
    reader = Agent("reader", model, prompt="{{ inputs.question }}", generate=None)
    router = Agent(
        "router",
        model,
        prompt="Is the answer to this question a number, or yes or no?",
        generate={"choices": KINDS},
    )
    counter = Agent(
        "counter",
        model,
        prompt="Answer with the number alone.",
        generate={"max_new_tokens": 12, "regex": "-?[0-9]{1,6}"},
    )
    judge = Agent("judge", model, prompt="Answer yes or no.", generate={"choices": ["yes", "no"]})
    flow = Workflow(
        "question-router",
        [reader, router, counter, judge],
        models={"small": model},
        outputs={"kind": "{{ router.text }}", "answer": "{{ counter.text }}{{ judge.text }}"},
    )
    flow.connect(reader, router)
    for kind, agent in zip(KINDS, (counter, judge), strict=True):
        flow.connect(router, agent, share="context", when=f"router.text == '{kind}'")
    return flow


def rows(numbers: Path, yes_no: Path, most: int) -> list[dict[str, str]]:
    """Questions of both kinds in turn."""
    kinds = []
    for kind, file in zip(KINDS, (numbers, yes_no), strict=True):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        kinds.append([{"question": json.loads(line)["question"], "gold": kind} for line in lines])
    return [row for pair in zip(*kinds, strict=False) for row in pair][:most]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--numbers", type=Path, help="rows of GSM8K's form, as JSON lines")
    parser.add_argument("--yes-no", type=Path, help="rows of StrategyQA's form, as JSON lines")
    parser.add_argument("--most", type=int, default=160, help="so many rows")
    parser.add_argument("--make", type=Path, metavar="FILE", help="write rows for unspoken eval")
    given = parser.parse_args()
    if given.make and given.numbers and given.yes_no:
        made = rows(given.numbers, given.yes_no, given.most)
        given.make.write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")
        print(f"{len(made)} rows in {given.make}")
        return
    result = build().run(question=given.question)
    for name, text in result.outputs.items():
        print(f"{name}: {text}")
    print(f"likelihood of the kind: {result['router'].likelihoods}")


if __name__ == "__main__":
    main()
