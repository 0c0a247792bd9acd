"""One call of an encoder: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Head, TokenBatch
from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.backend.text.templates import Frame
from bge_integrations.backend.text.written import write_within
from bge_integrations.calls.call import Call, Few, Terms
from bge_integrations.calls.inputs import check_text, slices_of_texts
from bge_integrations.calls.lengths import Slice
from bge_integrations.catalogue.instructions import Instruction

if TYPE_CHECKING:
    from bge_integrations.backend.loading.model import LoadedModel

_FIRST_ROWS = 1024


def embedding_call(
    terms: Terms, instruction: Instruction, *, dimension: int, normalizes: bool
) -> Call[str, NDArray[np.float32]]:
    """Describes a call that encodes texts.

    Args:
        terms: The terms of the call.
        instruction: The text around each text.
        dimension: Length of the vectors.
        normalizes: Whether the vectors get unit length.
    """
    model = terms.model
    served = model.served
    frame = Frame(model.tokenizer, instruction.prefix, instruction.suffix, terms.max_length)
    return Call(
        terms=terms,
        cut=slices_of_texts,
        tokenize=partial(write_within, frame, cuts_at=served.cuts_at) if served else frame.tokenize,
        output=partial(Vectors, dimension, normalizes),
        head=model.vector_head,
        share=model.share(instruction.prefix, instruction.suffix),
        prompt_length=model.prompt_length(instruction.prefix),
        few=None if served else Few(frame, _finishing_head(model, dimension, normalizes)),
    )


def _finishing_head(model: LoadedModel, dimension: int, normalizes: bool) -> Head:
    """Returns a head whose results are what the caller gets. A vector that is not finite becomes NaN."""
    is_finite = model.vector_head.is_finite

    def apply(batch: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        found = model.vectors(batch, rows)
        finite = is_finite(found)
        if not finite.all():
            found = np.where(finite[:, None], found, np.float32(np.nan))
        return _finished(found, dimension, normalizes)

    return Head(apply, lambda count: np.empty((count, dimension), dtype=np.float32), is_finite)


def handing(
    call: Call[str, NDArray[np.float32]],
    take: Callable[[NDArray[np.float32]], None],
    expect: Callable[[int | None], None] = lambda _: None,
    *,
    dimension: int,
    normalizes: bool,
) -> Call[str, None]:
    """Returns a call that hands the vectors on, slice by slice, and keeps none.

    Args:
        call: What `embedding_call` returns.
        take: Function that gets the vectors of each slice, in their order.
        expect: Function that gets the number of texts before any work is done; `None` if it is not known.
        dimension: Length of the vectors.
        normalizes: Whether the vectors get unit length.
    """

    def output(count: int | None) -> _Handed:
        expect(count)
        return _Handed(dimension, normalizes, take)

    return Call(
        terms=call.terms,
        cut=call.cut,
        tokenize=call.tokenize,
        output=output,
        head=call.head,
        share=call.share,
        prompt_length=call.prompt_length,
    )


def in_slices(call: Call[str, None], slices: Iterable[Sequence[str]]) -> Call[str, None]:
    """Returns a call that computes given slices, each in batches of its own.

    Args:
        call: What `handing` returns.
        slices: Texts, at least one a slice. The next slice is read while one is computed and another one waits.
    """

    def cut(_texts: Iterable[str], _method: str, _size: int) -> tuple[None, Iterator[list[str]]]:
        return None, _checked(slices)

    return replace(call, terms=replace(call.terms, separate_slices=True), cut=cut)


def _checked(slices: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    start = 0
    for part in slices:
        yield [check_text(text, index) for index, text in enumerate(part, start)]
        start += len(part)


class _Handed:
    """Hands the vectors of each slice on, and keeps none."""

    def __init__(self, dimension: int, normalizes: bool, take: Callable[[NDArray[np.float32]], None]) -> None:
        self._dimension = dimension
        self._normalizes = normalizes
        self._take = take

    def add(self, part: Slice[str], found: NDArray[np.float32]) -> None:
        """See `Output.add`."""
        kept = _finished(found, self._dimension, self._normalizes)
        self._take(kept if part.is_distinct else kept[part.inverse])

    def value(self) -> None:
        """Returns nothing: all vectors were handed on."""


def _finished(found: NDArray[np.float32], dimension: int, normalizes: bool) -> NDArray[np.float32]:
    kept = found[:, :dimension]
    return unit_rows(kept) if normalizes else kept


class Vectors:
    """The vectors of a call in one array. The array grows if the number of vectors is not known."""

    def __init__(self, dimension: int, normalizes: bool, count: int | None) -> None:
        """Allocates the array for `count` vectors; `None`: the number is not known."""
        self._normalizes = normalizes
        self._grows = count is None
        self._rows = np.empty((_FIRST_ROWS if count is None else count, dimension), dtype=np.float32)
        self._used = 0

    def add(self, part: Slice[str], found: NDArray[np.float32]) -> None:
        """See `Output.add`."""
        target = self._next(part.count)
        kept = _finished(found, self._rows.shape[1], self._normalizes)
        if part.is_distinct:
            target[:] = kept
        else:
            np.take(kept, part.inverse, axis=0, out=target)

    def value(self) -> NDArray[np.float32]:
        """Returns the vectors, float32, shape [texts, dimension]."""
        if self._used < len(self._rows):
            self._rows.resize((self._used, self._rows.shape[1]), refcheck=False)
        return self._rows

    def _next(self, count: int) -> NDArray[np.float32]:
        """Returns the next `count` unused rows."""
        start, self._used = self._used, self._used + count
        if self._grows and self._used > len(self._rows):
            # `resize` moves the memory without a copy if the system can. No view of the array exists here.
            self._rows.resize((max(self._used, 2 * len(self._rows)), self._rows.shape[1]), refcheck=False)
        return self._rows[start : self._used]
