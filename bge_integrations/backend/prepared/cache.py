"""The cache of graphs on disk, which saves the time to build them again.

Each cache entry is a folder. Its name is the key of everything that the content depends on, with the format, so
versions of this package with other formats use other entries. Reading an entry needs no lock and writes nothing. If a
graph can't be kept (a read-only folder, a full disk, a file that another process has open), it is built again next
time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.machine.cpu import give_back_freed_memory
from bge_integrations.backend.prepared.entries import UNFINISHED, cache_limit, graphs_folder, prune, remove_place
from bge_integrations.backend.prepared.folder import FORMAT, PreparedFolder, PreparedModel
from bge_integrations.errors import PreparedModelError

logger = get_logger(__name__)

_PATIENCE_S = 5.0
"""Time to wait for another process's lock before a warning names the lock."""


def cached_model(key: str, make: Callable[[], PreparedModel | None]) -> PreparedModel | None:
    """Returns the prepared model of a key from the cache. If there is no usable entry, it is made.

    If several processes need the same model at once, one makes it and the others wait, if the disk supports locks.

    Args:
        key: Key of everything that the content depends on, in letters and digits.
        make: Function that makes the model, or returns `None` if that is impossible. `None` is not remembered.

    Returns:
        The model from its folder, or from memory if it can't be kept; `None` if it can't be made.

    Raises:
        SettingsError: `BGE_INTEGRATIONS_CACHE_LIMIT` is not a size.
    """
    try:
        folder = graphs_folder() / f"{key}-{FORMAT}"
    except OSError as error:
        _say_not_kept("on disk", error)
        return make()
    with contextlib.suppress(PreparedModelError):
        if kept := _kept(folder, key):
            return kept
    limit = cache_limit()
    with _turn(folder.with_name(f"{folder.name}.lock")):
        try:
            if kept := _kept(folder, key):
                return kept
        except PreparedModelError as error:
            logger.warning("making the cached graph again: %s", str(error))
        made = make()
        if made is None:
            return None
        try:
            _store(made, folder, key)
            found = PreparedFolder.open(folder)
        except Exception as error:  # OpenVINO and safetensors raise other classes than OSError
            _say_not_kept(f"in {folder}", error)
            return made
        del made
        give_back_freed_memory()
        prune(limit, keep=folder)
        return found


def _say_not_kept(where: str, error: Exception) -> None:
    logger.warning(
        "the graph can't be kept %s for the next time: %s. Set BGE_INTEGRATIONS_CACHE to a writable folder on a disk "
        "with free space",
        where,
        str(error),  # a log handler that keeps the error would keep the model in memory
    )


def _kept(folder: Path, key: str) -> PreparedFolder | None:
    """Returns the cache entry in a folder; `None` if there is no such folder.

    Raises:
        PreparedModelError: The entry is damaged, or was made for another key.
    """
    if not os.path.lexists(folder):
        return None
    kept = PreparedFolder.open(folder)
    if kept.manifest.cache_key != key:
        raise PreparedModelError(f"{folder} was made for {kept.manifest.cache_key}")
    return kept


def _turn(file: Path) -> AbstractContextManager[object]:
    """Waits until no other process makes the same graph.

    If no lock is available it does not wait. Two processes may then make the same graph, which only costs time and
    memory.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A soft lock is only a file, and could be left from a dead process on another machine.
        lock = FileLock(file, fallback_to_soft=False)
        with contextlib.suppress(Timeout):
            return lock.acquire(timeout=_PATIENCE_S)
        logger.warning("waiting for another process, which makes the same graph (its lock is %s)", file)
        return lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.info("no lock is available in the cache: %s", str(error))
        return contextlib.nullcontext()


def _store(made: PreparedModel, folder: Path, key: str) -> None:
    """Writes a graph into a temporary folder, then renames that folder to its final name.

    Raises:
        OSError: The graph can't be written, or an existing entry can't be moved away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    unfinished.mkdir()  # its permissions follow the umask; tempfile would make it private to this user
    try:
        made.write(unfinished)
        if os.path.lexists(folder):
            with contextlib.suppress(PreparedModelError):
                if _kept(folder, key):
                    return  # another process was faster
            remove_place(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
