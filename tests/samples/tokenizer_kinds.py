"""Tokenizers of the kinds that models have, made in memory."""

from collections.abc import Callable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_WORDS = """
the a reader user assistant system model INST SYS im_start im_end Who When wrote it Ada Be short end
turn start of is was in 1887 Say and more Notes header_id eot_id
"""
WORDS = _WORDS.split()

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_LETTERS = [chr(code) for code in range(33, 127)]


def _merged(vocab: list[str], words: Sequence[str]) -> list[tuple[str, str]]:
    """Put every beginning of the words into a vocabulary; the merges that make them."""
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return merges


def _ids(vocab: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(vocab)}


def _byte_level(marks: Sequence[str], **settings: bool) -> Tokenizer:
    """GPT-2, Llama 3, Qwen: bytes as letters, words with the space before them."""
    vocab = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merged(vocab, [*(f"Ġ{word}" for word in WORDS), *WORDS])
    backend = Tokenizer(models.BPE(vocab=_ids(vocab), merges=merges, **settings))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_level_whole(marks: Sequence[str]) -> Tokenizer:
    """A vocabulary that has the markers as words, and takes a word that it has without merging."""
    vocab = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *marks]
    merges = _merged(vocab, [*(f"Ġ{word}" for word in WORDS), *WORDS])
    backend = Tokenizer(models.BPE(vocab=_ids(vocab), merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s*\S+|\s+"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [backend.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_vocab(marks: Sequence[str]) -> list[str]:
    return ["<unk>", "<s>", "</s>", *_BYTES, *[mark for mark in marks if mark[:3] != "<s>"]]


def _llama2(marks: Sequence[str]) -> Tokenizer:
    """Llama 2, Mistral, Phi-3: a space before every text that follows a marker, no words apart."""
    vocab = [*dict.fromkeys([*_sentencepiece_vocab(marks), "▁", *_LETTERS])]
    merges = _merged(vocab, [*(f"▁{word}" for word in WORDS), *WORDS])
    backend = Tokenizer(
        models.BPE(
            vocab=_ids(vocab), merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def _gemma(marks: Sequence[str]) -> Tokenizer:
    """Gemma: spaces as letters, none added."""
    vocab = [*dict.fromkeys([*_sentencepiece_vocab(marks), "▁", "\n", *_LETTERS])]
    merges = _merged(vocab, [*(f"▁{word}" for word in WORDS), *WORDS, "\n\n"])
    backend = Tokenizer(
        models.BPE(vocab=_ids(vocab), merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _unigram(marks: Sequence[str]) -> Tokenizer:
    """A unigram model with markers among its pieces, and a space before the first word."""
    pieces = [*dict.fromkeys([*_sentencepiece_vocab(marks), "▁", *_LETTERS])]
    pieces += [word for word in (*(f"▁{w}" for w in WORDS), *WORDS) if word not in pieces]
    scores = [(piece, 0.0 if piece in marks else -4.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    return backend


def _wordpiece(marks: Sequence[str]) -> Tokenizer:
    """BERT's: words and pieces that go on, the markers words too, what is unknown one token."""
    letters = [*_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    vocab = [*dict.fromkeys(["[UNK]", *marks, *letters, *WORDS])]
    backend = Tokenizer(models.WordPiece(vocab=_ids(vocab), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    return backend


KINDS: dict[str, Callable[[Sequence[str]], Tokenizer]] = {
    "byte-level": _byte_level,
    "byte-level-whole": _byte_level_whole,
    "llama2": _llama2,
    "gemma": _gemma,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


def made(
    kind: str,
    marks: Sequence[str],
    *,
    template: str | None = None,
    special: bool = True,
    **flags: bool,
) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with markers as added tokens.

    Args:
        kind: One of `KINDS`.
        marks: The markers; the first opens a context, the last ends a turn.
        template: Its chat template.
        special: Whether the markers are special tokens.
        flags: ``lstrip``, ``rstrip``, ``single_word``, ``normalized`` of each.
    """
    backend = KINDS[kind](marks)
    tokens = [AddedToken(mark, special=special, **flags) for mark in marks]
    backend.add_tokens(tokens)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, clean_up_tokenization_spaces=False
    )
    if special:
        tokenizer.bos_token, tokenizer.eos_token = marks[0], marks[-1]
    tokenizer.chat_template = template
    return tokenizer
