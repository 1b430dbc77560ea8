"""What an agent writes in a turn: sampled ids become words, a stop string ends them."""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blake3 import blake3

from unspoken.agents.engines.base import Sampling
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.thoughts import split_thoughts
from unspoken.agents.prompts.tokenizer import Detokenizer
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.message import Segment

_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "top_h",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
"""Settings of equal names in a workflow, in a checkpoint and in `Sampling`."""


def sampling_of(
    settings: GenerateSpec, model: AgentModel, *, turn: int = 1, item: int = 0
) -> Sampling:
    """An agent's settings as its engine takes them.

    Args:
        settings: What the workflow says.
        model: The agent's model, whose checkpoint may fill in what the workflow leaves open.
        turn: The agent's turn, from 1. Turns and items draw differently from one seed.
        item: Number of the item of ``for_each``, from 0.
    """
    asked = _asked(model.generation) if settings.defaults == "checkpoint" else {}
    given = {
        name: getattr(settings, name) for name in _SETTINGS if name in settings.model_fields_set
    }
    asked |= {name: value for name, value in given.items() if value is not None}
    words = [model.text.encode_words(form) for word in settings.bad_words for form in _forms(word)]
    bad_ids = (*asked.pop("bad_ids", ()), *(tuple(ids) for ids in words if ids))
    least = settings.min_new_tokens or min(asked.pop("min_tokens", 0), settings.max_new_tokens)
    return Sampling(
        max_tokens=settings.max_new_tokens,
        min_tokens=least,
        stop_ids=model.stop_ids,
        bad_ids=tuple(dict.fromkeys(bad_ids)),
        seed=None if settings.seed is None else _seed(settings.seed, turn, item),
        **asked,
    )


def _asked(generation: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint asks for, as `Sampling` calls it."""
    asked = {name: generation[name] for name in _SETTINGS if name in generation}
    if not generation.get("do_sample"):
        asked["temperature"] = 0.0
    else:  # what transformers fills in besides
        asked = {"temperature": 1.0, "top_k": 50, **asked}
    if asked.get("top_k") == 0:
        del asked["top_k"]
    asked["bad_ids"] = tuple(map(tuple, generation.get("bad_words_ids", ())))
    asked["suppressed"] = tuple(generation.get("suppress_tokens", ()))
    asked["min_tokens"] = generation.get("min_new_tokens", 0)
    return asked


def _forms(word: str) -> tuple[str, str]:
    """A word as it stands at the start of a text, and after others."""
    return word, f" {word}"


def _seed(seed: int, turn: int, item: int) -> int:
    """The seed of one item in one turn; that of the first is the seed itself."""
    if turn == 1 and item == 0:
        return seed
    digest = blake3(f"{seed}/{turn}/{item}".encode()).digest(length=8)
    return int.from_bytes(digest, "big") >> 1


class TurnReply:
    """The words of a turn; keeps `unspoken.agents.engines.base.Reply`.

    The engine pushes ids on its own thread. The words of each wait until its event is told.

    Args:
        model: Whose ids they are.
        context: The composed context, without the ids that ask for the assistant's words.
        stop: Strings that end the turn.
    """

    def __init__(self, model: AgentModel, context: Context, stop: tuple[str, ...] = ()) -> None:
        self._builder, self._context = model.context_builder, context
        self._ask, self._close = self._builder.ask(context), self._builder.close()
        self.stop = stop
        self._text, self._detokenizer = model.text, Detokenizer(model.text, stop)
        self._thoughts = self._builder.template.thoughts
        self._words: deque[str] = deque()
        self.rest = ""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the prompt, those that ask for the assistant's words included."""
        return self._context.ids + self._ask

    @property
    def asked(self) -> str:
        """The words that it answers, a paragraph for each turn, without system turns."""
        turns = (part.text for part in self._context.segments if part.role != "system")
        return "\n\n".join(filter(None, turns))

    @property
    def text(self) -> str:
        """What was written."""
        return self._detokenizer.text

    def push(self, token: int) -> bool:
        """Take a sampled id; whether a stop string ends the turn."""
        self._words.append(self._detokenizer.push(token))
        return self._detokenizer.stopped

    def next_words(self) -> str:
        """The words that became certain with the next id whose event is told."""
        return self._words.popleft()

    def close(self) -> tuple[int, ...]:
        """The ids that were kept, and those that close the turn; `rest` has the last words."""
        self.rest = self._detokenizer.finish()
        self._detokenizer.verbatim = self._channels()
        words, _ = self._detokenizer.kept()
        return (*words, *self._close)

    def closed_context(self) -> Context:
        """The context with the assistant's turn, closed as the template closes it."""
        words, _ = self._detokenizer.kept()
        ask, (begun, lead) = self._ask, self._begun()
        shown = (len(lead),) * (len(ask) - begun)
        segment = Segment(
            role="assistant",
            ids=(*ask, *words, *self._close),
            content=(begun, len(ask) + len(words)),
            text=lead + self.text,
            position=len(self._context.ids),
            ends=(*shown, *(len(lead) + end for end in self._detokenizer.ends())),
        )
        return self._context.extended(segment)

    def answered(self, turn: Segment) -> Segment | None:
        """The closed turn without its thoughts; None where it has none.

        A turn that ended inside its thoughts answers nothing.
        """
        if self._thoughts is None:
            return None
        words, ends = self._detokenizer.kept()[0], self._detokenizer.ends()
        split = split_thoughts(self._thoughts, self._text, words, ends, self.text)
        if not split.token:
            return None
        start = len(self._ask) + split.token
        return replace(
            turn,
            content=(start, turn.content[1]),
            text=self.text[split.character :],
            ends=tuple(end - split.character for end in ends[split.token :]),
        )

    def _channels(self) -> int:
        """How many first tokens are thoughts whose markers are those of turns."""
        if self._thoughts is None or not self._thoughts.channels:
            return 0
        ids, ends = self._detokenizer.raw_ids(), self._detokenizer.raw_ends()
        split = split_thoughts(self._thoughts, self._text, ids, ends, self.text)
        return split.token if split.token < len(ids) else 0

    def _begun(self) -> tuple[int, str]:
        """Where in the ids that ask for words the thoughts begin, and what of them stands there."""
        template, ask = self._builder.template, self._ask
        if self._thoughts is None or not self._thoughts.opened or self._thoughts.channels:
            return len(ask), ""
        border = template.prompt.rfind(self._thoughts.opening)
        head = self._text.encode(template.prompt[:border], after=template.wrappers["user"][1])
        if ask[: len(head)] != head:
            return len(ask), ""
        return len(head), template.prompt[border:]
