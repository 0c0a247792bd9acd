"""Refuses texts that can't be encoded, by their position, before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from bge_integrations.errors import InputTypeError, InputValueError


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
