"""The output folder of a prepared model: checks it before, and moves the finished model into it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bge_integrations.backend.checkpoint.manifest import MANIFEST
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.errors import SettingsError
from bge_integrations.texts import about_file_name

logger = get_logger(__name__)

_UNFINISHED = ".bge-prepare-"
_OF_FILE_SYSTEMS = ("lost+found",)
"""Folders in a new file system. A volume with only these counts as empty."""


def output_folder(output: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a folder that does not exist yet or is empty.

    It does not check whether the folder is writable; `folder_to_fill` does.

    Raises:
        SettingsError: The folder is not empty, or the path can't be a folder's.
    """
    written = os.fspath(output)
    if not written:
        raise SettingsError("output='' names no folder; give one, or '.' for the current folder.")
    if "\0" in written:
        raise SettingsError(f"output={written!r} has a null character, which no path can have; name another folder.")
    try:
        target = Path(written).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"output={written!r} can't be found: {error} Write the path without '~'.") from error
    except FileNotFoundError as error:
        raise SettingsError(
            f"output={written!r} can't be found: the current folder was deleted. Change into another folder, or give "
            "an absolute path."
        ) from error
    if ".." in target.parts:
        target = Path(os.path.realpath(target))  # the folder before '..' need not exist
    if found := about_file_name(str(target)):
        raise SettingsError(f"output={str(target)!r} {found}")
    _require_free(target, written)
    return target


def _require_free(target: Path, written: str) -> None:
    try:
        is_free = all(name in _OF_FILE_SYSTEMS for name in os.listdir(target))
    except FileNotFoundError:
        if os.path.lexists(target):
            raise SettingsError(
                f"output={written!r} is a symlink to {os.readlink(target)!r}, which is not a folder; name a new "
                "folder or an empty one."
            ) from None
        return
    except NotADirectoryError:
        if not os.path.lexists(target):
            raise SettingsError(
                f"output={written!r} can't be made: {str(_first_file(target))!r} is a file. Name another folder."
            ) from None
        is_free = False
    except OSError as error:
        raise SettingsError(f"output={written!r} can't be opened: {error.strerror}. Name another folder.") from error
    if not is_free:
        raise SettingsError(f"output={written!r} exists already; name a new folder or an empty one.")


def _first_file(path: Path) -> Path:
    """Returns the first part of a path that is not a folder."""
    return next(folder for folder in reversed([path, *path.parents]) if not os.path.isdir(folder))


@contextlib.contextmanager
def folder_to_fill(target: Path) -> Iterator[Path]:
    """Yields a temporary folder, and moves its content to the target at the end.

    The temporary folder is beside a new target, or inside a target that exists. An existing target is not replaced,
    since it may be the current folder or a mounted volume. After an error nothing is left behind, except a finished
    model that could not be moved.

    Args:
        target: Path from `output_folder`.

    Yields:
        The temporary folder.

    Raises:
        SettingsError: The target is not writable, or the finished model can't be moved there.
    """
    is_there = os.path.isdir(target)
    parent = target if is_there else target.parent
    new_parents = [folder for folder in (parent, *parent.parents) if not os.path.lexists(folder)]
    around = None
    is_kept = False
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            # A folder of `tempfile` is private to its owner. On Windows, files that are moved out of it stay private.
            around = parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
            around.mkdir()
            unfinished = around / "model"
            unfinished.mkdir()
        except OSError as error:
            raise not_writable(target, error) from error
        yield unfinished
        try:
            _move(unfinished, target, is_there=is_there)
        except OSError as error:
            is_kept = True
            raise SettingsError(
                f"The finished model can't be moved to output={str(target)!r}: {error.strerror or error}. It is in "
                f"{str(unfinished)!r}; move this folder yourself."
            ) from error
    finally:
        if around is not None and not is_kept:
            shutil.rmtree(around, ignore_errors=True)
        for folder in new_parents:
            with contextlib.suppress(OSError):  # it contains the model, or another process's files
                folder.rmdir()


def not_writable(target: Path, error: OSError) -> SettingsError:
    """Returns the error for a folder that can't be written to, with the fix."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Make room there, or name a folder on another disk." if is_full else "Name another folder."
    return SettingsError(f"output={str(target)!r} can't be written to: {error.strerror or error}. {remedy}")


def _move(finished: Path, target: Path, *, is_there: bool) -> None:
    """Renames a folder to the target. If the target exists or the rename fails, it moves the files one by one.

    Raises:
        OSError: The folder can't be moved. It is complete at its old place.
    """
    if not is_there:
        try:
            os.rename(finished, target)
        except OSError as error:  # a virus scanner on Windows has it open, or another process made the target
            logger.info("%s can't be renamed, so its files are moved one by one: %s", finished, error)
        else:
            return
        target.mkdir(exist_ok=True)
    if any(name not in (*_OF_FILE_SYSTEMS, finished.parent.name) for name in os.listdir(target)):
        raise FileExistsError(errno.EEXIST, "other files are in the folder now", str(target))
    begun = []
    try:
        # The manifest comes last: a folder without it is incomplete and is never loaded.
        for file in sorted(finished.iterdir(), key=lambda file: file.name == MANIFEST):
            begun.append(file)
            _move_file(file, target / file.name)
    except OSError:
        for file in reversed(begun):
            _move_back(target / file.name, file)
        if not is_there:
            with contextlib.suppress(OSError):  # the original error is raised below
                target.rmdir()
        raise


def _move_file(file: Path, place: Path) -> None:
    try:
        os.rename(file, place)
    except OSError:  # another program has it open, or the place is on another device
        shutil.copyfile(file, place)


def _move_back(moved: Path, file: Path) -> None:
    """Undoes `_move_file`, even if it failed halfway."""
    with contextlib.suppress(FileNotFoundError):
        if file.exists():
            moved.unlink()
        else:
            _move_file(moved, file)
