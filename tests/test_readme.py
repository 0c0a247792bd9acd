"""What both READMEs say is so: their code runs as it stands, and their tables are the code's."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import pickle
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from langchain_milvus import Milvus
from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter
from pymilvus import Function, FunctionType
from sentence_transformers import SentenceTransformer

import bge_integrations
from bge_integrations import MODELS, errors
from bge_integrations.langchain import HuggingFaceBgeEmbeddings, bge_m3_hybrid
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.settings import EncoderSettings, default_of
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import make_m3, make_reranker
from tests.conftest import MakeCheckpoint

ROOT = Path(__file__).parent.parent
READMES = {"README.md": "BAAI/bge-small-en-v1.5", "README_zh.md": "BAAI/bge-small-zh-v1.5"}
ENGLISH, CHINESE = READMES
each_readme = pytest.mark.parametrize("name", READMES)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", read(name), re.DOTALL | re.MULTILINE)


def tables(name: str) -> list[list[list[str]]]:
    """Every table as its rows, each the cells without the blanks around them; the heading comes first."""
    found: list[list[list[str]]] = [[]]
    for line in read(name).splitlines():
        if not line.startswith("|"):
            found.append([])
        elif not line.startswith("|---"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [table for table in found if table]


def table_with(name: str, first_cell: str) -> list[list[str]]:
    """The rows of the one table that has a row starting so, without its heading."""
    (table,) = (table for table in tables(name) if any(row[0].startswith(first_cell) for row in table[1:]))
    return table[1:]


def code_in(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")  # of Qdrant without a server
@pytest.mark.parametrize(("name", "model"), READMES.items())
def test_code_runs_as_it_stands(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A local folder comes before the hub, so that the snippets need no change to run here.
    make_checkpoint(tmp_path / model, modules=("cls", "normalize"))
    make_reranker(tmp_path / "BAAI/bge-reranker-v2-m3")
    make_m3(tmp_path / "BAAI/bge-m3")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in python_blocks(name):
        exec(compile(block, name, "exec"), namespace)
    assert namespace["scores"].shape == (1, 2)  # type: ignore[attr-defined]
    assert len(namespace["found"]) == 1  # type: ignore[arg-type]
    assert 1 < len(namespace["chunks"]) == len(namespace["tokens"])  # type: ignore[arg-type]
    assert namespace["tokens"].max() <= namespace["encoder"].max_length  # type: ignore[attr-defined]
    assert namespace["ranked"].shape == (2,)  # type: ignore[attr-defined]
    assert [type(document.metadata["relevance_score"]) for document in namespace["reranked"]] == [float]  # type: ignore[attr-defined]
    assert [set(node.metadata) for node in namespace["reranked_nodes"]] == [{"retrieval_score"}]  # type: ignore[attr-defined]
    assert len(namespace["hybrid_found"]) == 1  # type: ignore[arg-type]
    assert namespace["m3"].backend is namespace["dense"].encoder.backend  # type: ignore[attr-defined]
    assert namespace["prefix"] == namespace["spec"].query_instruction != ""  # type: ignore[attr-defined]


@each_readme
def test_the_call_for_milvus_stores_and_finds(name: str, tmp_path: Path) -> None:
    (call,) = (code_in(row[1])[0] for row in table_with(name, "Milvus") if row[0].startswith("Milvus"))
    dense, sparse = bge_m3_hybrid(str(make_m3(tmp_path / "bge-m3")))
    to_file = partial(Milvus.from_texts, connection_args={"uri": str(tmp_path / "milvus.db")})
    texts = ["light", "", "fox"]
    given = {"texts": texts, "dense": dense, "sparse": sparse, "Milvus": SimpleNamespace(from_texts=to_file)}
    store = eval(call, given)
    fusion = Function("rrf", FunctionType.RERANK, input_field_names=[], params={"reranker": "rrf", "k": 60})
    found = store.similarity_search("fox", k=3, reranker=fusion)
    assert sorted(document.page_content for document in found) == sorted(texts)
    store.client.close()


def test_both_languages_have_the_same_sections() -> None:
    def outline(name: str) -> list[str]:
        # What stands at the start of a line: headings, fences, list items, and rows with their number of cells.
        lines = re.findall(r"^(#+ |```\w*|\d\. |\|.*)", read(name), re.MULTILINE)
        return [f"|{line.count('|')}" if line.startswith("|") else line for line in lines]

    assert outline(ENGLISH) == outline(CHINESE)
    assert f"]({CHINESE})" in read(ENGLISH).split("## ")[0]
    assert f"]({ENGLISH})" in read(CHINESE).split("## ")[0]


def test_both_languages_have_the_same_code() -> None:
    def without_texts(block: str) -> str:
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        return ast.dump(tree)

    assert [without_texts(b) for b in python_blocks(ENGLISH)] == [without_texts(b) for b in python_blocks(CHINESE)]


def test_both_languages_name_the_same_settings_errors_and_values_in_their_tables() -> None:
    for english, chinese in zip(tables(ENGLISH), tables(CHINESE), strict=True):
        for ours, theirs in zip(english, chinese, strict=True):
            # Word order differs within a cell.
            assert [sorted(code_in(cell)) for cell in ours] == [sorted(code_in(cell)) for cell in theirs]


@each_readme
def test_the_settings_table_has_every_setting_with_its_default(name: str) -> None:
    rows = table_with(name, "`max_length`")
    fields = dataclasses.fields(EncoderSettings)
    assert [row[0] for row in rows] == [f"`{field.name}`" for field in fields]
    for row, field in zip(rows, fields, strict=True):
        if field.default is not dataclasses.MISSING:
            assert ast.literal_eval(row[1].strip("`")) == field.default
        else:
            assert row[1] == ("" if field.name == "model_name" else f"`{type(default_of(field)).__name__}()`")


@each_readme
def test_the_adapters_take_every_setting_under_the_name_given(name: str) -> None:
    (table,) = (table for table in tables(name) if table[0] == ["`BgeEncoder`", "LangChain", "LlamaIndex"])
    renamed = {code_in(row[0])[0].split("=")[0]: row[1:] for row in table[1:]}
    for column, fields in enumerate((HuggingFaceBgeEmbeddings.model_fields, HuggingFaceBgeEmbedding.model_fields)):
        for field in dataclasses.fields(EncoderSettings):
            cell = renamed.get(field.name, [f"`{field.name}`"] * 2)[column]
            said = code_in(cell)[0] if cell != "–" else None
            if said is None:
                assert field.name not in fields
            elif field.name == "model_name":
                assert fields["model_name"].default == ast.literal_eval(said)
            elif field.name == "normalize":
                assert fields["normalize"].default is ast.literal_eval(said.split("=")[1])
            elif said != "model_kwargs={…}":  # LlamaIndex's takes SentenceTransformer's arguments beside its fields
                assert said.split("=")[0] in fields


@each_readme
def test_the_spelled_out_keywords_are_taken(name: str, bge_small_en: Path) -> None:
    (table,) = (table for table in tables(name) if table[0] == ["`BgeEncoder`", "LangChain", "LlamaIndex"])
    eager = '{"attn_implementation": "eager"}'
    for row in table[1:]:
        for said, adapter in zip(row[1:], (HuggingFaceBgeEmbeddings, HuggingFaceBgeEmbedding), strict=True):
            if "={" in said:
                key, value = said.strip("`").replace("{…}", eager).split("=", 1)
                adapter(model_name=str(bge_small_en), **{key: ast.literal_eval(value)})


@each_readme
def test_the_error_table_has_every_error_and_what_it_derives_from(name: str) -> None:
    cells = [row[1] for row in table_with(name, "NaN" if name == ENGLISH else "模型输出 NaN")]
    pairs = [pair for cell in cells for pair in re.findall(r"`(\w+Error)`\s*[（(]`(\w+)`[)）]", cell)]
    current = {name for name in errors.__all__ if getattr(errors, name).__name__ == name}  # others are former names
    # Those two are only ever raised as one of their kinds.
    raised = {error for error in current if not error.endswith("Warning")} - {"BgeError", "InvalidInputError"}
    assert sorted(error for error, _ in pairs) == sorted(raised)
    for error, base in pairs:
        assert issubclass(getattr(errors, error), getattr(builtins, base))
        assert issubclass(getattr(errors, error), bge_integrations.BgeError)


@each_readme
def test_the_instruction_table_is_the_catalogues_byte_for_byte(name: str) -> None:
    said: dict[str, tuple[str, str]] = {}
    for row in table_with(name, "`bge-en-icl`"):
        texts = tuple(
            code_in(cell)[0].replace("\\n", "\n") if cell != "–" else ""
            for cell in row[1:]
            if "`" in cell or cell == "–"
        )
        if len(texts) == 2:
            said |= dict.fromkeys(_expanded(code_in(row[0])), (texts[0], texts[1]))
    assert said == {
        spec.name: (spec.query_template or spec.query_instruction, spec.passage_instruction)
        for spec in MODELS
        if spec.kind == "embedder"
    }


def test_llama_index_copies_a_splitter_without_its_tokenizer(bge_small_en: Path) -> None:
    """Why both READMEs say to split before a pipeline hands the work to other processes."""
    embed_model = HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu")
    encoder = embed_model.encoder
    sentences = SentenceSplitter(chunk_size=encoder.chunk_size, chunk_overlap=8, tokenizer=encoder.chunk_tokens)
    documents = [Document(text="Plants make sugar from light. " * 60)]
    copied = pickle.loads(pickle.dumps(sentences))  # as `IngestionPipeline.run(num_workers=2)` does
    cut = copied.get_nodes_from_documents(documents)
    assert encoder.count_tokens([node.get_content() for node in cut]).max() > encoder.max_length

    nodes = sentences.get_nodes_from_documents(documents)
    assert encoder.count_tokens([node.get_content() for node in nodes]).max() <= encoder.max_length
    embedded = pickle.loads(pickle.dumps(embed_model))(nodes)
    np.testing.assert_allclose(
        np.array([node.embedding for node in embedded], dtype=np.float32),
        reference_vectors(bge_small_en, [node.get_content() for node in nodes]),
        atol=1e-5,
    )


def test_documents_that_change_keep_their_vectors_by_the_remedy_named(make: MakeCheckpoint) -> None:
    """The rows of the migration table that name a setting in place of embedding again."""
    prompts = {"query": "query: ", "document": "passage: "}
    remedies: dict[Path, dict[str, Any]] = {
        make("a/bge-small-en", modules=("cls",)): {"encode_kwargs": {"normalize_embeddings": False}},
        make("llm-embedder", modules=("cls", "normalize")): {"embed_instruction": ""},
        make("another", modules=("mean", "normalize"), prompts=prompts): {"embed_instruction": ""},
    }
    for folder, remedy in remedies.items():
        # As the class that is replaced does.
        stored = SentenceTransformer(str(folder), device="cpu").encode(["lazy fox"])
        changed = HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_documents(["lazy fox"])
        kept = HuggingFaceBgeEmbeddings(model_name=str(folder), **remedy).embed_documents(["lazy fox"])
        assert np.abs(np.subtract(changed, stored)).max() > 1e-3
        np.testing.assert_allclose(kept, stored, atol=1e-5)


def _expanded(names: list[str]) -> list[str]:
    """`bge-{small,base}-en`, `-v1.5` as bge-small-en, bge-base-en and both with the suffix; `qa` is a task."""
    models: list[str] = []
    for name in names:
        if name.startswith("-"):
            models += [f"{model}{name}" for model in models]
        elif braces := re.search(r"\{(.*)\}", name):
            models += [name.replace(braces[0], size) for size in braces[1].split(",")]
        elif name != "qa":
            models.append(name)
    return models
