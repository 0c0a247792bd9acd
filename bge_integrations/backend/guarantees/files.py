"""Files that are there as a whole or not at all, also after a power failure."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)


class WholeFile:
    """A file that has another name until it is complete. As a context, it is complete if the block raises no error.

    Attributes:
        content: The open file.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Args:
            path: The name of the complete file. A file of this name is replaced at the end.
        """
        self._path = path
        self._unfinished = path.with_name(f"{path.name}.{threading.get_ident()}.{own_name()}.tmp")
        self.content: IO[bytes] = self._unfinished.open("wb")

    def __enter__(self) -> IO[bytes]:
        return self.content

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.give_up()

    def finish(self) -> None:
        """Gives the file its name."""
        try:
            with self.content:
                self.content.flush()
                os.fsync(self.content.fileno())
            move(self._unfinished, self._path)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Removes what was written."""
        with suppress(OSError):
            self.content.close()
        with suppress(OSError):
            self._unfinished.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Renames a file or folder, and makes the new name last."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last. Windows can't open a folder for this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems refuse this
        logger.info("%s can't be synchronised: %s", folder, error)
    finally:
        os.close(descriptor)


def own_name() -> str:
    """Returns a name of this process among all that may share a folder."""
    return f"{_host()}.{os.getpid()}"


def is_of_a_dead_process(name: str) -> bool:
    """Returns whether `own_name` gave this name to a process of this machine that has ended."""
    host, _, process = name.rpartition(".")
    # On Windows, `os.kill` would end the process.
    if os.name == "nt" or host != _host() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _host() -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())
