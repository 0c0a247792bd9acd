"""Evaluates a reranker while it is trained. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.training.machine.budget import mini_batches
from bge_integrations.training.machine.processes import process_rank
from bge_integrations.training.reranking.scorer import PairScorer
from bge_integrations.training.reranking.start import RerankerStart
from bge_integrations.training.trainer.callbacks import METRIC

__all__ = ["PairValidation"]

_EVALUATED_TOGETHER = {"cpu": 4096}
_ELSEWHERE = 65536
"""Tokens of a forward pass without gradients."""


class PairValidation:
    """Orders the candidates of each query with the model as it is now, as it does it later: cut at its own limit."""

    def __init__(self, data: RetrievalData, scorer: PairScorer, start: RerankerStart, *, is_half: bool) -> None:
        """Takes what is evaluated."""
        self._data = data
        self._scorer = scorer
        self._start = start
        self._is_half = is_half
        self._most = max(map(len, (data.candidates or {}).values()), default=1)

    def __call__(self) -> dict[str, float]:
        """Returns nDCG@10 of the candidates in the model's order; nothing in all processes but the first."""
        if process_rank():
            return {}
        was_training = self._scorer.training
        self._scorer.eval()
        try:
            return evaluate_retrieval(
                None, self._data, metrics=[METRIC], reranker=self.scores, rerank_depth=self._most
            ).metrics
        finally:
            self._scorer.train(was_training)

    @torch.no_grad()
    def scores(self, query: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Returns the logits of passages for a query, shape [passages]."""
        device = self._start.model.device
        features, places = self._start.reader.read([(query, text) for text in passages], self._start.max_length)
        lengths = features["attention_mask"].sum(1).tolist()
        tokens = _EVALUATED_TOGETHER.get(device.type, _ELSEWHERE)
        found = []
        for begin, end in mini_batches(lengths, tokens, tokens if self._scorer.pads else None):
            part = {name: rows[begin:end, : lengths[end - 1]].to(device) for name, rows in features.items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=self._is_half):
                found.append(self._scorer(part)["sentence_embedding"][:, 0].float())
        logits: NDArray[np.float32] = torch.cat(found)[places].cpu().numpy()
        return logits
