"""How a call waits: in a thread that blocks, or on an event loop. There is one description of a call for both.

A call is a coroutine that waits by its `Waiter` alone. With one that blocks, it never suspends, so that it can be run
without an event loop, also where a loop runs in the same thread.
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
        blocks: Whether its thread does nothing else meanwhile.
    """

    blocks: bool

    async def answer(self, ticket: Ticket[Result]) -> Result:
        """Waits for what another thread gives."""
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
    """Waits on the running event loop, and works beside it."""

    blocks = False

    def __init__(self, *items: Iterable[Any]) -> None:
        """Makes one for a call.

        Args:
            *items: Its texts or pairs. Where these are few and short, all work takes so little time that it is done in
                the loop's own thread.
        """
        self._is_short = all(are_short(each) for each in items)

    async def answer(self, ticket: Ticket[Result]) -> Result:
        """See `Waiter.answer`."""
        return await ticket.arrival()

    async def run(self, work: Callable[[], Result]) -> Result:
        """See `Waiter.run`."""
        return work() if self._is_short else await in_thread(work)


def run_blocking(call: Coroutine[Any, Any, Result]) -> Result:
    """Runs a call that waits by `Blocking`, to its end."""
    try:
        call.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    finally:
        call.close()
    raise AssertionError("a call that blocks has waited for an event loop")
