"""The command `bge`, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bge_integrations import MODELS
from bge_integrations.cli import app


def bge(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("bge")), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "140", **environment},
    )


def test_models_prints_every_row() -> None:
    run = bge("models")
    assert run.returncode == 0
    for spec in MODELS:
        assert spec.model_id in run.stdout
    assert "64.20" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--kind", "base"], {"bge-m3-retromae"}),
        (["--language", "zh", "--kind", "reranker"], {"bge-reranker-base", "bge-reranker-large"}),
        (
            ["--language", "multilingual", "--kind", "embedder"],
            {"bge-m3", "bge-m3-unsupervised", "bge-multilingual-gemma2"},
        ),
    ],
)
def test_models_are_filtered(arguments: list[str], names: set[str]) -> None:
    result = CliRunner().invoke(app, ["models", *arguments, "--json"])
    assert {row["model_id"] for row in json.loads(result.stdout)} == {f"BAAI/{name}" for name in names}


def test_models_as_json_carry_the_instruction_to_the_letter() -> None:
    rows = {row["model_id"]: row for row in json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)}
    assert rows["BAAI/bge-small-en"]["query_instruction"] == "Represent this sentence for searching relevant passages: "
    assert rows["BAAI/bge-small-zh"]["query_instruction"] == "为这个句子生成表示以用于检索相关文章："
    assert (
        rows["BAAI/llm-embedder"]["task_instructions"]["tool"][1] == "Transform this tool description for retrieval: "
    )


@pytest.mark.parametrize("option", ["--kind", "--language"])
def test_an_unknown_filter_lists_the_known(option: str) -> None:
    run = bge("models", option, "klingon")
    assert run.returncode == 2
    assert "'klingon' is unknown; choose one of" in run.stderr


def test_models_load_neither_torch_nor_a_framework() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from bge_integrations.cli import app\n"
        "assert CliRunner().invoke(app, ['models']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'langchain_core', 'llama_index'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_info_tells_versions_devices_and_caches_but_no_token(tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--BAAI--bge-m3" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "weights").write_bytes(b"\0" * 2**20)
    run = bge("info", "--json", HF_HOME=str(tmp_path), HF_TOKEN="hf_secret")
    assert "hf_secret" not in run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["versions"]["sentence-transformers"].startswith("6.")
    assert "cpu" in told["devices"]
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert {"folder": str(tmp_path / "hub"), "exists": True, "models_mib": {"BAAI/bge-m3": 1.0}} in told["caches"]


def test_info_is_readable() -> None:
    run = bge("info")
    assert run.returncode == 0
    for part in ("versions", "torch", "devices", "cpu", "engines", "caches"):
        assert part in run.stdout


def test_version_is_the_packages() -> None:
    assert bge("--version").stdout.strip() == "0.1.0"


def test_an_error_is_one_message_and_not_a_traceback() -> None:
    run = bge("demo", "--model", "./no-such-folder", "--limit", "10")
    assert run.returncode == 1
    assert "There is no folder ./no-such-folder" in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr
