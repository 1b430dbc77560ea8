"""vLLM, which finds what an earlier request has read: the turns that can run together at once."""

import os
from time import perf_counter
from typing import Any

from .serving import Case, Job, Loaded, Outcome, serve
from .turns import prompt_of, waves


def _engine(job: Job) -> Any:
    """vLLM in this process, whose time and memory are counted."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    import vllm

    return vllm.LLM(
        model=job["folder"],
        dtype=job["dtype"],
        max_model_len=job["longest"],
        enable_prefix_caching=True,
        enforce_eager=True,  # what it compiles for a CPU takes minutes to begin
    )


def load(job: Job) -> Loaded:
    """The engine; a reader that writes nothing reads by one token, which nobody sees."""
    llm = _engine(job)
    import vllm

    def settings(tokens: int) -> Any:
        return vllm.SamplingParams(
            max_tokens=max(tokens, 1),
            min_tokens=tokens,
            temperature=0.0,
            stop_token_ids=job["stop_ids"],
            detokenize=False,
        )

    def run(case: Case) -> Outcome:
        llm.reset_prefix_cache()
        outcome, engine = Outcome(), llm.llm_engine
        written: dict[str, list[int]] = {}
        for wave in waves(case):
            for turn in wave:
                prompt = {"prompt_token_ids": prompt_of(turn, written)}
                engine.add_request(turn["name"], prompt, settings(turn["tokens"]))
            while engine.has_unfinished_requests():
                for output in engine.step():
                    _note(output, outcome, written)
        silent = [turn["name"] for turn in case["turns"] if not turn["tokens"]]
        outcome.written = {name: ids for name, ids in written.items() if name not in silent}
        return outcome

    return Loaded(about=f"vLLM {vllm.__version__}, {job['dtype']}, eager", run=run)


def _note(output: Any, outcome: Outcome, written: dict[str, list[int]]) -> None:
    name, ids = output.request_id, list(output.outputs[0].token_ids)
    if ids:
        outcome.first.setdefault(name, perf_counter())
    if output.finished:
        written[name] = ids
        found = output.num_cached_tokens or 0
        outcome.computed += len(output.prompt_token_ids) - found + len(ids) - 1


if __name__ == "__main__":
    serve(load)
