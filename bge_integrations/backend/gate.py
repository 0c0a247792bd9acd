"""Keeps what is in flight within a limit: who comes when it is full waits for room, first come, first served."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError


class Gate:
    """Lets so many texts in at a time. Safe to use from any thread."""

    def __init__(self) -> None:
        # Reentrant, since setting a future runs its callbacks, which may come back here.
        self._lock = threading.RLock()
        self._inside = 0
        self._waiting: deque[tuple[int, int, Future[None]]] = deque()
        self._error: Exception | None = None

    def enter(self, texts: int, limit: int) -> Future[None]:
        """Asks to be let in.

        Args:
            texts: How many come in together. They need not fit where nobody else is inside.
            limit: Texts that may be inside together, they included.

        Returns:
            Done when they are inside, which then must `leave`; cancelling it before gives up the place.
        """
        entry: Future[None] = Future()
        with self._lock:
            if self._error is not None:
                entry.set_exception(self._error)
            else:
                self._waiting.append((texts, limit, entry))
                self._admit()
        return entry

    def leave(self, texts: int) -> None:
        """Makes room again."""
        with self._lock:
            self._inside -= texts
            self._admit()

    def close(self, error: Exception) -> None:
        """Lets nobody in any more; those who wait get the error."""
        with self._lock:
            self._error = error
            waiting = [entry for _, _, entry in self._waiting]
            self._waiting.clear()
        for entry in waiting:
            with contextlib.suppress(InvalidStateError):
                entry.set_exception(error)

    def after_fork(self) -> None:
        """Makes it harmless in a forked child, for what was inside when a thread that is not there any more held it."""
        self._lock = threading.RLock()

    def _admit(self) -> None:
        while self._waiting:
            texts, limit, entry = self._waiting[0]
            if self._inside and self._inside + texts > limit:
                return
            self._waiting.popleft()
            # Once it runs it can't be cancelled any more, so that a place is never given to nobody.
            if entry.set_running_or_notify_cancel():
                self._inside += texts
                entry.set_result(None)
