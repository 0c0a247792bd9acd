"""Pre-trains an encoder on plain texts by RetroMAE, before contrastive training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from typing_extensions import Unpack

from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.settings import EncoderSettings
from bge_integrations.training.retromae.pieces import Pieces, make_pieces
from bge_integrations.training.retromae.texts import TextSource
from bge_integrations.training.retromae.tokens import tokens_of
from bge_integrations.training.settings import RetroMaeTraining
from bge_integrations.training.trainer.run import Run, RunOptions
from bge_integrations.training.trainer.work import (
    OnLog,
    TrainingResult,
    about_weights,
    base_model,
    budget_of,
    computed_in,
    require_new,
    shown_name,
)

if TYPE_CHECKING:
    from bge_integrations.training.machine.memory import Budget
    from bge_integrations.training.retromae.model import RetroMae
    from bge_integrations.training.trainer.starting import Start

__all__ = ["pretrain_retromae"]

logger = get_logger(__name__)


def pretrain_retromae(
    data: str | os.PathLike[str] | Iterable[str] | object,
    model: str | os.PathLike[str] | EncoderSettings,
    output: str | os.PathLike[str],
    *,
    settings: RetroMaeTraining | None = None,
    keep_head: bool = False,
    **run: Unpack[RunOptions],
) -> TrainingResult:
    """Pre-trains an encoder on texts without labels, and writes a folder from which `train_embedder` starts.

    It is RetroMAE (Xiao et al. 2022, https://arxiv.org/abs/2205.12035), the first step of the recipe of BGE's models.
    The encoder reads a text of which 30 % are masked and tells the masked words. A decoder of one layer must tell all
    words of the text from the vector of [CLS] and from half of the words, another half for each position. The decoder
    is thrown away. The vectors give no good similarity before contrastive training. With little data, contrastive
    training alone may be better.

    The texts are tokenised once, into files in the folder of the checkpoints beside the output: 2 or 4 bytes a token,
    by the size of the vocabulary. So they need not fit into memory. Long texts are cut between words into pieces of
    similar length. If a run is killed, `resume=True` goes on with the same batches and the same masks. The folder
    beside the output is removed at the end. With `torchrun` or `accelerate launch`, several processes train together,
    and `batch_size` is that of each.

    Args:
        data: A .jsonl file with `text` (and perhaps `title`) in each line, a .txt file with a text a line (both may end
            in .gz), a .parquet file with a column `text`, a folder of such files, a folder that the library datasets
            has saved, one of its data sets, or texts. Blank texts are left out.
        model: Hub id or folder, or settings with which its files are found: an embedder or a plain checkpoint of the
            architectures BERT or XLM-RoBERTa. A head of masked language modelling is taken from it if it has one.
        output: The folder to make. It must be empty or not there. It has CLS pooling and normalisation.
        settings: How to train; `None`: the defaults.
        keep_head: Whether to keep the head of masked language modelling, so that transformers' `AutoModelForMaskedLM`
            reads the folder too.
        **run: `resume`, `show_progress`, `report_to` and `on_log`; see `RunOptions`. `encoder_loss` and `decoder_loss`,
            the two parts of the loss, are logged too.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        TrainingDataError: The format is unknown, or something in it is wrong; the file, the line and the field are
            named.
        UnsupportedModelError: The model is of another architecture, or its tokenizer has no mask.
        MissingExtraError: accelerate, datasets or tensorboard is not installed and needed.
        BgeError: The model can't be loaded.
    """
    chosen = settings or RetroMaeTraining()
    begun = Run.of(output, **run)
    require_new(begun.work, resume=begun.resume)
    source = TextSource.of(data)
    from bge_integrations.training.retromae.batches import PieceCollator
    from bge_integrations.training.retromae.subject import build_model, retromae_subject
    from bge_integrations.training.rows.batches import Epochs
    from bge_integrations.training.trainer.starting import open_start
    from bge_integrations.training.trainer.trainer import Task, run_task

    start_settings = EncoderSettings.of(model)
    name = start_settings.model_name
    start = open_start(start_settings, attention_dropout=chosen.attention_dropout)
    chosen = dataclasses.replace(chosen, precision=computed_in(chosen.precision, start))
    trained = build_model(start, chosen, _budget(start, chosen), shown_name(name), warns=begun.is_main)
    begun.warn([*about_weights(start, name), *_about_pooling(start, name)])
    begun.work.mkdir(parents=True, exist_ok=True)
    tokens = tokens_of(start, chosen.length, name)
    pieces = make_pieces(source, tokens, begun.work, show_progress=begun.show_progress and begun.is_main)
    if begun.is_main and pieces.facts.cut:
        cut, texts = pieces.facts.cut, pieces.facts.texts
        logger.info(f"{cut:,} of {texts:,} texts were cut into pieces of at most {tokens.limit} tokens.")
    facts = {"texts": pieces.facts.digest, "model": start.identity, "settings": chosen.as_plain()}
    checkpoint = begun.checkpoint({**facts, "kind": "retromae"})
    epochs = Epochs()
    collator = PieceCollator(
        pieces,
        tokens.table,
        masking=chosen.encoder_masking,
        pad_id=start.pad_id,
        seed=chosen.seed,
        epochs=epochs,
    )
    task = Task(
        groups=[range(len(pieces))],
        collator=collator,
        loss=lambda module, batch: module(batch),
        epochs=epochs,
        about_memory=_about_memory(trained.budget),
        about_zero="Each word can be told from the others: the texts are too short or nearly equal. Give other texts.",
    )
    logged = dataclasses.replace(begun, on_log=_with_parts(begun.on_log, trained))
    watch = logged.watch(_record(start, name, source, pieces, chosen), checkpoint, chosen.save_every)
    return run_task(retromae_subject(trained, start, keep_head=keep_head), task, chosen, watch)


def _budget(start: Start, chosen: RetroMaeTraining) -> Budget:
    """Returns how much is computed at once. The decoder is one more layer, and all rows of the last one are read."""
    shape = start.encoder
    larger = shape and dataclasses.replace(shape, layers=shape.layers + 1)
    return budget_of(dataclasses.replace(start, encoder=larger, pooling=None), chosen)


def _about_pooling(start: Start, name: str) -> list[str]:
    if start.pooling == "cls":
        return []
    return [
        f"{shown_name(name)} does not pool [CLS], the token whose vector is pre-trained. The result has CLS pooling."
    ]


def _about_memory(budget: Budget) -> str:
    return (
        f"Lower tokens_in_memory={budget.tokens_in_memory}, which changes no gradient, mini_batch_tokens="
        f"{budget.mini_batch_tokens}, which draws other masks, or length."
    )


def _record(start: Start, name: str, source: TextSource, pieces: Pieces, chosen: RetroMaeTraining) -> dict[str, object]:
    facts = pieces.facts
    return {
        "base_model": base_model(start),
        "started_from": shown_name(name),
        "pretrained": "RetroMAE",
        "query_instruction": start.instruction,
        "data": {
            "name": source.name,
            "rows": facts.texts,
            "pieces": facts.pieces,
            "tokens": facts.tokens,
            "digest": facts.digest,
        },
        "settings": chosen.as_plain(),
    }


def _with_parts(on_log: OnLog | None, model: RetroMae) -> OnLog | None:
    """Adds the parts of a step's loss to what is logged of it."""
    if on_log is None:
        return None

    def log(step: int, logs: dict[str, float]) -> None:
        parts = {part: float(value) for part, value in model.losses.items()} if "loss" in logs else {}
        on_log(step, {**logs, **parts})

    return log
