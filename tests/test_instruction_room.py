"""Instructions and the limit: no text is left out of its own vector, whichever class and engine computes it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.text.templates import Frame
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.errors import SettingsError, TruncationError, TruncationWarning
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.settings import EngineName, TransformersKwargs
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_reranker

INSTRUCTION = "Represent this sentence for searching relevant passages: "
QUERIES = ["fox", "lazy dog"]
LONG = ["fox and dog " * 30, "lazy vector store " * 30]
LEFT = TransformersKwargs.of(processor={"truncation_side": "left"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder that brings no instruction of its own."""
    return make_checkpoint(tmp_path_factory.mktemp("plain") / "mine", modules=("cls", "normalize"))


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reranker(tmp_path_factory.mktemp("reranker") / "mine", "bert", positions=128)


def tokens_of(folder: Path, text: str, *, add_special_tokens: bool = True) -> int:
    return len(AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=add_special_tokens)["input_ids"])


def score_of(folder: Path, query: list[int], passage: list[int]) -> float:
    """Plain transformers on the ids of one pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    first, second = [tokenizer.cls_token_id, *query, tokenizer.sep_token_id], [*passage, tokenizer.sep_token_id]
    types = torch.tensor([[0] * len(first) + [1] * len(second)])
    with torch.no_grad():
        return float(model(torch.tensor([first + second]), token_type_ids=types).logits[0, 0])


class TestNoRoom:
    def test_is_an_error_when_the_model_is_loaded_whatever_the_setting(self, plain: Path) -> None:
        around = tokens_of(plain, INSTRUCTION)
        message = f"max_length={around} leaves no room for text beside the {around} tokens .*'Represent this"
        ways: list[Callable[..., object]] = [
            lambda limit: BgeEncoder(plain, query_instruction=INSTRUCTION, max_length=limit),
            lambda limit: BgeEncoder(plain, document_instruction=INSTRUCTION, max_length=limit),
            lambda limit: HuggingFaceBgeEmbeddings(
                model_name=str(plain), query_instruction=INSTRUCTION, max_length=limit
            ),
            lambda limit: HuggingFaceBgeEmbeddings(
                model_name=str(plain), embed_instruction=INSTRUCTION, max_length=limit
            ),
            lambda limit: HuggingFaceBgeEmbeddings(
                model_name=str(plain), model_kwargs={"prompts": {"query": INSTRUCTION}}, max_length=limit
            ),
            lambda limit: HuggingFaceBgeEmbeddings(
                model_name=str(plain), encode_kwargs={"prompt": INSTRUCTION}, max_length=limit
            ),
            lambda limit: HuggingFaceBgeEmbedding(str(plain), text_instruction=INSTRUCTION, max_length=limit),
            lambda limit: HuggingFaceBgeEmbedding(str(plain), prompts={"query": INSTRUCTION}, max_length=limit),
        ]
        for way in ways:
            with pytest.raises(SettingsError, match=message) as caught:
                way(around)
            assert f"give at least {around + 1}" in str(caught.value)
            way(around + 1)

    def test_is_an_error_for_bge_m3_and_for_rerankers(self, bge_m3: Path, reranker_folder: Path) -> None:
        around = tokens_of(bge_m3, INSTRUCTION)
        with pytest.raises(SettingsError, match=f"max_length={around} leaves no room"):
            BgeM3Encoder(bge_m3, query_instruction=INSTRUCTION, max_length=around)
        around = tokens_of(reranker_folder, INSTRUCTION) + 1  # the passage's own [SEP]
        with pytest.raises(SettingsError, match=f"max_length={around + 1} leaves no room .* at least {around + 2}"):
            BgeReranker(reranker_folder, query_instruction=INSTRUCTION, max_length=around + 1)
        BgeReranker(reranker_folder, query_instruction=INSTRUCTION, max_length=around + 2)

    def test_is_an_error_where_the_models_own_limit_is_too_small(self, plain: Path) -> None:
        with pytest.raises(SettingsError, match=r"mine reads 64 tokens, which leaves no room for text .* shorter inst"):
            BgeEncoder(plain, query_instruction=INSTRUCTION * 9)

    def test_of_what_the_model_brings_is_an_error_when_it_is_used(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, max_length=tokens_of(bge_small_en, INSTRUCTION))
        assert encoder.encode_documents(["fox"]).shape == (1, 32)
        before = encoder.stats().batches
        with pytest.raises(SettingsError, match="leaves no room for text"):
            encoder.encode_queries(QUERIES)
        with pytest.raises(SettingsError, match="leaves no room for text"):
            asyncio.run(encoder.aencode_queries(QUERIES))
        assert encoder.stats().batches == before

    def test_is_an_error_for_saved_prompts(self, tmp_path: Path) -> None:
        prompts = {"query": INSTRUCTION * 6, "document": ""}
        folder = make_checkpoint(tmp_path / "mine", modules=("mean",), positions=48, prompts=prompts)
        encoder = BgeEncoder(folder)
        with pytest.raises(SettingsError, match="reads 48 tokens"):
            encoder.encode_queries(QUERIES)
        assert len(encoder.encode_documents(QUERIES)) == 2

    def test_comes_before_the_texts_are_looked_at(self, bge_small_en: Path) -> None:
        encoder = BgeEncoder(bge_small_en, max_length=8)
        with pytest.raises(SettingsError, match="leaves no room"):
            encoder.encode_queries([None])  # type: ignore[list-item]


class TestLittleRoom:
    @pytest.mark.parametrize("room", [1, 4])
    def test_gives_each_text_its_own_vector_and_a_warning_that_names_the_share(self, plain: Path, room: int) -> None:
        instruction = tokens_of(plain, INSTRUCTION, add_special_tokens=False)
        limit = instruction + 2 + room
        encoder = BgeEncoder(plain, query_instruction=INSTRUCTION, max_length=limit)
        with pytest.warns(
            TruncationWarning, match=f"the instruction takes {instruction} of the {limit} tokens"
        ) as seen:
            first, second = encoder.encode_queries(LONG)
        assert "a shorter instruction or a larger max_length" in str(seen[0].message)
        assert float(first @ second) < 0.999
        strict = BgeEncoder(plain, query_instruction=INSTRUCTION, max_length=limit, on_truncation="error")
        with pytest.raises(TruncationError, match=f"the instruction takes {instruction} of the {limit} tokens"):
            strict.encode_queries(LONG)

    def test_of_texts_that_fit_is_no_matter(self, plain: Path) -> None:
        limit = tokens_of(plain, INSTRUCTION) + 12
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            BgeEncoder(plain, query_instruction=INSTRUCTION, max_length=limit).encode_queries(["fox"])

    def test_is_not_spoken_of_without_an_instruction(self, plain: Path) -> None:
        with pytest.warns(TruncationWarning, match="Split long texts") as seen:
            BgeEncoder(plain, max_length=20).encode_queries(LONG)
        assert "instruction" not in str(seen[0].message)

    def test_of_bge_m3_gives_each_query_its_own_outputs(self, bge_m3: Path) -> None:
        limit = tokens_of(bge_m3, INSTRUCTION) + 3
        m3 = BgeM3Encoder(bge_m3, query_instruction=INSTRUCTION, max_length=limit)
        with pytest.warns(TruncationWarning, match=rf"the instruction takes \d+ of the {limit} tokens"):
            found = m3.encode_queries(LONG)
        assert found.dense is not None
        assert float(found.dense[0] @ found.dense[1]) < 0.999

    def test_goes_to_the_first_bytes_of_a_character_before_a_suffix(self) -> None:
        rust = Tokenizer(models.BPE({byte: id_ for id_, byte in enumerate(sorted(ByteLevel.alphabet()))}, []))
        rust.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer = TextTokenizer(rust, pad_id=0)
        around, texts = len("<query>" + "</query>"), ["鰻鱼", "ǽon", "fox"]
        found = Frame(tokenizer, "<query>", "</query>", around + 1).tokenize(texts)
        assert found.lengths.tolist() == [around + 1] * 3
        for index, text in enumerate(texts):
            expected = rust.encode("<query>").ids + rust.encode(text).ids[:1] + rust.encode("</query>").ids
            assert found.of(np.array([index])).tolist() == expected

    def test_is_what_chunks_are_measured_by(self, plain: Path) -> None:
        around = tokens_of(plain, INSTRUCTION)
        encoder = BgeEncoder(plain, document_instruction=INSTRUCTION, max_length=around + 3)
        assert encoder.chunk_size == 3


class TestPairs:
    def test_a_long_query_is_cut_behind_the_instruction(self, reranker_folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(reranker_folder)
        instruction, query, passage = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (INSTRUCTION, LONG[0], LONG[1])
        )
        limit = 3 + len(instruction) + 9
        reranker = BgeReranker(reranker_folder, query_instruction=INSTRUCTION, max_length=limit)
        with pytest.warns(TruncationWarning, match=f"the instruction takes {len(instruction)} of the {limit} tokens"):
            found = reranker.score_pairs([(LONG[0], LONG[1]), (LONG[1], LONG[1])])
        own = max((limit - 3) * 3 // 4 - len(instruction), 9 // 2)
        assert found[0] == pytest.approx(
            score_of(reranker_folder, instruction + query[:own], passage[: 9 - own]), abs=1e-5
        )
        assert abs(found[0] - found[1]) > 1e-4

    def test_from_the_left_neither_instruction_nor_query_is_lost(self, reranker_folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(reranker_folder)
        query, passage = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (INSTRUCTION + "fox", LONG[1])
        )
        limit = 3 + len(query) + 5
        reranker = BgeReranker(
            reranker_folder,
            query_instruction=INSTRUCTION,
            max_length=limit,
            on_truncation="ignore",
            transformers_kwargs=LEFT,
        )
        assert reranker.score("fox", [LONG[1]])[0] == pytest.approx(
            score_of(reranker_folder, query, passage[-5:]), abs=1e-5
        )


@pytest.mark.parametrize("engine", ["openvino", "torch", "sentence-transformers"])
def test_cutting_from_the_left_keeps_the_instruction(plain: Path, engine: EngineName) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    model = AutoModel.from_pretrained(plain, dtype=torch.float32).eval()
    instruction, *texts = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (INSTRUCTION, *LONG))
    room, expected = 5, []
    for text in texts:
        ids = [tokenizer.cls_token_id, *instruction, *text[-room:], tokenizer.sep_token_id]
        with torch.no_grad():
            expected.append(torch.nn.functional.normalize(model(torch.tensor([ids]))[0][0, 0], dim=0).numpy())
    encoder = BgeEncoder(
        plain,
        device="cpu",
        engine=engine,
        query_instruction=INSTRUCTION,
        max_length=len(instruction) + room + 2,
        on_truncation="ignore",
        transformers_kwargs=LEFT,
    )
    np.testing.assert_allclose(encoder.encode_queries(LONG), expected, atol=1e-5)
