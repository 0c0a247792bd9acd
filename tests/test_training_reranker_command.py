"""`bge train --reranker`: from rows to a reranker and a verdict."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bge_integrations import BgeEncoder, BgeReranker
from bge_integrations.cli import app
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation import RetrievalData, compare, evaluate_retrieval
from bge_integrations.training import load_training_data
from bge_integrations.training.verdict import held_out

_STEMS = ("fox", "dog", "sun", "sea", "oak", "ivy", "rye", "elm")
_ENDINGS = ("ly", "er", "ish", "ment", "dom", "hood", "ful", "ward", "ling", "able")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draws, words = random.Random(0), [f"{stem}{ending}" for stem in _STEMS for ending in _ENDINGS]
    lines = [
        {
            "query": f"about {word}",
            "pos": [f"{word} is {draws.choice(words)}"],
            "neg": [f"not {other}" for other in draws.sample(words, 3)],
        }
        for word in words
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def train(*arguments: object) -> Any:  # noqa: ANN401 - typer's result
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu"])


def test_an_embedder_becomes_a_reranker_that_is_compared_with_its_ranking(
    bge_small_en: Path, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    quick = ("--max-steps", 6, "--batch-size", 8, "--learning-rate", "1e-3", "--prepare", "float32")
    options = ("--reranker", "--embedder", bge_small_en, "--candidates", 20, "--easy-negatives", 0.5)
    done = train(rows, "--model", bge_small_en, "-o", output, *options, *quick, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["rows"], found["steps"]) == (64, 6)
    everything = load_training_data(rows)
    test = everything.split(by="passage", validation=0.1, test=0.1, seed=0).test
    assert test is not None
    data = held_out(test, everything)
    with BgeEncoder(bge_small_en, device="cpu") as encoder, BgeReranker(output, device="cpu") as reranker:
        before = evaluate_retrieval(encoder, data, depth=100)
        after = evaluate_retrieval(encoder, data, depth=100, reranker=reranker, rerank_depth=20)
    verdict = found["verdict"]
    assert verdict["before"] == pytest.approx(before.metrics, abs=1e-4)
    assert verdict["after"] == pytest.approx(after.metrics, abs=1e-4)
    assert verdict["comparison"]["interval"] == pytest.approx(list(compare(before, after).interval), abs=1e-4)
    reach = sum(any(id_ in list(before.run[query])[:20] for id_ in data.qrels[query]) for query in data.queries)
    assert verdict["reach"] == reach
    assert verdict["from_start"] is None
    assert verdict["probe"] is None
    assert f"among the candidates of {reach} of {len(data.queries)} questions" in verdict["words"]
    assert "embed the documents again" not in verdict["words"]
    assert verdict["words"] in (output / "README.md").read_text(encoding="utf-8")
    assert BgeReranker(found["prepared"]).score("about foxly", ["foxly is foxer"]).shape == (1,)


def test_a_reranker_is_also_compared_with_its_start(
    bge_small_en: Path, bge_reranker_base: Path, rows: Path, tmp_path: Path
) -> None:
    own = RetrievalData(
        {"q1": "about fox", "q2": "about sea"},
        {"d1": "a fox", "d2": "the sea", "d3": "an oak"},
        {"q1": {"d1": 1}, "q2": {"d2": 1}},
        {"q1": "land", "q2": "water"},
    ).save(tmp_path / "own")
    given = ("--validation", own, "--test", own, "--general", own)
    options = ("--reranker", "--embedder", bge_small_en, "--max-steps", 2, "--batch-size", 8)
    done = train(rows, "--model", bge_reranker_base, "-o", tmp_path / "out", *options, *given)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "ndcg@10 on the validation data" in said
    assert "embedder reranked" in said
    assert "the trained reranker" in said
    assert "the embedder's ranking" in said
    assert "the reranker that it was trained from" in said
    assert "ndcg@10, land" in said
    assert "General data: the trained reranker" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reranker"], "--reranker needs --embedder"),
        (["--embedder", "M"], "--embedder M finds candidates for a reranker"),
        (["--reranker", "--embedder", "M", "--temperature", "0.1"], "temperature=0.1 does not go with --reranker"),
        (["--reranker", "--embedder", "M", "--merge", "0.5"], "merge='0.5' does not go with a reranker"),
        (["--reranker", "--embedder", "M", "--pooling", "cls"], "pooling='cls' does not go with a reranker"),
        (["--reranker", "--embedder", "M", "--distil-from", "T"], "since a reranker has no vectors"),
        (["--reranker", "--embedder", "M", "--m3"], "--m3 and --reranker train models of different kinds"),
        (["--easy-negatives", "0.5"], "easy_negatives=0.5 is of rerankers; add --reranker"),
    ],
)
def test_options_that_do_not_fit_are_named(
    bge_small_en: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = train(rows, "--model", bge_small_en, "-o", tmp_path / "out", *arguments)
    assert isinstance(done.exception, SettingsError)
    assert said in str(done.exception)
