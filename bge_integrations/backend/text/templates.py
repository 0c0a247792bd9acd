"""The room that instructions and templates take of a model's tokens. Only texts are cut, never the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts
from bge_integrations.errors import SettingsError
from bge_integrations.settings import ModelSettings
from bge_integrations.texts import shortened

# Few tokens of the catalogue's vocabularies are longer. `fitting_start` reads more characters if they are needed.
_CHARACTERS_A_TOKEN = 8

_SHORTER = "give a shorter instruction"


@dataclass(frozen=True, kw_only=True)
class Share:
    """The tokens of a text, or of a pair of texts, that are not part of the user's texts.

    Attributes:
        instruction: The instruction, for messages. `""`: no instruction.
        instruction_tokens: Tokens of the instruction.
        fixed_tokens: Tokens of everything else: special tokens and a decoder's prompt.
        uncounted_tokens: The part of `fixed_tokens` that `max_length` does not count.
        texts: Number of texts, 1 or 2. Each needs at least one token.
    """

    instruction: str
    instruction_tokens: int
    fixed_tokens: int
    uncounted_tokens: int = 0
    texts: int = 1

    @property
    def least(self) -> int:
        """Minimum length in tokens, uncounted tokens included, with one token for each text."""
        return self.instruction_tokens + self.fixed_tokens + self.texts

    def check(self, settings: ModelSettings, limit: int) -> None:
        """Checks that there is room for text.

        Args:
            settings: The user's settings.
            limit: Maximum number of tokens of a text, or of a pair of texts, uncounted tokens included.

        Raises:
            SettingsError: There is no room, so all texts would have the same result.
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
    """Returns the share of an instruction that consists of a prefix and a suffix."""
    around, tokens = prefix + suffix, 0
    if around:
        tokens = int(tokenizer.count([around])[0]) - tokenizer.special_tokens
    if prefix.endswith(" "):
        # The space becomes the mark of the text's first word. In some tokenizers this mark is its own token.
        bare = int(tokenizer.count([prefix.rstrip(" ") + suffix])[0]) - tokenizer.special_tokens
        tokens = max(tokens, bare + tokenizer.word_marks)
    return Share(instruction=around, instruction_tokens=tokens, fixed_tokens=tokenizer.special_tokens)


@dataclass(frozen=True)
class Frame:
    """What surrounds and limits the texts of a call. Only the texts are cut, never the prefix or the suffix.

    Attributes:
        tokenizer: The model's tokenizer.
        prefix: Text before each text.
        suffix: Text after each text.
        max_length: Maximum number of tokens per text, everything included; at least `Share.least`.
    """

    tokenizer: TextTokenizer
    prefix: str
    suffix: str
    max_length: int

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Turns at least one text into ids."""
        return tokenize_together([(self, texts)])[0]


def tokenize_together(calls: Sequence[tuple[Frame, Sequence[str]]]) -> list[TokenizedTexts]:
    """Turns the texts of several calls into ids, in one call of their tokenizer.

    Args:
        calls: The texts of each call, at least one, and their frame. All frames have the same tokenizer.
    """
    written = [f"{frame.prefix}{text}{frame.suffix}" for frame, texts in calls for text in texts]
    limits = [frame.max_length for frame, texts in calls for _ in texts]
    tokens = calls[0][0].tokenizer.tokenize(written, limits)
    if len(calls) == 1:
        return [_refitted(*calls[0], tokens)]
    found, start, first = [], 0, 0
    for frame, texts in calls:
        stop = start + len(texts)
        full_lengths, lengths = tokens.full_lengths[start:stop], tokens.lengths[start:stop]
        last = first + int(lengths.sum())
        found.append(_refitted(frame, texts, TokenizedTexts(tokens.ids[first:last], full_lengths, lengths)))
        start, first = stop, last
    return found


def _refitted(frame: Frame, texts: Sequence[str], tokens: TokenizedTexts) -> TokenizedTexts:
    """Restores what truncation has cut of prefix and suffix."""
    tokenizer, prefix, suffix, max_length = frame.tokenizer, frame.prefix, frame.suffix, frame.max_length
    if not (prefix if tokenizer.truncation_side == "left" else suffix):
        return tokens
    too_long = np.flatnonzero(tokens.full_lengths > max_length).tolist()
    if not too_long:
        return tokens
    if tokenizer.truncation_side == "left":
        return _with_start(tokenizer, prefix, tokens, too_long)
    cut = list(texts)
    for index in too_long:
        cut[index] = fitting_start(tokenizer, prefix, texts[index], suffix, max_length)
    shorter = tokenizer.tokenize([f"{prefix}{text}{suffix}" for text in cut], max_length)
    pieces = np.split(shorter.ids, np.cumsum(shorter.lengths)[:-1])
    for index in too_long:
        if not cut[index]:
            pieces[index] = _with_first_tokens(tokenizer, pieces[index], prefix, texts[index], suffix, max_length)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    return TokenizedTexts(np.concatenate(pieces), tokens.full_lengths, lengths)


def _with_start(
    tokenizer: TextTokenizer, prefix: str, tokens: TokenizedTexts, too_long: Sequence[int]
) -> TokenizedTexts:
    """Restores a prefix that was cut off with the start of a text. It replaces as many tokens of the text."""
    ids, start_ids = tokens.ids.copy(), tokenizer.content(prefix.rstrip(" "))
    starts = np.cumsum(tokens.lengths) - tokens.lengths + tokenizer.special_tokens - tokenizer.suffix_tokens
    for index in too_long:
        ids[starts[index] : starts[index] + len(start_ids)] = start_ids
    return TokenizedTexts(ids, tokens.full_lengths, tokens.lengths)


def _with_first_tokens(
    tokenizer: TextTokenizer, around: NDArray[np.int32], prefix: str, text: str, suffix: str, max_length: int
) -> NDArray[np.int32]:
    """Puts the first tokens of a text between prefix and suffix if there is no room for a whole character.

    `around` holds the ids of prefix and suffix alone, special tokens included.
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


def fitting_start(tokenizer: TextTokenizer, prefix: str, text: str, suffix: str, max_length: int) -> str:
    """Returns as much of the start of a text as fits between prefix and suffix, cut between tokens.

    The authors of bge-en-icl also cut only the query, before they append the suffix (`get_new_queries` in "Usage" of
    https://huggingface.co/BAAI/bge-en-icl).
    """

    def excess(part: str) -> int:
        return int(tokenizer.count([prefix + part + suffix])[0]) - max_length

    size = _CHARACTERS_A_TOKEN * max_length
    part = text[:size]
    while len(part) < len(text) and excess(part) <= 0:
        size *= 2
        part = text[:size]
    # Next to the suffix, the text may have other tokens. So one cut of the surplus tokens may not be enough.
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


def fitting_part(tokenizer: TextTokenizer, prefix: str, text: str, suffix: str, max_length: int) -> str:
    """Returns as much of a text as fits between prefix and suffix: its start, or its end if the model reads that."""
    if tokenizer.truncation_side == "right":
        return fitting_start(tokenizer, prefix, text, suffix, max_length)
    part = text
    while part and (over := int(tokenizer.count([prefix + part + suffix])[0]) - max_length) > 0:
        starts = [
            start - len(prefix)
            for start, end in tokenizer.spans(prefix + part + suffix)
            if start >= len(prefix) and end <= len(prefix) + len(part)
        ]
        if over >= len(starts):
            return ""
        part = part[max(starts[over], 1) :]
    return part
