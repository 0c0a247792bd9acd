"""Keeps what is in flight within a limit: who comes when it is full waits for room, first come, first served."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class _Entry:
    texts: int
    limit: int
    # Both are let go of once it needn't wait any more: what is let in holds its future, and that future this entry.
    done: Future[Any] | None
    admit: Callable[[], None] | None
    is_inside: bool = False


class Gate:
    """Lets so many texts in at a time. Safe to use from any thread that is never interrupted."""

    def __init__(self) -> None:
        # Reentrant, since what is let in may be done at once, and leave.
        self._lock = threading.RLock()
        self._inside = 0
        self._waiting: deque[_Entry] = deque()
        self._error: Exception | None = None

    def enter(self, texts: int, limit: int, done: Future[Any], admit: Callable[[], None]) -> None:
        """Asks to be let in.

        Args:
            texts: How many come in together. They need not fit where nobody else is inside.
            limit: Texts that may be inside together, they included.
            done: They are inside until this is done; done before, they give up their place.
            admit: Called when they are let in.

        Raises:
            Exception: What `close` was given.
        """
        entry = _Entry(texts, limit, done, admit)
        with self._lock:
            if self._error is not None:
                raise self._error
            self._waiting.append(entry)
            self._admit()
        done.add_done_callback(lambda _: self._leave(entry))

    def close(self, error: Exception) -> None:
        """Lets nobody in any more; those who wait get the error."""
        with self._lock:
            self._error = error
            waiting = list(self._waiting)
            self._waiting.clear()
        for entry in waiting:
            done, entry.done, entry.admit = entry.done, None, None
            if done is not None:
                with contextlib.suppress(InvalidStateError):  # cancelled
                    done.set_exception(error)

    def _leave(self, entry: _Entry) -> None:
        with self._lock:
            if entry.is_inside:
                entry.is_inside = False
                self._inside -= entry.texts
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            entry = self._waiting[0]
            if entry.done is not None and not entry.done.done():
                if self._inside and self._inside + entry.texts > entry.limit:
                    return
                entry.is_inside = True
                self._inside += entry.texts
            self._waiting.popleft()
            admit, entry.admit, entry.done = entry.admit, None, None
            if entry.is_inside and admit is not None:
                admit()
