"""Every model is in the catalogue, and is recognised wherever it lies."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest

from bge_integrations import MODELS, ModelSpec, find_model

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："


# What a reranker with one label and a classifier with several say of themselves.
SCORES_PAIRS = {"architectures": ["XLMRobertaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
CLASSIFIES = {**SCORES_PAIRS, "id2label": {"0": "entailment", "1": "not_entailment"}}


def row(name: str) -> ModelSpec:
    spec = find_model(name)
    assert spec is not None
    return spec


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
    english = {spec.name: (spec.mteb_average, spec.mteb_retrieval) for spec in MODELS if spec.mteb_average}
    chinese = {spec.name: (spec.cmteb_average, spec.cmteb_retrieval) for spec in MODELS if spec.cmteb_average}
    assert english == {
        "bge-small-en": (62.11, 51.82),
        "bge-base-en": (63.36, 53.0),
        "bge-large-en": (63.98, 53.9),
        "bge-small-en-v1.5": (62.17, 51.68),
        "bge-base-en-v1.5": (63.55, 53.25),
        "bge-large-en-v1.5": (64.23, 54.29),
    }
    assert chinese == {
        "bge-small-zh": (58.27, 63.07),
        "bge-base-zh": (62.96, 69.53),
        "bge-large-zh": (64.20, 71.53),
        "bge-small-zh-v1.5": (57.82, 61.77),
        "bge-base-zh-v1.5": (63.13, 69.49),
        "bge-large-zh-v1.5": (64.53, 70.46),
        "bge-large-zh-noinstruct": (63.53, 70.55),
    }


@pytest.mark.parametrize("name", ["bge-large-zh-noinstruct", "bge-m3", "bge-m3-unsupervised"])
def test_models_trained_without_an_instruction_have_none(name: str) -> None:
    assert (row(name).query_instruction, row(name).passage_instruction, row(name).query_template) == ("", "", None)


@pytest.mark.parametrize(
    ("name", "template", "task"),
    [
        (
            "bge-multilingual-gemma2",
            "<instruct>{task}\n<query>{query}",
            "Given a web search query, retrieve relevant passages that answer the query.",
        ),
        (
            "bge-en-icl",
            "<instruct>{task}\n<query>{query}\n<response>",
            "Given a web search query, retrieve relevant passages that answer the query.",
        ),
        (
            "bge-code-v1",
            "<instruct>{task}\n<query>{query}",
            "Given a web search query, retrieve relevant code that can help answer the query.",
        ),
        (
            "bge-reasoner-embed-qwen3-8b-0923",
            "Instruct: {task}\nQuery: {query}",
            "Given a web search query, retrieve relevant passages that answer the query.",
        ),
    ],
)
def test_instruct_models_have_the_template_they_were_trained_with(name: str, template: str, task: str) -> None:
    assert (row(name).query_template, row(name).default_task, row(name).query_instruction) == (template, task, "")


def test_llm_embedder_has_a_pair_of_instructions_for_each_of_its_tasks() -> None:
    spec = row("llm-embedder")
    assert spec.task_instructions == {
        "qa": ("Represent this query for retrieving relevant documents: ", "Represent this document for retrieval: "),
        "icl": (
            "Convert this example into vector to look for useful examples: ",
            "Convert this example into vector for retrieval: ",
        ),
        "chat": (
            "Embed this dialogue to find useful historical dialogues: ",
            "Embed this historical dialogue for retrieval: ",
        ),
        "lrlm": (
            "Embed this text chunk for finding useful historical chunks: ",
            "Embed this historical text chunk for retrieval: ",
        ),
        "tool": (
            "Transform this user request for fetching helpful tool descriptions: ",
            "Transform this tool description for retrieval: ",
        ),
        "convsearch": (
            "Encode this query and context for searching relevant passages: ",
            "Encode this passage for retrieval: ",
        ),
    }
    assert (spec.query_instruction, spec.passage_instruction) == spec.task_instructions["qa"]


def test_only_llm_embedder_has_a_passage_instruction() -> None:
    assert [spec.name for spec in MODELS if spec.passage_instruction or spec.task_instructions] == ["llm-embedder"]


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_a_row_can_be_pickled_hashed_and_written_as_json_but_not_changed(spec: ModelSpec) -> None:
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert {spec: 1}[dataclasses.replace(spec)] == 1
    assert json.loads(json.dumps(dataclasses.asdict(spec)))["model_id"] == spec.model_id
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.query_instruction = ""  # type: ignore[misc]


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.name)
def test_every_row_is_found_by_its_own_id(spec: ModelSpec) -> None:
    assert find_model(spec.model_id) is spec


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
        "/cache/modelscope/hub/models/BAAI/bge-small-en-v1___5",
        "/cache/BAAI--bge-small-en-v1.5",
        "/cache/models--BAAI--bge-small-en-v1.5",
        "/cache/models--BAAI--bge-small-en-v1.5/snapshots/5c38ec7c405ec4b44b94cc5a9bb96e735b38267a/",
        "runs/bge-small-en-v1.5/checkpoint-500",
        "runs/bge-small-en-v1.5/checkpoint-best/",
        Path("models/bge-small-en-v1.5"),
    ],
)
def test_is_found_by_name(name: str | Path) -> None:
    assert id_of(name) == "BAAI/bge-small-en-v1.5"


@pytest.mark.parametrize(
    "name",
    [
        "my-bge-small-en-v1.5",
        "bge-small-en-v1.5-notes",
        "bge-small-en-v1.5/mean-pooled-model",
        "bge-small-en-v1.5/snapshots/epoch-1",
        "models--BAAI--bge-small-en-v1.5-notes/snapshots/5c38ec7c",
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


@pytest.mark.parametrize("name", ["~no-such-user/model", "a" * 5000, "a\0b", "~" * 300])
def test_a_name_that_no_file_can_have_is_no_bge(name: str) -> None:
    assert find_model(name) is None


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
            "base_model: BAAI/bge-m3  # the multilingual one",
            "base_model: [\n  other/model,\n  BAAI/bge-m3,\n]",
            "base_model: https://huggingface.co/BAAI/bge-m3",
        ],
    )
    def test_a_fine_tune_is_found_by_its_card(self, renamed: Path, header: str) -> None:
        (renamed / "README.md").write_text(f"---\ntags:\n- x\n{header}\n---\n# A model\n")
        assert id_of(renamed) == "BAAI/bge-m3"

    @pytest.mark.parametrize(
        "header", ["# base_model: BAAI/bge-m3", "base_model:\ntags:\n- bge-m3", "model:\n  base_model: BAAI/bge-m3"]
    )
    def test_a_card_that_names_no_base_model_says_nothing(self, renamed: Path, header: str) -> None:
        (renamed / "README.md").write_text(f"---\n{header}\n---\n")
        assert id_of(renamed) is None

    def test_a_card_written_on_windows_is_read(self, renamed: Path) -> None:
        (renamed / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nbase_model: BAAI/bge-m3\r\n---\r\n")
        assert id_of(renamed) == "BAAI/bge-m3"

    @pytest.mark.parametrize(
        "recorded",
        [
            "C:\\Users\\me/.cache\\torch\\sentence_transformers\\BAAI_bge-base-en-v1.5\\",
            "/home/me/.cache/huggingface/hub/models--BAAI--bge-base-en-v1.5/snapshots/a5beb1e3e68b9ab74eb54cfd186867f64f24",
            "out/bge-base-en-v1.5/checkpoint-9",
        ],
    )
    def test_what_it_records_may_be_a_path_of_another_machine(self, renamed: Path, recorded: str) -> None:
        (renamed / "config.json").write_text(json.dumps({"_name_or_path": recorded, "model_type": "bert"}))
        assert id_of(renamed) == "BAAI/bge-base-en-v1.5"

    def test_a_folder_that_records_itself_ends_the_search(self, renamed: Path) -> None:
        (renamed / "config.json").write_text(json.dumps({"_name_or_path": str(renamed)}))
        (renamed / "README.md").write_text(f"---\nbase_model: {renamed}\n---\n")
        assert id_of(renamed) is None

    def test_the_next_record_counts_where_the_first_is_no_bge(self, renamed: Path) -> None:
        (renamed / "config.json").write_text('{"_name_or_path": "./checkpoint"}')
        (renamed / "README.md").write_text("---\nbase_model: BAAI/bge-small-en\n---\n")
        assert id_of(renamed) == "BAAI/bge-small-en"

    def test_the_tokenizer_says_least(self, renamed: Path) -> None:
        (renamed / "tokenizer_config.json").write_text('{"name_or_path": "BAAI/bge-small-en"}')
        (renamed / "README.md").write_text("---\nbase_model: BAAI/bge-base-en\n---\n")
        assert id_of(renamed) == "BAAI/bge-base-en"

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

    def test_a_checkpoints_own_files_come_before_its_parents_name(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "bge-small-en" / "checkpoint-20"
        checkpoint.mkdir(parents=True)
        assert id_of(checkpoint) == "BAAI/bge-small-en"
        (checkpoint / "config.json").write_text('{"_name_or_path": "BAAI/bge-base-zh"}')
        assert id_of(checkpoint) == "BAAI/bge-base-zh"

    def test_a_snapshot_in_a_hub_cache_is_found_from_within(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot = (
            tmp_path / "models--BAAI--bge-base-zh-v1.5" / "snapshots" / "f03589ceff5aac7111bd60cfc7d497ca17ecac65"
        )
        snapshot.mkdir(parents=True)
        monkeypatch.chdir(snapshot)
        assert id_of(".") == id_of(f"{snapshot}/") == "BAAI/bge-base-zh-v1.5"

    def test_a_renamed_reranker_is_not_taken_for_the_embedder_it_was_made_from(self, renamed: Path) -> None:
        recorded = {"_name_or_path": "BAAI/bge-m3", "model_type": "xlm-roberta"}
        (renamed / "config.json").write_text(json.dumps(recorded))
        assert id_of(renamed) == "BAAI/bge-m3"
        (renamed / "config.json").write_text(json.dumps({**recorded, **SCORES_PAIRS}))
        assert id_of(renamed) == "BAAI/bge-reranker-v2-m3"

    @pytest.mark.parametrize("ancestor", ["BAAI/bge-m3", "BAAI/bge-m3-retromae"])
    def test_a_classifier_made_from_a_bge_model_is_none(self, renamed: Path, ancestor: str) -> None:
        (renamed / "config.json").write_text(json.dumps({"_name_or_path": ancestor, **CLASSIFIES}))
        assert id_of(renamed) is None

    def test_a_cross_encoder_made_from_an_embedder_is_no_embedder(self, renamed: Path) -> None:
        (renamed / "config.json").write_text(json.dumps({"_name_or_path": "BAAI/bge-small-en", **SCORES_PAIRS}))
        assert id_of(renamed) is None

    def test_a_model_of_another_architecture_made_from_a_bge_model_is_none(self, renamed: Path) -> None:
        (renamed / "README.md").write_text("---\nbase_model: BAAI/bge-base-en-v1.5\n---\n")
        (renamed / "config.json").write_text('{"model_type": "bert"}')
        assert id_of(renamed) == "BAAI/bge-base-en-v1.5"
        (renamed / "config.json").write_text('{"model_type": "model2vec"}')
        assert id_of(renamed) is None

    def test_an_embedder_trained_from_the_base_model_is_no_base_model(self, renamed: Path) -> None:
        (renamed / "config.json").write_text('{"_name_or_path": "BAAI/bge-m3-retromae"}')
        assert id_of(renamed) == "BAAI/bge-m3-retromae"
        (renamed / "modules.json").write_text("[]")
        assert id_of(renamed) is None

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

    @pytest.mark.parametrize(
        "content", [b"{", b"[]", b"\xff\xfe", b'{"_name_or_path": 7}', b"", b"[" * 200_000, b"---\nbase_model:\n---"]
    )
    def test_damaged_files_are_passed_over(self, renamed: Path, content: bytes) -> None:
        for file in ("config.json", "tokenizer_config.json", "README.md"):
            (renamed / file).write_bytes(content)
        assert id_of(renamed) is None

    def test_what_is_no_file_is_passed_over(self, renamed: Path) -> None:
        for file in ("config.json", "README.md"):
            (renamed / file).mkdir()
        (renamed / "tokenizer_config.json").write_text('{"name_or_path": "BAAI/bge-m3"}')
        assert id_of(renamed) == "BAAI/bge-m3"
