"""Fine-tuning: what is trained, saved, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from bge_integrations import BgeEncoder, find_model
from bge_integrations.errors import DeviceMemoryError, SettingsError, UnsupportedModelError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare
from bge_integrations.settings import EncoderSettings, RerankerSettings
from bge_integrations.training import (
    EmbedderTraining,
    TrainingData,
    TrainingRow,
    distil_embedder,
    pretrain_retromae,
    train_embedder,
    train_m3,
    train_reranker,
)
from bge_integrations.training.trainer.trainer import Watch, _arguments
from tests.checkpoints import make_checkpoint
from tests.processes import Together

_WORDS = (
    *("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France"),
    *("vector", "store", "Berlin", "cat", "tree", "house", "river", "stone"),
)
_QUICK = EmbedderTraining(
    epochs=2, batch_size=8, learning_rate=1e-3, temperature=0.05, negatives=2, precision="float32", seed=3
)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    draws = random.Random(0)
    rows = [
        TrainingRow(
            query=f"about {word}",
            pos=tuple(f"{word} is {other}" for other in draws.sample(_WORDS, draws.randint(1, 2))),
            neg=tuple(f"not {other}" for other in draws.sample(_WORDS, draws.randint(0, 3))),
        )
        for word in _WORDS
        for _ in range(2)
    ]
    return TrainingData(rows, "words")


@pytest.fixture(scope="module")
def validation() -> RetrievalData:
    return RetrievalData(
        {f"q{word}": f"about {word}" for word in _WORDS},
        {f"d{word}": f"{word} is water" for word in _WORDS},
        {f"q{word}": {f"d{word}": 1} for word in _WORDS},
    )


def weights(folder: Path) -> dict[str, Any]:
    return {name: value.numpy() for name, value in SentenceTransformer(str(folder), device="cpu").state_dict().items()}


class TestTraining:
    def test_the_loss_falls_and_the_folder_is_known_everywhere(
        self, bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path
    ) -> None:
        result = train_embedder(data, bge_small_en, tmp_path / "tuned", settings=_QUICK, validation=validation)
        losses = [result.losses[step] for step in sorted(result.losses)]
        assert result.steps == len(losses) == 10
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
        assert len(result.validation) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
        spec = find_model(result.output)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-small-en-v1.5"
        record = json.loads((result.output / "bge_training.json").read_text(encoding="utf-8"))
        assert record["data"] == {"name": "words", "rows": len(data.rows), "digest": data.digest}
        encoder = BgeEncoder(result.output, device="cpu")
        instruction = encoder.instruction("query").prefix
        assert instruction.startswith("Represent this sentence")
        plain = SentenceTransformer(str(result.output), device="cpu")
        for query in ("about fox", "about dog"):
            expected = plain.encode(query, prompt_name="query")
            assert encoder.encode_queries([query])[0] == pytest.approx(expected, abs=1e-5)
            langchain = HuggingFaceBgeEmbeddings(model_name=str(result.output), model_kwargs={"device": "cpu"})
            assert langchain.embed_query(query) == pytest.approx(expected, abs=1e-5)
            llama = HuggingFaceBgeEmbedding(str(result.output), device="cpu")
            assert llama.get_query_embedding(query) == pytest.approx(expected, abs=1e-5)
        assert encoder.encode_documents(["x"])[0] == pytest.approx(plain.encode("x"), abs=1e-5)

    def test_it_stops_early_and_the_best_checkpoint_becomes_the_model(
        self, bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, epochs=20, evaluate_every=1, patience=3)
        result = train_embedder(data, bge_small_en, tmp_path / "tuned", settings=settings, validation=validation)
        figures = [result.validation[step] for step in range(1, result.steps + 1)]
        best = int(np.argmax(figures))
        # The last three evaluations, and no three before them, were no better than the best until then.
        assert result.steps == best + 1 + 3 < 100
        with BgeEncoder(result.output, device="cpu", precision="float32") as encoder:
            found = evaluate_retrieval(encoder, validation, metrics=["ndcg@10"], depth=10).metrics["ndcg@10"]
        assert found == pytest.approx(figures[best], abs=1e-6)
        assert len(set(figures)) > 1

    def test_patience_needs_validation_data(self, data: TrainingData, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="patience=3 stops training by figures on validation data"):
            train_embedder(data, "missing", tmp_path / "out", settings=EmbedderTraining(patience=3))
        with pytest.raises(SettingsError, match="patience=0 must be above 0"):
            EmbedderTraining(patience=0)

    def test_a_model_trained_without_an_instruction_is_used_without_one(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        start = EncoderSettings(model_name=str(bge_small_en), query_instruction="", device="cpu")
        settings = EmbedderTraining(max_steps=1, batch_size=4, precision="float32")
        result = train_embedder(data, start, tmp_path / "out", settings=settings)
        assert BgeEncoder(result.output, device="cpu").instruction("query").prefix == ""
        other = EncoderSettings(model_name=str(bge_small_en), query_instruction="find: ", device="cpu")
        result = train_embedder(data, other, tmp_path / "other", settings=settings)
        assert BgeEncoder(result.output, device="cpu").instruction("query").prefix == "find: "
        assert find_model(result.output) is not None

    def test_a_killed_run_goes_on_with_the_same_batches(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        whole = train_embedder(data, bge_small_en, tmp_path / "whole", settings=_QUICK)

        class Killed(BaseException):
            pass

        def kill(step: int, _: object) -> None:
            if step == 7:  # in the second epoch, of which the checkpoint has nothing
                raise Killed

        with pytest.raises(Killed):
            train_embedder(data, bge_small_en, tmp_path / "killed", settings=_QUICK, on_log=kill)
        assert not (tmp_path / "killed").exists()
        with pytest.raises(SettingsError, match="resume=True"):
            train_embedder(data, bge_small_en, tmp_path / "killed", settings=_QUICK)
        other = EmbedderTraining(**{**vars(_QUICK), "seed": 4})
        with pytest.raises(SettingsError, match="of another run"):
            train_embedder(data, bge_small_en, tmp_path / "killed", settings=other, resume=True)
        again = train_embedder(data, bge_small_en, tmp_path / "killed", settings=_QUICK, resume=True)
        assert again.steps == whole.steps
        assert again.losses == pytest.approx(whole.losses, abs=1e-6)
        expected, found = weights(whole.output), weights(again.output)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)

    def test_parts_of_a_batch_give_what_the_whole_batch_gives(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        folders = []
        for tokens in (100_000, 0):
            changes = {**vars(_QUICK), "max_steps": 3, "tokens_in_memory": tokens, "mini_batch_tokens": 40}
            settings = EmbedderTraining(**changes)
            folders.append(train_embedder(data, bge_small_en, tmp_path / f"{tokens}", settings=settings).output)
        expected, found = (weights(folder) for folder in folders)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)

    @pytest.mark.parametrize(
        ("given", "instruction"),
        [(None, "Represent this sentence for searching relevant passages: "), ("", ""), ("find: ", "find: ")],
    )
    def test_rows_have_their_own_instruction(
        self, bge_small_en: Path, tmp_path: Path, given: str | None, instruction: str
    ) -> None:
        from bge_integrations.training.rows import batches

        seen: list[str] = []
        rows = [
            TrainingRow(query=f"q{number}", pos=(f"p{number}",), prompt=None if number else "own: ")
            for number in range(4)
        ]
        with pytest.MonkeyPatch.context() as patch:
            original = batches._Column.__init__

            def note(self: Any, given: Any, *rest: Any) -> None:  # noqa: ANN401
                seen.extend(given)
                original(self, given, *rest)

            patch.setattr(batches._Column, "__init__", note)
            settings = EmbedderTraining(max_steps=1, batch_size=4, precision="float32")
            start = EncoderSettings(model_name=str(bge_small_en), query_instruction=given, device="cpu")
            train_embedder(TrainingData(rows, "rows"), start, tmp_path / "out", settings=settings)
        queries = {"own: q0", *(f"{instruction}q{number}" for number in (1, 2, 3))}
        assert set(seen) == queries | {f"p{number}" for number in range(4)}

    def test_a_checkpoint_without_modules_becomes_one_with_them(self, data: TrainingData, tmp_path: Path) -> None:
        bare = make_checkpoint(tmp_path / "bge-small-en-v1.5")
        start = EncoderSettings(model_name=str(bare), device="cpu")
        settings = EmbedderTraining(max_steps=1, batch_size=4, precision="float32")
        output = train_embedder(data, start, tmp_path / "out", settings=settings).output
        pooled, normalised = list(SentenceTransformer(str(output), device="cpu"))[1:]
        assert pooled.pooling_mode in ("cls", ["cls"], ("cls",))
        assert type(normalised).__name__ == "Normalize"

    def test_with_same_source_batches_have_one_source_and_type(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from bge_integrations.training.rows import batches

        rows = [
            TrainingRow(f"q{number}", (f"p{number}",), source=source, type=kind)
            for number, (source, kind) in enumerate(
                (source, kind) for source in "ab" for kind in ("normal", "symmetric_class") for _ in range(8)
            )
        ]
        seen: list[set[tuple[str, str]]] = []
        sizes: list[int] = []
        original = batches.Collator.__call__

        def note(self: Any, chosen: Any) -> Any:  # noqa: ANN401
            seen.append({(rows[one["row"]].source, rows[one["row"]].type) for one in chosen})
            sizes.append(len(chosen))
            return original(self, chosen)

        monkeypatch.setattr(batches.Collator, "__call__", note)
        settings = EmbedderTraining(batch_size=8, same_source=True, precision="float32")
        result = train_embedder(TrainingData(rows), bge_small_en, tmp_path / "out", settings=settings)
        assert result.steps == 6
        assert all(len(one) == 1 for one in seen)
        assert sorted(sizes) == [4, 4, 4, 4, 8, 8]

    @pytest.mark.slow
    def test_processes_have_rows_of_one_source_and_all_of_them(
        self, bge_small_en: Path, tmp_path: Path, together: Together
    ) -> None:
        ended = together(_IN_TWO_PROCESSES, bge_small_en, tmp_path / "out")
        assert ended.codes == [0, 0], ended.said
        found = [json.loads((tmp_path / f"out.{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        assert [one["steps"] for one in found] == [5, 5]
        assert found[0] == found[1]
        assert list(found[0]["validation"]) == ["2", "4", "5"]
        assert BgeEncoder(tmp_path / "out", device="cpu").encode_queries(["about 1"]).shape[0] == 1
        assert ended.said.count("fine-tuning needs about a thousand") == 1


_IN_TWO_PROCESSES = """
import json, os, sys
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, TrainingData, TrainingRow, train_embedder
# 13 rows of one source, and 11 of another one with half of the batch size: 2 + 3 steps.
rows = [
    TrainingRow(
        f"about {n}", (f"{n} is fox",), source="a" if n < 13 else "b", type="normal" if n < 13 else "symmetric_sts"
    )
    for n in range(24)
]
model, output = sys.argv[1:]
settings = EmbedderTraining(batch_size=4, precision="float32", same_source=True, evaluate_every=2)
start = EncoderSettings(model_name=model, device="cpu")
data = TrainingData(rows)
result = train_embedder(data, start, output, settings=settings, validation=data.as_retrieval_data())
found = {"steps": result.steps, "losses": result.losses, "validation": result.validation}
with open(f"{output}.{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
"""


class TestBaseModels:
    @pytest.mark.parametrize("pooling", [None, "mean"])
    def test_a_base_without_pooling_gets_that_of_bge_models(
        self,
        pooling: Any,  # noqa: ANN401
        data: TrainingData,
        tmp_path: Path,
    ) -> None:
        base = make_checkpoint(tmp_path / "plain-base")
        start = EncoderSettings(model_name=str(base), pooling=pooling, device="cpu")
        output = train_embedder(data, start, tmp_path / "out", settings=EmbedderTraining(max_steps=1)).output
        plain = SentenceTransformer(str(output), device="cpu")
        assert [type(module).__name__ for module in plain] == ["Transformer", "Pooling", "Normalize"]
        assert plain[1].pooling_mode == (pooling or "cls")
        found = plain.encode(["the fox"])
        np.testing.assert_allclose(
            HuggingFaceBgeEmbeddings(model_name=str(output)).embed_documents(["the fox"]), found, atol=1e-5
        )


class TestMemory:
    def test_a_device_that_is_too_small_is_told_with_the_remedy(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

        monkeypatch.setattr("bge_integrations.training.losses.contrastive.ContrastiveLoss.loss_of", fail)
        settings = EmbedderTraining(max_steps=1, batch_size=4, precision="float32", tokens_in_memory=5000)
        with pytest.raises(DeviceMemoryError, match="Lower tokens_in_memory=5000 or mini_batch_tokens=4096") as raised:
            train_embedder(data, bge_small_en, tmp_path / "out", settings=settings)
        assert raised.value.index is None


class TestRefused:
    def test_before_anything_is_loaded(self, data: TrainingData, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(SettingsError, match="never overwritten"):
            train_embedder(data, "missing", tmp_path / "full")

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"temperature": 0}, "temperature=0 must be above 0"),
            ({"batch_size": 0}, "batch_size=0 must be above 0"),
            ({"negatives": -1}, "negatives=-1"),
            ({"distillation": "mse"}, "distillation='mse' is unknown"),
            ({"precision": "float16"}, "precision=.float16. can.t be trained with"),
        ],
    )
    def test_wrong_numbers(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            EmbedderTraining(**changes)

    def test_data_that_can_not_be_trained_on(self, bge_small_en: Path, data: TrainingData, tmp_path: Path) -> None:
        one = TrainingData(data.rows[:1], "one")
        with pytest.raises(SettingsError, match="one has 1 row"):
            train_embedder(one, bge_small_en, tmp_path / "out")
        with pytest.raises(SettingsError, match="row 0 of words has negatives and no pos_scores"):
            train_embedder(data, bge_small_en, tmp_path / "out", settings=EmbedderTraining(distillation="kl_div"))

    @pytest.mark.slow
    def test_prepared_folders(self, bge_small_en: Path, data: TrainingData, tmp_path: Path) -> None:
        prepare(bge_small_en, tmp_path / "prepared")
        with pytest.raises(UnsupportedModelError, match="has no weights to train"):
            train_embedder(data, tmp_path / "prepared", tmp_path / "out")


def test_one_process_trains_on_one_gpu_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' trainer would copy the model to all GPUs, and divide each batch between them."""

    def setup(self: TrainingArguments) -> torch.device:
        self._n_gpu = 4
        self.distributed_state = None
        return torch.device("cuda:0")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(setup))
    assert TrainingArguments(output_dir=str(tmp_path)).parallel_mode == ParallelMode.NOT_DISTRIBUTED
    watch = Watch(work=tmp_path, output=tmp_path, record={})
    found = _arguments(EmbedderTraining(), watch, torch.device("cuda:0"), evaluates=False)
    assert found.parallel_mode == ParallelMode.NOT_PARALLEL


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:1", r"device='cuda:1': .* CUDA_VISIBLE_DEVICES=1, and leave device out"),
        ("all", r"device='all': a process trains on one device\. .*torchrun"),
        (["cuda:0", "cuda:1"], r"device=\('cuda:0', 'cuda:1'\): a process trains on one device\. .*torchrun"),
    ],
)
def test_a_device_that_would_not_be_used_is_refused(
    device: str | list[str], said: str, bge_small_en: Path, data: TrainingData, tmp_path: Path
) -> None:
    """transformers' trainer would take the first GPU all the same."""
    start = EncoderSettings(model_name=str(bge_small_en), device=device)
    reranker = RerankerSettings(model_name=str(bge_small_en), device=device)
    texts = ["a text", "another one"]
    trainings: list[Callable[[], object]] = [
        lambda: train_embedder(data, start, tmp_path / "out"),
        lambda: train_m3(data, start, tmp_path / "out"),
        lambda: pretrain_retromae(texts, start, tmp_path / "out"),
        lambda: distil_embedder(texts, str(bge_small_en), start, tmp_path / "out"),
        lambda: train_reranker(data, reranker, tmp_path / "out"),
    ]
    for train in trainings:
        with pytest.raises(SettingsError, match=said):
            train()
