"""Alignment of two tokenizers over one text, and the character ends it works on."""

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unspoken.agents import LocalModel
from unspoken.agents.prompts.tokenizer import Detokenizer, TextTokenizer
from unspoken.channels.bridges.align import align
from unspoken.channels.errors import StateError

ENDS = st.lists(st.integers(0, 60), min_size=1, max_size=30).map(sorted)
LETTERS = "the of and question document\n\t é漢字🙂👩‍👩‍👧e\u0301o\u0308ﬁ①ａ\u200dكпр.,!"
TEXT = st.text(alphabet=st.one_of(st.sampled_from(LETTERS), st.characters(codec="utf-8")))


def unigram(prepend: str = "never") -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: words with their space, NFKC, bytes for the rest."""
    words = ["▁the", "▁of", "▁and", "▁a", "▁question", "▁document", "▁reader", "▁key"]
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [(word, -2.0) for word in words]
    pieces += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,é漢"]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=prepend)
    strip = [decoders.Strip(" ", 1, 0)] if prepend != "never" else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False
    )


@cache
def codec(name: str) -> TextTokenizer:
    made = {
        "bytes": tiny_tokenizer,
        "other bytes": lambda: tiny_tokenizer((" question", " document", "tion", "th")),
        "unigram": unigram,
        "unigram, space first": lambda: unigram("first"),
    }
    return TextTokenizer(made[name](), name)  # type: ignore[no-untyped-call]


CODECS = ("bytes", "other bytes", "unigram", "unigram, space first")


def ends_of(name: str, text: str) -> tuple[int, ...]:
    one = codec(name)
    return one.ends(one.encode_words(text), text)


def plainly(sharer: Sequence[int], receiver: Sequence[int]) -> tuple[int, ...]:
    """The definition, word for word."""
    readers = []
    for end in receiver:
        first = next((s for s in sharer if s >= end), sharer[-1])
        readers.append(max(index for index, s in enumerate(sharer) if s == first))
    return tuple(readers)


@given(sharer=ENDS, receiver=ENDS)
def test_a_token_is_read_by_the_first_that_ends_no_earlier(
    sharer: list[int], receiver: list[int]
) -> None:
    """The rule as it is written, of equal ends the last, order kept, every token served."""
    aligned = align(sharer, receiver)
    assert aligned == plainly(sharer, receiver)
    assert list(aligned) == sorted(aligned) and len(aligned) == len(receiver)


@given(ends=ENDS)
def test_equal_tokens_are_aligned_with_themselves(ends: list[int]) -> None:
    """One tokenizer at both ends: each token, or the last one of its character."""
    aligned = align(ends, ends)
    assert [ends[index] for index in aligned] == ends
    distinct = sorted(set(ends))
    assert align(distinct, distinct) == tuple(range(len(distinct)))


def test_no_sharer_token_is_an_error() -> None:
    """Nothing cannot be aligned with something; nothing with nothing is nothing."""
    assert align((), ()) == () == align((3,), ())
    with pytest.raises(StateError, match="2 receiver tokens"):
        align((), (1, 2))


def check_pair(text: str, sharer: Sequence[int], receiver: Sequence[int]) -> None:
    """What holds of every alignment of one text."""
    if not sharer or not receiver:
        return
    aligned = align(sharer, receiver)
    assert list(aligned) == sorted(aligned) and len(aligned) == len(receiver)
    for end, index in zip(receiver, aligned, strict=True):
        # All of the token's text was read …
        assert sharer[index] >= min(end, sharer[-1])
        # … and of what follows no more than the one sharer token that its end falls into.
        before = [s for s in sharer if s < sharer[index]]
        assert not before or before[-1] < end


@given(text=TEXT, sharer=st.sampled_from(CODECS), receiver=st.sampled_from(CODECS))
def test_real_tokenizers_are_aligned_over_any_text(text: str, sharer: str, receiver: str) -> None:
    """Byte-level BPE against pieces with byte fallback and NFKC, both ways, over any characters."""
    check_pair(text, ends_of(sharer, text), ends_of(receiver, text))


@given(text=TEXT, name=st.sampled_from(CODECS))
def test_ends_grow_to_the_text_s_end(text: str, name: str) -> None:
    """One end per token, never falling, inside the text, the last one at its end."""
    ends = ends_of(name, text)
    assert len(ends) == len(codec(name).encode_words(text))
    assert list(ends) == sorted(ends)
    assert all(0 <= end <= len(text) for end in ends)
    assert not ends or ends[-1] == len(text)


def by_decoding(one: TextTokenizer, ids: Sequence[int]) -> tuple[int, ...]:
    detokenizer = Detokenizer(one)
    for token in ids:
        detokenizer.push(token)
    detokenizer.finish()
    return detokenizer.ends()


@given(text=TEXT)
def test_bytes_of_a_character_end_where_it_ends(text: str) -> None:
    """A byte-level tokenizer's fragments share the end of their character, by decoding too."""
    one = codec("bytes")
    ids = one.encode_words(text)
    ends = one.ends(ids)
    for count, end in enumerate(ends, 1):
        whole = one.decode(ids[:count])
        if "\ufffd" not in whole:
            assert end == len(whole)
    if "\ufffd" not in text:
        assert by_decoding(one, ids) == ends


@given(ids=st.lists(st.integers(3, len(tiny_tokenizer()) - 1), max_size=40))
def test_ids_that_no_text_gives_have_ends_by_decoding(ids: list[int]) -> None:
    """Sampled ids, broken characters among them, end inside their text, in order."""
    one = codec("bytes")
    ends, text = one.ends(ids), one.decode(ids)
    assert len(ends) == len(ids) and list(ends) == sorted(ends)
    assert all(end <= len(text) for end in ends)


def test_ends_by_decoding_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a few tokens are decoded at a time, even of text that is all broken."""
    one = codec("bytes")
    broken = one.encode_words("漢")[:1] * 500
    sizes, decode = [], TextTokenizer.decode

    def counted(self: TextTokenizer, ids: Sequence[int]) -> str:
        sizes.append(len(ids))
        return decode(self, ids)

    monkeypatch.setattr(TextTokenizer, "decode", counted)
    by_decoding(one, broken)
    assert max(sizes) <= 20


def test_a_space_that_the_decoder_strips_is_counted() -> None:
    """Ends are in the words that are shared, not in what the ids decode to."""
    one = codec("unigram, space first")
    text = " the question"
    ids = one.encode_words(text)
    assert one.decode(ids) != text or one.ends(ids, text)[-1] == len(text)
    split = [one.encode_words(letter)[-1] for letter in "key"]
    assert one.decode(split) == "key" and one.encode_words("key") != tuple(split)
    assert one.ends(split) == (1, 2, 3)
    assert one.ends(split, " key") == (2, 3, 4)


def test_a_wrapper_s_letters_in_the_outer_tokens_are_left_out() -> None:
    """Where the first and last token hold some of the wrapper, ends are clipped to the words."""
    one = codec("bytes")
    ids = [one.encode_words(letter)[0] for letter in "\nkey\n"]
    assert one.ends(ids, "key") == (0, 1, 2, 3, 3)


def test_a_normaliser_s_changes_are_followed() -> None:
    """Before and after a character that was normalised, ends are those of the words as written."""
    one = codec("unigram")
    text = "the ﬁeld of ① key"
    ids = one.encode_words(text)
    assert one.decode(ids) == "the field of 1 key"
    exact, moved = one.ends(ids, text), by_decoding(one, ids)
    assert exact[-1] == len(text) and moved[-1] == len("the field of 1 key")
    # Sampled ids of the same text take the slow way; outside of the changes it is exact.
    split = [*ids[:-1], *(one.encode_words(letter)[-1] for letter in " key")]
    slow = one.ends(split, text)
    assert slow[:3] == exact[:3] == (1, 2, 3)
    assert slow[-4:] == tuple(range(len(text) - 3, len(text) + 1))


@given(text=TEXT, stop=st.sampled_from(["", "e", "th", "é", "🙂"]))
def test_a_stream_knows_its_ends(text: str, stop: str) -> None:
    """Streamed text, cut at a stop string or not, has one end per kept id."""
    one = codec("bytes")
    detokenizer = Detokenizer(one, [stop] if stop else [])
    for token in one.encode_words(text):
        detokenizer.push(token)
        if detokenizer.stopped:
            break
    detokenizer.finish()
    kept, _ = detokenizer.kept()
    ends = detokenizer.ends()
    assert len(ends) == len(kept) and list(ends) == sorted(ends)
    assert not ends or ends[-1] == len(detokenizer.text)
    if "\ufffd" not in detokenizer.text:
        assert ends == one.ends(kept, detokenizer.text)


PASSAGES = (
    "The station was built in 1887 by the harbor board of the port of Skarholm.",
    "  Leading spaces,\n\n\ttabs and 漢字 with 🙂👩‍👩‍👧 and e\u0301.\n- item\n- ﬁne ①",
    "def f(x):\n    return x ** 2  # 100,000.5 €",
)


@pytest.mark.model
@pytest.mark.parametrize("text", PASSAGES)
def test_the_embedded_models_tokenizers_are_aligned(
    smollm2: LocalModel, gemma3: LocalModel, text: str
) -> None:
    """SmolLM2's bytes and Gemma's pieces, both ways."""
    ends = [model.text.ends(model.text.encode_words(text), text) for model in (smollm2, gemma3)]
    assert ends[0][-1] == ends[1][-1] == len(text)
    check_pair(text, ends[0], ends[1])
    check_pair(text, ends[1], ends[0])
    # A word that is one token at both ends is aligned with itself.
    if "station" in text:
        end = text.index("station") + len("station")
        index = align(ends[0], (end,))[0]
        assert ends[0][index] == end
