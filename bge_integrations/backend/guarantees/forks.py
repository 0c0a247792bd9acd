"""What holds in a forked process: no lock is held, no thread is waited for, and native code was not in its work.

A lock that a thread held when another one forked is held for ever in the child. So all locks of this package are made
anew there, and everything that belongs to threads that stayed with the parent. Python says when it forks, but servers
that embed it (uWSGI, mod_wsgi, Passenger) fork without its knowledge; so every way into the package compares the
process id too.

OpenVINO's own locks can't be made anew: of children that were forked while another thread computed, 2 to 8 in a hundred
died or hung in its compiler. So a fork waits until no thread is inside of it, as far as Python knows of the fork.

What is left belongs to one call, which the child knows nothing of, or to an engine, which the child makes anew.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from bge_integrations.backend.guarantees.logs import get_logger

logger = get_logger(__name__)

Value = TypeVar("Value")
Action = TypeVar("Action", bound=Callable[[], None])

_LONGEST_WAIT_S = 30.0
"""For threads inside of OpenVINO; a batch takes less than a second, and a large model some seconds to compile."""
_LONGEST_SETTLING_S = 0.25
"""OpenVINO's own threads go to sleep only after a call has returned, with locks in hand on their way."""
_TASKS = Path("/proc/self/task")
_LONGEST_WAIT_AT_THE_END_S = 10.0
LONGEST_START_S = 60.0
"""Of an engine, before its user is told that it may never be ready."""

_process = os.getpid()
_actions: list[Callable[[], None]] = []
_noticing: dict[int, threading.RLock] = {}
"""A lock for each process, so that no thread that stayed with the parent can hold it."""


def in_child(action: Action) -> Action:
    """Registers what is to be done in every forked process before anything else; a decorator."""
    _actions.append(action)
    return action


def notice_fork() -> None:
    """Does what is registered if this is another process than at the last call. Takes some hundred nanoseconds."""
    global _process
    own = os.getpid()
    if own == _process:
        return
    with _noticing.setdefault(own, threading.RLock()):  # several threads of the child may come at once
        if own != _process:
            for action in _actions:
                action()
            _process = own


class ForkSafeLock:
    """A lock that in a forked child nobody holds, but for the thread that forked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        _locks.add(self)

    def __enter__(self) -> None:
        notice_fork()
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


class _Inside:
    """Which threads are inside of native code, and whether one is about to fork. A context of those inside.

    Entering and leaving take no lock, since that would cost every batch more than the work of this class. Each thread
    writes its own entry alone, and then looks whether somebody closes the door; who closes it does so first, and then
    looks at the entries.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._depths: dict[int, int] = {}
        self._closed_by: int | None = None
        self._last_left = 0.0

    def __enter__(self) -> None:
        own = threading.get_ident()
        depth = self._depths.get(own, 0)
        self._depths[own] = depth + 1
        # Who is inside already must be able to finish.
        while not depth and self._closed_by not in (None, own):
            self._leave(own)
            with self._changed:
                while self._closed_by not in (None, own):
                    self._changed.wait()
            self._depths[own] = 1

    def __exit__(self, *_: object) -> None:
        own = threading.get_ident()
        if self._depths[own] > 1:
            self._depths[own] -= 1
        else:
            self._leave(own)

    def _leave(self, own: int) -> None:
        del self._depths[own]
        self._last_left = time.monotonic()
        if self._closed_by is not None:
            with self._changed:
                self._changed.notify_all()

    def close(self, longest_wait: float) -> bool:
        """Keeps all other threads out, and waits until none is inside; False if one still is after so many seconds."""
        own, until = threading.get_ident(), time.monotonic() + longest_wait
        with self._changed:
            while self._closed_by is not None:  # by another thread that forks
                if not self._changed.wait(until - time.monotonic()):
                    return False
            self._closed_by = own
            while any(thread != own for thread in list(self._depths)):
                if not self._changed.wait(until - time.monotonic()):
                    return False
        _settle(self._last_left + _LONGEST_SETTLING_S)
        return True

    def open(self) -> None:
        """Lets all in again, if it was this thread that kept them out."""
        with self._changed:
            if self._closed_by == threading.get_ident():
                self._closed_by = None
                self._changed.notify_all()


def _settle(until: float) -> None:
    """Waits until the threads that Python doesn't know are asleep, but no longer than until a time."""
    while time.monotonic() < until and _some_native_thread_runs():
        time.sleep(0.001)


def _some_native_thread_runs() -> bool:
    """Whether a thread that no Python code has started is running or about to; where that can't be told, it may be."""
    known = {thread.native_id for thread in threading.enumerate()}
    try:
        return any(_state(task) != "S" for task in _TASKS.iterdir() if int(task.name) not in known)
    except OSError:  # another system
        return True


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "S" if _TASKS.exists() else "R"  # it has ended meanwhile


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_inside = _Inside()


@contextmanager
def watched(tell: Callable[[], None]) -> Iterator[None]:
    """A block that starts an engine; calls a function if it has not ended after `LONGEST_START_S`."""
    watch = threading.Timer(LONGEST_START_S, tell)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def native_code() -> AbstractContextManager[None]:
    """A block of native code that must not be in the middle of work when a process is forked, or when Python ends."""
    return _inside


def _before_fork() -> None:
    if not _inside.close(_LONGEST_WAIT_S):
        logger.warning(
            "a process is forked while OpenVINO has computed for %d s in another thread; the child may not be able to "
            "use a model",
            _LONGEST_WAIT_S,
        )


@in_child
def _free_locks() -> None:
    global _inside
    _inside = _Inside()
    for lock in list(_locks):
        lock.after_fork()


@atexit.register
def _before_the_end() -> None:
    """Waits for daemon threads inside of native code, and lets none in any more.

    Before 3.14, Python ends a thread that comes back to it too late by unwinding its stack, where code in Rust or C++
    aborts the process.
    """
    notice_fork()
    _inside.close(_LONGEST_WAIT_AT_THE_END_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=lambda: _inside.open(), after_in_child=notice_fork)
