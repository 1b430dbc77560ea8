"""A message is read once; a slip, a router and a team's answer go on from the reader's cache."""

from pathlib import Path

from pydantic import BaseModel, Field

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
DOCUMENT = Path(__file__).with_name("document.txt")
TEAMS = {
    "billing": (
        "money",
        "Thank the customer for the message, and say that the payment will be checked.",
    ),
    "technical": (
        "defect",
        "Thank the customer for the message, and say that the device will be repaired.",
    ),
}


class Slip(BaseModel):
    customer: str = Field(max_length=24)
    product: str = Field(max_length=24)
    refund: bool


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml, whose schema is a class here."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    slip = Agent(
        "slip",
        model,
        prompt="Fill in the slip for this message.",
        generate={"max_new_tokens": 48, "schema": Slip},
    )
    router = Agent(
        "router",
        model,
        prompt="Is this message about money or about a defect?",
        generate={"choices": [subject for subject, _ in TEAMS.values()]},
    )
    teams = {
        name: Agent(name, model, prompt=task, generate={"max_new_tokens": 48, "stop": "\n"})
        for name, (_, task) in TEAMS.items()
    }
    flow = Workflow(
        "support-router",
        [reader, slip, router, *teams.values()],
        models={"small": model},
        outputs={
            "customer": "{{ slip.data.customer }}",
            "product": "{{ slip.data.product }}",
            "subject": "{{ router.text }}",
            "reply": "{{ billing.text }}{{ technical.text }}",
        },
    )
    flow.connect(reader, slip).connect(reader, router)
    for name, (subject, _) in TEAMS.items():
        flow.connect(router, teams[name], share="context", when=f"router.text == '{subject}'")
    return flow


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    result = build().run(document=document)
    for name, text in result.outputs.items():
        print(f"{name}: {text}")
    slip: Slip = result["slip"].data
    print("a refund" if slip.refund else "no refund")
    for choice, likelihood in result["router"].likelihoods.items():
        print(f"{choice}: {likelihood:.2f}")


if __name__ == "__main__":
    main()
