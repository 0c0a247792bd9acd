"""Two ways to run the same call: in a thread that blocks, or on an event loop.

A call is a coroutine that waits only through its `Waiter`. With `Blocking`, the coroutine never suspends. So it runs
without an event loop, even in a thread where an event loop is running.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from bge_integrations.backend.guarantees.interrupts import Ticket, in_thread
from bge_integrations.calls.inputs import are_short

Result = TypeVar("Result")


class Waiter(Protocol):
    """Waits for the parts of a call.

    Attributes:
        blocks: Whether the thread does nothing else while it waits.
    """

    blocks: bool

    async def answer(self, ticket: Ticket[Result]) -> Result:
        """Waits for the outcome that another thread gives."""
        ...

    async def run(self, work: Callable[[], Result]) -> Result:
        """Does a piece of work that may take long."""
        ...


class Blocking:
    """Waits and works in the calling thread."""

    blocks = True

    async def answer(self, ticket: Ticket[Result]) -> Result:
        """See `Waiter.answer`."""
        return ticket.wait()

    async def run(self, work: Callable[[], Result]) -> Result:
        """See `Waiter.run`."""
        return work()


class OnLoop:
    """Waits on the running event loop, and works in another thread."""

    blocks = False

    def __init__(self, *items: Iterable[Any]) -> None:
        """Prepares to wait for a call.

        Args:
            *items: The texts or pairs of the call. If they are few and short, all work is done in the event loop's
                thread, because it takes little time.
        """
        self._is_short = all(are_short(each) for each in items)

    async def answer(self, ticket: Ticket[Result]) -> Result:
        """See `Waiter.answer`."""
        return await ticket.arrival()

    async def run(self, work: Callable[[], Result]) -> Result:
        """See `Waiter.run`."""
        return work() if self._is_short else await in_thread(work)


def run_blocking(call: Coroutine[Any, Any, Result]) -> Result:
    """Runs a call that waits through `Blocking` to its end."""
    try:
        call.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    finally:
        call.close()
    raise AssertionError("a call that blocks has waited for an event loop")
