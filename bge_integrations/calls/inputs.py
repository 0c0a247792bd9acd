"""Turns the user's input into plain lists, and reports texts that cannot be encoded, by position, before any work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MappingView, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from bge_integrations.errors import InputTypeError, InputValueError
from bge_integrations.texts import about_surrogate, is_text, kind_of, lone_surrogate, plain, shortened

Item = TypeVar("Item", str, tuple[str, str])

FEW_TEXTS = 32
_FEW_CHARACTERS = 16384  # tokenised in a few milliseconds

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

    A collection is checked completely at the start. An iterator is read and checked slice by slice, so that at most one
    slice of it is in memory.

    Args:
        texts: The user's input.
        method: Name of the public method, for messages.
        size: Texts per slice.

    Returns:
        The number of texts, `None` for an iterator; and the slices.

    Raises:
        InputTypeError: Not an ordered collection, a bare `str`, a table, or an element that is not a `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 cannot encode.
    """
    if isinstance(texts, Iterator):
        return None, _checked_slices(texts, size, check_text)
    checked = check_texts(texts, method)
    return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))


def _checked_slices(items: Iterator[Item], size: int, check: Callable[[object, int], Item]) -> Iterator[list[Item]]:
    start = 0
    while part := list(islice(items, size)):
        yield [check(item, index) for index, item in enumerate(part, start)]
        start += len(part)


def check_texts(texts: Iterable[str], method: str) -> list[str]:
    """Returns the texts as a list of plain `str` that UTF-8 can encode.

    Args:
        texts: The user's input.
        method: Name of the public method, for messages.

    Raises:
        InputTypeError: Not an ordered collection, a bare `str`, a table, or an element that is not a `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 cannot encode.
    """
    return _checked_list(texts, method, _TEXTS, check_text)


def _checked_list(items: Iterable[Item], method: str, of: _Kind, check: Callable[[object, int], Item]) -> list[Item]:
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
    return [check(item, index) for index, item in enumerate(items)]


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
    if isinstance(pairs, Iterator):
        return None, _checked_slices(pairs, size, check_pair)
    checked = _checked_list(pairs, method, _PAIRS, check_pair)
    return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))


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
