"""What a chosen penalty is worth: the closed form and its control, at few tokens a column and many.

All forms of a number of tokens are solved from one pair of Gram matrices.
"""

from pathlib import Path
from typing import Any

import study
from assessed_forms import assessed_rows, rows_of
from closed_forms import ClosedForms, choose
from study import Measured, Progress
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.data.text import load_corpus

LAYERS, RANK = 4, 896
TOKENS_PER_COLUMN = (1.5, 6)
BEFORE = 1e-3
"""The penalty of all closed forms before it was chosen."""
PASSAGES, QUESTIONS = 16, 24


def measure(
    sharer: LocalModel,
    receiver: LocalModel,
    *,
    text: Path | None = None,
    qa: Path | None = None,
    progress: Progress,
) -> Measured:
    """A row per number of tokens, form and penalty: what it keeps of passages and questions."""
    corpus = load_corpus()
    layers = choose(sharer, receiver, corpus, [LAYERS])[LAYERS]
    plan = AuditPlan(text=text, qa=qa, passages=PASSAGES, questions=QUESTIONS, records=0)
    brought, rows = plan.rows(corpus), list[dict[str, Any]]()
    whole = ProjectorConfig(source_layers=layers, rank=RANK, hidden=0)
    control = ProjectorConfig(source_layers=(), rank=RANK, hidden=0)
    for each in TOKENS_PER_COLUMN:
        forms = ClosedForms(sharer, receiver, layers)
        progress(f"{each} tokens a column, {forms.columns} columns")
        forms.fit(corpus, int(each * forms.columns))
        conditions, solved = {}, {}
        for form, config in (("closed form", whole), ("embeddings only", control)):
            for penalty in (BEFORE, None):
                name = form, "chosen" if penalty is None else "before"
                solved[name] = forms.solution(config, penalty)
                conditions[" ".join(name)] = forms.conditions(
                    config, forms.projector(config, penalty)
                )
        forms.release()
        passages = assessed_rows(rows_of("continuation", brought, forms), conditions)
        questions = assessed_rows(rows_of("question", brought, forms), conditions)
        rows += [
            {
                "tokens_a_column": each,
                "form": form,
                "penalty": solution.penalty,
                "chosen": how == "chosen",
                "held_out_r2": solution.explained,
                **passages[f"{form} {how}"],
                "qa_retention": questions[f"{form} {how}"]["retention"],
                "qa_specific": questions[f"{form} {how}"]["specific"],
            }
            for (form, how), solution in solved.items()
        ]
    return rows, {}


def main() -> None:
    """Run the study from the command line."""
    study.run(measure, __doc__, files={"text": study.TEXT, "qa": study.QA})


if __name__ == "__main__":
    main()
