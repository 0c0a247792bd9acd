"""Settings travel, may be changed later, and never give the token away."""

from __future__ import annotations

import copy
import json
import logging
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
from pydantic import ValidationError

from bge_integrations.errors import SettingsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import reference_vectors
from tests.langchain.former import EN, ZH, are_close, assert_close

SECRET = "hf_secret"


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

    def test_a_copy_with_an_update_gets_it_and_the_original_keeps_its_own(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        without = embeddings.model_copy(update={"query_instruction": ""})
        assert_close([without.embed_query("fox")], reference_vectors(bge_small_en, ["fox"]))
        assert_close([embeddings.embed_query("fox")], reference_vectors(bge_small_en, [EN + "fox"]))
        assert without.encoder.backend is embeddings.encoder.backend

    def test_another_model_is_loaded(self, bge_small_en: Path, bge_small_zh: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        embeddings.model_name = str(bge_small_zh)
        assert_close([embeddings.embed_query("北京")], reference_vectors(bge_small_zh, [ZH + "北京"]))

    def test_a_bad_value_is_refused_at_the_next_use(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en))
        embeddings.truncate_dim = -1
        with pytest.raises(SettingsError, match="truncate_dim=-1"):
            embeddings.embed_query("fox")

    def test_nothing_is_made_anew_while_nothing_changes(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), encode_kwargs={"prompt": "p: "})
        first = embeddings.encoder
        embeddings.embed_query("fox")
        assert embeddings.encoder is first


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
    @pytest.mark.parametrize("settings", [{}, FULL], ids=["default", "every kind of setting"])
    @pytest.mark.parametrize("way", ["json", "json by alias", "dict", "pickle", "copy", "deepcopy"])
    def test_settings_survive_every_way(self, bge_small_en: Path, settings: dict[str, Any], way: str) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **settings)
        twin = {
            "json": lambda e: HuggingFaceBgeEmbeddings.model_validate_json(e.model_dump_json()),
            "json by alias": lambda e: HuggingFaceBgeEmbeddings.model_validate_json(e.model_dump_json(by_alias=True)),
            "dict": lambda e: HuggingFaceBgeEmbeddings(**e.model_dump()),
            "pickle": lambda e: pickle.loads(pickle.dumps(e)),
            "copy": copy.copy,
            "deepcopy": copy.deepcopy,
        }[way](embeddings)
        assert twin.model_dump() == embeddings.model_dump()
        assert twin.embed_query("fox") == embeddings.embed_query("fox")
        assert twin.embed_documents(["fox", "dog"]) == embeddings.embed_documents(["fox", "dog"])
        assert twin.encoder.backend is embeddings.encoder.backend

    def test_what_was_saved_gives_the_same_in_another_process(self, bge_small_en: Path) -> None:
        embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **FULL)
        saved = pickle.dumps(embeddings) + b"<END>" + embeddings.model_dump_json().encode()
        assert len(saved) < 10_000
        run = subprocess.run([sys.executable, "-c", REVIVE], input=saved, capture_output=True, check=True)
        revived = json.loads(run.stdout)
        expected = [embeddings.embed_query("fox"), *embeddings.embed_documents(["fox", "dog"])]
        assert_close(revived, [expected, expected])


class TestToken:
    PLACES: tuple[dict[str, Any], ...] = (
        {"token": SECRET},
        {"model_kwargs": {"token": SECRET}},
        {"model_kwargs": {"use_auth_token": SECRET}},
        {"model_kwargs": {"token": None, "use_auth_token": SECRET}},
        {"model_kwargs": {"model_kwargs": {"token": SECRET}}},
        {"model_kwargs": {"tokenizer_kwargs": {"use_auth_token": SECRET}}},
        {"model_kwargs": {"config_kwargs": {"token": SECRET}}},
    )

    @pytest.mark.parametrize("settings", PLACES, ids=str)
    def test_is_used_and_never_shown_dumped_or_pickled(
        self, bge_small_en: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, "bge_integrations"):
            embeddings = HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **settings)
        assert embeddings.encoder.settings.token == SECRET
        shown = [
            repr(embeddings),
            str(embeddings),
            str(embeddings.model_dump()),
            embeddings.model_dump_json(),
            repr(embeddings.__dict__),
            repr(copy.deepcopy(embeddings)),
            repr(embeddings.encoder.settings),
            caplog.text,
        ]
        assert SECRET not in "".join(shown)
        assert SECRET.encode() not in pickle.dumps(embeddings) + pickle.dumps(embeddings.encoder)

    @pytest.mark.parametrize("settings", PLACES, ids=str)
    @pytest.mark.parametrize(
        "fault",
        [{"encode_kwargs": {"x": 1}}, {"truncate_dim": 0}, {"precision": "float8"}, {"unknown": 1}],
        ids=str,
    )
    def test_is_in_no_part_of_a_validation_error(
        self, bge_small_en: Path, settings: dict[str, Any], fault: dict[str, Any]
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **settings, **fault)
        error = caught.value
        assert SECRET not in str(error) + repr(error) + repr(error.errors()) + error.json()

    def test_is_in_no_part_of_the_error_about_loaded_json(self, bge_small_en: Path) -> None:
        saved = json.dumps({"model_name": str(bge_small_en), "model_kwargs": {"token": SECRET, "x": 1}})
        with pytest.raises(ValidationError, match="known keys") as caught:
            HuggingFaceBgeEmbeddings.model_validate_json(saved)
        assert SECRET not in str(caught.value) + repr(caught.value.errors()) + caught.value.json()


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
