"""Files that commands write."""

from __future__ import annotations

from pathlib import Path

from bge_integrations.errors import SettingsError

__all__ = ["require_rows_file", "require_writable"]

_ROWS = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


def require_rows_file(option: str, file: Path) -> None:
    """Raises `SettingsError` if training data can't be written to a file of this name."""
    if not file.name.endswith(_ROWS):
        raise SettingsError(f"{option} {file} must end with one of {', '.join(_ROWS)}.")


def require_writable(option: str, file: Path, *, overwrite: bool) -> None:
    """Checks that a file can be written, before anything is computed.

    Raises:
        SettingsError: It is there already, it is a folder, or its folder does not exist.
    """
    if not file.absolute().parent.is_dir():
        raise SettingsError(f"{option} {file}: there is no folder {file.absolute().parent}. Make it first.")
    if file.is_dir():
        raise SettingsError(f"{option} {file} is a folder. Name a file.")
    if file.exists() and not overwrite:
        raise SettingsError(f"{option} {file} is there already. Choose another name, or replace it with --force.")
