"""What counts as a text, and how messages name what is none. Imports nothing of the package."""

from __future__ import annotations

import sys

from typing_extensions import TypeIs

_SHOWN_CHARACTERS = 60


def is_text(value: object) -> TypeIs[str]:
    """Whether a value is a `str` or of a class derived from it. An object that only claims to be one is none."""
    return issubclass(type(value), str)


def plain(text: str) -> str:
    """Returns the characters of a text as a plain `str`; a plain `str` itself.

    A member of `class Topic(str, Enum)`, a `numpy.str_` and the like hold a text, but may write, hash or measure
    something else: an f-string has `Topic.SPORT` for `"sport"`.
    """
    # Of the class itself, since the text's own class may have another.
    return text if type(text) is str else str.__str__(text)


def lone_surrogate(text: str) -> int | None:
    """Returns the position of the first character that UTF-8 can't write; None if there is none."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def about_surrogate(text: str, position: int) -> str:
    """Returns what to say of a text with a lone surrogate, after its name."""
    return (
        f"has a lone surrogate ({text[position]!r}) at character {position}, which UTF-8 can't write; it comes from a "
        "faulty decoding. Repair it with text.encode('utf-8', 'replace').decode('utf-8')."
    )


def file_names_are_utf8() -> bool:
    """Whether Python takes file names for UTF-8, as it does unless the locale says otherwise."""
    return sys.getfilesystemencoding().lower().replace("-", "") == "utf8"


def about_file_name(path: str) -> str | None:
    """Returns what to say of a path that UTF-8 can't write, after it; None for any other.

    Where the locale's encoding is not UTF-8, Python puts lone surrogates for the bytes of a file name that it can't
    decode. The libraries that read models take UTF-8 alone.
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
    # Read aloud: "an en-dee-array", but "a user", "a uint8".
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def shortened(value: object) -> str:
    """Returns how Python writes a value, cut where it gets long."""
    written = repr(value)
    return written if len(written) <= _SHOWN_CHARACTERS else f"{written[: _SHOWN_CHARACTERS - 3]}..."
