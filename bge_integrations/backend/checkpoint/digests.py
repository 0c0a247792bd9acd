"""Digests of large files, computed once and remembered until the file changes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_NOTE = re.compile(r"(?P<digest>[0-9a-f]{64}) (?P<began>[0-9]{1,30})")
_CHUNK = 1 << 22
_SETTLED = 2_000_000_000
"""Nanoseconds after which two changes of a file have different times on every file system."""


# What a tokenizer consists of, in the formats of all libraries.
_TOKENIZER_FILES = re.compile(
    r"(.*/)?(tokenizer[^/]*|special_tokens_map\.json|added_tokens\.json|vocab\.[^/]+|merges\.txt|bpe\.codes"
    r"|[^/]+\.(model|spm|vocab|bpe|tiktoken))"
)
_WEIGHTS_FILES = re.compile(r".*\.(safetensors|bin|pt|gguf)")


@dataclass(frozen=True)
class Digests:
    """Digests of a model's files, 64 hex digits each.

    Attributes:
        content: Weights, tokenizer and configuration; `""` for a model on a server.
        weights: The files with weights; `None` if unknown.
        tokenizer: The tokenizer's files; `None` if unknown.
    """

    content: str
    weights: str | None = None
    tokenizer: str | None = None

    @classmethod
    def of_files(cls, files: Mapping[str, str], base: Digests | None = None) -> Digests:
        """Returns the digests of files.

        Args:
            files: Digest of each file by its path in the model's folder, in a fixed order.
            base: For an adapter, the digests of its base model.
        """
        return cls(
            _combined(files, base.content if base else None),
            _combined({n: d for n, d in files.items() if _WEIGHTS_FILES.fullmatch(n)}, base.weights if base else None),
            _combined(
                {n: d for n, d in files.items() if _TOKENIZER_FILES.fullmatch(n)}, base.tokenizer if base else None
            ),
        )


def _combined(files: Mapping[str, str], base: str | None) -> str:
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{content}\n".encode())
    if base:
        digest.update(f"base\0{base}\n".encode())
    return digest.hexdigest()


def cache_root() -> Path:
    """Returns the folder of everything that this package keeps on disk, which may be deleted at any time.

    It is `BGE_INTEGRATIONS_CACHE`, else the system's usual place for caches.

    Raises:
        FileNotFoundError: The user has no home folder, as in a container that runs under an unknown user id.
    """
    chosen = os.environ.get("BGE_INTEGRATIONS_CACHE")
    try:
        root = Path(chosen).expanduser() if chosen else user_cache_path("bge-integrations", appauthor=False)
    except RuntimeError as error:
        raise _no_home() from error
    if root.parts[:1] == ("~",):  # older versions of platformdirs return this
        raise _no_home()
    return root


def _no_home() -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no home folder to keep a cache in", "~")


def notes_folder() -> Path:
    """Returns the folder of remembered digests, one small file each.

    Raises:
        FileNotFoundError: As `cache_root`.
    """
    return cache_root() / "digests"


def forget_digests() -> None:
    """Removes all remembered digests. They are computed again when they are needed.

    Raises:
        OSError: There is no cache, or it can't be written to.
    """
    for note in notes_folder().iterdir():
        note.unlink(missing_ok=True)


def file_identity(path: Path) -> tuple[int, ...]:
    """Returns numbers that change when a file is written to or replaced. It follows symlinks.

    The change time of the inode (ctime) can't be set. The modification time (mtime) can: rsync, archives and image
    layers restore it. These changes are not noticed:

    - two changes within one tick of the file system's clock (some milliseconds, two seconds on FAT), at equal size;
    - a change of the content alone on Windows, where ctime is the creation time: size or mtime must change there;
    - changes on servers and virtual machines that keep no ctime.

    A change of permissions alone also changes the identity. It only costs reading the file again.

    Raises:
        OSError: There is no such file.
    """
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content.

    The hub's cache uses it as the name of large files. Any other file is read again only if its identity has changed.

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
        # If the file changed just before it was read, it may have changed once more under the same identity.
        if remembered and int(remembered["began"]) - max(identity[-2:]) > _SETTLED:
            return remembered["digest"]
    except (OSError, ValueError):
        pass  # there is no note, or it is damaged
    began = time.time_ns()
    digest = content_digest(real)
    if file_identity(real) == identity:
        _remember(name, f"{digest} {began}")
    return digest


def key_of(facts: Mapping[str, object]) -> str:
    """Returns a cache key: 32 letters and digits, equal for equal facts in any process.

    Args:
        facts: Everything that the cache entry depends on, as plain data for JSON. Names of classes and fields must not
            be in it: a change of the code alone must not invalidate the cache.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def cache_name(model_name: str) -> str:
    """Returns the last part of a model's name, in letters, digits, `.` and `-`, for names in a cache."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", os.path.basename(os.path.normpath(model_name)))


def _is_blob_as_fetched(path: Path, real: Path) -> bool:
    """Whether the hub's client named this file by its content, and the file has not been written to since.

    The client makes the symlink after the file. A model that is saved into a snapshot is written through the symlink.
    """
    return (
        path.is_symlink()
        and real.parent.name == "blobs"
        and _BLOB_NAME.fullmatch(real.name) is not None
        and real.stat().st_mtime_ns <= path.lstat().st_mtime_ns
    )


def content_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's current content without remembering it, for files that are moved later.

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
    except OSError:  # such as a read-only home folder; the file is then read again next time
        return
