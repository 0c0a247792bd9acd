"""A cross-encoder while it is trained: without padding where the encoder is known. Imports torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.training.embedders.unpadded import TrainedEncoder

__all__ = ["PairScorer"]


class PairScorer(nn.Module):
    """Computes a logit for each pair.

    Attributes:
        classifier: The sequence classifier of transformers, with one output.
        pads: Whether padding is computed.
    """

    def __init__(
        self,
        classifier: Any,  # noqa: ANN401 - one of transformers' many classes
        shape: EncoderShape | None,
    ) -> None:
        """Takes the model.

        Args:
            classifier: The classifier.
            shape: Its encoder's shape, if it is BERT-like and only the classifier's own head follows it; else `None`.
        """
        super().__init__()
        self.classifier = classifier
        self.pads = shape is None
        # No module of its own, since its weights are those of the classifier.
        self._encoder = None if shape is None else TrainedEncoder(classifier.base_model, shape, cls_only=True)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scores pairs.

        Args:
            features: Token ids and mask, both of shape [pairs, longest], and `token_type_ids` where the model tells the
                texts of a pair apart by them.

        Returns:
            The logits, shape [pairs, 1], by the name under which losses with cached gradients look for them.
        """
        if self._encoder is None:
            return {"sentence_embedding": self.classifier(**features).logits}
        mask = features["attention_mask"].bool()
        types = features.get("token_type_ids")
        firsts = None if types is None else ((types == 0) & mask).sum(1)
        first_rows = self._encoder(
            TokenBatch(
                _as_numpy(features["input_ids"][mask], np.int32),
                _as_numpy(mask.sum(1), np.int64),
                first_lengths=None if firsts is None else _as_numpy(firsts, np.int64),
            )
        )
        # Scores of a group may differ by less than bfloat16 can tell.
        with torch.autocast(first_rows.device.type, enabled=False):
            rows = first_rows.to(torch.promote_types(first_rows.dtype, torch.float32))
            return {"sentence_embedding": self._head(rows.unsqueeze(1))}

    def _head(self, first_rows: Tensor) -> Tensor:
        """Returns the logits for hidden states of shape [pairs, 1, width], as the classes of transformers do."""
        classifier: Any = self.classifier
        pooler = getattr(classifier.base_model, "pooler", None)
        if pooler is not None:  # BERT
            first_rows = classifier.dropout(pooler(first_rows))
        logits: Tensor = classifier.classifier(first_rows)
        return logits


def _as_numpy(tensor: Tensor, dtype: Any) -> Any:  # noqa: ANN401 - of numpy's many
    return tensor.cpu().numpy().astype(dtype, copy=False)
