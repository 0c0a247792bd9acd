"""Every setting is written once, and reaches whoever takes settings."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.settings import (
    EncoderOptions,
    EncoderSettings,
    ModelOptions,
    ModelSettings,
    RerankerOptions,
    RerankerSettings,
    TransformersKwargs,
    default_of,
    description,
)

KINDS = [
    (ModelSettings, ModelOptions, BgeM3Encoder),
    (EncoderSettings, EncoderOptions, BgeEncoder),
    (RerankerSettings, RerankerOptions, BgeReranker),
]


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
            assert shown[field.name].default == default_of(field)


@pytest.mark.parametrize("settings", [ModelSettings, EncoderSettings, RerankerSettings])
def test_every_setting_is_described(settings: type[ModelSettings]) -> None:
    for name in names(settings):
        text = description(name, settings)
        assert text, name
        assert text.endswith((".", ".)"))


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
