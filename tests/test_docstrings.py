"""What the benchmarks search and ask: the documentation of the standard library, and the labelled questions."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.docstrings import corpus, source
from benchmarks.docstrings.corpus import MAX_CHARACTERS, Entry, collect
from benchmarks.questions import KINDS, QUESTIONS
from benchmarks.retrieval import select_entries
from bge_integrations.errors import SettingsError

NAMES = {entry.name: entry for entry in collect()}


def test_corpus_has_thousands_of_entries() -> None:
    assert len(NAMES) > 4000


def test_corpus_has_no_name_and_no_passage_twice() -> None:
    assert len(NAMES) == len(collect())
    assert len({entry.text for entry in collect()}) == len(collect())


def test_passages_are_short_and_begin_with_the_name() -> None:
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
def test_corpus_has_what_people_know_by_its_public_name(name: str) -> None:
    assert name in NAMES


@pytest.mark.parametrize("name", ["posixpath.join", "unittest.case.TestCase", "random.Random.choice", "os.Mapping"])
def test_corpus_has_no_second_name_for_the_same_thing(name: str) -> None:
    assert name not in NAMES


def test_corpus_has_nothing_private_and_no_tests() -> None:
    parts = {part for name in NAMES for part in name.split(".")}
    assert not [part for part in parts if part.startswith("_")]
    assert not parts & {"idlelib", "lib2to3", "turtledemo", "tests"}


def test_a_passage_is_the_docstring_without_its_line_breaks() -> None:
    doc = " ".join((re.escape.__doc__ or "").split())
    assert NAMES["re.escape"].text == f"re.escape: {doc}"


@pytest.fixture
def collect_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[Entry, ...]]:
    """Has Python's library lie where there are no source files."""
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(source, "_read", functools.cache(source._read.__wrapped__))
    collect_again: Callable[[], tuple[Entry, ...]] = functools.cache(collect.__wrapped__)
    return collect_again


def test_without_source_files_there_is_what_is_written_in_c(
    collect_without_sources: Callable[[], tuple[Entry, ...]],
) -> None:
    names = {entry.name for entry in collect_without_sources()}
    assert 100 < len(names) < len(NAMES) / 2
    assert "math.gcd" in names


def test_no_docstrings_at_all_are_an_error_that_says_what_to_do(
    collect_without_sources: Callable[[], tuple[Entry, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "from_compiled", lambda: iter(()))
    with pytest.raises(SettingsError, match=r"this Python has no docstrings.*source files"):
        collect_without_sources()


@pytest.mark.parametrize("content", [b"\0", b"def broken(", b"\xff\xfe"])
def test_a_source_file_that_is_damaged_is_left_out(
    content: bytes,
    collect_without_sources: Callable[[], tuple[Entry, ...]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "json.py").write_bytes(content)
    (tmp_path / "bisect.py").write_text('"""Bisection algorithms of every kind."""')
    assert "bisect" in {entry.name for entry in collect_without_sources()}
    assert f"the docstrings in {tmp_path / 'json.py'} are left out" in caplog.text


def test_every_label_is_in_the_corpus() -> None:
    missing = {answer for question in QUESTIONS for answer in question.answers} - NAMES.keys()
    assert not missing


def test_there_are_as_many_questions_as_published_and_none_twice() -> None:
    assert len({question.text for question in QUESTIONS}) == len(QUESTIONS) == 216
    assert all(question.answers for question in QUESTIONS)


def test_every_kind_has_questions_enough_to_be_looked_at_by_itself() -> None:
    counts = Counter(question.kind for question in QUESTIONS)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 8


def test_most_questions_do_not_name_their_answer_and_those_for_identifiers_do() -> None:
    """A question that contains the function's name would be found by any search for words."""
    given_away = {
        question
        for question in QUESTIONS
        if any(
            answer.rpartition(".")[2].lower() in re.findall(r"\w+", question.text.lower())
            for answer in question.answers
        )
    }
    identifiers = {question for question in QUESTIONS if question.kind == "identifier"}
    assert identifiers < given_away
    assert len(given_away - identifiers) < len(QUESTIONS) / 8


def test_limit_keeps_every_labelled_answer_and_only_adds() -> None:
    labelled = {answer for question in QUESTIONS for answer in question.answers}
    few, more = select_entries(collect(), 1), select_entries(collect(), 700)
    assert {entry.name for entry in few} == labelled
    assert set(few) < set(more)
    assert len(more) == 700
    assert select_entries(collect(), 10**6) == collect()
