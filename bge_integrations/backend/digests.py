"""Digests of large files, computed once and remembered for as long as a file stays as it is."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from platformdirs import user_cache_path

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 22


def cache_root() -> Path:
    """Returns the folder of everything that this package keeps on disk, which may be deleted at any time.

    It is `BGE_INTEGRATIONS_CACHE`, else the system's usual place for caches.
    """
    chosen = os.environ.get("BGE_INTEGRATIONS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("bge-integrations", appauthor=False)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file's content.

    The hub's cache names large files by it already. Any other is read once, and again only after its size,
    time of change or place has changed.
    """
    real = path.resolve()
    if real.parent.name == "blobs" and _BLOB_NAME.fullmatch(real.name):
        return real.name
    stat = real.stat()
    identity = f"{real}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}"
    note = cache_root() / "digests" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        remembered = note.read_text(encoding="ascii")
        if _BLOB_NAME.fullmatch(remembered):
            return remembered
    except (OSError, ValueError):
        pass  # not seen yet, or the note is damaged
    digest = _digest(real)
    _remember(note, digest)
    return digest


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _remember(note: Path, digest: str) -> None:
    unfinished = note.with_name(f"{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(digest, encoding="ascii")
        unfinished.replace(note)
    except OSError:  # a read-only home: the file is read again next time
        return
