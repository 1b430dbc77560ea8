"""What a run's agents wrote, and the workflow's outputs of it."""

from collections.abc import Mapping

from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.jinja import render
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.report import AgentResult
from unspoken.agents.spec.spec import WorkflowSpec


def results_of(agents: Mapping[str, AgentRun]) -> dict[str, AgentResult]:
    """What each agent wrote so far; an agent that wrote nothing is not in it."""
    return {
        name: AgentResult("".join(agent.texts[-1:]), tuple(agent.texts), tuple(agent.items))
        for name, agent in agents.items()
        if agent.texts or agent.items
    }


def outputs_of(
    spec: WorkflowSpec, inputs: Mapping[str, object], agents: Mapping[str, AgentRun]
) -> dict[str, str]:
    """The workflow's outputs; without any, the words of every agent that nobody reads."""
    if not spec.outputs:
        read = {edge.from_ for edge in spec.edges if not edge.loop}
        written = {name: agent.texts[-1:] for name, agent in agents.items()}
        return {name: "".join(texts) for name, texts in written.items() if name not in read}
    context: dict[str, object] = {"inputs": dict(inputs)}
    for name, agent in agents.items():
        told = {"skipped": agent.skipped, "items": list(agent.items)}
        context[name] = {"text": agent.texts[-1], **told} if agent.texts else Absent(told)
    return {name: render(template, context) for name, template in spec.outputs.items()}
