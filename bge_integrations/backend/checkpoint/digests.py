"""Digests of large files, computed once and remembered for as long as a file stays as it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_cache_path

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_NOTE = re.compile(r"(?P<digest>[0-9a-f]{64}) (?P<began>[0-9]{1,30})")
_CHUNK = 1 << 22
_SETTLED = 2_000_000_000
"""Nanoseconds after which two changes of a file have different times on every file system."""


def cache_root() -> Path:
    """Returns the folder of everything that this package keeps on disk, which may be deleted at any time.

    It is `BGE_INTEGRATIONS_CACHE`, else the system's usual place for caches.

    Raises:
        FileNotFoundError: There is none: the user has no home folder, as in a container with a user id of its own.
    """
    chosen = os.environ.get("BGE_INTEGRATIONS_CACHE")
    try:
        root = Path(chosen).expanduser() if chosen else user_cache_path("bge-integrations", appauthor=False)
    except RuntimeError as error:
        raise _no_home() from error
    if root.parts[:1] == ("~",):  # by former versions of platformdirs
        raise _no_home()
    return root


def _no_home() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no home folder to keep a cache in", "~")


def notes_folder() -> Path:
    """Returns the folder of remembered digests, a small file for each.

    Raises:
        FileNotFoundError: As `cache_root`.
    """
    return cache_root() / "digests"


def forget_digests() -> None:
    """Removes all remembered digests, which are read again from the files when they are needed.

    Raises:
        OSError: There is no cache, or it can't be written to.
    """
    for note in notes_folder().iterdir():
        note.unlink(missing_ok=True)


def file_identity(path: Path) -> tuple[int, ...]:
    """Returns numbers that change whenever a file is written to or replaced, wherever symlinks lead.

    The time of the last change of the inode (ctime) can't be set, unlike that of the content, which rsync, archives and
    image layers set to what it was. Not covered: two changes within one tick of the file system's clock (some
    milliseconds, on FAT two seconds) that leave the size as it is; Windows, where ctime is the time of creation, so
    that a file must change its size or its time of content; and files of which a server or a virtual machine keeps no
    ctime. A change of rights alone makes a new identity too, which only costs reading the file again.

    Raises:
        OSError: There is no such file.
    """
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content.

    The hub's cache names large files by it already. Any other is read once, and again only after its identity has
    changed.

    Raises:
        OSError: There is no such file, or it can't be read.
    """
    real = path.resolve()
    identity = file_identity(real)
    if _is_blob_as_fetched(path, real):
        return real.name
    text = "\0".join(map(str, (real, *identity)))
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        remembered = _NOTE.fullmatch((notes_folder() / name).read_text(encoding="ascii"))
        # A file that had changed just before it was read may have this identity with another content by now.
        if remembered and int(remembered["began"]) - max(identity[-2:]) > _SETTLED:
            return remembered["digest"]
    except (OSError, ValueError):
        pass  # not seen yet, or the note is damaged
    began = time.time_ns()
    digest = content_digest(real)
    if file_identity(real) == identity:
        _remember(name, f"{digest} {began}")
    return digest


def key_of(facts: Mapping[str, object]) -> str:
    """Returns the key of what a cached thing depends on: 32 letters and digits, equal for equal facts in any process.

    Args:
        facts: Names and plain data, as JSON has it. Names of classes and of their fields are not among them, so that a
            change of the code alone loses nobody's cache.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _is_blob_as_fetched(path: Path, real: Path) -> bool:
    """Whether a file is one that the hub's client named by its content, and that nobody wrote into since.

    The client makes the symlink after the file. Who saves a model into a snapshot writes through the symlink.
    """
    return (
        path.is_symlink()
        and real.parent.name == "blobs"
        and _BLOB_NAME.fullmatch(real.name) is not None
        and real.stat().st_mtime_ns <= path.lstat().st_mtime_ns
    )


def content_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content as it is now, and remembers nothing; for files that are moved later.

    Raises:
        OSError: There is no such file, or it can't be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remember(name: str, text: str) -> None:
    try:
        note = notes_folder() / name
        unfinished = note.with_name(f"{name}.{os.getpid()}")
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="ascii")
        unfinished.replace(note)
    except OSError:  # a read-only home: the file is read again next time
        return
