"""Tables that translate another library's arguments to settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.errors import SettingsError

__all__ = ["Row", "Table", "known_keys", "read_table"]

Converter = Callable[[object, str], object]
"""Function from an argument's value, and its place for messages, to the setting's value. `None`: no setting."""


def _unchanged(value: object, _: str) -> object:
    return value


@dataclass(frozen=True)
class Row:
    """The translation of one argument.

    Attributes:
        setting: Name of the setting, or `None` for an argument without effect here.
        convert: Function from the argument to the setting's value. It raises `SettingsError` for unsupported values.
        refused: Reason why the argument is not supported, or `None` for a supported one.
    """

    setting: str | None = None
    convert: Converter = _unchanged
    refused: str | None = None


Table = Mapping[str, Row]
"""Rows by the argument's name."""


def known_keys(table: Table) -> tuple[str, ...]:
    """Returns the supported arguments, sorted."""
    return tuple(sorted(key for key, row in table.items() if row.refused is None))


def read_table(table: Table, kwargs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Translates arguments.

    Args:
        table: Rows for the arguments.
        kwargs: Arguments. The dictionary is not changed.
        name: Name of the dictionary in messages.

    Returns:
        Values by setting. If several rows have the same setting, dictionaries are merged in the order of the table. Of
        other values the first one counts.

    Raises:
        SettingsError: An argument is unknown or not supported.
    """
    for key in kwargs:
        row = table.get(key)
        if row is None:
            raise SettingsError(f"{name}[{key!r}] is unknown; the known keys are {', '.join(known_keys(table))}.")
        if row.refused is not None:
            raise SettingsError(f"{name}[{key!r}] is not supported: {row.refused}.")
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
