"""One call of bge-m3: texts in, any of its three outputs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Head, OutputChoice, TokenBatch
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.heads import M3Row, m3_rows, unit_rows
from bge_integrations.backend.text.templates import Frame
from bge_integrations.backend.text.tokenizer import TokenizedTexts
from bge_integrations.backend.text.written import write_within
from bge_integrations.calls.call import Call, Terms
from bge_integrations.calls.inputs import slices_of_texts
from bge_integrations.calls.lengths import Slice
from bge_integrations.errors import SettingsError

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel

LexicalWeights = dict[int, float]
"""Weights above 0 by token id."""


@dataclass(frozen=True, eq=False)
class M3Output:
    """The outputs of bge-m3 for some texts. Outputs that were not requested are `None`.

    Attributes:
        dense: One vector per text, float32, shape [texts, dimension], rows with L2 norm 1.
        sparse: Lexical weights of each text.
        colbert: One array per text, float32, shape [tokens - 1, dimension], rows with L2 norm 1. It has a row for each
            token except the first.
    """

    dense: NDArray[np.float32] | None = None
    sparse: list[LexicalWeights] | None = None
    colbert: list[NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Wanted:
    """The requested outputs."""

    dense: bool
    sparse: bool
    colbert: bool

    def __post_init__(self) -> None:
        """Checks that at least one output is requested."""
        if not (self.dense or self.sparse or self.colbert):
            raise SettingsError("dense, sparse and colbert are all False; set at least one of them to True.")


def m3_call(terms: Terms, wanted: Wanted, instruction: str) -> Call[str, M3Output]:
    """Describes a call that encodes texts.

    Args:
        terms: The terms of the call.
        wanted: The requested outputs.
        instruction: Text before each text.
    """
    model, options = terms.model, None
    frame = Frame(model.tokenizer, instruction, "", terms.max_length)
    tokenize: Callable[[Sequence[str]], TokenizedTexts] = frame.tokenize
    rows: Callable[[TokenBatch, NDArray[np.float32]], NDArray[np.object_]] = partial(_rows_of, model, wanted)
    if model.served:
        require_served(model.request.endpoint, wanted)
        tokenize, rows = partial(write_within, frame, cuts_at=model.served.cuts_at), _served_rows
        options = OutputChoice(dense=wanted.dense, sparse=wanted.sparse)
    return Call(
        terms=terms,
        cut=slices_of_texts,
        tokenize=tokenize,
        output=partial(M3Rows, model.facts, wanted),
        head=Head(rows, _room, _are_finite),
        share=model.share(instruction),
        prompt_length=model.prompt_length(instruction),
        options=options,
    )


def require_served(endpoint: str | None, wanted: Wanted) -> None:
    """Refuses token vectors from a server.

    Args:
        endpoint: Address of the server; `None` for a model in this process.
        wanted: The requested outputs.
    """
    if endpoint is not None and wanted.colbert:
        raise SettingsError(
            f"{endpoint} can't give token vectors: no server has a route for them. Pass colbert=False, "
            "or weights of 0 for the token-wise score; or load the model in this process, without endpoint."
        )


def _served_rows(_: TokenBatch, rows: NDArray[Any]) -> NDArray[np.object_]:
    """Returns a row for each `ServedM3` of the engine that asks a server."""
    found = _room(len(rows))
    for place, row in enumerate(rows):
        found[place] = M3Row(row.dense, row.token_ids, row.token_weights, None)
    return found


def _rows_of(model: LoadedModel, wanted: Wanted, batch: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.object_]:
    pooled = model.vectors(batch, rows)
    return m3_rows(model.heads, batch, rows, pooled, sparse=wanted.sparse, colbert=wanted.colbert)


def _room(count: int) -> NDArray[np.object_]:
    return np.empty(count, dtype=object)


def _are_finite(found: NDArray[np.object_]) -> NDArray[np.bool_]:
    return np.array([row.is_finite for row in found], dtype=bool)


class M3Rows:
    """The collected outputs of a call."""

    def __init__(self, facts: ModelFacts, wanted: Wanted, _: int | None) -> None:
        self._wanted = wanted
        self._unweighted = frozenset(facts.unweighted_ids)
        self._dense = [np.empty((0, facts.dimension), dtype=np.float32)]
        self._sparse: list[LexicalWeights] = []
        self._colbert: list[NDArray[np.float32]] = []

    def add(self, part: Slice[str], found: NDArray[np.object_]) -> None:
        """See `Output.add`."""
        rows: list[M3Row] = list(found)
        if self._wanted.dense:
            self._dense.append(unit_rows(np.stack([row.dense for row in rows]))[part.inverse])
        if self._wanted.sparse:
            weights = [_lexical(row, self._unweighted) for row in rows]
            self._sparse += [dict(weights[place]) for place in part.inverse]
        if self._wanted.colbert:
            self._colbert += _own_arrays(rows, part.inverse.tolist())

    def value(self) -> M3Output:
        """See `Output.value`."""
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
    """Returns the greatest weight of each token, without the tokens of `ModelFacts.unweighted_ids`."""
    found: LexicalWeights = {}
    if row.token_weights is not None:
        for token, weight in zip(row.token_ids.tolist(), row.token_weights.tolist(), strict=True):
            if weight > found.get(token, 0) and token not in unweighted:
                found[token] = weight
    return found
