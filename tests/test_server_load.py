"""A server under load from good and hostile clients: no wrong and no lost answer, and nothing stays behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import server_load
from benchmarks.server_clients import Question, Tally, read_answer
from benchmarks.server_load import Plan, own_command, run, started


def _rows(*rows: list[float]) -> bytes:
    return json.dumps([{"index": place, "score": score} for row in rows for place, score in enumerate(row)]).encode()


@pytest.mark.parametrize(
    ("status", "content", "right"),
    [(200, _rows([1.0, 2.0]), 1), (200, _rows([2.0, 1.0]), 0), (200, _rows([1.0]), 0), (500, b"{}", 0)],
)
def test_a_wrong_answer_is_counted(status: int, content: bytes, right: int) -> None:
    tally = Tally()
    tally.judge(Question(b"", np.array([1, 2], dtype=np.float32)), status, content)
    assert (tally.right, tally.wrong) == (right, 1 - right)


def test_answers_are_put_in_the_order_of_the_texts() -> None:
    content = b'[{"index": 1, "score": 0.5}, {"index": 0, "score": 0.25}]'
    assert read_answer(content).tolist() == [0.25, 0.5]


@pytest.mark.slow
def test_every_answer_is_right_beside_hostile_clients(bge_small_en: Path, bge_reranker_base: Path) -> None:
    plan = Plan(
        model=str(bge_small_en),
        reranker=str(bge_reranker_base),
        clients=16,
        seconds=8,
        slow=4,
        leaving=2,
        broken=1,
        huge=2,
        huge_bytes=40 * 10**6,
        connections=1000,
        questions=48,
    )
    with started(own_command(plan)) as server:
        found = run(plan, server)
    for tally in found["good"].values():
        assert tally["answers"] > 0
        assert (tally["wrong"], tally["lost"]) == (0, 0)
    assert found["hostile"]["connections dropped"] == 1000
    assert found["hostile"]["huge bodies, answered 413"] == 2
    assert {name for name in found["hostile"] if name.startswith("broken")} == {"broken JSON, answered 400"}
    assert found["hostile"]["left in the middle"] > 0
    assert not any(found["left"].values())
    assert found["memory"]["greatest"] < found["memory"]["first"] + 400


@pytest.mark.slow
def test_another_server_is_measured_in_turns(bge_small_en: Path, tmp_path: Path) -> None:
    # The other one is `bge serve` too.
    code = "from bge_integrations.cli import main; main()"
    command = f"{sys.executable} -c '{code}' serve --model {{model}} --name {{name}} --port {{port}}"
    output = tmp_path / "found.json"
    options = ["--model", str(bge_small_en), "--clients", "4", "--seconds", "1", "--rounds", "1"]
    server_load.main([*options, "--beside", command, "--output", str(output)])
    turns = json.loads(output.read_text(encoding="utf-8"))["turns"]
    assert set(turns) == {"bge serve", sys.executable}
    for (one,) in turns.values():
        assert one["answers"] > 0
        assert (one["wrong"], one["lost"]) == (0, 0)
