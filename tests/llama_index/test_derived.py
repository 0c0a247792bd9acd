"""What is read from a model is not a setting: with another model it is another."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEncoder
from bge_integrations.adapters import models, prompts
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from tests.checkpoints import make_checkpoint

TEXT = "lazy fox " * 200


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = str(make_checkpoint(tmp_path_factory.mktemp("derived") / "short", modules=("cls",)))
    with BgeEncoder(made):  # stays loaded
        yield made


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    made = str(make_checkpoint(tmp_path_factory.mktemp("derived") / "long", modules=("cls",), positions=128))
    with BgeEncoder(made):
        yield made


def _assigned(embedding: HuggingFaceBgeEmbedding, model: str) -> HuggingFaceBgeEmbedding:
    embedding.model_name = model
    return embedding


def _by_json(embedding: HuggingFaceBgeEmbedding, model: str) -> HuggingFaceBgeEmbedding:
    return HuggingFaceBgeEmbedding.from_json(json.dumps({**json.loads(embedding.to_json()), "model_name": model}))


WAYS: dict[str, Callable[[HuggingFaceBgeEmbedding, str], HuggingFaceBgeEmbedding]] = {
    "assignment": _assigned,
    "model_copy": lambda e, model: e.model_copy(update={"model_name": model}),
    "from_dict": lambda e, model: HuggingFaceBgeEmbedding.from_dict({**e.to_dict(), "model_name": model}),
    "json": _by_json,
    "keywords": lambda e, model: HuggingFaceBgeEmbedding(**{**e.model_dump(), "model_name": model}),
    "pickle": lambda e, model: _assigned(pickle.loads(pickle.dumps(e)), model),
    "deepcopy": lambda e, model: _assigned(copy.deepcopy(e), model),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_model_brings_its_own_limit(short: str, long: str, way: str) -> None:
    limits = {short: 64, long: 128}
    for first, second in ((short, long), (long, short)):
        embedding = HuggingFaceBgeEmbedding(first, on_truncation="ignore")
        assert embedding.max_length == limits[first]
        changed = WAYS[way](embedding, second)
        assert changed.max_length == limits[second]
        assert changed.encoder.max_length == limits[second]
        alone = BgeEncoder(second, normalize=True, on_truncation="ignore").encode_documents([TEXT])[0]
        assert changed.get_text_embedding(TEXT) == alone.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_a_limit_that_the_user_set_stays(short: str, long: str, way: str) -> None:
    assert WAYS[way](HuggingFaceBgeEmbedding(short, max_length=20), long).max_length == 20


def test_what_is_saved_says_nothing_of_the_models_limit(short: str, long: str) -> None:
    embedding = HuggingFaceBgeEmbedding(short)
    before = repr(embedding), embedding.to_dict(), embedding.model_dump()
    assert embedding.max_length == 64
    assert (repr(embedding), embedding.to_dict(), embedding.model_dump()) == before
    assert embedding.to_dict()["max_length"] is embedding.model_dump()["max_length"] is None
    assert "max_length=None" in repr(embedding)
    embedding.max_length = 32
    assert (embedding.max_length, embedding.to_dict()["max_length"]) == (32, 32)
    embedding.max_length = None
    assert embedding.max_length == 64


def test_a_class_made_from_it_reads_the_limit_too(short: str) -> None:
    class Own(HuggingFaceBgeEmbedding):
        """With a field of its own."""

        topic: str = "none"

    own = Own(model_name=short, topic="foxes")
    assert (own.topic, own.max_length, own.to_dict()["max_length"]) == ("foxes", 64, None)


def test_nothing_that_is_filled_in_stays_with_langchains_class_either(short: str, long: str) -> None:
    embeddings = HuggingFaceBgeEmbeddings(model_name=short)
    before = embeddings.model_dump()
    embeddings.embed_query("fox")
    assert embeddings.model_dump() == before
    assert embeddings.model_copy(update={"model_name": long}).encoder.max_length == 128


async def test_a_changed_model_is_loaded_off_the_event_loop(
    short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    build = prompts.build_encoders

    def watched(*settings: Any) -> tuple[BgeEncoder, BgeEncoder]:  # noqa: ANN401
        threads.append(threading.current_thread())
        return build(*settings)

    embedding = HuggingFaceBgeEmbedding(short)
    monkeypatch.setattr(models, "build_encoders", watched)
    embedding.model_name = str(make_checkpoint(tmp_path / "another", modules=("cls",), seed=3))
    vector = await embedding.aget_text_embedding("fox")
    assert vector == BgeEncoder(embedding.model_name, normalize=True).encode_documents(["fox"])[0].tolist()
    assert threads
    assert threading.main_thread() not in threads
