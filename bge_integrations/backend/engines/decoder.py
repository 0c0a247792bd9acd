"""Runs a decoder that answers with one token, and returns the logit of one answer."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Computed, Rows, ScoringOptions, TokenBatch
from bge_integrations.backend.engines.memory import TensorLimit, memory_errors, rows_of_parts
from bge_integrations.backend.engines.sentence_transformers import padded_batch_tokens

# As in the model authors' code.
_PAD_TO_MULTIPLE = 8


class DecoderEngine:
    """Calls transformers' model on batches padded on the left, so that the answer is at the last position."""

    name = "sentence-transformers"
    max_texts: int | None = None
    rows: Rows = "pooled"
    parallel_batches = 1

    def __init__(self, model: Any, *, pad_id: int, answer: int, options: Sequence[str]) -> None:  # noqa: ANN401
        """Takes a model that is already on its device.

        Args:
            model: A causal language model of transformers, or a model with the same interface.
            pad_id: Token id of padding. Padding is masked, so the value does not matter.
            answer: Token id whose logit is the score. A model with a single output ignores it.
            options: The names of `ScoringOptions` inputs that the model's `forward` takes.
        """
        self._model = model
        self._pad_id = pad_id
        self._answer = answer
        self._options = options
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._limit = TensorLimit.of_model(
            model.device.type, model.config, pad_to_multiple_of=_PAD_TO_MULTIPLE, gives_logits=not self._keeps_last
        )
        self._lock = threading.Lock()
        self.batch_tokens = padded_batch_tokens(model.device)

    def submit(self, batch: TokenBatch) -> Computed:
        """See `Engine.submit`. Batches run one at a time, because each uses all cores."""
        with memory_errors(str(self._model.device)), self._lock, torch.inference_mode():
            return Computed(rows_of_parts(self._limit, batch, self._rows))

    def abandon(self) -> None:
        """See `Engine.abandon`. On the CPU the model is plain memory, which a child may use."""

    def _rows(self, batch: TokenBatch) -> NDArray[np.float32]:
        texts, longest = batch.is_token.shape
        width = -(-longest // _PAD_TO_MULTIPLE) * _PAD_TO_MULTIPLE
        mask = np.arange(width) >= width - batch.lengths[:, None]
        ids = np.full((texts, width), self._pad_id, dtype=np.int64)
        ids[mask] = batch.ids
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(self._model.device),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)).to(self._model.device),
            **self._further_inputs(batch),
        }
        scores = self._answer_logits(self._model(**inputs, return_dict=True))
        rows: NDArray[np.float32] = scores.float().cpu().numpy()
        return rows.reshape(texts, 1)

    def _further_inputs(self, batch: TokenBatch) -> dict[str, Any]:
        further: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_last else {}
        options = batch.options
        if not isinstance(options, ScoringOptions):
            return further
        if "cutoff_layers" in self._options and options.cutoff_layer is not None:
            further["cutoff_layers"] = [options.cutoff_layer]
        if "compress_layer" in self._options:
            further |= {
                "compress_ratio": options.compress_ratio,
                "compress_layer": list(options.compress_layers),
                "query_lengths": [] if batch.first_lengths is None else batch.first_lengths.tolist(),
                "prompt_lengths": [options.prompt_tokens] * len(batch.lengths),
            }
        return further

    def _answer_logits(self, output: Any) -> torch.Tensor:  # noqa: ANN401 - each class has its own
        logits = output.logits
        masks = getattr(output, "attention_masks", None)
        if isinstance(logits, (list, tuple)):  # one for each requested layer
            logits, masks = logits[-1], masks[-1] if masks else None
        if masks is not None and not bool(masks[:, -1].all()):
            # The model merged tokens, so there is padding on the right.
            ends = masks.sum(dim=1) - 1
            last = logits[torch.arange(len(ends), device=ends.device), ends]
        else:
            last = logits[:, -1]
        # A model with a single output gives the score itself.
        scores: torch.Tensor = last[:, self._answer] if last.ndim == 2 and last.shape[1] > 1 else last.reshape(-1)
        return scores
