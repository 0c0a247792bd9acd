"""The application of `bge serve`, asked in its own process: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.backend.scheduler import Priority
from bge_integrations.backend.scheduler.job import PRIORITIES
from bge_integrations.errors import EngineFailedError, SettingsError
from bge_integrations.server import Limits, ServerApp, create_app
from bge_integrations.server.errors import Refused
from bge_integrations.server.limits import Admission
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import reference_m3, reference_scores
from tests.fake_engine import LONG, FakeClock

TEXTS = ["Vector stores keep embeddings.", "The quick brown fox jumps.", "样例数据 北京天气很好", ""]
EN = "Represent this sentence for searching relevant passages: "
LONG_TEXT = "word " * 500


class Client:
    """Asks an application."""

    def __init__(self, app: ServerApp, **headers: str) -> None:
        self.app = app
        self._headers = headers

    def send(self, method: str, path: str, content: bytes | None = None, **headers: str) -> httpx.Response:
        """Sends a request."""

        async def sent() -> httpx.Response:
            # An exception of the application comes out, instead of an answer with 500.
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, content=content, headers={**self._headers, **headers})

        return asyncio.run(sent())

    def post(self, path: str, body: object) -> httpx.Response:
        """Sends JSON. A lone surrogate becomes its escape."""
        return self.send("POST", path, json.dumps(body).encode())

    def get(self, path: str) -> httpx.Response:
        """Gets a page."""
        return self.send("GET", path)

    def embed(self, inputs: object, **more: object) -> np.ndarray[Any, Any]:
        """Asks for vectors."""
        answer = self.post("/embed", {"inputs": inputs, **more})
        assert answer.status_code == 200, answer.text
        return np.array(answer.json(), dtype=np.float32)


@pytest.fixture(scope="module")
def encoder(bge_small_en: Path) -> Iterator[BgeEncoder]:
    # With one thread there are no engines for documents alone, which tests that hold the engine would not see.
    with BgeEncoder(bge_small_en, threads=1) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def reranker(bge_reranker_base: Path) -> Iterator[BgeReranker]:
    with BgeReranker(bge_reranker_base) as reranker:
        yield reranker


@pytest.fixture(scope="module")
def client(encoder: BgeEncoder, reranker: BgeReranker) -> Client:
    return Client(create_app(encoder, reranker=reranker))


@pytest.fixture(scope="module")
def m3_app(bge_m3: Path) -> Iterator[ServerApp]:
    with BgeM3Encoder(bge_m3, threads=1) as m3:
        yield create_app(m3=m3)


class TestVectors:
    def test_are_those_of_the_model(self, client: Client, bge_small_en: Path) -> None:
        expected = reference_vectors(bge_small_en, TEXTS)
        np.testing.assert_allclose(client.embed(TEXTS), expected, atol=1e-5)
        np.testing.assert_allclose(client.embed(TEXTS[0]), expected[:1], atol=1e-5)

    @pytest.mark.parametrize("word", ["query", "search_query", "retrieval.query"])
    def test_of_queries_have_the_instruction(self, client: Client, bge_small_en: Path, word: str) -> None:
        expected = reference_vectors(bge_small_en, [EN + text for text in TEXTS])
        for field in ("prompt_name", "input_type", "task"):
            np.testing.assert_allclose(client.embed(TEXTS, **{field: word}), expected, atol=1e-5)

    def test_are_equal_in_every_interface_and_to_the_encoder(self, client: Client, encoder: BgeEncoder) -> None:
        expected = encoder.encode_documents(TEXTS)
        openai = client.post("/v1/embeddings", {"input": TEXTS, "encoding_format": "base64"}).json()
        packed = [np.frombuffer(base64.b64decode(row["embedding"]), dtype="<f4") for row in openai["data"]]
        assert [row["index"] for row in openai["data"]] == [0, 1, 2, 3]
        plain = client.post("/v1/embeddings", {"input": TEXTS}).json()["data"]
        body = {"texts": TEXTS, "input_type": "search_document"}
        found = [
            np.stack(packed),
            [row["embedding"] for row in plain],
            client.embed(TEXTS),
            client.post("/v1/embed", body).json()["embeddings"],
            client.post("/v2/embed", {**body, "embedding_types": ["float"]}).json()["embeddings"]["float"],
        ]
        for one in found:
            assert np.array_equal(np.array(one, dtype=np.float32), expected)

    def test_are_cut_to_dimensions_as_the_encoder_cuts_them(self, client: Client, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, truncate_dim=8) as short:
            expected = short.encode_queries(TEXTS)
        answer = client.post("/v1/embeddings", {"input": TEXTS, "dimensions": 8, "input_type": "query"})
        assert np.array_equal(np.array([row["embedding"] for row in answer.json()["data"]], np.float32), expected)
        assert np.array_equal(client.embed(TEXTS, dimensions=8, prompt_name="query"), expected)

    def test_are_not_normalised_on_request(self, client: Client, bge_small_en: Path) -> None:
        expected = reference_vectors(bge_small_en, TEXTS, normalize=False)
        np.testing.assert_allclose(client.embed(TEXTS, normalize=False), expected, atol=1e-5)

    def test_follow_the_settings_of_the_encoder(self, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, truncate_dim=8, normalize=False, query_instruction="q: ") as encoder:
            client = Client(create_app(encoder, default_input_type="query"))
            assert np.array_equal(client.embed(TEXTS), encoder.encode_queries(TEXTS))
            assert client.get("/info").json()["bge"]["default_input_type"] == "query"

    def test_usage_counts_tokens_as_the_model_reads_them(self, client: Client, encoder: BgeEncoder) -> None:
        texts = [TEXTS[0], TEXTS[0], LONG_TEXT]
        answer = client.post("/v1/embeddings", {"input": texts, "input_type": "query"})
        counted = np.minimum(encoder.count_tokens(texts, role="query"), encoder.max_length)
        assert answer.json()["usage"] == {"prompt_tokens": counted.sum(), "total_tokens": counted.sum()}
        assert answer.headers["X-Truncated-Texts"] == "1"

    def test_of_many_requests_at_once_are_not_mixed(self, client: Client, encoder: BgeEncoder) -> None:
        texts = [f"text {place} " * (place % 7 + 1) for place in range(200)]
        expected = encoder.encode_documents(texts)

        async def all_of_them() -> list[httpx.Response]:
            transport = httpx.ASGITransport(client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as asking:
                return await asyncio.gather(*(asking.post("/embed", json={"inputs": text}) for text in texts))

        for place, answer in enumerate(asyncio.run(all_of_them())):
            np.testing.assert_allclose(np.array(answer.json(), np.float32)[0], expected[place], atol=1e-6)


class TestScores:
    PASSAGES = ("a panda is a bear", "vector stores", "a lazy dog")

    def test_are_those_of_the_model(self, client: Client, bge_reranker_base: Path) -> None:
        logits = reference_scores(bge_reranker_base, [("what is a panda", text) for text in self.PASSAGES])
        order = np.argsort(-logits).tolist()
        body = {"query": "what is a panda", "texts": self.PASSAGES}
        raw = client.post("/rerank", {**body, "raw_scores": True}).json()
        assert [row["index"] for row in raw] == order
        np.testing.assert_allclose([row["score"] for row in raw], logits[order], atol=1e-5)
        shown = client.post("/rerank", {**body, "return_text": True}).json()
        np.testing.assert_allclose([row["score"] for row in shown], 1 / (1 + np.exp(-logits[order])), atol=1e-5)
        assert [row["text"] for row in shown] == [self.PASSAGES[place] for place in order]

    @pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
    def test_are_in_coheres_form_too(self, client: Client, path: str) -> None:
        tei = client.post("/rerank", {"query": "q", "texts": self.PASSAGES}).json()
        documents = [self.PASSAGES[0], {"text": self.PASSAGES[1]}, self.PASSAGES[2]]
        body = {"model": "bge-reranker-base", "query": "q", "documents": documents}
        found = client.post(path, {**body, "top_n": 2, "return_documents": True}).json()["results"]
        assert [(row["index"], row["relevance_score"]) for row in found] == [
            (row["index"], row["score"]) for row in tei[:2]
        ]
        assert [row["document"]["text"] for row in found] == [self.PASSAGES[row["index"]] for row in found]
        assert len(client.post(path, body).json()["results"]) == 3

    def test_read_the_fields_of_objects_in_their_order(self, client: Client) -> None:
        documents = [{"title": "one", "body": "two"}]
        by_field = {"query": "q", "documents": documents, "rank_fields": ["title", "body"]}
        joined = {"query": "q", "documents": ["one\ntwo"]}
        first, second = (client.post("/v1/rerank", body).json()["results"][0] for body in (by_field, joined))
        assert first["relevance_score"] == second["relevance_score"]


def test_lexical_weights_are_those_of_bge_m3(bge_m3: Path) -> None:
    with BgeM3Encoder(bge_m3) as m3:
        client = Client(create_app(m3=m3))
        expected = reference_m3(bge_m3, TEXTS[:3])
        found = client.post("/embed_sparse", {"inputs": TEXTS[:3]}).json()
        for row, weights in zip(found, expected.sparse, strict=True):
            assert {one["index"]: one["value"] for one in row} == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(client.embed(TEXTS[:3]), expected.dense, atol=1e-5)
        assert client.get("/info").json()["bge"]["sparse"]


class TestTokenize:
    def test_gives_spans_of_the_text(self, client: Client, encoder: BgeEncoder) -> None:
        text = "Vector stores, 北京"
        (tokens,) = client.post("/tokenize", {"inputs": text}).json()
        assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
        assert [token["id"] for token in tokens[1:-1]] == encoder.backend.tokenizer.content(text)
        assert [token["text"] for token in tokens[1:-1]] == [
            text[token["start"] : token["stop"]] for token in tokens[1:-1]
        ]
        (content,) = client.post("/tokenize", {"inputs": [text], "add_special_tokens": False}).json()
        assert content == tokens[1:-1]

    def test_counts_what_the_model_reads(self, client: Client, encoder: BgeEncoder) -> None:
        (tokens,) = client.post("/tokenize", {"inputs": TEXTS[0], "prompt_name": "query"}).json()
        assert len(tokens) == encoder.count_tokens([TEXTS[0]], role="query")[0]


class TestInfo:
    def test_says_the_model_the_default_side_and_the_instructions(self, client: Client) -> None:
        info = client.get("/info").json()
        assert (info["model_id"], info["model_type"]) == ("bge-small-en-v1.5", {"embedding": {"pooling": "cls"}})
        assert (info["max_input_length"], info["auto_truncate"]) == (64, True)
        assert info["bge"]["default_input_type"] == "document"
        assert info["bge"]["embeddings"]["instructions"]["query"] == {"before": EN, "after": ""}
        assert info["bge"]["reranker"]["model"] == "bge-reranker-base"

    def test_of_a_reranker_alone(self, reranker: BgeReranker) -> None:
        client = Client(create_app(reranker=reranker, names=["ranks"]))
        assert "reranker" in client.get("/info").json()["model_type"]
        assert client.get("/v1/models").json()["data"][0]["id"] == "ranks"
        assert client.post("/embed", {"inputs": "a"}).status_code == 424

    def test_never_shows_a_path(self, client: Client, bge_small_en: Path) -> None:
        for path in ("/info", "/v1/models", "/metrics", "/openapi.json", "/docs"):
            assert str(bge_small_en.parent) not in client.get(path).text

    def test_the_page_about_the_routes_needs_nothing_from_elsewhere(self, client: Client) -> None:
        page = client.get("/docs").text
        assert "POST /v1/embeddings" in page
        assert not any(word in page for word in ("http:", "https:", "<script", "<link", "src="))
        described = client.get("/openapi.json").json()
        assert set(
            described["paths"]["/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        ) >= {"inputs", "prompt_name", "priority", "normalize", "truncate"}


_OPENAI, _TEI, _RERANK = "/v1/embeddings", "/embed", "/v1/rerank"


class TestRefuses:
    @pytest.mark.parametrize(
        ("path", "body", "status", "said"),
        [
            (_OPENAI, {"input": ["a", None]}, 400, "input[1] is null, not a text"),
            (_OPENAI, {"input": ["a", 7, "b"]}, 400, "input[1] is a number, not a text"),
            (_OPENAI, {"input": ["a", "\ud800"]}, 400, "input[1] has a lone surrogate"),
            (_OPENAI, {"input": []}, 400, "input is an empty list"),
            (_OPENAI, {"input": None}, 400, "input is null, not a text or a list of texts"),
            (_OPENAI, {"inputs": "a"}, 400, "input: Field required"),
            (_OPENAI, {"input": {"a": 1}}, 400, "input is an object"),
            (_OPENAI, {"input": [1, 2]}, 400, "check_embedding_ctx_length=False"),
            (_OPENAI, {"input": [[1, 2], [3]]}, 400, "input holds token ids"),
            (_OPENAI, {"input": "a", "dimensions": 0}, 400, "dimensions=0 is not possible"),
            (_OPENAI, {"input": "a", "dimensions": 33}, 400, "the vectors of this model have 32"),
            (_OPENAI, {"input": "a", "dimensions": 10**400}, 400, "dimensions"),
            (_OPENAI, {"input": "a", "dimensions": "8"}, 400, "dimensions: Input should be a valid integer"),
            (_OPENAI, {"input": "a", "dimensions": True}, 400, "dimensions: Input should be a valid integer"),
            (_OPENAI, {"input": "a", "encoding_format": "int8"}, 400, "encoding_format: Input should be 'float' or"),
            (_OPENAI, {"input": "a", "model": "text-embedding-3-small"}, 404, "is not served here"),
            (_OPENAI, {"input": "a", "input_type": "both"}, 400, "input_type='both' is unknown; choose one of"),
            (_OPENAI, {"input": "a", "input_type": "query", "task": "clustering"}, 400, "name different sides"),
            (_OPENAI, {"input": ["a"] * 2049}, 413, "input has 2049 texts, the limit of a request is 2048"),
            (_OPENAI, {"input": ["a", "b" * 1_000_001]}, 413, "input[1] has 1,000,001 characters"),
            ("/tokenize", {"inputs": "a" * 300_000}, 413, "more than 262,144 characters"),
            (_OPENAI, ["a"], 400, "The body is a list, not an object"),
            (_OPENAI, {"input": "a", "priority": "high"}, 400, "priority: Input should be 'interactive' or 'bulk'"),
            (_TEI, {"inputs": "a", "priority": "high"}, 422, "priority: Input should be 'interactive' or 'bulk'"),
            (_TEI, {"inputs": "a", "priority": 1}, 422, "priority: Input should be 'interactive' or 'bulk'"),
            ("/embed_sparse", {"inputs": "a", "priority": ""}, 422, "priority: Input should be"),
            ("/v2/embed", {"texts": ["a"], "priority": "Bulk"}, 400, "priority: Input should be"),
            (_TEI, {"inputs": ["a", False]}, 422, "inputs[1] is true or false"),
            (_TEI, {"inputs": [LONG_TEXT], "truncate": False}, 413, "inputs[0] is longer than the 64 tokens"),
            (_TEI, {"inputs": "a", "truncation_direction": "Left"}, 422, "cuts texts at the right end"),
            ("/embed_sparse", {"inputs": "a"}, 424, "no lexical weights"),
            ("/rerank", {"query": "a", "texts": "b"}, 422, "texts is a text, not a list"),
            ("/rerank", {"query": None, "texts": ["b"]}, 422, "query is null"),
            ("/rerank", {"query": "a", "texts": ["b", LONG_TEXT], "truncate": False}, 413, "texts[1] is longer"),
            (_RERANK, {"query": "a", "documents": []}, 400, "documents is an empty list"),
            (_RERANK, {"query": "a", "documents": ["b", {"title": "c"}]}, 400, "documents[1] has no field 'text'"),
            (_RERANK, {"query": "a", "documents": "b"}, 400, "documents is a text"),
            (_RERANK, {"query": "a", "documents": ["b"], "top_n": 0}, 400, "top_n"),
            (_RERANK, {"query": "a", "documents": ["b"], "model": "rerank-v3.5"}, 404, "'rerank-v3.5' is not served"),
            ("/v2/embed", {"texts": ["a"], "embedding_types": ["int8"]}, 400, "embedding_types.0"),
            ("/v2/embed", {"texts": ["a"], "truncate": "START"}, 400, "truncate='START' is not possible"),
        ],
    )
    def test_what_is_wrong(self, client: Client, path: str, body: object, status: int, said: str) -> None:
        answer = client.post(path, body)
        assert answer.status_code == status
        content = answer.json()
        if path == _OPENAI:
            assert set(content) == {"error"}
            assert set(content["error"]) == {"message", "type", "param", "code"}
            message = content["error"]["message"]
        else:
            assert set(content) == ({"error", "error_type"} if path[:2] != "/v" else {"message"})
            message = content.get("error") or content["message"]
        assert said in message

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b'{"input": "a", }',
            b'{"input": "a", "dimensions": NaN}',
            b'{"input": "a", "dimensions": Infinity}',
            b'{"input": "\xff"}',
            b"[" * 100_000,
            b'{"input": "a", "dimensions": ' + b"1" * 10_000 + b"}",
            b'{"input": "a\x00b"}',
        ],
        ids=["empty", "half", "comma", "nan", "infinity", "not utf-8", "deep", "digits", "control"],
    )
    def test_what_is_not_json(self, client: Client, body: bytes) -> None:
        answer = client.send("POST", _OPENAI, body)
        assert answer.status_code == 400
        assert "The body is not JSON" in answer.json()["error"]["message"]

    def test_paths_and_methods_that_there_are_not(self, client: Client) -> None:
        assert client.get("/nowhere").status_code == 404
        assert client.get("/v1/nowhere").json()["error"]["type"] == "invalid_request_error"
        assert client.get("/embed").status_code == 405
        assert client.send("PUT", "/v2/rerank").json().keys() == {"message"}

    def test_texts_over_the_limit_if_the_server_says_so(self, encoder: BgeEncoder) -> None:
        client = Client(create_app(encoder, truncate=False))
        assert client.get("/info").json()["auto_truncate"] is False
        answer = client.post(_OPENAI, {"input": ["a", LONG_TEXT]})
        assert answer.status_code == 413
        assert answer.json()["error"]["param"] == "input[1]"
        assert client.post(_OPENAI, {"input": ["a", LONG_TEXT], "truncate": True}).status_code == 200

    def test_unknown_fields_are_ignored(self, client: Client) -> None:
        assert client.post(_OPENAI, {"input": "a", "user": "me", "frobnicate": [1]}).status_code == 200

    @pytest.mark.parametrize("is_announced", [True, False])
    def test_bodies_over_the_limit(self, encoder: BgeEncoder, is_announced: bool) -> None:
        client = Client(create_app(encoder, limits=Limits(max_body_bytes=1000)))
        content = json.dumps({"input": "a" * 2000}).encode()

        async def parts() -> AsyncIterator[bytes]:
            yield content

        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(client.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as asking:
                return await asking.post(_OPENAI, content=content if is_announced else parts())

        answer = asyncio.run(sent())
        assert answer.status_code == 413
        assert "larger than 1,000 bytes" in answer.json()["error"]["message"]
        assert client.app.admission.buffered == 0

    def test_names_of_the_model_as_given_and_by_the_user(self, encoder: BgeEncoder, bge_small_en: Path) -> None:
        client = Client(create_app(encoder, names=["ours"]))
        for name in ("ours", "OURS", "bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", str(bge_small_en)):
            answer = client.post(_OPENAI, {"input": "a", "model": name})
            assert answer.json()["model"] == "ours"
        assert client.post(_OPENAI, {"input": "a", "model": "other/bge-small-en-v1.5"}).status_code == 404


class TestRetryAfter:
    def _wait(self, waiting: int, finished: Mapping[float, int]) -> int | None:
        clock = FakeClock()
        admission = Admission(Limits(max_queued_texts=10**6), clock)
        for seconds, texts in finished.items():
            with admission.queued("bulk", texts):
                clock.now += seconds
        with admission.queued("bulk", waiting), pytest.raises(Refused) as caught, admission.queued("bulk", 10**6):
            pass
        return caught.value.retry_after

    @pytest.mark.parametrize(
        ("waiting", "finished", "expected"),
        [
            (1000, {}, 1),  # no rate is known yet
            (1000, {1.0: 50, 10.0: 500}, 10),  # 550 texts in 10 seconds: half of the rest takes 9.1
            (1000, {2.0: 10**6, 31.0: 100, 5.0: 100}, 13),  # only the last half minute counts
            (10, {1.0: 1, 5.0: 10**5}, 1),
            (10**6 - 1, {1.0: 1, 5.0: 1}, 60),
        ],
    )
    def test_is_the_time_in_which_half_of_the_work_is_done(
        self, waiting: int, finished: dict[float, int], expected: int
    ) -> None:
        assert self._wait(waiting, finished) == expected


class TestKey:
    @pytest.fixture
    def closed(self, encoder: BgeEncoder) -> ServerApp:
        return create_app(encoder, api_key="s3cret")

    @pytest.mark.parametrize(
        "given", [None, "s3cret", "Bearer", "Bearer s3cre", "Bearer s3cretx", "Bearer s3cret s3cret"]
    )
    def test_wrong_or_missing_is_refused(self, closed: ServerApp, given: str | None) -> None:
        headers = {} if given is None else {"Authorization": given}
        for path in (_OPENAI, _TEI, "/nowhere"):
            answer = Client(closed, **headers).post(path, {"input": "a"})
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "s3cret" not in answer.text
        assert Client(closed, **headers).get("/info").status_code == 401

    def test_right_is_accepted_and_probes_need_none(self, closed: ServerApp) -> None:
        assert Client(closed, Authorization="Bearer s3cret").post(_TEI, {"inputs": "a"}).status_code == 200
        assert {Client(closed).get(path).status_code for path in ("/health", "/ready")} == {200}

    def test_empty_is_an_error(self, encoder: BgeEncoder) -> None:
        with pytest.raises(SettingsError, match="api_key is empty"):
            create_app(encoder, api_key=" ")


@contextmanager
def held(handle: BgeEncoder | BgeReranker, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """A block in which the engine keeps its batches waiting; the semaphore is released once for each."""
    entered, may_go = threading.Semaphore(0), threading.Event()
    engine = handle.backend.engine
    submit = engine.submit

    def wait(batch: TokenBatch) -> PendingRows:
        entered.release()
        assert may_go.wait(LONG)
        return submit(batch)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "submit", wait)
        try:
            yield entered
        finally:
            may_go.set()


async def _asked(app: ServerApp, body: object, path: str = _TEI) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        return await client.post(path, json=body)


async def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until, "it never comes"
        await asyncio.sleep(0.005)


class TestWhenBusy:
    @pytest.mark.parametrize(
        ("limits", "said"),
        [
            (Limits(max_requests=1), "1 requests are in progress"),
            (Limits(max_queued_texts=3), "2 texts are in progress; with these 2 they would be more than"),
            (Limits(max_body_bytes=64, max_buffered_bytes=64), "the bodies of requests fill the memory"),
        ],
        ids=["requests", "texts", "bytes"],
    )
    async def test_further_requests_get_429(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, limits: Limits, said: str
    ) -> None:
        app = create_app(encoder, limits=limits)
        body = {"inputs": ["abcdefgh" * 2, "b"]}
        with held(encoder, monkeypatch):
            first = asyncio.create_task(_asked(app, body))
            await _until(lambda: app.admission.texts["bulk"] == 2)
            second = await _asked(app, body)
            assert (second.status_code, second.json()["error_type"]) == (429, "Overloaded")
            assert int(second.headers["Retry-After"]) >= 1
            assert said in second.json()["error"]
        assert (await first).status_code == 200
        assert (await _asked(app, body)).status_code == 200
        assert (app.admission.requests, app.admission.texts.total(), app.admission.buffered) == (0, 0, 0)

    @pytest.mark.parametrize(
        "more", [{"prompt_name": "query"}, {"prompt_name": "symmetric", "priority": "interactive"}]
    )
    async def test_queries_have_room_beside_documents_and_go_first(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, more: dict[str, str]
    ) -> None:
        app = create_app(encoder, limits=Limits(max_queued_texts=64))
        done: list[str] = []

        async def ask(name: str, **body: object) -> None:
            assert (await _asked(app, body)).status_code == 200
            done.append(name)

        documents = [f"document {place} " * 6 for place in range(60)]
        with held(encoder, monkeypatch):
            asked = [asyncio.create_task(ask("documents", inputs=documents))]
            await _until(lambda: app.admission.texts["bulk"] == 60)
            asked.append(asyncio.create_task(ask("query", inputs="q", **more)))
            await _until(lambda: app.admission.texts["interactive"] == 1)
            assert (await _asked(app, {"inputs": ["a"] * 5})).status_code == 429
        await asyncio.gather(*asked)
        assert done == ["query", "documents"]

    @pytest.mark.parametrize(
        ("path", "field"),
        [("/embed", "inputs"), ("/embed_sparse", "inputs"), (_OPENAI, "input"), ("/v2/embed", "texts")],
    )
    @pytest.mark.parametrize(
        ("more", "priority"),
        [
            ({}, "bulk"),
            ({"input_type": "symmetric"}, "bulk"),
            ({"input_type": "query"}, "interactive"),
            ({"input_type": "query", "priority": None}, "interactive"),
            ({"input_type": "query", "priority": "bulk"}, "bulk"),
            ({"input_type": "symmetric", "priority": "interactive"}, "interactive"),
            ({"priority": "interactive"}, "interactive"),
        ],
    )
    async def test_the_priority_says_the_queue_here_and_in_the_model(
        self,
        m3_app: ServerApp,
        monkeypatch: pytest.MonkeyPatch,
        path: str,
        field: str,
        more: dict[str, str],
        priority: Priority,
    ) -> None:
        encoder = m3_app.models.embedder.encoder
        scheduler = encoder.backend.scheduler
        with held(encoder, monkeypatch):
            asked = asyncio.create_task(_asked(m3_app, {field: ["fox", "dog"], **more}, path))
            await _until(lambda: sum(map(scheduler.texts_in_flight, PRIORITIES)) == 2)
            assert scheduler.texts_in_flight(priority) == 2
            assert +m3_app.admission.texts == {priority: 2}
        assert (await asked).status_code == 200
        assert m3_app.admission.texts.total() == 0

    async def test_while_it_stops_new_requests_get_503_and_old_ones_are_finished(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = create_app(encoder)
        with held(encoder, monkeypatch):
            first = asyncio.create_task(_asked(app, {"inputs": "a"}))
            await _until(lambda: app.admission.texts["bulk"] == 1)
            app.closing = True
            second = await _asked(app, {"inputs": "a"})
            assert (second.status_code, second.json()["error_type"]) == (503, "Unhealthy")
            assert second.headers["Retry-After"]
        assert (await first).status_code == 200
        client = Client(app)
        statuses = await asyncio.to_thread(lambda: [client.get(path).status_code for path in ("/ready", "/health")])
        assert statuses == [503, 200]


async def test_a_client_that_leaves_takes_its_queued_texts_with_it(
    encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, left = create_app(encoder), asyncio.Event()
    body = json.dumps({"inputs": [f"text {place}" for place in range(300)]}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:  # noqa: ANN401 - of ASGI
        pass

    before = encoder.stats().texts
    scope = {"type": "http", "method": "POST", "path": _TEI, "headers": [], "query_string": b"", "root_path": ""}
    with held(encoder, monkeypatch) as entered:
        request = asyncio.create_task(app(scope, receive, send))
        assert await asyncio.to_thread(entered.acquire, True, LONG)
        left.set()
        await request
        assert (app.admission.requests, app.admission.texts["bulk"], app.admission.buffered) == (0, 0, 0)
    assert (await _asked(app, {"inputs": "another"})).status_code == 200
    assert encoder.stats().texts - before < 100
    assert 'bge_requests_total{route="/embed",status="499"} 1.0' in app._metrics.text()[0].decode()


async def test_a_body_that_does_not_arrive_is_given_up(encoder: BgeEncoder) -> None:
    app = create_app(encoder, limits=Limits(body_seconds=0.05))
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:  # noqa: ANN401 - of ASGI
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": _TEI, "headers": [], "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert app.admission.requests == 0


class TestFailures:
    SECRET = "a text that must not be logged"

    def test_of_the_engine_name_the_text_but_neither_text_nor_path(
        self, encoder: BgeEncoder, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = create_app(encoder)

        async def fail(*_: object) -> None:
            raise EngineFailedError(f"Text 1 of {bge_small_en} fails: {self.SECRET}", 1)

        monkeypatch.setattr(BgeEncoder, "aencode_documents", fail)
        answer = Client(app).post(_OPENAI, {"input": ["a", self.SECRET]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (500, "input[1]")
        assert str(bge_small_en) not in answer.text
        assert self.SECRET not in answer.text + caplog.text
        assert "EngineFailedError" in caplog.text
        assert Client(app).post(_TEI, {"inputs": "a"}).status_code == 424

    def test_that_nobody_expects_are_answered_and_logged_without_their_message(
        self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def fail(*_: object) -> None:
            raise ZeroDivisionError(self.SECRET)

        app = create_app(encoder)
        monkeypatch.setattr(BgeEncoder, "aencode_documents", fail)
        answer = Client(app).post(_OPENAI, {"input": self.SECRET})
        assert answer.status_code == 500
        assert self.SECRET not in answer.text + caplog.text
        assert "ZeroDivisionError" in caplog.text
        assert app.admission.texts.total() == 0

    def test_of_wrong_input_are_not_logged(self, client: Client, caplog: pytest.LogCaptureFixture) -> None:
        client.post(_OPENAI, {"input": [self.SECRET, None]})
        client.post(_OPENAI, {"input": self.SECRET, "input_type": self.SECRET})
        assert not caplog.records


def test_metrics_count_texts_tokens_and_answers_without_any_text(encoder: BgeEncoder) -> None:
    client = Client(create_app(encoder))
    client.embed(["Vector stores", LONG_TEXT], prompt_name="query")
    client.post(_TEI, {"inputs": []})
    client.get("/a-path-with-a-secret")
    text = client.get("/metrics").text
    for line in (
        'bge_requests_total{route="/embed",status="200"} 1.0',
        'bge_requests_total{route="/embed",status="422"} 1.0',
        'bge_requests_total{route="other",status="404"} 1.0',
        'bge_texts_total{side="query"} 2.0',
        'bge_truncated_texts_total{side="query"} 1.0',
        "bge_requests_in_progress 1.0",
    ):
        assert line in text
    tokens = np.minimum(encoder.count_tokens(["Vector stores", LONG_TEXT], role="query"), encoder.max_length).sum()
    assert f'bge_tokens_total{{side="query"}} {float(tokens)}' in text
    assert "Vector" not in text
    assert "secret" not in text


def test_a_server_needs_a_model() -> None:
    with pytest.raises(SettingsError, match="A server needs a model"):
        create_app()


@pytest.mark.parametrize("wrong", [{"max_texts": 0}, {"body_seconds": float("nan")}, {"max_body_bytes": 2**40}])
def test_limits_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Limits(**wrong)


def test_an_unknown_default_side_is_an_error(encoder: BgeEncoder) -> None:
    with pytest.raises(SettingsError, match="default_input_type='both' is unknown"):
        create_app(encoder, default_input_type="both")  # type: ignore[arg-type]


def test_a_request_never_loads_a_model(tmp_path: Path) -> None:
    # Also where the folder has changed since: with new files, the vectors would not fit those from before.
    folder = make_checkpoint(tmp_path / "bge-small-en-v1.5", modules=("cls", "normalize"))
    with BgeEncoder(folder) as encoder:
        expected = encoder.encode_documents(TEXTS)
        client = Client(create_app(encoder))
        make_checkpoint(folder, modules=("cls", "normalize"), seed=5)
        for truncate in (True, False):
            assert np.array_equal(client.embed(TEXTS, truncate=truncate), expected)
