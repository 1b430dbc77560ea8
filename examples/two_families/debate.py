"""Two models of different families read each other's opinion through a bridge, and then choose."""

import sys
from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow

GEMMA = "embedded:gemma3-270m"
SMOLLM = "embedded:smollm2-135m-instruct"
BRIDGES = Path(__file__).parent / "bridges"
QUESTION = (
    "What makes bread rise? answer1: salt answer2: yeast answer3: water answer4: the oven's light"
)
CHOICES = {"choices": ["answer1", "answer2", "answer3", "answer4"]}


def build(gemma: LocalModel | str = GEMMA, smollm: LocalModel | str = SMOLLM) -> Workflow:
    """The workflow of debate.yaml."""
    asked = "{{ inputs.question }}\n"
    gemma_thinks = Agent(
        "gemma_thinks",
        gemma,
        prompt=f"{asked}The right answer, and a reason for it:",
        generate={"max_new_tokens": 32},
    )
    smollm_thinks = Agent(
        "smollm_thinks",
        smollm,
        prompt=f"{asked}Give a reason in one sentence.",
        generate={"max_new_tokens": 32, "stop": "\n"},
    )
    gemma_votes = Agent("gemma_votes", gemma, prompt="Right answer:", generate=CHOICES)
    smollm_votes = Agent("smollm_votes", smollm, prompt="Which answer is right?", generate=CHOICES)
    flow = Workflow(
        "debate",
        [gemma_thinks, smollm_thinks, gemma_votes, smollm_votes],
        models={"gemma": gemma, "smollm": smollm},
        inputs={"question": {"description": "a question with its answers, answer1 to answer4"}},
        outputs={"gemma": "{{ gemma_votes.text }}", "smollm": "{{ smollm_votes.text }}"},
        bridges="trust",  # they were measured on another machine
        bridge_folders=[BRIDGES],
    )
    flow.connect(gemma_thinks, gemma_votes, share="context")
    flow.connect(smollm_thinks, smollm_votes, share="context")
    for thinks, votes in ((smollm_thinks, gemma_votes), (gemma_thinks, smollm_votes)):
        flow.connect(thinks, votes, "projected_cache", min_retention=0, max_loss=1)
    return flow


def main() -> None:
    result = build().run(question=" ".join(sys.argv[1:]) or QUESTION)
    for agent in ("gemma_thinks", "smollm_thinks"):
        print(f"{agent}: {result[agent].text.strip()}")
    for name, answer in result.outputs.items():
        print(f"{name}: {answer}")
    for edge in result.report.edges:
        print(f"{edge.sharer} -> {edge.receiver}: {edge.channel}, {edge.tokens} tokens")


if __name__ == "__main__":
    main()
