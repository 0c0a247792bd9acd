"""Makes batches of pairs of training rows, with the token ids that `BgeReranker` reads. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from bge_integrations.backend.text.pairs import Pair, PairTokenizer
from bge_integrations.training.reranking.loss import Groups
from bge_integrations.training.rows.batches import Epochs, equal_queries, ragged, without_negatives
from bge_integrations.training.rows.data import TrainingRow
from bge_integrations.training.rows.sampling import Drawn, draw_mixed
from bge_integrations.training.rows.teacher import doubted_negatives

__all__ = ["PairCollator", "PairReader"]


class PairReader:
    """Turns pairs into tensors, as the model reads them."""

    def __init__(self, tokenizer: PairTokenizer, *, second_type: int, pad_id: int) -> None:
        """Describes the model.

        Args:
            tokenizer: Its tokenizer, with the text before each query.
            second_type: Token type of the second texts; with 0, the model gets no types.
            pad_id: Token id of padding.
        """
        self._tokenizer = tokenizer
        self._second_type = second_type
        self._pad_id = pad_id

    @property
    def least(self) -> int:
        """Tokens of a pair, at least: special tokens, the instruction, and one token of each text."""
        return self._tokenizer.share().least

    def read(self, pairs: Sequence[Pair], max_length: int) -> tuple[dict[str, Tensor], list[int]]:
        """Reads pairs.

        Args:
            pairs: At least one pair.
            max_length: Tokens of a pair, at most; at least `least`.

        Returns:
            Token ids, mask and perhaps token types, shape [pairs, longest], shortest first; and the place of each pair
            among them.
        """
        found = self._tokenizer.tokenize(pairs, max_length)
        order = np.argsort(found.lengths, kind="stable")
        lengths = found.lengths[order]
        is_token = np.arange(lengths[-1]) < lengths[:, None]
        ids = np.full(is_token.shape, self._pad_id, dtype=np.int64)
        ids[is_token] = found.of(order)
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(is_token.astype(np.int64))}
        if self._second_type and found.first_lengths is not None:
            is_second = is_token & (np.arange(lengths[-1]) >= found.first_lengths[order][:, None])
            features["token_type_ids"] = torch.from_numpy(is_second.astype(np.int64) * self._second_type)
        return features, np.argsort(order, kind="stable").tolist()


class PairCollator:
    """Draws a positive and negatives for each row of a batch, and reads each of them behind the row's query."""

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        reader: PairReader,
        *,
        negatives: int,
        easy_negatives: float,
        max_length: int,
        seed: int,
        epochs: Epochs,
        uses_teacher: bool = False,
        teacher_margin: float | None = None,
    ) -> None:
        """Describes the batches."""

        def doubted(row: TrainingRow) -> frozenset[str]:
            return frozenset() if teacher_margin is None else doubted_negatives(row, teacher_margin)

        self._rows = [without_negatives(row, doubted(row)) for row in rows]
        self._reader = reader
        self._negatives = negatives
        self._share = easy_negatives
        self._max_length = max_length
        self._seed = seed
        self._epochs = epochs
        self._uses_teacher = uses_teacher
        self._answers = equal_queries(rows, doubted)
        self._pools = _passages_of_sources(rows) if easy_negatives else {}

    def __call__(self, chosen: Sequence[Mapping[str, int]]) -> dict[str, dict[str, Tensor]]:
        """Returns token ids and masks of the pairs, longest last, and the groups."""
        numbers = [one["row"] for one in chosen]
        drawn = [self.drawn(number) for number in numbers]
        groups = [(one.positive, *one.negatives, *one.others) for one in drawn]
        pairs = [
            (self._rows[number].query, text) for number, group in zip(numbers, groups, strict=True) for text in group
        ]
        features, places = self._reader.read(pairs, self._max_length)
        following = iter(places)
        found = Groups(ragged([[next(following) for _ in group] for group in groups]))
        if self._uses_teacher:
            found = _with_teacher(found.places, drawn)
        return {"pairs": features, "groups": found.as_dict()}

    def drawn(self, number: int) -> Drawn:
        """Returns what a row gives to the current epoch."""
        row = self._rows[number]
        return draw_mixed(
            row,
            self._seed,
            self._epochs.current,
            number,
            self._negatives,
            pool=self._pools.get(row.source, ()),
            answers=self._answers.get(row.query, frozenset()),
            share=self._share,
        )


def _passages_of_sources(rows: Sequence[TrainingRow]) -> dict[str, list[str]]:
    """Returns the different passages of each source. Those of another one may be in another language."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        found.setdefault(row.source, {}).update(dict.fromkeys((*row.pos, *row.neg)))
    return {source: list(texts) for source, texts in found.items()}


def _with_teacher(places: Tensor, drawn: Sequence[Drawn]) -> Groups:
    teacher = torch.zeros(places.shape)
    is_scored = torch.zeros(places.shape, dtype=torch.bool)
    for row, one in enumerate(drawn):
        # A row without scores has nothing to compare: its target is its positive.
        scores = [one.positive_score or 0.0, *(one.negative_scores or ())]
        teacher[row, : len(scores)] = torch.tensor(scores)
        is_scored[row, : len(scores)] = True
    return Groups(places, teacher, is_scored)
