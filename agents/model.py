"""A causal language model with its tokenizer, loaded once and shared by agents."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unspoken.agents._hf import Backbone, Capture
from unspoken.agents._hf_cache import ContextCache, first_approximate, first_gap
from unspoken.agents.adapters import AdapterSwitch, adapted_identity, adapter_folder
from unspoken.agents.catalog import prepare
from unspoken.agents.compose import Composer, Turn
from unspoken.agents.identity import cached_identity, model_identity
from unspoken.agents.quiet import Stage, quiet_transformers
from unspoken.agents.template import PLAIN_TEMPLATE, ChatTemplate, read_template
from unspoken.agents.tokens import TokenCodec
from unspoken.channels.base import Prefill
from unspoken.channels.bridges.reader import Frame
from unspoken.channels.errors import ModelReferenceError, ModelSupportError, StateError
from unspoken.channels.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.message import Message
from unspoken.channels.rope import Rotary, shift
from unspoken.channels.state import KVState, LayerState

__all__ = ["CHUNK", "LocalModel"]

CHUNK = 256
"""Most tokens one prefill pass takes, so that a cancel never waits long."""


class LocalModel:
    """A model on this machine; implements `unspoken.channels.CausalModel`.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        ref: What to call it; the reference it can be loaded by, or empty for an object made in memory.
        identity: Its identity; computed from all weights where it is not given.

    Raises:
        ModelSupportError: An architecture whose cache cannot be handed over, or a tokenizer without offsets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ref: str = "",
        identity: ModelIdentity | None = None,
    ) -> None:
        self.ref = ref
        self.hf: PreTrainedModel = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.backbone = Backbone(model)
        self._identity = identity or model_identity(model, tokenizer, None)
        self.codec = TokenCodec(tokenizer, self._identity.tokenizer)
        self.composer = Composer(self.codec, self.template)
        self.adapter: str | None = None
        self.asked: Mapping[str, str] = {}
        """``dtype``, ``device`` and ``revision`` as they were asked for, those that were."""
        self._switch: AdapterSwitch | None = None

    @classmethod
    def load(
        cls,
        ref: str,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        revision: str | None = None,
        adapter: str | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> "LocalModel":
        """Load a Hub id, a folder, a ``.gguf`` file or ``embedded:NAME``, prepared on first use.

        Args:
            ref: The model reference.
            dtype: ``auto`` is float32 on a CPU and the checkpoint's own on an accelerator.
            device: ``auto`` is the accelerator where there is one, else the CPU.
            revision: Branch, tag or commit of a Hub id.
            adapter: Folder or Hub id of an adapter on it; see `with_adapter` for several on one base.
            progress: Called with a stage and a fraction while the model is being prepared.

        Raises:
            ModelReferenceError: The reference leads to no model.
            ModelSupportError: The model cannot be served.
        """
        folder = prepare(ref, revision=revision, progress=progress)
        target = _device(device)
        wanted = _dtype(dtype, target)
        identity = cached_identity(folder)
        try:
            with quiet_transformers(Stage("load", progress or (lambda stage, fraction: None))):
                tokenizer = AutoTokenizer.from_pretrained(folder)
                model = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=wanted if identity and wanted else _checkpoint_dtype(folder),
                    attn_implementation=_attention(folder),
                )
        except Exception as error:  # transformers and safetensors raise almost anything here
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelReferenceError(
                f"{ref!r} could not be loaded from {folder}: {said}",
                expected="a causal language model with weights, config.json and a tokenizer",
                fix="check the folder, or prepare the model again with `unspoken models prepare`",
            ) from error
        if identity is None:  # before any cast: an identity is of the checkpoint's own values
            identity = model_identity(model, tokenizer, folder)
        torch.nn.Module.to(model, target)
        _cast(model, wanted)
        loaded = cls(model, tokenizer, ref=ref, identity=identity)
        asked = {"dtype": dtype, "device": device, "revision": revision or "auto"}
        named = {name: str(value).removeprefix("torch.") for name, value in asked.items()}
        loaded.asked = {name: value for name, value in named.items() if value != "auto"}
        with suppress(ModelSupportError):
            # Here, so that planning computes nothing; it warms up too, so that no agent's first token pays for it.
            _ = loaded.shifts_keys
        return loaded if adapter is None else loaded.with_adapter(adapter)

    def with_adapter(self, adapter: str, *, revision: str | None = None) -> "LocalModel":
        """The same base with an adapter: another model, whose weights are shared with this one.

        The adapter is switched on before anything this model computes, and off before anything the base does. Both run
        on one device, so one worker owns them, and neither computes while the other does.

        Args:
            adapter: A folder that peft's ``save_pretrained`` wrote, or a Hub id.
            revision: Branch, tag or commit of a Hub id.

        Raises:
            ModelReferenceError: There is no such adapter, or it does not fit the base.
            ModelSupportError: This model has an adapter already, peft is missing, or the adapter is no set of weights.
        """
        if self.adapter is not None:
            raise ModelSupportError(
                f"{self.ref or 'the model'} has the adapter {self.adapter!r} already",
                expected="a base model without one",
                fix="call with_adapter on the base",
            )
        folder = adapter_folder(adapter, revision)
        identity = adapted_identity(self._identity, folder)
        if self._switch is None:
            self._share(AdapterSwitch(self.hf), None)
        switch, name = self._switch, f"a{identity.weights[:12]}"
        assert switch is not None
        switch.add(name, folder)
        made = LocalModel(self.hf, self.tokenizer, ref=self.ref, identity=identity)
        made.adapter, made.asked = adapter, self.asked
        made._share(switch, name)
        return made

    def _share(self, switch: AdapterSwitch, name: str | None) -> None:
        self._switch = switch
        self.backbone.activate = partial(switch.use, name)

    def cast(self, dtype: torch.dtype) -> "LocalModel":
        """A copy with weights of another float type, of the same identity: both come of one checkpoint."""
        self.backbone.activate()  # the copy keeps the adapter that is on
        copied = copy.deepcopy(self.hf)
        _cast(copied, dtype)
        made = LocalModel(copied, self.tokenizer, ref=self.ref, identity=self._identity)
        made.adapter = self.adapter
        made.asked = {**self.asked, "dtype": str(dtype).removeprefix("torch.")}
        return made

    @property
    def identity(self) -> ModelIdentity:
        """Who it is, by weights, config and tokenizer."""
        return self._identity

    @property
    def geometry(self) -> CacheGeometry:
        """The shape of its cache."""
        return self.backbone.geometry

    @property
    def dtype(self) -> torch.dtype:
        """Element type of its cache."""
        dtype: torch.dtype = self.hf.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.backbone.device

    @cached_property
    def max_positions(self) -> int:
        """Number of positions its context holds; where frequencies change with the length, those before they do."""
        config = self.backbone.config
        if not any(self.rotary(name).dynamic for name in {x.rope for x in self.geometry.layers}):
            return self.geometry.max_positions
        parameters = getattr(config, "rope_parameters", None) or {}
        base = parameters.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        return min(self.geometry.max_positions, int(base or self.geometry.max_positions))

    @cached_property
    def template(self) -> ChatTemplate:
        """Its chat template, taken apart; a plain one where it brings none."""
        source = self.tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        bos = self.codec.bos
        if source:
            parts = read_template(self._renderer(source), bos=bos)
            if parts is not None:
                return parts
        plain = read_template(self._renderer(PLAIN_TEMPLATE), bos=bos, plain=True)
        if plain is None:
            raise ModelSupportError("the plain chat template could not be rendered")
        if source:
            note = "its own chat template could not be taken apart: turns are plain paragraphs"
            return replace(plain, plain=False, notes=(*plain.notes, note))
        return plain

    def _renderer(self, source: Any) -> Callable[[Sequence[Mapping[str, str]], bool], str]:
        def render(turns: Sequence[Mapping[str, str]], prompt: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns],
                    chat_template=source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                )
            )

        return render

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end the assistant's turn."""
        configured = getattr(self.hf.generation_config, "eos_token_id", None)
        ids = (
            configured
            if isinstance(configured, list)
            else [configured, self.tokenizer.eos_token_id]
        )
        closing = self.composer.close()[:1]
        special = set(self.tokenizer.all_special_ids)
        return frozenset(token for token in (*ids, *(set(closing) & special)) if token is not None)

    def rotary(self, name: str) -> Rotary:
        """The rotary embedding of a name in its geometry."""
        return self.backbone.rotary(name)

    def words(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of somebody's words, and the character at which each token's text ends."""
        ids, offsets = self.codec.words_with_offsets(text)
        return ids, tuple(stop for _, stop in offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.codec.decode(ids)

    def frame(self, name: str) -> Frame:
        """What stands around a message: ``bare``, or ``chat`` for a user turn of its template."""
        if name == "bare":
            return Frame(name, self.codec.encode(self.codec.bos), ())
        context = self.composer.compose([Turn("user", ("x",))])
        turn = context.segments[-1]
        start, stop = turn.content
        return Frame(
            name,
            context.ids[: turn.position + start],
            turn.ids[stop:] + self.composer.ask(context),
        )

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Token ids as an int64 tensor on the model's device."""
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Input of layer 0 for `ids`, shape (tokens, hidden_size), scaled as the model does."""
        return self.backbone.embed(ids)

    @torch.no_grad()
    def prefill(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        positions: Tensor | None = None,
        capture: Collection[int] = (),
    ) -> Prefill:
        """Compute `ids` over states; see `unspoken.channels.CausalModel.prefill`."""
        end = max((piece.stop for piece in state), default=0)
        wanted = list(range(end, end + len(ids))) if positions is None else positions.tolist()
        cache = self.open(state, wanted, spare=0)
        hidden: Capture = {layer: [] for layer in capture}
        logits: Tensor | None = None
        for step in self.prefill_steps(ids, wanted, cache, hidden):
            logits = step
        if logits is None:
            raise StateError("no tokens to compute", expected="at least one")
        inputs = {layer: torch.cat(parts) for layer, parts in hidden.items()}
        return Prefill(cache.snapshot(self.identity), logits, inputs)

    def open(
        self,
        state: Sequence[KVState],
        positions: Sequence[int],
        *,
        spare: int,
        layers: slice = slice(None),
    ) -> ContextCache:
        """A cache with `state` in place, of some layers alone if asked, and room for `positions` and `spare` more.

        Raises:
            StateError: A gap, or rows missing that a new token must see.
            GeometryMismatch, IdentityMismatch: A state that is not this model's.
        """
        for piece in state:
            self.identity.require(
                piece.identity, f"a state of positions {piece.start} to {piece.stop}"
            )
            piece.check(self.geometry, self.dtype)
        end = max((piece.stop for piece in state), default=0)
        stop = max(end, positions[-1] + 1 if positions else 0)
        gap = first_gap(state, positions, stop)
        if gap is not None:
            raise StateError(
                f"nothing covers position {gap}",
                expected=f"states and new tokens that cover positions 0 to {stop} together",
            )
        cache = ContextCache(self.geometry, stop + spare)
        cache.approximate_from = first_approximate(state, positions)
        for piece in state:
            cache.place(piece, layers)
        if positions:
            cache.check_window(positions[0])
        return cache

    def prefill_steps(
        self,
        ids: Tensor,
        positions: Sequence[int],
        cache: ContextCache,
        hidden: Capture | None = None,
    ) -> Iterator[Tensor | None]:
        """Compute `ids` at ascending `positions` in passes of at most `CHUNK` tokens, one a step.

        Yields:
            None after every pass but the last, then the logits after the last token, shape (vocabulary,).
        """
        done, total = 0, len(positions)
        while done < total:
            stop = min(done + CHUNK, total)
            keep = 1 if stop == total else 0
            part = ids[done:stop]
            if positions[done] == cache.length:
                logits = self.backbone.forward(part, cache, keep=keep, capture=hidden)
            else:
                where = self.tensor(positions[done:stop])
                logits = self.backbone.fill(
                    part, where, positions[stop - 1], cache, keep=keep, capture=hidden
                )
            done = stop
            yield None if logits is None else logits[-1]

    @torch.no_grad()
    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        state: Sequence[KVState] = (),
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run layers first … last - 1; see `unspoken.channels.CausalModel.run_layers`."""
        start = int(positions[0])
        stop = start + hidden.shape[0]
        cache = self.open(state, range(start, stop), spare=0, layers=slice(first, last))
        output = self.backbone.run_layers(hidden, first, last, positions, start, cache)
        layers = tuple(
            LayerState(rows.keys[0, :, start:stop], rows.values[0, :, start:stop], start)
            for rows in cache.rows[first:last]
        )
        return output, layers

    def message(
        self,
        text: str,
        *,
        sharer: str = "reader",
        system: str | None = None,
        capture: Collection[int] = (),
    ) -> Message:
        """Read a text as a user's turn in a context of its own: a message with its state, ready for a packet.

        Args:
            text: The words.
            sharer: Name of the agent that shares them.
            system: A system prompt before them; None leaves that to the chat template.
            capture: Layers whose inputs a receiver with other weights will need (the E-cache).
        """
        context = self.composer.compose([Turn("user", (text,))], system=system)
        segment = context.segments[-1]
        state = self.read(context.ids, capture)
        return Message(sharer, (segment,), False, context.ids, self.identity, state)

    @torch.no_grad()
    def read(self, ids: Sequence[int], capture: Collection[int] = ()) -> KVState:
        """State of a context of its own, without the logits that `prefill` would compute after it.

        Args:
            ids: The context.
            capture: Layers whose inputs the state is to keep (the E-cache).
        """
        cache = self.open((), range(len(ids)), spare=0)
        hidden: Capture = {layer: [] for layer in capture}
        for start in range(0, len(ids), CHUNK):
            part = self.tensor(ids[start : start + CHUNK])
            self.backbone.forward(part, cache, keep=0, capture=hidden)
        state = cache.snapshot(self.identity)
        return replace(state, hidden={layer: torch.cat(parts) for layer, parts in hidden.items()})

    def logits(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        *,
        last: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Logits after the last of `ids`; see `unspoken.channels.CausalModel.logits`."""
        end = max((piece.stop for piece in state), default=0)
        with torch.set_grad_enabled(grad):
            cache = self.open(state, range(end, end + len(ids)), spare=0)
            logits = self.backbone.forward(ids, cache, keep=last or len(ids))
        if logits is None:
            raise StateError("no tokens to compute", expected="at least one")
        return logits

    @cached_property
    def shifts_keys(self) -> bool:
        """Whether shifted keys equal those computed further on; measured once, on this very model.

        Layer 0's keys depend on the token and its position alone, so both ways are compared there. This catches an
        architecture that rotates otherwise than `unspoken.channels.rope` does, before any wrong cache is used.
        """
        with torch.no_grad():
            ids = self.tensor(range(3, 9))
            near = self.prefill(ids).state.layers[0]
            far = self.prefill(self.tensor([*[3] * 11, *range(3, 9)])).state.layers[0]
            rotary = self.rotary(self.geometry.layers[0].rope)
            moved = shift(near.keys, 11, rotary)
            error = (moved.float() - far.keys[:, 11:].float()).abs().max()
            size = far.keys.float().abs().max()
        return bool(error <= 0.02 * size)


def _attention(folder: Path) -> str:
    """Scaled-dot-product attention, but for models whose soft cap only eager attention has."""
    config = AutoConfig.from_pretrained(folder).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def _checkpoint_dtype(folder: Path) -> torch.dtype | str:
    """The widest float type a checkpoint stores, which its config may understate; ``auto`` where that is not known."""
    found = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return torch.float32 if "F32" in found else "auto"


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        return found or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ModelSupportError(
            f"device {device!r} is not to be had: {str(error).splitlines()[0]}",
            expected="auto, cpu, or an accelerator that torch finds, such as cuda:0",
            fix="name another device, or leave it out",
        ) from error
    return target


def _cast(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    """Change the float type of what a checkpoint stores, in place.

    What a module computes for itself stays as it is: rotary frequencies in fewer bits would turn the keys of later
    positions by whole radians.
    """
    if dtype is None:
        return
    for module in model.modules():
        kept = module._non_persistent_buffers_set
        stored = [
            one for name, one in module._buffers.items() if one is not None and name not in kept
        ]
        for tensor in (*module.parameters(recurse=False), *stored):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in; None stands for the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelSupportError(
            f"dtype {dtype!r} is unknown", expected="auto, float32, bfloat16 or float16"
        )
    return found
