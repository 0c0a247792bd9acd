"""Bulk batches are cut by time: a fake engine on a fake clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bge_integrations.backend.scheduler import EngineSlot, Meter, Scheduler, TimeLimits, worker
from bge_integrations.backend.scheduler.pace import Pace
from bge_integrations.backend.scheduler.policy import Turn, bulk_tokens
from tests.fake_engine import NO_LIMIT, FakeClock, FakeEngine, make_job, result

LIMITS = TimeLimits(between_interactive=0.004, alone=0.025)


class TestPace:
    def test_is_a_mean_that_follows_the_last_batches(self) -> None:
        pace = Pace()
        assert pace.tokens_per_second is None
        pace.add(8000, 0.0, 1.0)
        assert pace.tokens_per_second == pytest.approx(8000)
        pace.add(8000, 1.0, 3.0)
        assert pace.tokens_per_second == pytest.approx((0.8 * 8000 + 8000) / (0.8 + 2))
        for second in range(3, 60, 2):
            pace.add(8000, second, second + 2)
        assert pace.tokens_per_second == pytest.approx(4000, rel=0.01)

    def test_counts_time_once_where_batches_overlap(self) -> None:
        pace = Pace()
        pace.add(8000, 0.0, 1.0)
        pace.add(8000, 0.1, 2.0)
        pace.add(0, 0.2, 4.0)  # an interactive one
        pace.add(8000, 0.3, 5.0)
        assert pace.tokens_per_second == pytest.approx(8000)

    def test_small_batches_may_only_raise_it(self) -> None:
        pace = Pace()
        pace.add(100, 0.0, 1.0)
        assert pace.tokens_per_second is None
        pace.add(8000, 1.0, 2.0)
        pace.add(100, 2.0, 3.0)
        assert pace.tokens_per_second == pytest.approx(8000)
        pace.add(1000, 3.0, 3.1)
        assert (pace.tokens_per_second or 0) > 8000

    def test_a_slow_start_is_forgotten(self) -> None:
        pace = Pace()
        pace.add(16384, 0.0, 30.0)  # libraries are loaded, kernels compiled
        pace.add(2000, 30.0, 30.01)
        assert pace.tokens_per_second == pytest.approx(200_000)

    def test_time_that_stands_still_tells_nothing(self) -> None:
        pace = Pace()
        pace.add(8000, 1.0, 1.0)
        assert pace.tokens_per_second is None


@pytest.mark.parametrize(
    ("turn", "tokens"),
    [
        # cut by tokens
        (Turn(8192), 8192),
        (Turn(8192, since_interactive=0.5), 2048),
        (Turn(8192, since_interactive=2.0), 8192),
        (Turn(8192, since_interactive=0.5, is_helper=True), 8192),
        (Turn(3, since_interactive=0.5), 1),
        (Turn(8192, tokens_per_second=1e6, since_interactive=0.5), 2048),
        # cut by time: one H100 with large-en, then with small-en, then a card that is 30 times as slow
        (Turn(65536, limits=LIMITS, tokens_per_second=700e3), 17500),
        (Turn(65536, limits=LIMITS, tokens_per_second=700e3, since_interactive=0.5), 2800),
        (Turn(65536, limits=LIMITS, tokens_per_second=4.8e6), 65536),
        (Turn(65536, limits=LIMITS, tokens_per_second=4.8e6, since_interactive=0.5), 19200),
        (Turn(65536, limits=LIMITS, tokens_per_second=23e3, since_interactive=0.5), 1024),
        (Turn(512, limits=LIMITS, tokens_per_second=23e3, since_interactive=0.5), 512),
        # the pace is not known
        (Turn(65536, limits=LIMITS), 16384),
        (Turn(65536, limits=LIMITS, since_interactive=0.5), 16384),
    ],
    ids=str,
)
def test_the_budget_of_bulk_batches(turn: Turn, tokens: int) -> None:
    assert bulk_tokens(turn) == tokens


class _SteadyEngine(FakeEngine):
    """Computes 100,000 tokens a second on a fake clock. All its texts have 64 tokens."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(batch_tokens=65536)
        self.sizes: list[int] = []
        self.trouble = lambda marks: self._pass(clock, 64 * len(marks))

    def _pass(self, clock: FakeClock, tokens: int) -> None:
        clock.now += tokens / 100_000
        self.sizes.append(tokens)


@pytest.mark.parametrize("limits", [TimeLimits(between_interactive=0.02, alone=0.1), None])
def test_an_engine_with_time_limits_learns_its_pace_and_keeps_them(
    monkeypatch: pytest.MonkeyPatch, limits: TimeLimits | None
) -> None:
    clock, quiet = FakeClock(), FakeClock()
    quiet.now = 100.0
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=clock))
    engine = _SteadyEngine(clock)
    slot = EngineSlot(lambda: engine, engine, bulk_limits=limits)
    scheduler = Scheduler([slot], Meter("a model", "cpu"), clock=quiet)
    documents = make_job(*range(2, 2000), length=64)
    scheduler.submit(documents, NO_LIMIT)
    result(documents)
    whole = 65536 // 64 * 64
    alone = [whole, 1998 * 64 - whole] if limits is None else [16384, *[9984] * 11, 1664]
    assert engine.sizes == alone
    engine.sizes.clear()
    query = make_job(7, length=64, priority="interactive")
    scheduler.submit(query, NO_LIMIT)
    result(query)
    documents = make_job(*range(2, 1000), length=64)
    scheduler.submit(documents, NO_LIMIT)
    result(documents)
    assert set(engine.sizes[1:-1]) == ({16384} if limits is None else {1984})  # of 100,000 tokens in 0.02 s
    scheduler.close()
