"""Our own side: the workflow as its plan has it, from the words of the document."""

from functools import partial
from time import perf_counter

import torch

from unspoken.agents.bench.peers.workflows import WORKFLOWS
from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.events import TokenWritten, TurnFinished
from unspoken.agents.workflow import Workflow
from unspoken.channels.storage.side import running_version

from .serving import Case, Job, Loaded, Outcome, serve


def load(job: Job) -> Loaded:
    """The model, and its workflows."""
    torch.set_num_threads(job["threads"])
    model = LocalModel.load(job["ref"])
    flows: dict[str, Workflow] = {}

    def run(case: Case) -> Outcome:
        name = case["name"]
        if name not in flows:
            flows[name] = WORKFLOWS[name](model, case["tokens"])
        layers = len(model.geometry.layers)
        return run_anywhere(partial(_followed, flows[name], case["document"], layers))

    return Loaded(about=f"unspoken {running_version()}, {job['dtype']}", run=run)


async def _followed(flow: Workflow, document: str, layers: int) -> Outcome:
    """A run to its end."""
    outcome = Outcome()
    async for event in flow.stream(document=document):
        match event:
            case TokenWritten():
                outcome.first.setdefault(event.agent, perf_counter())
            case TurnFinished():
                report = event.report
                written = report.generated_tokens
                outcome.computed += report.layer_tokens_computed // layers + max(written - 1, 0)
                outcome.prompt_tokens[event.agent] = report.prompt_tokens
                if written:
                    outcome.written[event.agent] = event.text
    return outcome


if __name__ == "__main__":
    serve(load)
