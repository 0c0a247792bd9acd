"""Few short texts of several callers: they are tokenised together when an engine takes them, and answered together."""

from __future__ import annotations

import asyncio
import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import calls
from bge_integrations import BgeEncoder
from bge_integrations.backend.engines.interface import Computed, TokenBatch
from bge_integrations.backend.guarantees.interrupts import Outcome, Ticket, give_all
from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.backend.scheduler import Job, Priority, Scheduler
from bge_integrations.backend.text.templates import Frame, tokenize_together
from bge_integrations.backend.text.tokenizer import TextTokenizer, TokenizedTexts
from bge_integrations.errors import NonFiniteOutputError, TruncationError, TruncationWarning
from tests.checkpoints import make_tokenizer
from tests.conftest import MakeCheckpoint
from tests.fake_engine import HEAD, LONG, NO_LIMIT, FakeEngine, make_job, make_scheduler, result


class CountingTokenizer(TextTokenizer):
    """Notes the texts of each call, and fails on the text "bad"."""

    calls: list[list[str]]

    def tokenize(self, texts: Sequence[str], max_length: int | Sequence[int]) -> TokenizedTexts:
        self.calls.append(list(texts))
        if "bad" in texts:
            raise ValueError("no such text")
        return super().tokenize(texts, max_length)


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    made = CountingTokenizer.copy_of(make_tokenizer("bert", 64))
    assert isinstance(made, CountingTokenizer)
    made.calls = []
    return made


@dataclass
class Texts:
    """What a call leaves in the queue; see `Unread`."""

    frame: Frame
    texts: list[str]
    characters: int = 0
    refused: Exception | None = None
    checked: list[TokenizedTexts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.characters = self.characters or sum(map(len, self.texts))

    def check(self, tokens: TokenizedTexts) -> int:
        self.checked.append(tokens)
        if self.refused is not None:
            raise self.refused
        return int((tokens.full_lengths > self.frame.max_length).sum())


MakeUnread = Callable[..., Job]


@pytest.fixture
def unread(tokenizer: CountingTokenizer) -> MakeUnread:
    """Makes a job of unread texts."""

    def make(
        *texts: str,
        priority: Priority = "interactive",
        prefix: str = "",
        limit: int = 64,
        characters: int = 0,
        refused: Exception | None = None,
    ) -> Job:
        return Job(
            Texts(Frame(tokenizer, prefix, "", limit), list(texts), characters, refused), HEAD, priority=priority
        )

    return make


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(batch_tokens=512)


@pytest.fixture
def scheduler(engine: FakeEngine) -> Iterator[Scheduler]:
    made = make_scheduler(engine)
    yield made
    engine.may_go.set()
    made.close()


@pytest.fixture
def while_busy(scheduler: Scheduler, engine: FakeEngine) -> Callable[..., None]:
    """Queues jobs while the engine computes something else, then lets it go."""

    def submit(*jobs: Job, before: Callable[[], None] = lambda: None) -> None:
        engine.may_go.clear()
        scheduler.submit(first := make_job(1), NO_LIMIT)
        assert engine.entered.acquire(timeout=LONG)
        for job in jobs:
            scheduler.submit(job, NO_LIMIT)
        before()
        engine.batches.clear()
        engine.may_go.set()
        result(first)

    return submit


def expected(tokenizer: TextTokenizer, *texts: str, limit: int = 64) -> NDArray[np.float32]:
    """What the engine gives for each text alone: the sum of its ids, and their number."""
    found = [tokenizer.tokenize([text], limit).ids for text in texts]
    return np.array([[ids.sum(), len(ids)] for ids in found], dtype=np.float32)


class TestQueue:
    def test_texts_that_wait_are_tokenised_in_one_call_and_share_a_batch(
        self, while_busy: Callable[..., None], unread: MakeUnread, tokenizer: CountingTokenizer, engine: FakeEngine
    ) -> None:
        texts = ["fox", "dog", "lazy fox", "quick dog", "a"]
        jobs = [unread(*texts[:2]), *(unread(text, prefix="the ") for text in texts[2:])]
        while_busy(*jobs, before=lambda: tokenizer.calls.clear())
        found = [result(job) for job in jobs]
        assert tokenizer.calls == [["fox", "dog", "the lazy fox", "the quick dog", "the a"]]
        assert [len(batch) for batch in engine.batches] == [5]
        written = ["fox", "dog", "the lazy fox", "the quick dog", "the a"]
        np.testing.assert_array_equal(np.concatenate(found), expected(tokenizer, *written))

    def test_those_of_one_call_come_back_in_place(
        self, scheduler: Scheduler, unread: MakeUnread, tokenizer: CountingTokenizer
    ) -> None:
        texts = [f"{'fox ' * (number * 7 % 5)}dog" for number in range(10)]
        scheduler.submit(job := unread(*texts), NO_LIMIT)
        np.testing.assert_array_equal(result(job), expected(tokenizer, *texts))

    def test_queries_are_not_tokenised_after_documents(
        self, while_busy: Callable[..., None], unread: MakeUnread, tokenizer: CountingTokenizer
    ) -> None:
        jobs = [unread("dog", priority="bulk"), unread("fox")]
        while_busy(*jobs)
        for job in jobs:
            result(job)
        assert tokenizer.calls == [["fox"], ["dog"]]

    def test_a_job_that_is_given_up_is_never_tokenised(
        self, while_busy: Callable[..., None], scheduler: Scheduler, unread: MakeUnread, tokenizer: CountingTokenizer
    ) -> None:
        dropped, kept = unread("dog"), unread("fox")

        def give_up() -> None:
            scheduler.cancel(dropped)
            with pytest.raises(CancelledError):
                result(dropped)

        while_busy(dropped, kept, before=give_up)
        result(kept)
        assert tokenizer.calls == [["fox"]]

    def test_only_so_many_characters_are_tokenised_at_once(
        self, while_busy: Callable[..., None], unread: MakeUnread, tokenizer: CountingTokenizer
    ) -> None:
        jobs = [unread(f"fox {number}", characters=20_000) for number in range(4)]
        while_busy(*jobs)
        for job in jobs:
            result(job)
        assert [len(call) for call in tokenizer.calls] == [2, 2]

    def test_a_text_that_must_not_be_computed_fails_alone_and_never_reaches_the_engine(
        self, while_busy: Callable[..., None], unread: MakeUnread, scheduler: Scheduler, engine: FakeEngine
    ) -> None:
        jobs = [unread("fox"), unread("dog", refused=TruncationError("too long", 0)), unread("a")]
        while_busy(*jobs)
        with pytest.raises(TruncationError, match="too long"):
            result(jobs[1])
        assert [len(result(job)) for job in (jobs[0], jobs[2])] == [1, 1]
        assert [len(batch) for batch in engine.batches] == [2]
        assert scheduler.texts_in_flight("interactive") == scheduler.jobs_waiting("interactive") == 0

    def test_a_queue_of_nothing_else_ends(self, scheduler: Scheduler, unread: MakeUnread, engine: FakeEngine) -> None:
        scheduler.submit(job := unread("dog", priority="bulk", refused=TruncationError("too long", 0)), NO_LIMIT)
        with pytest.raises(TruncationError):
            result(job)
        scheduler.submit(after := unread("fox", priority="bulk"), NO_LIMIT)
        assert len(result(after)) == 1
        assert len(engine.batches) == 1

    def test_an_error_of_the_tokeniser_reaches_only_the_caller_of_the_text(
        self, while_busy: Callable[..., None], unread: MakeUnread, tokenizer: CountingTokenizer
    ) -> None:
        jobs = [unread("fox"), unread("bad"), unread("dog")]
        while_busy(*jobs)
        with pytest.raises(ValueError, match="no such text"):
            result(jobs[1])
        found = np.concatenate([result(jobs[0]), result(jobs[2])])
        np.testing.assert_array_equal(found, expected(tokenizer, "fox", "dog"))

    def test_a_thread_that_is_alone_tokenises_its_own_texts(
        self, scheduler: Scheduler, unread: MakeUnread, engine: FakeEngine
    ) -> None:
        job = unread("fox", "dog")
        caller = threading.Thread(target=lambda: scheduler.submit(job, NO_LIMIT, may_lend=True))
        caller.start()
        caller.join(LONG)
        assert len(result(job)) == 2
        assert engine.threads == [caller.ident]
        assert scheduler.threads == []


class TestTogether:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_is_the_same_as_each_call_alone(self, side: str) -> None:
        transformers_tokenizer = make_tokenizer("bert", 64)
        transformers_tokenizer.truncation_side = side
        tokenizer = TextTokenizer.copy_of(transformers_tokenizer)
        long = "fox and dog " * 20
        asked = [
            (Frame(tokenizer, "", "", 64), ["fox", long]),
            (Frame(tokenizer, "the ", "", 16), [long, "dog", "a " + long]),
            (Frame(tokenizer, "the ", " quick", 24), ["dog", long]),
            (Frame(tokenizer, "", " quick", 12), [long]),
        ]
        for (frame, texts), found in zip(asked, tokenize_together(asked), strict=True):
            alone = [frame.tokenize([text]) for text in texts]
            np.testing.assert_array_equal(found.ids, np.concatenate([one.ids for one in alone]))
            np.testing.assert_array_equal(found.lengths, np.concatenate([one.lengths for one in alone]))
            np.testing.assert_array_equal(found.full_lengths, np.concatenate([one.full_lengths for one in alone]))
            assert found.lengths.max() <= frame.max_length
            assert found.full_lengths.max() >= found.lengths.max()


class TestAnswers:
    async def test_a_loop_is_woken_once_for_all_results_of_a_batch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        tickets: list[Ticket[int]] = [Ticket() for _ in range(20)]
        waiting = [asyncio.ensure_future(ticket.arrival()) for ticket in tickets]
        await asyncio.sleep(0)  # all of them wait
        woken, wake = 0, loop.call_soon_threadsafe

        def counting(*arguments: object) -> object:
            nonlocal woken
            woken += 1
            return wake(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counting)
        answers = [(ticket, Outcome(number)) for number, ticket in enumerate(tickets)]
        thread = threading.Thread(target=give_all, args=(answers,))
        thread.start()
        assert await asyncio.gather(*waiting) == list(range(20))
        thread.join(LONG)
        assert woken == 1

    def test_a_loop_that_is_closed_takes_no_result_from_others(self) -> None:
        gone, kept = Ticket[int](), Ticket[int]()
        loop = asyncio.new_event_loop()
        task = loop.create_task(gone.arrival())
        loop.run_until_complete(asyncio.sleep(0))
        task.cancel()
        loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        loop.close()
        give_all([(gone, Outcome(1)), (kept, Outcome(2))])
        assert kept.wait() == 2

    def test_an_empty_queue_as_the_error_of_a_call_is_raised(self) -> None:
        ticket: Ticket[int] = Ticket()
        ticket.give(Outcome(error=queue.Empty()))
        with pytest.raises(queue.Empty):
            ticket.wait()


class TestEncoders:
    def test_callers_with_other_settings_share_a_batch_and_get_their_own_vectors(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", query_instruction="")
        others = [
            BgeEncoder.from_settings(encoder.settings.replace(**changes))
            for changes in ({"normalize": False}, {"truncate_dim": 8}, {"query_instruction": "the "})
        ]
        every = [encoder, *others]
        alone = [one.encode_queries(["fox"]) for one in every]
        engine, sizes, free, entered = encoder.backend.engine, [], threading.Event(), threading.Event()
        submit = engine.submit

        def waiting(batch: TokenBatch) -> object:
            sizes.append(len(batch.lengths))
            entered.set()
            assert free.wait(LONG)
            return submit(batch)

        monkeypatch.setattr(engine, "submit", waiting)

        async def together() -> list[NDArray[np.float32]]:
            first = asyncio.ensure_future(encoder.aencode_queries(["dog"]))
            await asyncio.to_thread(entered.wait, LONG)
            asked = [asyncio.ensure_future(one.aencode_queries(["fox"])) for one in every]
            await asyncio.sleep(0)  # all of them are queued
            free.set()
            await first
            return list(await asyncio.gather(*asked))

        for found, one in zip(asyncio.run(together()), alone, strict=True):
            np.testing.assert_allclose(found, one, atol=1e-5)
        assert sizes == [1, 4]

    def test_vectors_are_the_callers_own(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", normalize=False)
        for texts in (["fox"], ["fox", "dog"], ["fox", "dog", "fox"]):
            found = encoder.encode_queries(texts)
            assert found.flags.c_contiguous
            assert found.flags.writeable
            assert found.base is None or found.base.nbytes == found.nbytes
        found[0] = 0
        assert found[2].any()

    @pytest.mark.parametrize("settings", [{}, {"truncate_dim": 4}, {"truncate_dim": 4, "normalize": False}])
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_numbers_that_are_not_finite_are_an_error_wherever_they_are(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], bad: float
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", **settings)  # type: ignore[arg-type]
        submit = encoder.backend.engine.submit

        def damaged(batch: TokenBatch) -> Computed:
            rows = submit(batch).result().copy()
            rows[batch.lengths == batch.lengths.max(), 20] = bad
            return Computed(rows)

        monkeypatch.setattr(encoder.backend.engine, "submit", damaged)
        with pytest.raises(NonFiniteOutputError, match="text 2 ") as caught:
            encoder.encode_documents(["fox", "fox", "dog and fox", "dog"])
        assert caught.value.index == 2

    def test_texts_that_are_too_long_are_told_where_the_call_stands(self, make: MakeCheckpoint) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", max_length=20)
        with pytest.warns(TruncationWarning, match=r"2 of 3 texts were cut: the longest, text 0, has \d+") as caught:
            encoder.encode(["fox " * 30, "dog", "fox " * 30])
        assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
        assert encoder.stats().truncated_texts == 2

    def test_or_refused_before_the_engine_gets_them(
        self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoder = BgeEncoder(make("bge-small-en"), device="cpu", max_length=20, on_truncation="error")
        batches: list[TokenBatch] = []
        monkeypatch.setattr(encoder.backend.engine, "submit", batches.append)
        for encode in (encoder.encode_documents, lambda texts: asyncio.run(encoder.aencode_queries(texts))):
            with pytest.raises(TruncationError, match=r"Text 1 has \d+ tokens, the limit is 20") as caught:
                encode(["dog", "fox " * 30, "fox"])
            assert caught.value.index == 1
        assert batches == []


def test_unit_rows_are_what_numpys_norm_gives() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 384), dtype=np.float32)
    rows[3] = 0
    norms = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
    np.testing.assert_array_equal(unit_rows(rows), rows / norms)
    np.testing.assert_array_equal(unit_rows(rows[:, :7])[5], unit_rows(rows[5:6, :7])[0])


def test_the_benchmark_prints_a_row_for_each_way_to_call(bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "COUNTS", (1, 200))
    measured = calls.Calls(bge_small_en, ["a quick fox", "a lazy dog"])
    results: dict[str, Any] = {
        "alone": calls.alone(measured, 1),
        "together": calls.together(measured, 1, 0.05),
        "lists": calls.lists(1),
        "engine": calls.beside_engine(measured, 1),
    }
    with io.StringIO() as written:
        console = Console(file=written, width=100)
        for table in calls.tables(results):
            console.print(table)
        printed = written.getvalue()
    for name in (*calls.ALONE, *calls.MANY, "200 × 1024", "engine alone"):
        assert name in printed
    assert [len(results["alone"][name]) for name in ("tokeniser", *calls.ALONE)] == [2] * 4
    assert len(results["engine"]["call"]) == len(results["engine"]["engine"]) == 2
    vectors = measured.embeddings.embed_documents(["fox", "dog"])  # the model's own engine is back
    assert vectors[0] != vectors[1]
