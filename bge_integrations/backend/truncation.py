"""Truncation of texts that stand between others, which have to stay: a template around a query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bge_integrations.backend.tokenization import TextTokenizer, TokenizedTexts

# No vocabulary of the catalogue's models has many tokens as long; where more characters are needed, more are looked at.
_CHARACTERS_A_TOKEN = 8


def tokenize_between(
    tokenizer: TextTokenizer, prefix: str, texts: Sequence[str], suffix: str, max_length: int
) -> TokenizedTexts:
    """Turns texts into ids, cutting only their own characters, never what is around them.

    The authors of bge-en-icl cut the query alone too, before they put the suffix after it (`get_new_queries` in "Usage"
    of https://huggingface.co/BAAI/bge-en-icl).

    Args:
        tokenizer: Of the model.
        prefix: Text before each.
        texts: At least one.
        suffix: Text after each.
        max_length: Tokens per text, all included; more than prefix, suffix and special tokens take.
    """
    tokens = tokenizer.tokenize([prefix + text + suffix for text in texts], max_length)
    too_long = np.flatnonzero(tokens.full_lengths > max_length).tolist()
    if not too_long:
        return tokens
    cut = list(texts)
    for index in too_long:
        cut[index] = _fitting(tokenizer, prefix, texts[index], suffix, max_length)
    shorter = tokenizer.tokenize([prefix + text + suffix for text in cut], max_length)
    return TokenizedTexts(shorter.ids, tokens.full_lengths, shorter.lengths)


def _fitting(tokenizer: TextTokenizer, prefix: str, text: str, suffix: str, max_length: int) -> str:
    """Returns as much of a text that is too long as fits, cut between tokens."""

    def excess(part: str) -> int:
        return int(tokenizer.count([prefix + part + suffix])[0]) - max_length

    keeps_end = tokenizer.truncation_side == "left"
    size = _CHARACTERS_A_TOKEN * max_length
    part = text[-size:] if keeps_end else text[:size]
    while len(part) < len(text) and excess(part) <= 0:
        size *= 2
        part = text[-size:] if keeps_end else text[:size]
    # Tokens may come out differently next to the suffix, so that a cut by as many as are too many need not suffice.
    while part and (over := excess(part)) > 0:
        spans = [
            (max(start - len(prefix), 0), end - len(prefix))
            for start, end in tokenizer.spans(prefix + part + suffix)
            if end > len(prefix) and start < len(prefix) + len(part)
        ]
        if over >= len(spans):
            return ""
        part = part[spans[over - 1][1] :] if keeps_end else part[: min(spans[-over][0], len(part) - 1)]
    return part
