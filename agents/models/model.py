"""A causal language model with its tokenizer, loaded once and shared by agents."""

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import structlog
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from unspoken.agents.models.adapters import (
    adapt,
    adapted_identity,
    adapter_folder,
    check_adapted,
    refuse_adapter_folder,
    refuse_adapters,
    refuse_second_adapter,
)
from unspoken.agents.models.catalog import path_reference, prepare
from unspoken.agents.models.checkpoints.peft_object import is_peft, unwrapped
from unspoken.agents.models.decoder import Decoder
from unspoken.agents.models.device_map import as_written, main_device, place
from unspoken.agents.models.generation import asked_of_sampling, ending_ids
from unspoken.agents.models.hf import Backbone
from unspoken.agents.models.identity import config_digest, model_identity
from unspoken.agents.models.linears.packed import Linears
from unspoken.agents.models.notes import (
    Question,
    cached_positions,
    noted_refusal,
    remember_geometry,
    remember_positions,
)
from unspoken.agents.models.pretrained import cast, find_dtype, load_pretrained
from unspoken.agents.models.weights import share_weights
from unspoken.agents.prompts.chat_template import ChatTemplate, source_of, times_written
from unspoken.agents.prompts.frame import arrival_of, frame_of, message_context
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.prompts.tool_turns import Tools
from unspoken.channels.base import Arrival
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message
from unspoken.channels.model import Frame

# Over the standard library's logger, as the scheduler's.
log = structlog.wrap_logger(logging.getLogger("unspoken.model"))


class LocalModel(Decoder):
    """A model on this machine; implements `unspoken.channels.CausalModel`.

    The model object is used as it is, not copied: it is put into evaluation mode, and its
    parameters require no gradients from then on. To train it again, call
    ``model.requires_grad_(True)`` first.

    Args:
        model: A causal language model of transformers, or a `PeftModel` with one adapter on.
        tokenizer: Its tokenizer.
        ref: What to call it; the reference it can be loaded by, or empty for an object made in
            memory.
        identity: Its identity; computed from all weights where it is not given.
        template: Arguments for its chat template, such as ``{"enable_thinking": False}``.
        adapter: Of a model that `with_adapter` made, the reference of its adapter.

    Raises:
        ModelSupportError: An architecture whose cache cannot be handed over, or a tokenizer without
            offsets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ref: str = "",
        identity: ModelIdentity | None = None,
        template: Mapping[str, object] | None = None,
        adapter: str | None = None,
    ) -> None:
        if is_peft(model):  # it becomes what its base with its adapter is
            with unwrapped(model) as (base, folder):
                made = LocalModel(base, tokenizer, ref=ref, template=template).with_adapter(folder)
            self.__dict__.update(vars(made), adapter="in memory")
            return
        if adapter is None:
            refuse_adapters(model, ref)
        self.ref, self.adapter = ref, adapter
        if any(weight.requires_grad for weight in model.parameters()):
            log.info("the model's parameters require no gradients from now on", model=ref)
        self.hf: PreTrainedModel = model.eval().requires_grad_(False)  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        backbone = Backbone(model)
        super().__init__(backbone, identity or model_identity(model, tokenizer))
        self.text = TextTokenizer(tokenizer, self._identity.tokenizer)
        self.template_arguments, self.tools = (
            dict(template or {}),
            tuple[Mapping[str, object], ...](),
        )
        self.context_builder = context_builder_of(self.text, self.template_arguments)
        self.asked: Mapping[str, object] = {"template": dict(template)} if template else {}
        """``dtype``, ``device``, ``revision``, ``template`` as asked for, those that were."""

    @classmethod
    def load(
        cls,
        ref: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | Mapping[str, object] = "auto",
        revision: str | None = None,
        adapter: str | Path | None = None,
        template: Mapping[str, object] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> "LocalModel":
        """Load a Hub id, a folder, a ``.gguf`` file or ``embedded:NAME``, prepared on first use.

        Args:
            ref: The model reference; a `Path` is always a folder or file.
            dtype: ``auto`` is float32 on a CPU and the checkpoint's own on an accelerator. A type
                that rounds weights makes another model of it; ``int8`` is for weights on a CPU.
            device: ``auto`` is the accelerator where there is one, else the CPU. ``{"map": …}``
                takes several: ``auto`` by their memory, or a device by module's name.
            revision: Branch, tag or commit of a Hub id.
            adapter: Folder or Hub id of an adapter on it; see `with_adapter` for several on one
                base.
            template: Arguments for its chat template, such as ``{"enable_thinking": False}``.
            progress: Called with a stage and a fraction while the model is being prepared.

        Raises:
            ModelReferenceError: The reference leads to no model.
            ModelSupportError: The model cannot be served.
        """
        ref = path_reference(ref)
        refuse_adapter_folder(ref)
        folder = prepare(ref, revision=revision, progress=progress)
        wanted = find_dtype(dtype, main_device(device), folder)
        bring = partial(place, device=device)
        model, tokenizer, identity = load_pretrained(ref, folder, wanted, bring, progress)
        loaded = cls(model, tokenizer, ref=ref, identity=identity)
        named = {"dtype": str(dtype).removeprefix("torch."), "device": as_written(device)}
        asked = {**named, "revision": revision or "auto"}
        loaded.asked = {name: value for name, value in asked.items() if value != "auto"}
        loaded._prove(folder)
        loaded.read(range(3))  # a warm-up, so that no agent's first token pays for it
        loaded = loaded if adapter is None else loaded.with_adapter(adapter)
        return loaded.with_template(template) if template else loaded

    def _values_identity(self) -> ModelIdentity:
        if self.adapter is None:
            refuse_adapters(self.hf, self.ref)
        return super()._values_identity()

    def _prove(self, folder: Path) -> None:
        """Take what was proved of this folder before, or prove it, and note it."""
        known = cached_positions(folder)
        if known is not None and len(known) == len(self.backbone.geometry.layers):
            self.key_positions = known
        else:
            remember_positions(folder, self.key_positions)
        remember_geometry(folder, self.backbone.geometry)
        where = self.device.type if len(set(self.layer_devices)) == 1 else "several devices"
        how = f"{self.dtype}, {self.linears.kind} on {where}, torch {torch.__version__}"
        for question in get_args(Question):
            name = f"refuses_{question}"
            setattr(self, name, noted_refusal(folder, question, how, partial(getattr, self, name)))
        self.check_states()

    def with_adapter(self, adapter: str | Path, *, revision: str | None = None) -> "LocalModel":
        """The same base with an adapter: another model, whose weights are shared with this one.

        Its modules are its own, so the adapter is always on in this model and never in the base.
        Adapters that begin by changing their base (PiSSA, OLoRA) get a copy of the weights. Both
        models run on one device, so one worker owns them, and neither computes while the other
        does.

        Args:
            adapter: A folder that peft's ``save_pretrained`` wrote, or a Hub id.
            revision: Branch, tag or commit of a Hub id.

        Raises:
            ModelReferenceError: There is no such adapter, or it does not fit the base.
            ModelSupportError: This model has an adapter already, peft is missing, or the adapter is
                no set of weights.
        """
        refuse_second_adapter(self.ref, self.adapter)
        adapter = path_reference(adapter)
        folder = adapter_folder(adapter, revision)
        with self.weights.lock:
            identity = adapted_identity(self.identity, folder)
            by_peft = adapt(self.hf, folder)
        hf = by_peft.model
        share_weights(hf, self.weights)
        config = config_digest(hf.config)  # an adapter may repeat layers
        if config != config_digest(self.hf.config):
            identity = replace(identity, config=config)
        model = LocalModel(
            hf,
            self.tokenizer,
            ref=self.ref,
            identity=identity,
            template=self.template_arguments,
            adapter=adapter,
        )
        model.asked = self.asked
        check_adapted(model.logits, by_peft)
        return model

    def with_template(self, arguments: Mapping[str, object]) -> "LocalModel":
        """The same model, whose chat template is given these arguments.

        Args:
            arguments: Its arguments by name, such as ``{"enable_thinking": False}``.
        """
        made = self._reading(arguments, self.text.loaded, self.tools)
        made.asked = {**self.asked, "template": made.template_arguments}
        return made

    def with_tools(self, tools: Tools) -> "LocalModel":
        """The same model, whose turns may call tools of these schemas: transformers' ``tools``."""
        return self._reading(self.template_arguments, self.text.loaded, tools)

    def dated(self, now: datetime) -> "LocalModel":
        """The same model, whose chat template writes this date; itself where that is no other."""
        formats = times_written(source_of(self.text))
        if all(now.strftime(form) == self.text.loaded.strftime(form) for form in formats):
            return self
        return self._reading(self.template_arguments, now, self.tools)

    def _reading(self, arguments: Mapping[str, object], at: datetime, tools: Tools) -> "LocalModel":
        """The same model with its chat template taken apart anew."""
        made = copy.copy(self)
        made.__dict__.pop("stop_ids", None)
        made.text = TextTokenizer(self.tokenizer, self._identity.tokenizer)
        made.text.loaded = at
        made.template_arguments, made.tools = dict(arguments), tuple(tools)
        made.context_builder = context_builder_of(made.text, made.template_arguments, made.tools)
        return made

    def cast(self, dtype: torch.dtype) -> "LocalModel":
        """A copy in another float type, or with int8 weights.

        It has this model's identity where no value was rounded; else it is another model.

        Raises:
            ModelSupportError: int8 weights on an accelerator.
        """
        with self.backbone.computing():
            copied = copy.deepcopy(self.hf)
        rounded = cast(copied, dtype)
        made = LocalModel(
            copied,
            self.tokenizer,
            ref=self.ref,
            identity=self.identity,
            template=self.template_arguments,
            adapter=self.adapter,
        )
        made.asked = {**self.asked, "dtype": str(dtype).removeprefix("torch.")}
        made.refuses_states = self.refuses_states  # its code's; int8 rounds few tokens otherwise
        if rounded:
            made._identity = made._values_identity()
        return made

    @property
    def linears(self) -> Linears:
        """How its linear layers are computed, and why so."""
        return self.backbone.linears

    @property
    def template(self) -> ChatTemplate:
        """Its chat template, taken apart; a plain one where it brings none."""
        return self.context_builder.template

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end the assistant's turn."""
        thoughts = self.template.thoughts
        # gpt-oss ends each part of a turn as it ends an earlier turn.
        ends = () if thoughts and thoughts.channels else self.context_builder.close()
        closing = [token for token in ends if token in self.text.turn_markers]
        return ending_ids(self.hf.generation_config, self.tokenizer.eos_token_id, closing)

    @property
    def generation(self) -> Mapping[str, object]:
        """What its checkpoint asks of sampling, by transformers' names."""
        return asked_of_sampling(self.hf.generation_config)

    def words(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of somebody's words, and the character at which each token's text ends."""
        ids, offsets = self.text.words_with_offsets(text)
        return ids, tuple(stop for _, stop in offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.text.decode(ids)

    def frame(self, name: str) -> Frame:
        """What stands around a message: ``bare``, or ``chat`` for a user turn of its template."""
        return frame_of(self.context_builder, name)

    def arrival(self, message: Message, question: str, system: str | None = None) -> Arrival:
        """A message in this model's context, a user's turn, with the question's turn after it."""
        return arrival_of(self.context_builder, message, question, system)

    def message(
        self,
        text: str,
        *,
        sharer: str = "reader",
        system: str | None = None,
        capture: Collection[int] = (),
    ) -> Message:
        """Read a text as a user's turn in a context of its own: a message with its state.

        Args:
            text: The words.
            sharer: Name of the agent that shares them.
            system: A system prompt before them; None leaves that to the chat template.
            capture: Layers whose inputs a receiver with other weights will need (the E-cache).

        Raises:
            InputError: No words, on a model whose template writes none itself.
            ContextLengthError: More tokens than the model's context holds.
        """
        model, longest = self.ref or "the model", self.max_positions
        context = message_context(self.context_builder, text, system, longest=longest, model=model)
        segment = context.segments[-1]
        state = self.read(context.ids, capture)
        return Message(
            sharer=sharer,
            segments=(segment,),
            whole=False,
            context=context.ids,
            identity=state.identity,
            state=state,
        )
