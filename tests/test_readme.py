"""What both READMEs say is so: their code runs as it stands, and their tables are the code's."""

from __future__ import annotations

import builtins
import dataclasses
import re
from pathlib import Path

import pytest

import bge_integrations
from bge_integrations import errors, find_model
from bge_integrations.settings import EncoderSettings
from tests.checkpoints import make_checkpoint

ROOT = Path(__file__).parent.parent
READMES = {"README.md": "BAAI/bge-small-en-v1.5", "README_zh.md": "BAAI/bge-small-zh-v1.5"}


def sections(name: str) -> list[str]:
    return re.split(r"^## .*\n", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)


def first_column(section: str) -> list[str]:
    return re.findall(r"^\| (.*?) \|", section, re.MULTILINE)


@pytest.mark.parametrize(("name", "model"), READMES.items())
def test_code_runs_as_it_stands(name: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A local folder comes before the hub, so that the snippets need no change to run here.
    make_checkpoint(tmp_path / model, modules=("cls", "normalize"))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    assert namespace["scores"].shape == (1, 2)  # type: ignore[attr-defined]
    assert len(namespace["found"]) == 1  # type: ignore[arg-type]


def test_both_languages_say_the_same() -> None:
    english, chinese = (sections(name) for name in READMES)
    assert len(english) == len(chinese)
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours.count("\n|") == theirs.count("\n|")
        assert re.findall(r"^```\w*", ours, re.MULTILINE) == re.findall(r"^```\w*", theirs, re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_the_settings_table_is_complete(name: str) -> None:
    (table,) = [section for section in sections(name) if "| `max_length` |" in section]
    listed = [re.findall(r"`(\w+)`", cell)[0] for cell in first_column(table) if cell.startswith("`")]
    assert listed == [f.name for f in dataclasses.fields(EncoderSettings)]


@pytest.mark.parametrize("name", READMES)
def test_the_errors_named_exist_and_derive_from_what_is_said(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    pairs = re.findall(r"`(\w+Error)`\s*[（(]`(\w+)`[)）]", text)
    assert len(pairs) >= 11
    for error, base in pairs:
        assert issubclass(getattr(errors, error), getattr(builtins, base))
        assert issubclass(getattr(errors, error), bge_integrations.BgeError)


@pytest.mark.parametrize("name", READMES)
def test_the_instructions_are_the_catalogues(name: str) -> None:
    (table,) = [section for section in sections(name) if "<instruct>" in section]
    rows = dict(re.findall(r"^\| `(bge-[^`]*|llm-embedder)`.*?\| [`–](.*?)`? \|", table, re.MULTILINE))
    for listed, model in {
        "bge-{small,base,large}-en": "bge-base-en-v1.5",
        "bge-{small,base,large}-zh": "bge-base-zh-v1.5",
        "bge-large-zh-noinstruct": "bge-large-zh-noinstruct",
        "llm-embedder": "llm-embedder",
        "bge-multilingual-gemma2": "bge-code-v1",
        "bge-en-icl": "bge-en-icl",
        "bge-reasoner-embed-qwen3-8b-0923": "bge-reasoner-embed-qwen3-8b-0923",
    }.items():
        spec = find_model(model)
        assert spec is not None
        assert rows[listed].replace("\\n", "\n") == (spec.query_template or spec.query_instruction)
