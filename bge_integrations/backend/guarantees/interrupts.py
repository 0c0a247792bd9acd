"""Work that no interrupt leaves half done.

Python runs signal handlers in the main thread, between any two of its operations. A handler that raises, such as the
one of Ctrl-C, leaves whatever the main thread was doing: a lock taken, a place in a queue given to nobody, a module
half imported. A later call would wait for it for ever. So the main thread does no such thing for this package. It puts
work into a queue and waits for its outcome, each in one operation of C; threads that no signal reaches do the work.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, Queue, SimpleQueue
from types import BuiltinFunctionType
from typing import Any, Generic, TypeVar, cast

from bge_integrations.backend.guarantees.forks import in_child, notice_fork
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.machine.cpu import usable_cores

logger = get_logger(__name__)

Result = TypeVar("Result")

_MOST_THREADS = 4
_POLL_S = 0.1 if os.name == "nt" else None
"""On Windows a thread that waits in C notices no Ctrl-C before Python 3.14."""


class Outcome(Generic[Result]):
    """What became of some work: its result, or the error that it raised."""

    def __init__(self, value: Result | None = None, error: BaseException | None = None) -> None:
        self._value = value
        self._error = error

    @classmethod
    def of(cls, work: Callable[[], Result]) -> Outcome[Result]:
        """Does the work."""
        try:
            return cls(work())
        except BaseException as error:
            return cls(error=error)

    def take(self) -> Result:
        """Returns the result, or raises the error."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                del self  # the error holds this frame
        return cast("Result", self._value)


def mailbox() -> SimpleQueue[Any] | Queue[Any]:
    """Returns a queue into which a thread puts something in one operation of C, which no interrupt leaves half done.

    Where threads are greenlets, they must not wait in C; another class is returned then.
    """
    return Queue() if _threads_are_greenlets() else SimpleQueue()


class Ticket(Generic[Result]):
    """What a caller waits with for an outcome that another thread gives, once."""

    def __init__(self) -> None:
        self._box: SimpleQueue[Outcome[Result]] | Queue[Outcome[Result]] = mailbox()
        self._wake: Callable[[], object] | None = None

    def give(self, outcome: Outcome[Result]) -> None:
        """Gives the outcome, from any thread."""
        self._box.put(outcome)
        if self._wake is not None:
            self._wake()

    def wait(self) -> Result:
        """Waits in this thread, and takes the outcome."""
        outcome = None
        while outcome is None:
            with suppress(Empty):
                outcome = self._box.get(timeout=_POLL_S)
        return outcome.take()

    async def arrival(self) -> Result:
        """Waits without blocking the event loop, and takes the outcome."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        self._wake = partial(_in_loop, loop, partial(_mark_done, arrived))
        if self._box.empty():  # else it was given before there was anything to wake
            await arrived
        return self._box.get_nowait().take()


def hand_over(work: Callable[[], object]) -> None:
    """Does a short piece of work that must be done as a whole: here, or elsewhere if this is the main thread.

    What the main thread hands over is done in the order in which it came, and not waited for.
    """
    if is_interruptible():
        _dispatcher().put(work)
    else:
        work()


def uninterrupted(work: Callable[[], Result]) -> Result:
    """Does a longer piece of work and returns its result; elsewhere if this is the main thread.

    Interrupted, the main thread goes on at once; the work is done to its end, and its result is dropped.
    """
    if not is_interruptible():
        return work()
    ticket: Ticket[Result] = Ticket()
    _dispatcher().put(partial(_start_thread, partial(copy_context().run, work), ticket.give))
    return ticket.wait()


def finish(work: Callable[[], object]) -> None:
    """Does a last piece of work for something that nobody holds any more, and waits for it.

    Only an event loop is not kept waiting, if one runs in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        uninterrupted(work)
    else:
        _dispatcher().put(partial(_start_thread, work, Ticket().give))


async def in_thread(work: Callable[[], Result], *, own: bool = False) -> Result:
    """Does a piece of work beside the event loop.

    Args:
        work: The work.
        own: Whether it gets a thread of its own, since it may take long; else one of a few that all calls share.
    """
    ticket: Ticket[Result] = Ticket()
    put = _start_thread if own else _put_to_shared
    _dispatcher().put(partial(put, work, ticket.give))
    return await ticket.arrival()


def is_interruptible() -> bool:
    """Whether a signal handler may raise in this thread: it is the main thread."""
    if sys.is_finalizing() or _threads_are_greenlets():
        return False  # there are no other threads any more, or none that could do it while this one waits
    return threading.get_ident() == threading.main_thread().ident


def _threads_are_greenlets() -> bool:
    """Whether gevent or eventlet has put its own functions in the place of `_thread`'s."""
    return not isinstance(_thread.start_new_thread, BuiltinFunctionType)


def _in_loop(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(action)
    except RuntimeError:  # it was closed, and nobody waits
        logger.debug("an event loop was closed before a result arrived")


def _mark_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


Task = Callable[[], object]

_inbox: SimpleQueue[Task] | None = None
_shared: SimpleQueue[Task] = SimpleQueue()
_shared_threads = 0


def _dispatcher() -> SimpleQueue[Task]:
    """Returns the queue of a thread that does what is put into it, in order. It is started here at the first use."""
    global _inbox
    notice_fork()
    inbox = _inbox
    if inbox is None:
        inbox = SimpleQueue()
        # In one operation, unlike `threading.Thread.start`. Two may be started at first; each has a queue of its own.
        _thread.start_new_thread(_serve, (inbox,))
        _inbox = inbox
    return inbox


def _serve(tasks: SimpleQueue[Task]) -> None:
    while True:
        task = tasks.get()
        try:
            task()
        except BaseException:  # what it is about learns nothing of it, but all others go on
            logger.exception("a piece of work failed")
        del task  # else kept until the next one comes


def _start_thread(work: Callable[[], Any], give: Callable[[Outcome[Any]], None]) -> None:
    try:
        threading.Thread(target=_work, args=(work, give), name="bge-work", daemon=True).start()
    except RuntimeError as error:  # the system has no more threads
        give(Outcome(error=error))


def _put_to_shared(work: Callable[[], Any], give: Callable[[Outcome[Any]], None]) -> None:
    """Runs in the dispatcher alone."""
    global _shared_threads
    _shared.put(partial(_work, work, give))
    if _shared_threads < min(_MOST_THREADS, usable_cores()):
        threading.Thread(target=_serve, args=(_shared,), name="bge-texts", daemon=True).start()
        _shared_threads += 1


def _work(work: Callable[[], Any], give: Callable[[Outcome[Any]], None]) -> None:
    give(Outcome.of(work))


@in_child
def _start_afresh() -> None:
    global _inbox, _shared, _shared_threads
    _inbox, _shared, _shared_threads = None, SimpleQueue(), 0
