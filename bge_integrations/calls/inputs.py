"""Makes plain lists of what a user passed; refuses texts that can't be encoded, by position, before any work."""

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

# Where tables have their labels: those of pandas, polars, PyArrow, Spark; of datasets; and all that are like mappings.
_NAMES_OF_LABELS = ("columns", "column_names", "keys")


@dataclass(frozen=True)
class _Kind:
    """What a list is of, in words.

    Attributes:
        name: In the plural.
        of_a_table: How to get such a list of a table.
    """

    name: str
    of_a_table: str


_TEXTS = _Kind("texts", 'pass one column of it, such as df["text"]')
_PAIRS = _Kind("pairs (query, passage)", 'pass two columns of it, such as list(zip(df["query"], df["passage"]))')


def slices_of_texts(texts: Iterable[str], method: str, size: int) -> tuple[int | None, Iterator[list[str]]]:
    """Cuts texts into slices, every text of them a plain `str` that is fit for a tokenizer.

    A collection is checked as a whole before anything is returned. An iterator is read slice by slice, so that no more
    than a slice of it is in memory, and each slice is checked when it is read.

    Args:
        texts: What a user passed.
        method: The public method, for the message.
        size: Texts in a slice.

    Returns:
        How many texts there are, None if that can't be known yet; and the slices.

    Raises:
        InputTypeError: A bare `str`, something that is no ordered collection, a table, or an element that is no `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 has no bytes for.
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
    """Returns the texts as a list of plain `str`, every one of them fit for a tokenizer.

    Args:
        texts: What a user passed.
        method: The public method, for the message.

    Raises:
        InputTypeError: A bare `str`, something that is no ordered collection, a table, or an element that is no `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 has no bytes for.
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
    """Whether a collection has labels, which it may be iterated over by instead of what it holds.

    A column of a table may have labels of its rows, but it has one dimension, and gives its values.
    """
    if isinstance(items, (list, tuple, MappingView, Iterator)) or _dimensions(items) == 1:
        return False
    # Statically, since some libraries compute something, or warn, when they are asked for their columns.
    return isinstance(items, Mapping) or any(
        inspect.getattr_static(items, name, None) is not None for name in _NAMES_OF_LABELS
    )


def _dimensions(items: object) -> int | None:
    """Returns how many dimensions an array, or a part of a table, says that it has; None for anything else."""
    dimensions = getattr(items, "ndim", None)
    return dimensions if isinstance(dimensions, int) else None


def slices_of_pairs(
    pairs: Iterable[tuple[str, str]], method: str, size: int
) -> tuple[int | None, Iterator[list[tuple[str, str]]]]:
    """Cuts pairs of texts into slices; as `slices_of_texts`.

    Raises:
        InputTypeError: No ordered collection, a table, an element that is no pair, or a text in it that is no `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 has no bytes for.
    """
    if isinstance(pairs, Iterator):
        return None, _checked_slices(pairs, size, check_pair)
    checked = _checked_list(pairs, method, _PAIRS, check_pair)
    return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))


def check_pair(pair: object, index: int = 0) -> tuple[str, str]:
    """Returns a pair as a tuple of plain texts; refuses what is none. See `slices_of_pairs`."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputTypeError(
            f"Pair {index} is {shortened(pair)}, not a query and a passage; give (query, passage).", index
        )
    query, passage = pair
    return check_text(query, index, "The query of pair"), check_text(passage, index, "The passage of pair")


def check_text(text: object, index: int = 0, what: str = "Text") -> str:
    """Returns a text as a plain `str`, itself if it is one; refuses what is none. See `check_texts`."""
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
    """Whether these are so few and so short that their processing need not leave the event loop's thread."""
    if not isinstance(items, (list, tuple)) or len(items) > FEW_TEXTS:
        return False
    return sum(_characters(item) for item in items) <= _FEW_CHARACTERS


def _characters(item: object) -> int:
    if is_text(item):
        return len(plain(item))
    return sum(len(plain(text)) for text in item if is_text(text)) if isinstance(item, (list, tuple)) else 0
