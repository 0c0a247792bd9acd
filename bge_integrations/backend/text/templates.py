"""What an instruction, or a template, takes of the tokens that a model reads; texts are cut beside it, it never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts
from bge_integrations.errors import SettingsError
from bge_integrations.settings import ModelSettings
from bge_integrations.texts import shortened

# No vocabulary of the catalogue's models has many tokens as long; where more characters are needed, more are looked at.
_CHARACTERS_A_TOKEN = 8

_SHORTER = "give a shorter instruction"


@dataclass(frozen=True, kw_only=True)
class Share:
    """What is taken of the tokens of a text, or of a pair of texts, by what is no part of the user's texts.

    Attributes:
        instruction: The instruction, for messages; `""` if there is none.
        instruction_tokens: Its tokens.
        fixed_tokens: All others: special tokens, and a decoder's prompt.
        uncounted_tokens: Those of them that `max_length` doesn't count.
        texts: How many texts there are, each of which needs a token.
    """

    instruction: str
    instruction_tokens: int
    fixed_tokens: int
    uncounted_tokens: int = 0
    texts: int = 1

    @property
    def least(self) -> int:
        """Tokens, all counted, that leave room for one token of each text."""
        return self.instruction_tokens + self.fixed_tokens + self.texts

    def check(self, settings: ModelSettings, limit: int) -> None:
        """Checks that there is room for text.

        Args:
            settings: What the user set.
            limit: Tokens of a text, or of a pair of texts, all counted.

        Raises:
            SettingsError: There is none, so that all texts would give the same.
        """
        if self.least <= limit:
            return
        others, remedies, taken = ["special tokens"], [], self.least - self.texts
        if settings.max_length is not None and limit == settings.max_length + self.uncounted_tokens:
            start, taken = f"max_length={settings.max_length}", taken - self.uncounted_tokens
            remedies = [f"give at least {taken + self.texts}"]
        else:
            start = f"{settings.model_name} reads {limit} tokens, which"
            if self.uncounted_tokens:
                others, remedies = [*others, "the prompt"], ["give a shorter prompt"]
        if self.instruction:
            others, remedies = [*others, f"the instruction {shortened(self.instruction)}"], [*remedies, _SHORTER]
        raise SettingsError(
            f"{start} leaves no room for text beside the {taken} tokens of {' and '.join(others)}; "
            f"{' or '.join(remedies) or 'choose another model'}."
        )


def share_of(tokenizer: TextTokenizer, prefix: str, suffix: str = "") -> Share:
    """Measures what an instruction takes of each text that it is put around."""
    around, tokens = prefix + suffix, 0
    if around:
        tokens = int(tokenizer.count([around])[0]) - tokenizer.special_tokens
    if prefix.endswith(" "):
        # The space becomes the mark of the text's first word, which some tokenizers have as a token of its own.
        bare = int(tokenizer.count([prefix.rstrip(" ") + suffix])[0]) - tokenizer.special_tokens
        tokens = max(tokens, bare + tokenizer.word_marks)
    return Share(instruction=around, instruction_tokens=tokens, fixed_tokens=tokenizer.special_tokens)


def tokenize_within(
    tokenizer: TextTokenizer, prefix: str, texts: Sequence[str], suffix: str, max_length: int
) -> TokenizedTexts:
    """Turns texts into ids, cutting only the texts themselves, never what is around them.

    Args:
        tokenizer: Of the model.
        prefix: Text before each.
        texts: At least one.
        suffix: Text after each.
        max_length: Tokens per text, all included; at least `Share.least`.
    """
    tokens = tokenizer.tokenize([f"{prefix}{text}{suffix}" for text in texts], max_length)
    too_long = np.flatnonzero(tokens.full_lengths > max_length).tolist()
    if too_long and prefix and tokenizer.truncation_side == "left":
        return _with_start(tokenizer, prefix, tokens, too_long)
    if too_long and suffix and tokenizer.truncation_side == "right":
        cut = list(texts)
        for index in too_long:
            cut[index] = _fitting(tokenizer, prefix, texts[index], suffix, max_length)
        shorter = tokenizer.tokenize([f"{prefix}{text}{suffix}" for text in cut], max_length)
        pieces = np.split(shorter.ids, np.cumsum(shorter.lengths)[:-1])
        for index in too_long:
            if not cut[index]:
                pieces[index] = _with_first_tokens(tokenizer, pieces[index], prefix, texts[index], suffix, max_length)
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        return TokenizedTexts(np.concatenate(pieces), tokens.full_lengths, lengths)
    return tokens


def _with_start(
    tokenizer: TextTokenizer, prefix: str, tokens: TokenizedTexts, too_long: Sequence[int]
) -> TokenizedTexts:
    """Puts the prefix back where the start of a text was cut off with it, in place of as many tokens of the text."""
    ids, start_ids = tokens.ids.copy(), tokenizer.content(prefix.rstrip(" "))
    starts = np.cumsum(tokens.lengths) - tokens.lengths + tokenizer.special_tokens - tokenizer.suffix_tokens
    for index in too_long:
        ids[starts[index] : starts[index] + len(start_ids)] = start_ids
    return TokenizedTexts(ids, tokens.full_lengths, tokens.lengths)


def _with_first_tokens(
    tokenizer: TextTokenizer, around: NDArray[np.int32], prefix: str, text: str, suffix: str, max_length: int
) -> NDArray[np.int32]:
    """Puts the first tokens of a text between prefix and suffix, where there is no room for a whole character.

    Args:
        tokenizer: Of the model.
        around: The ids of prefix and suffix alone, special tokens included.
        prefix: Text before the text.
        text: The text.
        suffix: Text after it.
        max_length: Tokens, all included.
    """
    whole = prefix + text[:1] + suffix
    ids = tokenizer.content(whole)
    of_text = [
        place for place, (start, end) in enumerate(tokenizer.spans(whole)) if end > len(prefix) and start <= len(prefix)
    ]
    dropped = of_text[len(of_text) - max(len(ids) + tokenizer.special_tokens - max_length, 0) :]
    before = tokenizer.special_tokens - tokenizer.suffix_tokens
    kept = np.delete(np.array(ids, dtype=np.int32), dropped)
    return np.concatenate([around[:before], kept, around[len(around) - tokenizer.suffix_tokens :]])


def _fitting(tokenizer: TextTokenizer, prefix: str, text: str, suffix: str, max_length: int) -> str:
    """Returns as much of the start of a text that is too long as fits, cut between tokens.

    The authors of bge-en-icl cut the query alone too, before they put the suffix after it (`get_new_queries` in "Usage"
    of https://huggingface.co/BAAI/bge-en-icl).
    """

    def excess(part: str) -> int:
        return int(tokenizer.count([prefix + part + suffix])[0]) - max_length

    size = _CHARACTERS_A_TOKEN * max_length
    part = text[:size]
    while len(part) < len(text) and excess(part) <= 0:
        size *= 2
        part = text[:size]
    # Tokens may come out differently next to the suffix, so that a cut by as many as are too many need not suffice.
    while part and (over := excess(part)) > 0:
        spans = [
            (max(start - len(prefix), 0), end - len(prefix))
            for start, end in tokenizer.spans(prefix + part + suffix)
            if end > len(prefix) and start < len(prefix) + len(part)
        ]
        if over >= len(spans):
            return ""
        part = part[: min(spans[-over][0], len(part) - 1)]
    return part
