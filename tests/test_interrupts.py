"""Ctrl-C, or any signal handler that raises, at any point: later calls and loads work, and nothing stays reserved."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.backend.guarantees import interrupts
from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket, hand_over, uninterrupted
from bge_integrations.backend.scheduler.job import PRIORITIES
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.settings import EncoderSettings
from tests.conftest import MakeCheckpoint

_LONG = 60.0
_OURS = f"{os.sep}bge_integrations{os.sep}"
_UNDERNEATH = ("threading.py", "contextlib.py", "queue.py", "weakref.py", "_base.py", f"concurrent{os.sep}")
"""What a call may use of the standard library with a lock in it."""


class _Interrupter:
    """Raises KeyboardInterrupt at one of the lines that the main thread goes through, as a signal handler would."""

    def __init__(self, at: int | None, *, in_ours_alone: bool = False) -> None:
        self._at = at
        self._further = () if in_ours_alone else _UNDERNEATH
        self.lines = 0
        self.has_raised = False

    def __enter__(self) -> _Interrupter:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - itself
        name = frame.f_code.co_filename
        if _OURS not in name and not any(part in name for part in self._further):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                self.has_raised = True
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def _interrupt_everywhere(
    work: Callable[[], object], check: Callable[[], None], points: int, *, in_ours_alone: bool = False
) -> int:
    """Does some work again and again, interrupted at one point after the other; how often it was."""
    with _Interrupter(None, in_ours_alone=in_ours_alone) as counting:
        work()
    interrupted = 0
    step = max(counting.lines // points, 1)
    for at in range(1, counting.lines + 1, step):
        with _Interrupter(at, in_ours_alone=in_ours_alone) as interrupter:
            try:
                work()
            except KeyboardInterrupt:
                interrupted += 1
        if interrupter.has_raised:
            check()
    return interrupted


def _in_time(work: Callable[[], object]) -> None:
    """Does some work in another thread, which must come to its end."""
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(work()), daemon=True)
    thread.start()
    thread.join(_LONG)
    assert not thread.is_alive(), "it hangs"
    assert done, "it raised"


def _require_usable(model: BgeEncoder | BgeReranker | BgeM3Encoder, work: Callable[[], object]) -> None:
    _in_time(work)
    scheduler = model.backend.scheduler
    until = time.monotonic() + _LONG
    while any(scheduler.texts_in_flight(priority) + scheduler.jobs_waiting(priority) for priority in PRIORITIES):
        assert time.monotonic() < until, "a place stays taken"
        time.sleep(0.001)


def _in_a_loop(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(call())
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()


# A coroutine that is interrupted before its first step warns that it was never awaited.
@pytest.mark.filterwarnings("ignore:.*never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestCalls:
    @pytest.mark.parametrize("kind", ["queries", "documents", "langchain", "reranker", "m3"])
    def test_one_is_given_up_and_later_ones_work(
        self, bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path, kind: str
    ) -> None:
        model: Any
        work: Callable[[], object]
        if kind == "reranker":
            model = BgeReranker(bge_reranker_base, device="cpu")
            work = lambda: model.score("fox", ["a fox", "a dog"])  # noqa: E731
        elif kind == "m3":
            model = BgeM3Encoder(bge_m3, device="cpu")
            work = lambda: model.score("fox", ["a fox", "a dog"])  # noqa: E731
        elif kind == "langchain":
            embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), device="cpu")
            model = embeddings.encoder
            work = lambda: embeddings.embed_query("fox")  # noqa: E731
        else:
            model = BgeEncoder(bge_small_en, device="cpu")
            encode = model.encode_queries if kind == "queries" else model.encode_documents
            work = lambda: encode(["fox", "dog"])  # noqa: E731
        count = _interrupt_everywhere(work, lambda: _require_usable(model, work), points=150)
        assert count >= 40

    def test_one_for_an_event_loop(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu")

        def work() -> None:
            _in_a_loop(lambda: encoder.aencode_queries(["fox"]))

        def check() -> None:
            _require_usable(encoder, lambda: encoder.encode_queries(["fox"]))

        # An interrupt of the loop itself is the loop's affair.
        count = _interrupt_everywhere(work, check, points=150, in_ours_alone=True)
        assert count >= 40

    def test_one_with_a_progress_bar(self, bge_small_en: Path, capsys: pytest.CaptureFixture[str]) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", show_progress=True)

        def work() -> object:
            return encoder.encode_documents(["fox", "dog"])

        assert _interrupt_everywhere(work, lambda: _require_usable(encoder, work), points=60) >= 20

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised in a callback, say of gc
    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers that signal")
    def test_by_real_signals_at_any_time(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", batch_tokens=64, max_queued_texts=40)
        texts = [f"fox {number} " + "dog " * (number % 30) for number in range(40)]
        expected = encoder.encode_documents(texts)
        chance = random.Random(0)

        class _TimeIsUp(Exception):
            pass

        def expire(*_: object) -> None:
            raise _TimeIsUp

        before = signal.signal(signal.SIGALRM, expire)
        interrupted = 0
        try:
            for _ in range(200):
                with contextlib.suppress(_TimeIsUp):
                    interrupted += 1
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.01))
                    encoder.encode_documents(texts)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    interrupted -= 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 20
        _require_usable(encoder, lambda: encoder.encode_queries(["fox"]))
        np.testing.assert_allclose(encoder.encode_documents(texts), expected, atol=1e-5)


# What interrupts a finaliser is shown by Python, and raised nowhere.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestLoads:
    def test_one_is_given_up_and_later_ones_work(self, make: MakeCheckpoint) -> None:
        folder = make("bge-small-en", layers=1, hidden_size=8, heads=1)

        def work() -> None:
            with BgeEncoder(folder, device="cpu") as encoder:
                encoder.encode_queries(["fox"])

        assert _interrupt_everywhere(work, lambda: _in_time(work), points=80) >= 30

    def test_one_for_an_event_loop(self, make: MakeCheckpoint) -> None:
        settings = EncoderSettings(model_name=str(make("bge-small-en", layers=1, hidden_size=8, heads=1)), device="cpu")

        def work() -> None:
            with BgeEncoder.from_settings(settings, load=False) as encoder:
                _in_a_loop(lambda: encoder.aencode_queries(["fox"]))

        assert _interrupt_everywhere(work, lambda: _in_time(work), points=40, in_ours_alone=True) >= 15

    def test_of_the_librarys_own_object(self, make: MakeCheckpoint) -> None:
        encoder = BgeEncoder(make("bge-small-en", layers=1, hidden_size=8, heads=1), device="cpu")
        count = _interrupt_everywhere(lambda: encoder.client, lambda: _in_time(lambda: encoder.client), points=30)
        assert count >= 10


class TestHandingOver:
    def test_what_the_main_thread_hands_over_is_done_in_order(self) -> None:
        seen: list[int] = []
        idents: set[int] = set()
        ticket: Ticket[None] = Ticket()
        for number in range(100):
            hand_over(lambda number=number: seen.append(number))  # type: ignore[misc]
        hand_over(lambda: idents.add(threading.get_ident()))
        hand_over(lambda: ticket.give(Outcome(None)))
        ticket.wait()
        assert seen == list(range(100))
        assert threading.get_ident() not in idents

    def test_other_threads_do_it_themselves(self) -> None:
        def work() -> bool:
            idents: list[int] = []
            hand_over(lambda: idents.append(threading.get_ident()))
            return [*idents, uninterrupted(threading.get_ident)] == [threading.get_ident()] * 2

        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(work()))
        thread.start()
        thread.join(_LONG)
        assert found == [True]

    def test_an_error_reaches_who_waits_and_nobody_else(self) -> None:
        def fail() -> None:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            uninterrupted(fail)
        hand_over(fail)
        assert uninterrupted(lambda: 3) == 3

    def test_on_windows_ctrl_c_is_noticed_while_waiting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """There a wait in C can't be interrupted, so that it is cut into short ones."""
        monkeypatch.setattr(interrupts, "_POLL_S", 0.001)
        ticket: Ticket[int] = Ticket()
        threading.Timer(0.05, lambda: ticket.give(Outcome(5))).start()
        with _Interrupter(None) as counting:
            assert ticket.wait() == 5
        assert counting.lines > 10  # it came back to Python again and again

    def test_where_threads_are_greenlets_nothing_waits_in_c(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """gevent and eventlet replace `_thread`'s functions; who waits must let others run."""
        start = _thread.start_new_thread
        monkeypatch.setattr(_thread, "start_new_thread", lambda *arguments: start(*arguments))
        assert not isinstance(Ticket()._box, queue.SimpleQueue)
        assert uninterrupted(threading.get_ident) == threading.get_ident()
        encoder = BgeEncoder(bge_small_en, device="cpu", threads=1)
        assert encoder.encode_queries(["fox"]).shape == (1, 32)
        assert asyncio.run(encoder.aencode_queries(["fox"])).shape == (1, 32)
