"""Every setting is written once, and reaches whoever takes settings."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest
from pydantic import BaseModel

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, langchain, llama_index
from bge_integrations.settings import (
    EncoderOptions,
    EncoderSettings,
    ModelOptions,
    ModelSettings,
    RerankerOptions,
    RerankerSettings,
    TransformersKwargs,
    description,
)

KINDS = [
    (ModelSettings, ModelOptions, BgeM3Encoder),
    (EncoderSettings, EncoderOptions, BgeEncoder),
    (RerankerSettings, RerankerOptions, BgeReranker),
]
# The other name under which a class of a framework takes a setting.
ELSEWHERE: dict[str, dict[str, str]] = {
    "HuggingFaceBgeEmbeddings": {"document_instruction": "embed_instruction", "transformers_kwargs": "model_kwargs"},
    "HuggingFaceBgeEmbedding": {
        "document_instruction": "text_instruction",
        "show_progress": "show_progress_bar",
        "transformers_kwargs": "sentence_transformer_kwargs",
    },
    "BgeRerank": {"transformers_kwargs": "cross_encoder_kwargs"},
    "BgeM3Rerank": {"transformers_kwargs": "sentence_transformer_kwargs"},
    "BgeSparseEmbedding": {"transformers_kwargs": "sentence_transformer_kwargs"},
}
CLASSES: list[tuple[type[BaseModel], type[ModelSettings]]] = [
    (langchain.HuggingFaceBgeEmbeddings, EncoderSettings),
    (langchain.BgeReranker, RerankerSettings),
    (langchain.BgeM3Reranker, ModelSettings),
    (langchain.BgeSparseEmbeddings, ModelSettings),
    (llama_index.HuggingFaceBgeEmbedding, EncoderSettings),
    (llama_index.BgeRerank, RerankerSettings),
    (llama_index.BgeM3Rerank, ModelSettings),
    (llama_index.BgeSparseEmbedding, ModelSettings),
]
# As in the classes that these replace.
OWN_DEFAULTS = {("HuggingFaceBgeEmbedding", "normalize"): True}


# llama-index shows no bar for a query.
OWN_TEXTS = {("show_progress", "show_progress")}


def names(kind: type[ModelSettings]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("settings", "options", "constructor"), KINDS)
def test_the_core_takes_every_setting_under_its_name(
    settings: type[ModelSettings], options: type, constructor: type
) -> None:
    assert {"model_name", *get_type_hints(options)} == set(names(settings))
    shown = inspect.signature(constructor).parameters
    assert list(shown) == names(settings)
    for field in dataclasses.fields(settings):
        if field.name != "model_name":
            default = TransformersKwargs() if field.default is dataclasses.MISSING else field.default
            assert shown[field.name].default == default


@pytest.mark.parametrize("settings", [ModelSettings, EncoderSettings, RerankerSettings])
def test_every_setting_is_described(settings: type[ModelSettings]) -> None:
    for name in names(settings):
        text = description(name, settings)
        assert text, name
        assert text.endswith((".", ".)"))


@pytest.mark.parametrize(("kind", "settings"), CLASSES, ids=[kind.__name__ for kind, _ in CLASSES])
def test_the_frameworks_classes_take_every_setting_with_its_default_and_its_text(
    kind: type[BaseModel], settings: type[ModelSettings]
) -> None:
    for field in dataclasses.fields(settings):
        name = ELSEWHERE.get(kind.__name__, {"transformers_kwargs": "model_kwargs"}).get(field.name, field.name)
        taken = kind.model_fields[name]
        if field.name not in ("model_name", "transformers_kwargs"):  # each class has a model and keywords of its own
            assert taken.default == OWN_DEFAULTS.get((kind.__name__, field.name), field.default), name
            if (name, field.name) not in OWN_TEXTS:
                assert taken.description == description(field.name, settings), name


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"threads": 1, "max_queued_texts": 7}])
def test_limits_reach_the_encoder_from_both_frameworks(bge_small_en: Path, options: dict[str, int]) -> None:
    for embeddings in (
        langchain.HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), **options),
        llama_index.HuggingFaceBgeEmbedding(str(bge_small_en), **options),
    ):
        for name, value in options.items():
            assert getattr(embeddings.encoder.settings, name) == value


def test_an_option_that_there_is_not_is_refused(bge_small_en: Path) -> None:
    with pytest.raises(TypeError, match="batch_sise"):
        BgeEncoder(bge_small_en, batch_sise=3)  # type: ignore[call-arg]


def test_none_is_no_keywords_for_transformers(bge_small_en: Path) -> None:
    with BgeEncoder(bge_small_en, transformers_kwargs=None) as encoder:  # type: ignore[arg-type]
        assert encoder.settings.transformers_kwargs == TransformersKwargs()


def test_a_class_of_ones_own_may_have_any_constructor(bge_small_en: Path) -> None:
    class Ours(BgeEncoder):
        def __init__(self, size: str = "small") -> None:
            super().__init__(bge_small_en, batch_size={"small": 3}[size])

    class Theirs(Ours):
        pass

    for kind in (Ours, Theirs):
        assert list(inspect.signature(kind).parameters) == ["size"]
        with kind() as encoder:
            assert encoder.settings.batch_size == 3
            assert encoder.encode_queries(["fox"]).shape == (1, 32)
