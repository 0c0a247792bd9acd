"""`bge train`: from rows to a folder and a verdict."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.backend.prepared.folder import PreparedFolder
from bge_integrations.cli import app
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.training import TrainingData, TrainingRow, load_training_data
from bge_integrations.training.verdict import held_out, judge, probe
from tests.checkpoints import make_checkpoint

_STEMS = ("fox", "dog", "sun", "sea", "oak", "ivy", "rye", "elm")
_ENDINGS = ("ly", "er", "ish", "ment", "dom", "hood", "ful", "ward", "ling", "able")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draws, words = random.Random(0), [f"{stem}{ending}" for stem in _STEMS for ending in _ENDINGS]
    lines = [
        {
            "query": f"about {word}",
            "pos": [f"{word} is {draws.choice(words)}"],
            "neg": [f"{other} is {draws.choice(words)}" for other in draws.sample(words, 2) if other != word],
        }
        for word in words
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def train(*arguments: object) -> Any:  # noqa: ANN401 - typer's result
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu"])


def test_rows_become_a_folder_and_a_verdict(bge_small_en: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    quick = ("--max-steps", 6, "--batch-size", 8, "--learning-rate", "1e-3", "--prepare", "float32")
    done = train(rows, "--model", bge_small_en, "-o", output, *quick, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["steps"]) == (64, 6)
    verdict = found["verdict"]
    everything = load_training_data(rows)
    test = everything.split(by="passage", validation=0.1, test=0.1, seed=0).test
    assert test is not None
    data = held_out(test, everything)
    for folder, side in ((bge_small_en, "before"), (output, "after")):
        expected = evaluate_retrieval(BgeEncoder(folder, device="cpu"), data, depth=100).metrics
        assert verdict[side] == pytest.approx(expected, abs=1e-4)
    assert 0 <= verdict["probe"]["neighbours"] <= 1
    assert "embed the documents again" in verdict["words"]
    assert verdict["words"] in (output / "README.md").read_text(encoding="utf-8")
    prepared = Path(found["prepared"])
    assert PreparedFolder.open(prepared).manifest.precision == "float32"
    one, other = (BgeEncoder(folder, device="cpu").encode_queries(["about fox"]) for folder in (output, prepared))
    np.testing.assert_allclose(one, other, atol=1e-5)
    again = train(rows, "--model", bge_small_en, "-o", output)
    assert isinstance(again.exception, SettingsError)
    assert "never overwritten" in str(again.exception)


@pytest.mark.slow
def test_several_processes_give_one_verdict(bge_small_en: Path, rows: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("bge")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", str(command)]
    options = ["--max-steps", "2", "--batch-size", "4", "--merge", "0.5", "--prepare", "float32", "--device", "cpu"]
    done = subprocess.run(
        [*launch, "train", str(rows), "--model", str(bge_small_en), "-o", str(tmp_path / "out"), *options, "--json"],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == 2
    assert found["verdict"]["words"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-float32", "rows.jsonl"]


def test_given_data_are_judged_by_and_shown(bge_small_en: Path, rows: Path, tmp_path: Path) -> None:
    own = RetrievalData(
        {"q1": "about fox", "q2": "about sea"},
        {"d1": "a fox", "d2": "the sea", "d3": "an oak"},
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
        {"q1": "land", "q2": "water"},
    ).save(tmp_path / "own")
    given = ("--validation", own, "--test", own, "--general", own)
    done = train(rows, "--model", bge_small_en, "-o", tmp_path / "out", "--max-steps", 2, "--batch-size", 8, *given)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert re.search(r"80 rows, 2 steps in \d+ s, loss \d+\.\d{4} at the end", said)
    assert re.search(r"ndcg@10 on the validation data: \d\.\d{4} \(step 2\); the model is that of step 2", said)
    assert "ndcg@10, land" in said
    assert "General data: the trained model" in said


def test_a_model_learns_from_another_and_is_merged_with_its_start(
    bge_small_en: Path, rows: Path, tmp_path: Path
) -> None:
    teacher = make_checkpoint(tmp_path / "teacher", modules=("cls", "normalize"), seed=9)
    output = tmp_path / "out"
    quick = ("--max-steps", 5, "--batch-size", 16, "--learning-rate", "5e-3", "--merge", "0.5, 0.9")
    done = train(rows, "--model", bge_small_en, "-o", output, "--distil-from", teacher, *quick, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["merged"]["figures"]) == {"0.5", "0.9", "1"}
    assert found["merged"]["share"] in (0.5, 0.9, 1)
    best = max(found["merged"]["figures"].values())
    assert found["merged"]["figures"][f"{found['merged']['share']:g}"] == best
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out", "teacher"]
    record = json.loads((output / "bge_training.json").read_text(encoding="utf-8"))
    assert record["distilled_from"] == "teacher"
    assert record["merged"][1]["weight"] == found["merged"]["share"]
    assert "verdict" in record
    texts = ["fox is dog", "sun is sea"]
    cosines = [
        float((BgeEncoder(folder, device="cpu").encode_documents(texts) * target).sum(1).mean())
        for target in [BgeEncoder(teacher, device="cpu").encode_documents(texts)]
        for folder in (bge_small_en, output)
    ]
    assert cosines[1] > cosines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--merge", "0.5,2"], "'2' is no share from 0 to 1"),
        (["--distil-from", "M", "--temperature", "0.1"], "does not go with distil_from='M'"),
    ],
)
def test_options_that_do_not_fit_are_named(
    bge_small_en: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = train(rows, "--model", bge_small_en, "-o", tmp_path / "out", *arguments)
    assert isinstance(done.exception, SettingsError)
    assert said in str(done.exception)


def test_held_out_questions_search_all_passages() -> None:
    rows = [TrainingRow(query=f"q{number}", pos=(f"p{number}",), neg=(f"n{number}",)) for number in range(6)]
    everything = TrainingData(rows, "rows")
    data = held_out(TrainingData(rows[:2], "part"), everything)
    assert len(data.queries) == 2
    assert set(data.corpus.values()) == {text for row in rows for text in (*row.pos, *row.neg)}


class TestProbe:
    def test_a_model_has_forgotten_nothing_of_itself(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, device="cpu", on_truncation="ignore")
        found = probe(encoder, encoder)
        assert found.neighbours == 1
        assert found.correlation == pytest.approx(1)
        assert not found.has_forgotten

    def test_another_model_is_told(self, bge_small_en: Path, tmp_path: Path) -> None:
        other = make_checkpoint(tmp_path / "other", modules=("cls", "normalize"), seed=9)
        own = RetrievalData({"q": "a fox"}, {"d": "the fox", "e": "a sea"}, {"q": {"d": 1}})
        found = judge(bge_small_en, other, own)
        assert found.probe is not None
        assert found.probe.has_forgotten
        assert "changed a lot" in found.in_words()
        assert "do not show that the training helped" in found.in_words()
