"""The places where a long text can be cut, so that its pieces have together the same tokens as the whole text.

The tokenizer needs about 500 bytes per token of a text, and all other threads wait while it returns the tokens: 5.7 GB
and 0.4 seconds for a text of 50 MB. So such a text is read in pieces. A cut is before a single space; if the tokenizer
splits words at any whitespace, also before a single line feed. The characters around it are ASCII letters, digits, CJK
ideographs or their commonest punctuation, which normalisation never joins. A cut there changes no token if

- no added token reaches across the place, or takes the space after itself;
- the normaliser depends only on single characters, on combining marks and the characters before them, or on runs of
  spaces;
- the pre-tokenizer always starts a new word at the place, so the model never sees both sides at once.

This is known for the components below. WordPiece, SentencePiece's Unigram with a mark before each word, and byte-level
BPE consist of them in practice. Texts of any other tokenizer are read as a whole.
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
# The patterns of Qwen 2 and 3, of Llama 3, and of GPT-2. A space belongs to the word after it, or is alone.
_QWEN, _LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_Part = dict[str, Any]


def safe_cuts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Returns a pattern of the characters before which a text can be cut; `None` if no place is known to be safe."""
    try:
        normalizers = _parts(tokenizer.normalizer, "normalizers")
        splitters = _parts(tokenizer.pre_tokenizer, "pretokenizers")
    except Exception:  # components written in Python have no description
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
    """Yields a text in pieces of at least a size; only the last piece may be shorter.

    Args:
        text: The text.
        where: The pattern from `safe_cuts`. `None`: the text is not cut.
        size: Size of a piece in characters, at least 1.
    """
    start = 0
    while where is not None and (found := where.search(text, start + size)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:] if start else text


def _parts(component: Any, name: str) -> Sequence[_Part]:  # noqa: ANN401 - the library gives them no common base
    """Returns the descriptions of the components of a normaliser or pre-tokenizer, in order."""
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
    """Whether normalisation keeps the whitespace, and a new word starts at it."""
    text = f"a{whitespace}b"
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    words = tokenizer.pre_tokenizer.pre_tokenize_str(normalized) if tokenizer.pre_tokenizer else []
    return len(words) > 1
