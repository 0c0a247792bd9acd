"""Data to train on: formats, checks, splits, draws, and what they share with other data."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.errors import BgeError, SettingsError, TrainingDataError
from bge_integrations.evaluation import RetrievalData, load_retrieval_data
from bge_integrations.training import Drawn, TrainingData, TrainingRow, draw, leakage, load_training_data
from bge_integrations.training.rows.data import SplitBy

_FULL: dict[str, Any] = {
    "query": "Where is Paris?",
    "pos": ["Paris is in France", "巴黎在法国"],
    "neg": ["Rome is in Italy", "Oslo is in Norway", "Bern"],
    "pos_scores": [9.5, 8],
    "neg_scores": [1.5, -2.0, 0],
    "prompt": "Find: ",
    "type": "symmetric_sts",
    "id": "q7",
    "document": "geography.md",
}
_BARE: dict[str, Any] = {"query": "What do plants eat?", "pos": ["Light"], "neg": []}
_TRIPLES = [
    ("where is Paris?", "in France", ("in Italy", "in Norway")),
    ("what eats grass?", 'a cow, says "he"', ("a lion",)),
    ("how?", "so\nit goes", ()),
]


def _lines(file: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if file.suffix == ".gz":
        file.write_bytes(gzip.compress(text.encode()))
    else:
        file.write_text(text, encoding="utf-8")
    return file


def _table(file: Path, header: list[str], rows: list[list[str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writerows([header, *rows])
    return file


def _triples(data: TrainingData) -> list[tuple[str, str, tuple[str, ...]]]:
    assert all(len(row.pos) == 1 for row in data.rows)
    return [(row.query, row.pos[0], row.neg) for row in data.rows]


def _beir(folder: Path, qrels: str, split: str = "train") -> Path:
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "foxes", "d2": "plants", "d3": "Paris", "d4": "stores"}
    _lines(folder / "corpus.jsonl", [{"_id": id_, "title": "On", "text": text} for id_, text in texts.items()])
    _lines(folder / "queries.jsonl", [{"_id": f"q{number}", "text": f"query {number}"} for number in range(5)])
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return folder


class _Dataset:
    """As much of a dataset of the library datasets as is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.column_names = list(rows[0])

    def __iter__(self) -> Any:  # noqa: ANN401
        return iter(self.rows)


class TestFormats:
    @pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.jsonl.gz", "train.json.gz"])
    def test_flag_embeddings(self, tmp_path: Path, name: str) -> None:
        data = load_training_data(_lines(tmp_path / name, [_FULL, _BARE]))
        first, second = data.rows
        assert (first.query, list(first.pos), list(first.neg)) == (_FULL["query"], _FULL["pos"], _FULL["neg"])
        assert first.pos_scores == (9.5, 8.0)
        assert first.neg_scores == (1.5, -2.0, 0.0)
        assert (first.prompt, first.type, first.document) == ("Find: ", "symmetric_sts", "geography.md")
        assert (first.id, second.id) == ("q7", "1")
        assert second == TrainingRow("What do plants eat?", ("Light",), (), id="1", source="train")
        assert data.name == "train"

    def test_an_array_of_rows(self, tmp_path: Path) -> None:
        (tmp_path / "rows.json").write_text(json.dumps([_FULL, _BARE], indent=2))
        assert [row.query for row in load_training_data(tmp_path / "rows.json").rows] == [
            _FULL["query"],
            _BARE["query"],
        ]

    @pytest.mark.parametrize("names", [("query", "pos"), ("anchor", "positive"), ("question", "context")])
    def test_pairs_as_single_texts(self, tmp_path: Path, names: tuple[str, str]) -> None:
        rows = [dict(zip(names, (query, positive), strict=True)) for query, positive, _ in _TRIPLES]
        expected = [(query, positive, ()) for query, positive, _ in _TRIPLES]
        assert _triples(load_training_data(_lines(tmp_path / "a.jsonl", rows))) == expected
        assert _triples(load_training_data(_Dataset(rows))) == expected

    @pytest.mark.parametrize("ending", ["csv", "tsv"])
    def test_tables(self, tmp_path: Path, ending: str) -> None:
        header = ["anchor", "positive", "negative_1", "negative_2"]
        rows = [[query, positive, *neg, *[""] * (2 - len(neg))] for query, positive, neg in _TRIPLES]
        file = _table(tmp_path / f"a.{ending}", header, rows)
        assert _triples(load_training_data(file)) == _TRIPLES
        zipped = tmp_path / f"b.{ending}.gz"
        zipped.write_bytes(gzip.compress(file.read_bytes()))
        assert _triples(load_training_data(zipped)) == _TRIPLES

    def test_tables_with_a_mark_of_the_byte_order(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfquery,pos\r\na,b\r\n")
        assert _triples(load_training_data(tmp_path / "a.csv")) == [("a", "b", ())]

    def test_lists_in_the_cells_of_a_table(self, tmp_path: Path) -> None:
        cells = ["q", '["a", "b"]', '["c"]', "[1, 0.5]", "2", "True"]
        header = ["query", "pos", "neg", "pos_scores", "neg_scores", "no_in_batch_neg"]
        (row,) = load_training_data(_table(tmp_path / "a.csv", header, [cells])).rows
        assert (row.pos, row.neg, row.pos_scores, row.neg_scores) == (("a", "b"), ("c",), (1, 0.5), (2,))
        assert row.no_in_batch_neg

    def test_negatives_keep_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        row = {"query": "q", "positive": "p", **{f"negative_{n}": f"n{n}" for n in (10, 2, 1)}, "negative_3": None}
        assert load_training_data(_lines(tmp_path / "a.jsonl", [row])).rows[0].neg == ("n1", "n2", "n10")

    def test_all_relevant_documents_of_llama_indexes_are_positives(self, tmp_path: Path) -> None:
        content = {
            "queries": {"q1": "where?", "q2": "what?"},
            "corpus": {"n1": "here", "n2": "there", "n3": "nowhere"},
            "relevant_docs": {"q1": ["n1", "n2"], "q2": ["n3"]},
            "mode": "text",
        }
        for indent in (None, 4):
            (tmp_path / "set.json").write_text(json.dumps(content, indent=indent))
            data = load_training_data(tmp_path / "set.json")
            assert [(row.id, row.query, row.pos) for row in data.rows] == [
                ("q1", "where?", ("here", "there")),
                ("q2", "what?", ("nowhere",)),
            ]
            assert data.corpus == content["corpus"]

    def test_beirs(self, tmp_path: Path) -> None:
        folder = _beir(tmp_path / "beir", "q1\td1\t2\nq1\td3\t1\nq1\td2\t0\nq4\td2\t1\n")
        data = load_training_data(folder)
        assert [(row.id, row.pos, row.neg, row.document) for row in data.rows] == [
            ("q1", ("On foxes", "On Paris"), ("On plants",), "d1"),
            ("q4", ("On plants",), (), "d2"),
        ]
        assert data.corpus is not None
        assert list(data.corpus) == ["d1", "d2", "d3", "d4"]
        with pytest.raises(TrainingDataError, match=r"no qrels/dev\.tsv.*It has grades for: train"):
            load_training_data(folder, split="dev")

    def test_datasets(self) -> None:
        datasets = pytest.importorskip("datasets")
        dataset = datasets.Dataset.from_list([_FULL, {**_BARE, "neg": ["Stones"]}])
        for given_ in (dataset, datasets.DatasetDict(train=dataset), dataset.to_iterable_dataset()):
            first, second = load_training_data(given_).rows
            assert first.neg == tuple(_FULL["neg"])
            assert (second.prompt, second.type, second.pos_scores) == (None, "normal", None)
        with pytest.raises(TrainingDataError, match="no split 'dev'; it has train"):
            load_training_data(datasets.DatasetDict(train=dataset), split="dev")

    def test_a_folder_of_files(self, tmp_path: Path) -> None:
        _lines(tmp_path / "b.jsonl", [_BARE])
        _lines(tmp_path / "a.json.gz", [_FULL, _BARE])
        _table(tmp_path / "c.csv", ["query", "pos"], [["q", "p"]])
        (tmp_path / ".hidden").touch()
        data = load_training_data(tmp_path)
        assert [(row.source, row.id) for row in data.rows] == [
            ("a", "a/q7"),
            ("a", "a/1"),
            ("b", "b/0"),
            ("c", "c/0"),
        ]
        assert data.name == tmp_path.name
        again = load_training_data(data.save(tmp_path.with_name("saved.jsonl")))
        assert (again.rows, again.digest) == (data.rows, data.digest)

    @pytest.mark.parametrize("name", ["faq_no_in_batch_neg.jsonl", "faq_no_in_batch_neg/faq.jsonl"])
    def test_names_can_say_that_other_rows_passages_are_no_negatives(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _lines(tmp_path / name, [_BARE, {**_FULL, "no_in_batch_neg": False}])
        data = load_training_data(tmp_path / name.partition("/")[0])
        assert [row.no_in_batch_neg for row in data.rows] == [True, False]
        again = load_training_data(data.save(tmp_path / "other.jsonl"))
        assert [row.no_in_batch_neg for row in again.rows] == [True, False]

    def test_other_columns_are_named_in_the_notes(self, tmp_path: Path) -> None:
        data = load_training_data(_lines(tmp_path / "a.jsonl", [{**_BARE, "title": "x", "url": "y"}]))
        assert data.notes == ("These columns were not read: title, url.",)

    def test_evaluation_reads_what_is_saved(self, tmp_path: Path) -> None:
        data = TrainingData([TrainingRow("q", ("a",), ("b",)), TrainingRow("r", ("b",), ("c",))])
        assert set(load_retrieval_data(data.save(tmp_path / "a.jsonl")).corpus.values()) == {"a", "b", "c"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("row", "said"),
        [
            ({**_BARE, "query": " "}, "query is blank"),
            ({**_BARE, "query": 3}, "query is 3; write a text"),
            ({**_BARE, "query": "\ud800"}, "query has a lone surrogate"),
            ({"pos": ["a"]}, "has no query: name it query, anchor or question. It has: pos"),
            ({"query": "a", "question": "b", "pos": "c"}, "has a query twice: query and question"),
            ({"query": "a", "positive": "b", "pos": "c"}, "has a positive twice: pos and positive"),
            ({"query": "a"}, "has no positive: name it pos, positive or context"),
            ({"query": "a", "pos": None}, "has no positive"),
            ({**_BARE, "pos": []}, "pos is empty"),
            ({**_BARE, "pos": ["a", ""]}, r"pos\[1\] is blank"),
            ({**_BARE, "pos": ["a", None]}, r"pos\[1\] is None"),
            ({**_BARE, "pos": {"a": 1}}, "pos is {'a': 1}; write a text or a list"),
            ({**_BARE, "neg": [""]}, r"neg\[0\] is blank"),
            ({**_BARE, "neg": ["no", "Light"]}, r"neg\[1\] is a positive of this row too: 'Light'. Remove"),
            ({"query": "a", "positive": "b", "negative_2": " "}, "negative_2 is blank"),
            ({**_FULL, "pos_scores": [1]}, "pos_scores has 1 scores, but pos has 2 texts"),
            ({**_FULL, "neg_scores": [1, 2, 3, 4]}, "neg_scores has 4 scores, but neg has 3 texts"),
            ({**_FULL, "pos_scores": [1, math.nan]}, r"pos_scores\[1\] is nan; write a finite number"),
            ({**_FULL, "neg_scores": [1, True, 2]}, r"neg_scores\[1\] is True"),
            ({**_FULL, "neg_scores": [1, 2, 10**400]}, r"neg_scores\[2\] is inf"),
            ({**_FULL, "neg_scores": "1"}, "neg_scores is '1'; write a list of numbers"),
            ({**_BARE, "prompt": 3}, "prompt is 3; write a text"),
            ({**_BARE, "type": "unknown"}, "type is 'unknown'; write one of normal, only_1neg, sym"),
            ({**_BARE, "no_in_batch_neg": "yes"}, "no_in_batch_neg is 'yes'; write true or false"),
            ({**_BARE, "document": 1.5}, "document is 1.5; write a text or a whole number"),
            ({**_BARE, "id": "0"}, r"the id '0' is there already \(.*, line 1\)"),
            ({**_BARE, "negs": ["a"]}, "negs is not read. Remove it, or rename it"),
            ({**_BARE, "query_prompt": "a"}, "query_prompt is not read"),
            ({**_BARE, "label": 0}, "label is not read"),
            (["a"], "is no JSON object"),
        ],
    )
    def test_name_the_file_the_line_and_the_field(self, tmp_path: Path, row: object, said: str) -> None:
        file = tmp_path / "a.jsonl"
        lines = [json.dumps(_BARE), "", json.dumps(row)]
        file.write_text("\n".join(lines))
        with pytest.raises(TrainingDataError, match=rf"a\.jsonl, line 3:? ?{said}") as caught:
            load_training_data(file)
        assert isinstance(caught.value, (BgeError, ValueError))

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("query,pos\na,b\nc\n", "line 3 has 1 cells, but the header has 2"),
            ("query,pos\na,b,c\n", "line 2 has 3 cells"),
            ('query,pos\na,"b\nb"\nc, \n', "line 4: pos is blank"),
            ("query,pos\na,\n", "line 2 has no positive"),
            ("query,query\na,b\n", "line 1: the header has a name twice"),
            ("query,pos\na,\"['b', 'c']\"\n", "line 2: pos is no JSON: .*one column for each text"),
            ("query,pos,pos_scores\na,b,high\n", "line 2: pos_scores is no JSON: 'high'"),
            ("query,pos\n", "a has no rows"),
            ("", "a has no rows"),
            (f"query,pos\n{'a' * 200_000},b\n", "line 2 can't be read: field larger"),
        ],
    )
    def test_name_the_line_of_a_table(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(TrainingDataError, match=said):
            load_training_data(tmp_path / "a.csv")

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.jsonl", "{", r"a\.jsonl, line 1 is no JSON"),
            ("a.json", '[\n{"query": "a"},\n{"query" "b"}]', r"a\.json, line 3 is no JSON"),
            ("a.json", "[1]", r"a\.json, element 0 is no JSON object"),
            ("a.json", "[\n" + json.dumps({**_BARE, "pos": [""]}) + "]", r"a\.json, element 0: pos\[0\] is blank"),
            ("a.json", "3", r"a\.json is no list of rows"),
            ("a.json", '{"queries":\n {}}', r"a\.json lacks queries, corpus or relevant_docs"),
            ("a.jsonl", "", "a has no rows"),
            ("a.parquet", "", r"a\.parquet is of no known format"),
        ],
    )
    def test_in_files(self, tmp_path: Path, name: str, content: str, said: str) -> None:
        (tmp_path / name).write_text(content)
        with pytest.raises(TrainingDataError, match=said):
            load_training_data(tmp_path / name)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
        with pytest.raises(TrainingDataError, match=r"a\.jsonl can't be read as UTF-8"):
            load_training_data(tmp_path / "a.jsonl")
        with pytest.raises(TrainingDataError, match="There is no file or folder"):
            load_training_data(tmp_path / "b.jsonl")

    def test_other_files_of_a_folder_are_not_skipped_in_silence(self, tmp_path: Path) -> None:
        _lines(tmp_path / "a.jsonl", [_BARE])
        (tmp_path / "b.parquet").touch()
        (tmp_path / "more").mkdir()
        with pytest.raises(TrainingDataError, match=r"no training data: b\.parquet, more\. Move them"):
            load_training_data(tmp_path)

    def test_of_folders(self, tmp_path: Path) -> None:
        with pytest.raises(TrainingDataError, match="is empty"):
            load_training_data(tmp_path)
        _lines(tmp_path / "a.jsonl", [_BARE])
        _lines(tmp_path / "a.json", [_BARE])
        with pytest.raises(TrainingDataError, match=r"a\.jsonl and a\.json have one name"):
            load_training_data(tmp_path)

    def test_of_beirs(self, tmp_path: Path) -> None:
        folder = _beir(tmp_path / "beir", "q1\td1\t1\nq2\td1\thigh\n")
        with pytest.raises(TrainingDataError, match=r"train\.tsv, line 3: the grade is 'high'"):
            load_training_data(folder)

    def test_a_document_with_the_text_of_a_positive_is_no_negative(self, tmp_path: Path) -> None:
        folder = _beir(tmp_path / "beir", "q1\td1\t1\nq1\td2\t0\n")
        _lines(folder / "corpus.jsonl", [{"_id": id_, "text": "same"} for id_ in ("d1", "d2")])
        with pytest.raises(TrainingDataError, match=r"train\.tsv, line 2: neg\[0\] is a positive of this row too"):
            load_training_data(folder)

    @pytest.mark.parametrize("wrong", [3, [_BARE], None])
    def test_other_objects(self, wrong: object) -> None:
        with pytest.raises(SettingsError, match="takes a path or a Dataset"):
            load_training_data(wrong)

    def test_of_datasets_name_the_row(self) -> None:
        with pytest.raises(TrainingDataError, match=r"dataset, row 1: neg\[0\] is blank"):
            load_training_data(_Dataset([_BARE, {**_BARE, "neg": [""]}]))

    def test_say_how_many_there_are(self) -> None:
        with pytest.raises(TrainingDataError, match=r"data, rows\[1\]: query is blank.* 2 more rows have faults"):
            TrainingData([TrainingRow(query, ("a",)) for query in ("a", "", "b", "\n", " ")])

    def test_of_rows_in_python(self) -> None:
        with pytest.raises(TrainingDataError, match=r"rows\[0\]: 'a' is no TrainingRow"):
            TrainingData("a")  # type: ignore[arg-type]
        with pytest.raises(TrainingDataError, match=r"pos is \{'a': 1\}; write a list of texts"):
            TrainingData([TrainingRow("q", {"a": 1})])  # type: ignore[arg-type]
        with pytest.raises(TrainingDataError, match=r"pos_scores is 1\.5; write a list of numbers"):
            TrainingData([TrainingRow("q", ("a",), pos_scores=1.5)])  # type: ignore[arg-type]
        with pytest.raises(TrainingDataError, match=r"corpus\['d'\] is blank"):
            TrainingData([TrainingRow("q", ("a",))], corpus={"d": ""})


class TestRows:
    def test_a_single_text_does_not_become_characters(self) -> None:
        row = TrainingRow("q", "abc", "def")  # type: ignore[arg-type]
        assert (row.pos, row.neg) == (("abc",), ("def",))

    def test_lists_become_tuples(self) -> None:
        row = TrainingRow("q", ["a"], ["b"], neg_scores=[1.0])  # type: ignore[arg-type]
        assert row == TrainingRow("q", ("a",), ("b",), neg_scores=(1.0,))

    def test_scores_of_numpy_become_floats(self) -> None:
        scores = np.array([0.5, 2.0], dtype=np.float32)
        row = TrainingRow("q", ("a",), ("b", "c"), (np.float64(1),), scores)  # type: ignore[arg-type]
        assert json.dumps([row.pos_scores, row.neg_scores]) == "[[1.0], [0.5, 2.0]]"

    def test_a_repeated_text_is_kept_once_with_its_first_score(self) -> None:
        row = TrainingRow("q", ("a", "a"), ("b", "c", "b", "b"), (1.0, 2.0), (3.0, 4.0, 5.0, 6.0))
        data = TrainingData([row])
        assert data.rows[0] == TrainingRow("q", ("a",), ("b", "c"), (1.0,), (3.0, 4.0), id="0")
        assert data.notes == (
            "1 positive passages that a row has already were left out.",
            "2 negative passages that a row has already were left out.",
        )

    def test_passages_are_distinct(self) -> None:
        data = TrainingData([TrainingRow("q", ("a",), ("b",)), TrainingRow("r", ("b",), ("c", "a"))])
        assert data.passages() == ["a", "b", "c"]

    def test_digest_is_of_all_that_training_depends_on(self) -> None:
        base = TrainingRow("q", ("a", "b"), ("c", "d"), (1.0, 2.0), (3.0, 4.0), "p")
        others = [
            TrainingRow("r", base.pos, base.neg, base.pos_scores, base.neg_scores, "p"),
            TrainingRow("q", ("b", "a"), base.neg, base.pos_scores, base.neg_scores, "p"),
            TrainingRow("q", base.pos, ("c",), base.pos_scores, (3.0,), "p"),
            TrainingRow("q", base.pos, base.neg, (1.0, 2.5), base.neg_scores, "p"),
            TrainingRow("q", base.pos, base.neg, base.pos_scores, None, "p"),
            TrainingRow("q", base.pos, base.neg, base.pos_scores, base.neg_scores, ""),
            TrainingRow("q", base.pos, base.neg, base.pos_scores, base.neg_scores, "p", "only_1neg"),
            TrainingRow("q", base.pos, base.neg, base.pos_scores, base.neg_scores, "p", no_in_batch_neg=True),
        ]
        assert len({TrainingData([row]).digest for row in (base, *others)}) == len(others) + 1
        renamed = TrainingRow("q", base.pos, base.neg, base.pos_scores, base.neg_scores, "p", id="x", source="y")
        assert TrainingData([renamed], "z", {"d": "e"}).digest == TrainingData([base]).digest
        two = [TrainingRow("q", ("a",), source=source) for source in "xy"]
        assert TrainingData(two).digest != TrainingData([two[0], two[0]]).digest


class TestSaving:
    def test_what_is_saved_is_read_again(self, tmp_path: Path) -> None:
        rows = [TrainingRow(**_FULL, source="a"), TrainingRow("q", ("p\u2028\n\x85",), prompt="", id="0", source="a")]
        data = TrainingData(rows, "a")
        for name in ("a.jsonl", "a.json", "a.jsonl.gz"):
            again = load_training_data(data.save(tmp_path / name))
            assert (again, again.digest) == (data, data.digest)
        assert sorted(os.listdir(tmp_path)) == ["a.json", "a.jsonl", "a.jsonl.gz"]

    def test_a_file_is_whole_or_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = TrainingData([TrainingRow("q", ("a",))] * 1)
        data.save(tmp_path / "a.jsonl")
        before = (tmp_path / "a.jsonl").read_bytes()
        monkeypatch.setattr("bge_integrations.training.rows.data._as_line", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            data.save(tmp_path / "a.jsonl")
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]

    def test_other_endings_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"must end with one of \.jsonl"):
            TrainingData([TrainingRow("q", ("a",))]).save(tmp_path / "a.txt")

    def test_what_is_written_for_llama_index_is_as_it_writes_it(self, tmp_path: Path) -> None:
        data = TrainingData([TrainingRow("où?", ("là", "ici"), ("非",)), TrainingRow("what?", ("ici",))])
        file = data.to_llama_index(tmp_path / "set.json")
        assert json.loads(file.read_text(encoding="ascii")) == {
            "queries": {"0": "où?", "1": "what?"},
            "corpus": {"d0": "là", "d1": "ici", "d2": "非"},
            "relevant_docs": {"0": ["d0", "d1"], "1": ["d1"]},
            "mode": "text",
        }
        again = load_training_data(file)
        assert [(row.query, row.pos) for row in again.rows] == [(row.query, row.pos) for row in data.rows]


class TestRetrievalData:
    def test_equal_queries_are_one_with_all_their_positives(self) -> None:
        rows = [
            TrainingRow("q", ("a",), ("b", "c")),
            TrainingRow("q", ("b",), ("c",)),
            TrainingRow("r", ("c",), ("a",)),
        ]
        data = TrainingData(rows).as_retrieval_data()
        found = {
            data.queries[query]: {data.corpus[id_]: grade for id_, grade in grades.items()}
            for query, grades in data.qrels.items()
        }
        assert found == {"q": {"a": 1, "b": 1, "c": 0}, "r": {"c": 1, "a": 0}}
        assert data.groups is None
        assert data.candidates is not None

    def test_the_corpus_stays_and_gets_what_it_lacks(self) -> None:
        corpus = {"d1": "a", "d2": "a", "d0": "z"}
        rows = [TrainingRow("q", ("a",), source="x"), TrainingRow("r", ("new",), source="y")]
        data = TrainingData(rows, corpus=corpus).as_retrieval_data()
        assert data.corpus == {**corpus, "d1'": "new"}
        assert data.qrels == {"0": {"d1": 1, "d2": 1}, "1": {"d1'": 1}}
        assert data.groups == {"0": "x", "1": "y"}
        assert data.candidates is None


_ROWS = st.lists(
    st.builds(
        TrainingRow,
        st.integers(0, 30).map("query {}".format),
        st.lists(st.integers(0, 40).map("passage {}".format), min_size=1, max_size=2, unique=True).map(tuple),
        document=st.integers(0, 12).map("document {}".format),
    ),
    min_size=1,
    max_size=40,
)


class TestSplits:
    @settings(max_examples=150, deadline=None)
    @given(_ROWS, st.sampled_from(["passage", "document", "query"]), st.integers(0, 9), st.randoms())
    def test_have_nothing_in_common_and_do_not_depend_on_the_order(
        self, rows: list[TrainingRow], by: SplitBy, seed: int, random: Random
    ) -> None:
        data = TrainingData(rows)
        try:
            split = data.split(by, 0.2, 0.2, seed)
        except TrainingDataError as error:
            assert "rows can't be divided" in str(error)  # noqa: PT017 - the other case is tested below
            return
        assert split.validation is not None
        assert split.test is not None
        parts = [split.train, split.validation, split.test]
        assert sorted(row.id for part in parts for row in part.rows) == sorted(row.id for row in data.rows)
        wanted = max(1, round(0.2 * len(rows)))
        for part in parts[1:]:
            assert wanted / 2 <= len(part.rows) <= wanted * 2
        for first, second in ((0, 1), (0, 2), (1, 2)):
            ours, theirs = parts[first].rows, parts[second].rows
            assert not {row.query for row in ours} & {row.query for row in theirs}
            if by != "query":
                assert not {text for row in ours for text in row.pos} & {text for row in theirs for text in row.pos}
            if by == "document":
                assert not {row.document for row in ours} & {row.document for row in theirs}
        shuffled = list(data.rows)
        random.shuffle(shuffled)
        try:
            again = TrainingData(shuffled).split(by, 0.2, 0.2, seed)
        except TrainingDataError:
            pytest.fail("another order of the rows can't be divided")
        assert again.test is not None
        assert {row.id for row in again.test.rows} == {row.id for row in split.test.rows}
        assert {row.id for row in again.train.rows} == {row.id for row in split.train.rows}

    def test_have_the_shares_and_another_seed_gives_others(self) -> None:
        data = TrainingData([TrainingRow(f"q{n}", (f"p{n // 2}",)) for n in range(200)], "faq", {"d": "e"})
        split = data.split(validation=0.1, test=0.2)
        assert split.validation is not None
        assert split.test is not None
        assert (len(split.train.rows), len(split.validation.rows), len(split.test.rows)) == (140, 20, 40)
        assert (split.train.name, split.validation.name, split.test.name) == ("faq-train", "faq-validation", "faq-test")
        assert split.test.corpus == {"d": "e"}
        assert data.split(seed=1).validation != data.split(seed=0).validation
        assert data.split(validation=0).validation is None
        assert data.split().test is None

    def test_places_stay_with_their_rows(self, tmp_path: Path) -> None:
        rows = [{"query": f"q{n}", "pos": f"p{n}"} for n in range(10)]
        validation = load_training_data(_lines(tmp_path / "a.jsonl", rows)).split().validation
        assert validation is not None
        assert validation.places == [f"{tmp_path / 'a.jsonl'}, line {int(validation.rows[0].id) + 1}"]

    @pytest.mark.parametrize(
        ("rows", "by", "said"),
        [
            ([TrainingRow("q", ("a",))], "passage", "1 rows can't be divided"),
            (
                [TrainingRow(f"q{n}", ("a",)) for n in range(20)],
                "passage",
                r"1 groups, the largest with 20.*by=\"query\"",
            ),
            ([TrainingRow(f"q{n}", (f"p{n}", f"p{n + 1}")) for n in range(20)], "passage", "1 groups, the largest"),
            ([TrainingRow("q", (f"p{n}",)) for n in range(20)], "query", "1 groups, the largest with 20"),
            ([TrainingRow(f"q{n}", (f"p{n // 50}",)) for n in range(100)], "passage", "2 groups, the largest with 50"),
            (
                [TrainingRow("q", ("a",), document="d"), TrainingRow("r", ("b",))],
                "document",
                r"rows\[1\]: document is mi",
            ),
        ],
    )
    def test_that_are_impossible(self, rows: list[TrainingRow], by: SplitBy, said: str) -> None:
        with pytest.raises(TrainingDataError, match=said):
            TrainingData(rows).split(by)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"by": "row"}, "by='row' is not known"),
            ({"validation": 1.0}, "below 1 in sum"),
            ({"validation": 0.6, "test": 0.4}, "below 1 in sum"),
            ({"test": -0.1}, "must be 0 or more"),
            ({"test": math.nan}, "must be 0 or more"),
        ],
    )
    def test_with_wrong_settings(self, arguments: Mapping[str, Any], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            TrainingData([TrainingRow("q", ("a",)), TrainingRow("r", ("b",))]).split(**arguments)


_REPEATABLE = """
from bge_integrations.training import TrainingData, TrainingRow, draw
rows = [TrainingRow(f"q{n}", (f"p{n}", f"o{n}"), tuple(f"n{n}{m}" for m in range(9))) for n in range(50)]
split = TrainingData(rows).split()
print([row.id for row in split.validation.rows], [draw(row, 1, 2, n, 4).negatives for n, row in enumerate(rows)])
"""

_CANDIDATES = st.lists(st.sampled_from("abcdefghij"), max_size=12).map(tuple)


class TestDraws:
    @settings(max_examples=200, deadline=None)
    @given(_CANDIDATES.filter(bool), _CANDIDATES, st.integers(), st.integers(0), st.integers(0), st.integers(0, 14))
    def test_have_no_text_twice_and_as_many_as_there_are(
        self, pos: tuple[str, ...], neg: tuple[str, ...], seed: int, epoch: int, index: int, count: int
    ) -> None:
        row = TrainingRow("q", pos, neg, tuple(map(float, map(ord, pos))), tuple(map(float, map(ord, neg))))
        drawn = draw(row, seed, epoch, index, count)
        assert drawn == draw(row, seed, epoch, index, count)
        assert drawn.positive in pos
        assert len({drawn.positive, *drawn.negatives}) == 1 + len(drawn.negatives)
        assert len(drawn.negatives) == min(count, len(set(neg) - {drawn.positive}))
        assert set(drawn.negatives) <= set(neg)
        assert drawn.positive_score == ord(drawn.positive)
        assert drawn.negative_scores == tuple(map(ord, drawn.negatives))

    def test_cover_all_candidates_over_epochs_evenly(self) -> None:
        row = TrainingRow("q", ("a", "b", "c"), tuple("uvwxyz"))
        drawn = [draw(row, 0, epoch, 3, 2) for epoch in range(3000)]
        for counts, different in (
            (Counter[Any](one.positive for one in drawn), 3),
            (Counter[Any](one.negatives for one in drawn), 6 * 5),
            (Counter[Any]((one.positive, one.negatives[0]) for one in drawn), 3 * 6),
        ):
            expected = len(drawn) / different
            assert len(counts) == different
            assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in counts.values())

    def test_differ_by_seed_epoch_and_row(self) -> None:
        row = TrainingRow("q", ("a",), tuple(f"n{n}" for n in range(1000)))
        settings_ = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (11, 1, 0), (1, 11, 0), (-1, 0, 0)]
        assert len({draw(row, *one, 5).negatives for one in settings_}) == len(settings_)

    def test_are_these_for_ever(self) -> None:
        """A training that is resumed with a later version must go on with the same passages."""
        row = TrainingRow("q", ("a", "b"), tuple(f"n{n}" for n in range(20)))
        assert draw(row, 42, 1, 7, 3) == Drawn("a", ("n2", "n17", "n0"))

    def test_without_scores_or_negatives(self) -> None:
        drawn = draw(TrainingRow("q", ("a",)), 0, 0, 0, 7)
        assert (drawn.positive, drawn.negatives, drawn.positive_score, drawn.negative_scores) == ("a", (), None, None)
        with pytest.raises(SettingsError, match="negatives=-1"):
            draw(TrainingRow("q", ("a",)), 0, 0, 0, -1)

    def test_and_splits_do_not_depend_on_the_process(self) -> None:
        outputs = {
            subprocess.run(
                [sys.executable, "-c", _REPEATABLE],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
            ).stdout
            for seed in ("1", "2")
        }
        assert len(outputs) == 1


class TestLeakage:
    def test_finds_shared_words_equal_queries_and_equal_pairs(self) -> None:
        train = TrainingData(
            [
                TrainingRow("How do I read a file line by line?", ("open it",)),
                TrainingRow("What is JSON", ("a format",)),
                TrainingRow("What is XML", ("a format",)),
            ],
            "train",
        )
        other = TrainingData(
            [
                TrainingRow("how to READ a file: line by line, fast", ("iterate",), id="words"),
                TrainingRow("what  is json", ("a Format",), id="pair"),
                TrainingRow("What is XML", ("tags",), id="query"),
                TrainingRow("Is there a way to read a directory", ("listdir",), id="none"),
            ],
            "other",
        )
        found = leakage(train, other)
        assert [(one.id, one.train_query, one.words) for one in found.overlaps] == [
            ("words", "How do I read a file line by line?", "read a file line by"),
        ]
        assert (found.equal_queries, found.equal_pairs) == (("pair", "query"), ("pair",))
        assert (found.queries, found.short, found.n) == (4, 2, 5)
        assert found.found == ("words", "pair", "query")
        said = found.in_words()
        assert "1 of 4 queries of other share 5 words in a row with a training query of train." in said
        assert "2 are equal to a training query, 1 of them with an equal passage." in said
        assert "2 have fewer than 5 words" in said
        assert "'read a file line by'" in said
        assert found.in_words(examples=0).count("\n") == 3
        assert leakage(train, other.as_retrieval_data()) == found

    def test_compares_characters_of_chinese(self) -> None:
        train = TrainingData([TrainingRow("怎样用Python读取文件的每一行？", ("p",))])
        other = RetrievalData(
            {"a": "用 python 读取文件，好吗", "b": "怎样写入数据库表格"}, {"d": "x"}, {"a": {"d": 1}, "b": {"d": 1}}
        )
        found = leakage(train, other)
        assert [(one.id, one.words) for one in found.overlaps] == [("a", "用 python 读 取 文")]
        assert not found.equal_queries

    def test_fewer_words_find_more(self) -> None:
        train = TrainingData([TrainingRow("a b c d e f", ("p",))])
        other = TrainingData([TrainingRow("x c d e y", ("p",))])
        assert not leakage(train, other).overlaps
        assert leakage(train, other, 3).overlaps
        with pytest.raises(SettingsError, match="n=0"):
            leakage(train, other, 0)

    def test_a_split_by_passage_has_no_equal_queries(self) -> None:
        rows = [TrainingRow(f"question {n % 40}", (f"p{n}",)) for n in range(100)]
        split = TrainingData(rows).split("query")
        assert split.validation is not None
        assert not leakage(split.train, split.validation).equal_queries


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, bge_integrations.training; print({'torch', 'datasets', 'openvino'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
