"""Training of rerankers: what is trained, saved, resumed and refused."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_index.core.postprocessor import SentenceTransformerRerank
from llama_index.core.schema import NodeWithScore, TextNode
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_integrations import BgeReranker, find_model
from bge_integrations.errors import SettingsError, UnsupportedModelError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.llama_index import BgeRerank
from bge_integrations.prepare import prepare
from bge_integrations.settings import RerankerSettings
from bge_integrations.training import RerankerTraining, TrainingData, TrainingRow, train_reranker
from bge_integrations.training.reranking.start import open_reranker
from tests.checkpoints import Architecture, make_checkpoint
from tests.checkpoints_of_pairs import make_reranker, reference_scores
from tests.decoder_checkpoints import make_embedder
from tests.processes import Together

_WORDS = (
    *("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France"),
    *("vector", "store", "Berlin", "cat", "tree", "house", "river", "stone"),
)
_QUICK = RerankerTraining(
    epochs=2, batch_size=8, learning_rate=2e-3, negatives=3, easy_negatives=0, precision="float32", seed=3
)
_PAIRS = [("about fox", "fox is dog"), ("about fox", "not water"), ("about dog", "the quick brown fox"), ("a", "b")]


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Rows whose negatives begin with another word."""
    draws = random.Random(0)
    rows = [
        TrainingRow(
            query=f"about {word}",
            pos=tuple(f"{word} is {other}" for other in draws.sample(_WORDS, draws.randint(1, 2))),
            neg=tuple(f"not {other}" for other in draws.sample(_WORDS, draws.randint(1, 4))),
        )
        for word in _WORDS
        for _ in range(2)
    ]
    return TrainingData(rows, "words")


@pytest.fixture(scope="module")
def validation() -> RetrievalData:
    corpus = {f"d{word}": f"{word} is stone" for word in _WORDS} | {f"n{word}": f"not {word}" for word in _WORDS}
    candidates = {f"q{word}": [*(f"n{other}" for other in _WORDS[:10]), f"d{word}"] for word in _WORDS}
    return RetrievalData(
        {f"q{word}": f"about {word}" for word in _WORDS},
        corpus,
        {f"q{word}": {f"d{word}": 1} for word in _WORDS},
        candidates=candidates,
    )


def on_cpu(folder: Path, **options: Any) -> RerankerSettings:  # noqa: ANN401
    return RerankerSettings(model_name=str(folder), device="cpu", **options)


def weights(folder: Path) -> dict[str, Any]:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return {name: value.numpy() for name, value in model.state_dict().items()}


class TestTraining:
    @pytest.mark.parametrize(("architecture", "is_reranker"), [("bert", False), ("xlm-roberta", True)])
    def test_the_folder_gives_the_same_scores_in_every_class(
        self, architecture: Architecture, is_reranker: bool, data: TrainingData, tmp_path: Path
    ) -> None:
        made = (make_reranker if is_reranker else make_checkpoint)(tmp_path / "start", architecture)
        output = train_reranker(data, on_cpu(made), tmp_path / "tuned", settings=_QUICK).output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["start", "tuned"]
        record = json.loads((output / "bge_training.json").read_text(encoding="utf-8"))
        assert (record["kind"], record["new_head"]) == ("reranker", not is_reranker)
        assert "pipeline_tag: text-ranking" in (output / "README.md").read_text(encoding="utf-8")
        expected = reference_scores(output, _PAIRS)  # logits, by plain transformers
        assert np.ptp(expected) > 0.01
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it is no longer maintained
            from langchain_community.cross_encoders import HuggingFaceCrossEncoder
        found = {
            "BgeReranker": BgeReranker(output, device="cpu").score_pairs(_PAIRS),
            "CrossEncoder": CrossEncoder(str(output), device="cpu").predict(_PAIRS),
            "LangChain, ours": LangChainReranker(model_name=str(output), device="cpu").score(_PAIRS),
            "LangChain": HuggingFaceCrossEncoder(model_name=str(output), model_kwargs={"device": "cpu"}).score(_PAIRS),
        }
        for kind, rerank in {
            "LlamaIndex, ours": BgeRerank(str(output), top_n=1, device="cpu"),
            "LlamaIndex": SentenceTransformerRerank(model=str(output), top_n=1, device="cpu"),
        }.items():
            found[kind] = np.array(
                [
                    rerank.postprocess_nodes([NodeWithScore(node=TextNode(text=text))], query_str=query)[0].score
                    for query, text in _PAIRS
                ]
            )
        for kind, scores in found.items():
            np.testing.assert_allclose(np.asarray(scores, dtype=np.float32), expected, atol=1e-5, err_msg=kind)

    def test_the_negatives_sink_and_the_best_checkpoint_becomes_the_model(
        self, bge_small_en: Path, data: TrainingData, validation: RetrievalData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, epochs=20, evaluate_every=5, patience=3)
        result = train_reranker(data, on_cpu(bge_small_en), tmp_path / "out", settings=settings, validation=validation)
        assert result.steps < 100  # it stopped early
        best = max(result.validation.values())
        losses = [loss for _, loss in sorted(result.losses.items())]
        assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
        first = evaluate_retrieval(None, validation, metrics=["ndcg@10"]).metrics["ndcg@10"]
        assert best > first + 0.3
        with BgeReranker(result.output, device="cpu", precision="float32") as reranker:
            found = evaluate_retrieval(None, validation, metrics=["ndcg@10"], reranker=reranker).metrics["ndcg@10"]
        assert found == pytest.approx(best, abs=1e-6)

    def test_a_killed_run_goes_on_with_the_same_batches(
        self, bge_reranker_base: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, easy_negatives=0.5)
        start = on_cpu(bge_reranker_base)
        whole = train_reranker(data, start, tmp_path / "whole", settings=settings)

        class Killed(BaseException):
            pass

        def kill(step: int, _: object) -> None:
            if step == 7:  # in the second epoch, of which the checkpoint has nothing
                raise Killed

        with pytest.raises(Killed):
            train_reranker(data, start, tmp_path / "killed", settings=settings, on_log=kill)
        other = on_cpu(bge_reranker_base, query_instruction="find: ")
        with pytest.raises(SettingsError, match="of another run"):
            train_reranker(data, other, tmp_path / "killed", settings=settings, resume=True)
        again = train_reranker(data, start, tmp_path / "killed", settings=settings, resume=True)
        assert again.losses == pytest.approx(whole.losses, abs=1e-6)
        expected, found = weights(whole.output), weights(again.output)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)

    def test_parts_of_a_batch_give_what_the_whole_batch_gives(
        self, bge_reranker_base: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        folders = []
        for tokens in (100_000, 0):
            settings = dataclasses.replace(_QUICK, max_steps=3, tokens_in_memory=tokens, mini_batch_tokens=60)
            folders.append(train_reranker(data, on_cpu(bge_reranker_base), tmp_path / f"{tokens}", settings=settings))
        expected, found = (weights(one.output) for one in folders)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)

    def test_with_an_instruction_it_is_trained_and_used_with_it(
        self, bge_reranker_base: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, max_steps=1)
        start = on_cpu(bge_reranker_base, query_instruction="find: ")
        output = train_reranker(data, start, tmp_path / "out", settings=settings).output
        expected = reference_scores(output, [(f"find: {query}", text) for query, text in _PAIRS])
        np.testing.assert_allclose(BgeReranker(output, device="cpu").score_pairs(_PAIRS), expected, atol=1e-5)
        np.testing.assert_allclose(CrossEncoder(str(output), device="cpu").predict(_PAIRS), expected, atol=1e-5)
        # Training goes on with the instruction.
        assert open_reranker(on_cpu(output)).instruction == "find: "

    def test_a_fine_tune_of_a_bge_reranker_is_known_as_one(
        self, bge_reranker_base: Path, bge_small_en: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, max_steps=1)
        output = train_reranker(data, on_cpu(bge_reranker_base), tmp_path / "out", settings=settings).output
        spec = find_model(output)
        assert spec is not None
        assert spec.model_id == "BAAI/bge-reranker-base"
        made = train_reranker(data, on_cpu(bge_small_en), tmp_path / "made", settings=settings).output
        assert find_model(made) is None  # it gives no vectors
        assert "base_model: BAAI/bge-small-en-v1.5" in (made / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("precision", ["float32", "int8"])
    def test_it_can_be_prepared(
        self,
        precision: Any,  # noqa: ANN401 - a literal
        bge_reranker_base: Path,
        data: TrainingData,
        tmp_path: Path,
    ) -> None:
        settings = dataclasses.replace(_QUICK, max_steps=2)
        output = train_reranker(data, on_cpu(bge_reranker_base), tmp_path / "out", settings=settings).output
        prepare(output, tmp_path / "prepared", precision=precision)
        expected = reference_scores(output, _PAIRS)
        found = BgeReranker(tmp_path / "prepared").score_pairs(_PAIRS)
        limit = 1e-5 if precision == "float32" else 0.1 * float(np.ptp(expected))
        np.testing.assert_allclose(found, expected, atol=limit)

    def test_a_teacher_is_learned_from(self, bge_reranker_base: Path, tmp_path: Path) -> None:
        rows = [
            TrainingRow(f"about {word}", (f"{word} is dog",), ("not fox", "not water"), (2.0,), (1.0, -1.0))
            for word in _WORDS
        ]
        settings = dataclasses.replace(_QUICK, epochs=15, distillation="kl_div")
        output = train_reranker(
            TrainingData(rows, "scored"), on_cpu(bge_reranker_base), tmp_path / "out", settings=settings
        ).output
        with BgeReranker(output, device="cpu") as reranker:
            logits = reranker.score("about fox", ["fox is dog", "not fox", "not water"])
        assert logits[0] > logits[1] > logits[2]  # without a teacher, nothing tells the negatives apart


_IN_PROCESSES = """
import json, os, sys
from bge_integrations.settings import RerankerSettings
from bge_integrations.training import RerankerTraining, TrainingData, TrainingRow, train_reranker
rows = [TrainingRow(f"about {n}", (f"{n} is fox",), tuple(f"not {m}" for m in range(n % 4))) for n in range(22)]
model, output = sys.argv[1:]
processes = int(os.environ["WORLD_SIZE"])
settings = RerankerTraining(batch_size=8 // processes, negatives=3, precision="float32", learning_rate=1e-3, epochs=2)
result = train_reranker(
    TrainingData(rows), RerankerSettings(model_name=model, device="cpu"), output, settings=settings
)
with open(f"{output}.{os.environ['RANK']}.json", "w") as file:
    json.dump(result.losses, file)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(bge_reranker_base: Path, tmp_path: Path, together: Together) -> None:
    start = tmp_path / "start"
    shutil.copytree(bge_reranker_base, start)
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    without_dropout = {**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (start / "config.json").write_text(json.dumps(without_dropout), encoding="utf-8")
    losses = []
    for processes in (1, 2):
        ended = together(_IN_PROCESSES, start, tmp_path / f"out-{processes}", processes=processes)
        assert ended.codes == [0] * processes, ended.said
        losses += [json.loads(file.read_text()) for file in sorted(tmp_path.glob(f"out-{processes}.*.json"))]
    alone, first, second = losses
    assert first == second
    assert len(alone) == 6
    assert first == pytest.approx(alone, abs=1e-4)
    expected, found = (weights(tmp_path / f"out-{processes}") for processes in (1, 2))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-3, err_msg=name)


class TestStart:
    def test_an_encoder_is_kept_and_gets_a_head_that_depends_on_the_seed(
        self, bge_small_en: Path, caplog: pytest.LogCaptureFixture, data: TrainingData, tmp_path: Path
    ) -> None:
        one, same, other = (open_reranker(on_cpu(bge_small_en), seed=seed) for seed in (0, 0, 1))
        expected = AutoModel.from_pretrained(bge_small_en).state_dict()
        heads = []
        for start in (one, same, other):
            state = start.classifier.state_dict()
            for name, value in expected.items():
                if not name.startswith("pooler."):
                    assert torch.equal(state[f"bert.{name}"], value), name
            heads.append(state["classifier.weight"])
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        assert one.has_new_head
        assert one.max_length == 64
        settings = dataclasses.replace(_QUICK, max_steps=1)
        train_reranker(data, on_cpu(bge_small_en), tmp_path / "out", settings=settings)
        assert any("is no reranker. It gets a new head" in record.message for record in caplog.records)

    def test_a_folder_of_sentence_transformers_keeps_its_scores(self, bge_reranker_base: Path, tmp_path: Path) -> None:
        CrossEncoder(str(bge_reranker_base), device="cpu").save_pretrained(
            str(tmp_path / "mine"), create_model_card=False
        )
        start = open_reranker(on_cpu(tmp_path / "mine"))
        assert not start.has_new_head
        found = start.model.predict(_PAIRS, activation_fn=torch.nn.Identity())
        np.testing.assert_allclose(found, reference_scores(bge_reranker_base, _PAIRS), atol=1e-5)

    def test_decoders_are_refused(self, data: TrainingData, tmp_path: Path) -> None:
        decoder = make_embedder(tmp_path, "bge-code-v1")
        with pytest.raises(UnsupportedModelError, match=r"bge-code-v1 is a decoder \(qwen2\).*Start from an encoder"):
            train_reranker(data, decoder, tmp_path / "out")

    def test_classifiers_adapters_and_prepared_folders_are_refused(
        self, bge_reranker_base: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        with pytest.raises(UnsupportedModelError, match="3 classes; a reranker has one output"):
            train_reranker(data, make_reranker(tmp_path / "classes", labels=3), tmp_path / "out")
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        config = {"base_model_name_or_path": str(bge_reranker_base), "peft_type": "LORA"}
        (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(UnsupportedModelError, match=r"is an adapter\. Merge it into its base model"):
            train_reranker(data, adapter, tmp_path / "out")
        prepare(bge_reranker_base, tmp_path / "prepared")
        with pytest.raises(UnsupportedModelError, match="has no weights to train"):
            train_reranker(data, tmp_path / "prepared", tmp_path / "out")


class TestRefused:
    def test_a_pair_that_is_too_short(self, bge_reranker_base: Path, data: TrainingData, tmp_path: Path) -> None:
        settings = RerankerTraining(max_length=5)
        with pytest.raises(SettingsError, match=r"max_length=5 leaves no room .* give at least 6"):
            train_reranker(data, on_cpu(bge_reranker_base), tmp_path / "out", settings=settings)

    def test_before_anything_is_loaded(self, data: TrainingData, validation: RetrievalData, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        with pytest.raises(SettingsError, match="never overwritten"):
            train_reranker(data, "missing", tmp_path / "full")
        with pytest.raises(SettingsError, match="patience=3 stops training by figures on validation data"):
            train_reranker(data, "missing", tmp_path / "out", settings=RerankerTraining(patience=3))
        bare = dataclasses.replace(validation, candidates=None)
        with pytest.raises(SettingsError, match=r"has no candidates to order\. Make them with with_candidates"):
            train_reranker(data, "missing", tmp_path / "out", validation=bare)
        rows = TrainingData([TrainingRow("q", ("p",)), TrainingRow("q", ("p",))], "equal")
        with pytest.raises(SettingsError, match="The loss would always be 0"):
            train_reranker(rows, "missing", tmp_path / "out")
