"""The benchmark of bge-m3's three outputs, on tiny weights; never how fast anything is."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from benchmarks import m3
from benchmarks.contenders import Contender
from benchmarks.entrants import Loaded, Place
from benchmarks.lineup import assemble
from benchmarks.shapes import Shape
from tests.checkpoints_of_pairs import reference_m3

SHAPE = Shape("bge-m3", "bge-m3", 2, 64, 1, 8192)


def plain(place: Place) -> Loaded:
    """The formulas, with plain transformers."""

    def parts(texts: Sequence[str]) -> list[Any]:
        found = reference_m3(place.model, texts, max_length=8192)
        return [*zip(found.dense, found.sparse, found.colbert, strict=True)]

    return Loaded(parts, lambda text: parts([text])[0])


REFERENCE = Contender("transformers", "float32", "", plain)
OURS = next(contender for contender in m3.CONTENDERS if contender.name == "bge-openvino-float32")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model in it."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m3, "_TRAINED_TEXTS", 60)
        m3.checkpoint(SHAPE, folder)
    return folder


@pytest.fixture(scope="module")
def place(workdir: Path) -> Place:
    return Place(m3.checkpoint(SHAPE, workdir), workdir)


def test_it_measures_who_gives_the_same_outputs(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
        monkeypatch.setenv(name, "1")  # given back what they were afterwards
    file = tmp_path / "m3.json"
    size = ["--layers", "2", "--width", "64", "--texts", "8", "--seconds", "0.01", "--rounds", "1"]
    main = [*size, "--workdir", str(workdir), "--output", str(file), "--contenders", "bge-openvino-float32,bge-m3-lite"]
    m3.main(main, REFERENCE)
    measured = json.loads(file.read_text(encoding="utf-8"))["shapes"]["bge-m3"]
    assert measured["contenders"][OURS.name]["least_cosine"] == pytest.approx(1, abs=1e-6)
    assert list(measured["throughput"]["mixed"]["results"]) == [OURS.name]
    assert measured["latency"]["results"][OURS.name]["p50_ms"] > 0
    assert measured["left_out"]["bge-m3-lite"]  # it takes no model of another shape, and may not be installed
    printed = capsys.readouterr().out
    assert "compared with those of transformers" in printed
    assert "ratio to transformers" in printed


def test_who_gives_other_outputs_or_fewer_is_left_out(place: Place) -> None:
    def changed(name: str, change: Callable[[Any], Any]) -> Contender:
        def load(place: Place) -> Loaded:
            right = plain(place)
            return Loaded(lambda texts: [change(one) for one in right.documents(texts)], right.query)

        return Contender(name, "float32", "", load)

    wrong = [
        changed("dense", lambda one: (-one[0], *one[1:])),
        changed("sparse", lambda one: (one[0], {2 * token: weight for token, weight in one[1].items()}, one[2])),
        changed("colbert", lambda one: (*one[:2], -one[2])),
        changed("nan", lambda one: (one[0] * np.nan, *one[1:])),
        changed("missing", lambda one: (one[0], {}, one[2])),
    ]
    lineup = assemble([*wrong, OURS], place, ["a vector", "a store of vectors"], ["why?", ""], REFERENCE, m3.rows_of)
    assert list(lineup.ready) == [OURS.name]
    for name in ("dense", "sparse", "colbert", "nan"):
        assert lineup.left_out[name].startswith("gives other vectors than transformers: least cosine")
    assert "ValueError: vectors of lengths" in lineup.left_out["missing"]


def test_both_vocabularies_are_the_same(place: Place) -> None:
    proto = importlib.import_module("transformers.utils.sentencepiece_model_pb2_new").ModelProto()
    proto.ParseFromString((place.model / "sentencepiece.bpe.model").read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(place.model)
    assert [piece.piece for piece in proto.pieces[:3]] == ["<unk>", "<s>", "</s>"]
    assert [piece.type for piece in proto.pieces[:4]] == [2, 3, 3, 1]
    assert len(proto.pieces) > 100
    for number, piece in enumerate(proto.pieces[3:], start=4):  # one further on, since <pad> stands between
        assert tokenizer.convert_ids_to_tokens(number) == piece.piece


def test_an_unknown_contender_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit):
        m3.main(["--contenders", "nobody"])
    assert "no contender is called 'nobody'" in capsys.readouterr().err


def test_rows_are_of_each_output() -> None:
    rows = [*m3.rows_of([(np.ones(4), {"5": 2.0, 7: 1.0}, np.ones((3, 4))), (np.ones(4), {}, np.ones((1, 4)))])]
    assert [len(row) for row in rows] == [4, len(rows[1]), 4, 4, 4, 4, 4]
    assert rows[1][[5, 7]].tolist() == [2.0, 1.0]
    assert rows[1].sum() == 3
