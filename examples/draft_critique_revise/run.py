"""A drafter writes, a critic judges and may send it back once, a reviser has the last word."""

import sys

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.spec import InputSpec
from unspoken.channels import SameModelCacheChannel

MODEL = "embedded:smollm2-135m-instruct"
TOPIC = "an old oak tree"


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml; a model given by reference is loaded at the first run."""
    drafter = Agent(
        "drafter",
        model,
        prompt="Write {{ 'one' if turn == 1 else 'a shorter' }} sentence about {{ inputs.topic }}.",
        generate={"max_new_tokens": 40, "stop": "\n"},
        max_turns=2,
    )
    critic = Agent(
        "critic",
        model,
        prompt="Is this sentence short and simple? Answer yes or no.",
        generate={"max_new_tokens": 16, "stop": ["\n", "."]},
        memory="turn",
    )
    reviser = Agent(
        "reviser",
        model,
        prompt="Write it in plain words.",
        generate={"max_new_tokens": 40, "stop": "\n"},
        memory="turn",
    )
    flow = Workflow(
        "draft-critique-revise",
        [drafter, critic, reviser],
        models={"small": model},
        inputs={"topic": InputSpec(default=TOPIC)},
        outputs={"draft": "{{ drafter.text }}", "final": "{{ reviser.text }}"},
    )
    flow.connect(drafter, critic, SameModelCacheChannel(share="context"))
    flow.connect(critic, reviser, SameModelCacheChannel(share="context"))
    back = SameModelCacheChannel()
    return flow.connect(critic, drafter, back, loop=True, when="'no' in critic.text | lower")


def main() -> None:
    result = build().run(topic=" ".join(sys.argv[1:]) or TOPIC)
    for name, agent in result.agents.items():
        for number, text in enumerate(agent.turns, start=1):
            print(f"{name} {number}: {text}")
    for name, turns in result.report.agents.items():
        reused = sum(turn.reused_tokens for turn in turns)
        total = sum(turn.prompt_tokens for turn in turns)
        print(f"{name}: {reused} of {total} prompt tokens reused")


if __name__ == "__main__":
    main()
