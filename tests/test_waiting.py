"""One description of a call, for a thread that blocks and for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket
from bge_integrations.calls.waiting import Blocking, OnLoop, Waiter, run_blocking

LONG = "fox " * 5000


async def _call(waiter: Waiter, ticket: Ticket[int], work: Callable[[], int]) -> int:
    return await waiter.answer(ticket) + await waiter.run(work)


def _given(value: int = 1, error: BaseException | None = None, after: float = 0.0) -> Ticket[int]:
    ticket: Ticket[int] = Ticket()
    threading.Timer(after, lambda: ticket.give(Outcome(value, error))).start()
    return ticket


def _fail() -> int:
    raise ValueError("no")


class TestBlocking:
    def test_it_works_and_waits_in_the_calling_thread(self) -> None:
        assert run_blocking(_call(Blocking(), _given(1, after=0.05), threading.get_ident)) == threading.get_ident() + 1

    def test_also_where_an_event_loop_runs(self) -> None:
        async def inside() -> int:
            return run_blocking(_call(Blocking(), _given(1), lambda: 2))

        assert asyncio.run(inside()) == 3

    def test_errors_come_through(self) -> None:
        with pytest.raises(ValueError, match="no"):
            run_blocking(_call(Blocking(), _given(), _fail))
        with pytest.raises(KeyError):
            run_blocking(_call(Blocking(), _given(error=KeyError()), lambda: 2))

    def test_a_call_that_awaits_something_else_is_refused(self) -> None:
        async def wrong() -> None:
            await asyncio.sleep(0)

        with pytest.raises(AssertionError, match="waited for an event loop"):
            run_blocking(wrong())


class TestOnLoop:
    @pytest.mark.parametrize(("items", "here"), [((["fox"],), True), (([LONG],), False), ((["fox"], [LONG]), False)])
    async def test_long_work_is_done_in_another_thread(self, items: tuple[list[str], ...], here: bool) -> None:
        thread = await _call(OnLoop(*items), _given(0), threading.get_ident)
        assert (thread == threading.get_ident()) is here

    async def test_fifty_calls_at_once(self) -> None:
        tickets: list[Ticket[int]] = [Ticket() for _ in range(50)]
        calls = [asyncio.create_task(_call(OnLoop(["fox"]), ticket, lambda: 0)) for ticket in tickets]
        await asyncio.sleep(0)  # all of them wait before any is answered
        for number, ticket in enumerate(tickets):
            ticket.give(Outcome(number))
        assert await asyncio.gather(*calls) == list(range(50))

    async def test_errors_come_through(self) -> None:
        for items in (["fox"], [LONG]):
            with pytest.raises(ValueError, match="no"):
                await _call(OnLoop(items), _given(), _fail)
            with pytest.raises(KeyError):
                await _call(OnLoop(items), _given(error=KeyError()), lambda: 2)

    async def test_it_can_be_cancelled(self) -> None:
        task = asyncio.ensure_future(_call(OnLoop(["fox"]), Ticket(), lambda: 0))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
