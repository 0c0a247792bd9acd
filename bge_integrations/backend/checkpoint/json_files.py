"""Reads and checks JSON files. Each error names the file, the key and the expected kind of value.

A `Kind` says what a value must be. `as_dataclass` reads the kinds from a dataclass's own annotations.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_MOST_NESTED = 64  # levels; configurations of composite models have five

Plain = TypeVar("Plain")


class MalformedJsonError(Exception):
    """A file is not JSON, or a value is not of the expected kind. The message names the file and the key."""


@dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
        words: Description for errors.
        fits: Function that tells whether a value is of this kind. It does not check the value's members.
        keys: Kinds of an object's members by name.
        required: Keys that an object must have.
        members: Kind of an object's other members and of a list's elements; `None` if they may be anything.
    """

    words: str
    fits: Callable[[Any], bool]
    keys: Mapping[str, Kind] = field(default_factory=dict)
    required: Sequence[str] = ()
    members: Kind | None = None

    def fault(self, value: object, where: str = "") -> str | None:
        """Returns the place and the description of the first fault in a value; `None` if it has no fault."""
        if not self.fits(value):
            return f"{where or 'the content'} is {reprlib.repr(value)}, not {self.words}"
        if isinstance(value, dict):
            lacking = [key for key in self.required if key not in value]
            if lacking:
                return f"{where or 'the content'} lacks {lacking[0]!r}"
            members = [(key, self.keys.get(key, self.members), member) for key, member in value.items()]
        elif isinstance(value, list):
            members = [(f"[{index}]", self.members, member) for index, member in enumerate(value)]
        else:
            return None
        for key, kind, member in members:
            place = f"{where}{key}" if key.startswith("[") or not where else f"{where}.{key}"
            found = kind.fault(member, place) if kind else None
            if found:
                return found
        return None


def whole(least: int, most: int) -> Kind:
    """A whole number in a range that includes both ends."""
    words = f"a whole number from {least} to {most}"
    return Kind(words, lambda value: type(value) is int and least <= value <= most)


def number(least: float = -math.inf, most: float = math.inf) -> Kind:
    """A finite number in a range that includes both ends."""
    ends = " to ".join(f"{end:g}" for end in (least, most) if math.isfinite(end))
    words = f"a number from {ends}" if math.isfinite(most) else f"a number of at least {ends}" if ends else "a number"

    def fits(value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return least <= value <= most and abs(value) < math.inf

    return Kind(words, fits)


def one_of(*values: str) -> Kind:
    """One of the given texts."""
    return Kind(" or ".join(map(repr, values)), lambda value: isinstance(value, str) and value in values)


def optional(kind: Kind) -> Kind:
    """A value of a kind, or null."""
    return dataclasses.replace(
        kind, words=f"{kind.words} or null", fits=lambda value: value is None or kind.fits(value)
    )


def either(*kinds: Kind) -> Kind:
    """A value of at least one of the given kinds, members included."""
    words = " or ".join(kind.words for kind in kinds)
    return Kind(words, lambda value: any(kind.fault(value) is None for kind in kinds))


def list_of(kind: Kind) -> Kind:
    """A list whose elements are all of one kind."""
    return Kind(f"a list ({kind.words} each)", lambda value: isinstance(value, list), members=kind)


def object_of(kind: Kind) -> Kind:
    """An object whose members are all of one kind."""
    return Kind(f"an object ({kind.words} each)", lambda value: isinstance(value, dict), members=kind)


def object_with(keys: Mapping[str, Kind], *, required: Sequence[str] = ()) -> Kind:
    """An object with the given kinds of members by name. Members with other names may be anything."""
    return Kind("an object", lambda value: isinstance(value, dict), keys=keys, required=required)


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
ANYTHING = Kind("anything", lambda _: True)
OBJECT = object_with({})


def read_json(path: Path, kind: Kind) -> Any:  # noqa: ANN401 - what the kind says
    """Reads a file and checks its content against a kind.

    Returns:
        The content; `None` if there is no such file.

    Raises:
        MalformedJsonError: The file can't be read, is not JSON in UTF-8, or its content is of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.is_symlink():
            raise MalformedJsonError(f"{path} is a link to a file that does not exist") from None
        return None
    except RecursionError as error:
        raise MalformedJsonError(f"{path} can't be read as JSON (it is nested too deeply)") from error
    except PermissionError as error:
        raise MalformedJsonError(f"{path} can't be read: this user has no permission to read it") from error
    except OSError as error:
        raise MalformedJsonError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise MalformedJsonError(f"{path} can't be read as JSON ({error})") from error
    if _depth_exceeds(content, _MOST_NESTED):
        raise MalformedJsonError(f"{path} can't be read as JSON (it is nested more than {_MOST_NESTED} levels deep)")
    found = kind.fault(content)
    if found:
        raise MalformedJsonError(f"{path} is damaged: {found}")
    return content


def as_dataclass(plain: type[Plain], content: object, where: str = "") -> Plain:
    """Restores a dataclass that `dataclasses.asdict` and JSON saved. Checks every value against its annotation.

    Args:
        plain: Dataclass of texts, numbers, flags, choices, tuples, lists, mappings and other such dataclasses.
        content: Content read from JSON.
        where: Key of the content in its file, for errors.

    Raises:
        MalformedJsonError: A value is of another kind, missing, or unknown.
    """
    value: Plain = _typed(plain, content, where)
    return value


def _typed(annotation: Any, value: Any, where: str) -> Any:  # noqa: ANN401 - any annotation, any JSON
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation)
        kind = object_with({}, required=[each.name for each in dataclasses.fields(annotation)])
        _require(kind, value, where)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise MalformedJsonError(f"{where or 'the content'} has the unknown key {unknown[0]!r}")
        prefix = f"{where}." if where else ""
        return annotation(**{key: _typed(hints[key], member, prefix + key) for key, member in value.items()})
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (only,) = [each for each in inner if each is not type(None)]
        return _typed(only, value, where)
    if origin is Literal:
        _require(one_of(*inner), value, where)
    elif origin in (tuple, list):
        _require(list_of(ANYTHING), value, where)
        return origin(_typed(inner[0], member, f"{where}[{index}]") for index, member in enumerate(value))
    elif origin is not None and issubclass(origin, Mapping):
        _require(OBJECT, value, where)
        return {key: _typed(inner[1], member, f"{where}.{key}") for key, member in value.items()}
    else:
        _require(_OF_TYPE[annotation], value, where)
    return value


_OF_TYPE: Mapping[Any, Kind] = {
    str: TEXT,
    bool: FLAG,
    int: Kind("a whole number", lambda value: type(value) is int),
    float: number(),
}


def _require(kind: Kind, value: object, where: str) -> None:
    found = kind.fault(value, where)
    if found:
        raise MalformedJsonError(found)


def _depth_exceeds(content: object, levels: int) -> bool:
    inside = [content]
    for _ in range(levels):
        inside = [
            member
            for value in inside
            if isinstance(value, (dict, list))
            for member in (value.values() if isinstance(value, dict) else value)
        ]
        if not inside:
            return False
    return True
