"""The clients that people have, against a process of `bge serve`: they get what the local class gives."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cohere
import huggingface_hub
import numpy as np
import openai
import pytest
import tiktoken
from huggingface_hub import AsyncInferenceClient, InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from numpy.typing import ArrayLike

from bge_integrations import BgeEncoder, BgeReranker
from tests.fake_engine import LONG
from tests.server_process import Server, running

KEY = "k3y"
MODEL = "BAAI/bge-small-en-v1.5"
TEXTS = ["Vector stores keep embeddings.", "The quick brown fox jumps.", "样例数据 北京天气很好"]
QUERY = "which animal jumps"


@pytest.fixture(scope="module")
def server(bge_small_en: Path, bge_reranker_base: Path) -> Iterator[Server]:
    models = ("--model", bge_small_en, "--reranker", bge_reranker_base)
    with running(*models, "--api-key-env", "SERVER_KEY", SERVER_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def encoder(bge_small_en: Path) -> Iterator[BgeEncoder]:
    with BgeEncoder(bge_small_en) as encoder:
        yield encoder


def equal(found: ArrayLike, expected: ArrayLike) -> None:
    np.testing.assert_allclose(np.asarray(found, dtype=np.float32), np.asarray(expected), atol=1e-6)


class TestOpenAI:
    @pytest.fixture
    def client(self, server: Server) -> Iterator[openai.OpenAI]:
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key=KEY, max_retries=0) as client:
            yield client

    def test_vectors(self, client: openai.OpenAI, encoder: BgeEncoder) -> None:
        for encoding in ("base64", "float"):
            found = client.embeddings.create(input=TEXTS, model=MODEL, encoding_format=encoding)
            if encoding == "float":
                equal([row.embedding for row in found.data], encoder.encode_documents(TEXTS))
            assert found.usage.total_tokens == encoder.count_tokens(TEXTS).sum()
        unspecified = client.embeddings.create(input=QUERY, model=MODEL, extra_body={"input_type": "query"})
        equal([row.embedding for row in unspecified.data], encoder.encode_queries([QUERY]))

    def test_dimensions(self, client: openai.OpenAI, bge_small_en: Path) -> None:
        with BgeEncoder(bge_small_en, truncate_dim=8) as short:
            found = client.embeddings.create(input=TEXTS, model=MODEL, dimensions=8)
            equal([row.embedding for row in found.data], short.encode_documents(TEXTS))

    def test_models(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["bge-small-en-v1.5", "bge-reranker-base"]

    def test_errors_are_the_clients_own(self, client: openai.OpenAI, server: Server) -> None:
        with pytest.raises(openai.BadRequestError, match=r"input\[1\] is null"):
            client.embeddings.create(input=["a", None], model=MODEL)  # type: ignore[arg-type]
        with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
            client.embeddings.create(input="a", model="other")
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(input="a", model=MODEL, dimensions=4096)
        assert caught.value.param == "dimensions"
        wrong = openai.OpenAI(base_url=f"{server.address}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.embeddings.create(input="a", model=MODEL)


class TestLangChain:
    @pytest.fixture
    def langchains(self) -> Iterator[Callable[..., OpenAIEmbeddings]]:
        made = []

        def make(server: Server, **settings: object) -> OpenAIEmbeddings:
            place = {"base_url": f"{server.address}/v1", "api_key": KEY}
            made.append(OpenAIEmbeddings(model=MODEL, **place, **settings))
            return made[-1]

        yield make
        for embeddings in made:
            embeddings.client._client.close()

    def test_openai_embeddings(
        self, server: Server, encoder: BgeEncoder, langchains: Callable[..., OpenAIEmbeddings]
    ) -> None:
        embeddings = langchains(server, check_embedding_ctx_length=False)
        equal(embeddings.embed_documents(TEXTS), encoder.encode_documents(TEXTS))
        queries = embeddings.model_copy(update={"model_kwargs": {"extra_body": {"input_type": "query"}}})
        equal([queries.embed_query(QUERY)], encoder.encode_queries([QUERY]))

    def test_openai_embeddings_that_send_ids_of_another_tokenizer_are_told_the_remedy(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, langchains: Callable[..., OpenAIEmbeddings]
    ) -> None:
        # Stands for OpenAI's tokenizer, whose vocabulary is downloaded.
        ids = {bytes([value]): value for value in range(256)}
        foreign = tiktoken.Encoding("foreign", pat_str=r"\S+|\s+", mergeable_ranks=ids, special_tokens={})
        monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: foreign)
        embeddings = langchains(server)
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            embeddings.embed_documents(TEXTS)
        with pytest.raises(openai.BadRequestError, match="input holds token ids"):
            embeddings.embed_query(QUERY)

    @pytest.mark.parametrize("name", ["", "/embed"])
    def test_endpoint_embeddings(
        self, server: Server, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        embeddings = HuggingFaceEndpointEmbeddings(model=MODEL, huggingfacehub_api_token=KEY)
        embeddings.client = InferenceClient(model=server.address + name, token=KEY)
        embeddings.async_client = AsyncInferenceClient(model=server.address + name, token=KEY)
        equal(embeddings.embed_documents(TEXTS), encoder.encode_documents(TEXTS))
        embeddings.model_kwargs = {"prompt_name": "query"}
        equal([embeddings.embed_query(QUERY)], encoder.encode_queries([QUERY]))
        huggingface_hub.close_session()


class TestLlamaIndex:
    def test_text_embeddings_inference(self, server: Server, encoder: BgeEncoder) -> None:
        # Another name than that of a BGE model: for those, the class adds an instruction that has a mistake.
        embedding = TextEmbeddingsInference(model_name="served", base_url=server.address, auth_token=KEY)
        equal(embedding.get_text_embedding_batch(TEXTS), encoder.encode_documents(TEXTS))
        instruction = encoder.instruction("query").prefix.strip()
        asking = TextEmbeddingsInference(
            model_name="served", base_url=server.address, auth_token=KEY, query_instruction=instruction
        )
        equal([asking.get_query_embedding(QUERY)], encoder.encode_queries([QUERY]))

    def test_openai_like(self, server: Server, encoder: BgeEncoder) -> None:
        embedding = OpenAILikeEmbedding(model_name=MODEL, api_base=f"{server.address}/v1", api_key=KEY)
        equal(embedding.get_text_embedding_batch(TEXTS), encoder.encode_documents(TEXTS))
        asking = OpenAILikeEmbedding(
            model_name=MODEL,
            api_base=f"{server.address}/v1",
            api_key=KEY,
            additional_kwargs={"extra_body": {"input_type": "query"}},
        )
        equal([asking.get_query_embedding(QUERY)], encoder.encode_queries([QUERY]))
        for made in (embedding, asking):
            made._get_client().close()


class TestCohere:
    def test_rerank(self, server: Server, bge_reranker_base: Path) -> None:
        with BgeReranker(bge_reranker_base, normalize=True) as reranker:
            expected = reranker.score(QUERY, TEXTS)
        order = np.argsort(-expected).tolist()
        name = "bge-reranker-base"
        for kind in (cohere.Client, cohere.ClientV2):
            with kind(KEY, base_url=server.address) as client:
                found = client.rerank(query=QUERY, documents=TEXTS, model=name)
            assert [row.index for row in found.results] == order
            equal([row.relevance_score for row in found.results], expected[order])

    def test_embed(self, server: Server, encoder: BgeEncoder) -> None:
        with cohere.Client(KEY, base_url=server.address) as first:
            plain = first.embed(texts=TEXTS, model=MODEL, input_type="search_document")
        equal(plain.embeddings, encoder.encode_documents(TEXTS))
        with cohere.ClientV2(KEY, base_url=server.address) as second:
            typed = second.embed(texts=[QUERY], model=MODEL, input_type="search_query", embedding_types=["float"])
        equal(typed.embeddings.float_, encoder.encode_queries([QUERY]))

    def test_errors_are_the_clients_own(self, server: Server) -> None:
        client = cohere.ClientV2(KEY, base_url=server.address)
        with client, pytest.raises(cohere.BadRequestError, match="documents is an empty list"):
            client.rerank(query=QUERY, documents=[], model="bge-reranker-base")
        client = cohere.ClientV2(KEY, base_url=server.address)
        with client, pytest.raises(cohere.NotFoundError, match=r"'rerank-v3\.5' is not served here"):
            client.rerank(query=QUERY, documents=TEXTS, model="rerank-v3.5")


@pytest.mark.slow
def test_the_guides_code_for_clients_runs_as_it_stands(bge_small_en: Path, bge_reranker_base: Path) -> None:
    guide = (Path(__file__).parent.parent / "docs" / "guides" / "server.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```py\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    with running("--model", bge_small_en, "--reranker", bge_reranker_base) as server:
        code = "\n".join(blocks).replace("http://127.0.0.1:8080", server.address)
        variables = {**os.environ, "HF_HUB_OFFLINE": "0"}
        run = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=LONG)
    assert run.returncode == 0, run.stderr
