"""Trains an embedding model towards the vectors of another one, without labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Unpack

from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.backend.model.pooling import NAMES_OF_CATALOGUE, NAMES_OF_SETTING
from bge_integrations.calls.inputs import check_texts
from bge_integrations.calls.progress import Progress
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.cache import EvaluationCache
from bge_integrations.evaluation.held import held_by
from bge_integrations.evaluation.searchers import VectorSearcher, as_searcher
from bge_integrations.evaluation.vectors import Floats, unique_vectors
from bge_integrations.settings import EncoderSettings, Pooling
from bge_integrations.texts import kind_of
from bge_integrations.training.settings import DistillationTraining
from bge_integrations.training.trainer.run import Run, RunOptions
from bge_integrations.training.trainer.work import (
    TrainingResult,
    about_weights,
    base_model,
    budget_of,
    computed_in,
    shown_name,
)

if TYPE_CHECKING:
    from bge_integrations.training.trainer.starting import Start

__all__ = ["distil_embedder"]

_VECTORS = "teacher.npy"
"""File beside the checkpoints with the teacher's vectors, so that a killed run goes on with the same ones."""
_EMBEDS = ("encode_queries", "dense_encoder", "embed_documents", "get_text_embedding_batch")


def distil_embedder(
    texts: Iterable[str],
    teacher: object,
    model: str | os.PathLike[str] | EncoderSettings,
    output: str | os.PathLike[str],
    *,
    settings: DistillationTraining | None = None,
    queries: Iterable[str] | None = None,
    pooling: Pooling | None = None,
    cache: EvaluationCache | None = None,
    **run: Unpack[RunOptions],
) -> TrainingResult:
    """Trains a model to give the vectors of a teacher, and writes a folder that sentence-transformers loads.

    It needs texts and no labels. It is for a change of pooling, size, length or vocabulary: the teacher can be the
    model itself as it is now. If both have vectors of one dimension, the loss is the mean of 1 - cosine, and indexed
    vectors of the teacher stay near those of the model. If the dimensions differ, no two vectors can be compared. Then
    the model learns the similarities: the loss is the mean squared difference between its cosine of two texts of a
    batch and the teacher's cosine of the same two. A larger `batch_size` compares more of them.

    The teacher embeds each different text once, before training. Checkpoints are in a folder beside the output while
    training runs, and are removed at its end. If a run is killed, `resume=True` goes on with the same batches.

    Args:
        texts: Documents, as they are indexed later.
        teacher: Hub id or folder, a `BgeEncoder`, an adapter of this package, another object with `encode_queries` and
            `encode_documents`, or embeddings of LangChain or LlamaIndex.
        model: Hub id or folder, or settings with which its files are found.
        output: The folder to make. It must be empty or not there.
        settings: How to train; `None`: the defaults.
        queries: Queries. Each side puts its own instruction before them. `None`: no queries.
        pooling: The pooling of the trained model; `None`: as `model` has it.
        cache: Keeps vectors of a teacher of this package for the next time; `None`: they are computed.
        **run: `resume`, `show_progress`, `report_to` and `on_log`; see `RunOptions`.

    Returns:
        What was trained.

    Raises:
        SettingsError: A setting is wrong, the output has content, or there is nothing to go on with.
        InputTypeError: A text is not a `str`.
        MissingExtraError: accelerate or tensorboard is not installed and needed.
        BgeError: A model can't be loaded.
    """
    chosen = settings or DistillationTraining()
    begun = Run.of(output, **run)
    learned = _Texts.of(texts, queries)
    from bge_integrations.training.trainer.starting import open_start

    start_settings = EncoderSettings.of(model)
    if pooling is not None:
        start_settings = start_settings.replace(pooling=pooling)
    start = open_start(start_settings, attention_dropout=chosen.attention_dropout)
    chosen = dataclasses.replace(chosen, precision=computed_in(chosen.precision, start))
    begun.warn(about_weights(start, start_settings.model_name))
    with _opened(teacher) as opened:
        facts = {
            "texts": learned.digest,
            "teacher": _identity(opened),
            "model": start.identity,
            "pooling": start_settings.pooling,
            "instruction": [start.asked.prefix, start.asked.suffix],
            "settings": dataclasses.asdict(chosen),
        }
        checkpoint = begun.checkpoint(facts)
        wanted = _wanted(opened, learned, begun, cache)
    name = _name(teacher)
    from bge_integrations.training.embedders.subject import about_memory, embedder_subject
    from bge_integrations.training.losses.imitation import ImitationLoss
    from bge_integrations.training.rows.batches import TargetCollator
    from bge_integrations.training.trainer.trainer import Task, run_task

    collator = TargetCollator(
        [*(start.asked.apply(text) for text in learned.queries), *learned.documents],
        wanted,
        start.tokenize,
        length=chosen.length or start.max_length,
        pad_id=start.pad_id,
    )
    loss = ImitationLoss(start.model, budget=budget_of(start, chosen))
    task = Task(
        groups=[range(len(learned))],
        collator=collator,
        loss=lambda trained, batch: loss.by(trained, [batch["texts"]], batch["targets"]),
        about_memory=about_memory(loss),
        about_zero="The model gives the teacher's vectors already: stop here, or take another teacher.",
    )
    record = {
        "base_model": _base_model(start, start_settings),
        "started_from": shown_name(start_settings.model_name),
        "distilled_from": name,
        "query_instruction": start.instruction,
        "data": {"name": "texts", "rows": len(learned), "digest": learned.digest},
        "settings": dataclasses.asdict(chosen),
    }
    watch = begun.watch(record, checkpoint, chosen.save_every)
    return run_task(embedder_subject(start, chosen.precision), task, chosen, watch)


@dataclass(frozen=True)
class _Texts:
    """What both models read, each different text once, queries first.

    Attributes:
        queries: Queries without an instruction.
        documents: Documents.
        digest: Digest of all.
    """

    queries: list[str]
    documents: list[str]
    digest: str

    @classmethod
    def of(cls, texts: Iterable[str], queries: Iterable[str] | None) -> _Texts:
        """Checks the texts.

        Raises:
            SettingsError: There are fewer than two.
            InputTypeError: One is not a `str`.
        """
        sides = [list(dict.fromkeys(_checked(side))) for side in (queries or (), texts)]
        if sum(map(len, sides)) < 2:
            raise SettingsError("There are fewer than 2 different texts to learn from; give some thousand.")
        digest = blake2b(digest_size=16)
        for side in sides:
            digest.update(len(side).to_bytes(8, "big"))
            for text in side:
                data = text.encode("utf-8")
                digest.update(len(data).to_bytes(8, "big") + data)
        return cls(sides[0], sides[1], digest.hexdigest())

    def __len__(self) -> int:
        return len(self.queries) + len(self.documents)


def _checked(texts: Iterable[str]) -> list[str]:
    return check_texts(list(texts) if isinstance(texts, Iterator) else texts, "distil_embedder")


@contextmanager
def _opened(teacher: object) -> Iterator[object]:
    """Loads a teacher that is given by name, for a block."""
    if isinstance(teacher, (str, os.PathLike)):
        with BgeEncoder(os.fspath(teacher), on_truncation="ignore") as encoder:
            yield encoder
        return
    if isinstance(teacher, type) or not any(hasattr(teacher, method) for method in _EMBEDS):
        raise SettingsError(
            f"teacher={teacher!r} is {kind_of(teacher)}, which can't embed texts. Give a hub id, a folder, an encoder, "
            "or embeddings of LangChain or LlamaIndex."
        )
    yield teacher


def _identity(teacher: object) -> list[str]:
    """Returns what the teacher's vectors depend on, as far as it is known."""
    encoder: Any = held_by(teacher) or teacher
    encoder = encoder.dense_encoder() if hasattr(encoder, "dense_encoder") else encoder
    if hasattr(encoder, "cache_namespace"):
        return [encoder.cache_namespace("query"), encoder.cache_namespace("document")]
    return [type(teacher).__name__]


def _name(teacher: object) -> str:
    if isinstance(teacher, (str, os.PathLike)):
        return shown_name(os.fspath(teacher))
    held = held_by(teacher)
    return type(teacher).__name__ if held is None else shown_name(held.settings.model_name)


def _wanted(teacher: object, texts: _Texts, run: Run, cache: EvaluationCache | None) -> Floats:
    """Returns the teacher's vectors with unit length, of queries and then of documents."""
    kept = run.work / _VECTORS
    if not (run.resume and kept.is_file()):
        searcher = as_searcher(teacher, cache=cache)
        if not isinstance(searcher, VectorSearcher):
            raise SettingsError(f"teacher={teacher!r} gives no vectors.")
        with Progress(len(texts), shown=run.show_progress, title="Embedding") as progress, progress.whole():
            found = [
                unit_rows(unique_vectors(embed, side))
                for embed, side in ((searcher.queries, texts.queries), (searcher.documents, texts.documents))
                if side
            ]
        # Several processes can train together, and each one does this.
        unfinished = run.work / f"{os.getpid()}.npy"
        np.save(unfinished, np.concatenate(found))
        unfinished.replace(kept)
    vectors: Floats = np.load(kept, mmap_mode="r")
    return vectors


def _base_model(start: Start, settings: EncoderSettings) -> str | None:
    """Returns the BGE model that the trained model still is a fine-tune of: one with the same pooling."""
    if settings.pooling is None or start.spec is None:
        return base_model(start)
    own = NAMES_OF_CATALOGUE[start.spec.pooling or "cls"]
    return base_model(start) if NAMES_OF_SETTING[settings.pooling] == own else None
