"""Fine-tunes bge-m3: its dense vectors, lexical weights and token vectors together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.fine_tuning import Kind, Trained, fine_tune
from bge_integrations.training.rows.data import TrainingData
from bge_integrations.training.settings import M3Training
from bge_integrations.training.trainer.run import Run, RunOptions
from bge_integrations.training.trainer.work import TrainingResult, budget_of

if TYPE_CHECKING:
    from bge_integrations.training.trainer.starting import Start

__all__ = ["train_m3"]


def train_m3(
    data: TrainingData,
    model: str | os.PathLike[str] | EncoderSettings,
    output: str | os.PathLike[str],
    *,
    settings: M3Training | None = None,
    validation: RetrievalData | None = None,
    **run: Unpack[RunOptions],
) -> TrainingResult:
    """Fine-tunes the three outputs of bge-m3 together, and writes a folder that is laid out like bge-m3.

    `BgeM3Encoder`, the m3 classes of both frameworks and FlagEmbedding read all of it. `BgeEncoder` and
    sentence-transformers read its dense vectors. The loss is the paper's; see `bge_integrations.training.m3.loss`.

    Rows, negatives, checkpoints and `resume` are as for `train_embedder`. A batch of any size fits into memory: what is
    kept of a text are its token vectors, and gradients are cached if the activations are too large.

    Args:
        data: Rows.
        model: Hub id or folder of bge-m3 or a model fine-tuned from it, or settings with which its files are found.
            Another encoder with a plain pooling gets new heads, with a warning.
        output: The folder to make. It must be empty or not there.
        settings: How to train; `None`: the defaults.
        validation: Data to evaluate on while training, by the weighted mean of the three scores that
            `BgeM3Encoder.score` gives. The best checkpoint becomes the model. All queries are compared with all
            documents token by token, in the first process.
        **run: `resume`, `show_progress`, `report_to` and `on_log`; see `RunOptions`.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        UnsupportedModelError: The model is no encoder with a plain pooling.
        MissingExtraError: accelerate or tensorboard is not installed and needed.
        BgeError: The model can't be loaded.
    """
    kind, chosen = Kind("m3", _trained, _advice), settings or M3Training()
    return fine_tune(kind, data, model, chosen, validation, Run.of(output, **run))


def _advice(start: Start, chosen: M3Training) -> list[str]:
    """Returns warnings."""
    if start.heads:
        return []
    found = (
        "The model has no heads for lexical weights and token vectors (sparse_linear.pt, colbert_linear.pt), so new "
        "ones with random weights are trained. To keep trained ones, start from BAAI/bge-m3."
    )
    if chosen.self_distillation and not chosen.distil_after:
        found += (
            " Until they have learnt, the sum of the scores teaches little: set distil_after. bge-m3 itself had about "
            "6,000 steps before self-distillation."
        )
    return [found]


def _trained(start: Start, chosen: M3Training, validation: RetrievalData | None) -> Trained:
    from bge_integrations.training.m3.loss import M3Loss
    from bge_integrations.training.m3.model import M3Model, new_heads
    from bge_integrations.training.m3.subject import m3_subject

    model = M3Model(start.model, start.heads or new_heads(start.model.get_embedding_dimension(), chosen.seed))
    model.encoder.requires_grad_(chosen.train_encoder)
    loss = M3Loss(
        model,
        unweighted=start.unweighted,
        temperature=chosen.temperature or 0.02,
        score_weights=chosen.score_weights,
        loss_weights=chosen.loss_weights,
        distillation=chosen.distillation,
        guide_margin=chosen.guide_margin,
        budget=budget_of(start, chosen),
    )

    def begin(steps: int) -> None:
        loss.distils = chosen.self_distillation and steps >= chosen.distil_after

    return Trained(m3_subject(model, start, chosen.precision, validation), loss, begin)
