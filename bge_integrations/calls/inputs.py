"""Turns the user's input into plain lists, and reports texts that cannot be encoded, by position, before any work."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Sequence, Set, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

from typing_extensions import TypeIs

from bge_integrations.errors import InputTypeError, InputValueError
from bge_integrations.texts import about_surrogate, add_note, is_text, kind_of, lone_surrogate, plain, shortened

Item = TypeVar("Item", str, tuple[str, str])

FEW_TEXTS = 32
_FEW_CHARACTERS = 16384  # tokenised in a few milliseconds

_CHARACTERS_A_SLICE = 1 << 24
"""An iterable's slice with this many characters ends, so that very long texts don't fill the memory."""

_IN_MEMORY = (list, tuple, MappingView, deque)

# Attributes with a table's labels: in pandas, polars, PyArrow and Spark; in datasets; and in all mapping-like classes.
_NAMES_OF_LABELS = ("columns", "column_names", "keys")


@dataclass(frozen=True)
class _Kind:
    """The words for a kind of items in messages.

    Attributes:
        name: Plural of the items.
        of_a_table: The hint to get such a list from a table.
    """

    name: str
    of_a_table: str


_TEXTS = _Kind("texts", 'pass one column of it, such as df["text"]')
_PAIRS = _Kind("pairs (query, passage)", 'pass two columns of it, such as list(zip(df["query"], df["passage"]))')


def slices_of_texts(texts: Iterable[str], method: str, size: int) -> tuple[int | None, Iterator[list[str]]]:
    """Splits texts into slices of plain `str` that UTF-8 can encode.

    Lists, arrays and columns are checked completely at the start. What gives slices of itself, such as a column of the
    library datasets, is read a second time afterwards, so that at most one slice of it is in memory. All other
    iterables are read and checked slice by slice, and slices of very long texts are smaller.

    Args:
        texts: The user's input.
        method: Name of the public method, for messages.
        size: Texts per slice.

    Returns:
        The number of texts, `None` if it is not known; and the slices.

    Raises:
        InputTypeError: Not an ordered collection, a bare `str`, a table, or an element that is not a `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 cannot encode.
    """
    return _slices(texts, method, size, _TEXTS, check_text)


def _slices(
    items: Iterable[Item], method: str, size: int, of: _Kind, check: Callable[[object, int], Item]
) -> tuple[int | None, Iterator[list[Item]]]:
    _require_ordered(items, method, of)
    if isinstance(items, _IN_MEMORY) or _dimensions(items) == 1:
        checked = [check(item, index) for index, item in enumerate(items)]
        return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))
    if not _gives_slices(items):
        return None, _checked_slices(iter(items), size, check)
    count = len(items)
    for _ in _slices_given(items, count, size, check):
        pass
    return count, _slices_given(items, count, size, check)


def _checked_slices(items: Iterator[Item], size: int, check: Callable[[object, int], Item]) -> Iterator[list[Item]]:
    start = 0
    while part := _next_of(items, size, start):
        yield [check(item, index) for index, item in enumerate(part, start)]
        start += len(part)


def _next_of(items: Iterator[Item], size: int, start: int) -> list[Item]:
    part: list[Item] = []
    characters = 0
    try:
        for item in islice(items, size):
            part.append(item)
            characters += _characters(item)
            if characters >= _CHARACTERS_A_SLICE:
                break
    except Exception as error:
        add_note(error, f"The iterable raised it in place of item {start + len(part)}.")
        raise
    return part


def _gives_slices(items: Iterable[object]) -> TypeIs[Sequence[Any]]:
    """Whether a slice of a collection is a collection too."""
    if not (hasattr(type(items), "__getitem__") and hasattr(type(items), "__len__")):
        return False
    try:
        part = cast("Sequence[Any]", items)[:1]
    except Exception:  # it takes no slices; whatever else is wrong is seen when its items are read
        return False
    return isinstance(part, Iterable) and isinstance(part, Sized) and not is_text(part)


def _slices_given(
    items: Sequence[Item], count: int, size: int, check: Callable[[object, int], Item]
) -> Iterator[list[Item]]:
    # A slice of a column of datasets takes a hundredth of the time that its items take one by one.
    for start in range(0, count, size):
        part = [check(item, index) for index, item in enumerate(items[start : start + size], start)]
        wanted = min(size, count - start)
        if len(part) != wanted:
            raise InputValueError(
                f"{kind_of(items)} of {count} items gave {len(part)} items from {start} on, not {wanted}. Pass a list.",
                start + min(len(part), wanted),
            )
        yield part


def check_texts(texts: Iterable[str], method: str) -> list[str]:
    """Returns the texts as a list of plain `str` that UTF-8 can encode.

    Args:
        texts: The user's input.
        method: Name of the public method, for messages.

    Raises:
        InputTypeError: Not an ordered collection, a bare `str`, a table, or an element that is not a `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 cannot encode.
    """
    _require_ordered(texts, method, _TEXTS)
    return [check_text(text, index) for index, text in enumerate(texts)]


def _require_ordered(items: Iterable[object], method: str, of: _Kind) -> None:
    """Refuses what has no items, or gives labels or characters in place of them."""
    if type(items) is list:
        return
    if isinstance(items, (str, bytes, bytearray)):
        raise InputTypeError(
            f"{method} takes a list of {of.name}, but was given one {type(items).__name__}; write {method}([text])[0]."
        )
    if isinstance(items, Set) and not isinstance(items, MappingView):
        raise InputTypeError(
            f"{method} takes a list of {of.name}, but was given {kind_of(items)}, which has no order to keep; pass a "
            "list."
        )
    if _is_table(items):
        raise InputTypeError(
            f"{method} takes a list of {of.name}, but was given {kind_of(items)}, which has keys or columns; "
            f"{of.of_a_table}."
        )
    dimensions = _dimensions(items)
    if dimensions == 0:
        raise InputTypeError(
            f"{method} takes a list of {of.name}, but was given {kind_of(items)} without dimensions; pass a list."
        )
    if dimensions is not None and dimensions > 1:
        raise InputTypeError(
            f"{method} takes a list of {of.name}, but was given {kind_of(items)} of {dimensions} dimensions; "
            f"{of.of_a_table}."
        )
    if not isinstance(items, Iterable):
        raise InputTypeError(f"{method} takes a list of {of.name}, but was given {kind_of(items)}.")


def _is_table(items: object) -> bool:
    """Whether a collection has labels. Iteration may then return the labels instead of the values.

    A column of a table may have row labels, but it has one dimension, and iteration returns its values.
    """
    if isinstance(items, (list, tuple, MappingView, Iterator)) or _dimensions(items) == 1:
        return False
    # Static lookup, because in some libraries the access to columns computes something or warns.
    return isinstance(items, Mapping) or any(
        inspect.getattr_static(items, name, None) is not None for name in _NAMES_OF_LABELS
    )


def _dimensions(items: object) -> int | None:
    """Returns the number of dimensions of an array or of a part of a table; `None` for other objects."""
    dimensions = getattr(items, "ndim", None)
    return dimensions if isinstance(dimensions, int) else None


def slices_of_pairs(
    pairs: Iterable[tuple[str, str]], method: str, size: int
) -> tuple[int | None, Iterator[list[tuple[str, str]]]]:
    """Splits pairs of texts into slices; see `slices_of_texts`.

    Raises:
        InputTypeError: Not an ordered collection, a table, an element that is not a pair, or a text in a pair that is
            not a `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 cannot encode.
    """
    return _slices(pairs, method, size, _PAIRS, check_pair)


def check_pair(pair: object, index: int = 0) -> tuple[str, str]:
    """Returns a pair as a tuple of two plain `str`. Raises the errors of `slices_of_pairs`."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputTypeError(
            f"Pair {index} is {shortened(pair)}, not a query and a passage; give (query, passage).", index
        )
    query, passage = pair
    return check_text(query, index, "The query of pair"), check_text(passage, index, "The passage of pair")


def check_text(text: object, index: int = 0, what: str = "Text") -> str:
    """Returns a text as a plain `str`. Raises the errors of `check_texts`."""
    if not is_text(text):
        raise InputTypeError(
            f"{what} {index} is {kind_of(text)}, not a str: {shortened(text)}. Leave it out or convert it.", index
        )
    text = plain(text)
    position = lone_surrogate(text)
    if position is not None:
        raise InputValueError(f"{what} {index} {about_surrogate(text, position)}", index)
    return text


def are_short(items: Iterable[Any]) -> bool:
    """Whether the items are few and short enough to be processed in the event loop's thread."""
    if not isinstance(items, (list, tuple)) or len(items) > FEW_TEXTS:
        return False
    return sum(_characters(item) for item in items) <= _FEW_CHARACTERS


def _characters(item: object) -> int:
    if is_text(item):
        return len(plain(item))
    return sum(len(plain(text)) for text in item if is_text(text)) if isinstance(item, (list, tuple)) else 0
