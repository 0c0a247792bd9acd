"""Progress bars that cost no result: tqdm's, on a standard error that may be missing, closed or broken.

tqdm writes while it holds a lock, one for all bars of a process, and does not release it if writing raises
(`tqdm.std.tqdm.refresh`). The next bar of another thread then waits for ever.
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
    """Makes a class of bars from another one of tqdm's kind.

    Its bars show nothing where there is no standard error, stop showing anything where it can't be written to, and
    leave no lock behind. Bars of other classes may stand above and below them.

    Args:
        kind: `tqdm.tqdm`, or a class derived from it.
    """
    return type(kind.__name__, (_Steady, kind), {"__module__": __name__})


class _Screen:
    """A stream that raises nothing when it is written to. It is equal to the stream, by which tqdm knows its width."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 - whatever an application has put in the place of one
        self._stream = stream
        self._works = True

    def write(self, text: str) -> None:
        """Writes, unless writing has failed before."""
        self._try("write", text)

    def flush(self) -> None:
        """Flushes, unless something has failed before."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return bool(self._try("isatty"))

    def _try(self, method: str, *args: str) -> Any:  # noqa: ANN401 - whatever the stream returns
        if self._works:
            try:
                return getattr(self._stream, method)(*args)
            except Exception as error:  # of the system, of a closed file, of an encoding, of an application's class
                self._works = False
                logger.info("a progress bar is not shown any more, since standard error can't be written to: %r", error)
        return None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the stream
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._stream

    def __hash__(self) -> int:
        return id(self)


class _Steady:
    """Goes before a class of tqdm's."""

    # Not tqdm's own, which a bar of another library may have left held, and which starts a process for semaphores.
    _lock = threading.RLock()
    # Its thread is there for bars that look at the clock only now and then; these do at every update.
    monitor_interval = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - tqdm's
        stream = kwargs.get("file") or sys.stderr
        if stream is None:
            kwargs["disable"] = True
        else:
            kwargs |= {"file": _Screen(stream), "miniters": kwargs.get("miniters") or 1}
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:  # tqdm flushes both standard streams itself, and widgets fail in their own ways
            logger.info("a progress bar can't be shown: %r", error)
            super().__init__(*args, **{**kwargs, "disable": True})

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> Any:  # noqa: ANN401 - tqdm's
        """As tqdm's, but releases the lock in any case."""
        inner: Any = super()
        if nolock or lock_args:
            return inner.refresh(nolock=nolock, lock_args=lock_args)
        with self._lock:
            return inner.refresh(nolock=True)

    def clear(self, nolock: bool = False) -> None:
        """As tqdm's, but releases the lock in any case."""
        inner: Any = super()
        if nolock:
            inner.clear(nolock=True)
            return
        with self._lock:
            inner.clear(nolock=True)


@in_child
def _after_fork() -> None:
    _Steady._lock = threading.RLock()
