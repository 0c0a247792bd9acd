"""The benchmark of OpenVINO's operations: what it adds up and saves, never how fast that is."""

from __future__ import annotations

import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.operations import (
    ATTENTION,
    GELU,
    KINDS,
    MOVES,
    NORM,
    OTHERS,
    PRECISIONS,
    PRODUCTS,
    OperationClock,
    main,
    summarize,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A short run on the smallest shape."""
    file = tmp_path_factory.mktemp("operations") / "saved.json"
    main(["--shapes", "tiny", "--batches", "2x8", "--rounds", "2", "--output", str(file)])
    (found,) = json.loads(file.read_text(encoding="utf-8"))["shapes"]["tiny"]
    return dict(found)


def test_operations_are_added_up_by_kind() -> None:
    operations = {
        "a": ("FullyConnected", "brgemm", 9.0),
        "b": ("MVN", "jit", 1.0),
        "c": ("Add", "jit", 0.5),
        "d": ("Add", "reference", 0.25),
        "e": ("Gather", "reference", 0.125),
    }
    found = summarize(operations, 5.0)
    # Products get what the others leave of the processor time, since a busy machine made their own time longer.
    assert found["kinds"] == {PRODUCTS: 3.125, ATTENTION: 0.0, NORM: 1.75, GELU: 0.0, MOVES: 0.0, OTHERS: 0.125}
    assert found["operations"]["Add"] == {"ms": 0.75, "operations": 2, "kernels": ["jit", "reference"]}


def test_times_of_runs_come_from_means_of_all_runs() -> None:
    clock = OperationClock()
    # Runs of 9, 1, 2 and 8 ms, of which the first makes kernels; and an operation that only runs then.
    for mean in (9, 5, 4, 5):
        info: Any = SimpleNamespace(
            node_name="a", node_type="MVN", exec_type="jit", status="run", real_time=timedelta(milliseconds=mean)
        )
        info.Status = SimpleNamespace(EXECUTED="run")
        once = SimpleNamespace(**{**vars(info), "node_name": "b", "status": "run" if mean == 9 else "optimized"})
        clock.add([info, once])
    (found,) = clock.medians().items()
    assert found[:1] + found[1][:2] == ("a", "MVN", "jit")
    assert found[1][2] == pytest.approx(2.0)


def test_every_precision_has_its_kinds_and_its_part_of_the_limit(results: dict[str, Any]) -> None:
    assert (results["texts"], results["tokens"]) == (2, 8)
    assert tuple(results["results"]) == PRECISIONS
    assert all(tuple(one["kinds"]) == KINDS for one in results["results"].values())
    assert {name for name, one in results["results"].items() if one["achieved"]} == {"float32", "bfloat16"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_openvino_computes_biases_and_gelu_within_products_and_attention_at_once(
    results: dict[str, Any], precision: str
) -> None:
    operations = results["results"][precision]["operations"]
    assert results["results"][precision]["kinds"][GELU] == 0
    # Two layers: the last has six products, two of them for one row and by heads; the first has four.
    assert sum(operations[name]["operations"] for name in operations if name.startswith("FullyConnected")) == 8
    assert "Softmax" not in operations


def test_a_shape_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--shapes", "huge"])
    assert "'huge' is none of tiny, small-en" in capsys.readouterr().err
