"""A model that gives the answers it was told: a whole workflow in milliseconds, without weights."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy

import torch
from blake3 import blake3
from torch import Tensor

from unspoken.agents.engines.base import States, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.hf_cache import ContextCache, open_cache
from unspoken.agents.models.identity import tokenizer_digest
from unspoken.agents.models.ragged.segment import Rows, Segment
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.prompts.tool_turns import Tools
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.testing.tokenizer import CHATML, tiny_tokenizer
from unspoken.channels.errors import InputError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import Prefill

Answers = Mapping[str, str | Sequence[str]] | Callable[[str, int, str], str]
"""By agent, one text for all of its turns or a text for each; or a function of the agent, the turn
(from 1) and the prompt.
"""

_HEAD = 2
"""Size of the one head that a layer of its states has; all rows are zeros."""


class ScriptedModel:
    """A model without weights that writes what a script says.

    All else is as with any model: prompts are rendered and composed, channels are planned and carry
    states, answers come token by token, and reports count tokens. The states hold zeros.

    Args:
        answers: What each agent writes. An agent that runs once per item has a turn per item. Turns
            are counted anew in every run.
        name: Models of one name are one model to the planner; others differ in all that counts.
        max_positions: Longest context, in tokens.
        layers: Number of its layers.

    Attributes:
        prompts: By agent, what it was asked: the text of the context of each of its turns, markers
            included, over all runs.

    Raises:
        InputError: In a run, for a turn that the script has no answer for.
    """

    ref = ""
    adapter: str | None = None
    generation: Mapping[str, object] = {}
    shifts_keys = True
    refuses_fills = None
    weights = None
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(
        self,
        answers: Answers,
        *,
        name: str = "scripted",
        max_positions: int = 32_768,
        layers: int = 2,
        chat_template: str | None = CHATML,
    ) -> None:
        self.answers, self.name, self.max_positions = answers, name, max_positions
        self.asked: Mapping[str, object] = {}
        self.prompts: defaultdict[str, list[str]] = defaultdict(list)
        tokenizer = tiny_tokenizer(chat_template=chat_template)
        digest = blake3(name.encode()).hexdigest()
        self.identity = ModelIdentity(digest, digest, tokenizer_digest(tokenizer))
        shape = LayerGeometry(kv_heads=1, head_dim=_HEAD)
        self.geometry = CacheGeometry((shape,) * layers, _HEAD, max_positions)
        self.text = TextTokenizer(tokenizer, self.identity.tokenizer)
        self.context_builder = context_builder_of(self.text)
        self.template = self.context_builder.template
        self._end = int(tokenizer.eos_token_id)
        self._vocabulary = len(tokenizer)
        self._worker = Worker("unspoken-scripted")
        self._to_write: Iterator[int] = iter(())

    def with_tools(self, tools: Tools) -> "ScriptedModel":
        """The same script, whose turns may call tools of these schemas."""
        made = copy(self)
        made.text = TextTokenizer(self.text.tokenizer, self.identity.tokenizer)
        made.context_builder = context_builder_of(made.text, tools=tools)
        made.template = made.context_builder.template
        return made

    @property
    def stop_ids(self) -> frozenset[int]:
        """The one id that ends a turn."""
        return frozenset((self._end,))

    def make_engine(self, states: States) -> "_ScriptedEngine":
        """Its engine for a run."""
        return _ScriptedEngine(self, states, self._worker)

    def answer(self, agent: str, turn: int, prompt: str) -> str:
        """What an agent writes in a turn.

        Raises:
            InputError: The script does not say.
        """
        if not isinstance(self.answers, Mapping):
            return self.answers(agent, turn, prompt)
        if agent not in self.answers:
            raise InputError(
                f"the script has no answers of {agent!r}",
                expected=listed(self.answers),
                fix=suggest(agent, self.answers) or f"give the script an answer of {agent!r}",
            )
        told = self.answers[agent]
        if isinstance(told, str):
            return told
        if turn > len(told):
            raise InputError(
                f"the script has no answer of {agent!r} for its turn {turn}",
                expected=f"at most {len(told)} turns",
                fix="add an answer, or give one text for all turns",
            )
        return told[turn - 1]

    def writing(self, answer: str) -> "ScriptedModel":
        """This model, about to write an answer."""
        writer = copy(self)
        writer._to_write = iter(self.text.encode_words(answer))
        return writer

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Token ids as an int64 tensor."""
        return torch.tensor(ids, dtype=torch.long)

    def rotary(self, name: str) -> Rotary:
        """A rotary embedding; zeros are zeros at all positions."""
        return Rotary(torch.ones(_HEAD // 2))

    def embed(self, ids: Tensor) -> Tensor:
        """Zeros, (tokens, hidden_size)."""
        return torch.zeros(len(ids), _HEAD)

    def prefill(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        positions: Tensor | None = None,
        capture: Collection[int] = (),
    ) -> Prefill:
        """A state of zeros, up to the last of `positions`; the script does not go on."""
        end = max((piece.stop for piece in state), default=0)
        where = range(end, end + len(ids)) if positions is None else positions.tolist()
        cache = self.open(state, where, spare=0)
        cache.place(self._zeros(where[-1], 1))
        hidden = {layer: self.embed(ids) for layer in capture}
        return Prefill(cache.snapshot(), self.logits(ids, last=1)[0], hidden)

    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        state: Sequence[KVState] = (),
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """The same input, and rows of zeros."""
        return hidden, self._zeros(int(positions[0]), len(hidden)).layers[first:last]

    def logits(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        *,
        last: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Zeros, (tokens, vocabulary)."""
        return torch.zeros(last or len(ids), self._vocabulary, requires_grad=grad)

    def open(
        self, state: Sequence[KVState], positions: Sequence[int], *, spare: int
    ) -> ContextCache:
        """A cache with `state` in place."""
        return open_cache(self, state, positions, spare=spare)

    @property
    def refuses_batches(self) -> str:
        """There is nothing that could be computed in one."""
        return "it computes nothing"

    @property
    def batch_key(self) -> object:
        """Each turn has a script of its own."""
        return self

    def begin(self, state: Sequence[KVState], positions: Sequence[int], *, spare: int) -> Rows:
        """A cache with `state` in place."""
        return self.open(state, positions, spare=spare)

    def compute(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        """Fill all positions; the logits of the next id where some are wanted."""
        answers: list[Tensor | None] = []
        for segment in segments:
            assert isinstance(segment.rows, ContextCache)
            # The rows between are zeros already.
            segment.rows.place(self._zeros(segment.positions[-1], 1))
            for parts in segment.capture.values():
                parts.append(self.embed(self.tensor(segment.ids)))
            drafts = segment.ids[len(segment.ids) + 1 - segment.wanted :]
            answers.append(self._logits_after(drafts) if segment.wanted else None)
        return answers

    def _zeros(self, start: int, count: int) -> KVState:
        rows = torch.zeros(1, count, _HEAD)
        layers = (LayerState(rows, rows, start),) * len(self.geometry.layers)
        return KVState(layers=layers, start=start, stop=start + count, identity=self.identity)

    def _logits_after(self, drafts: Sequence[int]) -> Tensor:
        """Logits that leave the next id of the answer alone, (1 + drafts, vocabulary).

        The answer goes on by one id, and by one more for each draft that the answer has too.
        """
        logits = torch.full((1 + len(drafts), self._vocabulary), -torch.inf)
        for row, draft in enumerate((*drafts, None)):
            token = next(self._to_write, self._end)
            logits[row:, token] = 0.0
            if token != draft:
                break
            logits[row + 1 :] = -torch.inf
        return logits


class _ScriptedEngine(LocalEngine):
    """The engine of this process, told by the script what each turn writes."""

    def __init__(self, script: ScriptedModel, states: States, worker: Worker) -> None:
        super().__init__(script, states, worker)
        self._script = script
        self._turns: Counter[str] = Counter()

    def model_for(self, request: TurnRequest) -> ScriptedModel:
        """The script's model, about to write what the script says for this turn."""
        agent, script = request.owner, self._script
        prompt = str(script.text.tokenizer.decode(list(request.ids)))
        script.prompts[agent].append(prompt)
        if request.sampling is None:
            return script
        self._turns[agent] += 1
        return script.writing(script.answer(agent, self._turns[agent], prompt))
