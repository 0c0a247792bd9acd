"""The folder that a prepared model is written to: what may be there before, and how the finished model gets there."""

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
"""What a new file system holds, so that a volume that was just mounted counts as empty."""


def output_folder(output: str | os.PathLike[str]) -> Path:
    """Returns the whole path of a folder that is not there yet, or is empty.

    Whether it can be written to, `folder_to_fill` finds out.

    Raises:
        SettingsError: Something else is there, or the path can't lead to a folder.
    """
    written = os.fspath(output)
    if not written:
        raise SettingsError("output='' names no folder; give one, or '.' for the current folder.")
    if "\0" in written:
        raise SettingsError(f"output={written!r} holds a null character, which no path can have; name another folder.")
    try:
        target = Path(written).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"output={written!r} can't be found: {error} Write the path without '~'.") from error
    except FileNotFoundError as error:
        raise SettingsError(
            f"output={written!r} can't be found: the current folder was deleted. Change into another folder, or give "
            "a path that begins at the root."
        ) from error
    if ".." in target.parts:
        target = Path(os.path.realpath(target))  # a folder that is named on the way need not be there
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
                f"output={written!r} is a symlink to {os.readlink(target)!r}, where there is no folder; name a new "
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
        raise SettingsError(
            f"output={written!r} can't be looked into: {error.strerror}. Name another folder."
        ) from error
    if not is_free:
        raise SettingsError(f"output={written!r} exists already; name a new folder or an empty one.")


def _first_file(path: Path) -> Path:
    """Returns what stands on the way to a path and is no folder."""
    return next(folder for folder in reversed([path, *path.parents]) if not os.path.isdir(folder))


@contextlib.contextmanager
def folder_to_fill(target: Path) -> Iterator[Path]:
    """Makes a folder beside a new target, or inside one that is there, and moves what comes into it to its place.

    An empty folder stays the one it is, since it may be the current folder or a mounted volume. Whatever goes wrong,
    nothing is left behind, except a finished model that could not be moved.

    Args:
        target: What `output_folder` returned.

    Raises:
        SettingsError: Nothing can be written there, or the finished model can't be moved there.
    """
    is_there = os.path.isdir(target)
    parent = target if is_there else target.parent
    new_parents = [folder for folder in (parent, *parent.parents) if not os.path.lexists(folder)]
    around = None
    is_kept = False
    try:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            # Not by `tempfile`, whose folders are their owner's alone: on Windows what is made inside, and moved out
            # of it later, would be so too.
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
                f"output={str(target)!r} can't take the finished model: {error.strerror or error}. The model was left "
                f"in {str(unfinished)!r}; move this folder to where it should be."
            ) from error
    finally:
        if around is not None and not is_kept:
            shutil.rmtree(around, ignore_errors=True)
        for folder in new_parents:
            with contextlib.suppress(OSError):  # it holds the model, or something of others
                folder.rmdir()


def not_writable(target: Path, error: OSError) -> SettingsError:
    """Says that the folder can't be written to, and what to do about it."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "Make room there, or name a folder on another disk." if is_full else "Name another folder."
    return SettingsError(f"output={str(target)!r} can't be written to: {error.strerror or error}. {remedy}")


def _move(finished: Path, target: Path, *, is_there: bool) -> None:
    """Moves a folder as a whole, or, where the target is there or refuses this, its files one by one.

    Raises:
        OSError: It can't be moved; it is whole where it was.
    """
    if not is_there:
        try:
            os.rename(finished, target)
        except OSError as error:  # on Windows a virus scanner may hold the folder; or another process made the target
            logger.info("%s can't be renamed, so that its files are moved one by one: %s", finished, error)
        else:
            return
        target.mkdir(exist_ok=True)
    if any(name not in (*_OF_FILE_SYSTEMS, finished.parent.name) for name in os.listdir(target)):
        raise FileExistsError(errno.EEXIST, "something else is there by now", str(target))
    begun = []
    try:
        # The manifest last: a folder without it is incomplete, and is never loaded.
        for file in sorted(finished.iterdir(), key=lambda file: file.name == MANIFEST):
            begun.append(file)
            _move_file(file, target / file.name)
    except OSError:
        for file in reversed(begun):
            _move_back(target / file.name, file)
        if not is_there:
            with contextlib.suppress(OSError):  # what stands in the way is said by the error that led here
                target.rmdir()
        raise


def _move_file(file: Path, place: Path) -> None:
    try:
        os.rename(file, place)
    except OSError:  # held by another program, or on another device
        shutil.copyfile(file, place)


def _move_back(moved: Path, file: Path) -> None:
    """Undoes `_move_file`, also where it got stuck."""
    with contextlib.suppress(FileNotFoundError):
        if file.exists():
            moved.unlink()
        else:
            _move_file(moved, file)
