"""Settings of embeddings may be changed later, travel to another process, and share one model between threads."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import reference_vectors
from tests.langchain.former import ZH, are_close, assert_close

pytestmark = pytest.mark.usefixtures("kept_small_en")


class TestChangedLater:
    """langchain-community reads its fields at every call, and the BGE model cards assign to them."""

    def test_the_v1_5_model_cards_snippet_runs_but_for_the_import(self, bge_small_zh: Path) -> None:
        model = HuggingFaceBgeEmbeddings(
            model_name=str(bge_small_zh),
            model_kwargs={"device": "cpu"},
            encode_kwargs={"normalize_embeddings": True},
            query_instruction="找: ",
        )
        assert_close([model.embed_query("北京")], reference_vectors(bge_small_zh, ["找: 北京"]))
        model.query_instruction = ZH
        assert_close([model.embed_query("北京")], reference_vectors(bge_small_zh, [ZH + "北京"]))

    def test_a_key_put_into_encode_kwargs_counts(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        embeddings.embed_documents(["fox"])
        embeddings.encode_kwargs["prompt"] = "text: "
        assert_close(embeddings.embed_documents(["fox"]), reference_vectors(bge_small_en, ["text: fox"]))


FULL: dict[str, Any] = {
    "model_kwargs": {
        "device": torch.device("cpu"),
        "model_kwargs": {"torch_dtype": torch.float32},
        "prompts": {"topic": "group: "},
    },
    "encode_kwargs": {"truncate_dim": 8, "device": torch.device("cpu")},
    "query_encode_kwargs": {"prompt_name": "topic"},
    "max_length": 32,
    "on_truncation": "ignore",
    "show_progress": True,
    "multi_process": True,
}

REVIVE = """
import json, pickle, sys
pickled, dumped = sys.stdin.buffer.read().split(b"<END>")
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
revived = [pickle.loads(pickled), HuggingFaceBgeEmbeddings.model_validate_json(dumped)]
vectors = [[e.embed_query("fox"), *e.embed_documents(["fox", "dog"])] for e in revived]
print(json.dumps(vectors))
"""


class TestTravel:
    def test_what_was_saved_gives_the_same_in_another_process(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **FULL)
        saved = pickle.dumps(embeddings) + b"<END>" + embeddings.model_dump_json().encode()
        assert len(saved) < 10_000
        run = subprocess.run([sys.executable, "-c", REVIVE], input=saved, capture_output=True, check=True)
        revived = json.loads(run.stdout)
        expected = [embeddings.embed_query("fox"), *embeddings.embed_documents(["fox", "dog"])]
        assert_close(revived, [expected, expected])


class TestOneModelInMemory:
    VARIANTS: tuple[dict[str, Any], ...] = (
        {},
        {"query_instruction": ""},
        {"embed_instruction": "text: "},
        {"normalize": False},
        {"truncate_dim": 8},
        {"max_length": 16},
        {"encode_kwargs": {"normalize_embeddings": False, "batch_size": 2}},
        {"query_encode_kwargs": {"prompt": "x"}},
    )

    def test_eight_threads_that_construct_at_once_share_it(self, bge_small_en: Path) -> None:
        barrier = threading.Barrier(len(self.VARIANTS))

        def construct(settings: dict[str, Any]) -> HuggingFaceBgeEmbeddings:
            barrier.wait()
            return HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), device="cpu", **settings)

        with ThreadPoolExecutor(len(self.VARIANTS)) as pool:
            embedders = list(pool.map(construct, self.VARIANTS))
        backend = embedders[0].encoder.backend
        assert all(embedder.encoder.backend is backend for embedder in embedders)
        assert all(embedder.client is embedders[0].client for embedder in embedders)
        assert len({tuple(embedder.embed_query("fox")) for embedder in embedders}) >= 5

    def test_threads_that_wake_one_unpickled_embedder_share_it(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        expected = embeddings.embed_query("fox")
        asleep = pickle.loads(pickle.dumps(embeddings))
        barrier = threading.Barrier(8)

        def embed(_: int) -> list[float]:
            barrier.wait()
            return list(asleep.embed_query("fox"))

        with ThreadPoolExecutor(8) as pool:
            vectors = list(pool.map(embed, range(8)))
        np.testing.assert_array_equal(vectors, [expected] * 8)
        assert asleep.encoder.backend is embeddings.encoder.backend

    def test_threads_with_different_settings_do_not_disturb_each_other(self, bge_small_en: Path) -> None:
        instructions = [f"{name}: " for name in ("a", "b", "c", "d", "e", "f", "g", "h")]
        expected = reference_vectors(bge_small_en, [text + "fox" for text in instructions])
        embedders = [HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), query_instruction=i) for i in instructions]
        with ThreadPoolExecutor(len(embedders)) as pool:
            for _ in range(5):
                assert_close(list(pool.map(lambda e: e.embed_query("fox"), embedders)), expected)
        assert not are_close(expected[0], expected[1])
