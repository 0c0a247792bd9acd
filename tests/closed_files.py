"""Files and folders that a test closes to itself, whoever runs it."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def open_to_everybody() -> Iterator[Path]:
    """A temporary folder that every user can look into; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def as_a_user_without_rights() -> Iterator[None]:
    """Has the system check rights as of an ordinary user; the superuser, whom tests may run as, may read everything."""
    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    codecs.lookup("utf-8-sig")  # Python's own files may be closed to that user too
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
