"""`bge pretrain`: from texts to a folder that `bge train` starts from."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from bge_integrations import find_model
from bge_integrations.cli import app
from bge_integrations.errors import SettingsError, TrainingDataError

_WORDS = ("fox", "dog", "sun", "sea", "oak", "ivy", "rye", "elm")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    draws = random.Random(0)
    file = tmp_path / "texts.jsonl"
    rows = [{"text": " ".join(draws.choices(_WORDS, k=draws.randint(5, 40)))} for _ in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def bge(*arguments: object) -> Any:  # noqa: ANN401 - typer's result
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def test_texts_become_a_folder_that_is_trained_further(bge_small_en: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "pretrained"
    quick = ("--max-steps", 20, "--batch-size", 8, "--learning-rate", "3e-3", "--length", 16, "--keep-head")
    done = bge("pretrain", texts, "--model", bge_small_en, "-o", output, *quick, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["output"] == str(output)
    assert (found["texts"], found["steps"]) == (40, 20)
    assert found["pieces"] > 40
    assert found["loss"][1] < found["loss"][0]
    settings = json.loads((output / "bge_training.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["length"], settings["batch_size"], settings["learning_rate"]) == (16, 8, 3e-3)
    assert (settings["encoder_masking"], settings["decoder_masking"], settings["save_every"]) == (0.3, 0.5, 500)
    assert not AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)[1]["missing_keys"]
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": f"about {word}", "pos": [f"{word} is"], "neg": ["nothing"]}) for word in _WORDS]
    rows.write_text("\n".join(lines), encoding="utf-8")
    trained = bge("train", rows, "--model", output, "-o", tmp_path / "tuned", "--max-steps", 1, "--json")
    assert trained.exit_code == 0, trained.output
    spec = find_model(tmp_path / "tuned")
    assert spec is not None
    assert spec.model_id == "BAAI/bge-small-en-v1.5"


def test_options_reach_the_settings_and_the_summary_is_told(bge_small_en: Path, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "pretrained"
    options = ("--epochs", 0.5, "--encoder-masking", 0.2, "--decoder-masking", 0.7, "--save-every", 7, "--seed", 5)
    done = bge("pretrain", texts, "--model", bge_small_en, "-o", output, "--batch-size", 10, *options)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    number = r"\d+\.\d\d"
    assert re.search(
        rf"40 texts in \d+ pieces of [\d,]+ tokens, 3 steps in \d+ s, loss {number} at the beginning and {number} at",
        said,
    )
    assert "The vectors are not useful yet" in said
    settings = json.loads((output / "bge_training.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["encoder_masking"], settings["decoder_masking"]) == (0.2, 0.7)
    assert (settings["save_every"], settings["seed"], settings["epochs"]) == (7, 5, 0.5)
    again = bge("pretrain", texts, "--model", bge_small_en, "-o", output)
    assert isinstance(again.exception, SettingsError)
    assert "never overwritten" in str(again.exception)


def test_faults_are_named(bge_small_en: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"txt": "b"}', encoding="utf-8")
    done = bge("pretrain", bad, "--model", bge_small_en, "-o", tmp_path / "out")
    assert isinstance(done.exception, TrainingDataError)
    assert "line 2: text is None" in str(done.exception)
    done = bge("pretrain", bad, "--model", bge_small_en, "-o", tmp_path / "out", "--decoder-masking", "1.5")
    assert isinstance(done.exception, SettingsError)
