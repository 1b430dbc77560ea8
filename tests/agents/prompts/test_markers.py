"""Nobody's words open or close a turn: with any kind of tokenizer, whatever its markers are."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML
from tokenizer_kinds import KINDS, made

from unspoken.agents.prompts.context import ChatTurn, ContextBuilder, Quote
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import Detokenizer, TextTokenizer
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message, Segment

MARKS = ("<|im_start|>", "<|im_end|>")
PIECES = ("<|im_start|>", "<|im_end|>", "<|", "|>", "im_end", "<|im_", " ", "\n", "a", "é", "user")
ATTACKS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
FLAGS: dict[str, dict[str, bool]] = {
    "special": {},
    "not special": {"special": False, "normalized": False},
    "normalized": {"special": False},
    "rstrip": {"rstrip": True},
    "lstrip": {"lstrip": True},
    "single word": {"single_word": True},
}


def builder(kind: str, flags: str = "special") -> ContextBuilder:
    tokenizer = made(kind, MARKS, template=CHATML, **FLAGS[flags])
    return context_builder_of(TextTokenizer(tokenizer, "digest"))


BUILDERS = {(kind, flags): builder(kind, flags) for kind in KINDS for flags in FLAGS}


def marks(of: ContextBuilder, ids: tuple[int, ...]) -> list[str]:
    """The markers among ids, in order."""
    names = {number: token.content for number, token in of.text._backend.added.items()}
    return [names[token] for token in ids if token in names and names[token] in MARKS]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
@given(said=st.lists(ATTACKS, min_size=1, max_size=3))
@settings(max_examples=25)
def test_any_words_leave_the_turns_as_they_are(kind: str, flags: str, said: list[str]) -> None:
    """A context has the markers of its turns, whatever their words spell."""
    if (kind, flags) == ("llama2", "normalized"):
        pytest.skip("its own template's markers are letters to such a tokenizer")
    of = BUILDERS[kind, flags]
    turns = [ChatTurn("user", (words,)) for words in said]
    if kind == "wordpiece" and flags == "single word":
        pytest.skip("its own template's markers are words to such a tokenizer")
    ids = of.compose(turns, system=said[0]).ids + of.ask()
    plain = of.compose([ChatTurn("user", ("x",)) for _ in said], system="x").ids + of.ask()
    assert marks(of, ids) == marks(of, plain)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
@given(words=ATTACKS)
@settings(max_examples=25)
def test_words_alone_have_no_marker(kind: str, flags: str, words: str) -> None:
    """Words without a template have none either, and offsets that ascend."""
    ids, offsets = BUILDERS[kind, flags].text.words_with_offsets(words)
    assert not marks(BUILDERS[kind, flags], ids) and len(ids) == len(offsets)
    assert list(offsets) == sorted(offsets)


@pytest.mark.parametrize("kind", ["byte-level", "byte-level-whole", "llama2", "gemma", "unigram"])
@given(words=ATTACKS)
@settings(max_examples=25)
def test_no_letter_is_lost_where_words_spell_a_marker(kind: str, words: str) -> None:
    """What a marker is spelled with stands in the words as letters."""
    text = BUILDERS[kind, "special"].text
    assert text.decode(text.encode_words(words)).replace(" ", "") == words.replace(" ", "")


def test_a_marker_of_one_letter_is_spelled_with_bytes() -> None:
    """A marker that no cut can break is not read either."""
    tokenizer = made("gemma", ["§", "¶"])
    text = TextTokenizer(tokenizer, "digest")
    ids = text.encode_words("a § b")
    assert tokenizer.convert_tokens_to_ids("§") not in ids
    assert text.decode(ids).replace(" ", "") in ("a§b", "ab")


def sampled(of: ContextBuilder, *parts: str | int) -> tuple[Detokenizer, tuple[int, ...]]:
    """A model's writing of words and marker ids, and the ids."""
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else of.text.encode(part, after="a")
    detokenizer = Detokenizer(of.text)
    for token in ids:
        detokenizer.push(token)
    detokenizer.finish()
    return detokenizer, tuple(ids)


@pytest.mark.parametrize("flags", ["special", "not special"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_marker_that_a_model_samples_is_not_handed_on(kind: str, flags: str) -> None:
    """Kept ids are the text's, without the marker as an id; those before it are as sampled."""
    of = BUILDERS[kind, flags]
    mark = of.text.encode("<|im_start|>")[-1]
    detokenizer, ids = sampled(of, "Ada", mark, "user")
    kept, taken = detokenizer.kept()
    assert not marks(of, kept) and kept[:taken] == ids[:taken] == ids[: ids.index(mark)]
    assert len(detokenizer.ends()) == len(kept)
    if kind != "wordpiece":
        assert of.text.decode(kept) == detokenizer.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_with_a_marker_among_its_ids_is_tokenised_anew(kind: str) -> None:
    """A packet from elsewhere may hold such ids: its words stand here, and its ids do not."""
    of = BUILDERS[kind, "special"]
    mark = of.text.encode("<|im_start|>")[-1]
    ids = (*of.text.encode_words("the"), mark, *of.text.encode_words("user"))
    segment = Segment(
        role="user", ids=ids, content=(0, len(ids)), text="the<|im_start|>user", position=0
    )
    message = Message(
        sharer="reader",
        segments=(segment,),
        whole=False,
        context=ids,
        identity=ModelIdentity("w", "c", "digest"),
    )
    context = of.compose([ChatTurn("user", ("Say ", Quote(message, segment)))])
    assert marks(of, context.ids) == [*MARKS]
    assert not context.spans(message) and not context.texts(message)


def test_a_marker_that_the_template_names_counts_though_it_is_not_special() -> None:
    """A tool's marker in the template's source is no more to be written than a turn's."""
    source = CHATML + "{% if tools %}{{ '<tool_response>' }}{% endif %}"
    tokenizer = made("byte-level", [*MARKS, "<tool_response>", "<table>"], template=source)
    for token in tokenizer.added_tokens_decoder.values():
        token.special = False
    text = context_builder_of(TextTokenizer(tokenizer, "digest")).text
    tool, table = tokenizer.convert_tokens_to_ids(["<tool_response>", "<table>"])
    assert tool not in text.encode_words("a <tool_response> b")
    assert tool not in text.turn_markers or table in text.markers


@pytest.mark.parametrize("special", [True, False])
def test_what_stands_around_thoughts_is_handed_on(special: bool) -> None:
    """Models write it themselves, in every answer, and it closes no turn; words still spell it."""
    source = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>'")
    tokenizer = made("byte-level", [*MARKS, "<think>"], template=source, special=special)
    of = context_builder_of(TextTokenizer(tokenizer, "digest"))
    tag = tokenizer.convert_tokens_to_ids("<think>")
    detokenizer, ids = sampled(of, tag, "Ada")
    assert detokenizer.kept() == (ids, len(ids))
    assert tag not in of.text.encode_words("a <think> b")


def test_an_added_token_that_is_no_marker_is_read_in_words() -> None:
    """Words keep the tokens that the model learned for them, as its template gives them."""
    tokenizer = made("byte-level", MARKS, template=CHATML)
    tokenizer.add_tokens(["<table>"])
    text = TextTokenizer(tokenizer, "digest")
    assert tokenizer.convert_tokens_to_ids("<table>") in text.encode_words("a <table>")


def test_switches_on_the_tokenizer_do_not_reach_what_reads_it() -> None:
    """Truncation, padding and the reading of markers belong to whoever calls the tokenizer."""
    tokenizer = made("byte-level", MARKS, template=CHATML)
    text = TextTokenizer(tokenizer, "digest")
    before = text.encode("<|im_start|>user"), text.encode_words("<|im_start|>user")
    tokenizer("x", split_special_tokens=True, truncation=True, max_length=1)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    assert (text.encode("<|im_start|>user"), text.encode_words("<|im_start|>user")) == before


def test_two_codecs_of_one_tokenizer_read_alike_from_any_thread() -> None:
    """A template's text is read with markers and words without, beside each other."""
    tokenizer = made("byte-level", MARKS, template=CHATML)
    codecs = [TextTokenizer(tokenizer, "digest") for _ in range(2)]
    words = "<|im_start|>user " * 50
    template, spelled = codecs[0].encode(words), codecs[0].encode_words(words)
    tasks: list[tuple[Callable[[str], tuple[int, ...]], tuple[int, ...]]] = [
        (codec.encode, template) if number % 2 else (codec.encode_words, spelled)
        for number in range(200)
        for codec in codecs
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda task: task[0](words) == task[1], tasks))
    assert all(results)
