"""Texts for pre-training: where they come from, and the pieces of token ids that they become."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.training.retromae import pieces as of_pieces
from bge_integrations.training.retromae.pieces import Pieces, make_pieces
from bge_integrations.training.retromae.texts import TextSource
from bge_integrations.training.retromae.tokens import Tokens
from bge_integrations.training.retromae.words import WordTable
from tests.checkpoints import make_tokenizer

TEXTS = ["the quick fox", "北京 天气", "the lazy dog jumps"]


def tokens_of(limit: int = 64, identity: str = "one") -> Tokens:
    tokenizer = make_tokenizer("bert", 64)

    def encode(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    around = tokenizer("")["input_ids"]
    return Tokens(identity, encode, tuple(around[:1]), tuple(around[1:]), WordTable.of(tokenizer, "it"), limit)


def pieces_of(data: Any, folder: Path, **options: Any) -> Pieces:  # noqa: ANN401
    folder.mkdir(exist_ok=True)
    return make_pieces(TextSource.of(data), tokens_of(**options), folder, show_progress=False)


class TestSources:
    @pytest.fixture
    def sources(self, tmp_path: Path) -> dict[str, Any]:
        lines = "\n".join(json.dumps({"text": text, "other": 1}, ensure_ascii=False) for text in TEXTS)
        (tmp_path / "rows.jsonl").write_text(f"{lines}\n\n" + '{"text": " "}\n', encoding="utf-8")
        with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(lines)
        (tmp_path / "rows.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
        (tmp_path / "folder").mkdir()
        for number, text in enumerate(TEXTS[:2]):
            (tmp_path / "folder" / f"{number}.txt").write_text(text, encoding="utf-8")
        dataset = Dataset.from_dict({"text": [TEXTS[0], "", *TEXTS[1:]], "id": [1, 2, 3, 4]})
        dataset.select([3]).to_parquet(tmp_path / "folder" / "2.parquet")
        dataset.save_to_disk(str(tmp_path / "saved"))
        DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(str(tmp_path / "saved-splits"))
        (tmp_path / "beir").mkdir()
        (tmp_path / "beir" / "corpus.jsonl").write_text(lines, encoding="utf-8")
        (tmp_path / "beir" / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}', encoding="utf-8")
        names = ("rows.jsonl", "rows.jsonl.gz", "rows.txt", "folder", "saved", "saved-splits", "beir")
        return {
            **{name: tmp_path / name for name in names},
            "dataset": dataset,
            "splits": DatasetDict({"train": dataset}),
            "texts": TEXTS,
            "iterator": iter(TEXTS),
        }

    def test_all_formats_give_the_same_texts(self, sources: dict[str, Any]) -> None:
        for name, data in sources.items():
            assert list(TextSource.of(data)) == TEXTS, name

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("rows.jsonl", '{"text": "a"}\n{"txt": "b"}', r"rows\.jsonl, line 2: text is None; write a text"),
            ("rows.jsonl", '{"text": "a"}\n{"text": 3}', r"rows\.jsonl, line 2: text is 3; write a text"),
            ("rows.jsonl", '{"text": "a"}\n{"text"', r"rows\.jsonl, line 2 is no JSON"),
            ("rows.jsonl", '{"text": "a \\ud83d"}', r"line 1: text has a lone surrogate"),
            ("rows.csv", "text\na", r"rows\.csv is of no known format"),
        ],
    )
    def test_a_fault_is_named_with_its_place(self, tmp_path: Path, name: str, content: str, said: str) -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(TrainingDataError, match=said):
            list(TextSource.of(tmp_path / name))

    def test_other_things_are_refused(self, tmp_path: Path) -> None:
        dataset = Dataset.from_dict({"content": ["a"]})
        (tmp_path / "empty").mkdir()
        (tmp_path / "mixed").mkdir()
        (tmp_path / "mixed" / "model.bin").touch()
        (tmp_path / "bad.parquet").write_bytes(b"no parquet")
        dataset.to_parquet(tmp_path / "other.parquet")
        for data, error, said in (
            (tmp_path / "nowhere", TrainingDataError, "There is no file or folder"),
            (tmp_path / "empty", TrainingDataError, "is empty"),
            (tmp_path / "mixed", TrainingDataError, r"files that are no texts: model\.bin"),
            (dataset, TrainingDataError, "no column 'text'; it has content"),
            (DatasetDict({"dev": dataset}), TrainingDataError, "no split 'train'; it has dev"),
            (tmp_path / "bad.parquet", TrainingDataError, r"bad\.parquet can't be read"),
            (tmp_path / "other.parquet", TrainingDataError, r"other\.parquet has no column 'text'"),
            (["a", 2], TrainingDataError, "text 1 is 2; write a text"),
            (Dataset.from_dict({"text": ["a", None]}), TrainingDataError, "dataset, row 1: text is None"),
            (3, SettingsError, "was given an int"),
            (b"abc", SettingsError, "was given a bytes"),
        ):
            with pytest.raises(error, match=said):
                list(TextSource.of(data))


class TestPieces:
    def test_short_texts_are_what_the_tokenizer_gives(self, tmp_path: Path) -> None:
        found = pieces_of(TEXTS, tmp_path)
        expected = make_tokenizer("bert", 64)(TEXTS)["input_ids"]
        assert [found[number].tolist() for number in range(len(found))] == expected
        assert (found.facts.texts, found.facts.pieces, found.facts.cut) == (3, 3, 0)
        assert found.facts.tokens == sum(map(len, expected))
        assert found.facts.dtype == "uint16"

    @pytest.mark.parametrize("limit", [8, 13, 30])
    def test_long_texts_are_cut_between_words_into_pieces_of_similar_length(self, tmp_path: Path, limit: int) -> None:
        draws = np.random.default_rng(0)
        words = ("the", "foxes", "jumps", "sentences", "北京", ",", "retrieval")
        texts = [" ".join(draws.choice(words, size=size)) for size in (1, 3, 20, 100)]
        found = pieces_of(texts, tmp_path, limit=limit)
        tokens = tokens_of(limit)
        whole = [token for text in tokens.encode(texts) for token in text]
        made = [found[number] for number in range(len(found))]
        assert np.concatenate([piece[1:-1] for piece in made]).tolist() == whole
        inside = {number for token, number in make_tokenizer("bert", 64).get_vocab().items() if token.startswith("##")}
        assert not inside & {int(piece[1]) for piece in made}
        assert all(piece[[0, -1]].tolist() == [tokens.before[0], tokens.after[0]] for piece in made)
        assert max(map(len, made)) <= limit
        assert found.facts.cut == sum(len(text) > limit - 2 for text in tokens.encode(texts))
        if limit == 30:  # much longer than a word
            last = made[-4:]
            assert max(map(len, last)) - min(map(len, last)) <= 8

    def test_a_word_longer_than_a_piece_is_cut(self) -> None:
        tokens = tokens_of(8)
        inside = tokens.encode(["foxes"])[0]
        long = [inside[0], *[inside[1]] * 20]
        found = list(tokens.pieces(long))
        assert np.concatenate([piece[1:-1] for piece in found]).tolist() == long
        assert max(map(len, found)) <= 8

    def test_texts_are_read_in_a_stream(self, tmp_path: Path) -> None:
        """At most some hundred of them are in memory."""
        alive = [0, 0]

        class Text(str):
            __slots__ = ()

            def __new__(cls, text: str) -> Text:
                alive[0] += 1
                alive[1] = max(alive)
                return super().__new__(cls, text)

            def __del__(self) -> None:
                alive[0] -= 1

        def read() -> Iterator[str]:
            for number in range(5000):
                yield Text(f"fox {number}")

        assert len(pieces_of(read(), tmp_path)) == 5000
        assert alive[1] < 1000

    def test_files_that_did_not_change_are_not_read_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file, work = tmp_path / "rows.txt", tmp_path / "work"
        file.write_text("\n".join(TEXTS), encoding="utf-8")
        first = pieces_of(file, work)
        with monkeypatch.context() as patch:
            patch.setattr(of_pieces, "_write", None)
            assert pieces_of(file, work).facts == first.facts
            for options in ({"limit": 10}, {"identity": "two"}):
                with pytest.raises(TypeError):
                    pieces_of(file, work, **options)
            with pytest.raises(TypeError):  # whether texts in memory are the same, only a look at them tells
                pieces_of(TEXTS, work)
        file.write_text("\n".join([*TEXTS, "one more"]), encoding="utf-8")
        second = pieces_of(file, work)
        assert second.facts.pieces == 4
        assert second.facts.digest != first.facts.digest
        assert pieces_of([*TEXTS, "one more"], work).facts == second.facts

    def test_several_that_ask_at_once_get_the_same(self, tmp_path: Path) -> None:
        file = tmp_path / "rows.txt"
        file.write_text("\n".join(f"fox {number}" for number in range(500)), encoding="utf-8")
        found: list[Pieces] = []
        threads = [threading.Thread(target=lambda: found.append(pieces_of(file, tmp_path / "work"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one[499].tolist() for one in found] == [found[0][499].tolist()] * 3
        assert len({one.facts.digest for one in found}) == 1
        left = sorted(path.name for path in (tmp_path / "work").iterdir())
        assert left[:4] == ["texts.ends", "texts.ids", "texts.json", "texts.lock"][: len(left)]
        assert not [name for name in left if str(os.getpid()) in name]

    def test_nothing_to_read_is_refused(self, tmp_path: Path) -> None:
        for data, said in ((["", "  "], "texts has no texts to train on"), (["a", 2], "text 1 is 2")):
            with pytest.raises(TrainingDataError, match=said):
                pieces_of(data, tmp_path)
        assert not [path for path in tmp_path.iterdir() if path.name != "texts.lock"]
