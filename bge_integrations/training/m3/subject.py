"""bge-m3 as what is trained: its files, its forward pass and its figures. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bge_integrations.calls.m3 import LexicalWeights, M3Output
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.m3_search import M3Searcher
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.m3.scores import M3Weights
from bge_integrations.training.embedders.subject import embedder_subject
from bge_integrations.training.m3.model import M3Model, TokenRows
from bge_integrations.training.machine.budget import mini_batches
from bge_integrations.training.machine.memory import DEFAULT_BUDGET
from bge_integrations.training.machine.processes import process_rank
from bge_integrations.training.rows.batches import padded_column
from bge_integrations.training.trainer.callbacks import METRIC
from bge_integrations.training.trainer.starting import Start
from bge_integrations.training.trainer.trainer import Subject

__all__ = ["m3_subject", "outputs"]


def m3_subject(model: M3Model, start: Start, precision: str, validation: RetrievalData | None = None) -> Subject:
    """Returns bge-m3, to be trained."""
    inside = embedder_subject(start, precision)

    def write(folder: Path) -> None:
        inside.write(folder)
        model.write_heads(folder)

    def restore(folder: Path) -> None:
        inside.restore(folder)
        model.restore_heads(folder)

    def figures(data: RetrievalData) -> dict[str, float]:
        if process_rank():
            return {}
        encode = partial(outputs, model, start, precision=precision)
        searcher = M3Searcher(lambda texts: encode([start.asked.apply(text) for text in texts]), encode, M3Weights())
        return evaluate_retrieval(searcher, data, metrics=[METRIC], depth=10).metrics

    return Subject(
        model=model,
        device=inside.device,
        write=write,
        restore=restore,
        running=inside.running,
        evaluate=None if validation is None else partial(figures, validation),
    )


@torch.no_grad()
def outputs(model: M3Model, start: Start, texts: Sequence[str], *, precision: str = "float32") -> M3Output:
    """Returns what `BgeM3Encoder` gives for texts, of the model as it is now."""
    ids = start.tokenize(list(texts), start.max_length)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    found: dict[int, tuple[Floats, LexicalWeights, Floats]] = {}
    device = model.encoder.device
    was_training = model.training
    model.eval()
    for begin, end in mini_batches([len(ids[place]) for place in order], DEFAULT_BUDGET.mini_batch_tokens, None):
        part = order[begin:end]
        column = {
            name: one.to(device) for name, one in padded_column([ids[place] for place in part], start.pad_id).items()
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            rows = model(column)["sentence_embedding"]
        found |= dict(zip(part, _separate(model, TokenRows.of(rows, column, start.unweighted)), strict=True))
    model.train(was_training)
    dense, sparse, colbert = zip(*(found[place] for place in range(len(ids))), strict=True)
    return M3Output(np.stack(dense), list(sparse), list(colbert))


def _separate(model: M3Model, found: TokenRows) -> Iterator[tuple[Floats, LexicalWeights, Floats]]:
    """Yields dense vector, lexical weights and token vectors of each text."""
    rows, ids = found.rows.float().cpu().numpy(), found.ids.tolist()
    width = model.encoder.get_embedding_dimension()
    for begin, length in zip(found.starts.tolist(), found.lengths.tolist(), strict=True):
        weights: LexicalWeights = {}
        for token, weight in zip(ids[begin : begin + length], rows[begin : begin + length, -1].tolist(), strict=True):
            if weight > weights.get(token, 0):
                weights[token] = weight
        yield rows[begin, :width], weights, rows[begin + 1 : begin + length, : model.colbert.out_features]
