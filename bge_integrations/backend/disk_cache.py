"""Prepared models that are kept on disk because they are slow to make again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from bge_integrations.backend.digests import cache_root
from bge_integrations.backend.logs import get_logger
from bge_integrations.backend.prepared import PreparedModel
from bge_integrations.errors import PreparedModelError

logger = get_logger(__name__)


class CacheNotWritableError(Exception):
    """The cache folder can't be written to."""


def graphs_folder() -> Path:
    """Returns the folder of cached graphs, one folder for each."""
    return cache_root() / "graphs"


def cached_model(key: str, make: Callable[[Path], None]) -> PreparedModel:
    """Returns the prepared model of a key, made again if there is none that can be used.

    Processes that ask for the same one at once wait for one of them to make it. It is moved to its place as a whole.

    Args:
        key: Names everything that the content depends on, in letters and digits.
        make: Writes a prepared model into an empty folder.

    Raises:
        CacheNotWritableError: There is no place to keep it.
    """
    folder = graphs_folder() / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder.with_name(f"{key}.lock")).acquire()
    except OSError as error:
        raise CacheNotWritableError(str(error)) from error
    with held:
        kept = _kept(folder, key)
        if kept is not None:
            return kept
        for left_behind in folder.parent.glob(f"{key}-*"):  # by a process that died
            shutil.rmtree(left_behind, ignore_errors=True)
        try:
            _remove(folder)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=folder.parent))
        except OSError as error:
            raise CacheNotWritableError(str(error)) from error
        try:
            make(unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return PreparedModel.open(folder)


def _kept(folder: Path, key: str) -> PreparedModel | None:
    """Returns what is kept in a folder; None where nothing is that can be used under this key."""
    if not os.path.lexists(folder):
        return None
    try:
        kept = PreparedModel.open(folder)
    except PreparedModelError as error:
        logger.warning("making the cached graph again: %s", str(error))  # a kept error would keep the model
        return None
    if kept.manifest.cache_key != key:
        logger.warning("making the cached graph again: %s was made for %s", folder, kept.manifest.cache_key)
        return None
    return kept


def _remove(entry: Path) -> None:
    """Removes whatever stands in a place; of a link the link alone, never what it leads to."""
    if entry.is_symlink() or entry.is_file():
        entry.unlink()
    elif os.path.lexists(entry):
        shutil.rmtree(entry)
