"""Turns that keep to a grammar, whatever the model says and however little room there is."""

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from unspoken.agents import LocalModel
from unspoken.agents.engines.base import Sampling
from unspoken.agents.engines.constraints import masked
from unspoken.agents.engines.sampling import Sampler, sample
from unspoken.agents.shapes import grammar as module
from unspoken.agents.shapes.grammar import ShapeConstraint, ShapeGrammar
from unspoken.agents.shapes.shape import thoughts_end
from unspoken.agents.shapes.vocabulary import vocabulary_of
from unspoken.agents.spec.shape import AnswerSchema, regex_grammar
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels.errors import ContextLengthError, ModelSupportError, RunError

TICKET: dict[str, Any] = {
    "type": "object",
    "properties": {
        "team": {"enum": ["billing", "technical"]},
        "words": {"type": "array", "items": {"type": "string"}},
        "more": {"type": "object", "additionalProperties": {"type": "integer"}},
        "sure": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["team", "words", "sure"],
}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def grammar(model: LocalModel, schema: dict[str, Any] | None = None) -> ShapeGrammar:
    return ShapeGrammar(vocabulary_of(model), AnswerSchema.of(schema or TICKET).grammar)


def written(model: LocalModel, made: ShapeGrammar, room: int, seed: int) -> tuple[list[int], bool]:
    """What a model of no judgement writes: tokens by chance of all that may come."""
    chance, constraint = random.Random(seed), made.begin(room)
    ids: list[int] = []
    while not constraint.over and len(ids) < room:
        logits = torch.zeros(1, len(model.tokenizer))
        (kept,) = masked([(constraint, logits, ())])
        allowed = [n for n, value in enumerate(kept[0].tolist()) if value == 0]
        token = chance.choice(allowed)
        if token in model.stop_ids:
            break
        ids += constraint.push(token)
        for forced in constraint.forced():
            if not constraint.over:
                ids += constraint.push(forced)
    return ids, constraint.cut


@pytest.mark.parametrize("room", [60, 75, 200])
def test_an_answer_is_whole_in_whatever_room_it_has(model: LocalModel, room: int) -> None:
    """Lists, strings and maps without bounds end in time, and the answer says if it was cut."""
    made = grammar(model)
    assert made.shortest is not None and len(made.shortest) <= 60
    cuts = 0
    for seed in range(12):
        ids, cut = written(model, made, room, seed)
        assert len(ids) <= room
        jsonschema.validate(json.loads(model.text.decode(ids)), TICKET)
        cuts += cut
    assert cuts


def test_a_token_that_leaves_no_way_to_the_end_is_not_taken(model: LocalModel) -> None:
    """The answer goes the way that is known, and is over."""
    made = grammar(model, {"type": "array", "items": {"type": "boolean"}})
    constraint = ShapeConstraint(made, 3)
    begin, true, comma, end = (model.text.encode_words(text)[0] for text in ("[", "t", ",", "]"))
    assert constraint.push(begin) == (begin,)
    assert constraint.push(true) == (end,)  # "true" is four tokens here
    assert constraint.over and constraint.cut and comma != end


def test_masks_after_drafts_are_those_after_the_same_tokens(model: LocalModel) -> None:
    """A draft that may come is followed, one that may not ends it, and none is kept."""
    made = grammar(model, {"type": "integer"})
    constraint, other = made.begin(400), made.begin(400)
    one, word = model.text.encode_words("1")[0], model.text.encode_words("x")[0]
    logits = torch.zeros(3, len(model.tokenizer))
    first = masked([(constraint, logits, (one, word))])[0]
    assert torch.equal(first[0], masked([(other, logits[:1], ())])[0][0])
    other.push(one)
    assert torch.equal(first[1], masked([(other, logits[:1], ())])[0][0])
    assert first[0, one] == 0 and first[0, word] == -torch.inf
    assert constraint.push(one) == (one,)


def test_logits_beyond_the_tokenizer_never_come(model: LocalModel) -> None:
    """A vocabulary that was made larger for speed has ids that are no words."""
    logits = torch.zeros(1, len(model.tokenizer) + 100)
    (kept,) = masked([(grammar(model).begin(64), logits, ())])
    assert (kept[0, len(model.tokenizer) + 31 :] == -torch.inf).all()


def test_one_forward_masks_turns_of_different_shapes(model: LocalModel) -> None:
    """Each turn has its own mask."""
    shapes = [grammar(model, {"type": "integer"}), grammar(model, {"type": "boolean"})]
    logits = torch.zeros(1, len(model.tokenizer))
    integer, boolean = masked([(shape.begin(64), logits, ()) for shape in shapes])
    digit, true = model.text.encode_words("7")[0], model.text.encode_words("t")[0]
    assert integer[0, digit] == boolean[0, true] == 0
    assert integer[0, true] == boolean[0, digit] == -torch.inf


def test_a_token_that_may_not_come_is_refused(model: LocalModel) -> None:
    """Whatever let it through, it is no answer."""
    constraint = ShapeGrammar(vocabulary_of(model), regex_grammar("[0-9]{4}")).begin(8)
    with pytest.raises(RunError, match="does not fit the shape"):
        constraint.push(model.text.encode_words("x")[0])


def test_an_answer_begins_after_the_thoughts(model: LocalModel) -> None:
    """Until their end all may come but the end of the turn; then the shape holds."""
    after = model.text.encode_words("</think>")
    made = ShapeGrammar(vocabulary_of(model), regex_grammar("[0-9]{2}"), after)
    constraint, logits = made.begin(40), torch.zeros(1, len(model.tokenizer))
    (free,) = masked([(constraint, logits, ())])
    stop = min(model.stop_ids)
    assert free[0, stop] == -torch.inf and (free[0] == 0).sum() == len(model.tokenizer) - 1
    for token in after:
        constraint.push(token)
    (held,) = masked([(constraint, logits, ())])
    assert (held[0] == 0).sum() == 10 and not constraint.over


def test_thoughts_leave_room_for_an_answer(model: LocalModel) -> None:
    """A model that never ends its thoughts is made to; a marker that has begun is gone on with."""
    after = model.text.encode_words("</think>")
    made = ShapeGrammar(vocabulary_of(model), regex_grammar("yes|no"), after)
    constraint, ids = made.begin(64), list[int]()
    for word in (*model.text.encode_words("o" * 64), *after[:2]):
        if constraint.forced():
            break
        ids += constraint.push(word)
    assert 8 < len(ids) < 64 - made.least
    ids += constraint.push(after[0])
    for token in constraint.forced():
        ids += constraint.push(token)
    assert model.text.decode(ids).endswith("o</think>") and not constraint.over
    (held,) = masked([(constraint, torch.zeros(1, len(model.tokenizer)), ())])
    words = {model.text.decode([n]) for n, value in enumerate(held[0].tolist()) if value == 0}
    assert words <= {"y", "ye", "yes", "n", "no"}


def test_a_marker_of_letters_is_known_by_its_text(model: LocalModel) -> None:
    """A model may write it in other tokens than the tokenizer does."""
    ids = {text: model.text.encode_words(text) for text in (" th", " the")}
    assert len(ids[" the"]) == 1 and len(ids[" th"]) > 0
    split = (*ids[" th"], *model.text.encode_words("e"))
    made = ShapeGrammar(vocabulary_of(model), regex_grammar("[0-9]{2}"), ids[" the"])
    constraint = made.begin(90)
    for token in split:
        constraint.push(token)
    (held,) = masked([(constraint, torch.zeros(1, len(model.tokenizer)), ())])
    assert (held[0] == 0).sum() == 10


def test_a_turn_without_room_for_an_answer_does_not_begin(model: LocalModel) -> None:
    """Nothing of it would be whole."""
    made = ShapeGrammar(vocabulary_of(model), regex_grammar("[0-9]{9}"))
    with pytest.raises(ContextLengthError, match="8 tokens are left for an answer of 9"):
        made.begin(8)
    made.begin(9)


def test_the_way_to_the_end_is_searched_for_where_it_changes(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside of a string it is what it was."""
    made = grammar(model, {"type": "object", "properties": {"a": {"type": "string"}}})
    constraint = ShapeConstraint(made, 36)
    for token in model.text.encode_words('{"a": "'):
        constraint.push(token)
    monkeypatch.setattr(module, "shortest_end", None)
    for _ in range(20):
        constraint.push(model.text.encode_words("o")[0])
    assert not constraint.over


def test_a_template_that_begins_thoughts_says_where_they_end() -> None:
    """Only then; a model that may think of itself answers at once."""
    thinks = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    thinking = ScriptedModel({}, chat_template=thinks)
    assert thinking.text.decode(thoughts_end(thinking)) == "</think>"
    assert thoughts_end(ScriptedModel({})) == ()


def test_a_tokenizer_without_bytes_is_refused_by_name() -> None:
    """Before a run, with what can be done."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    words: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>", pad_token="</s>"
    )
    with pytest.raises(ModelSupportError, match="cannot be read for shapes"):
        vocabulary_of(tiny_model(tokenizer=words))


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_h": 0.4},
    {"temperature": 1.0, "min_p": 0.9},
    {"temperature": 1.0, "typical_p": 0.2},
    {"temperature": 1.0, "epsilon_cutoff": 0.5},
    {"temperature": 1.0, "eta_cutoff": 0.5},
    {"repetition_penalty": 3.0},
    {"temperature": 1.0, "suppressed": tuple(range(400))},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_setting_of_sampling_brings_what_may_not_come(
    model: LocalModel, settings: dict[str, Any]
) -> None:
    """Where penalties leave nothing of what may come, they give way."""
    device = torch.device("cpu")
    constraint = ShapeGrammar(vocabulary_of(model), regex_grammar("[ab]{3}")).begin(8)
    allowed = {model.text.encode_words(text)[0] for text in ("a", "b")}
    sampler = Sampler(
        Sampling(max_tokens=8, seed=1, **settings), (5, 6, *allowed), device, constraint
    )
    logits = torch.randn(1, len(model.tokenizer), generator=torch.Generator().manual_seed(3))
    (tokens,) = sample([(sampler, logits, ())])
    assert isinstance(tokens, list) and model.text.decode(tokens)[0] in "ab"
