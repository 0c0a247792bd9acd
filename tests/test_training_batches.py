"""Batches of training rows: which rows stand together, and what the model reads of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.training import TrainingRow, draw
from bge_integrations.training.losses.candidates import Candidates
from bge_integrations.training.rows.batches import Collator, Epochs, RowBatches
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.trainer.checks import row_groups

_GROUPS = st.lists(st.integers(0, 30), min_size=1, max_size=4)


def _numbered(sizes: Sequence[int]) -> list[range]:
    starts = np.cumsum([0, *sizes])
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=False)]


class Read:
    """What a model reads of a batch, and which passages are compared with each query."""

    def __init__(self, rows: Sequence[TrainingRow], **options: Any) -> None:  # noqa: ANN401
        self.texts: list[list[str]] = []

        def tokenize(texts: list[str], length: int) -> list[list[int]]:
            self.texts.append(sorted(texts, key=len))
            return [[1] * len(text) for text in texts]

        collator = Collator(
            rows,
            tokenize,
            instruction=lambda row: Instruction("find: " if row.prompt is None else row.prompt),
            **{
                "negatives": 7,
                "query_length": 64,
                "passage_length": 256,
                "pad_id": 0,
                "seed": 0,
                "epochs": Epochs(),
                **options,
            },
        )
        self.layout = Layout.of(collator([{"row": row} for row in range(len(rows))])["layout"])
        self.queries, self.passages = self.texts

    def compared(self) -> list[set[str]]:
        """Returns the passages that count for each row, as the model reads them."""
        ignored = Candidates(self.layout).ignored(slice(None))
        return [
            {text for text, is_ignored in zip(self.passages, row, strict=True) if not is_ignored} for row in ignored
        ]


class TestRowBatches:
    @settings(max_examples=100, deadline=None)
    @given(_GROUPS, st.integers(1, 8), st.integers(1, 3), st.integers(0, 3), st.lists(st.integers(0, 3)))
    def test_processes_take_turns_at_rows_of_one_group(
        self, sizes: list[int], batch_size: int, processes: int, epoch: int, halved: list[int]
    ) -> None:
        groups = _numbered(sizes)
        group_of = {row: place for place, group in enumerate(groups) for row in group}
        epochs = Epochs(epoch)
        batches = RowBatches(groups, batch_size, seed=1, epochs=epochs, halved=halved, processes=processes)
        # As accelerate shares them out.
        shards = [
            list(BatchSamplerShard(batches, processes, process, even_batches=False)) if processes > 1 else list(batches)
            for process in range(processes)
        ]
        assert {len(shard) for shard in shards} == {len(batches) // processes}
        for turn in zip(*shards, strict=True):
            (place,) = {group_of[row] for batch in turn for row in batch}
            most = min(batch_size, max(2, batch_size // 2)) if place in halved else batch_size
            assert all(1 <= len(batch) <= most for batch in turn)
        seen = Counter(row for shard in shards for batch in shard for row in batch)
        for group in groups:
            missed = [row for row in group if not seen[row]]
            assert len(missed) < max(2, processes)
            assert not missed or len(group) > len(missed)
            assert len(group) < processes or all(seen[row] <= 1 for row in group)

    def test_the_order_is_another_one_each_epoch(self) -> None:
        epochs = Epochs()
        batches = RowBatches(_numbered([10]), 4, seed=0, epochs=epochs)
        first = list(batches)
        assert list(batches) == first
        batches.set_epoch(1)
        assert list(batches) != first
        assert sorted(row for batch in batches for row in batch) == list(range(10))

    def test_a_last_row_alone_has_no_negatives_and_is_left_out(self) -> None:
        batches = RowBatches(_numbered([9]), 4, seed=0, epochs=Epochs())
        assert [len(batch) for batch in batches] == [4, 4]
        assert len(batches) == 2


class TestCompared:
    def test_equal_passages_count_once_and_answers_of_an_equal_query_do_not(self) -> None:
        rows = [
            TrainingRow("q", ("a",), ("n", "m")),
            TrainingRow("q", ("b",), ("n",)),
            TrainingRow("r", ("b",)),
        ]
        assert Read(rows).compared() == [{"a", "n", "m"}, {"b", "n", "m"}, {"b", "a", "n", "m"}]

    def test_a_row_alone_has_its_own_negatives_only(self) -> None:
        rows = [TrainingRow("q", ("a",), ("n",), no_in_batch_neg=True), TrainingRow("r", ("b",), ("m",))]
        assert Read(rows).compared() == [{"a", "n"}, {"b", "m", "a", "n"}]

    def test_rows_without_negatives_have_those_of_others(self) -> None:
        rows = [TrainingRow("q", ("a",)), TrainingRow("r", ("b",), ("m",))]
        assert Read(rows).compared() == [{"a", "b", "m"}, {"b", "m", "a"}]

    def test_negatives_that_a_teacher_takes_for_answers_are_none(self) -> None:
        rows = [
            TrainingRow("q", ("a", "b"), ("n", "m", "o"), pos_scores=(5, 3), neg_scores=(2.5, 1.0, 4.0)),
            TrainingRow("r", ("n",), ("o",)),
        ]
        for margin, own in ((None, {"n", "m", "o"}), (0.0, {"n", "m"}), (1.0, {"m"}), (9.0, set())):
            compared = Read(rows, teacher_margin=margin).compared()[0]
            assert {"n", "m", "o"} & compared == own, margin

    def test_rows_without_scores_keep_their_negatives(self) -> None:
        assert Read([TrainingRow("q", ("a",), ("n",))], teacher_margin=0.0).compared() == [{"a", "n"}]


class TestTypes:
    def test_only_1neg_draws_one_negative(self) -> None:
        row = TrainingRow("q", ("a",), ("b", "c", "d"), neg_scores=(1, 2, 3), type="only_1neg")
        found = {draw(row, 0, epoch, 0, 7).negatives for epoch in range(50)}
        assert found == {("b",), ("c",), ("d",)}
        assert draw(row, 0, 0, 0, 0).negatives == ()
        assert len(draw(row, 0, 0, 0, 7).negative_scores or ()) == 1

    @pytest.mark.parametrize("kind", ["normal", "only_1neg", "symmetric_class"])
    def test_passages_have_no_instruction(self, kind: str) -> None:
        read = Read([TrainingRow("q", ("a",), ("b",), type=kind), TrainingRow("r", ("c",), type=kind)])
        assert read.queries == ["find: q", "find: r"]
        assert sorted(read.passages) == ["a", "b", "c"]
        assert read.layout.texts is None

    @pytest.mark.parametrize("kind", ["symmetric_sts", "symmetric_clustering"])
    def test_the_instruction_of_a_row_is_before_its_passages_too(self, kind: str) -> None:
        rows = [TrainingRow("q", ("a",), ("b",), type=kind), TrainingRow("r", ("c",), type=kind, prompt="as: ")]
        read = Read(rows)
        assert read.queries == ["as: r", "find: q"]
        assert sorted(read.passages) == ["as: c", "find: a", "find: b"]

    def test_equal_texts_with_different_instructions_are_no_negatives(self) -> None:
        rows = [
            TrainingRow("q", ("a",), ("n",), type="symmetric_sts"),
            TrainingRow("q", ("bb",)),
            TrainingRow("r", ("a",), ("n",)),
        ]
        assert Read(rows).compared() == [
            # "a" is its positive without the instruction, "bb" an answer to the same query.
            {"find: a", "find: n", "n"},
            {"bb", "n", "find: n"},
            {"a", "n", "find: n", "bb"},
        ]

    def test_a_symmetric_query_is_no_negative_of_itself(self) -> None:
        rows = [
            TrainingRow("fox", ("a fox",), type="symmetric_sts"),
            TrainingRow("a fox", ("fox",), type="symmetric_sts"),
            TrainingRow("dog", ("a dog",), type="symmetric_sts"),
        ]
        assert Read(rows).compared() == [
            {"find: a fox", "find: a dog"},
            {"find: fox", "find: a dog"},
            {"find: a dog", "find: fox", "find: a fox"},
        ]

    def test_copies_count_once_as_the_model_reads_them(self) -> None:
        rows = [
            TrainingRow(query, (positive,), ("n",), type="symmetric_sts", prompt="x: ")
            for query, positive in (("q", "a"), ("r", "b"))
        ]
        assert Read(rows).compared() == [{"x: a", "x: n", "x: b"}, {"x: b", "x: n", "x: a"}]

    def test_a_guide_reads_texts_without_instructions(self) -> None:
        seen: list[list[str]] = []

        def embed(texts: list[str]) -> Any:  # noqa: ANN401
            seen.append(sorted(texts))
            return np.zeros((len(texts), 2), dtype=np.float32)

        Read([TrainingRow("q", ("a",), ("b",), type="symmetric_sts")], guide=(embed, embed))
        assert seen == [["q"], ["a", "b"]]

    def test_with_same_source_a_batch_has_one_type_and_symmetric_ones_are_halved(self) -> None:
        rows = [
            TrainingRow(f"q{number}", ("a",), type=kind, source=source)
            for source in ("one", "two")
            for kind in ("normal", "symmetric_sts")
            for number in range(16)
        ]
        groups = row_groups(rows, same_source=True)
        halved = [place for place, (_, kind) in enumerate(groups) if kind == "symmetric_sts"]
        batches = RowBatches(list(groups.values()), 8, seed=0, epochs=Epochs(), halved=halved)
        found = Counter[Any]()
        for batch in batches:
            ((source, kind),) = {(rows[row].source, rows[row].type) for row in batch}
            found[source, kind, len(batch)] += 1
        assert found == {
            (source, kind, size): math.ceil(16 / size)
            for source in ("one", "two")
            for kind, size in (("normal", 8), ("symmetric_sts", 4))
        }
