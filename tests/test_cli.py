"""The command `bge`, run as a user runs it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from bge_integrations import MODELS, BgeEncoder
from bge_integrations.backend.engines.openvino.engine import computes_bfloat16
from bge_integrations.catalogue.scores import published_scores, scored_models
from bge_integrations.cli import app, environment

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："


def bge(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTHONIOENCODING")}
    return subprocess.run(
        [str(Path(sys.executable).with_name("bge")), *arguments],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**inherited, "PYTHONUTF8": "1", **environment},
    )


@pytest.mark.parametrize("environment", [{"COLUMNS": "100"}, {}], ids=["in 100 columns", "in a pipe"])
def test_models_prints_one_uncut_line_for_each(environment: dict[str, str]) -> None:
    run = bge("models", folder=None, **environment)
    assert run.returncode == 0
    assert "…" not in run.stdout
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines[1 : len(MODELS) + 1]] == [spec.model_id for spec in MODELS]
    assert lines[9].split() == ["BAAI/bge-large-zh", "embedder", "zh", "b", "1024", "512", "326", "M", "64.20"]
    assert all(len(line) <= 100 for line in lines[: len(MODELS) + 1])


def test_models_prints_each_instruction_once_and_whole() -> None:
    lines = bge("models", COLUMNS="100").stdout.splitlines()
    assert f"  a  {EN!r}" in lines
    assert f"  b  {ZH!r}" in lines
    assert r"  e  '<instruct>{task}\n<query>{query}\n<response>'" in lines


def test_models_are_printed_where_chinese_can_not_be() -> None:
    run = bge("models", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (run.returncode, run.stderr) == (0, "")
    assert "BAAI/bge-reranker-v2.5-gemma2-lightweight" in run.stdout
    run = bge("models", "--json", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert [row["query_instruction"] for row in json.loads(run.stdout) if row["model_id"] == "BAAI/bge-base-zh"] == [ZH]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--kind", "base"], ["bge-m3-retromae"]),
        (["--language", "zh", "--kind", "reranker"], ["bge-reranker-base", "bge-reranker-large"]),
        (
            ["--language", "multilingual", "--kind", "embedder"],
            ["bge-m3", "bge-m3-unsupervised", "bge-multilingual-gemma2"],
        ),
    ],
)
def test_models_are_filtered(arguments: list[str], names: list[str]) -> None:
    result = CliRunner().invoke(app, ["models", *arguments, "--json"])
    assert {row["model_id"] for row in json.loads(result.stdout)} == {f"BAAI/{name}" for name in names}


def test_models_as_json_carry_the_instruction_to_the_letter() -> None:
    rows = {row["model_id"]: row for row in json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)}
    assert rows["BAAI/bge-small-en"]["query_instruction"] == EN
    assert rows["BAAI/bge-small-zh"]["query_instruction"] == ZH
    assert (
        rows["BAAI/llm-embedder"]["task_instructions"]["tool"][1] == "Transform this tool description for retrieval: "
    )


@pytest.mark.parametrize("option", ["--kind", "--language"])
def test_an_unknown_filter_lists_the_known(option: str) -> None:
    run = bge("models", option, "klingon")
    assert run.returncode == 2
    assert "'klingon' is unknown; choose one of" in run.stderr


def test_published_scores_are_shown_in_100_columns() -> None:
    run = bge("models", "--scores", COLUMNS="100")
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    english, chinese = lines.index("MTEB(eng, v1): 56 tasks"), lines.index("MTEB(cmn, v1): 31 tasks")
    assert lines[english + 1].split()[:3] == ["model", "mean", "retrieval"]
    row = ["BAAI/bge-large-en", "63.98", "53.90", "46.98", "85.80", "59.48", "81.56", "32.06", "76.21"]
    assert row in [line.split() for line in lines[english:chinese]]
    row = ["BAAI/bge-small-zh", "58.27", "63.07", "46.87", "70.36", "67.78", "61.48", "45.09"]
    assert row in [line.split() for line in lines[chinese:]]
    assert "tasks with published scores of BAAI/bge-m3: 18 of 56 in MTEB(eng, v1), 5 of 31 in MTEB(cmn, v1)" in lines
    assert "source: https://github.com/embeddings-benchmark/results, CC0-1.0" in lines


def test_published_scores_lose_the_organisation_where_there_is_no_room() -> None:
    lines = bge("models", "--scores", COLUMNS="80").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("all-MiniLM-L6-v2  56.10") for line in lines)


def test_published_scores_as_json_have_every_task_of_every_model() -> None:
    content = json.loads(CliRunner().invoke(app, ["models", "--scores", "--json"]).stdout)
    assert set(content["models"]) == set(scored_models())
    for model, found in content["models"].items():
        assert found["scores"] == published_scores(model)
        assert found["main_scores"] == published_scores(model, metric="main")
        assert found["source"]["repository"] == "https://github.com/embeddings-benchmark/results"
    means = content["models"]["BAAI/bge-large-en"]["averages"]["MTEB(eng, v1)"]
    assert (round(means["overall"], 2), round(means["groups"]["Retrieval"], 2), means["missing"]) == (63.98, 53.9, [])
    assert set(content["models"]["BAAI/bge-m3"]["averages"]) == {"MTEB(eng, v1)", "MTEB(cmn, v1)"}
    assert content["models"]["BAAI/bge-m3"]["averages"]["MTEB(eng, v1)"]["overall"] is None
    assert len(content["benchmarks"]["MTEB(cmn, v1)"]["groups"]["Retrieval"]) == 8


@pytest.mark.parametrize(
    ("arguments", "count", "said"),
    [
        (["--language", "zh"], 7, "the Chinese v1.5 models, which count 35 tasks: 57.82, 63.13, 64.53"),
        (["--language", "en"], 7, "sentence-transformers/all-MiniLM-L6-v2"),
        (["--language", "multilingual"], 1, "tasks with published scores of BAAI/bge-m3: 18 of 56"),
        (["--kind", "reranker"], 0, "none of these models has published scores here"),
    ],
)
def test_published_scores_are_filtered(arguments: list[str], count: int, said: str) -> None:
    content = json.loads(CliRunner().invoke(app, ["models", "--scores", "--json", *arguments]).stdout)
    assert len(content["models"]) == count
    shown = CliRunner().invoke(app, ["models", "--scores", *arguments]).stdout  # as wide as `COLUMNS` says
    assert said in " ".join(shown.split())


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"], ["models", "--scores"], ["--version"]])
def test_models_and_version_load_neither_torch_nor_a_framework(arguments: list[str]) -> None:
    command = Path(sys.executable).with_name("bge")
    run = subprocess.run(
        [sys.executable, "-X", "importtime", str(command), *arguments],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in run.stderr.splitlines()}
    assert "bge_integrations" in loaded
    heavy = {"torch", "numpy", "transformers", "huggingface_hub", "sentence_transformers", "openvino"}
    assert not loaded & (heavy | {"langchain_core", "llama_index"})


def test_info_tells_versions_devices_and_caches_but_no_token(tmp_path: Path) -> None:
    linked, copied = (tmp_path / "hub" / f"models--BAAI--{name}" for name in ("bge-m3", "bge-base-en"))
    for folder in (linked / "blobs", linked / "snapshots" / "c0ffee", copied / "snapshots" / "c0ffee"):
        folder.mkdir(parents=True)
    (linked / "blobs" / "1234").write_bytes(b"\0" * 2**20)
    (linked / "snapshots" / "c0ffee" / "model.safetensors").symlink_to("../../blobs/1234")
    (copied / "snapshots" / "c0ffee" / "model.safetensors").write_bytes(b"\0" * 2**21)  # as where links don't work
    graphs = tmp_path / "cache" / "graphs"
    for name in ("one", "two"):
        (graphs / name).mkdir(parents=True)
        (graphs / name / "bge.json").touch()
        (graphs / name / "model.bin").write_bytes(b"\0" * 2**19)
    (graphs / "one.lock").touch()
    variables = {"HF_HOME": str(tmp_path), "BGE_INTEGRATIONS_CACHE": str(tmp_path / "cache"), "HF_TOKEN": "hf_secret"}
    variables |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    run = bge("info", "--json", folder=None, **variables)
    assert "hf_secret" not in run.stdout + run.stderr
    told = json.loads(run.stdout)
    assert told["versions"]["sentence-transformers"].startswith("6.")
    assert "cpu" in told["devices"]
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    models = {"BAAI/bge-m3": 1.0, "BAAI/bge-base-en": 2.0}
    hub = {"folder": str(tmp_path / "hub"), "exists": True, "symlinks": True, "models_mib": models}
    assert hub in told["caches"]
    assert sorted(os.listdir(tmp_path / "hub")) == [copied.name, linked.name]  # what was tried there is gone
    assert told["machine"]["memory_gib"] > 0
    assert told["threads"] == {"usable cores": told["machine"]["cores"], "OMP_NUM_THREADS": 1}
    assert told["temporary_files"]["folder"] == str(tmp_path)
    assert told["temporary_files"]["free_gib"] > 0
    assert told["graph_cache"] == {"folder": str(graphs), "exists": True, "entries": 2, "mib": 1.0}


def test_info_offers_of_each_engine_what_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_devices", lambda: ["cpu"])
    engines = environment.describe()["engines"]
    assert engines["torch"] == engines["sentence-transformers"] == "cpu: float32, bfloat16, float16"
    assert engines["openvino"].startswith("cpu: float32")
    assert ("bfloat16" in engines["openvino"]) == computes_bfloat16()
    monkeypatch.setattr(environment, "available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "a GPU")
    both = "cuda: float32, bfloat16, float16; cpu: float32, bfloat16, float16"
    assert environment.describe()["engines"]["torch"] == both


@pytest.mark.parametrize(("refused", "works"), [("symlink", False), ("mkdir", None)])
def test_info_says_where_symlinks_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, works: bool | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("a required privilege is not held by the client")

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(environment, "_cache_folders", lambda: [tmp_path / "hub", tmp_path / "missing"])
    monkeypatch.setattr(os, refused, refuse)
    told = [environment._cache(folder)["symlinks"] for folder in environment._cache_folders()]
    assert told == [works, None]
    assert sorted(os.listdir(tmp_path)) == ["hub"]


def test_info_says_where_there_is_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    shown = environment._temporary_files()
    assert shown == {"folder": None, "free_gib": None, "problem": "No usable temporary directory found"}


def test_info_is_readable() -> None:
    run = bge("info")
    assert run.returncode == 0
    for part in ("versions", "torch", "devices", "cpu", "engines", "caches", "threads", "memory", "GiB free"):
        assert part in run.stdout


def test_version_is_the_packages() -> None:
    assert bge("--version").stdout.strip() == importlib.metadata.version("bge-integrations")


def test_an_error_is_one_unbroken_message_and_not_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "a folder of a long name that isn't there [at all]" / "model"
    run = bge("demo", "--model", str(missing), "--limit", "100")
    assert run.returncode == 1
    assert f"bge: There is no folder {str(missing)!r} " in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize(
    "command", ["", "models", "info", "demo", "prepare", "bench", "mteb", "mine", "make-queries", "improve", "serve"]
)
def test_help_is_whole(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = CliRunner().invoke(app, [*filter(None, [command]), "--help"], prog_name="bge").stdout
    assert max(map(len, shown.splitlines())) <= columns
    words = shown.split()
    root = get_command(app)
    commands = getattr(root, "commands")  # noqa: B009 - of a group, which typer doesn't say that it returns
    its = commands[command] if command else root
    expected = [its.help, *(getattr(parameter, "help", "") for parameter in its.params)]
    if not command:
        expected += [one.help for one in commands.values()]
    for text in expected:
        assert text
        for word in text.split():
            assert any(word in other for other in words), word
    for parameter in its.params:
        if parameter.param_type_name == "option":
            assert set(parameter.opts) <= {word.rstrip(",") for word in words}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "place"),
    [(["prepare", "-o", "made"], "MODEL"), (["bench"], "MODEL"), (["demo", "--model"], "--model")],
    ids=["prepare", "bench", "demo"],
)
def test_a_misspelt_model_is_an_error_in_the_commands_own_words(
    arguments: list[str], place: str, tmp_path: Path
) -> None:
    misspelt = "BAAI/bge-smal-en-v1.5"
    run = bge(*arguments, misspelt, folder=tmp_path, HF_HOME=str(tmp_path), COLUMNS="80")
    assert (run.returncode, run.stdout) == (1, "")
    assert all(len(line) <= 80 or len(line.split()) == 1 for line in run.stderr.splitlines())
    message = " ".join(run.stderr.split())
    assert message.startswith("bge: ")
    assert f"{misspelt} is not in the cache {tmp_path / 'hub'}" in message
    assert "Did you mean 'BAAI/bge-small-en-v1.5'?" in message
    assert f"give its path as {place};" in message
    assert "--cache-folder" in message
    assert "model_name" not in message
    assert "cache_folder" not in message
    assert "Traceback" not in message


def test_a_model_is_found_in_the_cache_folder_named_and_its_warning_names_an_option(
    bge_small_en: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "cache" / "models--me--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(bge_small_en, snapshot, ignore=shutil.ignore_patterns("modules.json", "1_Pooling", "README.md"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    options = ["--cache-folder", str(tmp_path / "cache"), "--local-files-only"]
    run = bge("prepare", "me/tiny", "-o", "made", *options, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "made: me/tiny in float32" in run.stdout
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("bge: The pooling of me/tiny is unknown")
    assert "--pooling cls" in run.stderr


class TestPrepare:
    def test_makes_a_folder_and_says_how_to_use_it(self, bge_small_en: Path, tmp_path: Path) -> None:
        run = bge("prepare", str(bge_small_en), "-o", "made", "--precision", "int8", folder=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "made: bge-small-en-v1.5 in int8" in run.stdout
        assert "agreement with float32 on 50 texts: mean cosine" in run.stdout
        assert "use it with model_name='made'" in run.stdout
        assert BgeEncoder(tmp_path / "made").backend.request.precision == "int8"

    def test_takes_own_calibration_texts_and_tells_all_as_json(self, bge_small_en: Path, tmp_path: Path) -> None:
        (tmp_path / "texts.txt").write_text("\n".join(f"lazy fox {number}" for number in range(20)))
        options = ["--precision", "int8", "--quantization", "static", "--calibration", "texts.txt", "--json"]
        run = bge("prepare", str(bge_small_en), "-o", "made", *options, folder=tmp_path)
        assert run.returncode == 0, run.stderr
        manifest = json.loads(run.stdout)
        assert (manifest["quantization"], manifest["calibration_texts"]) == ("static", 16)

    def test_refuses_what_it_cant_make(self, bge_small_en: Path, tmp_path: Path) -> None:
        run = bge("prepare", str(bge_small_en), "-o", "made", "--precision", "int4", folder=tmp_path)
        assert run.returncode == 1
        assert run.stderr.startswith("bge: --precision int4 can't be prepared; choose one of 'float32'")
        run = bge("prepare", str(bge_small_en), "-o", "", folder=tmp_path)
        assert run.stderr == "bge: --output '' names no folder; give one, or '.' for the current folder.\n"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bench_compares_what_runs_here_and_recommends(bge_small_en: Path) -> None:
    run = bge("bench", str(bge_small_en), "--seconds", "2", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    ran = {(row["combination"]["engine"], row["combination"]["precision"]) for row in report["measured"]}
    named = ran | {tuple(name.split(" ")[:2]) for name in report["left_out"]}
    assert ran
    assert len(named) >= 3
    not_loaded = {(one["engine"], one["precision"]) for one in report["not_loaded"]}
    assert not not_loaded & ran
    assert ("torch", "int8") not in not_loaded  # for which no time would be enough
