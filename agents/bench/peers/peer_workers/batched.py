"""transformers' `generate` by hand: the turns that can run together, as one batch of prompts."""

from .plain import Plain, counting
from .serving import Case, Job, Loaded, Outcome, serve
from .turns import prompt_of, waves


def load(job: Job) -> Loaded:
    """The model, and full prompts in batches."""
    plain = Plain(job)

    def run(case: Case) -> Outcome:
        outcome = Outcome()
        written: dict[str, list[int]] = {}

        def all_turns() -> None:
            for wave in waves(case):
                writing = [turn for turn in wave if turn["tokens"]]
                if not writing:
                    continue
                prompts = [prompt_of(turn, written) for turn in writing]
                rows, first = plain.generate(prompts, writing[0]["tokens"])
                for turn, ids in zip(writing, rows, strict=True):
                    written[turn["name"]], outcome.first[turn["name"]] = ids, first

        outcome.computed = counting(plain, all_turns)
        outcome.written.update(written)
        return outcome

    return Loaded(about=f"{plain.about}, one batch of full prompts", run=run)


if __name__ == "__main__":
    serve(load)
