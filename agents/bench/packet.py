"""What a packet keeps of a message's state, what it weighs, and when it is faster than text."""

import io
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.forced import Case, Score, means, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.channels.kv.codec import CODECS, Codec
from unspoken.channels.machine import medians
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.same_model import SameModelCacheChannel

PASSAGES, TOKENS, FORCED = SCALES["packet"].rows, 256, 40
PARTS = QUALITY, SPEED = SCALES["packet"].parts
SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
REPEATS = 5
LINKS = (1, 10)
"""Gb/s."""

KEY = b"the key of a benchmark, no secret"
PROMPT = "Go on with the text."
CHANNEL = SameModelCacheChannel(share="prompt")


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    count: int | None = None,
    only: Collection[str] = PARTS,
    progress: Progress,
) -> Measured:
    """Rows per codec with its controls, per length and codec, and the figures of both."""
    passages = cut_passages(model, text, count or PASSAGES, TOKENS + FORCED)
    exact = {
        str(dtype).removeprefix("torch."): all(
            _bit_exact(model if model.dtype == dtype else model.cast(dtype), ids[:TOKENS])
            for ids in passages[:2]
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    progress(f"raw, bit for bit: {exact}")
    quality = _quality(model, passages, progress) if QUALITY in only else []
    times = _times(model, text, progress) if SPEED in only else []
    summary: dict[str, Any] = {"raw_bit_exact": all(exact.values())}
    for row in quality:
        codec = row["way"]
        if codec not in CODECS:
            continue
        summary[f"{codec}_kl"], summary[f"{codec}_top1"] = row["kl_to_raw"], row["top1_to_raw"]
        summary[f"{codec}_kl_to_prefill"] = row["mean_kl"]
        summary[f"{codec}_bytes_per_token"] = row["bytes_per_token"]
    speeds = _speeds(times) | _break_even(times) if times else {}
    return [*quality, *times], summary | speeds


def _message(model: LocalModel, words: tuple[int, ...]) -> Message:
    return Message(
        sharer="sharer",
        segments=(),
        whole=True,
        context=words,
        identity=model.identity,
        state=model.read(words),
    )


def _bit_exact(model: LocalModel, words: tuple[int, ...]) -> bool:
    """Whether a packet gives back the bits of the state that went in."""
    message = _message(model, words)
    sent, came = message.require_state(), _read(model, _bytes(message, "raw")).require_state()
    return all(
        torch.equal(theirs.contiguous().view(torch.uint8), ours.contiguous().view(torch.uint8))
        for ours_layer, theirs_layer in zip(came.layers, sent.layers, strict=True)
        for ours, theirs in (
            (ours_layer.keys, theirs_layer.keys),
            (ours_layer.values, theirs_layer.values),
        )
    )


# -- what a packet keeps


def _quality(
    model: LocalModel, passages: Sequence[tuple[int, ...]], progress: Progress
) -> list[dict[str, Any]]:
    cases = [Case.make(model, ids[:TOKENS], ids[TOKENS:], prompt=PROMPT) for ids in passages]
    full = [case.full for case in cases]
    rows = [_row("text", map(score, full, full))]
    raw: list[Tensor] = []
    for codec in CODECS:
        packets = [_bytes(case.scene.message, codec) for case in cases]
        logs = [
            case.carried(CHANNEL, _read(model, packet))
            for case, packet in zip(cases, packets, strict=True)
        ]
        size = mean(
            len(packet) / len(case.scene.message.context)
            for case, packet in zip(cases, packets, strict=True)
        )
        raw = raw or logs
        nearer = means(map(score, raw, logs))
        row = _row(codec, map(score, full, logs), size)
        row |= {"kl_to_raw": nearer["mean_kl"], "top1_to_raw": nearer["top1"]}
        rows.append(row)
        progress(f"{codec}: KL to raw {row['kl_to_raw']:.6f}, to a prefill {row['mean_kl']:.6f}")
    misled = [
        case.carried(CHANNEL, replace(case.scene.message, state=other.scene.message.state))
        for case, other in zip(cases, rotated(cases), strict=True)
    ]
    return [
        *rows,
        _row("another example's message", map(score, full, misled)),
        _row("no message", map(score, full, map(Case.without, cases))),
    ]


def _row(condition: str, scores: Iterable[Score], size: float = 0.0) -> dict[str, Any]:
    compared = list(scores)
    return {
        "way": condition,
        **means(compared),
        "bytes_per_token": round(size, 1),
        "passages": len(compared) // FORCED,
        "message_tokens": TOKENS,
        "forced_tokens": FORCED,
    }


# -- what it costs


def _times(model: LocalModel, text: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """Seconds to prefill a text, and to write and read its packet, per length."""
    rows = []
    for size in SIZES:
        if size > model.max_positions:
            continue
        words = cut_passages(model, text, 1, size)[0]
        message = _message(model, words)
        state_bytes = message.require_state().nbytes
        packets = {codec: _bytes(message, codec) for codec in CODECS}
        conditions: dict[str, Callable[[], object]] = {"text": partial(model.read, words)}
        for codec, packet in packets.items():
            conditions[f"write {codec}"] = partial(_bytes, message, codec)
            conditions[f"read {codec}"] = partial(_read, model, packet)
        seconds = medians(conditions, REPEATS, model.device)
        rows += [
            {
                "tokens": size,
                "codec": codec,
                "packet_bytes": len(packet),
                "state_bytes": state_bytes,
                "text_bytes": len(model.text.decode(words).encode()),
                "prefill_s": round(seconds["text"], 5),
                "write_s": round(seconds[f"write {codec}"], 5),
                "read_s": round(seconds[f"read {codec}"], 5),
            }
            for codec, packet in packets.items()
        ]
        figures = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
        progress(f"{size} tokens: {figures}")
    return rows


def _bytes(message: Message, codec: Codec) -> bytes:
    stream = io.BytesIO()
    write_packet(message, stream, key=KEY, codec=codec)
    return stream.getvalue()


def _read(model: LocalModel, data: bytes) -> Message:
    return read_packet(io.BytesIO(data), model, key=KEY)


def _speeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """MB of state a second, at 1,024 tokens."""
    speeds: dict[str, Any] = {}
    for row in rows:
        if row["tokens"] == 1024:
            megabytes = row["state_bytes"] / 1e6
            speeds[f"{row['codec']}_encode_mb_s"] = round(megabytes / row["write_s"])
            speeds[f"{row['codec']}_decode_mb_s"] = round(megabytes / row["read_s"])
    return speeds


def _break_even(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """The length from which on a packet is there sooner than the receiver has read the text."""
    lengths = {}
    for link in LINKS:
        for codec in CODECS:
            gains = [(row["tokens"], _gain(row, link)) for row in rows if row["codec"] == codec]
            lengths[f"{codec}_break_even_tokens_{link}gbps"] = crossing(gains)
    return lengths


def _gain(row: dict[str, Any], gigabits: int) -> float:
    """Seconds that a packet saves over a link."""
    more_bytes = row["packet_bytes"] - row["text_bytes"]
    link = more_bytes * 8 / (gigabits * 1e9)
    return float(row["prefill_s"] - row["write_s"] - row["read_s"] - link)


def crossing(gains: Sequence[tuple[int, float]]) -> int | None:
    """The least length from which all gains are positive, interpolated between two lengths."""
    last = max((i for i, (_, gain) in enumerate(gains) if gain <= 0), default=-1)
    if last == len(gains) - 1:
        return None
    after, high = gains[last + 1]
    if last < 0:
        return after
    before, low = gains[last]
    return round(before + (after - before) * -low / (high - low))
