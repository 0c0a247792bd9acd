"""Takes a call through its steps: for a caller who waits, and for one who awaits.

A call is a generator that yields what it needs next: a `Ticket` to wait with, or a function without arguments to run.
It gets the result back, or the error. So there is one description of the work, and nothing blocks an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from bge_integrations.backend.interrupts import Ticket, in_thread

Result = TypeVar("Result")
Steps = Generator["Ticket[Any] | Callable[[], Any]", Any, Result]


def run(steps: Steps[Result]) -> Result:
    """Runs a call in this thread. Interrupted, it gives up what is still queued."""
    with closing(steps):
        try:
            step = next(steps)
            while True:
                try:
                    answer = step.wait() if isinstance(step, Ticket) else step()
                except BaseException as error:  # noqa: PERF203 - the call decides what becomes of it
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stopped:
            result: Result = stopped.value
            return result


async def run_async(steps: Steps[Result], *, is_short: bool) -> Result:
    """Runs a call for an event loop. Cancelled, it gives up what is still queued.

    Args:
        steps: The call.
        is_short: Whether its functions take so little time that they may run in the loop's own thread.
    """
    with closing(steps):
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Ticket):
                        answer = await step.arrival()
                    else:
                        answer = step() if is_short else await in_thread(step)
                except BaseException as error:  # noqa: PERF203 - the call decides what becomes of it
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stopped:
            result: Result = stopped.value
            return result
