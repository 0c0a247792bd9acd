"""Questions from documents: models that misbehave, kinds, documents of both frameworks, examples and languages."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode

from bge_integrations import BgeEncoder
from bge_integrations.errors import SettingsError, TrainingDataError
from bge_integrations.evaluation import RetrievalData
from bge_integrations.evaluation.vectors import Floats
from bge_integrations.training import (
    MadeQueries,
    QueryPlan,
    QuerySettings,
    QuestionKind,
    TrainingData,
    TrainingRow,
    make_queries,
)
from bge_integrations.training.queries.documents import read_passages
from tests.scripted_answers import (
    Counting,
    Respond,
    answer,
    by_passage,
    good,
    in_turn,
    passages_in,
    texts_of,
    wanted_in,
)
from tests.scripted_models import FRAMEWORKS, Framework, ScriptedChat, model_of

RAIN = "Rain falls from clouds when drops of water in them get heavy. Farmers of dry regions live by it."
BREAD = "Bread is baked from flour, water and yeast. The dough rests for hours before it goes into the oven."
UMBRELLA, DINNER = "why do i need an umbrella on grey days", "how long before dinner must i start a loaf"
ONE = QuerySettings(kinds={"question": 1}, first_wait=0.001)

every_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def make(respond: Respond, framework: Framework, texts: object = (RAIN,), **changes: Any) -> MadeQueries:  # noqa: ANN401
    settings = QuerySettings(**{"kinds": {"question": 1}, "first_wait": 0.001, **changes})
    return make_queries(texts, model_of(framework, respond), settings=settings)


def queries(made: MadeQueries) -> list[str]:
    return [row.query for row in made.data.rows]


def reasons(made: MadeQueries) -> list[tuple[str, str]]:
    return [(one.query, one.reason) for one in made.rejected]


@every_framework
class TestModelsThatMisbehave:
    @pytest.mark.parametrize(
        "around",
        [
            "Sure! Here are the searches [as JSON]:\n```json\n{}\n```\nI hope {{they}} help!",
            '<think>[maybe \'x\'?] {{"query": "a thought of mine"}}</think>\n{}',
            '{{"searches": {}}}',
            "Answer: {} (1 search)",
        ],
    )
    def test_prose_around_the_json_is_left_out(self, framework: Framework, around: str) -> None:
        respond = Counting(
            lambda _: around.replace("{}", answer(("question", UMBRELLA))).replace("{{", "{").replace("}}", "}")
        )
        made = make(respond, framework)
        assert (queries(made), made.rejected, len(respond.prompts)) == ([UMBRELLA], (), 1)

    @pytest.mark.parametrize("empty", ["", " \n", "```json\n```"])
    def test_an_empty_answer_is_asked_for_again_with_the_reason(self, framework: Framework, empty: str) -> None:
        respond = Counting(in_turn(empty, answer(("question", UMBRELLA))))
        made = make(respond, framework)
        assert queries(made) == [UMBRELLA]
        assert made.report.unusable == 1
        again = respond.prompts[1]
        assert again.startswith(respond.prompts[0])
        assert "could not be used: " in again
        assert ("the answer is empty" if not empty.strip() else "there is no JSON") in again

    def test_a_passage_whose_answers_stay_unusable_is_shown(self, framework: Framework) -> None:
        respond = Counting(lambda prompt: "no idea" if RAIN in prompt else answer(("question", DINNER)))
        made = make(respond, framework, [RAIN, BREAD], answers=3, concurrency=1)
        assert queries(made) == [DINNER]
        assert [(one.query, one.reason, one.detail) for one in made.rejected] == [
            ("", "answer", "there is no JSON: 'no idea'.")
        ]
        assert len(respond.prompts) == 3 + 1
        assert "1 × no usable answer" in made.report.in_words()

    def test_more_questions_than_were_asked_for_are_refused(self, framework: Framework) -> None:
        many = answer(("question", UMBRELLA), ("question", "what makes drops come down"), ("question", DINNER))
        made = make(lambda _: many, framework)
        assert queries(made) == [UMBRELLA]
        assert reasons(made) == [("what makes drops come down", "more"), (DINNER, "more")]

    def test_the_same_question_for_every_passage_stays_once(self, framework: Framework) -> None:
        respond = in_turn(answer(("question", UMBRELLA)), answer(("question", f" {UMBRELLA.upper()} ")))
        made = make(respond, framework, [RAIN, BREAD], concurrency=1)
        assert queries(made) == [UMBRELLA]
        assert reasons(made) == [(UMBRELLA.upper(), "duplicate")]

    @pytest.mark.parametrize(
        ("text", "wrong", "right"),
        [
            (RAIN, "阴天为什么需要带雨伞出门", UMBRELLA),
            ("雨水从云里落下，干旱地区的农民靠它种地。", UMBRELLA, "阴天为什么需要带雨伞出门"),
        ],
    )
    def test_a_question_in_another_language_is_asked_for_again(
        self, framework: Framework, text: str, wrong: str, right: str
    ) -> None:
        respond = Counting(in_turn(answer(("question", wrong)), answer(("question", right))))
        made = make(respond, framework, [text])
        assert queries(made) == [right]
        assert reasons(made) == [(wrong, "language")]
        assert "in another language" in respond.prompts[1]

    @pytest.mark.parametrize(
        "refusal",
        [
            "I'm sorry, but I can't help with that.",
            "As an AI language model, I cannot write such searches.",
            "抱歉，我无法回答这个问题。",
        ],
    )
    @pytest.mark.parametrize("in_json", [True, False])
    def test_a_refusal_is_no_question(self, framework: Framework, refusal: str, in_json: bool) -> None:
        said = answer(("question", refusal)) if in_json else refusal
        made = make(lambda prompt: said if RAIN in prompt else answer(("question", DINNER)), framework, [RAIN, BREAD])
        assert queries(made) == [DINNER]
        if in_json:
            assert set(reasons(made)) == {(refusal, "refusal")}
        else:
            assert [one.reason for one in made.rejected] == ["answer"]
            assert made.rejected[0].detail.startswith("the model refused")

    def test_of_an_answer_that_is_cut_off_the_finished_questions_stay(self, framework: Framework) -> None:
        whole = answer(("question", UMBRELLA), ("question", "what makes drops come down"))
        respond = Counting(lambda _: whole[:-12])
        made = make(respond, framework, kinds={"question": 2})
        assert (queries(made), made.rejected, len(respond.prompts)) == ([UMBRELLA], (), 1)

    def test_an_answer_that_is_cut_off_in_its_first_question_is_asked_for_again(self, framework: Framework) -> None:
        whole = answer(("question", UMBRELLA))
        respond = Counting(in_turn(whole[:-4], whole))
        made = make(respond, framework)
        assert (queries(made), made.rejected) == ([UMBRELLA], ())
        assert "no finished item" in respond.prompts[1]

    def test_an_exception_fails_its_passage_and_no_other(self, framework: Framework) -> None:
        def respond(prompt: str) -> str:
            if RAIN in prompt:
                raise KeyError("weather")
            return answer(("question", DINNER))

        made = make(respond, framework, [RAIN, BREAD])
        assert queries(made) == [DINNER]
        assert [(one.passages, one.error) for one in made.failed] == [
            ((read_passages([RAIN]).all[0].id,), "KeyError: 'weather'")
        ]
        assert "The calls for 1 prompt failed, first with: KeyError: 'weather'" in " ".join(made.report.sentences())

    def test_a_call_that_takes_too_long_is_made_again(self, framework: Framework) -> None:
        answered = threading.Event()
        first: list[str] = []

        def respond(prompt: str) -> str:
            if not first:
                first.append(prompt)
                answered.wait(60)  # until the test has its result
            return answer(("question", UMBRELLA))

        try:
            made = make(respond, framework, timeout=0.2)
            assert (queries(made), made.report.calls) == ([UMBRELLA], 2)
        finally:
            answered.set()

    def test_a_model_that_never_answers_is_told(self, framework: Framework) -> None:
        ended = threading.Event()
        try:
            made = make(
                lambda prompt: answer(("question", DINNER)) if BREAD in prompt else str(ended.wait(60)),
                framework,
                [RAIN, BREAD],
                timeout=0.1,
                attempts=2,
            )
            assert queries(made) == [DINNER]
            assert made.failed[0].error == "TimeoutError, after 2 attempts: no answer in 0.1 s"
        finally:
            ended.set()


class Angles:
    """An encoder-like object: each text is a direction in a plane, by its angle in degrees."""

    def __init__(self, angles: dict[str, float]) -> None:
        self.angles = angles

    def encode_queries(self, texts: list[str]) -> Floats:
        radians = np.radians([self.angles[text] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)

    encode_documents = encode_queries

    def cache_namespace(self, role: str) -> str:
        return f"angles_{role}"


def test_near_duplicates_are_refused_by_the_cosine_with_an_earlier_question_that_stays() -> None:
    asked = [
        "what makes the sky wet",
        "why is the sky so wet",
        "why do clouds let go",
        "where does water go",
        "who eats it all",
    ]
    angles = dict(zip(asked, (0.0, 20.0, 40.0, 60.0, 100.0), strict=True)) | {RAIN: 0.0, "so what is it": 110.0}
    respond = by_passage({RAIN: tuple(("question", one) for one in asked)})
    settings = QuerySettings(kinds={"question": 5}, near=0.9, rank=None, examples=["so what is it"])  # cos 25.8° = 0.9
    made = make_queries([RAIN], respond, encoder=Angles(angles), settings=settings)
    # The second is near the first. The third is near the second, which does not stay. The last is near the example.
    assert queries(made) == [asked[0], asked[2]]
    found = {one.query: one.detail for one in made.rejected}
    assert set(found) == {asked[1], asked[3], asked[4]}
    assert found[asked[1]] == f"{np.cos(np.radians(20)):.3f} with {asked[0]!r}"
    assert found[asked[4]] == f"{np.cos(np.radians(10)):.3f} with 'so what is it'"
    made = make_queries(
        [RAIN], respond, encoder=Angles(angles), settings=QuerySettings(kinds={"question": 5}, near=None)
    )
    assert queries(made) == asked


def test_a_question_stays_if_the_start_finds_its_passage_within_the_rank() -> None:
    texts = texts_of(6)
    angles = {text: 10.0 * place for place, text in enumerate(texts)}
    asked = {texts[0]: "the one who is near", texts[3]: "the one at rank four", texts[5]: "the last of all six"}
    angles |= dict.fromkeys(asked.values(), 0.0)
    settings = QuerySettings(kinds={"question": 1}, near=None, rank=4)
    respond = by_passage({text: (("question", query),) for text, query in asked.items()})
    made = make_queries(dict(zip("abcdef", texts, strict=True)), respond, encoder=Angles(angles), settings=settings)
    assert queries(made) == ["the one who is near", "the one at rank four"]
    assert [(one.query, one.passages, one.reason, one.rank, one.detail) for one in made.rejected] == [
        ("the last of all six", ("f",), "rank", 6, "rank 6")
    ]
    assert made.report.nothing == 3


def test_of_several_passages_the_last_rank_counts() -> None:
    texts = texts_of(6)
    angles = {text: 10.0 * place for place, text in enumerate(texts)} | {"who and what together then": 0.0}
    documents = [Document(text, metadata={"source": "book"}) for text in texts]
    respond = by_passage({texts[0]: (("several", "who and what together then"),)})
    made = make_queries(
        documents, respond, encoder=Angles(angles), settings=QuerySettings(kinds={"several": 1}, near=None, rank=2)
    )
    assert made.data.rows[0].pos == (texts[0], texts[1])
    with pytest.raises(TrainingDataError, match="its passage is not found: rank 2"):
        make_queries(
            documents, respond, encoder=Angles(angles), settings=QuerySettings(kinds={"several": 1}, near=None, rank=1)
        )


class TestKinds:
    def test_numbers_decide_what_is_asked_of_a_passage(self) -> None:
        respond = Counting(good)
        made = make_queries([RAIN, BREAD], respond, settings=QuerySettings(kinds={"question": 2, "task": 1}))
        assert [wanted_in(prompt) for prompt in respond.prompts] == [{"question": 2, "task": 1}] * 2
        assert made.report.data == {"question": 4, "task": 2}
        assert {row.source for row in made.data.rows} == {"question", "task"}

    def test_a_share_is_a_share_of_the_passages_and_their_texts_decide_which(self) -> None:
        texts = texts_of(400)
        settings = QuerySettings(kinds={"keywords": 0.25, "task": 1.5})

        def asked(of: list[str]) -> dict[str, dict[str, int]]:
            plan = QueryPlan(of, good, settings=settings)
            return {passages_in(task.prompt)[0]: wanted_in(task.prompt) for task in plan._tasks.values()}

        found = asked(texts)
        keywords = [text for text, wanted in found.items() if "keywords" in wanted]
        twice = [text for text, wanted in found.items() if wanted["task"] == 2]
        assert 70 <= len(keywords) <= 130
        assert 160 <= len(twice) <= 240
        fewer = asked(texts[::-3])
        assert fewer.items() <= found.items()

    def test_neighbours_in_a_document_answer_a_question_together(self) -> None:
        texts = texts_of(5)
        documents = [Document(text, metadata={"source": "ab"[place > 2]}) for place, text in enumerate(texts)]
        respond = Counting(good)
        made = make_queries(documents, respond, settings=QuerySettings(kinds={"several": 1}, concurrency=1))
        assert [passages_in(prompt) for prompt in respond.prompts] == [texts[0:2], texts[1:3], texts[3:5]]
        assert [(row.pos, row.document) for row in made.data.rows] == [
            ((texts[0], texts[1]), "a"),
            ((texts[1], texts[2]), "a"),
            ((texts[3], texts[4]), "b"),
        ]

    def test_passages_without_neighbours_go_with_the_nearest_one_that_is_no_copy(self) -> None:
        texts = [*texts_of(3), RAIN, f"{RAIN} ", RAIN.replace("dry", "drier"), BREAD]
        angles = dict(zip(texts, (0.0, 50.0, 90.0, 170.0, 171.0, 172.0, 200.0), strict=True))
        respond = Counting(lambda _: "[]")
        settings = QuerySettings(kinds={"several": 1}, together="near", rank=None, concurrency=1)
        with pytest.raises(TrainingDataError, match="the model found nothing to ask"):
            make_queries(texts, respond, encoder=Angles(angles), settings=settings)
        pairs = [tuple(passages_in(prompt)) for prompt in respond.prompts]
        assert (texts[0], texts[1]) in pairs
        assert (texts[1], texts[2]) in pairs  # once, though each is the nearest of the other
        assert (texts[2], texts[1]) not in pairs
        assert (RAIN, BREAD) in pairs
        assert not [pair for pair in pairs if set(pair) <= {RAIN, f"{RAIN} ", texts[5]}]

    def test_without_an_encoder_and_documents_a_passage_stays_alone(self) -> None:
        made = make_queries([RAIN, BREAD], good, settings=QuerySettings(kinds={"question": 1, "several": 1}))
        assert made.report.alone == 2
        assert "2 passages had no other passage" in made.report.in_words().replace("\n", " ")
        with pytest.raises(SettingsError, match="together='near' needs an encoder"):
            make_queries([RAIN], good, settings=QuerySettings(together="near"))

    def test_own_kinds_are_plain_data(self) -> None:
        error = QuestionKind(name="error", english="the message of an error", chinese="一条报错信息", most=9)
        respond = Counting(
            lambda _: answer(("error", "no water left in the cloud"), ("error", " ".join(["water"] * 10)))
        )
        made = make_queries([RAIN], respond, settings=QuerySettings(kinds={error: 2}))
        assert "2 of the kind 'error': the message of an error" in respond.prompts[0]
        assert queries(made) == ["no water left in the cloud"]
        assert [one.reason for one in made.rejected] == ["length"]

    @pytest.mark.parametrize(
        ("kinds", "said"),
        [
            ({"exam": 1}, "'exam', which is unknown"),
            ({"question": -1}, "must be a number of questions"),
            ({"question": 0}, "asks for no question"),
            ({"question": True}, "must be a number of questions"),
        ],
    )
    def test_wrong_kinds_are_named(self, kinds: dict[str, float], said: str) -> None:
        with pytest.raises(SettingsError, match=re.escape(said)):
            QuerySettings(kinds=kinds)


class TestDocuments:
    def test_langchain_documents_are_their_content(self) -> None:
        document = Document(RAIN, id="r1", metadata={"source": "weather.txt", "title": "Weather"})
        found = read_passages([document])
        assert [(one.text, one.id, one.document) for one in found.all] == [(RAIN, "r1", "weather.txt")]

    def test_llama_index_nodes_have_the_metadata_that_are_embedded(self) -> None:
        node = TextNode(
            text=RAIN,
            id_="n1",
            metadata={"title": "Weather", "page": 3},
            excluded_embed_metadata_keys=["page"],
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
        )
        embedded: list[str] = []
        from llama_index.core.embeddings import MockEmbedding

        class Recording(MockEmbedding):
            def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
                embedded.extend(texts)
                return super()._get_text_embeddings(texts)

        Recording(embed_dim=2)([node])  # as an index embeds it
        for given in (node, NodeWithScore(node=node, score=1.0)):
            (passage,) = read_passages([given]).all
            assert (passage.text, passage.id, passage.document) == (embedded[0], "n1", "book")
        assert "Weather" in embedded[0]
        assert "page" not in embedded[0]

    def test_texts_pairs_and_mappings_are_taken(self) -> None:
        by_id = read_passages({"a": RAIN, "b": BREAD})
        assert by_id.corpus == {"a": RAIN, "b": BREAD}
        assert read_passages([("a", RAIN), ("b", BREAD)]) == by_id
        assert [one.text for one in read_passages([RAIN, BREAD]).all] == [RAIN, BREAD]

    def test_blank_repeated_and_short_ones_are_left_out_and_counted(self) -> None:
        respond = Counting(good)
        made = make_queries([RAIN, " ", RAIN, "Chapter 1", BREAD], respond, settings=ONE)
        assert len(respond.prompts) == 2
        assert "1 without text, 1 with the text of an earlier one, 1 too short to ask about" in " ".join(
            made.report.sentences()
        )
        assert "Chapter 1" in (made.data.corpus or {}).values()

    @pytest.mark.parametrize(
        ("documents", "error", "said"),
        [
            (RAIN, SettingsError, "give a list"),
            ([3], SettingsError, "documents[0] is an int"),
            ([], TrainingDataError, "no text"),
            ([("a", RAIN), ("a", BREAD)], TrainingDataError, "documents[1] has the id 'a', as documents[0]"),
            (["\ud800 is broken here"], TrainingDataError, "documents[0] has a lone surrogate"),
        ],
    )
    def test_wrong_documents_are_named(self, documents: object, error: type[Exception], said: str) -> None:
        with pytest.raises(error, match=re.escape(said)):
            make_queries(documents, good)

    def test_the_data_can_be_mined_and_searched_in(self) -> None:
        documents = [Document(text, metadata={"source": f"d{place // 2}"}) for place, text in enumerate(texts_of(6))]
        made = make_queries(documents, good, settings=ONE)
        assert set((made.data.corpus or {}).values()) == set(texts_of(6))
        assert made.documents == {text: f"d{place // 2}" for place, text in enumerate(texts_of(6))}
        data = made.data.as_retrieval_data()
        assert {data.corpus[id_] for grades in data.qrels.values() for id_ in grades} == set(texts_of(6))
        assert len({row.id for row in made.data.rows}) == len(made.data.rows)


class TestPrompts:
    def test_examples_are_shown_and_not_repeated(self) -> None:
        examples = ["will it be wet tomorrow", "cheap flights to rome please"]
        respond = Counting(in_turn(answer(("question", "Will it be wet  tomorrow?")), answer(("question", UMBRELLA))))
        made = make_queries([RAIN], respond, settings=QuerySettings(kinds={"question": 1}, examples=examples))
        for example in examples:
            assert f"- {example}" in respond.prompts[0]
        assert queries(made) == [UMBRELLA]
        assert reasons(made) == [("Will it be wet tomorrow?", "example")]

    def test_of_many_examples_each_passage_gets_some(self) -> None:
        examples = [f"number {number} of what people ask" for number in range(40)]
        respond = Counting(good)
        settings = QuerySettings(kinds={"question": 1}, examples=examples, examples_shown=5)
        make_queries(texts_of(30), respond, settings=settings)
        shown = [tuple(example for example in examples if f"- {example}\n" in prompt) for prompt in respond.prompts]
        assert {len(one) for one in shown} == {5}
        assert len(set(shown)) == 30
        assert set().union(*shown) == set(examples)

    def test_chinese_passages_are_asked_about_in_chinese(self) -> None:
        text = "雨水从云里落下，干旱地区的农民靠它种地。"
        respond = Counting(good)
        made = make_queries([text, RAIN], respond, settings=QuerySettings(kinds={"question": 1}, concurrency=1))
        chinese, english = respond.prompts
        assert chinese.startswith("下面")
        assert english.startswith("Below")
        assert not re.search(r"[a-z]{3} [a-z]{3}", chinese.replace(text, ""))
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert len(made.data.rows) == 2

    def test_the_language_of_questions_can_be_set(self) -> None:
        respond = Counting(in_turn(answer(("question", UMBRELLA)), answer(("question", "阴天为什么需要带雨伞出门"))))
        made = make_queries([RAIN], respond, settings=QuerySettings(kinds={"question": 1}, language="zh"))
        assert "都用中文书写" in respond.prompts[0]
        assert queries(made) == ["阴天为什么需要带雨伞出门"]

    def test_several_passages_are_all_in_the_prompt(self) -> None:
        for texts in (
            [RAIN, BREAD],
            ["雨水从云里落下，干旱地区的农民靠它种地。", "面包用面粉和水做成，要放很久再烤。"],
        ):
            respond = Counting(good)
            documents = [Document(text, metadata={"source": "a"}) for text in texts]
            make_queries(documents, respond, settings=QuerySettings(kinds={"several": 1}))
            assert passages_in(respond.prompts[0]) == texts


class TestTestQuestions:
    def test_questions_like_those_of_the_test_are_refused(self) -> None:
        test = RetrievalData({"t": "how much rain will fall on the fields"}, {"d": RAIN}, {"t": {"d": 1}})
        asked = ["tell me how much rain will fall", "How much rain will fall on the fields", UMBRELLA]
        respond = by_passage({RAIN: tuple(("question", one) for one in asked)})
        for data in (test, TrainingData([TrainingRow("how much rain will fall on the fields", (RAIN,))])):
            made = make_queries([RAIN], respond, settings=QuerySettings(kinds={"question": 3}), test=data)
            assert queries(made) == [UMBRELLA]
            assert reasons(made) == [(asked[0], "test"), (asked[1], "test")]
        assert queries(make_queries([RAIN], respond, settings=QuerySettings(kinds={"question": 3}))) == asked


class TestModels:
    @pytest.mark.parametrize("kind", ["function", "async function", "object", "async object", "chain", "message"])
    def test_functions_and_chains_are_models_too(self, kind: str) -> None:
        class Callable_:
            def __call__(self, prompt: str) -> str:
                return good(prompt)

        class AsyncCallable:
            async def __call__(self, prompt: str) -> str:
                return good(prompt)

        async def async_good(prompt: str) -> str:
            return good(prompt)

        chat = ScriptedChat(respond=good)
        llms: dict[str, object] = {
            "function": good,
            "async function": async_good,
            "object": Callable_(),
            "async object": AsyncCallable(),
            "chain": ChatPromptTemplate.from_template("{text}") | chat,
            "message": chat.invoke,
        }
        if kind == "chain":
            llms["chain"] = RunnableLambda(lambda prompt: {"text": prompt}) | llms["chain"]  # type: ignore[operator]
        made = make_queries([RAIN], llms[kind], settings=ONE)
        assert queries(made) == ["question 0 on Rain please"]

    @pytest.mark.parametrize("llm", ["gpt", 3, None, dict])
    def test_what_is_no_model_is_named(self, llm: object) -> None:
        with pytest.raises(SettingsError, match="give a chat model of LangChain or LlamaIndex"):
            make_queries([RAIN], llm)

    def test_a_function_that_returns_no_text_is_told_at_once(self) -> None:
        respond: Callable[[str], Any] = Counting(lambda _: 3)  # type: ignore[arg-type, return-value]
        with pytest.raises(SettingsError, match="llm returned an int, which has no text"):
            make_queries(texts_of(9), respond, settings=ONE)

    @every_framework
    def test_a_model_is_known_by_its_name(self, framework: Framework) -> None:
        made = make(good, framework)
        assert (
            made.report.llm == {"langchain": "ScriptedChat scripted", "llama-index": "ScriptedLLM scripted"}[framework]
        )


def test_progress_is_shown_on_request(bge_small_en: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BgeEncoder(bge_small_en, device="cpu") as encoder:
        wide = QuerySettings(near=None, rank=9)
        quiet = make_queries(texts_of(9), good, encoder=encoder, settings=wide)
        assert capsys.readouterr().err == ""
        shown = make_queries(texts_of(9), good, encoder=encoder, settings=wide, show_progress=True)
    said = capsys.readouterr().err
    assert said.index("Embedding") < said.index("Asking") < said.rindex("Embedding")
    assert f"{shown.report.tasks}/{shown.report.tasks}" in said
    assert shown.data == quiet.data


def test_no_question_at_all_is_an_error_that_says_why() -> None:
    with pytest.raises(TrainingDataError, match=r"No question stays\. 1 passage.*copies the passage's words") as caught:
        make_queries([RAIN], lambda _: answer(("question", RAIN[:50])), settings=ONE)
    assert "The first: " in str(caught.value)


def test_the_report_is_plain_data_and_markdown() -> None:
    def respond(prompt: str) -> str:
        return answer(("question", UMBRELLA), ("question", "what does the passage say")) if RAIN in prompt else "[]"

    made = make_queries([RAIN, BREAD], respond, settings=QuerySettings(kinds={"question": 2}))
    plain = json.loads(json.dumps(made.report.to_dict()))
    assert (plain["made"], plain["data"], plain["rejected"]) == ({"question": 2}, {"question": 1}, {"mention": 1})
    assert (plain["passages"], plain["tasks"], plain["calls"], plain["nothing"], plain["covered"]) == (2, 2, 2, 1, 1)
    text = made.report.to_markdown()
    assert f"**{UMBRELLA}** (question)" in text
    assert "| what does the passage say | question | mentions the passage | 'the passage' |" in text
    assert "For 1 prompt the model found nothing to ask." in made.report.in_words()
