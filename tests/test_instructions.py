"""Which instruction goes on which side."""

from __future__ import annotations

import pytest

from bge_integrations.catalogue import MODELS, ModelSpec, find_model
from bge_integrations.catalogue.instructions import Instruction, Role, resolve_instruction
from bge_integrations.errors import SettingsError

EN = "Represent this sentence for searching relevant passages: "


def resolve(role: Role, model: str | None, explicit: str | None = None, task: str | None = None) -> Instruction:
    spec = find_model(model) if model else None
    assert model is None or spec is not None
    prompts = {"query": "saved query: ", "passage": "saved passage: "}
    return resolve_instruction(role, explicit=explicit, task=task, spec=spec, saved_prompts=prompts)


@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("version", ["", "-v1.5"])
def test_english_and_chinese_models_instruct_queries_only(size: str, version: str) -> None:
    assert resolve("query", f"BAAI/bge-{size}-en{version}") == Instruction(EN)
    assert resolve("query", f"BAAI/bge-{size}-zh{version}") == Instruction("为这个句子生成表示以用于检索相关文章：")
    for role in ("document", "symmetric"):
        assert resolve(role, f"BAAI/bge-{size}-en{version}") == Instruction()


@pytest.mark.parametrize("spec", [spec for spec in MODELS if spec.kind == "embedder"], ids=lambda spec: spec.model_id)
def test_an_explicit_instruction_wins_for_every_model(spec: ModelSpec) -> None:
    roles: tuple[Role, Role] = ("query", "document")
    for role in roles:
        assert resolve(role, spec.model_id, "mine: ") == Instruction("mine: ")
        assert resolve(role, spec.model_id, "") == Instruction()


def test_instruct_models_put_task_and_query_into_their_template() -> None:
    instruction = resolve("query", "BAAI/bge-multilingual-gemma2", task="Find {query} in code")
    assert instruction.apply("a {task} b") == "<instruct>Find {query} in code\n<query>a {task} b"
    assert resolve("query", "BAAI/bge-en-icl", task="T").apply("q") == "<instruct>T\n<query>q\n<response>"
    qwen = resolve("query", "BAAI/bge-reasoner-embed-qwen3-8b-0923", task="T")
    assert qwen.apply("q") == "Instruct: T\nQuery: q"
    assert resolve("document", "BAAI/bge-code-v1") == Instruction()


def test_instruct_models_have_a_task_of_their_own() -> None:
    applied = resolve("query", "BAAI/bge-multilingual-gemma2").apply("q")
    assert applied.startswith("<instruct>")
    assert len(applied) > len("<instruct>\n<query>q")


def test_llm_embedder_takes_a_pair_by_the_tasks_name() -> None:
    query = resolve("query", "BAAI/llm-embedder", task="qa").prefix
    document = resolve("document", "BAAI/llm-embedder", task="qa").prefix
    assert query == "Represent this query for retrieving relevant documents: "
    assert document == "Represent this document for retrieval: "
    with pytest.raises(SettingsError, match=r"task='cooking' is none of .*'qa'"):
        resolve("query", "BAAI/llm-embedder", task="cooking")


def test_other_models_take_their_saved_prompts() -> None:
    assert resolve("query", None) == Instruction("saved query: ")
    assert resolve("document", None) == Instruction("saved passage: ")
    assert resolve("symmetric", None) == Instruction()
    with pytest.raises(SettingsError, match="takes no task"):
        resolve("query", None, task="anything")
