"""What a run's agents wrote, and the workflow's outputs of it."""

from collections.abc import Mapping
from contextlib import suppress

from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.answers import plain_data, typed_data
from unspoken.agents.runtime.report import AgentResult
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import TemplateError


def results_of(agents: Mapping[str, AgentRun]) -> dict[str, AgentResult]:
    """What each agent wrote so far; an agent that wrote nothing is not in it."""
    return {
        name: AgentResult(
            text="".join(agent.texts[-1:]),
            turns=tuple(agent.texts),
            items=tuple(agent.items),
            data=typed_data(agent),
            likelihoods=agent.turns[-1].likelihoods if agent.turns else None,
        )
        for name, agent in agents.items()
        if agent.texts or agent.items
    }


def outputs_of(
    spec: WorkflowSpec,
    inputs: Mapping[str, object],
    agents: Mapping[str, AgentRun],
    *,
    finished: bool = False,
) -> dict[str, str]:
    """The workflow's outputs; without any, the words of every agent that nobody reads.

    Args:
        spec: The workflow.
        inputs: Checked input values.
        agents: Its agents.
        finished: Leave out what reads an agent that wrote nothing, or cannot be rendered, as in a
            run that failed.
    """
    wrote = {name for name, agent in agents.items() if agent.texts}
    if not spec.outputs:
        read = {edge.from_ for edge in spec.edges if not edge.loop}
        names = [
            name for name in agents if name not in read and not (finished and name not in wrote)
        ]
        return {name: "".join(agents[name].texts[-1:]) for name in names}
    context: dict[str, object] = {"inputs": dict(inputs)}
    for name, agent in agents.items():
        told = {"skipped": agent.skipped, "items": list(agent.items)}
        if (data := plain_data(agent)) is not None:
            told["data"] = data
        context[name] = {"text": agent.texts[-1], **told} if agent.texts else Absent(told)
    outputs = {}
    for name, template in spec.outputs.items():
        if not finished:
            outputs[name] = render(template, context)
        elif {read.root for read in references(template)} - {"inputs"} <= wrote:
            with suppress(TemplateError):  # the run's own error is the one to tell
                outputs[name] = render(template, context)
    return outputs
