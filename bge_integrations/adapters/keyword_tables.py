"""Tables of another library's arguments: what becomes of each one here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.errors import SettingsError

__all__ = ["Row", "Table", "known_keys", "read_table"]

Converter = Callable[[object, str], object]
"""Takes a value, and where it stands (in words for errors); returns a setting's value, or None to say nothing."""


def _unchanged(value: object, _: str) -> object:
    return value


@dataclass(frozen=True)
class Row:
    """What becomes of an argument.

    Attributes:
        setting: The name of what it sets; None for an argument without effect here.
        convert: Makes the setting's value of the argument, or raises `SettingsError` if it can't be honoured.
        refused: Why it can't be honoured, whatever its value; None for one that can.
    """

    setting: str | None = None
    convert: Converter = _unchanged
    refused: str | None = None


Table = Mapping[str, Row]
"""By the argument's name."""


def known_keys(table: Table) -> tuple[str, ...]:
    """Returns the arguments that can be honoured, sorted."""
    return tuple(sorted(key for key, row in table.items() if row.refused is None))


def read_table(table: Table, kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates arguments.

    Args:
        table: What becomes of each.
        kwargs: The arguments; not changed.
        name: What the user calls them, for messages.

    Returns:
        What is set, by name. Rows that set the same are taken in the order of the table: dictionaries are merged, and
        of other values the first counts.

    Raises:
        SettingsError: An unknown argument, or one that can't be honoured.
    """
    for key in kwargs:
        row = table.get(key)
        if row is None:
            raise SettingsError(f"{name}[{key!r}] is unknown; the known keys are {', '.join(known_keys(table))}.")
        if row.refused is not None:
            raise SettingsError(f"{name}[{key!r}] can't be honoured: {row.refused}.")
    said: dict[str, Any] = {}
    for key, row in table.items():
        value = row.convert(kwargs[key], f"{name}[{key!r}]") if key in kwargs else None
        if row.setting is None or value is None:
            continue
        before = said.get(row.setting)
        if isinstance(before, dict) and isinstance(value, dict):
            said[row.setting] = {**before, **value}
        elif before is None:
            said[row.setting] = value
    return said
