"""What the cache of graphs holds: to list it, to keep it within its limit, and to clear it."""

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
"""How the name of a folder starts that is being written."""
_SET_ASIDE = "removed-"
_LEFT_BEHIND_S = 3600.0
"""Writing an entry takes seconds, so that what is older was left by a process that died."""


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """A graph in the cache.

    Attributes:
        folder: Where it is.
        summary: What it says of itself; None if it is damaged.
        size: Bytes on disk.
        used: When it was last used, in seconds since 1970: when its tokenizer was read last, as far as the file system
            notes that (often once a day, sometimes never), or written.
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
    """Returns the folder of cached graphs, one folder for each.

    Raises:
        OSError: There is no home folder, and none is named.
    """
    return cache_root() / "graphs"


def cache_limit() -> int | None:
    """Returns the bytes that the cached graphs may take together, by `BGE_INTEGRATIONS_CACHE_LIMIT`; None: no limit.

    Raises:
        SettingsError: It is no size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    given = os.environ.get(LIMIT_VARIABLE) or _DEFAULT_LIMIT
    if given.strip().lower() == "none":
        return None
    try:
        return TypeAdapter(ByteSize).validate_python(given)
    except ValidationError as error:
        raise SettingsError(f"{LIMIT_VARIABLE}={given!r} is no size; give one such as '20GB', or 'none'.") from error


def entries() -> list[CacheEntry]:
    """Returns the entries of the cache, those used last first; none where there is no cache."""
    found = []
    for folder in _folders():
        if not folder.name.startswith((UNFINISHED, _SET_ASIDE)):
            with contextlib.suppress(OSError):  # gone meanwhile, or closed to this user
                found.append(_entry(folder))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def _entry(folder: Path) -> CacheEntry:
    read = folder / TOKENIZER  # unlike the manifest, it is not read by who lists entries
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
    """Removes what processes that died have left, and entries beyond a limit.

    Damaged entries and those of other versions go first, then those whose last use is longest ago. What can't be
    removed stays.

    Args:
        limit: Bytes for all entries together; None: no limit.
        keep: An entry that stays, whatever its size.
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
            logger.info("removed %s: the cache holds more than %d bytes", entry.folder, limit)
            excess -= entry.size


def _remove_leftovers() -> None:
    for folder in _folders():
        if folder.name.startswith((UNFINISHED, _SET_ASIDE)):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _LEFT_BEHIND_S:
                    shutil.rmtree(folder, ignore_errors=True)


def remove_entry(entry: CacheEntry) -> bool:
    """Removes an entry, and says whether that went well. Processes that use it go on."""
    try:
        remove_place(entry.folder)
    except OSError as error:
        logger.info("%s stays: %s", entry.folder, error)
        return False
    with contextlib.suppress(OSError):
        entry.folder.with_name(f"{entry.folder.name}.lock").unlink()
    return True


def remove_place(place: Path) -> None:
    """Removes whatever is in a place of the cache; of a link the link alone, never what it leads to.

    A folder is moved aside first, so that nobody finds half of it. Windows refuses that while a file in it is open.

    Raises:
        OSError: It can't be moved.
    """
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif os.path.lexists(place):
        aside = place.with_name(f"{_SET_ASIDE}{secrets.token_hex(8)}")
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
