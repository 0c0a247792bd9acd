"""Makes batches of training rows: which rows, which of their texts, and the token ids. Imports torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler

from bge_integrations.training.data import TrainingRow
from bge_integrations.training.layout import Layout
from bge_integrations.training.sampling import Drawn, draw

__all__ = ["Collator", "Epochs", "RowBatches", "TargetCollator", "equal_queries"]

Tokenize = Callable[[list[str], int], list[list[int]]]
"""Function from texts and a maximum length to token ids, with special tokens."""
Encode = Callable[[list[str]], np.ndarray]


@dataclass
class Epochs:
    """The current epoch, which decides on the order of rows and on what is drawn of each."""

    current: int = 0


class RowBatches(BatchSampler):
    """Batches of row numbers, in another order each epoch. The order depends on seed and epoch alone.

    A group is a source of data whose rows are never mixed with others in a batch.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch_size: int, *, seed: int, epochs: Epochs) -> None:
        """Takes the rows.

        Args:
            groups: Row numbers of each group.
            batch_size: Rows of a batch.
            seed: Of the order.
            epochs: The current epoch.
        """
        self._groups = [list(group) for group in groups if group]
        self._seed = seed
        self._epochs = epochs
        self.batch_size = batch_size
        self.drop_last = False

    def set_epoch(self, epoch: int) -> None:
        """Starts an epoch."""
        self._epochs.current = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the batches of the current epoch. A last batch of one row has no negatives, and is left out."""
        generator = np.random.default_rng((self._seed, self._epochs.current))
        batches = []
        for group in self._groups:
            order = [group[place] for place in generator.permutation(len(group))]
            parts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
            batches += parts if len(parts) == 1 or len(parts[-1]) > 1 else parts[:-1]
        yield from (batches[place] for place in generator.permutation(len(batches)))

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return sum(
            math.ceil(len(group) / self.batch_size)
            - (len(group) > self.batch_size and len(group) % self.batch_size == 1)
            for group in self._groups
        )


def equal_queries(rows: Sequence[TrainingRow]) -> dict[str, frozenset[str]]:
    """Returns all positives of each query that several rows have, or that has several positives."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.query, set()).update(row.pos)
    return {query: frozenset(positives) for query, positives in found.items() if len(positives) > 1}


class Collator:
    """Draws a positive and negatives for each row of a batch, and encodes each different text once."""

    valid_label_columns: Sequence[str] = ()

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        tokenize: Tokenize,
        *,
        instruction: Callable[[TrainingRow], str],
        negatives: int,
        query_length: int,
        passage_length: int,
        pad_id: int,
        seed: int,
        epochs: Epochs,
        uses_teacher: bool = False,
        guide: tuple[Encode, Encode] | None = None,
    ) -> None:
        """Describes the batches.

        Args:
            rows: All rows.
            tokenize: Gives token ids.
            instruction: The text before a row's query.
            negatives: Negatives of a row, at most.
            query_length: Tokens of a query, at most, instruction included.
            passage_length: Tokens of a passage, at most.
            pad_id: Token id of padding.
            seed: Of what is drawn.
            epochs: The current epoch.
            uses_teacher: Whether the rows' scores are handed on.
            guide: Functions that embed queries and passages with unit length; `None`: no guide.
        """
        self._rows = rows
        self._tokenize = tokenize
        self._instruction = instruction
        self._negatives = negatives
        self._lengths = query_length, passage_length
        self._pad_id = pad_id
        self._seed = seed
        self._epochs = epochs
        self._uses_teacher = uses_teacher
        self._guide = guide
        self._positives = equal_queries(rows)

    def __call__(self, chosen: Sequence[Mapping[str, int]]) -> dict[str, dict[str, Tensor]]:
        """Returns token ids and masks of queries and of passages, longest last, and the layout."""
        rows = [self._rows[one["row"]] for one in chosen]
        drawn = [
            draw(row, self._seed, self._epochs.current, one["row"], self._negatives)
            for one, row in zip(chosen, rows, strict=True)
        ]
        asked = {f"{self._instruction(row)}{row.query}": row.query for row in rows}
        queries = _Column(list(asked), self._tokenize, self._lengths[0])
        groups = [[one.positive, *one.negatives] for one in drawn]
        passages = _Column([text for group in groups for text in group], self._tokenize, self._lengths[1])
        most = max(map(len, groups))
        further = [
            self._positives.get(row.query, frozenset()) - {one.positive} for row, one in zip(rows, drawn, strict=True)
        ]
        guides: dict[str, Tensor] = {}
        if self._guide is not None:
            embed_queries, embed_passages = self._guide
            guides["guide_queries"] = torch.from_numpy(embed_queries([asked[text] for text in queries.texts]))
            guides["guide_passages"] = torch.from_numpy(embed_passages(passages.texts))
        layout = Layout(
            queries=torch.tensor([queries.place[f"{self._instruction(row)}{row.query}"] for row in rows]),
            candidates=_ragged([[passages.place[text] for text in group] for group in groups]),
            keys=torch.tensor([_key(text) for text in passages.texts]),
            known=_ragged([[_key(text) for text in sorted(texts)] for texts in further]),
            is_alone=torch.tensor([row.no_in_batch_neg for row in rows]),
            teacher=_scores(drawn, most) if self._uses_teacher else None,
            **guides,
        )
        return {
            "queries": queries.padded(self._pad_id),
            "passages": passages.padded(self._pad_id),
            "layout": layout.as_dict(),
        }


class TargetCollator:
    """Encodes the texts of a batch, each with the vector that the model shall give."""

    valid_label_columns: Sequence[str] = ()

    def __init__(
        self, texts: Sequence[str], vectors: NDArray[np.float32], tokenize: Tokenize, *, length: int, pad_id: int
    ) -> None:
        """Describes the batches.

        Args:
            texts: All texts, with their instructions.
            vectors: A vector of each text.
            tokenize: Gives token ids.
            length: Tokens of a text, at most.
            pad_id: Token id of padding.
        """
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
        width = len(self._ids[-1])
        ids = torch.full((len(self._ids), width), pad_id)
        mask = torch.zeros((len(self._ids), width), dtype=torch.int64)
        for row, one in enumerate(self._ids):
            ids[row, : len(one)] = torch.tensor(one)
            mask[row, : len(one)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def _key(text: str) -> int:
    """Returns a number that is equal for equal texts, in every process."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


def _ragged(rows: Sequence[Sequence[int]]) -> Tensor:
    most = max(map(len, rows))
    return torch.tensor([[*row, *[-1] * (most - len(row))] for row in rows], dtype=torch.int64).reshape(len(rows), most)


def _scores(drawn: Sequence[Drawn], most: int) -> Tensor:
    rows = [[one.positive_score or 0.0, *(one.negative_scores or ())] for one in drawn]
    return torch.tensor([[*row, *[0.0] * (most - len(row))] for row in rows], dtype=torch.float32)
