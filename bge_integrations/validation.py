"""Refuses texts that can't be encoded, by their position, before any work is done on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice
from typing import TypeVar

from bge_integrations.errors import InputTypeError, InputValueError

Item = TypeVar("Item", str, tuple[str, str])


def slices_of_texts(texts: Iterable[str], method: str, size: int) -> tuple[int | None, Iterator[list[str]]]:
    """Cuts texts into slices, every text of them fit for a tokenizer.

    A collection is checked as a whole before anything is returned. An iterator is read slice by slice, so that no more
    than a slice of it is in memory, and each slice is checked when it is read.

    Args:
        texts: What a user passed.
        method: The public method, for the message.
        size: Texts in a slice.

    Returns:
        How many texts there are, None if that can't be known yet; and the slices.

    Raises:
        InputTypeError: A bare `str`, something that is no ordered collection, or an element that is no `str`.
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
    """Returns the texts as a list, every one of them fit for a tokenizer.

    Args:
        texts: What a user passed.
        method: The public method, for the message.

    Raises:
        InputTypeError: A bare `str`, something that is no ordered collection, or an element that is no `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 has no bytes for.
    """
    return _checked_list(texts, method, "texts", check_text)


def _checked_list(items: Iterable[Item], method: str, what: str, check: Callable[[object, int], Item]) -> list[Item]:
    if isinstance(items, (str, bytes, bytearray)):
        raise InputTypeError(
            f"{method} takes a list of {what}, but was given one {type(items).__name__}; write {method}([text])[0]."
        )
    if isinstance(items, (Set, Mapping)):
        raise InputTypeError(
            f"{method} takes a list of {what}, but was given a {type(items).__name__}, which has no order to keep; "
            "pass a list."
        )
    if not isinstance(items, Iterable):
        raise InputTypeError(f"{method} takes a list of {what}, but was given a {type(items).__name__}.")
    return [check(item, index) for index, item in enumerate(items)]


def slices_of_pairs(
    pairs: Iterable[tuple[str, str]], method: str, size: int
) -> tuple[int | None, Iterator[list[tuple[str, str]]]]:
    """Cuts pairs of texts into slices; as `slices_of_texts`.

    Raises:
        InputTypeError: No ordered collection, an element that is no pair, or a text in it that is no `str`.
        InputValueError: A text with a lone surrogate, which UTF-8 has no bytes for.
    """
    if isinstance(pairs, Iterator):
        return None, _checked_slices(pairs, size, check_pair)
    checked = _checked_list(pairs, method, "pairs (query, passage)", check_pair)
    return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))


def check_pair(pair: object, index: int = 0) -> tuple[str, str]:
    """Returns a pair as a tuple; refuses what is none. See `slices_of_pairs`."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputTypeError(
            f"Pair {index} is {_shown(pair)}, not a query and a passage; give (query, passage).", index
        )
    for text, part in zip(pair, ("query", "passage"), strict=True):
        check_text(text, index, f"The {part} of pair")
    return pair[0], pair[1]


def check_text(text: object, index: int = 0, what: str = "Text") -> str:
    """Returns a text; refuses what is none. See `check_texts`."""
    if not isinstance(text, str):
        raise InputTypeError(
            f"{what} {index} is a {type(text).__name__}, not a str: {_shown(text)}. Leave it out or convert it.", index
        )
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"{what} {index} has a lone surrogate ({text[error.start]!r}) at character {error.start}, which UTF-8 "
            "can't write; it comes from a faulty decoding. Repair it with "
            "text.encode('utf-8', 'replace').decode('utf-8').",
            index,
        ) from error
    return text


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
