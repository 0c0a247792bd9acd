"""Every model is in the catalogue, and is recognised wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bge_integrations import MODELS, find_model

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："


def id_of(name_or_path: str | Path) -> str | None:
    spec = find_model(name_or_path)
    return spec.model_id if spec else None


@pytest.mark.parametrize("family", ["en", "zh"])
def test_the_bert_families_are_complete(family: str) -> None:
    instruction = {"en": EN, "zh": ZH}[family]
    dimensions = {"small": {"en": 384, "zh": 512}[family], "base": 768, "large": 1024}
    for size, dimension in dimensions.items():
        for version in ("", "-v1.5"):
            spec = find_model(f"BAAI/bge-{size}-{family}{version}")
            assert spec is not None
            assert (spec.kind, spec.languages, spec.pooling) == ("embedder", (family,), "cls")
            assert (spec.dimension, spec.max_tokens, spec.licence) == (dimension, 512, "mit")
            assert (spec.query_instruction, spec.passage_instruction) == (instruction, "")


@pytest.mark.parametrize(
    ("name", "dimension", "tokens"),
    [
        ("bge-large-zh-noinstruct", 1024, 512),
        ("bge-m3", 1024, 8192),
        ("bge-m3-unsupervised", 1024, 8192),
        ("bge-multilingual-gemma2", 3584, 8192),
        ("bge-en-icl", 4096, 32768),
        ("bge-code-v1", 1536, 4096),
        ("bge-reasoner-embed-qwen3-8b-0923", 4096, None),
        ("llm-embedder", 768, 512),
    ],
)
def test_the_other_embedders_are_there(name: str, dimension: int, tokens: int | None) -> None:
    spec = find_model(f"BAAI/{name}")
    assert spec is not None
    assert (spec.kind, spec.dimension, spec.max_tokens) == ("embedder", dimension, tokens)
    assert (spec.pooling == "last_token") == (spec.query_template is not None)


@pytest.mark.parametrize(
    "name", ["base", "large", "v2-m3", "v2-gemma", "v2-minicpm-layerwise", "v2.5-gemma2-lightweight"]
)
def test_the_rerankers_are_there(name: str) -> None:
    spec = find_model(f"BAAI/bge-reranker-{name}")
    assert spec is not None
    assert (spec.kind, spec.dimension, spec.pooling) == ("reranker", None, None)


def test_ids_are_unique_and_the_base_model_is_marked() -> None:
    assert len({spec.model_id for spec in MODELS}) == len(MODELS) == 27
    assert [spec.name for spec in MODELS if spec.kind == "base"] == ["bge-m3-retromae"]


def test_published_averages_are_those_of_the_cards() -> None:
    averages = {spec.name: spec.mteb_average or spec.cmteb_average for spec in MODELS}
    assert averages["bge-large-en"] == 63.98
    assert averages["bge-large-zh-noinstruct"] == 63.53
    assert averages["bge-small-zh"] == 58.27
    assert averages["bge-m3"] is None


@pytest.mark.parametrize(
    "name",
    [
        "BAAI/bge-small-en-v1.5",
        "baai/BGE-Small-EN-v1.5",
        "bge-small-en-v1.5",
        "somebody/bge-small-en-v1.5",
        "/models/bge-small-en-v1.5/",
        "./bge-small-en-v1.5",
        "C:\\models\\bge-small-en-v1.5",
        "/root/.cache/torch/sentence_transformers/BAAI_bge-small-en-v1.5/",
        "/cache/models--BAAI--bge-small-en-v1.5",
        "/cache/models--BAAI--bge-small-en-v1.5/snapshots/5c38ec7c405ec4b44b94cc5a9bb96e735b38267a/",
        "runs/bge-small-en-v1.5/checkpoint-500",
    ],
)
def test_is_found_by_name(name: str) -> None:
    assert id_of(name) == "BAAI/bge-small-en-v1.5"


@pytest.mark.parametrize(
    "name",
    [
        "my-bge-small-en-v1.5",
        "bge-small-en-v1.5-notes",
        "bge-small-en-v1.5/mean-pooled-model",
        "my_bge-m3",
        "sentence-transformers/all-MiniLM-L6-v2",
        "checkpoint-500",
        "snapshots",
        "/",
        ".",
        "",
    ],
)
def test_is_never_guessed_from_a_part_of_a_name(name: str) -> None:
    assert id_of(name) is None


class TestFolders:
    @pytest.fixture
    def renamed(self, tmp_path: Path) -> Path:
        folder = tmp_path / "search-v7"
        folder.mkdir()
        return folder

    @pytest.mark.parametrize(
        ("file", "key"),
        [
            ("config.json", "_name_or_path"),
            ("adapter_config.json", "base_model_name_or_path"),
            ("tokenizer_config.json", "name_or_path"),
        ],
    )
    def test_a_renamed_one_is_found_by_what_it_records(self, renamed: Path, file: str, key: str) -> None:
        assert id_of(renamed) is None
        (renamed / file).write_text(json.dumps({key: "/root/.cache/torch/BAAI_bge-base-zh/"}))
        assert id_of(renamed) == id_of(str(renamed) + "/") == "BAAI/bge-base-zh"

    @pytest.mark.parametrize(
        "header",
        [
            "base_model: BAAI/bge-m3",
            'base_model: "BAAI/bge-m3"',
            "base_model:\n- BAAI/bge-m3",
            "base_model:\n  - other/model\n  - BAAI/bge-m3\nlicense: mit",
            "base_model: [BAAI/bge-m3]",
        ],
    )
    def test_a_fine_tune_is_found_by_its_card(self, renamed: Path, header: str) -> None:
        (renamed / "README.md").write_text(f"---\ntags:\n- x\n{header}\n---\n# A model\n")
        assert id_of(renamed) == "BAAI/bge-m3"

    def test_a_card_that_only_speaks_of_a_model_says_nothing(self, renamed: Path) -> None:
        (renamed / "README.md").write_text("# Better than BAAI/bge-m3\nbase_model: BAAI/bge-m3\n")
        assert id_of(renamed) is None

    def test_its_own_name_comes_before_what_it_records(self, tmp_path: Path) -> None:
        folder = tmp_path / "bge-base-en-v1.5"
        folder.mkdir()
        (folder / "config.json").write_text('{"_name_or_path": "/cache/BAAI_bge-base-en/"}')
        assert id_of(folder) == "BAAI/bge-base-en-v1.5"

    def test_a_trainers_checkpoint_is_found_by_itself_or_by_its_parent(self, renamed: Path) -> None:
        checkpoint = renamed / "checkpoint-20"
        checkpoint.mkdir()
        assert id_of(checkpoint) is None
        (renamed / "README.md").write_text("---\nbase_model: BAAI/bge-small-zh\n---\n")
        assert id_of(checkpoint) == "BAAI/bge-small-zh"
        (checkpoint / "config.json").write_text('{"_name_or_path": "BAAI/bge-large-zh"}')
        assert id_of(checkpoint) == "BAAI/bge-large-zh"

    def test_a_fine_tuned_reranker_is_one(self, renamed: Path) -> None:
        (renamed / "config.json").write_text('{"_name_or_path": "BAAI/bge-reranker-base"}')
        spec = find_model(renamed)
        assert spec is not None
        assert spec.kind == "reranker"

    def test_a_link_and_the_working_folder_are_followed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "bge-m3"
        folder.mkdir()
        (tmp_path / "link").symlink_to(folder)
        assert id_of(tmp_path / "link") == "BAAI/bge-m3"
        monkeypatch.chdir(folder)
        assert id_of(".") == "BAAI/bge-m3"

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"_name_or_path": 7}', b""])
    def test_damaged_files_are_passed_over(self, renamed: Path, content: bytes) -> None:
        for file in ("config.json", "tokenizer_config.json", "README.md"):
            (renamed / file).write_bytes(content)
        assert id_of(renamed) is None
