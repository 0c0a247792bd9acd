"""The table of words beside OpenVINO's graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bge_integrations.backend.engines.openvino import words
from bge_integrations.backend.engines.openvino.words import WordTable

ROWS = np.random.default_rng(0).standard_normal((50, 24), dtype=np.float32)
IDS = np.array([[3, 49, 3], [0, 7, 1]], dtype=np.int32)


def test_long_tables_are_rounded_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WordTable.of(ROWS, int8=True)
    monkeypatch.setattr(words, "_ROUNDED_AT_ONCE", 7)
    np.testing.assert_array_equal(WordTable.of(ROWS, int8=True).stored, whole.stored)


@pytest.mark.parametrize("int8", [False, True])
def test_rows_are_the_same_after_saving(tmp_path: Path, int8: bool) -> None:
    made = WordTable.of(ROWS, int8=int8)
    made.save(tmp_path / "words.npy")
    for table in (made, WordTable.open(tmp_path / "words.npy")):
        rows = table.rows(IDS)
        assert rows.dtype == np.float32
        assert (len(table), table.width) == ROWS.shape
        np.testing.assert_array_equal(rows, made.rows(IDS))
        half_a_step = np.abs(ROWS[IDS]).max(axis=2, keepdims=True) / 254 * 1.0001 if int8 else 0
        assert (np.abs(rows - ROWS[IDS]) <= half_a_step).all()


def test_int8_takes_a_byte_a_number_on_disk(tmp_path: Path) -> None:
    for int8 in (False, True):
        WordTable.of(ROWS, int8=int8).save(tmp_path / f"{int8}.npy")
    assert (tmp_path / "False.npy").stat().st_size == 128 + 50 * 24 * 4
    assert (tmp_path / "True.npy").stat().st_size == 128 + 50 * (24 + 4)


def test_a_row_is_read_when_it_is_used(tmp_path: Path) -> None:
    WordTable.of(ROWS, int8=False).save(tmp_path / "words.npy")
    table = WordTable.open(tmp_path / "words.npy")
    np.save(tmp_path / "others.npy", -ROWS)
    with (tmp_path / "words.npy").open("r+b") as file:
        file.write((tmp_path / "others.npy").read_bytes())
    np.testing.assert_array_equal(table.rows(IDS), -ROWS[IDS])


def test_an_id_beyond_the_table_is_an_error() -> None:
    with pytest.raises(IndexError, match="50"):
        WordTable.of(ROWS, int8=False).rows(np.array([50], dtype=np.int32))
