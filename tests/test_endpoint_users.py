"""The classes of both frameworks over a server, `bge serve` as that server, and servers that compute wrongly."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pyarrow import parquet
from pydantic import ValidationError
from typer.testing import CliRunner

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, check_endpoint, langchain, llama_index
from bge_integrations.cli import app
from bge_integrations.errors import EndpointError, EndpointMismatchError, SettingsError, TruncationWarning
from tests.adapters import assert_close, everything_of
from tests.checkpoints import make_checkpoint
from tests.fake_engine import LONG
from tests.model_server import Models, ModelServer, Reply, running
from tests.server_process import Server
from tests.server_process import running as serving
from tests.test_guides import blocks_of

EN = "Represent this sentence for searching relevant passages: "
KEY = "the-key-that-nobody-may-see"
TEXTS = ["the quick fox jumps", "a lazy dog sleeps", "vector stores keep embeddings"]


@pytest.fixture(scope="module")
def models(bge_small_en: Path, bge_reranker_base: Path, bge_m3: Path) -> Iterator[Models]:
    with (
        BgeEncoder(bge_small_en, on_truncation="ignore") as encoder,
        BgeReranker(bge_reranker_base, on_truncation="ignore") as reranker,
        BgeM3Encoder(bge_m3, on_truncation="ignore") as m3,
    ):
        yield Models(encoder, reranker, m3)


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[ModelServer]:
    with running(models) as found:
        yield found


@pytest.fixture(scope="module")
def m3_server(models: Models) -> Iterator[ModelServer]:
    with running(Models(m3=models.m3)) as found:
        yield found


@pytest.fixture(scope="module")
def local(bge_small_en: Path) -> Iterator[BgeEncoder]:
    with BgeEncoder(bge_small_en) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def served(bge_small_en: Path, bge_reranker_base: Path) -> Iterator[Server]:
    arguments = ("--model", bge_small_en, "--reranker", bge_reranker_base, "--api-key-env", "SERVED_KEY")
    with serving(*arguments, SERVED_KEY=KEY) as found:
        yield found


class TestStandardUnit(EmbeddingsUnitTests):
    """LangChain's own suite."""

    params: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _serve(self, server: ModelServer, bge_small_en: Path) -> None:
        self.params.update(model_name=str(bge_small_en), endpoint=server.url, api_key=KEY)

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return langchain.HuggingFaceBgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params


class TestStandardIntegration(EmbeddingsIntegrationTests):
    """LangChain's own suite."""

    _serve = TestStandardUnit._serve
    params: ClassVar[dict[str, Any]] = {}
    embeddings_class = TestStandardUnit.embeddings_class
    embedding_model_params = TestStandardUnit.embedding_model_params


def _nodes() -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=text, text=text), score=0.5) for text in TEXTS]


USES: dict[str, tuple[type[Any], Callable[[Any], Any]]] = {
    "langchain.HuggingFaceBgeEmbeddings": (
        langchain.HuggingFaceBgeEmbeddings,
        lambda it: [it.embed_query("fox"), *it.embed_documents(TEXTS), *asyncio.run(it.aembed_documents(TEXTS))],
    ),
    "langchain.BgeReranker": (
        langchain.BgeReranker,
        lambda it: [
            it.score([("fox", text) for text in TEXTS]),
            [one.metadata["relevance_score"] for one in it.compress_documents([*map(Document, TEXTS)], "fox")],
        ],
    ),
    "langchain.BgeSparseEmbeddings": (
        langchain.BgeSparseEmbeddings,
        lambda it: [sorted(row.items()) for row in (*it.document_weights(TEXTS), it.query_weights("fox"))],
    ),
    "langchain.BgeM3Reranker": (langchain.BgeM3Reranker, lambda it: [it.score([("fox", text) for text in TEXTS])]),
    "llama_index.HuggingFaceBgeEmbedding": (
        llama_index.HuggingFaceBgeEmbedding,
        lambda it: [it.get_query_embedding("fox"), *it.get_text_embedding_batch(TEXTS)],
    ),
    "llama_index.BgeRerank": (
        llama_index.BgeRerank,
        lambda it: [[one.score for one in it.postprocess_nodes(_nodes(), QueryBundle("fox"))]],
    ),
    "llama_index.BgeSparseEmbedding": (
        llama_index.BgeSparseEmbedding,
        lambda it: [sorted(it.get_query_embedding("fox").items())],
    ),
    "llama_index.BgeM3Rerank": (
        llama_index.BgeM3Rerank,
        lambda it: [[one.score for one in it.postprocess_nodes(_nodes(), QueryBundle("fox"))]],
    ),
}


@pytest.fixture(params=USES)
def use(
    request: pytest.FixtureRequest,
    server: ModelServer,
    m3_server: ModelServer,
    bge_small_en: Path,
    bge_reranker_base: Path,
    bge_m3: Path,
) -> tuple[type[Any], Callable[[Any], Any], dict[str, Any], str]:
    kind, compute = USES[request.param]
    is_m3 = "M3" in request.param or "Sparse" in request.param
    folder = bge_m3 if is_m3 else bge_reranker_base if "erank" in request.param else bge_small_en
    settings: dict[str, Any] = {"model_name": str(folder)}
    if "M3" in request.param:
        settings["weights"] = (0.7, 0.3, 0.0)
    return kind, compute, settings, (m3_server if is_m3 else server).url


Use = tuple[type[Any], Callable[[Any], Any], dict[str, Any], str]


class TestClasses:
    def test_give_what_they_give_here(self, use: Use) -> None:
        kind, compute, settings, url = use
        here, there = kind(**settings), kind(**settings, endpoint=url)
        for left, right in zip(compute(here), compute(there), strict=True):
            assert_close(right, left)

    def test_keep_the_key_to_themselves(self, use: Use) -> None:
        kind, compute, settings, url = use
        options = {"timeout": 30.0, "headers": {"X-Team": "search"}}
        it = kind(**settings, endpoint=url, api_key=KEY, endpoint_options=options)
        dumped = json.dumps(it.to_dict(), default=str) if hasattr(it, "to_dict") else it.model_dump_json()
        for written in (dumped, repr(it), str(it), json.dumps(it.model_dump(mode="json"), default=str)):
            assert KEY not in written
            assert "endpoint" in written
        saved = pickle.dumps(it)
        assert KEY.encode() not in saved
        again = pickle.loads(saved)
        assert again.api_key is None
        assert again.endpoint_options == options
        assert_close(np.hstack(list(map(np.ravel, compute(again)))), np.hstack(list(map(np.ravel, compute(it)))))
        make = kind.from_dict if hasattr(kind, "from_dict") else kind.model_validate
        assert make(json.loads(dumped)).endpoint == url

    def test_show_no_key_in_errors(self, use: Use) -> None:
        kind, _, settings, url = use
        for wrong in ({"endpoint_options": {"api": "x"}}, {"device": "cpu"}, {"max_length": -1}, {"api_key": [KEY]}):
            with pytest.raises((ValidationError, SettingsError)) as caught:
                kind(**{**settings, "endpoint": url, "api_key": KEY, **wrong})
            assert KEY not in everything_of(caught.value)

    def test_a_changed_address_is_used_at_the_next_call(self, use: Use, models: Models) -> None:
        kind, compute, settings, url = use
        it = kind(**settings, endpoint=url)
        before = compute(it)
        with running(models if "m3" not in settings["model_name"] else Models(m3=models.m3)) as other:
            it.endpoint = other.url
            for left, right in zip(compute(it), before, strict=True):
                assert_close(left, right)
            assert len(other.requests) > 1


@pytest.mark.parametrize(
    ("kind", "error"), [(langchain.BgeM3Reranker, ValidationError), (llama_index.BgeM3Rerank, SettingsError)]
)
def test_rerankers_that_need_token_vectors_are_refused_when_they_are_made(
    kind: type[Any], error: type[Exception], m3_server: ModelServer, bge_m3: Path
) -> None:
    m3_server.forget()
    with pytest.raises(error, match="token vectors"):
        kind(model_name=str(bge_m3), endpoint=m3_server.url)
    assert m3_server.requests == []


class TestWrongServers:
    """`check_endpoint` says in words what a server does wrongly."""

    def test_a_right_one_passes(self, server: ModelServer, local: BgeEncoder, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
            for expected in (local, local.fingerprint()):
                assert check_endpoint(remote, expected).state == "compatible"
        embeddings = langchain.HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), endpoint=server.url)
        assert check_endpoint(embeddings, local).least_cosine == pytest.approx(1, abs=1e-4)

    def test_one_that_adds_an_instruction(self, models: Models, local: BgeEncoder, bge_small_en: Path) -> None:
        def add(path: str, content: Any) -> Reply | None:  # noqa: ANN401 - JSON
            if path != "/embed":
                return None
            counted = str(int(local.count_tokens([EN + content["inputs"][0]])[0]))
            rows = models.vectors([EN + text for text in content["inputs"]])
            return Reply(200, rows, {"x-compute-tokens": counted})

        with running(models) as server:
            server.script = add
            with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
                with pytest.raises(EndpointMismatchError, match=f"It adds '{EN}' to every text") as caught:
                    check_endpoint(remote, local)
                assert re.search(r"The server counts \d+ tokens for a text of \d+: it adds text", str(caught.value))
                with pytest.raises(EndpointMismatchError, match="it adds text of its own"):
                    check_endpoint(remote, local.fingerprint())

    def test_one_that_pools_otherwise(self, models: Models, local: BgeEncoder, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "bge-small-en-v1.5", modules=("cls", "normalize"))
        with (
            BgeEncoder(folder, pooling="mean") as wrong,
            running(Models(wrong)) as server,
            BgeEncoder(folder, endpoint=server.url) as remote,
        ):
            with pytest.raises(EndpointMismatchError, match=r"those of the mean of all tokens \(pooling 'mean'\)"):
                check_endpoint(remote, local)
            with pytest.raises(EndpointMismatchError, match=r"The server may add an instruction .* pool"):
                check_endpoint(remote, local.fingerprint())

    def test_another_model(self, models: Models, local: BgeEncoder, bge_small_en: Path, tmp_path: Path) -> None:
        other = make_checkpoint(tmp_path / "other", modules=("cls", "normalize"), seed=9)
        with (
            BgeEncoder(other) as wrong,
            running(Models(wrong)) as server,
            BgeEncoder(bge_small_en, endpoint=server.url) as remote,
            pytest.raises(EndpointMismatchError, match="it runs another model"),
        ):
            check_endpoint(remote, local)

    def test_one_that_does_not_normalise(self, models: Models, local: BgeEncoder, bge_small_en: Path) -> None:
        def double(path: str, content: Any) -> Reply | None:  # noqa: ANN401 - JSON
            return Reply(200, (2 * np.array(models.vectors(content["inputs"]))).tolist()) if path == "/embed" else None

        with running(models) as server:
            server.script = double
            # It does no harm, since the vectors are normalised here; unless the setting says otherwise.
            with BgeEncoder(bge_small_en, endpoint=server.url) as remote:
                assert check_endpoint(remote, local).state == "compatible"
            with (
                BgeEncoder(bge_small_en, endpoint=server.url, normalize=False) as remote,
                pytest.raises(EndpointMismatchError, match="normalised then, and are not now"),
            ):
                check_endpoint(remote, local)

    def test_what_cannot_be_checked(self, local: BgeEncoder) -> None:
        with pytest.raises(SettingsError, match="has no endpoint"):
            check_endpoint(local, local)
        for wrong in (3, "model"):
            with pytest.raises(SettingsError, match="holds no encoder"):
                check_endpoint(wrong, local)  # type: ignore[arg-type]


class TestOurServer:
    """`bge serve` as the server."""

    @pytest.mark.parametrize("path", ["", "/v1"])
    def test_gives_what_the_model_gives_here(self, served: Server, bge_small_en: Path, path: str) -> None:
        options = {"model": "bge-small-en-v1.5"}
        with (
            BgeEncoder(bge_small_en, endpoint=served.address + path, api_key=KEY, endpoint_options=options) as remote,
            BgeEncoder(bge_small_en) as local,
        ):
            for name in ("encode_queries", "encode_documents", "encode"):
                assert_close(getattr(remote, name)(TEXTS), getattr(local, name)(TEXTS))
            with pytest.warns(TruncationWarning):
                long = remote.encode_documents(["fox " * 500])
            with pytest.warns(TruncationWarning):
                assert_close(long, local.encode_documents(["fox " * 500]))
            assert check_endpoint(remote, local).state == "compatible"

    @pytest.mark.parametrize("path", ["", "/v1"])
    def test_gives_the_rerankers_scores(self, served: Server, bge_reranker_base: Path, path: str) -> None:
        options = {"model": "bge-reranker-base"}
        with (
            BgeReranker(
                bge_reranker_base, endpoint=served.address + path, api_key=KEY, endpoint_options=options
            ) as remote,
            BgeReranker(bge_reranker_base) as local,
        ):
            assert_close(remote.score("fox", TEXTS), local.score("fox", TEXTS))

    def test_runs_the_code_of_the_guide(self, served: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_checkpoint(tmp_path / "BAAI/bge-small-en-v1.5", modules=("cls", "normalize"))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SERVER_KEY", KEY)
        namespace: dict[str, Any] = {}
        for block in blocks_of("endpoints.md", "py"):
            exec(block.replace("http://127.0.0.1:8080", served.address), namespace)
        assert len(namespace["vector"]) == 32

    def test_refuses_another_key(self, served: Server, bge_small_en: Path) -> None:
        for key in (None, "wrong"):
            with pytest.raises(EndpointError, match="401"):
                BgeEncoder(bge_small_en, endpoint=served.address, api_key=key)

    def test_computes_queries_while_documents_fill_its_queue(self, bge_small_en: Path) -> None:
        # Their computation takes seconds, that of the queries milliseconds.
        documents = [f"text {place} " * 20 for place in range(8000)]
        answers: list[httpx.Response] = []
        with (
            serving("--model", bge_small_en, "--max-texts", "8000", "--max-queued-texts", "8000") as served,
            BgeEncoder(bge_small_en, endpoint=served.address, endpoint_options={"retries": 0}) as remote,
            BgeEncoder(bge_small_en) as local,
            httpx.Client(base_url=served.address) as client,
        ):
            asking = threading.Thread(
                target=lambda: answers.append(client.post("/embed", json={"inputs": documents}, timeout=LONG))
            )
            asking.start()
            while not answers and 'bge_texts_in_progress{queue="bulk"} 8000.0' not in client.get("/metrics").text:
                pass
            with pytest.raises(EndpointError, match="429"):
                remote.encode_documents(TEXTS)
            found = remote.encode_queries(TEXTS)
            assert not answers
            asking.join(LONG)
            assert answers[0].status_code == 200
            assert_close(found, local.encode_queries(TEXTS))

    def test_gives_bge_m3s_weights(self, bge_m3: Path) -> None:
        with (
            serving("--model", bge_m3, "--m3") as served,
            BgeM3Encoder(bge_m3, endpoint=served.address) as remote,
            BgeM3Encoder(bge_m3) as local,
        ):
            theirs, mine = (one.encode_documents(TEXTS, colbert=False) for one in (remote, local))
            assert theirs.dense is not None
            assert mine.dense is not None
            assert_close(theirs.dense, mine.dense)
            assert theirs.sparse is not None
            assert mine.sparse is not None
            for left, right in zip(theirs.sparse, mine.sparse, strict=True):
                assert left == pytest.approx(right, abs=1e-6)


class TestCommands:
    def test_a_fingerprint_of_a_server_is_compared(
        self, server: ModelServer, models: Models, local: BgeEncoder, bge_small_en: Path, tmp_path: Path
    ) -> None:
        recorded = tmp_path / "recorded.json"
        recorded.write_text(local.fingerprint().to_json())
        asked = ["fingerprint", str(bge_small_en), "--compare", str(recorded), "--endpoint"]
        right = CliRunner().invoke(app, [*asked, server.url])
        assert (right.exit_code, "fits: other files" in right.output) == (0, True), right.output
        with running(models) as wrong:
            wrong.script = lambda path, content: (
                Reply(200, models.vectors([EN + text for text in content["inputs"]])) if path == "/embed" else None
            )
            found = CliRunner().invoke(app, [*asked, wrong.url])
        assert (found.exit_code, "does not fit" in found.output) == (3, True), found.output

    def test_a_corpus_is_embedded_by_a_server(
        self, server: ModelServer, local: BgeEncoder, bge_small_en: Path, tmp_path: Path
    ) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({"id": str(at), "text": text}) + "\n" for at, text in enumerate(TEXTS)))
        command = ["embed", str(rows), "--model", str(bge_small_en), "--output", str(tmp_path / "made")]
        done = CliRunner().invoke(app, [*command, "--endpoint", server.url, "--dtype", "float32"])
        assert done.exit_code == 0, done.output
        (file,) = (tmp_path / "made").glob("*.parquet")
        found = parquet.read_table(file).sort_by("id").column("vector").to_pylist()
        assert_close(found, local.encode_documents(TEXTS))

    def test_options_of_a_server_need_its_address(self, bge_small_en: Path) -> None:
        done = CliRunner().invoke(app, ["fingerprint", str(bge_small_en), "--endpoint-model", "served"])
        assert isinstance(done.exception, SettingsError)
        assert "without endpoint" in str(done.exception)
