"""A model that gives the answers it was told: a whole workflow in milliseconds, without weights."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import replace

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
from unspoken.agents.shapes.grammar import ShapeGrammar
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
        self._to_write: tuple[int, ...] = ()
        self._start = 0

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

    def writing(self, answer: Sequence[int], start: int) -> "ScriptedModel":
        """This model, about to write an answer of these ids from position `start` on."""
        writer = copy(self)
        writer._to_write, writer._start = tuple(answer), start
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
    def refuses_steps(self) -> str:
        """The same."""
        return self.refuses_batches

    @property
    def most_stacked(self) -> int:
        """No steps are stacked."""
        return 0

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
            answers.append(self._logits_after(segment) if segment.wanted else None)
        return answers

    def _zeros(self, start: int, count: int) -> KVState:
        rows = torch.zeros(1, count, _HEAD)
        layers = (LayerState(rows, rows, start),) * len(self.geometry.layers)
        return KVState(layers=layers, start=start, stop=start + count, identity=self.identity)

    def _logits_after(self, segment: Segment) -> Tensor:
        """Logits that leave the next id of the answer alone, (wanted, vocabulary).

        After ids that are not the answer's, the turn ends.
        """
        logits = torch.full((segment.wanted, self._vocabulary), -torch.inf)
        first = len(segment.ids) - segment.wanted
        astray = False
        for place, (token, position) in enumerate(zip(segment.ids, segment.positions, strict=True)):
            astray = astray or (position >= self._start and token != self._at(position))
            if place >= first:
                logits[place - first, self._end if astray else self._at(position + 1)] = 0.0
        return logits

    def _at(self, position: int) -> int:
        """The answer's id at a position of the context, or the end."""
        place = position - self._start
        return self._to_write[place] if place < len(self._to_write) else self._end


class _ScriptedEngine(LocalEngine):
    """The engine of this process, told by the script what each turn writes."""

    def __init__(self, script: ScriptedModel, states: States, worker: Worker) -> None:
        super().__init__(script, states, worker)
        self._script = script
        self._turns: Counter[str] = Counter()

    def computing(self, request: TurnRequest) -> tuple[ScriptedModel, TurnRequest]:
        """The script's model, about to write what the script says for this turn.

        The answer's shape is checked here, as a whole; its tokens may be cut otherwise than those
        that a grammar forces.
        """
        agent, script = request.owner, self._script
        prompt = str(script.text.tokenizer.decode(list(request.ids)))
        script.prompts[agent].append(prompt)
        if request.sampling is None:
            return script, request
        self._turns[agent] += 1
        if request.item is None:  # a run that goes on has had turns before
            self._turns[agent] = max(self._turns[agent], request.turn)
        answer = script.answer(agent, self._turns[agent], prompt)
        writer = script.writing(_shaped(script.text, request, answer), len(request.ids))
        return writer, replace(request, grammar=None)


def _shaped(text: TextTokenizer, request: TurnRequest, answer: str) -> tuple[int, ...]:
    """The ids of an answer; JSON with other spaces is written as models write it.

    Raises:
        InputError: It has not the shape that the turn asks for.
    """
    if request.choices:
        choices = {text.decode(ids): ids for ids in request.choices}
        if answer not in choices:
            raise InputError(
                f"the script's answer {answer!r} is none of the choices of {request.owner!r}",
                expected=listed(choices),
                fix=suggest(answer, choices) or "let the script answer with one of them",
            )
        return choices[answer]
    ids, grammar = text.encode_words(answer), request.grammar
    if not isinstance(grammar, ShapeGrammar) or grammar.after or grammar.accepts(ids):
        return ids
    try:
        ids = text.encode_words(json.dumps(json.loads(answer), ensure_ascii=False))
    except ValueError:
        ids = ()
    if not grammar.accepts(ids):
        raise InputError(
            f"the script's answer {answer[:80]!r} has not the shape that {request.owner!r} is to "
            "keep to",
            expected="an answer of its schema, the properties in the schema's order, or of its "
            "regex",
            fix="let the script answer in that shape",
        )
    return ids
