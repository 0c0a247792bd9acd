"""Bars of tqdm that never raise, even if standard error is missing, closed or broken.

tqdm writes while it holds one lock for all bars of the process. If writing raises, tqdm does not release the lock
(`tqdm.std.tqdm.refresh`). Then the next bar of another thread waits for ever.
"""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import Any

from bge_integrations.backend.guarantees.forks import in_child
from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)


@cache
def steady(kind: type[Any]) -> type[Any]:
    """Returns a safe subclass of a class of bars.

    Its bars show nothing without a standard error, stop when they cannot write to it, and leave no lock behind. Bars of
    other classes may be shown above and below them.

    Args:
        kind: `tqdm.tqdm` or a class derived from it.
    """
    return type(kind.__name__, (_Steady, kind), {"__module__": __name__})


class _Screen:
    """A stream whose write never raises. It compares equal to the wrapped stream, by which tqdm finds the width."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - an application may have replaced standard error
        self._stream = stream
        self._works = True

    def write(self, text: str) -> None:
        """Writes, unless writing has failed before."""
        self._try("write", text)

    def flush(self) -> None:
        """Flushes, unless something has failed before."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return bool(self._try("isatty"))

    def _try(self, method: str, *args: str) -> Any:  # noqa: ANN401 - the stream's
        if self._works:
            try:
                return getattr(self._stream, method)(*args)
            except Exception as error:  # from the system, a closed file, an encoding or an application's class
                self._works = False
                logger.info("a progress bar is not shown any more, because writing to standard error failed: %r", error)
        return None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the stream
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._stream

    def __hash__(self) -> int:
        return id(self)


class _Steady:
    """Base class before a class of tqdm in the method resolution order."""

    # Not tqdm's own lock: a bar of another library may have left it locked, and it starts a process for semaphores.
    _lock = threading.RLock()
    # No monitor thread: it serves bars that rarely check the time, but these check it at every update.
    monitor_interval = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - tqdm's
        stream = kwargs.get("file") or sys.stderr
        if stream is None:
            kwargs["disable"] = True
        else:
            kwargs |= {"file": _Screen(stream), "miniters": kwargs.get("miniters") or 1}
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # tqdm flushes both standard streams itself, and widgets may raise any error
            logger.info("a progress bar can't be shown: %r", error)
            super().__init__(*args, **{**kwargs, "disable": True})

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:  # noqa: ANN401 - tqdm's
        """As in tqdm, but always releases the lock."""
        inner: Any = super()
        if nolock or lock_args:
            return inner.refresh(nolock=nolock, lock_args=lock_args)
        with self._lock:
            return inner.refresh(nolock=True)

    def clear(self, nolock: bool = False) -> None:
        """As in tqdm, but always releases the lock."""
        inner: Any = super()
        if nolock:
            inner.clear(nolock=True)
            return
        with self._lock:
            inner.clear(nolock=True)


@in_child
def _after_fork() -> None:
    _Steady._lock = threading.RLock()
