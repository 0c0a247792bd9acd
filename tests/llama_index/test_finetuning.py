"""`BgeFinetuneEngine`: the shape of LlamaIndex's engine, with BGE's training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.llama_index import BgeFinetuneEngine, HuggingFaceBgeEmbedding
from bge_integrations.training import EmbedderTraining

_WORDS = ("fox", "dog", "sun", "sea", "oak", "ivy")
_QUERIES = {f"q-{word}": f"about {word}" for word in _WORDS}
_CORPUS = {f"d-{word}": f"the {word} is here" for word in _WORDS}
_RELEVANT = {f"q-{word}": [f"d-{word}"] for word in _WORDS}


@dataclass
class Dataset:
    """As LlamaIndex's EmbeddingQAFinetuneDataset."""

    queries: dict[str, str]
    corpus: dict[str, str]
    relevant_docs: dict[str, list[str]]


@pytest.mark.parametrize("kind", ["file", "object"])
def test_questions_become_an_embedding_model(bge_small_en: Path, tmp_path: Path, kind: str) -> None:
    dataset: object = Dataset(_QUERIES, _CORPUS, _RELEVANT)
    if kind == "file":
        dataset = tmp_path / "train.json"
        content = {"queries": _QUERIES, "corpus": _CORPUS, "relevant_docs": _RELEVANT, "mode": "text"}
        Path(str(dataset)).write_text(json.dumps(content), encoding="utf-8")
    engine = BgeFinetuneEngine(
        dataset,
        model_id=bge_small_en,
        model_output_path=tmp_path / "tuned",
        val_dataset=dataset,
        device="cpu",
        show_progress_bar=False,
        settings=EmbedderTraining(epochs=2, batch_size=3, learning_rate=1e-3, precision="float32"),
    )
    with pytest.raises(SettingsError, match="call finetune"):
        engine.get_finetuned_model()
    engine.finetune()
    assert engine.result is not None
    assert (engine.result.steps, len(engine.result.validation)) == (4, 2)
    tuned = engine.get_finetuned_model()
    assert isinstance(tuned, HuggingFaceBgeEmbedding)
    assert tuned.encoder.instruction("query").prefix.startswith("Represent this sentence")
    start = HuggingFaceBgeEmbedding(str(bge_small_en), device="cpu")
    assert tuned.get_query_embedding("about fox") != start.get_query_embedding("about fox")


def test_wrong_data_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match="d-nowhere"):
        BgeFinetuneEngine(Dataset(_QUERIES, _CORPUS, {**_RELEVANT, "q-fox": ["d-nowhere"]}))
    with pytest.raises(TrainingDataError, match="There is no file"):
        BgeFinetuneEngine(tmp_path / "missing.json")
