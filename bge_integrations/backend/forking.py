"""A lock and a cache that a forked child can use, whatever threads that stayed with the parent were doing.

A lock that such a thread held is held for ever in the child. Of this package's locks these are made anew there, as are
those of a `Scheduler`. What is left belongs to one call (`Job`, `Progress`), which the child knows nothing of, or to an
engine, which the child makes anew.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class ForkSafeLock:
    """A lock that in a forked child nobody holds, but for the thread that forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = None
        self._lock.release()

    def after_fork(self) -> None:
        """Frees it in a forked child from a thread that is not there any more."""
        if self._owner != threading.get_ident():
            self._lock = threading.Lock()
            self._owner = None


class cached(Generic[Value]):
    """`functools.cached_property` without the lock that it has before Python 3.12, one for all objects of a class."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type | None = None) -> Value:  # noqa: ANN401 - of any class
        value = self._compute(owner)
        owner.__dict__[self._name] = value  # found before this is asked again
        return value


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


if hasattr(os, "register_at_fork"):

    def _after_fork() -> None:
        for lock in list(_locks):
            lock.after_fork()

    os.register_at_fork(after_in_child=_after_fork)
