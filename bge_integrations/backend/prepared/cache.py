"""Graphs that are kept on disk because they are slow to make again.

A folder of its own holds each, named after everything that its content depends on and the format that it is written in,
so that two versions of this package leave each other's alone. Who finds it reads it, without a lock and without writing
anything. Whatever stands in the way of keeping a graph (a folder that can't be written to, a full disk, another
process that has a file open) costs no more than that it is made again next time.
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
from bge_integrations.backend.prepared.entries import UNFINISHED, cache_limit, graphs_folder, prune, remove_place
from bge_integrations.backend.prepared.folder import FORMAT, PreparedFolder, PreparedModel
from bge_integrations.errors import PreparedModelError

logger = get_logger(__name__)

_PATIENCE_S = 5.0
"""After waiting so long for another process, a warning says what is waited for."""


def cached_model(key: str, make: Callable[[], PreparedModel | None]) -> PreparedModel | None:
    """Returns the prepared model of a key, made if there is none that can be used.

    Processes that ask for the same one at once wait for one of them to make it, where the disk knows locks.

    Args:
        key: Names everything that the content depends on, in letters and digits.
        make: Makes it; None if it can't be made, which is not remembered.

    Returns:
        The model, from its folder, or from memory where it can't be kept; None if it can't be made.

    Raises:
        SettingsError: `BGE_INTEGRATIONS_CACHE_LIMIT` is no size.
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
        except Exception as error:  # OSError, and what OpenVINO and safetensors make of it
            _say_not_kept(f"in {folder}", error)
            return made
        prune(limit, keep=folder)
        return found


def _say_not_kept(where: str, error: Exception) -> None:
    logger.warning(
        "the graph can't be kept %s for the next time: %s. Set BGE_INTEGRATIONS_CACHE to a folder that can be written "
        "to and has room",
        where,
        str(error),  # a kept error would keep the model
    )


def _kept(folder: Path, key: str) -> PreparedFolder | None:
    """Returns what is kept in a folder; None where nothing is.

    Raises:
        PreparedModelError: What is there can't be used under this key.
    """
    if not os.path.lexists(folder):
        return None
    kept = PreparedFolder.open(folder)
    if kept.manifest.cache_key != key:
        raise PreparedModelError(f"{folder} was made for {kept.manifest.cache_key}")
    return kept


def _turn(file: Path) -> AbstractContextManager[object]:
    """Waits until no other process makes the same graph; where no lock can be had, waits for nobody.

    Without it, two may make the same, which costs time and memory alone.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A lock that is but a file could be a dead process's, on a machine that can't be asked.
        lock = FileLock(file, fallback_to_soft=False)
        with contextlib.suppress(Timeout):
            return lock.acquire(timeout=_PATIENCE_S)
        logger.warning("waiting for another process, which makes the same graph (its lock is %s)", file)
        return lock.acquire()
    except (OSError, NotImplementedError) as error:
        logger.info("no lock can be had in the cache: %s", str(error))
        return contextlib.nullcontext()


def _store(made: PreparedModel, folder: Path, key: str) -> None:
    """Writes a graph and moves it to its place as a whole.

    Raises:
        OSError: It can't be written, or something is in its place that can't be moved away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{UNFINISHED}{secrets.token_hex(8)}")
    unfinished.mkdir()  # readable for whom the umask says, unlike what tempfile makes
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
