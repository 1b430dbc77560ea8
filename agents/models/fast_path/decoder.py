"""A decoder whose layers are of the common kind, found in a transformers model by its parts.

transformers computes such a layer with some fifty operations and ten modules. For a row that
decodes alone these take as long as the products with the weights. Here it is a third of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unspoken.agents.models.fast_path.guard import Guard
from unspoken.agents.models.fast_path.layer import Attend, FastLayer, Rotation
from unspoken.agents.models.fast_path.norm import Norm, weight_of
from unspoken.agents.models.fast_path.product import Product
from unspoken.agents.models.linears.packed import PackedLinear

if TYPE_CHECKING:
    from unspoken.agents.models.hf import Backbone

KNOWN = frozenset(f"{name}Attention" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3"))
"""Attentions of transformers that do what is written here. Others look alike and are not: some
scale their queries by the position, which a proof on a short text would not show."""


class Unknown(Exception):
    """A model is not of the common kind; its text says where it differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FastPath:
    """A model's layers, computed with few operations. It is used by whoever has the weights.

    Attributes:
        layers: The layers.
        last: The norm after them.
        cap: Soft cap of the logits; None for none.
        guard: Tells whether the modules that it stands for are as they were.
    """

    layers: tuple[FastLayer, ...]
    last: Norm
    cap: float | None
    guard: Guard

    @property
    def is_as_before(self) -> bool:
        """Whether the modules still compute what it does: nobody hooked or changed them."""
        return self.guard.holds()

    def rotations(self, ropes: Mapping[str, tuple[Tensor, Tensor]]) -> "Rotations":
        """How layers rotate some tokens.

        Args:
            ropes: What the model's rotary embedding gives for each kind, (1, tokens, size) each.
        """
        rotations: Rotations = {}
        for layer in self.layers:
            if layer.rotation not in rotations:
                kind, heads, kv_heads, scale = layer.rotation
                cos, sin = ropes[kind]
                rotations[layer.rotation] = Rotation.of(cos[0], sin[0], heads, kv_heads, scale)
        return rotations

    def hidden(
        self,
        given: Tensor,
        rotations: "Rotations",
        attend: Attend,
        capture: Mapping[int, list[Tensor]],
    ) -> Tensor:
        """The last layer's output after the last norm, (tokens, hidden_size).

        Args:
            given: The first layer's input, (tokens, hidden_size).
            rotations: How the tokens are rotated.
            attend: Attention.
            capture: Layers whose inputs are appended.
        """
        hidden = given
        for layer in self.layers:
            if layer.number in capture:
                capture[layer.number].append(hidden)
            hidden = layer(hidden, rotations[layer.rotation], attend)
        return self.last(hidden)

    def capped(self, logits: Tensor) -> Tensor:
        """Logits as the model gives them out."""
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


Rotations = dict[tuple[str, int, int, float], Rotation]
"""Rotations of some tokens, by what layers that rotate alike have in common."""


def find_fast_path(backbone: "Backbone") -> FastPath:
    """The fast path of a model.

    Raises:
        Unknown: It has none.
    """
    if backbone.model.dtype != torch.float32:
        raise Unknown("it does not compute in float32")
    base: Any = backbone.base
    if not isinstance(getattr(base, "embed_tokens", None), nn.Embedding):
        raise Unknown("its decoder has no embed_tokens")
    layers = tuple(_layer(backbone, number) for number in range(len(backbone.layers)))
    head: Any = backbone.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return FastPath(
        layers=layers,
        last=_norm(base, "norm"),
        cap=getattr(backbone.config, "final_logit_softcapping", None),
        guard=Guard(backbone.model, called=(base.embed_tokens, base.rotary_emb, head)),
    )


def _layer(backbone: "Backbone", number: int) -> FastLayer:
    layer: Any = backbone.layers[number]
    names = {name for name, _ in layer.named_children()}
    attention: Any = getattr(layer, "self_attn", None)
    if type(attention).__name__ not in KNOWN:
        raise Unknown(f"its attention is {type(attention).__name__}")
    four = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
    rest = names - {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    if rest not in (set(), four):
        raise Unknown(f"its layers have {', '.join(sorted(rest))}")
    size = int(attention.head_dim)
    heads, kv_heads = (int(p.out_features) // size for p in (attention.q_proj, attention.k_proj))
    before_mlp = "pre_feedforward_layernorm" if rest else "post_attention_layernorm"
    return FastLayer(
        number=number,
        kind=backbone.kinds[number],
        scale=float(attention.scaling),
        heads=heads,
        kv_heads=kv_heads,
        size=size,
        before_attention=_norm(layer, "input_layernorm"),
        before_mlp=_norm(layer, before_mlp),
        after_attention=_norm(layer, "post_attention_layernorm") if rest else None,
        after_mlp=_norm(layer, "post_feedforward_layernorm") if rest else None,
        each_head=_head_norm(attention, heads, kv_heads),
        qkv=_product(attention, "q_proj", "k_proj", "v_proj"),
        out=_product(attention, "o_proj"),
        gate_up=_product(layer.mlp, "gate_proj", "up_proj"),
        down=_product(layer.mlp, "down_proj"),
        act=layer.mlp.act_fn,
    )


def _norm(owner: Any, name: str) -> Norm:
    found = weight_of(getattr(owner, name))
    if found is None:
        raise Unknown(f"its {name} is no norm by the mean square")
    return Norm(*found)


def _head_norm(attention: Any, heads: int, kv_heads: int) -> Norm | None:
    if not hasattr(attention, "q_norm"):
        return None
    of_queries, of_keys = weight_of(attention.q_norm), weight_of(attention.k_norm)
    if of_queries is None or of_keys is None or of_queries[1] != of_keys[1]:
        raise Unknown("its q_norm and k_norm are not norms by the mean square")
    weights = [of_queries[0].expand(heads, -1), of_keys[0].expand(kv_heads, -1)]
    return Norm(torch.cat(weights), of_queries[1])


def _product(owner: Any, *names: str) -> Product:
    layers = [getattr(owner, name, None) for name in names]
    for name, layer in zip(names, layers, strict=True):
        if type(layer) not in (nn.Linear, PackedLinear):
            raise Unknown(f"its {name} is a {type(layer).__name__}")
    return Product(layers)  # type: ignore[arg-type]  # all are linear layers, as was looked at
