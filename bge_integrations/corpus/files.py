"""Files of the output, and claims on work in a folder that several machines share."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from typing_extensions import Self

from bge_integrations.backend.guarantees.files import WholeFile, is_of_a_dead_process, own_name
from bge_integrations.errors import CorpusWriteError

__all__ = ["Claims", "remove", "write_file", "writing"]

HEARTBEAT_S = 5.0
"""A living worker touches its claims in this interval."""
_SILENCE_S = 60.0
"""A claim that was not touched for this time belongs to a worker that died, or lost the folder."""


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that it is never seen half written, and is there after a power failure.

    Raises:
        CorpusWriteError: It can't be written.
    """
    with writing(path), WholeFile(path) as file:
        file.write(content)


def remove(path: Path) -> None:
    """Removes a file or a folder. Another worker may do the same at the same time."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes a file of the output.

    Raises:
        CorpusWriteError: The block raised an `OSError`.
    """
    try:
        yield
    except CorpusWriteError:
        raise
    except OSError as error:
        raise CorpusWriteError(
            f"{path} can't be written: {error.strerror or error}. Finished files stay as they are: remove the cause, "
            "and run the same command again."
        ) from error


class Claims:
    """Says which pieces of work are in hand, so that no two workers do the same.

    A claim only saves work. If two workers hold the same one, both write the same files. A claim is a small file that
    its worker touches every few seconds. One of a process of this machine that has ended is free at once, and any other
    one after a minute without a touch. The clocks of the machines need not agree.
    """

    def __init__(self, folder: Path) -> None:
        """Starts without a claim.

        Args:
            folder: The folder for the small files. It has to exist.
        """
        self._folder = folder
        self._token = uuid.uuid4().hex
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._seen: dict[Path, tuple[int, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="bge-claims", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread that touches the claims."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Gives all claims up."""
        self._ended.set()
        self._thread.join()
        for path in list(self._held):
            self.give_up(path.name)

    def take(self, name: str) -> bool:
        """Takes a piece of work.

        Returns:
            Whether it is this worker's now. Otherwise another worker has it.
        """
        path = self._folder / name
        if path in self._held:
            return True
        content = json.dumps({"process": own_name(), "token": self._token}).encode()
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if not self._is_free(path):
                return False
            write_file(path, content)
        except OSError as error:
            with writing(path):
                raise error
        else:
            with writing(path), os.fdopen(descriptor, "wb") as file:
                file.write(content)
        if self._read(path).get("token") != self._token:  # another worker took it at the same moment
            return False
        with self._lock:
            self._held.add(path)
        return True

    def give_up(self, name: str) -> None:
        """Gives a piece of work back."""
        path = self._folder / name
        with self._lock:
            self._held.discard(path)
        if self._read(path).get("token") == self._token:
            with suppress(OSError):
                path.unlink()

    def _is_free(self, path: Path) -> bool:
        if is_of_a_dead_process(str(self._read(path).get("process"))):
            return True
        try:
            touched = path.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        now = time.monotonic()
        before, since = self._seen.setdefault(path, (touched, now))
        if before != touched:
            self._seen[path] = touched, now
            return False
        return now - since > _SILENCE_S

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError):  # removed, or just made
            return {}
        return found if isinstance(found, dict) else {}

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with self._lock:
                held = list(self._held)
            for path in held:
                with suppress(OSError):
                    os.utime(path)
