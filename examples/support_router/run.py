"""A message is read once, routed, and answered by one of two families, once a person agrees."""

from pathlib import Path

from pydantic import BaseModel, Field

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.runs import Question

MODEL, OTHER = "embedded:smollm2-135m-instruct", "embedded:gemma3-270m"
DOCUMENT = Path(__file__).with_name("document.txt")
TEAMS = {
    "billing": (
        "money",
        "{{ router.text }}\n\n{{ inputs.document }}\n\nReply to the customer: thank you for your "
        "message, and the payment will be checked.\nReply: Dear customer,",
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


def build(model: LocalModel | str = MODEL, other: LocalModel | str = OTHER) -> Workflow:
    """The workflow of workflow.yaml, whose schema is a class here."""
    models = {"billing": other, "technical": model}
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
        name: Agent(
            name,
            models[name],
            prompt=task,
            generate={"max_new_tokens": 48, "stop": "\n"},
            ask="edit",
        )
        for name, (_, task) in TEAMS.items()
    }
    flow = Workflow(
        "support-router",
        [reader, slip, router, *teams.values()],
        models={"small": model, "gemma": other},
        outputs={
            "customer": "{{ slip.data.customer }}",
            "product": "{{ slip.data.product }}",
            "subject": "{{ router.text }}",
            "reply": "{{ billing.text }}{{ technical.text }}",
        },
    )
    flow.connect(reader, slip).connect(reader, router)
    flow.connect(router, teams["billing"], "text", when="router.text == 'money'")
    return flow.connect(router, teams["technical"], share="context", when="router.text == 'defect'")


def approve(question: Question) -> str:
    """What goes out in the place of a reply: the reply itself, or other words."""
    print(f"{question.agent} would say: {question.text.strip()}")
    return input("Enter sends it; or write what is to be said: ") or question.text


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    result = build().run(document=document, on_question=approve)
    for name, text in result.outputs.items():
        print(f"{name}: {text}")
    slip: Slip = result["slip"].data
    print("a refund" if slip.refund else "no refund")
    for choice, likelihood in result["router"].likelihoods.items():
        print(f"{choice}: {likelihood:.2f}")


if __name__ == "__main__":
    main()
