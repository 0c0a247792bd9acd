"""JSON files that hold something else than they should: an error names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker, find_model
from bge_integrations.errors import ModelLoadError
from bge_integrations.prepare import prepare
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3, make_reranker

CONFIG, POOLING, MODULES = "config.json", "1_Pooling/config.json", "modules.json"
TOKENIZER, TRAINED, SETTINGS = "tokenizer_config.json", "config_sentence_transformers.json", "sentence_bert_config.json"

WHOLE: list[tuple[str, bytes]] = [
    *[(CONFIG, text) for text in (b"", b"5", b"[1]", b'"x"', b"null", b"NaN", b"[" * 3000, b"\xff\xfe{\x00}\x00")],
    *[(CONFIG, text) for text in (b'{"a":' * 100 + b"1" + b"}" * 100, b'{"hidden_size": ' + b"9" * 5000 + b"}")],
    *[(MODULES, text) for text in (b'"x"', b"5", b"[]", b"[1]", b'{"a": 1}', b'[{"type": null, "path": ""}]')],
    *[(POOLING, text) for text in (b"5", b"[1]", b"{}", b"<html>")],
    *[(name, b"[1]") for name in (TRAINED, SETTINGS, TOKENIZER, "special_tokens_map.json", "added_tokens.json")],
    *[(name, b'"x"') for name in ("generation_config.json", "adapter_config.json", "model.safetensors.index.json")],
]
BAD_TYPES: list[Any] = [[], None, 5]
BAD_SIZES: list[Any] = ["32", 0, -1, 10**12, 1.5, True]
BAD_PROMPTS: list[Any] = [5, {"query": 5}, None]
BAD_POOLINGS: list[Any] = [5, "clss", [], ["cls", 5]]
VALUES: list[tuple[str, str, Any]] = [
    *[(CONFIG, "model_type", value) for value in BAD_TYPES],
    *[(CONFIG, "architectures", value) for value in (5, "BertModel", [1])],
    *[(CONFIG, "hidden_size", value) for value in BAD_SIZES],
    (CONFIG, "num_hidden_layers", 10**9),
    *[(CONFIG, "max_position_embeddings", value) for value in ("x", 10**30)],
    *[(CONFIG, "pad_token_id", value) for value in ("x", 1.5)],
    *[(CONFIG, "layer_norm_eps", value) for value in ("x", float("nan"), float("inf"))],
    (CONFIG, "id2label", 5),
    *[(SETTINGS, "max_seq_length", value) for value in ("x", -5, 0, float("nan"), 10**30)],
    (SETTINGS, "model_args", [1]),
    *[(TOKENIZER, "model_max_length", value) for value in ("x", -5, float("nan"))],
    *[(TOKENIZER, key, value) for key, value in (("pad_token", 5), ("truncation_side", "up"))],
    *[(POOLING, "word_embedding_dimension", value) for value in ("x", -1, None)],
    *[(POOLING, "pooling_mode", value) for value in BAD_POOLINGS],
    *[(TRAINED, "prompts", value) for value in BAD_PROMPTS],
    (TRAINED, "default_prompt_name", ["query"]),
    ("adapter_config.json", "base_model_name_or_path", 5),
    ("model.safetensors.index.json", "weight_map", [1]),
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder") / "my-embedder"
    return make_checkpoint(folder, modules=("cls", "normalize"), prompts={"query": "q: "})


@pytest.fixture
def put(embedder: Path) -> Any:  # noqa: ANN401 - a generator of a function
    """Writes a file of the embedder, which is as before once the test is over."""
    kept: dict[Path, bytes | None] = {}

    def write(name: str, content: bytes) -> None:
        file = embedder / name
        kept.setdefault(file, file.read_bytes() if file.exists() else None)
        file.write_bytes(content)

    yield write
    for file, content in kept.items():
        file.unlink() if content is None else file.write_bytes(content)


Put = Callable[[str, bytes], None]


def put_value(put: Put, folder: Path, name: str, key: str, value: Any) -> None:  # noqa: ANN401
    held = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    put(name, json.dumps({**held, key: value}).encode())


@pytest.mark.parametrize(("name", "content"), WHOLE)
def test_a_file_of_another_kind_is_named(embedder: Path, put: Put, name: str, content: bytes) -> None:
    put(name, content)
    find_model(embedder)
    with pytest.raises(ModelLoadError) as caught:
        BgeEncoder(embedder)
    assert str(embedder / name) in str(caught.value)


@pytest.mark.parametrize(("name", "key", "value"), VALUES)
def test_a_value_of_another_kind_is_named_with_its_key(
    embedder: Path,
    put: Put,
    name: str,
    key: str,
    value: Any,  # noqa: ANN401
) -> None:
    put_value(put, embedder, name, key, value)
    find_model(embedder)
    with pytest.raises(ModelLoadError) as caught:
        BgeEncoder(embedder)
    assert f"{embedder / name} is damaged: {key}" in str(caught.value)
    assert ", not " in str(caught.value)


def test_a_module_needs_a_name_of_its_own_and_a_path_inside(embedder: Path, put: Put) -> None:
    listed = json.loads((embedder / MODULES).read_text())
    for key, value in (("name", "0"), ("path", "../elsewhere"), ("path", "/elsewhere"), ("path", 5)):
        put(MODULES, json.dumps([listed[0], {**listed[1], key: value}]).encode())
        with pytest.raises(ModelLoadError, match=r"modules\.json is damaged"):
            BgeEncoder(embedder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [(CONFIG, "num_attention_heads", 5), (CONFIG, "intermediate_size", 5), (TOKENIZER, "extra_special_tokens", 5)],
)
def test_what_only_the_library_can_tell_names_the_file_too(
    embedder: Path, put: Put, name: str, key: str, value: int
) -> None:
    put_value(put, embedder, name, key, value)
    for engine in ("auto", "sentence-transformers"):
        with pytest.raises(ModelLoadError, match=name.replace(".", r"\.")):
            BgeEncoder(embedder, engine=engine)


def test_a_pooling_of_another_width_is_refused_at_load(embedder: Path, put: Put) -> None:
    put_value(put, embedder, POOLING, "word_embedding_dimension", 64)
    for engine in ("auto", "sentence-transformers"):
        with pytest.raises(ModelLoadError, match=r"1_Pooling/config\.json.*embedding_dimension is 64.* 32 numbers"):
            BgeEncoder(embedder, engine=engine)


def test_a_file_that_is_damaged_after_a_graph_was_cached_is_named(embedder: Path, put: Put) -> None:
    BgeEncoder(embedder).close()
    put_value(put, embedder, CONFIG, "pad_token_id", "x")
    with pytest.raises(ModelLoadError, match=r"config\.json is damaged: pad_token_id is 'x'"):
        BgeEncoder(embedder)


def test_every_class_and_prepare_name_it(embedder: Path, put: Put, tmp_path: Path) -> None:
    put(CONFIG, b"[1]")
    folders = {BgeReranker: make_reranker(tmp_path / "pairs"), BgeM3Encoder: make_m3(tmp_path / "m3")}
    for kind, folder in folders.items():
        (folder / CONFIG).write_text("[1]")
        with pytest.raises(ModelLoadError, match=r"config\.json is damaged: the content is \[1\], not an object"):
            kind(folder)
    for folder in (embedder, *folders.values()):
        with pytest.raises(ModelLoadError, match=r"config\.json is damaged"):
            prepare(folder, tmp_path / "prepared")


def test_keys_that_nobody_knows_do_no_harm(embedder: Path, put: Put) -> None:
    put_value(put, embedder, CONFIG, "unheard_of", {"deep": [[1, None], "x"]})
    put_value(put, embedder, TOKENIZER, "model_max_length", 10**30)
    put_value(put, embedder, TRAINED, "unheard_of", [5])
    with BgeEncoder(embedder) as encoder:
        assert encoder.encode(["fox"]).shape == (1, 32)


def test_a_card_of_many_empty_lines_is_read_at_once(embedder: Path, put: Put) -> None:
    put("README.md", b"---\n" + b"\n" * 100_000)
    assert find_model(embedder) is None
