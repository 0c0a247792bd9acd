"""Models on servers: the same results as in this process, and clear errors for all that can go wrong on the way."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.engines.remote import connection
from bge_integrations.backend.scheduler.job import PRIORITIES
from bge_integrations.errors import (
    EndpointError,
    InputTypeError,
    ModelClosedError,
    ModelLoadError,
    NonFiniteOutputError,
    PoolingMismatchError,
    SettingsError,
    TruncationError,
    TruncationWarning,
    UnsupportedModelError,
)
from bge_integrations.settings import EncoderSettings, EndpointOptions, RerankerSettings
from tests.adapters import assert_close, everything_of
from tests.conftest import MakeCheckpoint
from tests.model_server import Api, Models, ModelServer, Reply, running, wait_until

EN = "Represent this sentence for searching relevant passages: "
KEY = "the-key-that-nobody-may-see"
TEXTS = [f"the quick fox number {number} {'jumps ' * (number % 13)}" for number in range(60)]
OURS = {"bge": {"embeddings": {"instructions": {"symmetric": {"before": "", "after": ""}}}}}
"""What `/info` of `bge serve` says."""
APIS: tuple[Api, ...] = ("tei", "openai", "infinity")


@pytest.fixture(scope="module")
def models(bge_small_en: Path, bge_reranker_base: Path) -> Iterator[Models]:
    with (
        BgeEncoder(bge_small_en, on_truncation="ignore") as encoder,
        BgeReranker(bge_reranker_base, on_truncation="ignore") as reranker,
    ):
        yield Models(encoder, reranker)


@pytest.fixture
def server(models: Models) -> Iterator[ModelServer]:
    with running(models) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, unless the server says when."""
    monkeypatch.setattr(connection, "_FIRST_WAIT_S", 0.001)


@pytest.fixture(params=APIS)
def any_server(models: Models, request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    with running(models, api=request.param) as found:
        yield found


class TestSameResults:
    def test_vectors_of_every_role_are_those_of_the_model(
        self, any_server: ModelServer, models: Models, bge_small_en: Path
    ) -> None:
        local = models.encoder
        assert local is not None
        with BgeEncoder(bge_small_en, endpoint=any_server.url) as remote:
            for name in ("encode_queries", "encode_documents", "encode"):
                assert_close(getattr(remote, name)(TEXTS), getattr(local, name)(TEXTS))
            assert remote.encode_documents([]).shape == (0, 32)
            assert_close(remote.encode_documents(iter([*TEXTS, TEXTS[0]])), local.encode_documents([*TEXTS, TEXTS[0]]))
            assert (remote.dimension, remote.max_length, remote.normalizes) == (32, 64, True)
            assert remote.count_tokens(TEXTS).tolist() == local.count_tokens(TEXTS).tolist()
            assert remote.chunk_size == local.chunk_size

    def test_only_queries_get_the_instruction_and_only_once(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            server.forget()
            remote.encode_queries(["what?"])
            remote.encode_documents(["that"])
        assert server.texts == [f"{EN}what?", "that"]

    def test_scores_are_those_of_the_model(
        self, any_server: ModelServer, models: Models, bge_reranker_base: Path
    ) -> None:
        local = models.reranker
        assert local is not None
        pairs = [(f"query {number % 3}", text) for number, text in enumerate(TEXTS)]
        for normalize in (False, True):
            with (
                BgeReranker(
                    bge_reranker_base, endpoint=any_server.url, normalize=normalize, on_truncation="ignore"
                ) as remote,
                BgeReranker(bge_reranker_base, normalize=normalize, on_truncation="ignore") as here,
            ):
                assert_close(remote.score("a fox", TEXTS), here.score("a fox", TEXTS))
                assert_close(remote.score_pairs(pairs), here.score_pairs(pairs))

    async def test_async_methods_give_the_same(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            expected = remote.encode_documents(TEXTS)
            many = await asyncio.gather(*(remote.aencode_documents(TEXTS[:number]) for number in range(1, 40)))
            for number, found in enumerate(many, 1):
                assert_close(found, expected[:number])

    def test_bge_m3_has_dense_vectors_and_lexical_weights(self, bge_m3: Path) -> None:
        with (
            BgeM3Encoder(bge_m3) as local,
            running(Models(m3=local)) as server,
            BgeM3Encoder(bge_m3, endpoint=server.url) as remote,
        ):
            texts = TEXTS[:5]
            mine, theirs = (one.encode_documents(texts, colbert=False) for one in (local, remote))
            assert theirs.dense is not None
            assert mine.dense is not None
            assert theirs.sparse is not None
            assert mine.sparse is not None
            assert_close(theirs.dense, mine.dense)
            for left, right in zip(theirs.sparse, mine.sparse, strict=True):
                assert left == pytest.approx(right, abs=1e-6)
            weights = (0.7, 0.3, 0)
            assert_close(remote.score("fox", texts, weights=weights), local.score("fox", texts, weights=weights))
            server.forget()
            remote.encode_queries(texts, dense=False, colbert=False)
            assert {path for path, _ in server.requests} == {"/embed_sparse"}
            with pytest.raises(SettingsError, match=r"can't give token vectors.*colbert=False"):
                remote.encode_documents(texts)
            with remote.dense_encoder() as dense:
                assert_close(dense.encode_documents(texts), mine.dense)

    def test_servers_with_openais_routes_have_no_lexical_weights(self, bge_m3: Path) -> None:
        with (
            BgeM3Encoder(bge_m3) as local,
            running(Models(m3=local), api="openai") as server,
            pytest.raises(EndpointError, match="none gives bge-m3's lexical weights"),
        ):
            BgeM3Encoder(bge_m3, endpoint=server.url)


class TestLengths:
    def test_long_texts_are_cut_here_unless_the_server_cuts_alike(self, models: Models, bge_small_en: Path) -> None:
        long = "fox dog " * 100
        for info, cut_here in (({}, True), ({"max_input_length": 64}, False), ({"max_input_length": 512}, True)):
            with running(models, info=info) as server, BgeEncoder(bge_small_en, endpoint=server.url) as remote:
                local = models.encoder
                assert local is not None
                server.forget()
                with pytest.warns(TruncationWarning, match=r"1 of 2 texts were cut: .* text 1, has 202"):
                    found = remote.encode_documents(["fox", long])
                assert_close(found, local.encode_documents(["fox", long]))
                assert (max(map(len, server.texts)) < len(long)) == cut_here

    def test_a_lower_limit_of_ones_own_is_kept(self, server: ModelServer, bge_small_en: Path) -> None:
        settings: dict[str, Any] = {"max_length": 12, "on_truncation": "ignore"}
        with (
            BgeEncoder(bge_small_en, endpoint=server.url, **settings) as remote,
            BgeEncoder(bge_small_en, **settings) as local,
        ):
            assert_close(remote.encode_queries(TEXTS), local.encode_queries(TEXTS))
            assert_close(remote.encode_documents(TEXTS), local.encode_documents(TEXTS))

    def test_pairs_are_cut_as_the_model_cuts_them(self, server: ModelServer, bge_reranker_base: Path) -> None:
        settings: dict[str, Any] = {"max_length": 16, "on_truncation": "ignore"}
        pairs = [("fox", "dog " * 50), ("fox " * 50, "dog"), ("fox " * 50, "dog " * 50), ("a", "b")]
        with (
            BgeReranker(bge_reranker_base, endpoint=server.url, **settings) as remote,
            BgeReranker(bge_reranker_base, **settings) as local,
        ):
            assert_close(remote.score_pairs(pairs), local.score_pairs(pairs))

    def test_texts_over_the_limit_can_be_an_error_before_anything_is_sent(
        self, server: ModelServer, bge_small_en: Path
    ) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url, on_truncation="error") as remote:
            server.forget()
            with pytest.raises(TruncationError, match="Text 1 has 102 tokens"):
                remote.encode_documents(["fox", "fox " * 100])
            assert server.requests == []

    def test_a_lower_limit_of_the_server_counts(self, models: Models, bge_small_en: Path) -> None:
        with (
            running(models, info={"max_input_length": 20}) as server,
            BgeEncoder(bge_small_en, endpoint=server.url) as remote,
        ):
            assert remote.max_length == 20

    def test_without_a_tokenizer_batches_are_made_by_characters(self, server: ModelServer, models: Models) -> None:
        local = models.encoder
        assert local is not None
        with pytest.warns(TruncationWarning, match="The tokenizer of my-model is not here"):
            remote = BgeEncoder("my-model", endpoint=server.url)
        with remote:
            assert_close(remote.encode_documents(TEXTS), local.encode_documents(TEXTS))
            for use in (
                lambda: remote.count_tokens(["a"]),
                lambda: remote.chunk_size,
                lambda: remote.chunk_length("a"),
            ):
                with pytest.raises(SettingsError, match=r"needs the tokenizer of my-model.*endpoint_options"):
                    use()
        for setting in ({"max_length": 5}, {"on_truncation": "error"}):
            with pytest.raises(SettingsError, match=f"{next(iter(setting))}=.* needs the tokenizer"):
                BgeEncoder("my-model", endpoint=server.url, **setting)

    def test_the_tokenizer_can_be_named(self, server: ModelServer, bge_small_en: Path, tmp_path: Path) -> None:
        options = {"tokenizer": str(bge_small_en)}
        with BgeEncoder("my-model", endpoint=server.url, endpoint_options=options) as remote:
            assert remote.count_tokens(["the fox"]).tolist() == [4]
        with pytest.raises(ModelLoadError, match="nowhere"):
            BgeEncoder("my-model", endpoint=server.url, endpoint_options={"tokenizer": str(tmp_path / "nowhere")})


class TestBatches:
    def test_a_request_holds_no_more_texts_than_the_server_takes(self, models: Models, bge_small_en: Path) -> None:
        with (
            running(models, info={"max_client_batch_size": 7}) as server,
            BgeEncoder(bge_small_en, endpoint=server.url) as remote,
        ):
            server.forget()
            remote.encode_documents(TEXTS)
            assert sorted(server.texts) == sorted(TEXTS)
            assert max(server.sizes()) == 7

    def test_a_request_holds_no_more_than_the_user_wants(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url, batch_size=3) as remote:
            server.forget()
            remote.encode_documents(TEXTS)
            assert max(server.sizes()) == 3
        with BgeEncoder(bge_small_en, endpoint=server.url, batch_tokens=60) as remote:
            server.forget()
            remote.encode_documents(TEXTS)
            sizes = [
                len(content["inputs"]) * max(remote.count_tokens(content["inputs"])) for _, content in server.requests
            ]
            assert max(sizes) <= 60

    def test_requests_run_at_once_but_not_more_than_said(self, server: ModelServer, bge_small_en: Path) -> None:
        options = {"connections": 3}
        with BgeEncoder(bge_small_en, endpoint=server.url, batch_size=2, endpoint_options=options) as remote:
            server.forget()
            server.may_go.clear()
            thread = _in_background(lambda: remote.encode_documents(TEXTS))
            wait_until(lambda: server.at_once == 3)
            assert len(server.requests) == 3
            server.may_go.set()
            thread()
            assert server.at_once == 3

    def test_queries_go_before_documents(self, server: ModelServer, bge_small_en: Path) -> None:
        options = {"connections": 1}
        with BgeEncoder(bge_small_en, endpoint=server.url, batch_size=2, endpoint_options=options) as remote:
            server.forget()
            server.may_go.clear()
            documents = _in_background(lambda: remote.encode_documents(TEXTS[:20]))
            wait_until(lambda: len(server.requests) == 1)
            query = _in_background(lambda: remote.encode_queries(["now"]))
            wait_until(lambda: remote.backend.scheduler.jobs_waiting("interactive") == 1)
            server.may_go.set()
            query()
            documents()
        assert server.texts.index(f"{EN}now") == 2

    def test_bge_serve_learns_the_priority(self, models: Models, bge_small_en: Path) -> None:
        options = {"connections": 1}
        with (
            running(models, info=OURS) as server,
            BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options=options) as remote,
        ):
            server.forget()
            server.may_go.clear()
            # These wait together, and no request has texts of both.
            calls = [_in_background(lambda: remote.encode(["first"]))]
            wait_until(lambda: len(server.requests) == 1)
            for encode, text in ((remote.encode_queries, "query"), (remote.encode_documents, "document")):
                calls.append(_in_background(partial(encode, [text])))
            scheduler = remote.backend.scheduler
            wait_until(lambda: [scheduler.jobs_waiting(priority) for priority in PRIORITIES] == [1, 1])
            server.may_go.set()
            for call in calls:
                call()
        sent = [(content["inputs"], content["prompt_name"], content["priority"]) for _, content in server.requests]
        assert sent == [
            (["first"], "symmetric", "bulk"),
            ([f"{EN}query"], "symmetric", "interactive"),
            (["document"], "symmetric", "bulk"),
        ]

    def test_bge_serve_learns_the_priority_of_lexical_weights_too(self, bge_m3: Path) -> None:
        with (
            BgeM3Encoder(bge_m3) as local,
            running(Models(m3=local), info=OURS) as server,
            BgeM3Encoder(bge_m3, endpoint=server.url) as remote,
        ):
            for work, priority in (
                (lambda: remote.encode_queries(["fox"], colbert=False), "interactive"),
                (lambda: remote.encode_documents(["fox"], colbert=False), "bulk"),
                (lambda: remote.score("fox", ["dog"], weights=(0.7, 0.3, 0)), "interactive"),
                (lambda: remote.score_pairs([("fox", "dog")], weights=(0.7, 0.3, 0)), "bulk"),
            ):
                server.forget()
                work()
                assert {path for path, _ in server.requests} == {"/embed", "/embed_sparse"}
                assert {content["priority"] for _, content in server.requests} == {priority}

    def test_other_servers_get_no_fields_of_bge_serve(
        self, any_server: ModelServer, models: Models, bge_small_en: Path
    ) -> None:
        with BgeEncoder(bge_small_en, endpoint=any_server.url) as remote:
            remote.encode_queries(["query"])
            remote.encode_documents(["document"])
        usual = (
            {"inputs", "normalize", "truncate"} if any_server.api == "tei" else {"input", "model", "encoding_format"}
        )
        assert all(content.keys() == usual for _, content in any_server.requests)

    def test_a_proxys_limit_on_the_size_of_requests_is_learned(self, models: Models, bge_small_en: Path) -> None:
        with (
            running(models, api="openai") as server,
            BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options={"connections": 1}) as remote,
        ):
            local = models.encoder
            assert local is not None
            server.script = lambda _, content: Reply(413, b"too large") if len(content["input"]) > 10 else None
            assert_close(remote.encode_documents(TEXTS), local.encode_documents(TEXTS))
            server.forget()
            remote.encode_documents(TEXTS)
            assert max(server.sizes()) <= 10

    async def test_a_cancelled_call_sends_no_more(self, server: ModelServer, bge_small_en: Path) -> None:
        options = {"connections": 1}
        with BgeEncoder(bge_small_en, endpoint=server.url, batch_size=1, endpoint_options=options) as remote:
            server.forget()
            server.may_go.clear()
            task = asyncio.create_task(remote.aencode_documents(TEXTS))
            await asyncio.to_thread(wait_until, lambda: len(server.requests) == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            wait_until(lambda: remote.backend.scheduler.texts_in_flight("bulk") == 0)
            server.may_go.set()
            await remote.aencode_queries(["next"])
            assert server.texts == [*server.texts[:1], f"{EN}next"]


def _in_background(work: Any) -> Any:  # noqa: ANN401 - a function, and a function that waits for it
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:  # noqa: ANN401 - what `work` returns
        thread.join(60)
        assert found, "it never ends"
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    return result


class TestTriedAgain:
    @pytest.mark.parametrize("status", [429, 502, 503, 504])
    def test_a_busy_server_is_asked_again(self, server: ModelServer, bge_small_en: Path, status: int) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            replies = [Reply(status, {"error": "busy"}, {"Retry-After": "0"}), Reply(status, b"<html>", {}), None]
            server.script = lambda *_: replies.pop(0)
            assert remote.encode_documents(["fox"]).shape == (1, 32)
            assert replies == []

    def test_a_connection_that_breaks_before_the_answer_is_made_again(
        self, server: ModelServer, bge_small_en: Path
    ) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            replies = [Reply(closes=True), None]
            server.script = lambda *_: replies.pop(0)
            assert remote.encode_documents(["fox"]).shape == (1, 32)

    def test_tries_end(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options={"retries": 2}) as remote:
            server.forget()
            server.script = lambda *_: Reply(503, {"error": "closing"})
            with pytest.raises(EndpointError, match=r"answers 503 \(Service Unavailable\).*tried 3 time") as caught:
                remote.encode_documents(TEXTS[:8])
            assert (caught.value.status, caught.value.index) == (503, None)
            assert len(server.requests) == 3  # the halves of the batch are not tried

    def test_a_server_that_says_to_come_back_too_late_is_not_waited_for(
        self, server: ModelServer, bge_small_en: Path
    ) -> None:
        for later in ("3600", email.utils.formatdate(time.time() + 3600, usegmt=True)):
            with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
                server.forget()
                server.script = lambda path, _, later=later: (  # type: ignore[misc]
                    Reply(429, {"error": "busy"}, {"Retry-After": later}) if path == "/embed" else None
                )
                with pytest.raises(EndpointError, match="429"):
                    remote.encode_documents(["fox"])
                assert len(server.requests) == 1
                server.script = lambda *_: None

    def test_the_servers_time_is_waited_for_and_closing_ends_the_wait(
        self, server: ModelServer, bge_small_en: Path
    ) -> None:
        remote = BgeEncoder(bge_small_en, endpoint=server.url)
        server.forget()
        server.script = lambda *_: Reply(429, {"error": "busy"}, {"Retry-After": "50"})
        call = _in_background(lambda: remote.encode_documents(["fox"]))
        wait_until(lambda: len(server.requests) == 1)
        remote.backend.scheduler.close()
        with pytest.raises((ModelClosedError, EndpointError)):
            call()
        assert len(server.requests) == 1
        remote.close()

    def test_waits_grow_and_differ(self) -> None:
        failure = connection._Failure(EndpointError("busy"), 2.0)
        longest = [connection._wait(failure, tries, lambda _, most: most) or 0 for tries in (1, 2, 3, 20)]
        assert longest == [2 + 0.001, 2 + 0.002, 2 + 0.004, 22.0]
        assert connection._wait(connection._Failure(EndpointError("no"), None), 1) is None

    @pytest.mark.parametrize(
        ("written", "seconds"),
        [("7", 7.0), (None, None), ("soon", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("-3", None)],
    )
    def test_retry_after_is_a_number_or_a_date(self, written: str | None, seconds: float | None) -> None:
        assert connection._seconds(written) == seconds


class TestErrors:
    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (Reply(401, {"error": "who are you?"}), r"401 \(Unauthorized\).*Give the server's key as api_key"),
            (Reply(403, {"error": "no"}), "403"),
            (Reply(404, {"error": "no model"}), "404.*no model.*endpoint_options"),
            (Reply(500, {"error": "broken"}), "500.*broken"),
            (
                Reply(302, b"", {"Location": "http://elsewhere/embed"}),
                "redirects to http://elsewhere.*not followed",
            ),
            (Reply(200, b"<html>hello</html>", {"Content-Type": "text/html"}), "no JSON but text/html.*hello"),
            (Reply(200, {"not": "a list"}), "a dict instead of a list"),
            (Reply(200, [[0.5] * 32]), r"1 results for 2 text\(s\)"),
            (Reply(200, [[0.5] * 31, [0.5] * 31]), "vectors of 31 numbers, but gave 32 before"),
            (Reply(200, [[0.5] * 32, [0.5] * 31]), "no rows of numbers of equal length"),
            (Reply(200, [["x"] * 32] * 2), "no rows of numbers"),
            (Reply(200, [[], []]), "empty vectors"),
            (Reply(204, b""), "204"),
        ],
    )
    def test_an_answer_that_cannot_be_used_is_an_error_for_the_call(
        self, server: ModelServer, bge_small_en: Path, reply: Reply, message: str
    ) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            server.forget()
            server.script = lambda *_: reply
            with pytest.raises(EndpointError, match=message) as caught:
                remote.encode_documents(["fox", "dog"])
            assert len(server.requests) == 1
            assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
            server.script = lambda *_: None
            assert remote.encode_documents(["fox"]).shape == (1, 32)

    @pytest.mark.parametrize(
        ("reply", "message"),
        [
            (Reply(200, {"data": [{"index": 0, "embedding": [0.5] * 32}] * 2}), "not one for each of 2 texts"),
            (Reply(200, {"data": [{"index": 9, "embedding": [0.5] * 32}] * 2}), "in another format.*row 0"),
            (Reply(200, {"data": [{"vector": [0.5] * 32}] * 2}), "in another format"),
            (Reply(200, {"data": None}), "NoneType instead of a list"),
            (Reply(200, [1, 2]), "NoneType instead of a list"),
        ],
    )
    def test_wrong_indices_are_noticed(self, models: Models, bge_small_en: Path, reply: Reply, message: str) -> None:
        with (
            running(models, api="openai") as server,
            BgeEncoder(bge_small_en, endpoint=server.url) as remote,
        ):
            server.script = lambda *_: reply
            with pytest.raises(EndpointError, match=message):
                remote.encode_documents(["fox", "dog"])

    @pytest.mark.parametrize("status", [400, 413, 422, 424])
    def test_a_refused_text_is_named_by_its_place_in_the_users_list(
        self, server: ModelServer, bge_small_en: Path, status: int
    ) -> None:
        texts = [*TEXTS[:40], "the bad one", *TEXTS[40:]]

        def refuse(_: str, content: Any) -> Reply | None:  # noqa: ANN401 - JSON
            return Reply(status, {"error": "I don't like it"}) if "the bad one" in content["inputs"] else None

        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            server.script = refuse
            with pytest.raises(EndpointError, match=rf"Text 40, of \d tokens, is refused: .*{status}.*like") as caught:
                remote.encode_documents(texts)
            assert (caught.value.index, caught.value.status) == (40, status)
            good = _in_background(lambda: remote.encode_documents(TEXTS))  # others are not touched
            with pytest.raises(EndpointError, match="Text 0"):
                remote.encode_documents(["the bad one"])
            assert good().shape == (60, 32)

    def test_nan_and_null_are_named_by_their_place(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            for wrong in (float("nan"), None):
                row = [0.5] * 31
                server.script = lambda *_, wrong=wrong, row=row: Reply(200, [[0.5] * 32, [*row, wrong]])
                with pytest.raises(NonFiniteOutputError, match=f"{server.url} gave NaN or infinity for text"):
                    remote.encode_documents(["fox", "dog"])

    def test_texts_are_checked_before_anything_is_sent(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            server.forget()
            with pytest.raises(InputTypeError, match="Text 1"):
                remote.encode_documents(["fox", None])  # type: ignore[list-item]
            assert server.requests == []

    def test_an_answer_that_takes_too_long_is_not_waited_for(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options={"timeout": 0.2}) as remote:
            server.forget()
            server.may_go.clear()
            with pytest.raises(EndpointError, match=r"no answer within 0.2 s"):
                remote.encode_documents(["fox"])
            assert len(server.requests) == 1

    def test_no_server_at_all(self, bge_small_en: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
            with pytest.raises(EndpointError, match=r"can't be reached.*Check that the server runs.*tried 3 time"):
                BgeEncoder(bge_small_en, endpoint=url, endpoint_options={"retries": 2})

    def test_a_server_without_tls_or_with_an_unknown_certificate(
        self, server: ModelServer, bge_small_en: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(EndpointError, match="no certificate that can be trusted") as caught:
            BgeEncoder(bge_small_en, endpoint=server.url.replace("http:", "https:"))
        assert "tried" not in str(caught.value)
        missing = str(tmp_path / "ca.pem")
        with pytest.raises(SettingsError, match="no file of certificates"):
            BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options={"verify": missing})

    def test_a_model_that_the_server_does_not_have(self, models: Models, bge_small_en: Path) -> None:
        with running(models, api="openai") as server:
            missing = Reply(404, {"error": {"message": "The model `x` does not exist."}})
            server.script = lambda path, _: missing if path.endswith("embeddings") else None
            with pytest.raises(EndpointError, match=r"does not exist.*The server has the models 'served'"):
                BgeEncoder(bge_small_en, endpoint=server.url)

    def test_the_name_on_the_server_is_sent(self, models: Models, bge_small_en: Path) -> None:
        with (
            running(models, api="openai") as server,
            BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options={"model": "served"}),
        ):
            assert [content["model"] for _, content in server.requests] == ["served"]
        with running(models, api="openai") as server, BgeEncoder(bge_small_en, endpoint=f"{server.url}/v1/") as remote:
            assert remote.settings.endpoint == f"{server.url}/v1"
            assert [path for path, _ in server.requests] == ["/v1/embeddings"]

    def test_another_model_or_pooling_is_noticed_at_once(self, models: Models, make: MakeCheckpoint) -> None:
        folder = make("bge-base-en", hidden_size=48)
        with (
            running(models) as server,
            pytest.raises(EndpointError, match=r"32 numbers, but .* has 48: the server runs another model"),
        ):
            BgeEncoder(folder, endpoint=server.url)
        with (
            running(models, info={"model_id": "BAAI/bge-small-zh"}) as server,
            pytest.raises(EndpointError, match="runs BAAI/bge-small-zh, not BAAI/bge-small-en"),
        ):
            BgeEncoder("BAAI/bge-small-en", endpoint=server.url, local_files_only=True)
        with (
            running(models, info={"model_type": {"embedding": {"pooling": "mean"}}}) as server,
            pytest.raises(PoolingMismatchError, match="mean pooling, but BAAI/bge-small-en was trained with cls"),
        ):
            BgeEncoder("BAAI/bge-small-en", endpoint=server.url, local_files_only=True)
        with (
            running(models) as server,
            pytest.raises(EndpointError, match="vectors of 32 numbers, but BAAI/bge-small-en has 384"),
        ):
            BgeEncoder("BAAI/bge-small-en", endpoint=server.url, local_files_only=True)

    def test_a_model_of_another_kind(self, server: ModelServer) -> None:
        with pytest.raises(UnsupportedModelError, match="is a reranker; use BgeReranker"):
            BgeEncoder("BAAI/bge-reranker-base", endpoint=server.url, local_files_only=True)
        with pytest.raises(UnsupportedModelError, match="is no reranker; use BgeEncoder"):
            BgeReranker("BAAI/bge-small-en", endpoint=server.url, local_files_only=True)

    def test_scores_that_are_no_probabilities(self, models: Models, bge_reranker_base: Path) -> None:
        local = models.reranker
        assert local is not None
        with running(models, api="openai") as server:
            rows = {"results": [{"index": 0, "relevance_score": -3.5}]}
            server.script = lambda *_: Reply(200, rows)
            with pytest.raises(EndpointError, match=r"outside of 0 to 1.*'scores': 'logits'"):
                BgeReranker(bge_reranker_base, endpoint=server.url)
            with BgeReranker(bge_reranker_base, endpoint=server.url, endpoint_options={"scores": "logits"}) as remote:
                assert remote.score("a", ["b"]).tolist() == [-3.5]
            for end in (0, 1):
                rows["results"][0]["relevance_score"] = end
                with BgeReranker(bge_reranker_base, endpoint=server.url, normalize=True) as remote:
                    assert remote.score("a", ["b"]).tolist() == pytest.approx([end], abs=1e-30)

    def test_there_is_no_model_of_a_library(self, server: ModelServer, bge_small_en: Path) -> None:
        with (
            BgeEncoder(bge_small_en, endpoint=server.url) as remote,
            pytest.raises(UnsupportedModelError, match="so there is no model of a library here"),
        ):
            _ = remote.client


class TestSettings:
    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("device", "cpu"),
            ("precision", "float32"),
            ("engine", "torch"),
            ("threads", 2),
            ("trust_remote_code", True),
            ("allow_pickle_weights", True),
            ("pooling", "cls"),
        ],
    )
    def test_what_only_concerns_models_here_is_refused(self, setting: str, value: object) -> None:
        with pytest.raises(SettingsError, match=f"{setting}=.* has no effect with endpoint='http://localhost:1'"):
            EncoderSettings(model_name="m", endpoint="http://localhost:1", **{setting: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("prompt", "so?"), ("cutoff_layers", 8), ("compress_ratio", 2), ("compress_layers", [8])],
    )
    def test_what_only_concerns_rerankers_here_is_refused(self, setting: str, value: object) -> None:
        with pytest.raises(SettingsError, match=f"{setting}=.* has no effect with endpoint"):
            RerankerSettings(model_name="m", endpoint="http://localhost:1", **{setting: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize("address", ["localhost:8080", "ftp://a", "http://", "", "http://a b", "http://a:x", 7])
    def test_what_is_no_address_is_refused(self, address: object) -> None:
        with pytest.raises(SettingsError, match="endpoint"):
            EncoderSettings(model_name="m", endpoint=address)  # type: ignore[arg-type]

    @pytest.mark.parametrize("address", [f"http://me:{KEY}@a", f"http://a/?key={KEY}", f"http://a/#{KEY}"])
    def test_an_address_with_a_secret_is_refused_and_not_shown(self, address: str) -> None:
        with pytest.raises(SettingsError, match="give the bare address") as caught:
            EncoderSettings(model_name="m", endpoint=address)
        assert KEY not in everything_of(caught.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"connections": 0},
            {"retries": -1},
            {"timeout": 0},
            {"timeout": float("nan")},
            {"retry_seconds": -1},
            {"api": "grpc"},
            {"scores": "stars"},
            {"headers": {"X-Key": KEY}},
            {"headers": {"Authorization": KEY}},
            {"headers": {"X": "a\nb"}},
            {"headers": "X"},
            {"verify": 3},
            {"key_header": "a b"},
            {"api_key_env": "sk-not-a-name"},
            {"unknown": 1},
            {"model": 3},
        ],
    )
    def test_wrong_options_are_refused_by_name(self, options: dict[str, Any]) -> None:
        name = next(iter(options))
        with pytest.raises(SettingsError, match=name) as caught:
            EncoderSettings(model_name="m", endpoint="http://a", endpoint_options=options)
        assert KEY not in everything_of(caught.value)

    def test_what_belongs_to_a_server_needs_one(self) -> None:
        for given in ({"api_key": "a"}, {"endpoint_options": {"timeout": 3}}):
            with pytest.raises(SettingsError, match="is given without endpoint"):
                EncoderSettings(model_name="m", **given)
        options = {"api_key_env": "A_KEY"}
        with pytest.raises(SettingsError, match="both given"):
            EncoderSettings(model_name="m", endpoint="http://a", api_key="b", endpoint_options=options)

    def test_unnormalised_vectors_can_be_asked_of_some_servers_only(self, models: Models, bge_small_en: Path) -> None:
        with (
            running(models) as server,
            BgeEncoder(bge_small_en, endpoint=server.url, normalize=False) as remote,
        ):
            remote.encode_documents(["fox"])
            assert server.requests[-1][1]["normalize"] is False
        with (
            running(models, api="openai") as server,
            pytest.raises(SettingsError, match="normalize=False can't be asked of"),
        ):
            BgeEncoder(bge_small_en, endpoint=server.url, normalize=False)

    def test_leading_dimensions_are_normalised_after_the_cut(self, server: ModelServer, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url, truncate_dim=8) as remote:
            found = remote.encode_documents(TEXTS)
        assert found.shape == (60, 8)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)

    def test_equal_settings_share_connections_and_other_keys_do_not(
        self, server: ModelServer, bge_small_en: Path
    ) -> None:
        first = BgeEncoder(bge_small_en, endpoint=server.url, api_key="a")
        same = BgeEncoder(bge_small_en, endpoint=server.url, api_key="a", query_instruction="find: ")
        other = BgeEncoder(bge_small_en, endpoint=server.url, api_key="b")
        assert first.backend is same.backend is not other.backend
        assert first.cache_namespace("query") != same.cache_namespace("query")
        assert first.cache_namespace("document") == other.cache_namespace("document")
        for one in (first, same, other):
            one.close()


class TestKeys:
    def test_the_key_goes_to_the_server_and_nowhere_else(
        self, server: ModelServer, bge_small_en: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with BgeEncoder(bge_small_en, endpoint=server.url, api_key=KEY) as remote:
            remote.encode_documents(["fox"])
            assert server.headers[-1]["Authorization"] == f"Bearer {KEY}"
            assert KEY not in caplog.text
            replies = [Reply(401, {"error": f"{KEY} is wrong"}), Reply(302, b"", {"Location": f"http://a/{KEY}"})]
            for reply in replies:
                server.script = lambda *_, reply=reply: reply
                with pytest.raises(EndpointError) as caught:
                    remote.encode_documents(["fox"])
                assert KEY not in everything_of(caught.value)
            for written in (repr(remote), repr(remote.settings), repr(remote.backend.request)):
                assert KEY not in written
            assert KEY.encode() not in pickle.dumps(remote)
            assert pickle.loads(pickle.dumps(remote)).settings.api_key is None

    def test_the_key_may_be_in_the_environment(
        self, server: ModelServer, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = {"api_key_env": "SOME_SERVERS_KEY", "key_header": "api-key", "headers": {"X-Team": "search"}}
        with pytest.raises(SettingsError, match=r"SOME_SERVERS_KEY.* is not set"):
            BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options=options)
        monkeypatch.setenv("SOME_SERVERS_KEY", KEY)
        with BgeEncoder(bge_small_en, endpoint=server.url, endpoint_options=options) as remote:
            assert server.headers[-1]["api-key"] == KEY
            assert server.headers[-1]["X-Team"] == "search"
            again = pickle.loads(pickle.dumps(remote))
            assert_close(again.encode_documents(TEXTS), remote.encode_documents(TEXTS))
            assert KEY not in json.dumps(repr(again.settings))

    def test_a_wrong_key_is_an_error_when_the_encoder_is_made(self, server: ModelServer, bge_small_en: Path) -> None:
        server.script = lambda *_: Reply(401, {"error": "no"})
        with pytest.raises(EndpointError, match="Check the key and endpoint_options") as caught:
            BgeEncoder(bge_small_en, endpoint=server.url, api_key=KEY)
        assert KEY not in everything_of(caught.value)


def test_options_are_shown_briefly() -> None:
    assert repr(EndpointOptions(timeout=5, headers=(("X-Team", "a"),))) == (
        "EndpointOptions(headers=(('X-Team', 'a'),), timeout=5)"
    )


def test_a_proxy_of_the_environment_is_used(
    server: ModelServer, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    server.script = lambda path, _: Reply(502, b"no such host") if path.startswith("http://") else None
    with pytest.raises(EndpointError, match=r"http://far\.example/info answers 502"):
        BgeEncoder(bge_small_en, endpoint="http://far.example", endpoint_options={"retries": 0})


_IN_ANOTHER_PROCESS = """
import sys
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
embeddings = HuggingFaceBgeEmbeddings(model_name=sys.argv[1], endpoint=sys.argv[2])
assert len(embeddings.embed_query("fox")) == 32
print(sorted({"torch", "transformers", "openvino", "sentence_transformers"} & set(sys.modules)))
"""


def test_nothing_heavy_is_imported(server: ModelServer, bge_small_en: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", _IN_ANOTHER_PROCESS, str(bge_small_en), server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_connections_of_its_own(server: ModelServer, bge_small_en: Path) -> None:
    with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
        expected = remote.encode_documents(TEXTS)
        child = os.fork()
        if not child:
            status = 1
            try:
                status = int(not np.allclose(remote.encode_documents(TEXTS), expected, atol=1e-5))
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert_close(remote.encode_documents(TEXTS), expected)
