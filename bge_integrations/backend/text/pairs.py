"""Pairs of a query and a passage to token ids, as rerankers read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.text.templates import Share, share_of
from bge_integrations.backend.text.tokenizer import Side, TextTokenizer, TokenizedTexts

Pair = tuple[str, str]
"""A query and a passage."""

_Ids = NDArray[np.int32]


@dataclass(frozen=True)
class PairLayout:
    """What stands around the two texts of a pair.

    Attributes:
        before: Ids before the query.
        between: Ids between query and passage.
        after: Ids after the passage.
        query_mark: Text before the query, tokenised with it.
        passage_mark: The same for the passage.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    query_mark: str = ""
    passage_mark: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that are no part of either text."""
        return len(self.before) + len(self.between) + len(self.after)


def layout_of_encoder(tokenizer: TextTokenizer) -> PairLayout:
    """Returns where a tokenizer puts its special tokens around a pair."""
    sample = tokenizer.sample_pair()
    ids, texts = sample.ids, np.flatnonzero(~sample.is_special)
    # The sample's texts are equal, so that half of what is left is the first.
    half = len(texts) // 2
    first_end, second_start = int(texts[half - 1]) + 1, int(texts[half])
    return PairLayout(tuple(ids[: texts[0]]), tuple(ids[first_end:second_start]), tuple(ids[int(texts[-1]) + 1 :]))


class PairTokenizer:
    """Tokenises pairs: the query whole, the passage cut to what is left."""

    def __init__(self, tokenizer: TextTokenizer, layout: PairLayout, instruction: str = "") -> None:
        """Takes what stands around the texts.

        Args:
            tokenizer: Of the model.
            layout: What the model wants.
            instruction: Text before each query.
        """
        self._tokenizer = tokenizer
        self.layout = layout
        self._before_query = layout.query_mark + instruction
        self._instruction = instruction

    def share(self, uncounted_tokens: int = 0) -> Share:
        """Measures what is taken of each pair's tokens beside its texts.

        Args:
            uncounted_tokens: Those of the layout that `max_length` doesn't count.
        """
        mark, start = self._length(self.layout.query_mark), self._length(self._before_query)
        return Share(
            instruction=self._instruction,
            instruction_tokens=start - mark,
            fixed_tokens=self.layout.tokens + mark + self._start_of_passage,
            uncounted_tokens=uncounted_tokens,
            texts=2,
        )

    def tokenize(self, pairs: Sequence[Pair], max_length: int) -> TokenizedTexts:
        """Turns pairs into ids, each distinct text tokenised once.

        A query is cut only if it would leave no room for the passage: to three quarters of the room for both, as
        FlagEmbedding's rerankers cut theirs, but never to less than the instruction and half of what that leaves.

        Args:
            pairs: At least one.
            max_length: Tokens per pair, special tokens included; at least `Share.least` of `share`.
        """
        layout = self.layout
        queries = self._contents([self._before_query + query for query, _ in pairs])
        passages = self._contents([layout.passage_mark + passage for _, passage in pairs])
        room = max_length - layout.tokens
        start, least = self._length(self._before_query), self._start_of_passage + 1
        most = min(max(room * 3 // 4, start + (room - start - least + 1) // 2), room - least)
        mark = self._length(layout.passage_mark)
        before, between, after = (
            np.array(part, dtype=np.int32) for part in (layout.before, layout.between, layout.after)
        )
        parts: list[_Ids] = []
        full_lengths, lengths, first_lengths = (np.empty(len(pairs), dtype=np.int64) for _ in range(3))
        for index, (query, passage) in enumerate(zip(queries, passages, strict=True)):
            fits = len(query) + min(len(passage), least) <= room
            kept = query if fits else query[:most]
            cut = _cut(passage, room - len(kept), self._tokenizer.truncation_side, mark)
            parts += (before, kept, between, cut, after)
            full_lengths[index] = layout.tokens + len(query) + len(passage)
            first_lengths[index] = len(before) + len(kept) + len(between)
            lengths[index] = first_lengths[index] + len(cut) + len(after)
        return TokenizedTexts(np.concatenate(parts), full_lengths, lengths, first_lengths)

    def _contents(self, texts: Sequence[str]) -> list[_Ids]:
        distinct = dict.fromkeys(texts)
        contents = dict(zip(distinct, self._tokenizer.contents(list(distinct)), strict=True))
        return [contents[text] for text in texts]

    @property
    def _start_of_passage(self) -> int:
        """Tokens of a passage that say nothing of it: the mark before it, or that of its first word.

        Some tokenizers have the latter as a token of its own. Without an instruction the least `max_length` is as
        special tokens alone want it.
        """
        return self._length(self.layout.passage_mark) or (self._tokenizer.word_marks if self._instruction else 0)

    def _length(self, start: str) -> int:
        """Tokens of what stands before a text."""
        return share_of(self._tokenizer, start).instruction_tokens


def _cut(ids: _Ids, room: int, side: Side, mark: int) -> _Ids:
    """Cuts a passage, but not its mark."""
    if len(ids) <= room:
        return ids
    return np.concatenate([ids[:mark], ids[len(ids) - room + mark :]]) if side == "left" else ids[:room]
