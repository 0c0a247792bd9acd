"""Corpora in all formats become the same folder of shards, with the vectors that the model gives."""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.backend.guarantees.files import own_name
from bge_integrations.cli.app import app
from bge_integrations.corpus import embed_corpus, files, job
from bge_integrations.corpus.files import Claims
from bge_integrations.corpus.plan import OWN_FOLDER
from bge_integrations.corpus.shards import ShardFile
from bge_integrations.errors import CorpusDataError, CorpusWriteError, SettingsError, TruncationError
from bge_integrations.fingerprint import Fingerprint
from tests.checkpoints import reference_vectors
from tests.corpora import digests, rows_of, some_texts, write_lines

pytestmark = pytest.mark.usefixtures("kept_small_en")


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """150 rows, 100 of them different."""
    rows = ({"_id": f"d{n}", "text": text, "page": n} for n, text in enumerate(some_texts(150, 100)))
    return write_lines(tmp_path / "lines.jsonl", rows)


def with_rows(path: Path, *rows: str) -> Path:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{row}\n" for row in rows)
    return path


class TestOutput:
    def test_shards_have_the_rows_in_their_order_and_the_models_vectors(
        self, lines: Path, encoder: BgeEncoder, bge_small_en: Path, tmp_path: Path
    ) -> None:
        report = embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=40)
        rows = rows_of(tmp_path / "out")
        texts = some_texts(150, 100)
        assert [row["id"] for row in rows] == [f"d{n}" for n in range(150)]
        assert [row["text"] for row in rows] == texts
        assert [row["page"] for row in rows] == list(range(150))
        assert [row["text_sha256"] for row in rows] == [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
        np.testing.assert_allclose(vectors, reference_vectors(bge_small_en, texts), atol=1e-5)
        assert (report.rows, report.texts, report.computed, report.shards, report.rejected) == (150, 100, 100, 4, 0)
        assert report.tokens == encoder.count_tokens(texts[:100]).sum()

    def test_equal_texts_have_equal_vectors_and_are_computed_once(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path
    ) -> None:
        before = encoder.stats().texts
        embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=40)
        assert encoder.stats().texts - before - 100 <= 8  # the probes of the fingerprint
        rows = rows_of(tmp_path / "out")
        assert all(rows[n]["vector"] == rows[n + 100]["vector"] for n in range(50))

    def test_readers_of_folders_find_only_the_shards(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        embed_corpus(with_rows(lines, "{"), tmp_path / "out", encoder, rows_per_shard=40, reject=True)
        table = dataset.dataset(tmp_path / "out", format="parquet").to_table()
        assert table.num_rows == 150
        assert table.schema.field("vector").type == pa.list_(pa.field("element", pa.float32(), False), 32)

    def test_the_schema_has_the_fingerprint(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        embed_corpus(lines, tmp_path / "out", encoder)
        metadata = parquet.read_schema(tmp_path / "out" / "part-000000.parquet").metadata
        found = Fingerprint.from_json(metadata[b"bge_fingerprint"].decode())
        assert found.compare(encoder.fingerprint()).state == "equal"

    def test_the_manifest_counts_and_has_the_digest_of_every_shard(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path
    ) -> None:
        embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=100)
        manifest = json.loads((tmp_path / "out" / "_corpus" / "manifest.json").read_text())
        assert (manifest["rows"], manifest["texts"], manifest["rejected"]) == (150, 100, 0)
        found = digests(tmp_path / "out")
        assert [shard["sha256"] for shard in manifest["shards"]] == [
            found["part-000000.parquet"],
            found["part-000001.parquet"],
        ]
        assert sorted(found) == [
            "_corpus/lookup.sqlite",
            "_corpus/manifest.json",
            "part-000000.parquet",
            "part-000001.parquet",
        ]

    def test_float16_halves_the_vectors(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        embed_corpus(lines, tmp_path / "whole", encoder)
        embed_corpus(lines, tmp_path / "half", encoder, dtype="float16")
        whole = ShardFile(tmp_path / "whole" / "part-000000.parquet", 32, "float32").all()
        half = ShardFile(tmp_path / "half" / "part-000000.parquet", 32, "float16").all()
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, whole.astype(np.float16))

    def test_queries_get_the_query_instruction(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        embed_corpus(lines, tmp_path / "out", encoder, role="query")
        vectors = np.array([row["vector"] for row in rows_of(tmp_path / "out")], dtype=np.float32)
        np.testing.assert_allclose(vectors, encoder.encode_queries(some_texts(150, 100)), atol=1e-5)

    def test_vectors_are_mapped_and_a_file_written_again_by_others_is_decoded(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path
    ) -> None:
        embed_corpus(lines, tmp_path / "out", encoder)
        path = tmp_path / "out" / "part-000000.parquet"
        mapped = ShardFile(path, 32, "float32")
        parquet.write_table(parquet.read_table(path), tmp_path / "again.parquet", row_group_size=70)
        again = ShardFile(tmp_path / "again.parquet", 32, "float32")
        assert [group.base is not None for group in mapped._groups] == [True]
        assert np.shares_memory(mapped._groups[0], mapped._map)
        assert not any(np.shares_memory(group, again._map) for group in again._groups)
        np.testing.assert_array_equal(mapped.all(), again.all())
        wanted = np.array([149, 3, 70, 69, 3])
        np.testing.assert_array_equal(again.take(wanted), mapped.all()[wanted])

    def test_columns_keep_their_types(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        source = write_lines(
            tmp_path / "a.jsonl",
            [
                {"id": 1, "text": "a", "n": 1, "x": 1, "yes": True, "tags": ["p", 1], "mixed": "s", "big": 2**70},
                {"id": 2, "text": "b", "n": 2, "x": 0.5, "none": None, "mixed": 4},
            ],
        )
        embed_corpus(source, tmp_path / "out", encoder)
        first, second = rows_of(tmp_path / "out")
        assert (first["n"], first["x"], first["yes"], json.loads(first["tags"])) == (1, 1.0, True, ["p", 1])
        assert (json.loads(first["mixed"]), json.loads(second["mixed"]), second["none"]) == ("s", 4, None)
        assert json.loads(first["big"]) == 2**70
        assert (second["yes"], second["tags"], second["id"]) == (None, None, "2")


class TestFormats:
    TEXTS = some_texts(12)

    def vectors(self, source: Path, encoder: BgeEncoder, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        embed_corpus(source, source.parent / "out", encoder, **options)
        rows = rows_of(source.parent / "out")
        found = np.array([row["vector"] for row in rows], dtype=np.float32)
        np.testing.assert_allclose(found, encoder.encode_documents([row["text"] for row in rows]), atol=1e-5)
        return rows

    def test_zipped_lines_without_ids(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        with gzip.open(tmp_path / "c.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(json.dumps({"text": text}) for text in self.TEXTS))
        rows = self.vectors(tmp_path / "c.jsonl.gz", encoder)
        assert [row["text"] for row in rows] == self.TEXTS
        assert [row["id"] for row in rows][:2] == ["c.jsonl.gz:1", "c.jsonl.gz:2"]

    @pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ","), ("c.tsv", "\t")])
    def test_tables(self, encoder: BgeEncoder, tmp_path: Path, name: str, delimiter: str) -> None:
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows(
                [("key", "body", "lang"), *((n, f"{text}\nline", "en") for n, text in enumerate(self.TEXTS))]
            )
        rows = self.vectors(tmp_path / name, encoder, text_column="body", id_column="key")
        assert [row["text"] for row in rows] == [f"{text}\nline" for text in self.TEXTS]
        assert [(row["id"], row["lang"]) for row in rows][1] == ("1", "en")

    def test_parquet_keeps_all_types(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        moment = datetime(2024, 1, 2, tzinfo=timezone.utc)
        table = pa.table(
            {
                "text": self.TEXTS,
                "when": pa.array([moment] * 12, pa.timestamp("ns", "UTC")),
                "tags": [[{"a": n}] for n in range(12)],
                "raw": [b"\xff"] * 12,
            }
        )
        folder = tmp_path / "in"
        folder.mkdir()
        parquet.write_table(table.slice(0, 5), folder / "a.parquet", row_group_size=2)
        parquet.write_table(table.slice(5), folder / "b.parquet")
        self.vectors(folder, encoder, rows_per_shard=4)
        found = dataset.dataset(tmp_path / "out", format="parquet").to_table()
        assert found.select(table.column_names).equals(table)
        assert found["id"].to_pylist()[4:6] == ["a.parquet:4", "b.parquet:0"]

    def test_beir(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        folder = tmp_path / "beir"
        (folder / "qrels").mkdir(parents=True)
        write_lines(
            folder / "corpus.jsonl", [{"_id": "a", "title": "T", "text": "x"}, {"_id": "b", "title": "", "text": "y"}]
        )
        write_lines(folder / "queries.jsonl", [{"_id": "q", "text": "not a document"}])
        rows = self.vectors(folder, encoder)
        assert [(row["id"], row["text"], row["title"]) for row in rows] == [("a", "T x", "T"), ("b", "y", "")]

    def test_a_folder_of_texts_cut_into_chunks(self, bge_small_en: Path, tmp_path: Path) -> None:
        folder = tmp_path / "texts"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "a.md").write_text("# Title\n\n" + " ".join(self.TEXTS * 4), encoding="utf-8")
        (folder / "b.txt").write_text("short", encoding="utf-8")
        (folder / ".hidden.txt").write_text("hidden", encoding="utf-8")
        encoder = BgeEncoder(bge_small_en, on_truncation="error")
        rows = self.vectors(folder, encoder, chunk=True)
        assert [(row["id"], row["document"]) for row in rows][:2] == [
            ("b.txt#0", "b.txt"),
            ("deep/a.md#0", "deep/a.md"),
        ]
        assert len(rows) > 3
        assert rows[1]["text"].startswith("# Title")

    def test_a_folder_of_datasets(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        import datasets

        data = datasets.Dataset.from_dict({"id": list(range(12)), "text": self.TEXTS, "n": [[n] for n in range(12)]})
        datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "saved")
        rows = self.vectors(tmp_path / "saved", encoder, rows_per_shard=5)
        assert [(row["id"], row["text"], row["n"]) for row in rows] == [
            (str(n), text, [n]) for n, text in enumerate(self.TEXTS)
        ]

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            ((), "has no files that end with"),
            (("a.parquet", "b.jsonl"), "has .parquet files beside files of other formats"),
            (("a.jsonl", "b.txt"), "has files with rows"),
        ],
    )
    def test_a_folder_that_is_unclear(
        self, encoder: BgeEncoder, tmp_path: Path, names: tuple[str, ...], said: str
    ) -> None:
        folder = tmp_path / "in"
        folder.mkdir()
        for name in names:
            (folder / name).write_text("x")
        with pytest.raises(CorpusDataError, match=said):
            embed_corpus(folder, tmp_path / "out", encoder)

    def test_columns_that_are_not_there(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        with pytest.raises(CorpusDataError, match=r"has no column for text_column='body'. It has: _id, text, page"):
            embed_corpus(lines, tmp_path / "out", encoder, text_column="body")
        write_lines(tmp_path / "a.jsonl", [{"text": "a", "vector": 1}])
        with pytest.raises(CorpusDataError, match=r"a.jsonl, line 1 has a column 'vector'"):
            embed_corpus(tmp_path / "a.jsonl", tmp_path / "out", encoder)


class TestBrokenRows:
    BROKEN = (
        ("{", "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"_id": "x"}', "has no text in title and text"),
        ('{"_id": "x", "text": 5}', "has a fault in text, which is an int, not a text: 5"),
        ('{"_id": "x", "text": " "}', "has no text in title and text"),
        ('{"_id": "x", "text": "\\ud800"}', "has a fault in text, which has a lone surrogate"),
        ('{"_id": "x", "text": "y", "page": "\\ud800"}', "has a character that UTF-8 can't write"),
        ('{"_id": "d3", "text": "twice"}', "has the id 'd3', as an earlier row has"),
        ('{"text": "no id"}', "has no _id that is a text or a whole number"),
    )

    @pytest.mark.parametrize(("row", "said"), BROKEN)
    def test_one_is_named_before_anything_is_computed(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, row: str, said: str
    ) -> None:
        before = encoder.stats().texts
        with pytest.raises(CorpusDataError) as raised:
            embed_corpus(with_rows(lines, row), tmp_path / "out", encoder)
        assert str(raised.value).startswith(f"{lines}, line 151 {said}")
        assert "reject=True" in str(raised.value)
        assert encoder.stats().texts == before

    def test_they_are_put_aside_and_nothing_is_lost(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        with_rows(lines, *(row for row, _ in self.BROKEN))
        with lines.open("ab") as file:
            file.write(b'{"_id": "bytes", "text": "caf\xe9"}\n{"_id": "last", "text": "good"}\n')
        report = embed_corpus(lines, tmp_path / "out", encoder, reject=True, rows_per_shard=60)
        rows = rows_of(tmp_path / "out")
        lines_of_file = (tmp_path / "out" / "_corpus" / "rejected.jsonl").read_text().splitlines()
        rejected = [json.loads(row) for row in lines_of_file]
        assert [row["id"] for row in rows] == [*(f"d{n}" for n in range(150)), "last"]
        # An id that is there twice is seen when its shard is written.
        assert sorted(row["line"] for row in rejected) == list(range(151, 161))
        assert {row["file"] for row in rejected} == {"lines.jsonl"}
        assert report.rejected == 10
        assert report.rows + report.rejected == 161

    def test_a_row_of_a_table_with_other_cells(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("id,text\n1,a\n2,b,c\n3,d\n")
        with pytest.raises(CorpusDataError, match=r"a.csv, line 3 has 3 cells, but the header has 2"):
            embed_corpus(tmp_path / "a.csv", tmp_path / "out", encoder)
        embed_corpus(tmp_path / "a.csv", tmp_path / "out", encoder, reject=True)
        assert [row["id"] for row in rows_of(tmp_path / "out")] == ["1", "3"]

    def test_a_row_of_parquet(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
        with pytest.raises(CorpusDataError, match=r"a.parquet, row 1 has no text"):
            embed_corpus(tmp_path / "a.parquet", tmp_path / "out", encoder)

    def test_a_text_that_the_model_refuses_is_named(self, bge_small_en: Path, lines: Path, tmp_path: Path) -> None:
        with_rows(lines, json.dumps({"_id": "long", "text": "word " * 100}))
        with pytest.raises(CorpusDataError, match=rf"{lines}, line 151: Text 100 has") as raised:
            embed_corpus(
                lines,
                tmp_path / "out",
                BgeEncoder(bge_small_en, on_truncation="error", max_length=60),
                rows_per_shard=60,
            )
        assert isinstance(raised.value.__cause__, TruncationError)

    def test_a_damaged_file_is_no_broken_row(self, encoder: BgeEncoder, tmp_path: Path) -> None:
        content = gzip.compress(json.dumps({"text": "a"}).encode() * 100)
        (tmp_path / "a.jsonl.gz").write_bytes(content[:-9])
        with pytest.raises(CorpusDataError, match=r"a.jsonl.gz can't be read"):
            embed_corpus(tmp_path / "a.jsonl.gz", tmp_path / "out", encoder, reject=True)


class TestGoingOn:
    def test_a_finished_folder_is_left_as_it_is(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        embed_corpus(lines, tmp_path / "out", encoder)
        before = digests(tmp_path / "out")
        assert embed_corpus(lines, tmp_path / "out", encoder).computed == 0
        assert digests(tmp_path / "out") == before

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    def test_each_write_may_fail(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        """A full disk at every point, one after the other: each run stops with an error and the next one goes on."""
        monkeypatch.setattr(job, "_TEXTS_A_SLICE", 16)
        embed_corpus(lines, tmp_path / "whole", encoder, rows_per_shard=40)
        real = getattr(os, failing)
        left = calls = 0

        def fails(*arguments: Any) -> Any:  # noqa: ANN401
            nonlocal calls
            calls += 1
            if calls > left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        failures = 0
        while True:
            with monkeypatch.context() as patched:
                patched.setattr(os, failing, fails)
                calls = 0
                try:
                    embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=40)
                    break
                except CorpusWriteError as error:
                    failures += "No space left on device" in str(error)
            left += 1 + left // 4
        assert failures > 5
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def test_files_may_not_grow(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        resource = pytest.importorskip("resource")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
        try:
            with pytest.raises(CorpusWriteError, match=r"can't be written: .*run the same command again"):
                embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=60)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=60)
        embed_corpus(lines, tmp_path / "whole", encoder, rows_per_shard=60)
        assert digests(tmp_path / "out") == digests(tmp_path / "whole")

    def interrupted(self, lines: Path, encoder: BgeEncoder, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leaves a folder without the second one of three shards."""
        real = files.write_file

        def stop(path: Path, content: bytes | memoryview) -> None:
            if path.name == "part-000001.parquet":
                raise KeyboardInterrupt
            real(path, content)

        with monkeypatch.context() as patched:
            patched.setattr("bge_integrations.corpus.job.write_file", stop)
            with pytest.raises(KeyboardInterrupt):
                embed_corpus(lines, out, encoder, rows_per_shard=60)
        assert (out / "part-000000.parquet").exists()
        assert not (out / "part-000001.parquet").exists()

    def test_only_what_is_missing_is_computed(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupted(lines, encoder, tmp_path / "out", monkeypatch)
        # The vectors of the second shard were saved before the interrupt.
        assert embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=60).computed == 0

    @pytest.mark.parametrize("done", [False, True])
    def test_another_model_input_or_option_is_refused(
        self,
        lines: Path,
        encoder: BgeEncoder,
        bge_small_zh: Path,
        bge_small_en: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        done: bool,
    ) -> None:
        out = tmp_path / "out"
        if done:
            embed_corpus(lines, out, encoder, rows_per_shard=60)
        else:
            self.interrupted(lines, encoder, out, monkeypatch)
        before = digests(out)
        with pytest.raises(SettingsError, match=r"was begun with another model: .*another model"):
            embed_corpus(lines, out, BgeEncoder(bge_small_zh), rows_per_shard=60)
        with pytest.raises(SettingsError, match="normalize was None then, and is False now"):
            embed_corpus(lines, out, BgeEncoder(bge_small_en, normalize=False), rows_per_shard=60)
        with pytest.raises(SettingsError, match="max_length was None then, and is 9 now"):
            embed_corpus(lines, out, BgeEncoder(bge_small_en, max_length=9), rows_per_shard=60)
        with pytest.raises(SettingsError, match="was begun with dtype='float32', and now has dtype='float16'"):
            embed_corpus(lines, out, encoder, rows_per_shard=60, dtype="float16")
        with_rows(lines, json.dumps({"_id": "more", "text": "more"}))
        with pytest.raises(SettingsError, match=r"has changed since .* was begun \(150 rows then, 151 now\)"):
            embed_corpus(lines, out, encoder, rows_per_shard=60)
        assert {name: digest for name, digest in digests(out).items() if "claim" not in name} == before

    def test_a_copy_of_the_input_is_the_same_input(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupted(lines, encoder, tmp_path / "out", monkeypatch)
        os.utime(lines, (1, 1))
        assert embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=60).rows == 150

    def test_a_folder_of_others_is_left_alone(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
        with pytest.raises(SettingsError, match="is there already, and is no folder of a corpus"):
            embed_corpus(lines, tmp_path / "out", encoder)


class TestWorkers:
    def test_one_may_begin_while_another_looks_whether_the_folder_is_free(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        listed = Path.iterdir

        def begun_meanwhile(folder: Path) -> Iterator[Path]:
            if folder == tmp_path / "out":
                (folder / OWN_FOLDER).mkdir(exist_ok=True)
            return listed(folder)

        monkeypatch.setattr(Path, "iterdir", begun_meanwhile)
        assert embed_corpus(lines, tmp_path / "out", encoder).rows == 150

    def test_together_they_make_what_one_makes(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job, "_POLL_S", 0.01)
        embed_corpus(lines, tmp_path / "one", encoder, rows_per_shard=9)
        reports: list[job.CorpusReport] = []
        together = threading.Barrier(3)

        def work(number: int) -> None:
            together.wait(60)
            reports.append(embed_corpus(lines, tmp_path / "three", encoder, rows_per_shard=9, worker=(number, 3)))

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(reports) == 3
        assert sum(report.computed for report in reports) == 100
        assert digests(tmp_path / "three") == digests(tmp_path / "one")

    def test_one_begins_with_its_share_and_does_the_rest_if_nobody_else_does(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path
    ) -> None:
        assert job._order(7, 2, 3) == [1, 4, 2, 5, 0, 3, 6]
        report = embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=40, worker=(2, 3))
        embed_corpus(lines, tmp_path / "one", encoder, rows_per_shard=40)
        assert report.computed == 100
        assert digests(tmp_path / "out") == digests(tmp_path / "one")

    def test_the_part_of_a_lost_worker_is_taken(
        self, lines: Path, encoder: BgeEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
        )
        dead = own_name().replace(str(os.getpid()), ended.stdout.strip())
        work = tmp_path / "out" / "_corpus" / "work"
        work.mkdir(parents=True)
        for name in ("claim-survey", "claim-000000"):
            (work / name).write_text(json.dumps({"process": dead, "token": "t"}))
        (work / f"survey.{dead}.tmp").mkdir()
        assert embed_corpus(lines, tmp_path / "out", encoder, rows_per_shard=40).computed == 100

    def test_a_claim_of_another_machine_is_free_after_a_minute_of_silence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        path = tmp_path / "claim"
        path.write_text(json.dumps({"process": "elsewhere.1", "token": "t"}))
        with Claims(tmp_path) as claims:
            assert not claims.take("claim")
            now += 59
            assert not claims.take("claim")
            os.utime(path)  # its worker lives
            now += 59
            assert not claims.take("claim")
            now += 61
            assert claims.take("claim")
            assert not Claims(tmp_path).take("claim")
        assert not path.exists()

    def test_numbers_that_make_no_sense(self, lines: Path, encoder: BgeEncoder, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"worker=0/3 is no worker; the first of 3 is 1/3"):
            embed_corpus(lines, tmp_path / "out", encoder, worker=(0, 3))


class TestSlices:
    def test_bits_depend_on_the_slice_alone(self, bge_small_en: Path) -> None:
        texts = some_texts(300)
        encoder = BgeEncoder(bge_small_en, batch_tokens=512)
        alone: list[Any] = []
        encoder.encode_slices([texts[:150]], alone.append)
        found: list[Any] = []
        encoder.encode_slices(iter([texts[150:], texts[:150], texts[7:9]]), found.append)
        np.testing.assert_array_equal(found[1], alone[0])
        assert [part.shape for part in found] == [(150, 32), (150, 32), (2, 32)]
        np.testing.assert_allclose(found[0], encoder.encode_documents(texts[150:]), atol=1e-5)

    def test_the_index_of_a_wrong_text_counts_all_slices(self, encoder: BgeEncoder) -> None:
        with pytest.raises(TypeError, match="Text 2 is an int"):
            encoder.encode_slices([["a", "b"], [3]], lambda _: None)  # type: ignore[list-item]

    def test_what_takes_the_vectors_may_fail(self, encoder: BgeEncoder) -> None:
        def fail(_: object) -> None:
            raise OSError("full")

        with pytest.raises(OSError, match="full"):
            encoder.encode_slices([["a"], ["b"]], fail)
        assert len(encoder.encode_documents(["a"])) == 1


class TestCommand:
    def test_embed(self, lines: Path, bge_small_en: Path, tmp_path: Path) -> None:
        command = ["embed", str(lines), "--model", str(bge_small_en), "--output", str(tmp_path / "out")]
        done = CliRunner().invoke(app, [*command, "--dtype", "float16", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["rows"] == 150
        again = CliRunner().invoke(app, [*command, "--dtype", "float16", "--worker", "2/2"])
        assert "150 rows with 100 different texts in 1 files" in " ".join(again.output.split())
        wrong = CliRunner().invoke(app, [*command, "--worker", "two"])
        assert isinstance(wrong.exception, SettingsError)
        assert "worker='two' is no worker" in str(wrong.exception)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that are forked")
def test_killed_at_twenty_points_it_makes_the_same_files(lines: Path, bge_small_en: Path, tmp_path: Path) -> None:
    """Kills at random steps on the disk and at random times: in the survey, in half-written files, at the end."""
    with_rows(lines, "{", *(json.dumps({"_id": f"e{n}", "text": text}) for n, text in enumerate(some_texts(900, 500))))
    command = [sys.executable, "-m", "tests.corpus_kills", str(lines), str(tmp_path), str(bge_small_en), "20", "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"] >= 20
    assert found["complete"] >= 1
    assert found["lost"] == 3
