"""Text to ids and back: markers in words, characters in pieces, stop strings."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import SPECIALS, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from unspoken.agents.prompts.tokenizer import Detokenizer, TextTokenizer
from unspoken.channels.errors import ModelSupportError

CODEC = TextTokenizer(tiny_tokenizer(), "digest")
TOKENS = st.lists(st.integers(0, len(CODEC.tokenizer) - 1), max_size=40)
WORDS = st.text(alphabet="the of aé漢🙂\n ", max_size=12)


def stream(detokenizer: Detokenizer, ids: Sequence[int]) -> list[str]:
    """What is given out token by token, up to a stop, and at the end."""
    pieces = []
    for token in ids:
        pieces.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return [*pieces, detokenizer.finish()]


@given(ids=TOKENS)
def test_a_stream_of_tokens_gives_the_text_that_the_tokenizer_gives(ids: list[int]) -> None:
    """Any tokens, bytes of broken characters among them, stream to what decode gives at once."""
    detokenizer = Detokenizer(CODEC)
    assert "".join(stream(detokenizer, ids)) == CODEC.decode(ids) == detokenizer.text
    kept = tuple(token for token in ids if token not in CODEC.turn_markers)
    assert detokenizer.kept()[0] == kept
    assert len(detokenizer.ends()) == len(kept)


@given(text=st.text(max_size=30))
def test_no_piece_holds_half_a_character(text: str) -> None:
    """Text of any characters comes in pieces of whole ones."""
    pieces = stream(Detokenizer(CODEC), CODEC.encode_words(text))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    """The four bytes of an emoji are held back until they are a character."""
    detokenizer = Detokenizer(CODEC)
    assert [detokenizer.push(token) for token in CODEC.encode_words("🙂")] == ["", "", "", "🙂"]


@given(before=WORDS, after=WORDS, stops=st.lists(WORDS.filter(bool), min_size=1, max_size=3))
def test_text_ends_right_before_the_first_stop_string(
    before: str, after: str, stops: list[str]
) -> None:
    """What is given out ends where a stop string begins, and holds none."""
    text = before + stops[0] + after
    detokenizer = Detokenizer(CODEC, stops)
    pieces = stream(detokenizer, CODEC.encode_words(text))
    given_out = "".join(pieces)
    assert detokenizer.stopped and given_out == detokenizer.text
    assert any(text.startswith(given_out + stop) for stop in stops)
    assert not any(stop in given_out for stop in stops)


@given(text=WORDS, stops=st.lists(WORDS.filter(bool), min_size=1, max_size=2))
def test_kept_ids_are_the_text_and_begin_with_the_tokens_taken(text: str, stops: list[str]) -> None:
    """Ids kept after a stop decode to the kept text; the first are those that were sampled."""
    ids = CODEC.encode_words(text)
    detokenizer = Detokenizer(CODEC, stops)
    stream(detokenizer, ids)
    kept, taken = detokenizer.kept()
    assert CODEC.decode(kept) == detokenizer.text
    assert kept[:taken] == ids[:taken]


def test_a_stop_string_in_the_middle_of_a_token_keeps_the_part_before_it() -> None:
    """A token that a stop string cuts is cut again from its letters."""
    detokenizer = Detokenizer(CODEC, ["er"])
    stream(detokenizer, CODEC.encode_words("the reader"))
    assert detokenizer.text == "the read"
    kept, taken = detokenizer.kept()
    assert CODEC.decode(kept) == "the read" and taken < len(kept)


def test_a_stop_string_of_a_character_in_pieces_keeps_none_of_them() -> None:
    """The first bytes of a character that stops the text are not kept."""
    detokenizer = Detokenizer(CODEC, ["é"])
    stream(detokenizer, CODEC.encode_words("aé"))
    assert detokenizer.kept() == (CODEC.encode_words("a"), 1)


def test_what_may_begin_a_stop_string_is_held_back_and_given_at_the_end() -> None:
    """Text that looks like a stop string but is none comes out in full."""
    detokenizer = Detokenizer(CODEC, ["xyz"])
    assert stream(detokenizer, CODEC.encode_words("axy")) == ["a", "", "", "xy"]


def test_a_stop_string_before_half_a_character_is_found_at_the_end() -> None:
    """A token of a stop string and a broken character stops the text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "xÃ"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("x", "Ã")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    codec = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), "other")  # type: ignore[no-untyped-call]
    detokenizer = Detokenizer(codec, ["x"])
    assert "".join(stream(detokenizer, [vocab["a"], vocab["xÃ"]])) == "a"
    assert detokenizer.stopped and codec.decode(detokenizer.kept()[0]) == "a"


@given(text=st.text(max_size=20), marker=st.sampled_from(SPECIALS))
def test_a_marker_in_words_stays_letters(text: str, marker: str) -> None:
    """Nobody writes a turn marker into a document."""
    ids = CODEC.encode_words(f"{text}{marker}{text}")
    assert not {0, 1, 2} & set(ids)
    assert CODEC.decode(ids) == f"{text}{marker}{text}"


def test_a_marker_in_a_template_is_a_marker() -> None:
    """A template's own text is read with its markers, and no other is added."""
    assert CODEC.encode("<|im_start|>the")[0] == 1
    assert CODEC.encode("") == CODEC.encode_words("") == ()


@given(text=st.text(max_size=20))
def test_offsets_name_the_characters_of_every_token(text: str) -> None:
    """There is one pair a token, ascending, and the first and last reach the text's ends."""
    ids, offsets = CODEC.words_with_offsets(text)
    assert ids == CODEC.encode_words(text)
    assert len(offsets) == len(CODEC.encode_words(text))
    assert list(offsets) == sorted(offsets)
    assert not text or (offsets[0][0], offsets[-1][1]) == (0, len(text))


def test_bos_is_what_the_tokenizer_adds_by_itself() -> None:
    """A tokenizer that adds nothing has no BOS, even where it has the token."""
    assert CODEC.bos == ""
    leading = tiny_tokenizer()
    leading.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert TextTokenizer(leading, "digest").bos == "<|im_start|>"


def test_a_tokenizer_without_offsets_is_refused() -> None:
    """A slow tokenizer cannot say which characters a token stands for."""

    class Slow:
        is_fast = False

    with pytest.raises(ModelSupportError, match="Slow gives no offsets"):
        TextTokenizer(Slow(), "digest")  # type: ignore[arg-type]
