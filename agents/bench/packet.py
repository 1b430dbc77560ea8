"""What a packet keeps of a message's state, what it weighs, and when it is faster than text."""

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from unspoken.agents.bench import Files, Progress
from unspoken.agents.bench.forced import asked, carried, distance, recomputed, without
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.models.model import LocalModel
from unspoken.channels.kv.codec import CODECS, Codec
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.same_model import SameModelCacheChannel

__all__ = ["measure"]

PASSAGES, TOKENS, FORCED = 20, 256, 40
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
REPEATS = 5
LINKS = (1, 10)
"""Gb/s."""

KEY = b"the key of a benchmark, no secret"
PROMPT = "Go on with the text."
CHANNEL = SameModelCacheChannel(share="prompt")


def measure(
    model: LocalModel, files: Files, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows per codec with its controls, per length and codec, and the figures of both."""
    passages = cut_passages(model, files.text, PASSAGES, TOKENS + FORCED)
    exact = {
        name: all(_bit_exact(one, ids[:TOKENS]) for ids in passages[:2])
        for name, one in _dtypes(model)
    }
    progress(f"raw, bit for bit: {exact}")
    rows = _quality(model, passages, progress)
    times = _times(model, files, progress)
    at = {row["way"]: row for row in rows}
    summary: dict[str, Any] = {"raw_bit_exact": all(exact.values())}
    for codec in CODECS:
        row = at[codec]
        summary[f"{codec}_kl"], summary[f"{codec}_top1"] = row["kl_to_raw"], row["top1_to_raw"]
        summary[f"{codec}_kl_to_prefill"] = row["mean_kl"]
        summary[f"{codec}_bytes_per_token"] = row["bytes_per_token"]
    return [*rows, *times], summary | _speeds(times) | _break_even(times)


def _dtypes(model: LocalModel) -> list[tuple[str, LocalModel]]:
    both = (torch.float32, torch.bfloat16)
    return [
        (str(dtype).removeprefix("torch."), model if model.dtype == dtype else model.cast(dtype))
        for dtype in both
    ]


def _bit_exact(model: LocalModel, words: tuple[int, ...]) -> bool:
    state = model.read(words)
    message = Message("sharer", (), True, words, model.identity, state)
    back = _there_and_back(model, message, "raw")[0].state
    return back is not None and all(
        torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
        for one, other in zip(back.layers, state.layers, strict=True)
        for mine, theirs in (
            (one.keys.contiguous(), other.keys.contiguous()),
            (one.values.contiguous(), other.values.contiguous()),
        )
    )


def _there_and_back(model: LocalModel, message: Message, codec: Codec) -> tuple[Message, int]:
    data = _bytes(message, codec)
    return _read(model, data), len(data)


# -- what a packet keeps


def _quality(
    model: LocalModel, passages: Sequence[tuple[int, ...]], progress: Progress
) -> list[dict[str, Any]]:
    scenes = [Scene.make(model, ids[:TOKENS], prompt=PROMPT) for ids in passages]
    forced = [ids[TOKENS:] for ids in passages]
    full = [
        recomputed(model, asked(model, scene), tail)
        for scene, tail in zip(scenes, forced, strict=True)
    ]

    def through(codec: Codec) -> tuple[list[Tensor], float]:
        logs, sizes = [], []
        for scene, tail in zip(scenes, forced, strict=True):
            message, size = _there_and_back(model, scene.message, codec)
            sizes.append(size / len(message.context))
            logs.append(carried(model, scene, CHANNEL, tail, message))
        return logs, mean(sizes)

    def misled(index: int) -> tuple[float, float]:
        own, other = scenes[index].message, scenes[(index + 1) % len(scenes)].message
        swapped = replace(own, state=other.state)
        logs = carried(model, scenes[index], CHANNEL, forced[index], swapped)
        return distance(full[index], logs)

    every = range(len(scenes))
    rows = [_row("text", [distance(one, one) for one in full])]
    raw: list[Tensor] = []
    for codec in CODECS:
        logs, size = through(codec)
        raw = raw or logs
        row = _row(codec, [distance(*two) for two in zip(full, logs, strict=True)], size)
        nearer = [distance(*two) for two in zip(raw, logs, strict=True)]
        row["kl_to_raw"], row["top1_to_raw"] = _means(nearer)
        rows.append(row)
        progress(f"{codec}: KL to raw {row['kl_to_raw']:.6f}, to a prefill {row['mean_kl']:.6f}")
    alone = [distance(full[i], without(model, PROMPT, None, forced[i])) for i in every]
    return [
        *rows,
        _row("another example's message", [misled(i) for i in every]),
        _row("no message", alone),
    ]


def _row(way: str, scores: Sequence[tuple[float, float]], size: float = 0.0) -> dict[str, Any]:
    kl, top1 = _means(scores)
    return {
        "way": way,
        "mean_kl": kl,
        "top1": top1,
        "bytes_per_token": round(size, 1),
        "passages": len(scores),
        "message_tokens": TOKENS,
        "forced_tokens": FORCED,
    }


def _means(scores: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return mean(kl for kl, _ in scores), mean(top1 for _, top1 in scores)


# -- what it costs


def _times(model: LocalModel, files: Files, progress: Progress) -> list[dict[str, Any]]:
    """Seconds to prefill a text, and to write and read its packet, per length; each in turn,
    medians.
    """
    rows = []
    for size in SIZES:
        if size > model.max_positions:
            continue
        words = cut_passages(model, files.text, 1, size)[0]
        state = model.read(words)
        message = Message("sharer", (), True, words, model.identity, state)
        packets = {codec: _bytes(message, codec) for codec in CODECS}
        ways: dict[str, Callable[[], object]] = {"text": partial(model.read, words)}
        for codec, data in packets.items():
            ways[f"write {codec}"] = partial(_bytes, message, codec)
            ways[f"read {codec}"] = partial(_read, model, data)
        medians = _medians(ways)
        text = len(model.text.decode(words).encode())
        for codec, data in packets.items():
            rows.append(
                {
                    "tokens": size,
                    "codec": codec,
                    "packet_bytes": len(data),
                    "state_bytes": state.nbytes,
                    "text_bytes": text,
                    "prefill_s": round(medians["text"], 5),
                    "write_s": round(medians[f"write {codec}"], 5),
                    "read_s": round(medians[f"read {codec}"], 5),
                }
            )
        progress(
            f"{size} tokens: " + ", ".join(f"{n} {s * 1e3:.1f} ms" for n, s in medians.items())
        )
    return rows


def _bytes(message: Message, codec: Codec) -> bytes:
    stream = io.BytesIO()
    write_packet(message, stream, key=KEY, codec=codec)
    return stream.getvalue()


def _read(model: LocalModel, data: bytes) -> Message:
    return read_packet(io.BytesIO(data), model, key=KEY)


def _medians(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for one in range(REPEATS + 1):
        for name, way in ways.items():
            began = perf_counter()
            way()
            if one:  # the first round warms up
                times[name].append(perf_counter() - began)
    return {name: median(values) for name, values in times.items()}


def _speeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """MB of state a second, at 1,024 tokens."""
    found: dict[str, Any] = {}
    for row in rows:
        if row["tokens"] == 1024:
            megabytes = row["state_bytes"] / 1e6
            found[f"{row['codec']}_encode_mb_s"] = round(megabytes / row["write_s"])
            found[f"{row['codec']}_decode_mb_s"] = round(megabytes / row["read_s"])
    return found


def _break_even(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """From how many tokens on a packet over a link is there sooner than the receiver has read the
    text itself.
    """
    found = {}
    for link in LINKS:
        for codec in CODECS:
            gains = [
                (
                    row["tokens"],
                    row["prefill_s"] + _link(row["text_bytes"], link) - _cost(row, link),
                )
                for row in rows
                if row["codec"] == codec
            ]
            found[f"{codec}_break_even_tokens_{link}gbps"] = crossing(gains)
    return found


def _link(count: int, gigabits: int) -> float:
    return count * 8 / (gigabits * 1e9)


def _cost(row: dict[str, Any], link: int) -> float:
    return float(row["write_s"] + row["read_s"]) + _link(row["packet_bytes"], link)


def crossing(gains: Sequence[tuple[int, float]]) -> int | None:
    """The least length from which all measured gains are positive, between two of them by a
    straight line.
    """
    last = max((i for i, (_, gain) in enumerate(gains) if gain <= 0), default=-1)
    if last == len(gains) - 1:
        return None
    after, high = gains[last + 1]
    if last < 0:
        return after
    before, low = gains[last]
    return round(before + (after - before) * -low / (high - low))
