"""One call of a reranker: pairs in, scores out."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import ScoringOptions
from bge_integrations.backend.text.pairs import Pair, PairTokenizer
from bge_integrations.backend.text.templates import Share
from bge_integrations.backend.text.written import write_pairs
from bge_integrations.calls.call import Call, Terms
from bge_integrations.calls.inputs import slices_of_pairs
from bge_integrations.calls.lengths import Slice


def scoring_call(
    terms: Terms, pairs: PairTokenizer, share: Share, options: ScoringOptions | None, *, normalizes: bool
) -> Call[Pair, NDArray[np.float32]]:
    """Describes a call that scores pairs.

    Args:
        terms: The terms of the call.
        pairs: The tokenizer of pairs, with the instruction before each query.
        share: The share of each pair's tokens that its texts cannot use.
        options: Further inputs of a decoder.
        normalizes: Whether the sigmoid is applied to scores.
    """
    return Call(
        terms=terms,
        cut=slices_of_pairs,
        tokenize=partial(
            partial(write_pairs, pairs) if terms.model.served else pairs.tokenize, max_length=terms.max_length
        ),
        output=partial(Scores, normalizes),
        head=terms.model.score_head,
        share=share,
        options=options,
    )


class Scores:
    """The scores of a call."""

    def __init__(self, normalizes: bool, _: int | None) -> None:
        self._normalizes = normalizes
        self._parts = [np.empty(0, dtype=np.float32)]

    def add(self, part: Slice[Pair], found: NDArray[np.float32]) -> None:
        """See `Output.add`."""
        self._parts.append(found[part.inverse])

    def value(self) -> NDArray[np.float32]:
        """Returns the scores, float32, shape [pairs]."""
        logits = np.concatenate(self._parts)
        return sigmoid(logits) if self._normalizes else logits


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns 1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    found: NDArray[np.float32] = np.where(logits >= 0, 1, small) / (1 + small)
    return found
