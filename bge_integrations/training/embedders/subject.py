"""An embedding model as what is trained: its files, its forward pass and its figures. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util.distributed import distributed_evaluation

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.machine.budget import BudgetedLoss
from bge_integrations.training.trainer.callbacks import METRIC
from bge_integrations.training.trainer.saving import set_prompts, write_model
from bge_integrations.training.trainer.starting import Start
from bge_integrations.training.trainer.trainer import Subject

__all__ = ["about_memory", "embedder_subject"]

_EVALUATED_TOGETHER = {"cpu": 32}
_ELSEWHERE = 256


def embedder_subject(start: Start, precision: str, validation: RetrievalData | None = None) -> Subject:
    """Returns a model that sentence-transformers has loaded, to be trained."""
    model = start.model
    set_prompts(model, start.asked)
    return Subject(
        model=model,
        device=model.device,
        write=lambda folder: write_model(model, folder),
        restore=lambda folder: _restore(model, folder),
        running=lambda: without_padding(model, start.encoder, cls_only=start.pooling == "cls"),
        evaluate=None if validation is None else lambda: _figures(start, validation, precision),
    )


def about_memory(loss: BudgetedLoss) -> str:
    """Returns what to change when a training with a budget needs too much memory."""
    budget = loss.budget
    return (
        f"Lower tokens_in_memory={budget.tokens_in_memory} or mini_batch_tokens={budget.mini_batch_tokens}: this "
        "changes no gradient."
    )


def _restore(model: Any, folder: Path) -> None:  # noqa: ANN401 - a SentenceTransformer
    """Gives a model the weights of one of its own checkpoints."""
    saved = type(model)(str(folder), device="cpu", trust_remote_code=model.trust_remote_code, local_files_only=True)
    model.load_state_dict(saved.state_dict())


def _figures(start: Start, data: RetrievalData, precision: str) -> dict[str, float]:
    """Evaluates a model as it is now, and as it is used later: with the instruction, and texts cut at its limit."""
    model = start.model

    class Embeds:
        encode_queries: Callable[[Sequence[str]], NDArray[np.float32]] = staticmethod(
            lambda texts: _vectors(model, [start.asked.apply(text) for text in texts], precision)
        )
        encode_documents: Callable[[Sequence[str]], NDArray[np.float32]] = staticmethod(
            lambda texts: _vectors(model, texts, precision)
        )

    was_training, limit = model.training, model.max_seq_length
    model.eval()
    model.max_seq_length = start.max_length
    try:
        # Other processes encode a share of the texts.
        with distributed_evaluation(model) as is_first:
            return evaluate_retrieval(Embeds(), data, metrics=[METRIC], depth=10).metrics if is_first else {}
    finally:
        model.max_seq_length = limit
        model.train(was_training)


def _vectors(model: Any, texts: Sequence[str], precision: str) -> NDArray[np.float32]:  # noqa: ANN401
    # It encodes texts of similar length together.
    together = _EVALUATED_TOGETHER.get(model.device.type, _ELSEWHERE)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found: NDArray[np.float32] = model.encode(
            list(texts), prompt="", batch_size=together, convert_to_numpy=True, show_progress_bar=False
        )
    return found
