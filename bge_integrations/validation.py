"""Refuses texts that can't be encoded, by their position, before any work is done on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice

from bge_integrations.errors import InputTypeError, InputValueError


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
        return None, _checked_slices(texts, size)
    checked = check_texts(texts, method)
    return len(checked), (checked[start : start + size] for start in range(0, len(checked), size))


def _checked_slices(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    start = 0
    while part := list(islice(texts, size)):
        for index, text in enumerate(part, start):
            check_text(text, index)
        yield part
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
    if isinstance(texts, (str, bytes, bytearray)):
        raise InputTypeError(
            f"{method} takes a list of texts, but was given one {type(texts).__name__}; write {method}([text])[0]."
        )
    if isinstance(texts, (Set, Mapping)):
        raise InputTypeError(
            f"{method} takes a list of texts, but was given a {type(texts).__name__}, which has no order to keep; "
            "pass a list."
        )
    if not isinstance(texts, Iterable):
        raise InputTypeError(f"{method} takes a list of texts, but was given a {type(texts).__name__}.")
    checked = list(texts)
    for index, text in enumerate(checked):
        check_text(text, index)
    return checked


def check_text(text: object, index: int = 0) -> None:
    """Refuses one text; see `check_texts`."""
    if not isinstance(text, str):
        raise InputTypeError(
            f"Text {index} is a {type(text).__name__}, not a str: {_shown(text)}. Leave it out or convert it.", index
        )
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"Text {index} has a lone surrogate ({text[error.start]!r}) at character {error.start}, which UTF-8 can't "
            "write; it comes from a faulty decoding. Repair it with text.encode('utf-8', 'replace').decode('utf-8').",
            index,
        ) from error


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
