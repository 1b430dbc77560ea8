"""What the runs of all sides say, beside each other."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from unspoken.agents.bench.engine.share import Timing, figures
from unspoken.agents.bench.peers.processes import Run
from unspoken.agents.bench.peers.sides import CACHED, GENERATE, OURS, PLAIN, VLLM
from unspoken.agents.bench.peers.workflows import CHAIN, FAN_OUT, Turn
from unspoken.agents.models.model import LocalModel

__all__ = ["require_same_prompts", "rows_of", "summary_of"]

Runs = Mapping[tuple[str, str], Sequence[Run]]
"""The runs of each workflow by each side."""


def require_same_prompts(turns: Mapping[str, Sequence[Turn]], runs: Runs) -> None:
    """Refuse figures of prompts that are not those that the other sides were given.

    Args:
        turns: The turns of each workflow.
        runs: The runs; a side that composes its prompts itself tells their lengths.
    """
    for (workflow, side), taken in runs.items():
        for turn in turns[workflow]:
            theirs = taken[0].prompt_tokens.get(turn.name, turn.length())
            if theirs != turn.length():
                raise RuntimeError(
                    f"{turn.name} of {workflow} reads {theirs} tokens in {side}, and "
                    f"{turn.length()} elsewhere"
                )


def rows_of(model: LocalModel, runs: Runs, about: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each workflow and side.

    Args:
        model: Whose tokens the sides wrote.
        runs: Their runs.
        about: What each side is.
    """
    rows = []
    for (workflow, side), taken in runs.items():
        peaks = [run.peak_bytes for run in taken if run.peak_bytes is not None]
        told = [_answers(model, run) for run in taken]
        texts = [_answers(model, run) for run in runs.get((workflow, PLAIN), ())]
        rows.append(
            {
                "workflow": workflow,
                "side": side,
                "ours_is_faster": _over(taken, runs.get((workflow, OURS))),
                "first_token_s": round(median(run.first_token_s for run in taken), 4),
                "peak_mb": round(max(peaks) / 1e6) if peaks else None,
                "peak_of": taken[0].peak_of,
                "tokens_computed": taken[0].computed,
                "answers": len(told[0]),
                "answers_equal_to_text": _equal(told, texts[0]) if texts else None,
                **figures([_timing(run) for run in taken]),
                "about": about[side],
            }
        )
    return rows


def _timing(run: Run) -> Timing:
    return Timing(seconds=run.seconds, cpu_share=run.cpu_seconds / (run.seconds * run.threads))


def _answers(model: LocalModel, run: Run) -> dict[str, str]:
    """What each turn wrote."""
    texts = {
        name: words if isinstance(words, str) else model.text.decode(words)
        for name, words in run.written.items()
    }
    return {name: text.strip() for name, text in texts.items()}


def _equal(rounds: Sequence[Mapping[str, str]], texts: Mapping[str, str]) -> int:
    """How many turns wrote what text did, in every round."""
    return sum(all(said[name] == texts[name] for said in rounds) for name in rounds[0])


def _over(taken: Sequence[Run], ours: Sequence[Run] | None) -> float | None:
    if ours is None:
        return None
    return round(median(run.seconds for run in taken) / median(run.seconds for run in ours), 2)


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The main ratios; None where a side is absent or was left out."""
    faster = {(row["workflow"], row["side"]): row["ours_is_faster"] for row in rows}
    ours = [row for row in rows if row["side"] == OURS]
    compared = [row for row in ours if row["answers_equal_to_text"] is not None]
    return {
        "chain_speedup_vs_langgraph": faster.get((CHAIN, PLAIN)),
        "chain_speedup_vs_langgraph_cached": faster.get((CHAIN, CACHED)),
        "fanout_speedup_vs_langgraph": faster.get((FAN_OUT, PLAIN)),
        "fanout_speedup_vs_langgraph_cached": faster.get((FAN_OUT, CACHED)),
        "fanout_speedup_vs_generate": faster.get((FAN_OUT, GENERATE)),
        "fanout_speedup_vs_vllm": faster.get((FAN_OUT, VLLM)),
        "answers_equal_to_text": all(
            row["answers_equal_to_text"] == row["answers"] for row in compared
        )
        if compared
        else None,
    }
