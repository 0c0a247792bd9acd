"""The benchmarks of distributed embedding: the arithmetic of machines, hours and cost, and the passages."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import corpus_cost, distributed
from benchmarks.corpus_cost import H100_CARD, L4_CARD, bill, estimate
from benchmarks.distributed import Clock, in_one_process, passages
from tests.checkpoints import reference_vectors

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "distributed.md"


def test_a_bill_adds_up() -> None:
    # 3.6e9 tokens at 10,000 a second are 100 hours: five machines are done within a day, in 20 hours each
    found = bill(36_000_000, 100, 10_000.0, price=2.5, within=24)
    assert (found.machine_hours, found.machines, found.hours, found.cost) == (100, 5, 20, 250)
    assert bill(10, 100, 10_000.0, price=1, within=24).machines == 1


def test_an_estimate_takes_the_smaller_of_two_ratios() -> None:
    assert estimate({"model": 3350.0}, L4_CARD, H100_CARD) == {"model": pytest.approx(300)}
    assert estimate({"model": 242.0}, L4_CARD, corpus_cost.Card(484, 300)) == {"model": pytest.approx(60.5)}


def test_the_guide_has_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    corpus_cost.main([])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 12
    assert printed in GUIDE.read_text(encoding="utf-8")


def test_prices_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    corpus_cost.main(["--price-h100", "20", "--within", "1"])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| bge-large-en | 1 H100")]
    assert row.endswith("| 1 × 0.47 h, $9.5 | 5 × 0.95 h, $95 | 48 × 0.99 h, $946 |")


def test_passages_are_distinct_and_always_the_same() -> None:
    found = passages(2000)
    assert len(set(found)) == 2000
    assert found == passages(2000)
    assert all(len(text.split()) <= 16 for text in found)
    with pytest.raises(ValueError, match=r"there are \d+ passages, not 1000000000000"):
        passages(10**12)


def test_one_process_embeds_everything(bge_small_en: Path) -> None:
    texts = passages(20)
    found = in_one_process(str(bge_small_en), texts, 1)
    np.testing.assert_allclose(found, reference_vectors(bge_small_en, texts), atol=1e-5)


def test_processor_time_of_other_processes_counts() -> None:
    work = "import time\nwhile time.process_time() < 1: pass\ninput()"
    with Clock() as clock:
        process = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while sum(psutil.Process(process.pid).cpu_times()[:2]) < 0.9 and time.monotonic() < deadline:
            time.sleep(0.05)
    process.communicate(b"\n")  # it still ran when the clock looked at it for the last time
    assert clock.processor_seconds >= 0.9
    assert clock.seconds > 0


def test_results_are_printed_and_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "HF_HUB_OFFLINE",
        "TQDM_DISABLE",
        "BGE_INTEGRATIONS_CACHE",
        "RAY_USAGE_STATS_ENABLED",
        "RAY_AUTH_TOKEN",
    ):
        monkeypatch.setenv(name, "1")  # given back what they were afterwards
    processor = {"processor_seconds": [7.5], "processor_ratio": 0.75}
    found: dict[str, Any] = {
        "cores": 2,
        "texts": {"texts": 1000, "mean": 19.0},
        "start_of_ray": 4.25,
        "largest_difference": 1.5e-7,
        "results": {
            "one process": {"seconds": [4.0], "tokens_per_s": 5000.0, "ratio": 1.0, "spread": 1.0, **processor},
            "Ray, 2 actors": {"seconds": [8.0], "tokens_per_s": 2500.0, "ratio": 0.5, "spread": 1.0, **processor},
        },
    }
    plans: list[distributed.Plan] = []

    def measured(plan: distributed.Plan) -> dict[str, Any]:
        plans.append(plan)
        return found

    monkeypatch.setattr(distributed, "measure", measured)
    file = tmp_path / "out" / "results.json"
    distributed.main(["--passages", "7", "--cores", "2", "--output", str(file), "--workdir", str(tmp_path)])
    assert (len(plans[0].texts), plans[0].actors, plans[0].cores) == (7, 2, 2)
    assert json.loads(file.read_text()) == found
    printed = capsys.readouterr().out
    assert "1,000 passages, mean 19.0 tokens, 2 cores" in printed
    (row,) = [line.split() for line in printed.splitlines() if "Ray, 2 actors" in line]
    assert row == ["Ray,", "2", "actors", "8.0", "2,500", "0.50", "1.00", "7.5", "0.75"]
    with pytest.raises(SystemExit):
        distributed.main(["--actors", "3", "--cores", "2", "--workdir", str(tmp_path)])
    assert "--actors 3 need as many cores" in capsys.readouterr().err
