"""Work that no interrupt leaves half done.

Python runs signal handlers in the main thread, between any two of its operations. A handler that raises, such as the
handler of Ctrl-C, stops the main thread in the middle of its work. A lock then stays held, a place in a queue stays
taken or a module stays half imported, and a later call waits for ever. So the main thread does no such work for this
package. It puts work into a queue and waits for the outcome, each in one operation of C. Other threads, which no signal
reaches, do the work.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterable
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
"""On Windows before Python 3.14, a thread that waits in C does not notice Ctrl-C."""


class Outcome(Generic[Result]):
    """The outcome of some work: its result, or the error that it raised."""

    def __init__(self, value: Result | None = None, error: BaseException | None = None) -> None:
        self._value = value
        self._error = error

    @classmethod
    def of(cls, work: Callable[[], Result]) -> Outcome[Result]:
        """Does the work and returns its outcome."""
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
                del self  # the error's traceback refers to this frame
        return cast("Result", self._value)


def mailbox() -> SimpleQueue[Any] | Queue[Any]:
    """Returns a queue whose `put` is one operation in C, which no interrupt leaves half done.

    Under gevent and eventlet the queue is of another class, because greenlets must not wait in C.
    """
    return Queue() if _threads_are_greenlets() else SimpleQueue()


class Ticket(Generic[Result]):
    """A single outcome, which one thread gives and another thread waits for."""

    def __init__(self) -> None:
        self._box: SimpleQueue[Outcome[Result]] | Queue[Outcome[Result]] = mailbox()
        self._arrived: asyncio.Future[None] | None = None

    def give(self, outcome: Outcome[Result]) -> None:
        """Gives the outcome, from any thread."""
        give_all([(self, outcome)])

    def wait(self) -> Result:
        """Blocks this thread until the outcome arrives; returns the result or raises the error."""
        while True:
            try:
                outcome = self._box.get(timeout=_POLL_S)
            except Empty:
                continue
            return outcome.take()

    async def arrival(self) -> Result:
        """Waits as `wait` does, without blocking the event loop."""
        arrived = self._arrived = asyncio.get_running_loop().create_future()
        if self._box.empty():  # else the outcome came before `_arrived` was set
            await arrived
        return self._box.get_nowait().take()


def give_all(outcomes: Iterable[tuple[Ticket[Any], Outcome[Any]]]) -> None:
    """Gives the outcomes of several tickets, from any thread. Each event loop is woken once for all of its tickets."""
    arrived: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket, outcome in outcomes:
        ticket._box.put(outcome)
        if ticket._arrived is not None:
            arrived.setdefault(ticket._arrived.get_loop(), []).append(ticket._arrived)
    for loop, futures in arrived.items():
        _wake(loop, futures)


def hand_over(work: Callable[[], object]) -> None:
    """Does a short piece of work that must not be interrupted: here, or in another thread if this is the main thread.

    The main thread does not wait for this work. Its pieces of work are done in the order of the calls.
    """
    if is_interruptible():
        _dispatcher().put(work)
    else:
        work()


def uninterrupted(work: Callable[[], Result]) -> Result:
    """Does a longer piece of work and returns its result; in another thread if this is the main thread.

    If the main thread is interrupted, it continues at once. The work is still completed, and its result is dropped.
    """
    if not is_interruptible():
        return work()
    ticket: Ticket[Result] = Ticket()
    _dispatcher().put(partial(_start_thread, partial(copy_context().run, work), ticket.give))
    return ticket.wait()


def finish(work: Callable[[], object]) -> None:
    """Does the last piece of work for an object without references, and waits for it.

    It does not wait if an event loop runs in this thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        uninterrupted(work)
    else:
        _dispatcher().put(partial(_start_thread, work, Ticket().give))


async def in_thread(work: Callable[[], Result], *, own: bool = False) -> Result:
    """Does a piece of work in another thread, without blocking the event loop.

    Args:
        work: The work.
        own: Whether the work gets its own thread, because it may take long. Otherwise it runs in one of a few threads
            that all calls share.
    """
    ticket: Ticket[Result] = Ticket()
    put = _start_thread if own else _put_to_shared
    _dispatcher().put(partial(put, work, ticket.give))
    return await ticket.arrival()


def is_interruptible() -> bool:
    """Whether a signal handler may raise in this thread, which is the case in the main thread."""
    if sys.is_finalizing() or _threads_are_greenlets():
        return False  # no other thread exists any more, or none can do the work while this one waits
    return threading.get_ident() == threading.main_thread().ident


def _threads_are_greenlets() -> bool:
    """Whether gevent or eventlet has replaced the functions of `_thread`."""
    return not isinstance(_thread.start_new_thread, BuiltinFunctionType)


def _wake(loop: asyncio.AbstractEventLoop, futures: list[asyncio.Future[None]]) -> None:
    try:
        loop.call_soon_threadsafe(_mark_done, futures)
    except RuntimeError:  # the loop is closed, so nothing waits for the results
        logger.debug("an event loop was closed before a result arrived")


def _mark_done(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


Task = Callable[[], object]

_inbox: SimpleQueue[Task] | None = None
_shared: SimpleQueue[Task] = SimpleQueue()
_shared_threads = 0


def _dispatcher() -> SimpleQueue[Task]:
    """Returns the queue of a thread that does the tasks in it, in order. The thread is started at the first use."""
    global _inbox
    notice_fork()
    inbox = _inbox
    if inbox is None:
        inbox = SimpleQueue()
        # One operation, unlike `threading.Thread.start`. At first two threads may be started, each with its own queue.
        _thread.start_new_thread(_serve, (inbox,))
        _inbox = inbox
    return inbox


def _serve(tasks: SimpleQueue[Task]) -> None:
    while True:
        task = tasks.get()
        try:
            task()
        except BaseException:  # the next tasks must still be done
            logger.exception("a piece of work failed")
        del task  # else its objects stay alive until the next task comes


def _start_thread(work: Callable[[], Any], give: Callable[[Outcome[Any]], None]) -> None:
    try:
        threading.Thread(target=_work, args=(work, give), name="bge-work", daemon=True).start()
    except RuntimeError as error:  # the system has no more threads
        give(Outcome(error=error))


def _put_to_shared(work: Callable[[], Any], give: Callable[[Outcome[Any]], None]) -> None:
    """Runs only in the dispatcher's thread."""
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
