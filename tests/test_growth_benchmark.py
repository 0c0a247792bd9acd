"""The benchmark of how cost grows, on a little of everything: what it computes and saves, never how fast that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth
from benchmarks.fresh import own_memory_mib
from benchmarks.growth import FILE, IN_ARRAY, IN_FILE, IN_MEMMAP, LISTS, PARTS, PROFILES, fits, short_texts, text_of
from benchmarks.growth_report import write_markdown
from benchmarks.stats import growth_exponent
from bge_integrations import BgeEncoder

_ENVIRONMENT = ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run."""
    place = tmp_path_factory.mktemp("growth")
    with pytest.MonkeyPatch.context() as patch:
        for name in _ENVIRONMENT:
            patch.setenv(name, "")  # so that it is given back
        growth.main(["--profile", "quick", "--output", str(place / "saved"), "--workdir", str(place)])
    return place / "saved"


@pytest.fixture
def results(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((saved / "growth.json").read_text(encoding="utf-8"))
    return found


def test_every_part_has_its_points(results: dict[str, Any]) -> None:
    quick = PROFILES["quick"]
    assert [row["texts"] for row in results["texts"]] == list(quick.counts)
    assert [row["tokens"] for row in results["length"]] == list(quick.lengths)
    assert [row["threads"] for row in results["threads"]] == list(quick.threads)
    assert [row["texts"] for row in results["memory"]] == list(quick.memory)
    assert [LISTS in row["ways"] for row in results["texts"]] == [True, True, False]
    assert all(set(row["ways"]) == {IN_ARRAY, IN_MEMMAP, IN_FILE} for row in results["memory"])
    assert all(way["resident_mib"] > way["own_mib"] for row in results["memory"] for way in row["ways"].values())


def test_operations_are_counted_by_arithmetic(results: dict[str, Any]) -> None:
    assert results["length"][0]["flops"] == 8 * 2 * (24 * 64**2 + 4 * 64 * 8)


def test_the_tables_and_the_chart_are_saved(saved: Path, results: dict[str, Any]) -> None:
    written = (saved / "growth.md").read_text(encoding="utf-8")
    assert written.count("\n## ") == 5
    for name, value in results["fits"].items():
        assert f"| {name} | {value:.2f} |" in written
    assert (saved / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_a_saved_run_can_be_drawn_again_also_in_part(
    saved: Path, results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growth.main(["--draw", str(saved / "growth.json"), "--output", str(tmp_path)])
    for name in ("growth.json", "growth.md"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes()
    assert "ms a query" in capsys.readouterr().out
    files = [tmp_path / f"{part}.json" for part in PARTS]
    for part, file in zip(PARTS, files, strict=True):
        one = {key: value for key, value in results.items() if key == part or key not in PARTS}
        file.write_text(json.dumps(one), encoding="utf-8")
    growth.main(["--draw", str(files[0]), "--output", str(tmp_path / "one")])
    assert (tmp_path / "one/growth.md").read_text(encoding="utf-8").count("\n## ") == 2
    growth.main(["--draw", *map(str, files), "--output", str(tmp_path / "all")])
    assert (tmp_path / "all/growth.md").read_bytes() == (saved / "growth.md").read_bytes()


@pytest.mark.parametrize(("load", "shown"), [(0.1, True), (None, True), (3.0, False)])
def test_a_busy_machine_gives_no_times_by_the_clock(
    results: dict[str, Any], tmp_path: Path, load: float | None, shown: bool
) -> None:
    write_markdown({**results, "load": load}, tmp_path / "growth.md")
    written = (tmp_path / "growth.md").read_text(encoding="utf-8")
    assert (f"| {results['threads'][0]['per_s']:,.0f} |" in written) is shown
    assert ("Other programs used the machine" in written) is not shown


def test_exponents_are_those_of_the_lines() -> None:
    sizes = [1, 10, 1000]
    assert growth_exponent(sizes, [7 * size for size in sizes]) == pytest.approx(1)
    assert growth_exponent(sizes, [0.2 * size**2 for size in sizes]) == pytest.approx(2)
    assert growth_exponent(sizes, [5, 5, 5]) == pytest.approx(0)
    results = {
        "texts": [{"texts": 10**n, "ways": {FILE: {"processor_median": max(1, 10**n)}}} for n in range(2, 7)],
        "memory": [
            {"texts": n, "ways": {way: {"own_mib": 1 + n / 2**20} for way in (IN_ARRAY, IN_MEMMAP, IN_FILE)}}
            for n in (1000, 5000)
        ],
    }
    found = fits(results)
    assert found.pop(f"{FILE}: time against texts, from 1,000 on") == pytest.approx(1)
    assert found == {f"{way}: bytes of memory a text": pytest.approx(1) for way in (IN_ARRAY, IN_MEMMAP, IN_FILE)}


def test_texts_are_distinct_and_as_long_as_asked_for(minilm: str) -> None:
    texts = list(short_texts(1000))
    assert len(set(texts)) == 1000
    assert texts == list(short_texts(1000))
    with BgeEncoder(minilm, on_truncation="ignore") as encoder:
        assert encoder.count_tokens([text_of(tokens, 7) for tokens in (8, 64, 8192)]).tolist() == [8, 64, 8192]


def test_own_memory_leaves_mapped_files_out(tmp_path: Path) -> None:
    size = 64 << 20
    before = own_memory_mib()
    mapped = np.memmap(tmp_path / "file", mode="w+", shape=size, dtype=np.uint8)
    mapped[:] = 1
    after_file = own_memory_mib()
    taken = np.ones(size, dtype=np.uint8)
    assert own_memory_mib() - after_file > 60
    assert after_file - before < 30
    assert taken[-1] == mapped[-1]
