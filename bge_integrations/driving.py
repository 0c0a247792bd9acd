"""Takes a call through its steps: for a caller who waits, and for one who awaits.

A call is a generator that yields what it needs next: a `Future` to wait for, or a function without arguments to run. It
gets the result back, or the error. So there is one description of the work, and nothing blocks an event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from bge_integrations.backend.cpu import usable_cores

Result = TypeVar("Result")
Steps = Generator["Future[Any] | Callable[[], Any]", Any, Result]

_MOST_THREADS = 4
_threads: ThreadPoolExecutor | None = None


def run(steps: Steps[Result]) -> Result:
    """Runs a call in this thread. Interrupted, it gives up what is still queued."""
    with closing(steps):
        try:
            step = next(steps)
            while True:
                try:
                    answer = step.result() if isinstance(step, Future) else step()
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
                    if isinstance(step, Future):
                        answer = await asyncio.wrap_future(step)
                    else:
                        answer = step() if is_short else await in_thread(step)
                except BaseException as error:  # noqa: PERF203 - the call decides what becomes of it
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as stopped:
            result: Result = stopped.value
            return result


async def in_thread(function: Callable[[], Result]) -> Result:
    """Runs a function in one of a few threads that all calls share."""
    return await asyncio.get_running_loop().run_in_executor(_shared_threads(), function)


def _shared_threads() -> ThreadPoolExecutor:
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(min(_MOST_THREADS, usable_cores()), thread_name_prefix="bge-texts")
    return _threads


if hasattr(os, "register_at_fork"):

    def _after_fork() -> None:
        global _threads
        _threads = None  # they stayed with the parent

    os.register_at_fork(after_in_child=_after_fork)
