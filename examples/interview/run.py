"""An interview that pauses for a person, and goes on in another process.

``python run.py`` begins one and prints the question; ``python run.py ID ANSWER`` goes on with it.
"""

import sys

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.spec import InputSpec
from unspoken.channels import RunWaiting

MODEL = "embedded:smollm2-135m-instruct"
SUBJECT = "the garden you remember best"


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml; a model given by reference is loaded at the first run."""
    interviewer = Agent(
        "interviewer",
        model,
        prompt="Ask me one short question about {{ inputs.subject }}.",
        generate={"max_new_tokens": 32, "stop": "\n"},
    )
    person = Agent("person", model, prompt="{{ interviewer.text }}", ask="answer")
    clerk = Agent(
        "clerk",
        model,
        prompt="Sum up the answer in one sentence.",
        generate={"max_new_tokens": 40, "stop": "\n"},
    )
    flow = Workflow(
        "interview",
        [interviewer, person, clerk],
        models={"small": model},
        inputs={"subject": InputSpec(default=SUBJECT)},
        outputs={
            "question": "{{ interviewer.text }}",
            "answer": "{{ person.text }}",
            "summary": "{{ clerk.text }}",
        },
    )
    flow.connect(interviewer, person)
    return flow.connect(person, clerk, share="context")


def main() -> None:
    if len(sys.argv) > 2:
        result = build().resume(sys.argv[1], " ".join(sys.argv[2:]))
        print(result.outputs["summary"])
        return
    try:
        build().run()
    except RunWaiting as waiting:
        (question,) = waiting.questions
        print(question.text)
        print(f"answer it: python run.py {waiting.run_id} YOUR ANSWER")


if __name__ == "__main__":
    main()
