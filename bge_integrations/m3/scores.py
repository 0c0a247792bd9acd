"""Scores from bge-m3's three outputs, and their weighted mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from bge_integrations.calls.m3 import M3Output, Wanted
from bge_integrations.errors import SettingsError

_REMEDY = "give finite weights of at least 0, three numbers with a finite sum above 0"


@dataclass(frozen=True)
class M3Weights:
    """Weights of the three scores. Each is divided by their sum. The default is the example of bge-m3's authors."""

    dense: float = 0.4
    sparse: float = 0.2
    colbert: float = 0.4

    def __post_init__(self) -> None:
        """Checks that the weights are finite, not negative, and not all 0."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, self._number(field.name, getattr(self, field.name)))
        total = self.dense + self.sparse + self.colbert
        if min(self.dense, self.sparse, self.colbert) < 0 or not 0 < total < np.inf:
            raise SettingsError(f"{self} can't be used; {_REMEDY}.")

    def _number(self, name: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, Real) else np.nan
        except OverflowError:  # a whole number that no float holds
            number = np.inf
        if not np.isfinite(number):
            raise SettingsError(f"{self} can't be used: {name}={value!r} is no finite number; {_REMEDY}.")
        return number

    @property
    def wanted(self) -> Wanted:
        """The outputs with a weight above 0."""
        return Wanted(self.dense > 0, self.sparse > 0, self.colbert > 0)

    @classmethod
    def read(cls, weights: M3Weights | Sequence[float] | None) -> M3Weights:
        """Returns the weights for an argument: weights, three numbers, or `None` for the default.

        Raises:
            SettingsError: The argument is something else, or its weights can't be used.
        """
        if weights is None or isinstance(weights, M3Weights):
            return weights or cls()
        if not isinstance(weights, (list, tuple)) or len(weights) != len(dataclasses.fields(cls)):
            raise SettingsError(f"weights={weights!r} must be three numbers: dense, sparse, colbert.")
        return cls(*weights)


def lexical_score(query: Mapping[int, float], document: Mapping[int, float]) -> float:
    """Returns the sum, over the tokens that both texts have, of the products of the two weights."""
    return sum(weight * document[token] for token, weight in query.items() if token in document)


def colbert_score(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """Returns the mean, over the query's token vectors, of the greatest inner product with a document's token vector.

    Args:
        query: Token vectors of shape [tokens of the query, dimension].
        document: Token vectors of shape [tokens of the document, dimension].
    """
    return float((query @ document.T).max(axis=1).mean())


def mixed(weights: M3Weights, query: M3Output, passages: M3Output) -> NDArray[np.float32]:
    """Returns the mixed scores of one query with every passage, shape [passages]."""
    return _mixed(weights, query, passages, lambda _: 0)


def mixed_pairs(weights: M3Weights, queries: M3Output, passages: M3Output) -> NDArray[np.float32]:
    """Returns the mixed score of each query with the passage at the same place, shape [queries]."""
    return _mixed(weights, queries, passages, lambda place: place)


def _mixed(
    weights: M3Weights, queries: M3Output, passages: M3Output, query_of: Callable[[int], int]
) -> NDArray[np.float32]:
    """Returns weighted means of the scores, as `compute_score` of FlagEmbedding's `M3Embedder`.

    Args:
        weights: Weights of the three scores.
        queries: Outputs of the queries.
        passages: Outputs of the passages.
        query_of: Function from a passage's place to the place of its query.
    """
    count = next(len(part) for part in (passages.dense, passages.sparse, passages.colbert) if part is not None)
    pairs = [(query_of(place), place) for place in range(count)]
    total = np.zeros(count, dtype=np.float64)
    if queries.dense is not None and passages.dense is not None:
        total += weights.dense * np.einsum("pd,pd->p", queries.dense[[one for one, _ in pairs]], passages.dense)
    if queries.sparse is not None and passages.sparse is not None:
        total += weights.sparse * np.array(
            [lexical_score(queries.sparse[one], passages.sparse[other]) for one, other in pairs]
        )
    if queries.colbert is not None and passages.colbert is not None:
        total += weights.colbert * np.array(
            [colbert_score(queries.colbert[one], passages.colbert[other]) for one, other in pairs]
        )
    return (total / (weights.dense + weights.sparse + weights.colbert)).astype(np.float32)
