"""`bge make-queries` and `bge improve`: from documents to questions, and to a model with a verdict."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bge_integrations import BgeEncoder
from bge_integrations.cli import app, queries
from bge_integrations.cli import improve as improving
from bge_integrations.cli.improve import about_verdict
from bge_integrations.cli.llm import PROVIDERS, load_llm
from bge_integrations.errors import BgeError, MissingExtraError, SettingsError, TrainingDataError
from bge_integrations.evaluation import RetrievalData, evaluate_retrieval, load_retrieval_data
from bge_integrations.evaluation.comparison import Comparison
from bge_integrations.training import load_training_data
from bge_integrations.training.rows.passages import load_passages
from bge_integrations.training.verdict import Probe, Verdict
from tests.processes import Together
from tests.scripted_answers import texts_of

_MODULE = """
from tests.processes import Together
from tests.scripted_answers import Counting, good
from tests.scripted_models import ScriptedChat, ScriptedLLM

calls = Counting(good)
chat = ScriptedChat(respond=calls)


class Maker:
    def __call__(self, prompt: str) -> str:
        return calls(prompt)


def make():
    return ScriptedLLM(respond=calls)


def function(prompt: str, temperature: float = 0.0) -> str:
    return calls(prompt)


class inner:
    function = staticmethod(function)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory with documents and a module `scripted_here` with chat models."""
    (tmp_path / "scripted_here.py").write_text(_MODULE)
    (tmp_path / "docs.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "document": f"d{number // 2}"}) + "\n" for number, text in enumerate(texts_of(40))
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("scripted_here", None)


def calls() -> list[str]:
    """Returns the prompts that the module's models were asked."""
    return cast("list[str]", sys.modules["scripted_here"].calls.prompts)


def bge(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def make(model: Path, *arguments: object, docs: str = "docs.jsonl") -> Result:
    # The random model sees all questions as nearly the same.
    wide = ("--near", 1, "--rank", 40)
    return bge("make-queries", docs, "--llm", "scripted_here:chat", "-m", model, "-o", "out.jsonl", *wide, *arguments)


class TestMakeQueries:
    def test_documents_become_questions_and_a_report(self, here: Path, bge_small_en: Path) -> None:
        done = make(bge_small_en, "--kinds", "question=2, several=0.5", "--report", "report.md")
        assert done.exit_code == 0, done.output
        data = load_training_data(here / "out.jsonl")
        assert {row.source for row in data.rows} == {"question", "several"}
        assert {text for row in data.rows for text in row.pos} <= set(texts_of(40))
        assert all(len(row.pos) == 2 for row in data.rows if row.source == "several")
        assert all(row.document is not None for row in data.rows)
        said = " ".join(done.output.split())
        assert f"{len(calls())} calls of the chat model" in said
        assert f"40 passages, {len(calls())} prompts, {len(calls())} calls of ScriptedChat scripted" in said
        assert "# Questions made from documents" in (here / "report.md").read_text(encoding="utf-8")
        mined = bge("mine", "out.jsonl", "--model", bge_small_en, "--corpus", "docs.jsonl", "-o", "mined.jsonl")
        assert mined.exit_code == 0, mined.output

    def test_answers_are_kept_and_files_are_not_overwritten(self, here: Path, bge_small_en: Path) -> None:
        assert make(bge_small_en, "--kinds", "task").exit_code == 0
        first, asked = (here / "out.jsonl").read_text(), len(calls())
        again = make(bge_small_en, "--kinds", "task")
        assert isinstance(again.exception, SettingsError)
        assert "--output out.jsonl is there already" in str(again.exception)
        done = make(bge_small_en, "--kinds", "task", "--force", "--json")
        assert done.exit_code == 0, done.output
        assert (here / "out.jsonl").read_text() == first
        assert len(calls()) == asked
        found = json.loads(done.stdout)
        assert (found["kept"], found["calls"], found["answers"]) == (40, 0, "out.jsonl.answers.jsonl")

    def test_the_estimate_alone_asks_nothing_and_writes_nothing(self, here: Path, bge_small_en: Path) -> None:
        before = sorted(os.listdir(here))
        done = make(bge_small_en, "--estimate", "--json", "--kinds", "question=3")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert (found["calls"], found["questions"], found["kept"]) == (40, 120, 0)
        assert calls() == []
        assert sorted({*os.listdir(here)} - {"__pycache__"}) == before
        assert "40 calls of the chat model" in make(bge_small_en, "--estimate", "--kinds", "question=3").output

    def test_many_calls_are_asked_for(self, here: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(queries, "_ASKS_FROM", 40)
        alone = make(bge_small_en, "--kinds", "task")
        assert isinstance(alone.exception, SettingsError)
        assert "Give --yes to start, or --estimate" in str(alone.exception)
        monkeypatch.setattr(queries, "_can_ask", lambda: True)
        arguments = ["make-queries", "docs.jsonl", "--llm", "scripted_here:chat", "-m", str(bge_small_en)]
        arguments += ["-o", "out.jsonl", "--kinds", "task", "--near", "1", "--rank", "40", "--device", "cpu"]
        assert CliRunner().invoke(app, arguments, input="n\n").exit_code == 1
        assert calls() == []
        assert CliRunner().invoke(app, arguments, input="y\n").exit_code == 0
        assert len(calls()) == 40
        monkeypatch.setattr(queries, "_can_ask", lambda: False)
        assert make(bge_small_en, "--kinds", "task=2", "--yes", "--force").exit_code == 0

    def test_a_folder_of_texts_is_cut_and_its_passages_are_saved(self, here: Path, bge_small_en: Path) -> None:
        (here / "texts").mkdir()
        (here / "texts" / "a.md").write_text("\n\n".join(texts_of(9)))
        done = make(bge_small_en, "--kinds", "question", "--passage-length", 100, docs="texts")
        assert done.exit_code == 0, done.output
        passages, documents = load_passages(here / "out.jsonl.passages.jsonl")
        assert "".join("".join(passages).split()) == "".join("".join(texts_of(9)).split())
        assert set(map(frozenset, documents.values())) == {frozenset({"a.md"})}
        assert {text for row in load_training_data(here / "out.jsonl").rows for text in row.pos} <= set(passages)
        assert "--corpus out.jsonl.passages.jsonl" in done.output

    def test_examples_and_test_questions_are_read(self, here: Path, bge_small_en: Path) -> None:
        (here / "asked.txt").write_text("how wet will it be\n\nwho sells bread\n")
        RetrievalData({"t": "question 0 on Rain0 please"}, {"d": texts_of(1)[0]}, {"t": {"d": 1}}).save(here / "test")
        done = make(bge_small_en, "--kinds", "question", "--examples", "asked.txt", "--test", "test", "--json")
        assert done.exit_code == 0, done.output
        assert "- how wet will it be\n- who sells bread" in calls()[0]
        assert json.loads(done.stdout)["rejected"]["test"] >= 1
        assert "question 0 on Rain0 please" not in {row.query for row in load_training_data(here / "out.jsonl").rows}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--kinds", "question=many"], "'question=many' is no kind with a number"),
            (["--kinds", "exam"], "'exam', which is unknown"),
            (["--examples", "missing.txt"], "there is no such file"),
            (["--passages", "nowhere/p.jsonl"], "there is no folder"),
            (["--language", "de"], "language='de' is unknown"),
            (["--test", "missing"], "There is no file or folder missing"),
        ],
    )
    def test_wrong_options_are_named(self, here: Path, bge_small_en: Path, arguments: list[str], said: str) -> None:
        done = make(bge_small_en, *arguments)
        assert isinstance(done.exception, BgeError)
        assert said in str(done.exception)


class TestLlm:
    @pytest.mark.parametrize(
        ("spec", "kind"),
        [
            ("scripted_here:chat", "ScriptedChat"),
            ("scripted_here:make", "ScriptedLLM"),
            ("scripted_here:Maker", "Maker"),
            ("scripted_here:function", "function"),
            ("scripted_here:inner.function", "function"),
        ],
    )
    def test_a_module_in_the_current_directory_has_the_model(self, here: Path, spec: str, kind: str) -> None:
        assert type(load_llm(spec)).__name__ == kind

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("gpt-4.1-mini", "must be PROVIDER:MODEL"),
            ("openai:", "must be PROVIDER:MODEL"),
            ("no_such_module:make", "there is no module no_such_module, neither in .* provider of LangChain .*openai"),
            ("scripted_here:nothing", "the module scripted_here has no nothing"),
        ],
    )
    def test_what_is_wrong_is_named(self, here: Path, spec: str, said: str) -> None:
        with pytest.raises(SettingsError, match=said):
            load_llm(spec)

    def test_an_error_inside_the_module_is_not_hidden(self, here: Path) -> None:
        (here / "broken_here.py").write_text("import no_such_package_at_all\n")
        with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
            load_llm("broken_here:make")

    def test_a_provider_needs_the_package_langchain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "langchain", None)
        monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
        with pytest.raises(MissingExtraError, match="pip install langchain"):
            load_llm("openai:gpt-4.1-mini")

    def test_a_provider_is_asked_through_langchain(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "openai.py").write_text("raise AssertionError('a provider is no module')")
        made: list[tuple[str, str]] = []

        def init_chat_model(model: str, *, model_provider: str) -> object:
            made.append((model, model_provider))
            if model == "missing":
                raise ImportError("Please install langchain-openai with `pip install langchain-openai`.")
            if model == "no-key":
                raise RuntimeError("the api_key must be set")
            return object()

        module = types.ModuleType("langchain.chat_models")
        module.init_chat_model = init_chat_model  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "langchain", types.ModuleType("langchain"))
        monkeypatch.setitem(sys.modules, "langchain.chat_models", module)
        load_llm("openai:gpt:4")
        assert made == [("gpt:4", "openai")]
        with pytest.raises(MissingExtraError, match="pip install langchain-openai"):
            load_llm("openai:missing")
        with pytest.raises(SettingsError, match="llm='openai:no-key' can't be used: the api_key must be set"):
            load_llm("openai:no-key")

    def test_the_providers_are_those_of_langchain(self) -> None:
        base = pytest.importorskip("langchain_classic.chat_models.base")
        assert set(base._SUPPORTED_PROVIDERS) <= PROVIDERS


QUICK = ("--max-steps", 2, "--batch-size", 8, "--near", 1, "--rank", 40, "--kinds", "question=1,keywords=1")


def improve(model: Path, *arguments: object) -> Result:
    return bge("improve", "docs.jsonl", "--llm", "scripted_here:chat", "-m", model, "-o", "tuned", *QUICK, *arguments)


class TestImprove:
    def test_documents_become_a_model_and_a_verdict(self, here: Path, bge_small_en: Path) -> None:
        done = improve(bge_small_en, "--learning-rate", "1e-3", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        work = here / "tuned.work"
        train = load_training_data(work / "mined.jsonl")
        validation, test = (load_retrieval_data(work / name) for name in ("validation", "test"))
        assert len(train.rows) + len(validation.queries) + len(test.queries) == 80
        assert found["training"]["rows"] == len(train.rows)
        positives = [
            {data.corpus[id_] for grades in data.qrels.values() for id_ in grades} for data in (validation, test)
        ]
        positives.append({text for row in train.rows for text in row.pos})
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert not positives[one] & positives[other]
        documents = load_passages(here / "docs.jsonl")[1]
        of_parts = [{id_ for text in part for id_ in documents[text]} for part in positives]
        assert not of_parts[2] & (of_parts[0] | of_parts[1])
        assert "Divided by document" in found["divided"]
        assert set(validation.corpus.values()) == set(test.corpus.values()) == set(texts_of(40))
        assert any(row.neg for row in train.rows)
        verdict = found["training"]["verdict"]
        for folder, side in ((bge_small_en, "before"), (here / "tuned", "after")):
            expected = evaluate_retrieval(BgeEncoder(folder, device="cpu"), test, depth=100).metrics
            assert verdict[side] == pytest.approx(expected, abs=1e-4)
        report = (here / "tuned" / "improvement.md").read_text(encoding="utf-8")
        assert found["words"] in report
        assert "flatter" in found["words"]
        assert verdict["words"] in report
        assert f"of {len(test.queries)} queries of" in found["shared"]
        assert "## What the questions of the verdict share with those of the training" in report
        assert verdict["words"] in (here / "tuned" / "README.md").read_text(encoding="utf-8")
        for heading in ("# From documents to a model", "## Questions made from documents", "## Hard negatives of"):
            assert f"\n{heading}" in f"\n{report}"

    def test_a_run_that_stopped_goes_on_and_does_nothing_twice(
        self, here: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        real = {name: getattr(improving, name) for name in ("run_mining", "run_training")}

        def watch(name: str, *, stops: bool) -> None:
            def called(*arguments: object) -> object:
                if stops:
                    raise OSError("no space left")
                done.append(name)
                return real[name](*arguments)

            monkeypatch.setattr(improving, name, called)

        watch("run_mining", stops=True)
        watch("run_training", stops=False)
        assert isinstance(improve(bge_small_en).exception, OSError)
        asked = len(calls())
        assert asked == 40
        refused = improve(bge_small_en)
        assert "go on with resume=True" in str(refused.exception)
        watch("run_mining", stops=False)
        watch("run_training", stops=True)
        assert isinstance(improve(bge_small_en, "--resume").exception, OSError)
        watch("run_training", stops=False)
        finished = improve(bge_small_en, "--resume")
        assert finished.exit_code == 0, finished.output
        assert done == ["run_mining", "run_training"]
        # A finished run is judged again, and nothing else.
        content = (here / "tuned" / "model.safetensors").read_bytes()
        again = improve(bge_small_en, "--resume")
        assert again.exit_code == 0, again.output
        assert (here / "tuned" / "model.safetensors").read_bytes() == content
        assert done == ["run_mining", "run_training", "run_training"]
        assert len(calls()) == asked
        assert isinstance(improve(bge_small_en).exception, SettingsError)

    def test_a_model_is_not_judged_by_questions_that_it_may_have_seen(self, here: Path, bge_small_en: Path) -> None:
        assert improve(bge_small_en).exit_code == 0
        docs = here / "docs.jsonl"
        content = docs.read_text()
        docs.write_text(content + json.dumps({"text": "Honey is new here and nobody knows it."}) + "\n")
        asked = len(calls())
        done = improve(bge_small_en, "--resume")
        assert len(calls()) == asked  # nothing is asked any more
        docs.write_text("".join(content.splitlines(keepends=True)[:-6]))
        done = improve(bge_small_en, "--resume")
        assert isinstance(done.exception, SettingsError)
        assert "was trained on other questions or with other settings" in str(done.exception)
        docs.write_text(content)
        assert improve(bge_small_en, "--resume").exit_code == 0

    def test_passages_that_failed_are_asked_again_until_training_begins(
        self, here: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "scripted_here.py").write_text(
            _MODULE.replace(
                "chat = ScriptedChat(respond=calls)",
                "from pathlib import Path\n"
                "def failing(prompt):\n"
                "    if 'Rain0 ' in prompt and not Path('works').read_text():\n"
                "        raise ValueError('not now')\n"
                "    return calls(prompt)\n"
                "chat = ScriptedChat(respond=failing)",
            )
        )
        works = here / "works"
        works.write_text("")
        real = getattr(improving, "run_training")  # noqa: B009 - it does not export what it uses

        def stop(*_: object) -> Any:  # noqa: ANN401
            raise OSError("stopped")

        monkeypatch.setattr(improving, "run_training", stop)
        improve(bge_small_en)
        assert len(calls()) == 39
        monkeypatch.setattr(improving, "run_training", real)
        assert improve(bge_small_en, "--resume").exit_code == 0
        assert len(calls()) == 39
        works.write_text("yes")
        done = improve(bge_small_en, "--resume", "--json")
        assert (done.exit_code, len(calls())) == (0, 39)
        assert json.loads(done.stdout)["questions"]["calls"] == 0

    def test_other_settings_of_a_stage_do_it_again(
        self, here: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object) -> None:
            raise OSError("stopped")

        monkeypatch.setattr(improving, "run_training", stop)
        improve(bge_small_en)
        mined = here / "tuned.work" / "mined.jsonl"
        before = mined.read_text()
        improve(bge_small_en, "--resume", "--negatives", 2)
        assert max(len(row.neg) for row in load_training_data(mined).rows) == 2
        improve(bge_small_en, "--resume")
        assert mined.read_text() == before
        assert len(calls()) == 40

    def test_own_questions_are_judged_by(self, here: Path, bge_small_en: Path) -> None:
        texts = texts_of(40)
        own = {f"t{number}": f"who is known for number {number}" for number in range(10)}
        own["t0"] = "question 0 on Rain0 please"
        RetrievalData(
            own, {str(number): text for number, text in enumerate(texts)}, {f"t{n}": {str(n): 1} for n in range(10)}
        ).save(here / "own")
        done = improve(bge_small_en, "--test", "own", "--json")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["questions"]["rejected"]["test"] >= 1
        assert "flatter" not in found["words"]
        trained = {text for row in load_training_data(here / "tuned.work" / "mined.jsonl").rows for text in row.pos}
        seen = sum(text in trained for text in texts[:10])
        assert 0 < seen < 10
        assert f"your own to judge by. Of your 10 questions, {seen} " in found["divided"]
        expected = evaluate_retrieval(
            BgeEncoder(bge_small_en, device="cpu"), load_retrieval_data(here / "own"), depth=100
        )
        assert found["training"]["verdict"]["before"] == pytest.approx(expected.metrics, abs=1e-4)

    def test_too_few_questions_are_told_before_training(self, here: Path, bge_small_en: Path) -> None:
        (here / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(9)))
        done = improve(bge_small_en)
        assert isinstance(done.exception, TrainingDataError)
        assert "A verdict on held-out questions needs 50 or more" in str(done.exception)
        assert not (here / "tuned").exists()

    def test_several_processes_are_refused(
        self, here: Path, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        done = improve(bge_small_en)
        assert isinstance(done.exception, SettingsError)
        assert "`bge train` with torchrun" in str(done.exception)

    def test_nothing_is_left_where_nothing_was_asked(self, here: Path, bge_small_en: Path) -> None:
        done = bge("improve", "docs.jsonl", "--llm", "scripted_here:nothing", "-m", bge_small_en, "-o", "tuned")
        assert isinstance(done.exception, SettingsError)
        assert not (here / "tuned.work").exists()

    def test_what_came_of_it_is_printed(self, here: Path, bge_small_en: Path) -> None:
        done = improve(bge_small_en)
        assert done.exit_code == 0, done.output
        said = " ".join(done.output.split())
        for part in ("40 passages, 40 prompts", "Divided by document", "before after", "report: tuned/improvement.md"):
            assert part in said
        assert re.search(r"The model is (not )?shown to be better|The model is worse", said)


_IN_A_PROCESS = """
import os, signal, sys, threading, time
from pathlib import Path
from bge_integrations.cli import main
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
    del os.environ[name]  # it is the only process
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
how = sys.argv[2]
sys.argv = ["bge", *sys.argv[3:]]
os.dup2(os.open(f"{how}.txt", os.O_WRONLY | os.O_CREAT), 1)

def kill():
    while not list(Path().glob("tuned.training/checkpoint-*/trainer_state.json")):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)

if how == "killed":
    threading.Thread(target=kill, daemon=True).start()
main()
"""


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_trains_goes_on(here: Path, bge_small_en: Path, together: Together) -> None:
    given = ["improve", "docs.jsonl", "--llm", "scripted_here:chat", "-m", bge_small_en, "-o", "tuned", *QUICK[2:]]
    command = [*given, "--device", "cpu", "--epochs", 12]
    killed = together(_IN_A_PROCESS, here, "killed", *command, processes=1)
    assert killed.codes == [-signal.SIGKILL], killed.said
    assert not (here / "tuned").exists()
    goes_on = together(_IN_A_PROCESS, here, "resumed", *command, "--resume", "--json", processes=1)
    assert goes_on.codes == [0], goes_on.said
    found = json.loads((here / "resumed.txt").read_text(encoding="utf-8"))
    assert found["questions"]["calls"] == 0
    assert found["training"]["verdict"] is not None


@pytest.mark.slow
def test_real_weights_find_the_passages_of_real_questions(here: Path, minilm: str) -> None:
    """On real weights, the round trip tells a question about its passage from one about something else."""
    passages = {
        "rain": "Rain is water that falls from clouds in drops once they are too heavy to stay in the air.",
        "bread": "Bread is a staple food made from a dough of flour and water that is baked in an oven.",
        "steel": "Steel is an alloy of iron and carbon with more strength than other forms of iron.",
        "tea": "Tea is a drink that is prepared by pouring hot water over cured leaves of a shrub.",
    }
    asked = {
        "rain": "why does it get wet outside when the sky is grey",
        "bread": "what can i make from wheat for breakfast",
        "steel": "which metal are knives and bridges built of",
        "tea": "how do football rules treat a player who is offside",
    }
    filler = [f"A {sport} player scores when the ball is in the goal." for sport in ("football", "hockey", "polo")]
    (here / "docs.txt").write_text("\n".join([*passages.values(), *filler]))
    (here / "scripted_here.py").write_text(
        f"import json\npassages, asked = {passages!r}, {asked!r}\n"
        "def function(prompt):\n"
        "    found = [asked[name] for name, text in passages.items() if text in prompt]\n"
        "    return json.dumps([{'kind': 'question', 'query': one} for one in found])\n"
    )
    arguments = ("--llm", "scripted_here:function", "-m", minilm, "-o", "out.jsonl", "--kinds", "question", "--rank", 2)
    done = bge("make-queries", "docs.txt", *arguments, "--json")
    assert done.exit_code == 0, done.output
    assert {row.query for row in load_training_data(here / "out.jsonl").rows} == set(asked.values()) - {asked["tea"]}
    (refused,) = json.loads(done.stdout)["refused"]
    assert (refused["query"], refused["reason"]) == (asked["tea"], "rank")
    encoder = BgeEncoder(minilm, device="cpu")
    cosines = encoder.encode_documents([*passages.values(), *filler]) @ encoder.encode_queries([asked["tea"]])[0]
    assert refused["rank"] == int(np.flatnonzero(np.argsort(-cosines) == list(passages).index("tea"))[0]) + 1


def _verdict(difference: float, p: float) -> Verdict:
    comparison = Comparison(
        baseline="the start",
        candidate="the trained model",
        metric="ndcg@10",
        before=0.5,
        after=0.5 + difference,
        interval=(difference - 0.01, difference + 0.01),  # type: ignore[arg-type]
        p=p,
        wins=3,
        losses=1,
        ties=0,
        detectable=0.1,
        overlap=0.5,
        differences={},
    )
    return Verdict(cast("Any", None), cast("Any", None), comparison, Probe(1, 1.0, 1.0))


@pytest.mark.parametrize(
    ("difference", "p", "said"),
    [
        (0.05, 0.01, "The model is shown to be better on these questions."),
        (0.05, 0.2, "The model is not shown to be better: the difference can be chance."),
        (-0.05, 0.2, "The model is not shown to be better: the difference can be chance."),
        (-0.05, 0.01, "The model is worse on these questions. Keep the start."),
    ],
)
def test_the_verdict_is_told_as_it_is(difference: float, p: float, said: str) -> None:
    assert about_verdict(_verdict(difference, p), own_test=True).startswith(said)
    assert "flatter" not in about_verdict(_verdict(difference, p), own_test=True)
    assert "so they flatter the trained model" in about_verdict(_verdict(difference, p), own_test=False)
    assert "There is no verdict" in about_verdict(None, own_test=False)
