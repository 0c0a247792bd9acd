"""Low-rank adapters, and decoders with templates, examples and last-token pooling: training and what is saved."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from bge_integrations import BgeEncoder
from bge_integrations.cli import app
from bge_integrations.errors import MissingExtraError, SettingsError
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, Lora, M3Training, TrainingData, TrainingRow, train_embedder
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.decoder_checkpoints import EMBEDDERS, last_token_vectors, make_embedder
from tests.processes import Together
from tests.test_decoders import as_query

_WORDS = ("fox", "dog", "plants", "sugar", "light", "water", "Paris", "capital", "France", "vector", "store", "Berlin")
_LORA = Lora(rank=4, alpha=8, dropout=0.0)
_QUICK = EmbedderTraining(
    epochs=2,
    batch_size=6,
    learning_rate=1e-2,
    temperature=0.05,
    query_length=200,
    precision="float32",
    seed=3,
    lora=_LORA,
)
TEXTS = ["fox is water", "dog", "not Berlin, the capital of France"]
TASK = "Given a web search query, retrieve relevant passages that answer the query."
CODE_TASK = "Given a web search query, retrieve relevant code that can help answer the query."
each_decoder = pytest.mark.parametrize("name", EMBEDDERS)


@pytest.fixture(scope="module")
def data() -> TrainingData:
    rows = [
        TrainingRow(f"about {word}", (f"{word} is {_WORDS[place - 1]}",), (f"not {_WORDS[place - 2]}",))
        for place, word in enumerate(_WORDS)
    ]
    return TrainingData(rows, "words")


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_embedder(tmp_path_factory.mktemp("decoders"), name) for name in EMBEDDERS}


def on_cpu(folder: Path, **further: Any) -> EncoderSettings:  # noqa: ANN401 - any setting
    return EncoderSettings(model_name=str(folder), device="cpu", **further)


def merged_by_hand(adapter: Path, base: Path, folder: Path) -> Path:
    """Adds the product of an adapter's matrices to the weights of its base, without peft."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    saved = load_file(adapter / "adapter_model.safetensors")
    for name in [name for name in saved if "lora_A" in name]:
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        change = saved[name.replace("lora_A", "lora_B")] @ saved[name]
        model.get_parameter(target).data += config["lora_alpha"] / config["r"] * change
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(folder)
    return folder


@each_decoder
def test_a_decoder_is_trained_as_it_is_used(
    decoders: dict[str, Path], name: str, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained module, the saved adapter, and plain transformers give the same vectors."""
    module = importlib.import_module("bge_integrations.training.embedders.subject")
    kept: list[Any] = []
    original = module.embedder_subject

    def keep(start: Any, *given: Any) -> Any:  # noqa: ANN401
        kept.append(start)
        return original(start, *given)

    monkeypatch.setattr(module, "embedder_subject", keep)
    result = train_embedder(data, on_cpu(decoders[name]), tmp_path / "out", settings=_QUICK)
    losses = [result.losses[step] for step in sorted(result.losses)]
    assert losses[-1] < losses[0]
    assert not list(result.output.glob("model*.safetensors"))
    start = kept[0]
    task = CODE_TASK if name == "bge-code-v1" else TASK
    queries = [as_query(name, task, text) for text in TEXTS]
    plain = merged_by_hand(result.output, decoders[name], tmp_path / "plain")
    with BgeEncoder(result.output, device="cpu") as encoder:
        for texts, found in ((queries, encoder.encode_queries(TEXTS)), (TEXTS, encoder.encode_documents(TEXTS))):
            np.testing.assert_allclose(found, last_token_vectors(plain, texts, padding_side="right"), atol=1e-5)
            trained = start.model.encode(list(texts), prompt="", show_progress_bar=False)
            np.testing.assert_allclose(found, trained, atol=1e-5)
    before = BgeEncoder(decoders[name], device="cpu").encode_documents(TEXTS)
    assert np.abs(before - found).max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
def test_an_encoder_s_adapter_can_be_merged(architecture: Any, data: TrainingData, tmp_path: Path) -> None:  # noqa: ANN401
    base = make_checkpoint(tmp_path / "bge-small-en-v1.5", architecture, modules=("cls", "normalize"))
    found = {}
    for merge in (False, True):
        settings = dataclasses.replace(_QUICK, lora=dataclasses.replace(_LORA, merge=merge))
        result = train_embedder(data, on_cpu(base), tmp_path / f"{merge}", settings=settings)
        with BgeEncoder(result.output, device="cpu") as encoder:
            assert encoder.instruction("query").prefix.startswith("Represent this sentence")
            found[merge] = encoder.encode_documents(TEXTS)
        np.testing.assert_allclose(
            SentenceTransformer(str(result.output), device="cpu").encode(TEXTS), found[merge], atol=1e-5
        )
    np.testing.assert_allclose(found[True], found[False], atol=1e-5)
    plain = merged_by_hand(tmp_path / "False", base, tmp_path / "plain")
    np.testing.assert_allclose(found[True], reference_vectors(plain, TEXTS), atol=1e-5)
    assert not list((tmp_path / "True").glob("adapter*"))
    # Only the weights of linear layers have changed, and the merged folder has the names of its base.
    weights, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "True", base))
    assert weights.keys() == expected.keys()
    changed = {name for name, value in expected.items() if not torch.equal(value, weights[name])}
    assert changed
    assert all(name.endswith(("query.weight", "key.weight", "value.weight", "dense.weight")) for name in changed)
    assert not any("pooler" in name for name in changed)
    before = BgeEncoder(base, device="cpu").encode_documents(TEXTS)
    assert np.abs(before - found[True]).max() > 1e-3


def test_a_decoder_s_adapter_can_be_merged(decoders: dict[str, Path], data: TrainingData, tmp_path: Path) -> None:
    found = []
    for merge in (False, True):
        settings = dataclasses.replace(
            _QUICK, lora=dataclasses.replace(_LORA, merge=merge, targets=["q_proj", "v_proj"])
        )
        result = train_embedder(data, on_cpu(decoders["bge-en-icl"]), tmp_path / f"{merge}", settings=settings)
        found.append(BgeEncoder(result.output, device="cpu").encode_queries(TEXTS))
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    saved = load_file(tmp_path / "False" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in saved} == {"q_proj", "v_proj"}


def test_only_the_adapter_has_gradients(
    bge_small_en: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    original = torch.optim.AdamW.step

    def step(self: Any, *given: Any, **further: Any) -> Any:  # noqa: ANN401
        seen.append({id(one) for group in self.param_groups for one in group["params"]})
        return original(self, *given, **further)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    module = importlib.import_module("bge_integrations.training.embedders.lora")
    kept: list[Any] = []
    adapt = module.add_adapter

    def keep(start: Any, *given: Any) -> Any:  # noqa: ANN401
        kept.append((start.model, {name: value.clone() for name, value in start.model.state_dict().items()}))
        return adapt(start, *given)

    monkeypatch.setattr(module, "add_adapter", keep)
    train_embedder(data, on_cpu(bge_small_en), tmp_path / "out", settings=_QUICK)
    model, before = kept[0]
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert all(one.grad is None for name, one in model.named_parameters() if name not in trained)
    assert seen
    assert all(one <= {id(value) for value in trained.values()} for one in seen)
    after = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_killed_run_goes_on_with_the_same_batches(
    decoders: dict[str, Path], data: TrainingData, tmp_path: Path
) -> None:
    settings = dataclasses.replace(_QUICK, lora=Lora(rank=4, alpha=8, dropout=0.1))
    start = on_cpu(decoders["bge-code-v1"])
    whole = train_embedder(data, start, tmp_path / "whole", settings=settings)

    class Killed(BaseException):
        pass

    def kill(step: int, _: object) -> None:
        if step == 3:  # in the second epoch
            raise Killed

    with pytest.raises(Killed):
        train_embedder(data, start, tmp_path / "killed", settings=settings, on_log=kill)
    (checkpoint,) = (tmp_path / "killed.training").glob("checkpoint-*")
    assert not list(checkpoint.glob("model*.safetensors"))
    again = train_embedder(data, start, tmp_path / "killed", settings=settings, resume=True)
    assert again.losses == pytest.approx(whole.losses, abs=1e-6)
    expected, found = (load_file(one.output / "adapter_model.safetensors") for one in (whole, again))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "expected"), [("bge-small-en", 0.01), ("bge-small-en-v1.5", 0.02), ("bge-code-v1", 0.02)]
)
def test_the_temperature_is_that_of_the_authors(
    decoders: dict[str, Path], data: TrainingData, tmp_path: Path, name: str, expected: float
) -> None:
    base = decoders.get(name) or make_checkpoint(tmp_path / name, modules=("cls", "normalize"))
    settings = dataclasses.replace(_QUICK, temperature=None, max_steps=1)
    result = train_embedder(data, on_cpu(base), tmp_path / "out", settings=settings)
    record = json.loads((result.output / "bge_training.json").read_text(encoding="utf-8"))
    assert record["settings"]["temperature"] == expected


def test_a_decoder_can_be_trained_whole(decoders: dict[str, Path], data: TrainingData, tmp_path: Path) -> None:
    settings = dataclasses.replace(_QUICK, lora=None, learning_rate=1e-3, max_steps=2)
    result = train_embedder(data, on_cpu(decoders["bge-code-v1"]), tmp_path / "out", settings=settings)
    found = BgeEncoder(result.output, device="cpu").encode_documents(TEXTS)
    np.testing.assert_allclose(found, last_token_vectors(result.output, TEXTS, padding_side="left"), atol=1e-5)


def test_a_decoder_without_modules_gets_last_token_pooling(data: TrainingData, tmp_path: Path) -> None:
    base = make_embedder(tmp_path, "bge-code-v1").rename(tmp_path / "my-decoder")
    result = train_embedder(data, on_cpu(base), tmp_path / "out", settings=_QUICK)
    plain = merged_by_hand(result.output, base, tmp_path / "plain")
    found = BgeEncoder(result.output, device="cpu").encode_documents(TEXTS)
    np.testing.assert_allclose(found, last_token_vectors(plain, TEXTS, padding_side="left"), atol=1e-5)


class TestTexts:
    """What a decoder reads of the rows."""

    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        from bge_integrations.training.rows import batches

        texts: list[str] = []
        original = batches._Column.__init__

        def note(self: Any, given: Any, *rest: Any) -> None:  # noqa: ANN401
            texts.extend(given)
            original(self, given, *rest)

        monkeypatch.setattr(batches._Column, "__init__", note)
        return texts

    def test_examples_stand_before_the_query_and_a_row_has_its_own_task(
        self, decoders: dict[str, Path], tmp_path: Path, seen: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        rows = [
            TrainingRow("q0", ("p0",), prompt="own task"),
            TrainingRow("q1", ("p1",)),
            TrainingRow("q2", ("p2",), prompt=""),
        ]
        start = on_cpu(decoders["bge-en-icl"], task="the task", examples=[("name it", "what", "that")])
        settings = dataclasses.replace(_QUICK, max_steps=1, query_length=400)
        train_embedder(TrainingData(rows, "rows"), start, tmp_path / "out", settings=settings)
        shown = "<instruct>name it\n<query>what\n<response>that\n\n"
        assert set(seen) == {
            f"{shown}<instruct>own task\n<query>q0\n<response>",
            f"{shown}<instruct>the task\n<query>q1\n<response>",
            "q2",
            *("p0", "p1", "p2"),
        }
        assert "Give them again whenever you load the result" in caplog.text
        assert r"The text after it is '\n<response>'." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_other_rows_are_shown_as_examples(self, decoders: dict[str, Path], tmp_path: Path, seen: list[str]) -> None:
        words = [f"w{number}" for number in range(12)]
        rows = [
            *(
                TrainingRow(f"about {word}", (f"{word} is it",), prompt="own task" if word == "w3" else None)
                for word in words
            ),
            TrainingRow("about w0", ("w0 too",)),
            TrainingRow("as w1", ("w1 is it",)),
            TrainingRow("alone", ("nothing",), prompt=""),
            TrainingRow("long " * 80, ("w2 " * 200,)),
        ]
        settings = dataclasses.replace(_QUICK, epochs=6, batch_size=16, query_length=400, example_rows=3)
        start = on_cpu(decoders["bge-en-icl"], task="the task")
        train_embedder(TrainingData(rows, "rows"), start, tmp_path / "out", settings=settings)
        tokenizer = AutoTokenizer.from_pretrained(decoders["bge-en-icl"])
        numbers = Counter[int]()
        queries = {text for text in seen if text.endswith("\n<response>")}
        for text in queries:
            *shown, asked = text.split("\n\n")
            numbers[len(shown)] += 1
            query = asked.removesuffix("\n<response>").rpartition("<query>")[2]
            task = "own task" if query == "about w3" else "the task"
            assert asked == f"<instruct>{task}\n<query>{query}\n<response>"
            assert len(tokenizer(text)["input_ids"]) <= 400
            for example in shown:
                other, _, answer = example.partition("\n<response>")
                task, _, other = other.removeprefix("<instruct>").partition("\n<query>")
                assert task == ("own task" if other == "about w3" else "the task")
                assert other != query
                assert (query, answer) not in [("about w0", "w0 too"), ("about w1", "w1 is it"), ("as w1", "w1 is it")]
                assert other != "alone"
                if other.startswith("long"):
                    assert len(tokenizer(other)["input_ids"]) <= 64 + 2
                    assert len(tokenizer(answer)["input_ids"]) <= 96 + 2
        # Six epochs draw anew: each number of examples is there.
        assert set(numbers) == {0, 1, 2, 3}
        assert "alone" in seen

    def test_a_model_without_an_example_template_shows_none(
        self, decoders: dict[str, Path], data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, example_rows=2)
        with pytest.raises(SettingsError, match="bge-code-v1 takes none; 'BAAI/bge-en-icl' does"):
            train_embedder(data, on_cpu(decoders["bge-code-v1"]), tmp_path / "out", settings=settings)
        with pytest.raises(SettingsError, match="example_rows=-1 must be 0 or more"):
            EmbedderTraining(example_rows=-1)

    def test_mining_asks_with_the_task_of_a_row_too(self, decoders: dict[str, Path]) -> None:
        from bge_integrations.training.mining.search import _with_prompt

        plain = BgeEncoder(
            decoders["bge-en-icl"], device="cpu", task="the task", examples=[("name it", "what", "that")]
        )
        shown = "<instruct>name it\n<query>what\n<response>that\n\n"
        asked = _with_prompt(plain, "own task").instruction("query").apply("q0")
        assert asked == f"{shown}<instruct>own task\n<query>q0\n<response>"
        assert _with_prompt(plain, "").instruction("query").apply("q0") == "q0"

    def test_only_the_query_is_cut(self, decoders: dict[str, Path], tmp_path: Path, seen: list[str]) -> None:
        rows = [TrainingRow("fox " * 300, ("p0",)), TrainingRow("q1", ("p1",))]
        folder = decoders["bge-en-icl"]
        settings = dataclasses.replace(_QUICK, max_steps=1, query_length=150)
        train_embedder(TrainingData(rows, "rows"), on_cpu(folder, task="find"), tmp_path / "out", settings=settings)
        cut = next(text for text in seen if "fox fox" in text)
        assert cut.startswith("<instruct>find\n<query>fox fox")
        assert cut.endswith("\n<response>")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert 140 < len(tokenizer(cut)["input_ids"]) <= 150

    def test_an_instruction_that_leaves_no_room_is_refused(self, decoders: dict[str, Path], tmp_path: Path) -> None:
        rows = TrainingData([TrainingRow("q0", ("p0",)), TrainingRow("q1", ("p1",))])
        settings = dataclasses.replace(_QUICK, query_length=40)
        with pytest.raises(
            SettingsError, match=r"query_length=40 leaves \d+ tokens for a query beside the instruction"
        ):
            train_embedder(rows, on_cpu(decoders["bge-code-v1"]), tmp_path / "out", settings=settings)
        assert list(tmp_path.iterdir()) == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"rank": 0}, "rank=0 of a LoRA adapter must be above 0"),
            ({"alpha": -1}, "alpha=-1 of a LoRA adapter must be above 0"),
            ({"dropout": 1.0}, "dropout=1.0 of a LoRA adapter"),
            ({"targets": "query"}, "must be names of layers"),
            ({"targets": ()}, "must be names of layers"),
        ],
    )
    def test_of_numbers(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            Lora(**changes)

    def test_of_layers_that_the_model_does_not_have(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path
    ) -> None:
        settings = dataclasses.replace(_QUICK, lora=Lora(targets=["q_proj"]))
        with pytest.raises(
            SettingsError, match=r"'q_proj' is no linear layer of the model, which has \['dense', 'key'"
        ):
            train_embedder(data, on_cpu(bge_small_en), tmp_path / "out", settings=settings)

    def test_of_an_adapter_as_the_start(self, bge_small_en: Path, data: TrainingData, tmp_path: Path) -> None:
        settings = dataclasses.replace(_QUICK, max_steps=1)
        first = train_embedder(data, on_cpu(bge_small_en), tmp_path / "first", settings=settings)
        with pytest.raises(SettingsError, match="is an adapter with its base already"):
            train_embedder(data, on_cpu(first.output), tmp_path / "second", settings=settings)

    def test_of_bge_m3(self) -> None:
        with pytest.raises(SettingsError, match="lora does not go with bge-m3"):
            M3Training(lora=Lora())

    def test_without_peft(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match=r"bge-integrations\[lora\]"):
            train_embedder(data, on_cpu(bge_small_en), tmp_path / "out", settings=_QUICK)

    def test_a_low_learning_rate_is_told(
        self, bge_small_en: Path, data: TrainingData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = EmbedderTraining(lora=Lora(), max_steps=1, batch_size=4, precision="float32")
        train_embedder(data, on_cpu(bge_small_en), tmp_path / "out", settings=settings)
        assert "learning_rate=1e-05 is low for a LoRA adapter" in caplog.text


class TestCommand:
    def test_an_adapter_is_trained_and_judged(self, bge_small_en: Path, rows: Path, tmp_path: Path) -> None:
        quick = ("--max-steps", 3, "--batch-size", 8, "--learning-rate", "1e-2", "--lora", 4, "--json")
        done = train(rows, "--model", bge_small_en, "-o", tmp_path / "adapter", *quick)
        assert done.exit_code == 0, done.output
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
        assert config["base_model_name_or_path"] == str(bge_small_en)
        found = json.loads(done.stdout)["verdict"]
        assert found["before"] != found["after"]
        record = json.loads((tmp_path / "adapter" / "bge_training.json").read_text(encoding="utf-8"))
        assert record["settings"]["lora"]["rank"] == 4
        done = train(
            rows,
            "--model",
            bge_small_en,
            "-o",
            tmp_path / "whole",
            *quick,
            "--lora-merge",
            "--merge",
            "0.5",
            "--prepare",
            "float32",
        )
        assert done.exit_code == 0, done.output
        assert (tmp_path / "whole" / "model.safetensors").is_file()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--lora-merge"], "--lora-merge is of --lora"),
            (["--lora", "4", "--merge", "0.5"], "--merge needs whole weights"),
            (["--lora", "4", "--prepare", "float32"], "--prepare needs whole weights"),
            (["--lora", "4", "--m3"], "lora does not go with bge-m3"),
            (["--lora", "4", "--distil-from", "M"], "does not go with distil_from"),
        ],
    )
    def test_options_that_do_not_fit_are_named(
        self, bge_small_en: Path, rows: Path, tmp_path: Path, arguments: list[str], said: str
    ) -> None:
        done = train(rows, "--model", bge_small_en, "-o", tmp_path / "out", *arguments)
        assert isinstance(done.exception, SettingsError)
        assert said in str(done.exception)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [
        {"query": f"about {one} {other}", "pos": [f"{one} is {other}"], "neg": [f"{other} is not {one}"]}
        for one in _WORDS
        for other in _WORDS[:6]
        if one != other
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def train(*arguments: object) -> Any:  # noqa: ANN401 - typer's result
    return CliRunner().invoke(app, ["train", *map(str, arguments), "--device", "cpu"])


_IN_TWO_PROCESSES = """
import json, os, sys
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import EmbedderTraining, Lora, M3Training, TrainingData, TrainingRow
from bge_integrations.training import train_embedder, train_m3
kind, model, output, tokens = sys.argv[1:]
rows = [TrainingRow(f"about {n}", (f"{n} is fox",), (f"{n + 1} is not",)) for n in range(24)]
quick = {"batch_size": 4, "precision": "float32", "tokens_in_memory": int(tokens), "mini_batch_tokens": 60}
data, start = TrainingData(rows), EncoderSettings(model_name=model, device="cpu")
if kind == "m3":
    result = train_m3(data, start, output, settings=M3Training(**quick, distil_after=1))
else:
    settings = EmbedderTraining(**quick, query_length=100, learning_rate=1e-2, lora=Lora(rank=4, merge=True))
    result = train_embedder(data, start, output, settings=settings)
with open(f"{output}.{os.environ['RANK']}.json", "w") as file:
    json.dump(result.losses, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["m3", "lora"])
def test_two_processes_train_together(
    kind: str, decoders: dict[str, Path], bge_m3: Path, tmp_path: Path, together: Together
) -> None:
    """All processes have the same losses, also with cached gradients: the second run, and the only one of bge-m3."""
    found = []
    runs = (1,) if kind == "m3" else (100_000, 1)
    for tokens in runs:
        output = tmp_path / f"{tokens}"
        ended = together(_IN_TWO_PROCESSES, kind, bge_m3 if kind == "m3" else decoders["bge-code-v1"], output, tokens)
        assert ended.codes == [0, 0], ended.said
        found += [json.loads((tmp_path / f"{tokens}.{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert len(found[0]) == 3
    for one in found[1:]:
        assert one == pytest.approx(found[0], abs=1e-4)
    vectors = [BgeEncoder(tmp_path / f"{tokens}", device="cpu").encode_documents(TEXTS) for tokens in runs]
    np.testing.assert_allclose(vectors[0], vectors[-1], atol=1e-3)
