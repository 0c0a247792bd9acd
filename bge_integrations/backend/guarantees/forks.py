"""Safe forks: a forked process needs no lock and no thread of its parent, and the fork interrupts no native code.

If one thread holds a lock while another thread forks, the lock stays held in the child for ever. So the child replaces
all locks of this package, and all objects of threads that exist only in the parent. Python reports its own forks, but
servers that embed Python (uWSGI, mod_wsgi, Passenger) fork without its knowledge. So every entry into the package also
compares the process id.

OpenVINO's own locks cannot be replaced: 2 to 8 % of children that were forked while another thread computed died or
hung in its compiler. So a fork that Python knows of waits until no thread runs OpenVINO.

All other state belongs to one call, which does not exist in the child, or to an engine, which the child creates again.
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
"""For threads in OpenVINO. A batch takes less than a second; the compilation of a large model takes some seconds."""
_LONGEST_SETTLING_S = 0.25
"""OpenVINO's own threads go to sleep only after a call has returned, and hold locks until then."""
_TASKS = Path("/proc/self/task")
_LONGEST_WAIT_AT_THE_END_S = 10.0
LONGEST_START_S = 60.0
"""Start time of an engine after which a warning says that it may never be ready."""

_process = os.getpid()
_actions: list[Callable[[], None]] = []
_noticing: dict[int, threading.RLock] = {}
"""One lock per process, so that no thread of the parent can hold it."""


def in_child(action: Action) -> Action:
    """Registers a function that runs first in every forked process; a decorator."""
    _actions.append(action)
    return action


def notice_fork() -> None:
    """Runs the registered functions if the process id has changed since the last call. Takes some 100 ns."""
    global _process
    own = os.getpid()
    if own == _process:
        return
    with _noticing.setdefault(own, threading.RLock()):  # several threads of the child may come at the same time
        if own != _process:
            for action in _actions:
                action()
            _process = own


class ForkSafeLock:
    """A lock that is free in a forked child, unless the forking thread itself holds it."""

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
        """Frees the lock in a forked child if its owner exists only in the parent."""
        if self._owner != threading.get_ident():
            self._lock = threading.Lock()
            self._owner = None


class cached(Generic[Value]):
    """`functools.cached_property` without its lock before Python 3.12, which all objects of a class shared."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type | None = None) -> Value:  # noqa: ANN401 - of any class
        value = self._compute(owner)
        owner.__dict__[self._name] = value  # Python finds it there first at the next access
        return value


class _Inside:
    """Context manager of threads that run native code. A thread that forks closes it for the other threads.

    `__enter__` and `__exit__` take no lock unless a thread forks: a lock would cost every batch more than all else.
    A thread first writes its own entry and then reads `_closed_by`. A forking thread first writes `_closed_by` and then
    reads the entries. So at least one of the two sees the other.
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
        # A thread that is already inside must be able to finish.
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
        """Keeps other threads out and waits until none is inside; `False` if one is after `longest_wait` seconds."""
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
        """Lets all threads in again if this thread has kept them out."""
        with self._changed:
            if self._closed_by == threading.get_ident():
                self._closed_by = None
                self._changed.notify_all()


def _settle(until: float) -> None:
    """Waits until all threads that Python does not know are asleep, at most until a time."""
    while time.monotonic() < until and _some_native_thread_runs():
        time.sleep(0.001)


def _some_native_thread_runs() -> bool:
    """Whether a thread that Python does not know runs or is about to run; True if the system does not say it."""
    known = {thread.native_id for thread in threading.enumerate()}
    try:
        return any(_state(task) != "S" for task in _TASKS.iterdir() if int(task.name) not in known)
    except OSError:  # another system
        return True


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "S" if _TASKS.exists() else "R"  # "S": the thread has ended meanwhile


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_inside = _Inside()


@contextmanager
def watched(tell: Callable[[], None]) -> Iterator[None]:
    """A block that starts an engine. A function is called if the block has not ended after `LONGEST_START_S`."""
    watch = threading.Timer(LONGEST_START_S, tell)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def native_code() -> AbstractContextManager[None]:
    """A block of native code that a fork and the exit of Python must not interrupt."""
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
    """Waits for daemon threads that run native code, and lets no thread in any more.

    Before 3.14, Python ends a thread that returns to it too late by unwinding its stack. Rust and C++ code then aborts
    the process.
    """
    notice_fork()
    _inside.close(_LONGEST_WAIT_AT_THE_END_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=lambda: _inside.open(), after_in_child=notice_fork)
