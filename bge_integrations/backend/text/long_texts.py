"""Where a long text may be cut so that the tokens of its pieces, one after another, are those of the whole.

The tokenizer keeps about 500 bytes for each token of a text at a time, and every other thread waiting while it returns
them: 5.7 GB and 0.4 seconds for one of 50 MB. So such a text is read in pieces. A cut lies before a single space (for
tokenizers that part words at any whitespace, or before a single line feed) between two characters that normalisation
leaves apart: ASCII letters, digits, CJK ideographs and their commonest punctuation. There nothing can change if

- no added token goes across, or takes the space behind it with it;
- the normaliser looks at single characters, at combining marks and what they stand behind, or at spaces in a row;
- the pre-tokenizer starts a new word there, whatever stands before, so that the model never sees both sides at once.

That is known of the parts named below, which make up WordPiece, SentencePiece's Unigram with a mark before each word,
and byte-level BPE as they are used. Texts of any other tokenizer are read as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

_LETTERS = "0-9A-Za-z\u4e00-\u9fff"
_PUNCTUATION = ".,!?;:。，！？；："
_BETWEEN_WORDS = re.compile(f" (?<=[{_LETTERS}] )(?=[{_LETTERS}])")
_AT_WHITESPACE = re.compile(f"[ \n](?<=[{_LETTERS}{_PUNCTUATION}][ \n])(?=[{_LETTERS}])")

_NORMALIZERS = {
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents",
}  # fmt: skip
_REPLACED = {" {2,}", r"\s+", r"\s{2,}"}
_SPLIT_AT_WHITESPACE = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPLIT_BY_CHARACTER = {"Digits", "Punctuation"}
# Of Qwen 2 and 3, of Llama 3, and of GPT-2 where it is written out. A space goes to what follows it, or is alone.
_QWEN, _LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_Part = dict[str, Any]


def safe_cuts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Returns a pattern of the characters before which texts for a tokenizer may be cut; None if nothing is known."""
    try:
        normalizers = _parts(tokenizer.normalizer, "normalizers")
        splitters = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    except Exception:  # those written in Python have no description
        return None
    if any(_goes_across_words(token) for token in tokenizer.get_added_tokens_decoder().values()):
        return None
    if not all(map(_keeps_words_apart, normalizers)) or not all(map(_is_known, splitters)):
        return None
    if not _parts_words(tokenizer, " "):
        return None
    is_at_whitespace = splitters[0]["type"] in _SPLIT_AT_WHITESPACE and _parts_words(tokenizer, "\n")
    return _AT_WHITESPACE if is_at_whitespace else _BETWEEN_WORDS


def cut(text: str, where: re.Pattern[str] | None, size: int) -> Iterator[str]:
    """Yields a text in pieces of about a size, or longer ones where it can't be cut.

    Args:
        text: The text.
        where: From `safe_cuts`.
        size: Characters, at least 1.
    """
    start = 0
    while where is not None and (found := where.search(text, start + size)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text


def _parts(component: Any, name: str) -> Sequence[_Part]:  # noqa: ANN401 - the library gives them no common base
    """Returns the descriptions of what a normaliser or pre-tokenizer is made of, in their order."""
    if component is None:
        return []
    return list(_flat(json.loads(component.__getstate__()), name))


def _flat(part: _Part, name: str) -> Iterator[_Part]:
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part[name]:
        yield from _flat(inner, name)


def _goes_across_words(token: Any) -> bool:  # noqa: ANN401 - an AddedToken, which has no public stub
    text: str = token.content
    takes_the_space = token.rstrip and not text.endswith((">", "]"))
    return takes_the_space or any(character.isspace() or character == "▁" for character in text)


def _keeps_words_apart(normalizer: _Part) -> bool:
    kind = normalizer["type"]
    if kind == "Strip":
        return not normalizer["strip_left"]
    if kind == "Replace":
        pattern = normalizer["pattern"]
        if "Regex" in pattern:
            return pattern["Regex"] in _REPLACED
        return len(pattern["String"]) == 1 and not pattern["String"].isalnum()
    return kind in _NORMALIZERS


def _is_known(splitter: _Part) -> bool:
    kind = splitter["type"]
    if kind == "Metaspace":
        return bool(splitter["split"])
    if kind == "Split":
        return splitter["pattern"].get("Regex") in {_QWEN, _LLAMA, _GPT2} and not splitter["invert"]
    return kind in _SPLIT_AT_WHITESPACE | _SPLIT_BY_CHARACTER | {"ByteLevel"}


def _parts_words(tokenizer: Tokenizer, whitespace: str) -> bool:
    """Whether the space outlives normalisation, and a word starts at it."""
    text = f"a{whitespace}b"
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    words = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else []
    return len(words) > 1
