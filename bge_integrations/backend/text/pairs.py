"""From pairs of a query and a passage to token ids, for rerankers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.text.templates import Share, fitting_part, fitting_start, share_of
from bge_integrations.backend.text.tokenizer import Side, TextTokenizer, TokenizedTexts

Pair = tuple[str, str]
"""A query and a passage."""

_Ids = NDArray[np.int32]


@dataclass(frozen=True)
class PairLayout:
    """The tokens around the two texts of a pair.

    Attributes:
        before: Ids before the query.
        between: Ids between query and passage.
        after: Ids after the passage.
        query_mark: Text before the query, tokenised together with the query.
        passage_mark: Text before the passage, tokenised together with the passage.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    query_mark: str = ""
    passage_mark: str = ""

    @property
    def tokens(self) -> int:
        """Number of ids before, between and after the texts."""
        return len(self.before) + len(self.between) + len(self.after)


def layout_of_encoder(tokenizer: TextTokenizer) -> PairLayout:
    """Returns a tokenizer's special tokens around a pair."""
    sample = tokenizer.sample_pair()
    ids, texts = sample.ids, np.flatnonzero(~sample.is_special)
    # The sample's two texts are equal, so each has half of the other tokens.
    half = len(texts) // 2
    first_end, second_start = int(texts[half - 1]) + 1, int(texts[half])
    return PairLayout(tuple(ids[: texts[0]]), tuple(ids[first_end:second_start]), tuple(ids[int(texts[-1]) + 1 :]))


class PairTokenizer:
    """Tokenises pairs. The query is kept whole, and the passage is cut to the remaining room."""

    def __init__(self, tokenizer: TextTokenizer, layout: PairLayout, instruction: str = "") -> None:
        """Takes the model's tokenizer, the tokens around its texts, and the text before each query."""
        self._tokenizer = tokenizer
        self.layout = layout
        self._before_query = layout.query_mark + instruction
        self.instruction = instruction

    def share(self, uncounted_tokens: int = 0) -> Share:
        """Returns the share of a pair's tokens that its two texts cannot use.

        Args:
            uncounted_tokens: Tokens of the layout that `max_length` does not count.
        """
        mark, start = self._length(self.layout.query_mark), self._length(self._before_query)
        return Share(
            instruction=self.instruction,
            instruction_tokens=start - mark,
            fixed_tokens=self.layout.tokens + mark + self._start_of_passage,
            uncounted_tokens=uncounted_tokens,
            texts=2,
        )

    def tokenize(self, pairs: Sequence[Pair], max_length: int) -> TokenizedTexts:
        """Turns pairs into ids. Each distinct text is tokenised once.

        A query is cut only if it leaves no room for the passage. It keeps three quarters of the room for both, as in
        FlagEmbedding's rerankers, but at least the instruction and half of the room after it.

        Args:
            pairs: At least one pair.
            max_length: Maximum number of tokens per pair, special tokens included; at least `Share.least` of `share`.
        """
        layout = self.layout
        queries = self._contents([self._before_query + query for query, _ in pairs])
        passages = self._contents([layout.passage_mark + passage for _, passage in pairs])
        room = max_length - layout.tokens
        least, most = self._start_of_passage + 1, self._most_of_query(room)
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

    def cut(self, pair: Pair, max_length: int) -> Pair:
        """Returns a pair over the limit as texts that fit, the query with its instruction; see `tokenize`."""
        (query, passage), special = pair, self._tokenizer.special_tokens
        room = max_length - self.layout.tokens
        asked, answer = self._contents([self._before_query + query, passage])
        if len(asked) + min(len(answer), self._start_of_passage + 1) > room:
            query = fitting_start(self._tokenizer, self._before_query, query, "", self._most_of_query(room) + special)
            asked = self._contents([self._before_query + query])[0]
        return self._before_query + query, fitting_part(self._tokenizer, "", passage, "", room - len(asked) + special)

    def _most_of_query(self, room: int) -> int:
        """Returns the most tokens of a query that is cut."""
        start, least = self._length(self._before_query), self._start_of_passage + 1
        return min(max(room * 3 // 4, start + (room - start - least + 1) // 2), room - least)

    def _contents(self, texts: Sequence[str]) -> list[_Ids]:
        distinct = dict.fromkeys(texts)
        contents = dict(zip(distinct, self._tokenizer.contents(list(distinct)), strict=True))
        return [contents[text] for text in texts]

    @property
    def _start_of_passage(self) -> int:
        """Tokens at the start of a passage without content: the passage mark, or the mark of its first word.

        In some tokenizers the mark of a word is its own token. Without an instruction, this mark is not counted: then
        only special tokens determine the minimum of `max_length`.
        """
        return self._length(self.layout.passage_mark) or (self._tokenizer.word_marks if self.instruction else 0)

    def _length(self, start: str) -> int:
        """Returns the tokens of a text that stands before another text."""
        return share_of(self._tokenizer, start).instruction_tokens


def _cut(ids: _Ids, room: int, side: Side, mark: int) -> _Ids:
    """Cuts a passage to `room` tokens, but keeps its mark."""
    if len(ids) <= room:
        return ids
    return np.concatenate([ids[:mark], ids[len(ids) - room + mark :]]) if side == "left" else ids[:room]
