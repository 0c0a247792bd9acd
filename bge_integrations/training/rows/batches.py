"""Makes batches of training rows: which rows, which of their texts, and the token ids. Imports torch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler

from bge_integrations.catalogue.instructions import Instruction
from bge_integrations.training.rows.data import TrainingRow
from bge_integrations.training.rows.layout import Layout
from bge_integrations.training.rows.sampling import Drawn, draw
from bge_integrations.training.rows.teacher import doubted_negatives

__all__ = [
    "Collator",
    "Epochs",
    "RowBatches",
    "TargetCollator",
    "equal_queries",
    "padded_column",
    "ragged",
    "without_negatives",
]

Tokenize = Callable[[list[str], int], list[list[int]]]
"""Function from texts and a maximum length to token ids, with special tokens."""
Encode = Callable[[list[str]], np.ndarray]

_BOTH_SIDES = ("symmetric_sts", "symmetric_clustering")
"""Types of rows whose instruction is before passages too."""


@dataclass
class Epochs:
    """The current epoch, which decides on the order of rows and on what is drawn of each."""

    current: int = 0


class RowBatches(BatchSampler):
    """Batches of row numbers, in another order each epoch. The order depends on seed and epoch alone.

    A group is a source of data whose rows are never mixed with others in a batch. Processes that train together take
    turns at the batches. In each turn they have rows of one group, since all passages of a turn are compared.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        batch_size: int,
        *,
        seed: int,
        epochs: Epochs,
        halved: Collection[int] = (),
        processes: int = 1,
    ) -> None:
        """Takes the rows.

        Args:
            groups: Row numbers of each group.
            batch_size: Rows of a batch.
            seed: Of the order.
            epochs: The current epoch.
            halved: Places of groups whose batches have half as many rows, but at least two.
            processes: Number of processes that train together.
        """
        half = min(batch_size, max(2, batch_size // 2))
        self._groups = [
            (np.asarray(group), half if place in halved else batch_size)
            for place, group in enumerate(groups)
            if len(group)
        ]
        self._seed = seed
        self._epochs = epochs
        self._processes = processes
        # accelerate leaves out batches of other sizes, unless it knows of none.
        self.batch_size = batch_size if processes == 1 else None  # type: ignore[assignment]
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Starts an epoch."""
        self._epochs.current = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the current epoch.

        A last batch of one row has no negatives, and is left out. So are last rows that are fewer than the processes.
        """
        generator = np.random.default_rng((self._seed, self._epochs.current))
        turns = []
        for (group, _), sizes in zip(self._groups, self._sizes(), strict=True):
            order = group[generator.permutation(len(group))]
            ends = np.cumsum(sizes)
            turns += [order[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        for place in generator.permutation(len(turns)):
            yield from self._shared(turns[place].tolist())

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return self._processes * sum(map(len, self._sizes()))

    def _sizes(self) -> list[list[int]]:
        """Returns the number of rows of each turn of all processes, for each group."""
        found = []
        for group, batch_size in self._groups:
            whole, rest = divmod(len(group), batch_size * self._processes)
            is_kept = rest >= max(2, self._processes) or (rest and not whole)
            found.append([batch_size * self._processes] * whole + [rest] * bool(is_kept))
        return found

    def _shared(self, turn: list[int]) -> Iterator[list[int]]:
        """Yields a batch for each process. A group with fewer rows than processes gives rows to several."""
        rows = [turn[place % len(turn)] for place in range(max(len(turn), self._processes))]
        cuts = [len(rows) * process // self._processes for process in range(self._processes + 1)]
        yield from (rows[begin:end] for begin, end in pairwise(cuts))


def equal_queries(
    rows: Sequence[TrainingRow], doubted: Callable[[TrainingRow], frozenset[str]] = lambda _: frozenset()
) -> dict[str, frozenset[str]]:
    """Returns the texts that are no negatives of a query: all its positives, and those that are doubted.

    Queries with one such text are left out.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.query, set()).update(row.pos, doubted(row))
    return {query: frozenset(positives) for query, positives in found.items() if len(positives) > 1}


class Collator:
    """Draws a positive and negatives for each row of a batch, and encodes each different text once."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        tokenize: Tokenize,
        *,
        instruction: Callable[[TrainingRow], Instruction],
        fit: Callable[[str, Instruction, int], str] | None = None,
        negatives: int,
        query_length: int,
        passage_length: int,
        pad_id: int,
        seed: int,
        epochs: Epochs,
        uses_teacher: bool = False,
        teacher_margin: float | None = None,
        guide: tuple[Encode, Encode] | None = None,
        examples: Callable[[Sequence[tuple[int, TrainingRow, str]]], list[str]] | None = None,
    ) -> None:
        """Describes the batches.

        Args:
            rows: All rows.
            tokenize: Gives token ids.
            instruction: The text before and after a row's query.
            fit: Cuts a query, so that the text after it is read too; `None`: there is none.
            negatives: Negatives of a row, at most.
            query_length: Tokens of a query, at most, instruction included.
            passage_length: Tokens of a passage, at most, instruction included.
            pad_id: Token id of padding.
            seed: Of what is drawn.
            epochs: The current epoch.
            uses_teacher: Whether the rows' scores are handed on.
            teacher_margin: Which negatives the scores leave out, as in `EmbedderTraining`.
            guide: Functions that embed queries and passages with unit length; `None`: no guide.
            examples: Function from the rows of a batch, each with its position in the data and its positive, to the
                examples before each query; `None`: none.
        """

        def doubted(row: TrainingRow) -> frozenset[str]:
            return frozenset() if teacher_margin is None else doubted_negatives(row, teacher_margin)

        self._rows = [without_negatives(row, doubted(row)) for row in rows]
        self._tokenize = tokenize
        self._instruction = instruction
        self._fit = fit
        self._negatives = negatives
        self._lengths = query_length, passage_length
        self._pad_id = pad_id
        self._seed = seed
        self._epochs = epochs
        self._uses_teacher = uses_teacher
        self._guide = guide
        self._examples = examples
        self._positives = equal_queries(rows, doubted)
        self._has_instructed_passages = any(self._around_passages(row) != Instruction() for row in rows)

    def __call__(self, chosen: Sequence[Mapping[str, int]]) -> dict[str, dict[str, Tensor]]:
        """Returns token ids and masks of queries and of passages, longest last, and the layout."""
        rows = [self._rows[one["row"]] for one in chosen]
        drawn = [
            draw(row, self._seed, self._epochs.current, one["row"], self._negatives)
            for one, row in zip(chosen, rows, strict=True)
        ]
        shown = [""] * len(rows)
        if self._examples is not None:
            shown = self._examples(
                [(one["row"], row, two.positive) for one, row, two in zip(chosen, rows, drawn, strict=True)]
            )
        texts = [f"{before}{self._asked(row)}" for before, row in zip(shown, rows, strict=True)]
        asked = {text: row.query for text, row in zip(texts, rows, strict=True)}
        queries = _Column(list(asked), self._tokenize, self._lengths[0])
        found: dict[str, str] = {}
        groups = []
        for row, one in zip(rows, drawn, strict=True):
            around = self._around_passages(row)
            group = {around.apply(text): text for text in (one.positive, *one.negatives)}
            groups.append(list(group))
            found |= group
        passages = _Column(list(found), self._tokenize, self._lengths[1])
        plain = [found[text] for text in passages.texts]
        most = max(map(len, groups))
        answers = [self._answers(row, one) for row, one in zip(rows, drawn, strict=True)]
        guides: dict[str, Tensor] = {}
        if self._guide is not None:
            embed_queries, embed_passages = self._guide
            guides["guide_queries"] = torch.from_numpy(embed_queries([asked[text] for text in queries.texts]))
            guides["guide_passages"] = torch.from_numpy(embed_passages(plain))
        layout = Layout(
            queries=torch.tensor([queries.place[text] for text in texts]),
            candidates=ragged([[passages.place[text] for text in group] for group in groups]),
            keys=torch.tensor([_key(text) for text in passages.texts]),
            known=ragged([[_key(text) for text in sorted(texts)] for texts in answers]),
            is_alone=torch.tensor([row.no_in_batch_neg for row in rows]),
            texts=torch.tensor([_key(text) for text in plain]) if self._has_instructed_passages else None,
            teacher=_scores(drawn, most) if self._uses_teacher else None,
            **guides,
        )
        return {
            "queries": queries.padded(self._pad_id),
            "passages": passages.padded(self._pad_id),
            "layout": layout.as_dict(),
        }

    def _asked(self, row: TrainingRow) -> str:
        """Returns a row's query as the model reads it."""
        around = self._instruction(row)
        query = self._fit(row.query, around, self._lengths[0]) if around.suffix and self._fit else row.query
        return around.apply(query)

    def _around_passages(self, row: TrainingRow) -> Instruction:
        return self._instruction(row) if row.type in _BOTH_SIDES else Instruction()

    def _answers(self, row: TrainingRow, drawn: Drawn) -> frozenset[str]:
        """Returns texts that are no negatives for a row, beside its drawn positive."""
        found = self._positives.get(row.query, frozenset({drawn.positive}))
        if row.type in _BOTH_SIDES:
            found |= {row.query}  # another row may have it as a passage
        # With another instruction, or without one, the positive itself is another passage with the same text.
        return found if self._has_instructed_passages else found - {drawn.positive}


class TargetCollator:
    """Encodes the texts of a batch, each with the vector that the model shall give."""

    def __init__(
        self, texts: Sequence[str], vectors: NDArray[np.float32], tokenize: Tokenize, *, length: int, pad_id: int
    ) -> None:
        """Describes the batches."""
        self._texts = texts
        self._vectors = vectors
        self._tokenize = tokenize
        self._length = length
        self._pad_id = pad_id

    def __call__(self, chosen: Sequence[Mapping[str, int]]) -> dict[str, dict[str, Tensor]]:
        """Returns token ids and masks of the different texts, longest last; the place of each row among them; vectors.

        A query and a document can be one text for the model, and two for its teacher.
        """
        rows = [one["row"] for one in chosen]
        column = _Column([self._texts[row] for row in rows], self._tokenize, self._length)
        targets = {
            "places": torch.tensor([column.place[self._texts[row]] for row in rows]),
            "vectors": torch.from_numpy(self._vectors[rows]),
        }
        return {"texts": column.padded(self._pad_id), "targets": targets}


class _Column:
    """Different texts with their token ids, shortest first, so that a mini-batch has texts of similar length."""

    def __init__(self, given: Sequence[str], tokenize: Tokenize, length: int) -> None:
        texts = list(dict.fromkeys(given))
        ids = tokenize(texts, length)
        order = sorted(range(len(texts)), key=lambda place: len(ids[place]))
        self.texts = [texts[place] for place in order]
        self.place = {text: place for place, text in enumerate(self.texts)}
        self._ids = [ids[place] for place in order]

    def padded(self, pad_id: int) -> dict[str, Tensor]:
        return padded_column(self._ids, pad_id)


def padded_column(texts: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Returns token ids padded on the right, and their mask, shape [texts, tokens of the longest]."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), pad_id)
    mask = torch.zeros((len(texts), width), dtype=torch.int64)
    for row, one in enumerate(texts):
        ids[row, : len(one)] = torch.tensor(one)
        mask[row, : len(one)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def without_negatives(row: TrainingRow, texts: frozenset[str]) -> TrainingRow:
    """Returns a row without some of its negatives."""
    if not texts:
        return row
    kept = [place for place, text in enumerate(row.neg) if text not in texts]
    scores = row.neg_scores
    return dataclasses.replace(
        row,
        neg=tuple(row.neg[place] for place in kept),
        neg_scores=None if scores is None else tuple(scores[place] for place in kept),
    )


def _key(text: str) -> int:
    """Returns a number that is equal for equal texts, in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def ragged(rows: Sequence[Sequence[int]]) -> Tensor:
    """Returns rows of numbers as int64, shape [rows, longest], with -1 after the last number of a row."""
    most = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), most)


def _scores(drawn: Sequence[Drawn], most: int) -> Tensor:
    rows = [[one.positive_score or 0.0, *(one.negative_scores or ())] for one in drawn]
    return torch.tensor([[*row, *[0.0] * (most - len(row))] for row in rows], dtype=torch.float32)
