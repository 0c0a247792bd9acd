"""Decides which values are texts, and words messages. Imports nothing of the package."""

from __future__ import annotations

import sys

from typing_extensions import TypeIs

_SHOWN_CHARACTERS = 60


def is_text(value: object) -> TypeIs[str]:
    """Returns whether a value is a `str`. An object that only overrides `__class__` is not."""
    return issubclass(type(value), str)


def plain(text: str) -> str:
    """Returns the characters of a text as a plain `str`.

    Subclasses of `str` can override how they are written, hashed or measured. An f-string writes `Topic.SPORT` for a
    member `SPORT = "sport"` of `class Topic(str, Enum)`.
    """
    # `str.__str__`, since the text's own class can override it.
    return text if type(text) is str else str.__str__(text)


def lone_surrogate(text: str) -> int | None:
    """Returns the position of the first lone surrogate, which UTF-8 can't encode, or `None`."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def about_surrogate(text: str, position: int) -> str:
    """Returns the end of a message about a text with a lone surrogate. The text's name comes before it."""
    return (
        f"has a lone surrogate ({text[position]!r}) at character {position}, which UTF-8 can't write; it comes from a "
        "faulty decoding. Repair it with text.encode('utf-8', 'replace').decode('utf-8')."
    )


def file_names_are_utf8() -> bool:
    """Returns whether Python decodes file names as UTF-8. This is the case except under some locales."""
    return sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


def about_file_name(path: str) -> str | None:
    """Returns the end of a message about a path that UTF-8 can't encode, or `None` for other paths.

    Python decodes file names with the locale's encoding and writes a lone surrogate for each byte that it can't decode.
    The libraries that read models accept only UTF-8.
    """
    position = lone_surrogate(path)
    if position is None:
        return None
    if not "\udc80" <= path[position] <= "\udcff":
        return about_surrogate(path, position)
    if file_names_are_utf8():
        return "holds a file name that is not in UTF-8; rename the file or folder."
    return (
        f"holds a file name that is not in {sys.getfilesystemencoding()}, in which Python reads file names under this "
        "locale. Set PYTHONUTF8=1 or LC_ALL=C.UTF-8 before Python starts."
    )


def kind_of(value: object) -> str:
    """Names the type of a value with its article: "an int", "a list"."""
    name = type(value).__name__
    # By pronunciation: "an en-dee-array", but "a user", "a uint8".
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def shortened(value: object) -> str:
    """Returns the repr of a value, shortened if it is long."""
    written = repr(value)
    return written if len(written) <= _SHOWN_CHARACTERS else f"{written[: _SHOWN_CHARACTERS - 3]}..."


def add_note(error: BaseException, note: str) -> None:
    """Adds a sentence to an error that stays as it is otherwise. Python before 3.11 does not print it."""
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
