"""Runs that make questions: what is kept, what is asked at once, what happens when calls fail, and event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bge_integrations.errors import ChatModelError, SettingsError
from bge_integrations.training import MadeQueries, QueryPlan, QuerySettings, amake_queries, make_queries
from bge_integrations.training.queries import failures
from bge_integrations.training.queries.failures import is_passing, named_wait
from tests.scripted_answers import Counting, Respond, good, in_turn, passages_in, texts_of
from tests.scripted_models import FRAMEWORKS, Framework, model_of

ONE = {"question": 1}


def settings(**changes: Any) -> QuerySettings:  # noqa: ANN401
    return QuerySettings(**{"kinds": ONE, "llm_name": "scripted", "first_wait": 0.001, **changes})


def rows(made: MadeQueries) -> set[tuple[str, tuple[str, ...]]]:
    return {(row.query, row.pos) for row in made.data.rows}


class TestKeptAnswers:
    def test_a_second_run_asks_nothing(self, tmp_path: Path) -> None:
        part = tmp_path / "answers.jsonl"
        first = make_queries(texts_of(5), good, settings=settings(), part=part)
        respond = Counting(good)
        second = make_queries(texts_of(5), respond, settings=settings(), part=part)
        assert second.data == first.data
        assert respond.prompts == []
        assert (second.report.kept, second.report.calls) == (5, 0)
        assert "The answers to 5 prompts were there from an earlier run." in " ".join(second.report.sentences())

    def test_changed_new_and_reordered_passages_shift_no_others(self, tmp_path: Path) -> None:
        part, texts = tmp_path / "answers.jsonl", texts_of(6)
        first = make_queries(texts, good, settings=settings(), part=part)
        changed = [
            texts[5],
            "Honey9 is new here and nobody knows it.",
            texts[0],
            texts[3],
            texts[1].replace("old", "young"),
        ]
        respond = Counting(good)
        second = make_queries(changed, respond, settings=settings(), part=part)
        assert {passages_in(prompt)[0] for prompt in respond.prompts} == {changed[1], changed[4]}
        assert {row for row in rows(first) if row[1][0] in changed} < rows(second)
        for query, (passage,) in rows(second):
            assert passage.split()[0] in query  # each with its own answer

    def test_an_answer_belongs_to_its_prompt_and_its_model(self, tmp_path: Path) -> None:
        part = tmp_path / "answers.jsonl"
        make_queries(texts_of(3), good, settings=settings(), part=part)
        others = [
            settings(kinds={"task": 1}),
            settings(examples=["what do people want"]),
            settings(language="en"),
            settings(llm_name="another"),
        ]
        for other in others:
            respond = Counting(good)
            make_queries(texts_of(3), respond, settings=other, part=part)
            assert len(respond.prompts) == 3, other
        # The checks are no part of it, and what was paid for is never dropped.
        for again in (settings(), settings(copied_words=4, near=None, rank=7, concurrency=1), *others):
            respond = Counting(good)
            make_queries(texts_of(3), respond, settings=again, part=part)
            assert respond.prompts == [], again

    def test_failed_passages_are_asked_again_and_refused_ones_are_not(self, tmp_path: Path) -> None:
        part, texts = tmp_path / "answers.jsonl", texts_of(4)

        def respond(prompt: str) -> str:
            if texts[0] in prompt:
                raise ValueError("not today")
            return "no JSON at all" if texts[1] in prompt else good(prompt)

        first = make_queries(texts, respond, settings=settings(), part=part)
        assert (len(first.failed), len(first.rejected)) == (1, 1)
        again = Counting(good)
        second = make_queries(texts, again, settings=settings(), part=part)
        assert [passages_in(prompt)[0] for prompt in again.prompts] == [texts[0]]
        assert (len(second.failed), len(second.data.rows), second.rejected) == (0, 3, first.rejected)

    @pytest.mark.parametrize("lost", [1, 2, 30, 10_000])
    def test_a_line_that_was_not_finished_costs_one_answer(self, tmp_path: Path, lost: int) -> None:
        part, texts = tmp_path / "answers.jsonl", texts_of(4)
        first = make_queries(texts, good, settings=settings(concurrency=1), part=part)
        content = part.read_bytes()
        last = len(content.rstrip(b"\n").rpartition(b"\n")[0]) + 1
        part.write_bytes(content[: max(last + 1, len(content) - lost)])
        respond = Counting(good)
        second = make_queries(texts, respond, settings=settings(), part=part)
        assert len(respond.prompts) == (0 if lost == 1 else 1)  # without its line's end, an answer is whole
        assert rows(second) == rows(first)
        third = Counting(good)
        assert rows(make_queries(texts, third, settings=settings(), part=part)) == rows(first)
        assert third.prompts == []

    def test_a_file_killed_in_its_first_line_is_begun_again(self, tmp_path: Path) -> None:
        part = tmp_path / "answers.jsonl"
        make_queries(texts_of(2), good, settings=settings(), part=part)
        part.write_bytes(part.read_bytes()[:9])
        make_queries(texts_of(2), good, settings=settings(), part=part)
        respond = Counting(good)
        make_queries(texts_of(2), respond, settings=settings(), part=part)
        assert respond.prompts == []

    @pytest.mark.parametrize("content", ["a list of things\nto do\n", '{"key": "of another kind"}\n'])
    def test_a_file_of_another_kind_is_refused_and_stays(self, tmp_path: Path, content: str) -> None:
        part = tmp_path / "answers.jsonl"
        part.write_text(content)
        with pytest.raises(SettingsError, match="is a file of another kind"):
            make_queries(texts_of(2), good, settings=settings(), part=part)
        assert part.read_text() == content


_RUN = """
import itertools, signal, sys, time
from pathlib import Path
from bge_integrations.training import QuerySettings, make_queries
from tests.scripted_answers import good, texts_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
calls, numbers = Path(sys.argv[2]), itertools.count(1)

def respond(prompt):
    number = next(numbers)
    with calls.open("a") as file:
        file.write("x")
    if number > 6:
        time.sleep(600)
    return good(prompt)

make_queries(texts_of(12), respond, part=sys.argv[1],
    settings=QuerySettings(kinds={"question": 1}, llm_name="scripted", concurrency=2))
"""


@pytest.mark.parametrize(
    "way",
    ["kill", pytest.param("ctrl-c", marks=pytest.mark.skipif(os.name == "nt", reason="Windows can't send it"))],
)
def test_a_killed_run_goes_on(tmp_path: Path, way: str) -> None:
    part, calls = tmp_path / "answers.jsonl", tmp_path / "calls"
    root = Path(__file__).parent.parent
    run = subprocess.Popen(
        [sys.executable, "-c", _RUN, str(part), str(calls)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stderr=subprocess.PIPE,
    )
    try:
        while not (calls.exists() and calls.stat().st_size == 8 and part.read_bytes().count(b"\n") == 7):
            assert run.poll() is None
            time.sleep(0.01)
        if way == "kill":
            run.kill()
        else:
            run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    if way == "ctrl-c":
        assert b"KeyboardInterrupt" in errors
    kept = part.read_bytes()
    part.write_bytes(kept[:-20])  # as if it had been killed while it wrote
    respond = Counting(good)
    made = make_queries(texts_of(12), respond, settings=settings(), part=part)
    assert len(respond.prompts) == 12 - 5
    assert made.data == make_queries(texts_of(12), good, settings=settings()).data


class TestConcurrency:
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_as_many_calls_run_at_once_as_are_allowed(self, framework: Framework) -> None:
        together = threading.Barrier(3, timeout=30)

        def respond(prompt: str) -> str:
            together.wait()  # passes only when three are here
            return good(prompt)

        counting = Counting(respond)
        made = make_queries(texts_of(12), model_of(framework, counting), settings=settings(concurrency=3))
        assert (len(made.data.rows), counting.most) == (12, 3)

    def test_one_at_a_time_is_possible_and_keeps_the_order(self) -> None:
        respond = Counting(good)
        make_queries(texts_of(9), respond, settings=settings(concurrency=1))
        assert respond.most == 1
        assert [passages_in(prompt)[0] for prompt in respond.prompts] == texts_of(9)

    def test_the_data_do_not_depend_on_the_order_of_the_answers(self) -> None:
        later = threading.Event()

        def respond(prompt: str) -> str:
            if texts_of(1)[0] in prompt:
                later.wait(30)
            if texts_of(6)[5] in prompt:
                later.set()
            return good(prompt)

        turned = make_queries(texts_of(6), respond, settings=settings(concurrency=2))
        assert turned.data == make_queries(texts_of(6), good, settings=settings(concurrency=1)).data

    def test_variables_of_the_context_reach_the_model(self) -> None:
        variable: ContextVar[str] = ContextVar("variable", default="no")
        seen: list[str] = []

        def respond(prompt: str) -> str:
            seen.append(variable.get())
            return good(prompt)

        token = variable.set("yes")
        make_queries(texts_of(2), respond, settings=settings())
        variable.reset(token)
        assert seen == ["yes", "yes"]


class Clock:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(failures, "sleep", clock.sleep)
    monkeypatch.setattr(failures, "monotonic", clock.monotonic)
    return clock


class RateLimitError(Exception):
    """As the clients of OpenAI and Anthropic raise it."""

    def __init__(self, message: str = "limit reached", status: int = 429, **headers: str) -> None:
        super().__init__(message)
        self.status_code = status
        self.response = SimpleNamespace(
            status_code=status, headers={name.replace("_", "-").title(): value for name, value in headers.items()}
        )


class AuthenticationError(Exception):
    """A key that is wrong."""

    status_code = 401


def fails(times: int, error: Callable[[], BaseException]) -> Respond:
    """Returns a function whose first calls raise an error."""
    left = [error() for _ in range(times)]

    def respond(prompt: str) -> str:
        if left:
            raise left.pop()
        return good(prompt)

    return respond


class TestFailures:
    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_a_rate_limit_is_waited_for_as_long_as_it_says(self, framework: Framework, clock: Clock) -> None:
        asked: list[float] = []
        respond = fails(2, lambda: RateLimitError(retry_after="7"))

        def timed(prompt: str) -> str:
            asked.append(clock.now)
            return respond(prompt)

        made = make_queries(texts_of(3), model_of(framework, timed), settings=settings(concurrency=1))
        assert (len(made.data.rows), made.failed) == (3, ())
        assert asked == [0, 7, 14, 14, 14]
        assert clock.slept == [7, 7]

    def test_a_rate_limit_holds_back_all_calls(self, clock: Clock) -> None:
        asked: list[float] = []
        together = threading.Barrier(2, timeout=30)

        def respond(prompt: str) -> str:
            asked.append(clock.now)
            if len(asked) <= 2:
                together.wait()
                raise RateLimitError(retry_after="30")
            return good(prompt)

        made = make_queries(texts_of(6), respond, settings=settings(concurrency=2))
        assert len(made.data.rows) == 6
        assert asked[:2] == [0, 0]
        assert min(asked[2:]) >= 30

    def test_waits_double_at_random_up_to_a_limit(self, clock: Clock) -> None:
        respond = fails(6, lambda: ConnectionError("reset by peer"))
        made = make_queries(
            texts_of(1), respond, settings=settings(first_wait=2.0, longest_wait=20.0, attempts=7, concurrency=1)
        )
        assert (len(made.data.rows), made.report.calls) == (1, 7)
        for slept, longest in zip(clock.slept, (2, 4, 8, 16, 20, 20), strict=True):
            assert longest / 2 <= slept <= longest
        assert len(set(clock.slept)) == 6

    def test_after_some_attempts_the_passage_fails_and_the_run_goes_on(self, clock: Clock) -> None:
        texts = texts_of(4)

        def respond(prompt: str) -> str:
            if texts[1] in prompt:
                raise RateLimitError("busy", status=503)
            return good(prompt)

        counting = Counting(respond)
        made = make_queries(texts, counting, settings=settings(attempts=3))
        assert len(made.data.rows) == 3
        assert [one.error for one in made.failed] == ["RateLimitError (status 503), after 3 attempts: busy"]
        assert len(counting.prompts) == 3 + 3

    @pytest.mark.parametrize(
        "error", [ValueError("a bug"), RateLimitError("bad request", 400), RateLimitError("no", 404)]
    )
    def test_what_does_not_pass_is_not_tried_again(self, error: Exception, clock: Clock) -> None:
        counting = Counting(in_turn(error, ""))
        counting_good = Counting(lambda prompt: counting(prompt) or good(prompt))
        made = make_queries(texts_of(3), counting_good, settings=settings(concurrency=1))
        assert (len(made.failed), len(made.data.rows)) == (1, 2)
        assert (len(counting_good.prompts), clock.slept) == (3, [])

    def test_a_limit_of_a_day_is_not_waited_for(self, clock: Clock) -> None:
        respond = fails(1, lambda: RateLimitError(retry_after="86400"))
        made = make_queries(texts_of(2), respond, settings=settings(concurrency=1))
        assert (len(made.failed), len(made.data.rows), clock.slept) == (1, 1, [])

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    def test_a_wrong_key_stops_the_run_at_once(self, framework: Framework, tmp_path: Path) -> None:
        def respond(prompt: str) -> str:
            raise AuthenticationError("Incorrect API key provided")

        counting = Counting(respond)
        with pytest.raises(ChatModelError) as caught:
            make_queries(texts_of(200), model_of(framework, counting), settings=settings(llm_name=None))
        assert 5 <= len(counting.prompts) < 5 + 4
        assert "failed on 5 passages one after the other and none has succeeded" in str(caught.value)
        assert "AuthenticationError (status 401): Incorrect API key provided. Check its key" in str(caught.value)
        assert isinstance(caught.value.__cause__, AuthenticationError)

    def test_a_server_that_is_not_there_stops_the_run_before_all_attempts(self, clock: Clock) -> None:
        counting = Counting(in_turn(ConnectionRefusedError("connection refused")))
        with pytest.raises(
            ChatModelError, match="failed in 12 calls and none has succeeded, the last time with"
        ) as caught:
            make_queries(texts_of(50), counting, settings=settings(concurrency=4, attempts=9))
        assert 12 <= len(counting.prompts) < 12 + 4
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)

    def test_rate_limits_at_the_beginning_do_not_stop_a_run(self, clock: Clock) -> None:
        respond = fails(30, lambda: RateLimitError(retry_after="1"))
        made = make_queries(texts_of(3), respond, settings=settings(concurrency=1, attempts=40))
        assert (len(made.data.rows), made.failed) == (3, ())

    def test_a_model_that_dies_in_the_middle_stops_the_run_and_keeps_what_is_done(self, tmp_path: Path) -> None:
        part = tmp_path / "answers.jsonl"
        left = iter(range(40))

        def respond(prompt: str) -> str:
            if next(left, None) is None:
                raise AuthenticationError("the key has expired")
            return good(prompt)

        counting = Counting(respond)
        with pytest.raises(ChatModelError, match="failed on 25 passages one after the other, the last time"):
            make_queries(texts_of(200), counting, settings=settings(concurrency=1), part=part)
        assert len(counting.prompts) == 40 + 25
        again = Counting(good)
        assert len(make_queries(texts_of(200), again, settings=settings(), part=part).data.rows) == 200
        assert len(again.prompts) == 160

    def test_failures_of_different_kinds_do_not_stop_a_run(self) -> None:
        def respond(prompt: str) -> str:
            number = next(place for place, text in enumerate(texts_of(12)) if text in prompt)
            if number < 11:
                raise (ValueError, KeyError)[number % 2]("odd")
            return good(prompt)

        made = make_queries(texts_of(12), respond, settings=settings(concurrency=1))
        assert (len(made.failed), len(made.data.rows)) == (11, 1)

    def test_secrets_are_not_shown(self) -> None:
        token = "hf_" + "a" * 34

        def respond(prompt: str) -> str:
            raise ValueError(f"no access with {token}")

        with pytest.raises(ChatModelError) as caught:
            make_queries(texts_of(9), respond, settings=settings())
        assert token not in str(caught.value)


def wrapped(error: BaseException) -> BaseException:
    """Returns an error that another one caused, as frameworks wrap those of clients."""
    try:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("the request failed") from cause
    except RuntimeError as outer:
        return outer


class _Throttled(Exception):  # as boto's ClientError
    response = {"Error": {"Code": "ThrottlingException"}, "ResponseMetadata": {"HTTPStatusCode": 429}}  # noqa: RUF012


ResourceExhausted = type("ResourceExhausted", (Exception,), {})
APITimeoutError = type("APITimeoutError", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (RateLimitError(), True),
        (RateLimitError(status=500), True),
        (RateLimitError(status=529), True),
        (RateLimitError(status=408), True),
        (RateLimitError(status=400), False),
        (RateLimitError("429 in its words, but refused", status=403), False),
        (wrapped(RateLimitError()), True),
        (wrapped(RateLimitError(status=401)), False),
        (_Throttled(), True),
        (ResourceExhausted("quota"), True),
        (APITimeoutError(), True),
        (TimeoutError(), True),
        (asyncio.TimeoutError(), True),
        (ConnectionResetError(), True),
        (Exception("Error code: 429 - too fast"), True),
        (Exception("Rate limit reached for model"), True),
        (Exception("the model has 4290 tokens"), False),
        (ValueError("a bug"), False),
        (KeyError("choices"), False),
    ],
)
def test_failures_that_may_pass_are_told_from_others(error: BaseException, passes: bool) -> None:
    assert is_passing(error) is passes


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimitError(retry_after="2"), 2.0),
        (RateLimitError(retry_after="2.5"), 2.5),
        (RateLimitError(retry_after_ms="1500", retry_after="9"), 1.5),
        (wrapped(RateLimitError(retry_after="3")), 3.0),
        (RateLimitError(retry_after="soon"), None),
        (RateLimitError("Please try again in 20s."), 20.0),
        (RateLimitError("Please try again in 350ms."), 0.35),
        (RateLimitError("Please retry after 2 minutes"), 120.0),
        (RateLimitError("wait 5 seconds"), 5.0),
        (RateLimitError("no time is named; 5 s are mine"), None),
        (RateLimitError(), None),
    ],
)
def test_the_time_that_a_failure_names_is_read(error: BaseException, seconds: float | None) -> None:
    assert named_wait(error) == (None if seconds is None else pytest.approx(seconds))


def test_retry_after_may_be_a_date() -> None:
    at = datetime.now(timezone.utc) + timedelta(hours=1)
    found = named_wait(RateLimitError(retry_after=format_datetime(at, usegmt=True)))
    assert found is not None
    assert 3000 < found <= 3600
    past = named_wait(RateLimitError(retry_after=format_datetime(at - timedelta(hours=2), usegmt=True)))
    assert past == 0


class TestEventLoops:
    async def test_it_works_where_a_loop_is_running(self) -> None:
        async def respond(prompt: str) -> str:
            await asyncio.sleep(0)
            return good(prompt)

        for llm in (good, respond, model_of("langchain", good)):
            assert len(make_queries(texts_of(3), llm, settings=settings()).data.rows) == 3

    async def test_async_functions_are_called_on_the_running_loop(self) -> None:
        loops: set[asyncio.AbstractEventLoop] = set()
        event = asyncio.Event()

        async def respond(prompt: str) -> str:
            loops.add(asyncio.get_running_loop())
            await event.wait()
            return good(prompt)

        async def open_it() -> None:
            event.set()

        made, _ = await asyncio.gather(amake_queries(texts_of(3), respond, settings=settings()), open_it())
        assert loops == {asyncio.get_running_loop()}
        assert made.data == make_queries(texts_of(3), good, settings=settings()).data

    @pytest.mark.parametrize("framework", FRAMEWORKS)
    async def test_models_of_the_frameworks_do_not_block_the_loop(self, framework: Framework) -> None:
        called, goes_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def respond(prompt: str) -> str:
            loop.call_soon_threadsafe(called.set)
            assert goes_on.wait(30)
            return good(prompt)

        async def watch() -> None:
            await called.wait()  # the loop runs while the model thinks
            goes_on.set()

        made, _ = await asyncio.gather(
            amake_queries(texts_of(2), model_of(framework, respond), settings=settings()), watch()
        )
        assert len(made.data.rows) == 2

    async def test_what_is_done_is_kept_when_it_is_cancelled(self, tmp_path: Path) -> None:
        part, stuck = tmp_path / "answers.jsonl", asyncio.Event()
        first = texts_of(1)[0]

        async def respond(prompt: str) -> str:
            if first not in prompt:
                stuck.set()
                await asyncio.Event().wait()
            return good(prompt)

        running = asyncio.ensure_future(
            amake_queries(texts_of(3), respond, settings=settings(concurrency=1), part=part)
        )
        await stuck.wait()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert running.cancelled()
        again = Counting(good)
        await amake_queries(texts_of(3), again, settings=settings(), part=part)
        assert [passages_in(prompt)[0] for prompt in sorted(again.prompts)] == sorted(texts_of(3)[1:])


def test_the_estimate_is_what_the_run_takes(tmp_path: Path) -> None:
    part, chosen = tmp_path / "answers.jsonl", settings(kinds={"question": 2, "keywords": 0.5})
    respond = Counting(good)
    plan = QueryPlan(texts_of(20), respond, settings=chosen, part=part)
    assert respond.prompts == []
    made = plan.run()
    assert plan.estimate.calls == len(respond.prompts) == made.report.calls == 20
    assert plan.estimate.characters == sum(map(len, respond.prompts))
    assert plan.estimate.questions == sum(made.report.made.values())
    assert plan.estimate.most_calls == 60
    assert plan.estimate.tokens_in == pytest.approx(plan.estimate.characters / 4, rel=0.02)
    assert "20 calls of the chat model (at most 60)" in plan.estimate.in_words()
    assert plan.run().data == made.data
    assert len(respond.prompts) == 20  # what is kept is not asked again
    later = QueryPlan(texts_of(23), respond, settings=chosen, part=part).estimate
    assert (later.calls, later.kept) == (3, 20)
    assert json.loads(json.dumps(later.to_dict()))["kept"] == 20
    assert "the answers to 20 prompts are there already" in later.in_words()


def test_the_estimate_knows_that_chinese_takes_more_tokens() -> None:
    chinese = QueryPlan(["雨水从云里落下，干旱地区的农民靠它种地。" * 20], good, settings=settings()).estimate
    assert chinese.tokens_in > chinese.characters / 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"concurrency": 0}, "concurrency=0 must be 1 or more"),
        ({"answers": 0}, "answers=0"),
        ({"timeout": 0}, "timeout=0"),
        ({"near": 1.5}, "near=1.5 must be a cosine"),
        ({"rank": 0}, "rank=0"),
        ({"language": "de"}, "language='de' is unknown"),
        ({"examples": "one text"}, "examples is one text"),
        ({"examples": ["good", " "]}, r"examples\[1\] is blank"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        QuerySettings(**changes)
