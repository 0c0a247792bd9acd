"""The benchmark of reranking, on tiny weights: everybody scores the same, and wrong scores are found out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import reranking
from benchmarks.reranking import Contender, main, measure
from benchmarks.shapes import reranker_checkpoint

OURS = ["bge-openvino-float32", "bge-llama-index-openvino-float32", "bge-openvino-int8", "bge-torch-float32"]
THEIRS = ["sentence-transformers", "llama-index", "langchain"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries compared, about themselves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reranker."""
    return reranker_checkpoint("tiny", tmp_path_factory.mktemp("work"))


def _run(folder: Path, tmp_path: Path, names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
        monkeypatch.setenv(name, "1")  # given back what they were afterwards
    file = tmp_path / "results.json"
    options = ["--model", str(folder), "--passages", "8", "--rounds", "2", "--warm-up", "0", "--output", str(file)]
    main([*options, "--workdir", str(tmp_path), "--contenders", ",".join(names)])
    return json.loads(file.read_text())


@pytest.mark.slow
def test_everybody_scores_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _run(folder, tmp_path, [*THEIRS, *OURS], monkeypatch)
    assert found["left_out"] == {}
    assert set(found["results"]) == {*THEIRS, *OURS}
    for name, result in found["results"].items():
        assert len(result["seconds"]) == 2
        assert result["error"] < (0.1 if "int8" in name else 1e-5)
        assert result["ratio"] > 0
    assert found["results"]["sentence-transformers"]["ratio"] == 1
    assert str(tmp_path) not in json.dumps(found)
    printed = capsys.readouterr().out
    assert all(name in printed for name in found["results"])
    assert "8 passages a query" in printed


def test_who_scores_otherwise_or_fails_is_left_out(folder: Path) -> None:
    def load_wrong(_: Path) -> reranking.Score:
        return lambda _, passages: [float(len(passage)) for passage in passages]

    def load_nothing(_: Path) -> reranking.Score:
        raise ValueError("no such thing")

    contenders = [
        next(contender for contender in reranking.CONTENDERS if contender.name == "bge-openvino-float32"),
        Contender("wrong", "float32", load_wrong),
        Contender("missing", "float32", load_nothing),
    ]
    found = measure(folder, contenders, passages=6, rounds=1, warm_up=0, tell=lambda _: None)
    assert list(found["results"]) == ["bge-openvino-float32"]
    assert found["results"]["bge-openvino-float32"]["ratio"] is None  # the reference did not take part
    assert found["left_out"]["wrong"].startswith("gives other scores than sentence-transformers")
    assert found["left_out"]["missing"] == "ValueError: no such thing"


def test_an_unknown_contender_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--contenders", "nobody"])
    assert "there is no contender nobody" in capsys.readouterr().err
