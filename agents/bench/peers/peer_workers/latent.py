"""AVP (agent vector protocol): agents that others read think in latent steps, and write nothing.

Its contexts go on from one to the next, so that several senders think one after another. A context
that several agents answer from is copied for each, since an answer grows the cache that it is
given. AVP puts every prompt into its own chat template, so what its agents read is not what the
others read, word for word.
"""

import copy
import warnings
from importlib.metadata import version
from typing import Any

from avp import HuggingFaceConnector
from transformers import AutoTokenizer, StoppingCriteriaList

from .plain import FirstToken, Plain, counting
from .serving import Case, Job, Loaded, Outcome, serve
from .turns import answers


def load(job: Job) -> Loaded:
    """AVP's connector over the model."""
    warnings.simplefilter("ignore")
    plain = Plain(job)
    tokenizer = AutoTokenizer.from_pretrained(job["folder"], trust_remote_code=False)
    connector = HuggingFaceConnector(model=plain.hf, tokenizer=tokenizer)

    def run(case: Case) -> Outcome:
        outcome = Outcome()

        def all_turns() -> None:
            context: Any = None
            last = answers(case)
            for turn in case["turns"]:
                if turn["name"] not in last:
                    context = connector.think(turn["said"], steps=turn["tokens"], context=context)
                    continue
                own, first = copy.deepcopy(context) if len(last) > 1 else context, FirstToken()
                outcome.written[turn["name"]] = connector.generate(
                    turn["said"],
                    context=own,
                    max_new_tokens=turn["tokens"],
                    min_new_tokens=turn["tokens"],
                    do_sample=False,
                    stopping_criteria=StoppingCriteriaList([first]),
                )
                assert first.at is not None
                outcome.first[turn["name"]] = first.at

        outcome.computed = counting(plain, all_turns)
        return outcome

    about = f"AVP {version('avp')}, a latent step for each token of a message, {plain.about}"
    return Loaded(about=about, run=run)


if __name__ == "__main__":
    serve(load)
