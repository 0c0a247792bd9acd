"""The entries in the cache of graphs: lists them, removes them, and keeps the cache within its limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from bge_integrations.backend.checkpoint.digests import cache_root
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.prepared.folder import FORMAT, TOKENIZER, Summary, read_summary
from bge_integrations.errors import SettingsError

logger = get_logger(__name__)

LIMIT_VARIABLE = "BGE_INTEGRATIONS_CACHE_LIMIT"
_DEFAULT_LIMIT = "20GB"

UNFINISHED = "making-"
"""Prefix for the names of folders that are being written."""
_SET_ASIDE = "removed-"
_LEFT_BEHIND_S = 3600.0
"""Age from which an unfinished folder counts as left by a dead process. Writing an entry takes only seconds."""


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A graph in the cache.

    Attributes:
        folder: Folder of the entry.
        summary: Summary of its manifest; `None` if it is damaged.
        size: Bytes on disk.
        used: Time of the last use, in seconds since 1970: when its tokenizer file was last read or written. File
            systems record the time of reading often only once a day, and some never.
    """

    folder: Path
    summary: Summary | None
    size: int
    used: float

    @property
    def is_current(self) -> bool:
        """Whether this version of the package can use it."""
        return self.summary is not None and self.summary.is_current and self.folder.name.endswith(f"-{FORMAT}")


def graphs_folder() -> Path:
    """Returns the folder of cached graphs, which has one folder for each.

    Raises:
        OSError: There is no home folder, and `BGE_INTEGRATIONS_CACHE` is not set.
    """
    return cache_root() / "graphs"


def cache_limit() -> int | None:
    """Returns `BGE_INTEGRATIONS_CACHE_LIMIT`, the bytes for all cached graphs together; `None`: no limit.

    Raises:
        SettingsError: `BGE_INTEGRATIONS_CACHE_LIMIT` is not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    given = os.environ.get(LIMIT_VARIABLE) or _DEFAULT_LIMIT
    if given.strip().lower() == "none":
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(given)
    except ValidationError as error:
        raise SettingsError(f"{LIMIT_VARIABLE}={given!r} is not a size; set a size like '20GB', or 'none'.") from error


def entries() -> list[CacheEntry]:
    """Returns the entries of the cache, last used first; [] if there is no cache."""
    found = []
    for folder in _folders():
        if not folder.name.startswith((UNFINISHED, _SET_ASIDE)):
            with contextlib.suppress(OSError):  # deleted meanwhile, or without permission for this user
                found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def _entry(folder: Path) -> CacheEntry:
    read = folder / TOKENIZER  # not the manifest, which is also read when entries are listed
    stat = (read if read.is_file() else folder).stat()
    return CacheEntry(
        folder=folder,
        summary=read_summary(folder),
        size=sum(_size(path) for path in folder.iterdir()),
        used=max(stat.st_atime, stat.st_mtime),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _folders() -> list[Path]:
    try:
        return [path for path in graphs_folder().iterdir() if path.is_dir()]
    except OSError:
        return []


def prune(limit: int | None, *, keep: Path) -> None:
    """Removes folders that dead processes have left, and entries beyond a limit.

    Damaged entries and entries of other versions are removed first, then the least recently used. An entry that can't
    be removed stays.

    Args:
        limit: Bytes for all entries together; `None`: no limit.
        keep: Folder of an entry that stays in any case.
    """
    _remove_leftovers()
    if limit is None:
        return
    found = entries()
    excess = sum(entry.size for entry in found) - limit
    for entry in sorted(found, key=lambda entry: (entry.is_current, entry.used)):
        if excess <= 0:
            return
        if entry.folder != keep and remove_entry(entry):
            logger.info("removed %s: the cache has more than %d bytes", entry.folder, limit)
            excess -= entry.size


def _remove_leftovers() -> None:
    for folder in _folders():
        if folder.name.startswith((UNFINISHED, _SET_ASIDE)):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S:
                    shutil.rmtree(folder, ignore_errors=True)


def remove_entry(entry: CacheEntry) -> bool:
    """Removes an entry; returns whether it succeeded. Processes that use the entry are not affected."""
    try:
        remove_place(entry.folder)
    except OSError as error:
        logger.info("%s stays: %s", entry.folder, error)
        return False
    with contextlib.suppress(OSError):
        entry.folder.with_name(f"{entry.folder.name}.lock").unlink()
    return True


def remove_place(place: Path) -> None:
    """Removes a folder, file or link in the cache. The target of a link stays.

    A folder is renamed first, so that no process finds half of it. Windows refuses this while a file in it is open.

    Raises:
        OSError: It can't be renamed or removed.
    """
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif os.path.lexists(place):
        aside = place.with_name(f"{_SET_ASIDE}{secrets.token_hex(8)}")
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
