"""What an agent writes in a turn: sampled ids become words, a stop string ends them."""

from collections import deque

from unspoken.agents.engines.base import Sampling
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.tokenizer import Detokenizer
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.message import Segment

__all__ = ["TurnReply", "sampling_of"]


def sampling_of(settings: GenerateSpec, model: AgentModel) -> Sampling:
    """An agent's settings as its engine takes them."""
    return Sampling(
        max_tokens=settings.max_new_tokens,
        stop_ids=model.stop_ids,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=settings.seed,
    )


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
        self._ask = self._builder.ask()
        self._detokenizer = Detokenizer(model.text, stop)
        self._words: deque[str] = deque()
        self.rest = ""

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the prompt, those that ask for the assistant's words included."""
        return self._context.ids + self._ask

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
        words, _ = self._detokenizer.kept()
        return (*words, *self._builder.close())

    def closed_context(self) -> Context:
        """The context with the assistant's turn, closed as the template closes it."""
        words, _ = self._detokenizer.kept()
        ask = self._ask
        segment = Segment(
            "assistant",
            (*ask, *words, *self._builder.close()),
            (len(ask), len(ask) + len(words)),
            self.text,
            len(self._context.ids),
            self._detokenizer.ends(),
        )
        return self._context.extended(segment)
