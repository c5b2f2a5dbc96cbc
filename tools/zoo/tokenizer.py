"""The tokenizer of the tiny language model: one token for every word of the starter data.

A visual token replaces one cell of a picture, and a written-out scene says the same cell with one
word. So the word of a cell has to be exactly one token: the vocabulary is the list of whole words,
not pieces learned from statistics. It is a unigram model (Kudo 2018, section 3) with scores set by
rule instead of by training: a known word always beats its letters, letters beat bytes, and bytes
catch everything else, so nothing is unknown. A printed word in a cell and the same word in an
answer are one and the same token, which makes reading a matter of copying. Digits of numbers in
text are split ("37" is "3", "7"); the number printed in a cell has its own word ("n37").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

SPACE = "▁"
UNKNOWN, START, END, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL = (UNKNOWN, START, END, PAD)
WORD_SCORE, LETTER_SCORE, BYTE_SCORE = -5.0, -15.0, -30.0
# A scene's number ("n37"), one digit, or one mark of punctuation, each with the space before it.
SPLIT = rf"{SPACE}?n\d{{1,2}}(?![0-9A-Za-z])|{SPACE}?\d|{SPACE}?[^\s\w{SPACE}]"
MAX_LENGTH = 1024


def _pre_tokenizer() -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True),
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        ]
    )


def split_words(text: str) -> list[str]:
    """Return the pieces the tokenizer keeps whole where it knows them, with their space mark."""
    return [piece for piece, _ in _pre_tokenizer().pre_tokenize_str(text)]


def _pieces(words: Iterable[str]) -> list[tuple[str, float]]:
    letters = [chr(code) for code in range(33, 127)] + ["\n", SPACE]
    digits = [mark + str(digit) for mark in ("", SPACE) for digit in range(10)]
    known = sorted({*words, *digits} - set(letters))
    pieces = [(name, 0.0) for name in SPECIAL]
    pieces += [(f"<0x{value:02X}>", BYTE_SCORE) for value in range(256)]
    pieces += [(letter, LETTER_SCORE) for letter in letters if not letter.isdigit()]
    pieces += [(word, WORD_SCORE) for word in known]
    # Single digits are words, not letters: an answer's "7" is as likely as any word.
    pieces += [(str(digit), WORD_SCORE) for digit in range(10) if str(digit) not in known]
    return pieces


def build_tokenizer(
    texts: Iterable[str], scene_words: Iterable[str], *, chat_template: str, min_count: int = 3
) -> PreTrainedTokenizerFast:
    """Make the tokenizer from the frequent words of `texts` and from every scene word.

    Args:
        texts: segments of conversations, as the template tokenises them.
        scene_words: every word a cell of a written-out scene can hold; each becomes one token.
        chat_template: the Jinja template saved with the tokenizer.
        min_count: rarer words of `texts` are spelled with letters.
    """
    from collections import Counter

    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text))
    words = {word for word, count in counts.items() if count >= min_count and len(word) > 1}
    words |= {SPACE + word for word in scene_words}
    tokenizer = Tokenizer(models.Unigram(_pieces(words), unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Metaspace(replacement=SPACE, prepend_scheme="always"),
        ]
    )
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no type
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast
