"""One call of a reranker: pairs in, scores out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines import Head, ScoringOptions
from bge_integrations.backend.pairs import Pair, PairTokenizer
from bge_integrations.backend.tokenization import TokenizedTexts
from bge_integrations.backend.truncation import Share
from bge_integrations.calling import Call, CallTerms, Slice
from bge_integrations.validation import slices_of_pairs


class ScoringCall(Call[Pair, NDArray[np.float32]]):
    """Scores the pairs of one call."""

    def __init__(
        self,
        terms: CallTerms,
        tokenizer: PairTokenizer,
        share: Share,
        options: ScoringOptions | None,
        *,
        normalizes: bool,
    ) -> None:
        """Takes what was decided before the pairs are looked at.

        Args:
            terms: As for every call.
            tokenizer: Of pairs, with the instruction before each query.
            share: What is taken of each pair's tokens beside its texts.
            options: For decoders.
            normalizes: Whether scores go through the sigmoid.
        """
        super().__init__(terms)
        self._tokenizer = tokenizer
        self._decoder_options = options
        self._share_of_pairs = share
        self._normalizes = normalizes
        self._scores: list[NDArray[np.float32]] = []

    def _slices(self, items: Iterable[Pair], method: str, size: int) -> tuple[int | None, Iterator[list[Pair]]]:
        return slices_of_pairs(items, method, size)

    def _tokenize(self, items: Sequence[Pair]) -> TokenizedTexts:
        return self._tokenizer.tokenize(items, self._max_length)

    @property
    def _share(self) -> Share:
        return self._share_of_pairs

    def _start(self, count: int | None) -> None:
        pass

    def _room(self, count: int) -> NDArray[np.generic]:
        return np.empty(count, dtype=np.float32)

    @property
    def _head(self) -> Head:
        return self.model.scores

    @property
    def _options(self) -> ScoringOptions | None:
        return self._decoder_options

    def _is_finite(self, found: NDArray[np.float32]) -> NDArray[np.bool_]:
        return np.isfinite(found)

    def _keep(self, part: Slice[Pair], found: NDArray[np.float32]) -> None:
        self._scores.append(found[part.inverse])

    def _finished(self) -> NDArray[np.float32]:
        logits = np.concatenate([np.empty(0, dtype=np.float32), *self._scores])
        return sigmoid(logits) if self._normalizes else logits


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 / (1 + exp(-x)), computed so that nothing overflows."""
    small = np.exp(-np.abs(logits))
    found: NDArray[np.float32] = np.where(logits >= 0, 1, small) / (1 + small)
    return found
