"""Single checks of made questions: answers, words, scripts, copies, duplicates, ranks; and documents from files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document

from bge_integrations.errors import MissingExtraError, SettingsError, TrainingDataError
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.training.mining.search import embedders
from bge_integrations.training.queries import KINDS, filters
from bge_integrations.training.queries.answers import UnusableAnswerError, is_refusal, read_answer
from bge_integrations.training.queries.checks import Rules
from bge_integrations.training.queries.documents import Passage, read_passages
from bge_integrations.training.queries.files import load_documents, save_passages
from bge_integrations.training.queries.filters import Question, Repeat, ranks, repeats
from bge_integrations.training.queries.wording import copied, main_script, pieces, script_share, size
from tests.scripted_answers import answer

WANTED = {"question": 2, "keywords": 1}
ONE = {"question": 1}

_ITEMS = st.lists(
    st.tuples(st.sampled_from(sorted(WANTED)), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)),
    max_size=5,
)


class TestAnswers:
    @pytest.mark.parametrize(
        ("text", "wanted", "items"),
        [
            ('[{"kind": "question", "query": "a  b\\nc"}]', WANTED, [("question", "a b c")]),
            ('{"searches": [{"kind": "keywords", "query": "a"}], "count": 1}', WANTED, [("keywords", "a")]),
            ('{"kind": "keywords", "query": "a"}', WANTED, [("keywords", "a")]),
            (
                '{"kind": "keywords", "query": "a"}\n{"kind": "question", "query": "b"}',
                WANTED,
                [("keywords", "a"), ("question", "b")],
            ),
            ('[{"kind": "question", "question": "a"}]', WANTED, [("question", "a")]),
            ('["a", "b"]', ONE, [("question", "a"), ("question", "b")]),
            ('[{"query": "a"}]', ONE, [("question", "a")]),
            ('As in [1] and {x}: [{"query": "a"}]', ONE, [("question", "a")]),
            ('[{"query": "a [b] {c}"}]', ONE, [("question", "a [b] {c}")]),
            ('["a", "b", "unfinis', ONE, [("question", "a"), ("question", "b")]),
            ('{"searches": [{"query": "a"}, {"query": "b"}, {"que', ONE, [("question", "a"), ("question", "b")]),
            ('[{"query": "line\nbreak"}]', ONE, [("question", "line break")]),
            ("[]", WANTED, []),
            ("Nothing to ask: []", WANTED, []),
            ('[{"kind": "question", "query": "雨"}]', WANTED, [("question", "雨")]),
        ],
    )
    def test_items_are_found(self, text: str, wanted: dict[str, int], items: list[tuple[str, str]]) -> None:
        assert list(read_answer(text, wanted).items) == items

    def test_items_in_a_wrong_form_are_left_out_and_told(self) -> None:
        text = '[{"kind": "question", "query": "a"}, {"kind": "exam", "query": "b"}, {"kind": "question"}, "c"]'
        found = read_answer(text, WANTED)
        assert found.items == (("question", "a"),)
        assert len(found.faults) == 3
        assert '"kind" out of question, keywords' in found.faults[0]
        assert 'no text under "query"' in found.faults[1]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is empty"),
            ("<think>hm</think>", "is empty"),
            ("no idea", "there is no JSON"),
            ('["a"]', 'no "kind" out of'),
            ('[{"kind": "question", "query": 3}]', "no text under"),
            ("[1, 2, 3]", "no finished item"),
            ('[{"kind": "question", "query": "a', "no finished item"),
            ("{" * 5000, "no finished item"),
            ("[" * 5000, "no finished item"),
            ("I'm sorry, but I can't do that.", "the model refused"),
            ("抱歉，我无法完成。", "the model refused"),
        ],
    )
    def test_an_answer_without_items_says_why(self, text: str, said: str) -> None:
        with pytest.raises(UnusableAnswerError, match=re.escape(said)):
            read_answer(text, WANTED)

    @given(_ITEMS, st.data())
    def test_of_a_cut_answer_the_whole_items_are_taken(self, items: list[tuple[str, str]], data: st.DataObject) -> None:
        text = answer(*items)
        whole = [(kind, " ".join(query.split())) for kind, query in items]
        assert list(read_answer(text, WANTED).items) == whole
        cut = text[: data.draw(st.integers(0, len(text)))]
        ends = [len(answer(*items[:count])) - 1 for count in range(1, len(items) + 1)]
        ended = sum(end <= len(cut) for end in ends)
        try:
            found = list(read_answer(cut, WANTED).items)
        except UnusableAnswerError:
            found = []
        assert found == whole[:ended]

    @given(st.text())
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            found = read_answer(text, WANTED)
        except UnusableAnswerError:
            return
        assert all(kind in WANTED for kind, _ in found.items)

    @pytest.mark.parametrize(
        "text",
        [
            "i can't open a file on windows",
            "sorry state of the economy",
            "i am unable to log in",
            "as an engineer, what do I need",
            "我无法打开文件怎么办",
            "抱",
        ],
    )
    def test_users_may_write_of_what_they_cannot_do(self, text: str) -> None:
        assert not is_refusal(text)


GATHER = (
    "asyncio.gather runs awaitable objects in the aws sequence concurrently. If any awaitable in aws is a coroutine, "
    "it is automatically scheduled as a Task."
)
CHINESE = "asyncio.gather 并发运行序列中的可等待对象。如果其中某个对象是协程，它会自动作为任务被调度。"


def fault(query: str, text: str = GATHER, kind: str = "question", **changes: Any) -> str | None:  # noqa: ANN401
    rules = Rules(**{"language": "auto", "copied_words": 5, "examples": (), **changes})
    found = rules.fault(query, KINDS[kind], [text])
    return None if found is None else found[0]


class TestRules:
    @pytest.mark.parametrize(
        ("query", "text", "kind", "reason"),
        [
            ("how can i wait for many coroutines at once", GATHER, "question", None),
            ("what does asyncio.gather do with plain functions", GATHER, "question", None),
            ("asyncio.gather", GATHER, "keywords", None),
            ("asyncio.gather concurrency", GATHER, "keywords", None),
            ("what runs awaitable objects in the aws sequence", GATHER, "question", "copy"),
            ("awaitable objects in the AWS sequence!", GATHER, "keywords", "copy"),
            ("automatically scheduled as", GATHER, "task", "copy"),
            ("怎么同时等待很多个协程", CHINESE, "question", None),
            ("asyncio.gather 会按顺序返回结果吗", CHINESE, "question", None),
            ("哪个函数并发运行序列中的可等待对象", CHINESE, "question", "copy"),
            ("自动作为任务被调度", CHINESE, "task", "copy"),
            ("pandas 读取 csv 乱码", CHINESE, "keywords", None),
        ],
    )
    def test_words_in_a_row_are_copied_and_terms_are_shared(
        self, query: str, text: str, kind: str, reason: str | None
    ) -> None:
        assert fault(query, text, kind) == reason

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ("what does the passage say about limits", "mention"),
            ("according to the text, who runs first", "mention"),
            ("what is described in this document about tasks", "mention"),
            ("what does the author suggest for slow tasks", "mention"),
            ("which limits does the above text name", "mention"),
            ("how do I read the text of a file", None),
            ("patch reading so that it returns given text", None),
            ("remove this section from a config", None),
            ("replace the document in an index", None),
            ("who is the author of a commit", None),
        ],
    )
    def test_a_question_stands_by_itself(self, query: str, reason: str | None) -> None:
        assert fault(query) == reason

    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ("文中提到的函数怎么用", "mention"),
            ("根据上述内容，协程何时开始", "mention"),
            ("本文讨论了哪些限制呢", "mention"),
            ("如何合并两个文档", None),
            ("怎么把文字写进文件里", None),
        ],
    )
    def test_a_chinese_question_stands_by_itself(self, query: str, reason: str | None) -> None:
        assert fault(query, CHINESE) == reason

    def test_words_of_the_passage_itself_may_be_named(self) -> None:
        text = "BGE embeds the passage without an instruction, and a query with one."
        assert fault("why has the passage no prefix for bge", text) is None

    @pytest.mark.parametrize(
        ("query", "kind", "reason"),
        [
            ("coroutines", "keywords", None),
            ("coroutines", "question", "length"),
            ("", "keywords", "form"),
            ("?!", "keywords", "length"),
            (" ".join(f"word{n}" for n in range(41)), "question", "length"),
            (" ".join(f"word{n}" for n in range(13)), "keywords", "length"),
            ("a lone \ud800 surrogate here", "question", "form"),
        ],
    )
    def test_length_and_form(self, query: str, kind: str, reason: str | None) -> None:
        assert fault(query, kind=kind) == reason

    @pytest.mark.parametrize(
        ("query", "text", "reason"),
        [
            ("怎么同时等待很多个协程", GATHER, "language"),
            ("how can i wait for many of them", CHINESE, "language"),
            ("どうやって待ちますか全部", CHINESE, "language"),
            ("たくさんの処理を同時に待つ方法", "コルーチンは並行して実行されます。結果はリストで返されます。", None),
            ("как дождаться всех задач сразу", "Функция запускает объекты одновременно и ждёт результатов.", None),
            ("wie warte ich auf alle", "Функция запускает объекты одновременно и ждёт результатов.", "language"),
            ("¿cómo espero varias tareas?", "La función ejecuta tareas al mismo tiempo.", None),
            ("1 2 3 4", GATHER, "language"),
        ],
    )
    def test_a_question_is_in_the_script_of_its_passage(self, query: str, text: str, reason: str | None) -> None:
        assert fault(query, text) == reason

    def test_examples_are_not_repeated(self) -> None:
        examples = ("how do I cancel a running task",)
        assert fault("How do I cancel a running task?!", examples=examples) == "example"
        assert fault("how do i cancel a running tasks", examples=examples) == "example"
        assert fault("how do I wait for a slow task", examples=examples) is None


class TestWording:
    def test_a_character_of_a_script_without_blanks_counts_as_half_a_word(self) -> None:
        assert pieces("os.path.join() joins 路径, don't it?") == ("os.path.join", "joins", "路", "径", "don't", "it")
        assert size(pieces("os.path.join() joins 路径, don't it?")) == 5

    @pytest.mark.parametrize(
        ("text", "script"),
        [
            ("plain words", "LATIN"),
            ("雨水从云里落下", "CJK"),
            ("雨が降ると傘が要ります", "HIRAGANA"),
            ("비가 오면 우산이 필요하다", "HANGUL"),
            ("дождь", "CYRILLIC"),
            ("使用 pandas 读取 csv 文件", "CJK"),
            ("12 34", None),
        ],
    )
    def test_scripts_are_told(self, text: str, script: str | None) -> None:
        assert main_script(text) == script

    def test_japanese_is_in_three_scripts(self) -> None:
        assert script_share("雨が降る", "HIRAGANA") == 1
        assert script_share("雨 rain", "CJK") == 0.5

    @given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.lists(st.sampled_from("abcd"), max_size=20))
    def test_the_longest_copy_is_that_of_a_search_of_all_runs(self, mine: list[str], theirs: list[str]) -> None:
        text, source = " ".join(mine), " ".join(theirs)
        runs = {
            (start, end)
            for start in range(len(mine))
            for end in range(start + 1, len(mine) + 1)
            if f" {' '.join(mine[start:end])} " in f" {source} "
        }
        longest = max((end - start for start, end in runs), default=0)
        inside = {place for start, end in runs if end - start >= 3 for place in range(start, end)}
        run, share = copied(text, source)
        assert len(run.split()) == longest
        assert share == pytest.approx(len(inside) / len(mine))


class Table:
    """An encoder-like object whose vectors stand in a table."""

    def __init__(self, vectors: dict[str, Floats]) -> None:
        self.vectors = vectors

    def encode_queries(self, texts: list[str]) -> Floats:
        return np.stack([self.vectors[text] for text in texts])

    encode_documents = encode_queries

    def cache_namespace(self, role: str) -> str:
        return f"table_{role}"


def drawn(names: list[str], seed: int) -> dict[str, Floats]:
    vectors = np.random.default_rng(seed).standard_normal((len(names), 3)).astype(np.float32)
    return dict(zip(names, vectors, strict=True))


@pytest.mark.parametrize("block", [1, 4, 1024])
def test_duplicates_are_those_of_a_plain_loop(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_BLOCK", block)
    before, names = ["x", "y"], [f"question {number}" for number in range(60)]
    vectors = drawn([*before, *names], 5)
    unit = {name: vector / np.linalg.norm(vector) for name, vector in vectors.items()}
    stay, expected = list(before), {}
    for place, name in enumerate(names):
        cosines = [float(unit[name] @ unit[other]) for other in stay]
        if max(cosines) >= 0.9:
            expected[place] = (stay[int(np.argmax(cosines))], max(cosines))
        else:
            stay.append(name)
    found = repeats(names, before, 0.9, embedders(Table(vectors), [None], None))
    assert 5 < len(expected) < 55
    assert {place: one.text for place, one in found.items()} == {place: text for place, (text, _) in expected.items()}
    for place, (_, cosine) in expected.items():
        assert found[place].cosine == pytest.approx(cosine, abs=1e-5)


def test_equal_texts_are_duplicates_without_an_encoder() -> None:
    found = repeats(["A b", "c", "a  B", "ｃ", "d"], ["D"], None, None)
    assert found == {2: Repeat("A b", 1.0), 3: Repeat("c", 1.0), 4: Repeat("D", 1.0)}


def test_ranks_are_those_of_a_sort_of_all_cosines() -> None:
    passages = [Passage(f"passage {number}", str(number)) for number in range(300)]
    names = [f"question {number}" for number in range(20)]
    vectors = drawn([*(passage.text for passage in passages), *names], 3)
    questions = [Question(name, "question", (number, number + 7)) for number, name in enumerate(names)]
    matrix = np.stack([vectors[passage.text] / np.linalg.norm(vectors[passage.text]) for passage in passages])
    found = ranks(questions, passages, embedders(Table(vectors), [None], None), 20)
    for number, one in enumerate(questions):
        order = np.argsort(-(matrix @ vectors[one.query]))
        last = max(int(np.flatnonzero(order == place)[0]) + 1 for place in one.passages)
        assert found[number] == (last if last <= 200 else None)
    assert None in found
    assert any(rank and rank > 20 for rank in found)
    assert ranks([], passages, embedders(Table(vectors), [None], None), 20) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    (texts / "below").mkdir(parents=True)
    (texts / "a.txt").write_text("\n\n".join(f"Paragraph {n} tells of topic {n}. It is short." for n in range(30)))
    (texts / "below" / "b.md").write_text("# Rain\n\nRain falls.\n\n## Bread\n\nBread is baked.\n", encoding="utf-8")
    (texts / "c.txt").write_text("雨水从云里落下。农民靠它种地！" * 30, encoding="utf-8")
    (texts / ".hidden.txt").write_text("nothing to see")
    (texts / "d.png").write_bytes(b"\x89PNG")
    return texts


class TestFiles:
    @pytest.mark.parametrize("splitter", ["langchain_text_splitters", "llama_index.core"])
    def test_a_folder_of_texts_is_cut(self, folder: Path, splitter: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bge_integrations.corpus.splitters.is_installed", lambda module: module == splitter)
        found = load_documents(folder, 120)
        assert {one.document for one in found} == {"a.txt", "below/b.md", "c.txt"}
        assert max(len(one.text) for one in found) <= 120
        for name in ("a.txt", "below/b.md"):
            whole = "".join((folder / name).read_text(encoding="utf-8").split())
            assert "".join("".join(one.text.split()) for one in found if one.document == name) == whole
        if splitter == "langchain_text_splitters":
            chinese = [one.text for one in found if one.document == "c.txt"]
            assert all(text[-1] in "。！" for text in chinese)  # between sentences

    def test_headings_begin_passages(self, folder: Path) -> None:
        assert [one.text for one in load_documents(folder, 28) if one.document == "below/b.md"] == [
            "# Rain\n\nRain falls.",
            "## Bread\n\nBread is baked.",
        ]

    def test_without_a_splitter_the_package_is_named(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(module: str) -> object:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

        monkeypatch.setattr("importlib.import_module", missing)
        with pytest.raises(MissingExtraError, match="pip install langchain-text-splitters"):
            load_documents(folder)

    def test_passages_are_read_as_they_are(self, tmp_path: Path) -> None:
        rows = [{"_id": "1", "title": "Rain", "text": "falls.", "document": "w"}, {"_id": "2", "text": "Bread."}]
        beir = tmp_path / "beir"
        beir.mkdir()
        (beir / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for path in (beir, beir / "corpus.jsonl"):
            assert [(one.text, one.document) for one in load_documents(path)] == [
                ("Rain falls.", "w"),
                ("Bread.", None),
            ]
        lines = tmp_path / "lines.txt"
        lines.write_text("one passage\n\nanother passage\n")
        assert [one.text for one in load_documents(lines)] == ["one passage", "another passage"]

    def test_documents_that_langchain_has_dumped_are_read(self, tmp_path: Path) -> None:
        documents = [Document("Rain falls.", id="r", metadata={"source": "w.txt"}), Document("Bread is baked.")]
        file = tmp_path / "dump.jsonl"
        file.write_text("\n".join(one.model_dump_json() for one in documents))
        assert load_documents(file) == list(read_passages(documents).all)
        file.write_text(file.read_text() + '\n{"page_content": 3}')
        with pytest.raises(TrainingDataError, match="line 3: page_content is 3; write a text"):
            load_documents(file)

    def test_saved_passages_are_read_again(self, folder: Path, tmp_path: Path) -> None:
        found = load_documents(folder, 120)
        save_passages(found, tmp_path / "passages.jsonl")
        assert load_documents(tmp_path / "passages.jsonl") == found

    def test_wrong_files_are_named(self, folder: Path, tmp_path: Path) -> None:
        (folder / "e.txt").write_bytes("grün".encode("latin-1"))
        with pytest.raises(TrainingDataError, match=r"e\.txt is no text in UTF-8.*at byte 2"):
            load_documents(folder)
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(TrainingDataError, match=r"no files that end with \.txt, \.md"):
            load_documents(empty)
        (empty / "a.txt").write_text(" \n")
        with pytest.raises(TrainingDataError, match="have no text"):
            load_documents(empty)
        with pytest.raises(TrainingDataError, match="There is no file or folder"):
            load_documents(tmp_path / "missing")
        with pytest.raises(SettingsError, match="characters=0"):
            load_documents(folder, 0)
