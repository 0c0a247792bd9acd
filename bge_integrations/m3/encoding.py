"""One call of bge-m3: texts in, any of its three outputs out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Head, TokenBatch
from bge_integrations.backend.heads import M3Row, m3_rows, unit_rows
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.backend.truncation import Share, tokenize_within
from bge_integrations.calling import Call, CallTerms, Slice
from bge_integrations.errors import SettingsError
from bge_integrations.validation import slices_of_texts

LexicalWeights = dict[int, float]
"""Weights above 0 by token id."""


@dataclass(frozen=True, eq=False)
class M3Output:
    """What bge-m3 says of some texts. Parts that were not asked for are None.

    Attributes:
        dense: float32, shape [texts, dimension], rows of length 1.
        sparse: Lexical weights of each text.
        colbert: For each text a float32 array of shape [tokens - 1, dimension], rows of length 1: all its tokens but
            the first.
    """

    dense: NDArray[np.float32] | None = None
    sparse: list[LexicalWeights] | None = None
    colbert: list[NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Wanted:
    """Which of the outputs are asked for."""

    dense: bool
    sparse: bool
    colbert: bool

    def __post_init__(self) -> None:
        """Refuses to compute nothing."""
        if not (self.dense or self.sparse or self.colbert):
            raise SettingsError("dense, sparse and colbert are all False, which leaves nothing to compute.")


class M3Call(Call[str, M3Output]):
    """Encodes the texts of one call."""

    def __init__(self, terms: CallTerms, wanted: Wanted, instruction: str) -> None:
        """Takes what was decided before the texts are looked at.

        Args:
            terms: As for every call.
            wanted: Which outputs are asked for.
            instruction: Text before each text.
        """
        super().__init__(terms)
        self._wanted = wanted
        self._instruction = instruction
        self._dense = [np.empty((0, terms.model.facts.dimension), dtype=np.float32)]
        self._sparse: list[LexicalWeights] = []
        self._colbert: list[NDArray[np.float32]] = []

    def _slices(self, items: Iterable[str], method: str, size: int) -> tuple[int | None, Iterator[list[str]]]:
        return slices_of_texts(items, method, size)

    def _tokenize(self, items: Sequence[str]) -> TokenizedTexts:
        return tokenize_within(self.model.tokenizer, self._instruction, items, "", self._max_length)

    @property
    def _share(self) -> Share:
        return self.model.share(self._instruction)

    @property
    def _prompt_length(self) -> int:
        return self.model.prompt_length(self._instruction)

    def _start(self, count: int | None) -> None:
        pass

    def _room(self, count: int) -> NDArray[np.generic]:
        return np.empty(count, dtype=object)

    @property
    def _head(self) -> Head:
        return self._rows

    def _rows(self, batch: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.object_]:
        return m3_rows(
            self.model.heads,
            batch,
            rows,
            self.model.vectors(batch, rows),
            sparse=self._wanted.sparse,
            colbert=self._wanted.colbert,
        )

    def _is_finite(self, found: NDArray[np.object_]) -> NDArray[np.bool_]:
        return np.array([row.is_finite for row in found], dtype=bool)

    def _keep(self, part: Slice[str], found: NDArray[np.object_]) -> None:
        rows: list[M3Row] = list(found)
        if self._wanted.dense:
            self._dense.append(unit_rows(np.stack([row.dense for row in rows]))[part.inverse])
        if self._wanted.sparse:
            unweighted = frozenset(self.model.facts.unweighted_ids)
            weights = [_lexical(row, unweighted) for row in rows]
            self._sparse += [dict(weights[place]) for place in part.inverse]
        if self._wanted.colbert:
            self._colbert += _own_arrays(rows, part.inverse.tolist())

    def _finished(self) -> M3Output:
        return M3Output(
            np.concatenate(self._dense) if self._wanted.dense else None,
            self._sparse if self._wanted.sparse else None,
            self._colbert if self._wanted.colbert else None,
        )


def _own_arrays(rows: Sequence[M3Row], places: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """Yields the token vectors of the text at each place, in memory that no other text shares."""
    given: set[int] = set()
    for place in places:
        vectors = rows[place].colbert
        if vectors is not None:
            yield vectors.copy() if place in given else vectors
            given.add(place)


def _lexical(row: M3Row, unweighted: frozenset[int]) -> LexicalWeights:
    """Keeps the greatest weight of each token but those that have none; see `ModelFacts.unweighted_ids`."""
    found: LexicalWeights = {}
    if row.token_weights is not None:
        for token, weight in zip(row.token_ids.tolist(), row.token_weights.tolist(), strict=True):
            if weight > found.get(token, 0) and token not in unweighted:
                found[token] = weight
    return found
