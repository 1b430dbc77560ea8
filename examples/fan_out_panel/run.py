"""A reader reads a document once, three solvers continue its cache, a judge reads their answers."""

from pathlib import Path

from unspoken.agents import Agent, LocalModel, Workflow

MODEL = "embedded:smollm2-135m-instruct"
DOCUMENT = Path(__file__).with_name("document.txt")
TASKS = {
    "year": ("In which year was the funicular opened?", [".", ","]),
    "colours": ("What colours are the two cars?", ["."]),
    "drive": ("What drove the cars at first?", ["."]),
}


def build(model: LocalModel | str = MODEL) -> Workflow:
    """The workflow of workflow.yaml; a model given by reference is loaded at the first run."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solvers = [
        Agent(name, model, prompt=task, generate={"max_new_tokens": 24, "stop": stop})
        for name, (task, stop) in TASKS.items()
    ]
    judge = Agent(
        "judge",
        model,
        prompt="Which of the three sentences above is the most interesting?",
        generate={"max_new_tokens": 40},
    )
    outputs = {name: f"{{{{ {name}.text }}}}" for name in TASKS}
    flow = Workflow(
        "fan-out-panel",
        [reader, *solvers, judge],
        models={"small": model},
        outputs={**outputs, "verdict": "{{ judge.text }}"},
    )
    for solver in solvers:
        flow.connect(reader, solver)
    for solver in solvers:
        flow.connect(solver, judge)
    return flow


def main() -> None:
    document = DOCUMENT.read_text(encoding="utf-8").removesuffix("\n")
    result = build().run(document=document)
    for name, text in result.outputs.items():
        print(f"{name}: {text}")
    for name, (turn,) in result.report.agents.items():
        print(f"{name}: {turn.reused_tokens} of {turn.prompt_tokens} prompt tokens reused")


if __name__ == "__main__":
    main()
