"""A model described from its files alone equals what sentence-transformers makes of them, or is left to it."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bge_integrations.backend.checkpoint.checks import locate_requested, vet
from bge_integrations.backend.checkpoint.describe import describe
from bge_integrations.backend.checkpoint.plainness import NotPlainError
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.model.description import Description
from bge_integrations.backend.torch_models import load_source
from bge_integrations.settings import EncoderSettings, ModelSettings, Purpose, RerankerSettings
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import make_reranker, reference_scores

_TEXTS = (
    "",
    "the quick brown fox",
    "The QUICK  Brown Fox, naïve CAFÉ and ÜBER-straße; İstanbul ﬁne １２３ don't\tA.B. \n\n End ",
    "检索 样例数据，北京天气很好。Represent 样例",
    "before [CLS][SEP] [MASK] [PAD] <s></s> <mask> <pad> <unk> [UNK] <new> after<new>",
    "emoji 😀 zero\u200bwidth \u00a0 nbsp \u00ad soft",
    "word " * 100,
)

Edit = Callable[[Path], None]


def _request(folder: Path, purpose: Purpose = "vectors", **settings: Any) -> LoadRequest:  # noqa: ANN401
    kind: type[ModelSettings] = RerankerSettings if purpose == "scores" else EncoderSettings
    return LoadRequest.from_settings(kind(model_name=str(folder), device="cpu", **settings), purpose)


def _described(folder: Path, purpose: Purpose = "vectors", **settings: Any) -> Description:  # noqa: ANN401
    """Describes a folder, and compares all of it with what the libraries load."""
    request = _request(folder, purpose, **settings)
    checkpoint = locate_requested(request)
    spec = vet(checkpoint, request)
    found = describe(request, checkpoint, spec)
    expected = load_source(request, checkpoint, spec, "float32").description()
    assert expected is not None
    for field in dataclasses.fields(found.facts):
        assert getattr(found.facts, field.name) == getattr(expected.facts, field.name), field.name
    assert (found.rows, found.shape) == (expected.rows, expected.shape)
    limit = found.facts.max_tokens
    for text in _TEXTS:
        ours, theirs = (model.tokenizer.tokenize([text], limit) for model in (found, expected))
        assert ours.ids.tolist() == theirs.ids.tolist(), text
        assert ours.full_lengths.tolist() == theirs.full_lengths.tolist(), text
    assert found.tokenizer.sample_pair().ids == expected.tokenizer.sample_pair().ids
    assert found.tokenizer.sample_pair().types == expected.tokenizer.sample_pair().types
    for name, weight in found.weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, expected.weights[name], err_msg=name)
    assert set(found.heads) == set(expected.heads)
    for name, weight in found.heads.items():
        np.testing.assert_array_equal(weight, expected.heads[name], err_msg=name)
    return found


def _json(name: str, **changes: Any) -> Edit:  # noqa: ANN401
    """Returns an edit of a JSON file; a value of `...` takes its key out."""

    def edit(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        content = {key: value for key, value in {**content, **changes}.items() if value is not ...}
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return edit


def _tokenizer(**changes: Any) -> Edit:  # noqa: ANN401
    return _json("tokenizer_config.json", **changes)


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Edit:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    return edit


def _renamed(rename: Callable[[str], str]) -> Edit:
    return _weights(lambda weights: {rename(name): weight for name, weight in weights.items()})


def _of_type(dtype: torch.dtype) -> Edit:
    return _weights(lambda weights: {name: weight.to(dtype) for name, weight in weights.items()})


def _recorded(folder: Path) -> None:
    """Writes the added tokens into tokenizer_config.json, as transformers 4.30 to 4.57 saved them."""
    saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in saved["added_tokens"]}
    _tokenizer(added_tokens_decoder=decoder)(folder)


def _both(*edits: Edit) -> Edit:
    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit


def _added(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Returns an edit of the first added token in tokenizer.json."""

    def edit(folder: Path) -> None:
        saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        first, *others = saved["added_tokens"]
        _pipeline(added_tokens=[change(first), *others])(folder)

    return edit


def _model(tokenizer_class: str, **changes: Any) -> Edit:  # noqa: ANN401
    """Returns an edit of the model in tokenizer.json, and of the class that reads it."""

    def edit(folder: Path) -> None:
        saved = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        _pipeline(model={**saved["model"], **changes})(folder)
        _tokenizer(tokenizer_class=tokenizer_class)(folder)

    return edit


_SHORT = {"dtype": "F32", "shape": [32], "data_offsets": [0, 4]}


def _header(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Returns an edit of the header of the weights."""

    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])

    return edit


def _also_in(name: str) -> Edit:
    """Returns an edit that puts all weights into a second file too."""

    def edit(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder / name)
        weight_map = {"a": "model.safetensors", "b": name}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        _json("model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": name})(folder)

    return edit


def _in_two_files(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(whole)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _saved_again(folder: Path) -> None:
    """Saves it as sentence-transformers does now."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", prompts={"query": "ask: "})
    shutil.rmtree(folder)
    model.save(str(folder))


def _with_special_tokens_map(folder: Path) -> None:
    """Makes of it what transformers 4.30 saved: special tokens in a file of their own, and no list of added tokens."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    special = {key: value for key, value in config.items() if key.endswith("_token")}
    rest = {key: value for key, value in config.items() if key not in (*special, "added_tokens_decoder")}
    (folder / "tokenizer_config.json").write_text(json.dumps(rest))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _pipeline(**changes: Any) -> Edit:  # noqa: ANN401
    return _json("tokenizer.json", **changes)


# SentencePiece's table of the rules "ﬁ" to "fi", "①" to "1" and full-width f to f, compressed.
_CHARACTERS = base64.b64encode(
    zlib.decompress(
        base64.b64decode(
            "eNod01XQlgUQBtB3PmCGAYceULpbSrpB6ZSQBgl/6e4SEH66UVq6kW4kJASku7u7U+p87syZ52Iv9mJ3g6hBEIyIElwrGwrGDgwFM5MF4eq3NHoo"
            "6B8tCLT7RcqQjKkRg8cTQsEXMjaxiEsc4hOPLc1DQQKZiIR8xZckITHhEUlJQXJSkZI0pCYdaclAejKRkSxk5muykp1s5CQH35CLPOQmH3kpQH4K"
            "UZAiFKYYRSlBcb6lJKX4jjKUphxlqUB5KlGRKlTme6pSnWrUpAa1+IE61KYedWlAfRrRkMb8SFOa8BPN+JkIWtCcVrSkDa1pR1s60J5OdKQLnelG"
            "V3rQnV70pA+9+YW+9A8vnF8ZwCAGMphIhjKE4QxjZPhkGM0oxjKG8YzjNyYwkd+ZzCSmMoXpTGMGfzCLmcxhNvOYywLms4iFLGExf7KU5SxjJStY"
            "zSrWsob1rGMjG9jMpvB98hfb2MrfbGcnO9jNLvbwD/vYy37+5SAHOMwhjnKE4xzjJCc4zSnOcobznOMiF7jMJa5yhetc4yY3uM0t7nKH+9zjIQ/C"
            "f8gjnvKE5zzjJS94zSve8ob/eMcH3vOJj///T0QQ0SL4DGjoiiQ="
        )
    )
).decode()
_PRECOMPILED = {"type": "Precompiled", "precompiled_charsmap": _CHARACTERS}
_BERT_TOKENIZER = _tokenizer(tokenizer_class="BertTokenizer")
_CASED = _tokenizer(tokenizer_class="BertTokenizer", do_lower_case=False)
_XLM_TOKENIZER = _tokenizer(tokenizer_class="XLMRobertaTokenizer")
_TRUNCATION = {"direction": "Left", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": "BatchLongest",
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
}


class TestBert:
    @pytest.mark.parametrize(
        "edits",
        [
            pytest.param([], id="as it is"),
            pytest.param([_BERT_TOKENIZER], id="BertTokenizer"),
            pytest.param([_tokenizer(tokenizer_class="BertTokenizerFast")], id="BertTokenizerFast"),
            pytest.param([_tokenizer(tokenizer_class=...)], id="no class"),
            pytest.param([_tokenizer(tokenizer_class="PreTrainedTokenizerFast")], id="generic"),
            pytest.param([_CASED], id="cased"),
            pytest.param([_BERT_TOKENIZER, _tokenizer(do_lower_case=True, strip_accents=False)], id="accents"),
            pytest.param([_BERT_TOKENIZER, _tokenizer(tokenize_chinese_chars=False)], id="no Chinese"),
            pytest.param([_BERT_TOKENIZER, _tokenizer(do_basic_tokenize=True, never_split=None)], id="former keys"),
            pytest.param([_BERT_TOKENIZER, _with_special_tokens_map], id="special tokens map"),
            pytest.param([_BERT_TOKENIZER, _recorded], id="recorded tokens"),
            pytest.param([_recorded], id="recorded tokens, generic"),
            pytest.param([_BERT_TOKENIZER, _pipeline(normalizer={"type": "Lowercase"})], id="other normaliser"),
            pytest.param([_pipeline(normalizer={"type": "Lowercase"})], id="other normaliser, generic"),
            pytest.param([_BERT_TOKENIZER, _pipeline(truncation=_TRUNCATION)], id="cut on the left"),
            pytest.param([_pipeline(truncation=_TRUNCATION)], id="cut on the left, generic"),
            pytest.param([_tokenizer(truncation_side="left")], id="truncation side"),
            pytest.param([_pipeline(padding=_PADDING), _tokenizer(pad_token=...)], id="padding in tokenizer.json"),
            pytest.param([_tokenizer(split_special_tokens=True)], id="split special tokens"),
            pytest.param([_BERT_TOKENIZER, _tokenizer(split_special_tokens=True)], id="split special tokens, BERT"),
            pytest.param([_tokenizer(model_max_length=10**30)], id="no limit"),
            pytest.param([_json("sentence_bert_config.json", max_seq_length=None)], id="no length"),
            pytest.param([_json("sentence_bert_config.json", max_seq_length=20)], id="shorter"),
            pytest.param([_json("sentence_bert_config.json", max_seq_length=2000)], id="longer than positions"),
            pytest.param([_json("sentence_bert_config.json", do_lower_case=True)], id="lowered first"),
            pytest.param(
                [
                    _BERT_TOKENIZER,
                    _tokenizer(do_lower_case=False),
                    _json("sentence_bert_config.json", do_lower_case=True),
                ],
                id="lowered first, cased",
            ),
            pytest.param([_json("1_Pooling/config.json", include_prompt=False)], id="without the prompt"),
            pytest.param(
                [_json("1_Pooling/config.json", pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)], id="mean"
            ),
            pytest.param([_json("config.json", architectures=["BertForMaskedLM"])], id="other head"),
            pytest.param([_renamed(lambda name: f"bert.{name}")], id="prefix"),
            pytest.param(
                [
                    _renamed(
                        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                            "LayerNorm.bias", "LayerNorm.beta"
                        )
                    )
                ],
                id="gamma and beta",
            ),
            pytest.param([_of_type(torch.float16)], id="float16"),
            pytest.param([_of_type(torch.bfloat16)], id="bfloat16"),
            pytest.param([_of_type(torch.float64)], id="float64"),
            pytest.param([_in_two_files], id="two files"),
            pytest.param([_saved_again], id="saved again"),
            pytest.param(
                [
                    _json(
                        "config_sentence_transformers.json",
                        prompts={"query": "q: ", "document": None, "topic": "t: "},
                        default_prompt_name="topic",
                    )
                ],
                id="prompts",
            ),
        ],
    )
    def test_equals_the_libraries(self, tmp_path: Path, edits: list[Edit]) -> None:
        folder = make_checkpoint(tmp_path / "some-model", modules=("cls", "normalize"))
        for edit in edits:
            edit(folder)
        _described(folder)

    @pytest.mark.parametrize("name", ["bge-small-en-v1.5", "some-model"])
    @pytest.mark.parametrize("pooling", [None, "cls", "mean"])
    def test_bare_transformers(self, tmp_path: Path, name: str, pooling: str | None) -> None:
        folder = make_checkpoint(tmp_path / name)
        _json("sentence_bert_config.json", max_seq_length=32, do_lower_case=True)(folder)
        _described(folder, pooling=pooling)

    def test_a_pooling_of_the_users(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "some-model", modules=("mean",))
        assert _described(folder, pooling="cls").rows == "cls"

    def test_a_fine_tune_by_its_record(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "mine", recorded_name="BAAI/bge-small-en-v1.5")
        assert _described(folder).facts.recognized_by == "record"

    def test_real_weights(self, minilm: str) -> None:
        _described(Path(minilm))


class TestXlmRoberta:
    @pytest.mark.parametrize(
        "edits",
        [
            pytest.param([], id="as it is"),
            pytest.param([_XLM_TOKENIZER], id="XLMRobertaTokenizer"),
            pytest.param([_tokenizer(tokenizer_class=...)], id="no class"),
            pytest.param([_XLM_TOKENIZER, _tokenizer(sp_model_kwargs={})], id="former keys"),
            pytest.param([_XLM_TOKENIZER, _tokenizer(add_prefix_space=False)], id="no space in front"),
            pytest.param([_XLM_TOKENIZER, _with_special_tokens_map], id="special tokens map"),
            pytest.param([_XLM_TOKENIZER, _recorded], id="recorded tokens"),
            pytest.param(
                [
                    _XLM_TOKENIZER,
                    _pipeline(
                        normalizer={
                            "type": "Sequence",
                            "normalizers": [
                                {"type": "Strip", "strip_left": False, "strip_right": True},
                                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
                            ],
                        }
                    ),
                ],
                id="normaliser of later converters",
            ),
            pytest.param(
                [
                    _XLM_TOKENIZER,
                    _pipeline(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
                ],
                id="Metaspace alone",
            ),
            pytest.param([_XLM_TOKENIZER, _pipeline(normalizer=_PRECOMPILED)], id="table of characters"),
            pytest.param([_pipeline(normalizer=_PRECOMPILED)], id="table of characters, generic"),
            pytest.param(
                [
                    _XLM_TOKENIZER,
                    _pipeline(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, _PRECOMPILED]}),
                ],
                id="table of characters in a sequence",
            ),
            pytest.param([_renamed(lambda name: f"roberta.{name}")], id="prefix"),
        ],
    )
    def test_equals_the_libraries(self, tmp_path: Path, edits: list[Edit]) -> None:
        folder = make_checkpoint(tmp_path / "some-model", "xlm-roberta", modules=("cls", "normalize"))
        for edit in edits:
            edit(folder)
        _described(folder)


class TestRerankers:
    @pytest.mark.parametrize("name", ["bge-reranker-base", "other-reranker"])
    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    @pytest.mark.parametrize(
        "edits",
        [
            pytest.param([], id="as it is"),
            pytest.param([_tokenizer(tokenizer_class=...)], id="own class"),
            pytest.param([_tokenizer(model_input_names=["input_ids", "attention_mask"])], id="no types"),
            pytest.param([_tokenizer(model_max_length=20)], id="shorter"),
            pytest.param([_json("sentence_bert_config.json", max_seq_length=20)], id="settings that nobody reads"),
            pytest.param([_of_type(torch.float16)], id="float16"),
        ],
    )
    def test_equals_the_libraries(self, tmp_path: Path, name: str, architecture: Any, edits: list[Edit]) -> None:  # noqa: ANN401
        folder = make_reranker(tmp_path / name, architecture)
        for edit in edits:
            edit(folder)
        _described(folder, "scores")

    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_saved_by_sentence_transformers(self, tmp_path: Path, architecture: Any) -> None:  # noqa: ANN401
        from sentence_transformers import CrossEncoder

        made = make_reranker(tmp_path / "before", architecture)
        CrossEncoder(str(made), device="cpu", prompts={"ask": "why: "}).save(str(tmp_path / "after"))
        assert _described(tmp_path / "after", "scores").facts.prompts == {"ask": "why: "}


class TestLeftToTheLibraries:
    @pytest.mark.parametrize(
        ("edit", "reason"),
        [
            (_json("config.json", hidden_act="relu"), "no plain encoder"),
            (_json("config.json", layer_norm_eps=...), "layer_norm_eps"),
            (_json("config.json", pad_token_id=None), "pad_token_id"),
            (_json("config.json", tokenizer_class="BertTokenizer"), "tokenizer_class"),
            (_json("config.json", intermediate_size=64), "shape"),
            (_tokenizer(tokenizer_class="RobertaTokenizer"), "RobertaTokenizer"),
            (_tokenizer(additional_special_tokens=["<new>"]), "additional_special_tokens"),
            (_tokenizer(mask_token="<new>"), "mask_token"),
            (_tokenizer(chat_template="{{ messages }}"), "chat_template"),
            (_tokenizer(surprise=1), "surprise"),
            (_tokenizer(model_max_length=64.0), "model_max_length"),
            (_tokenizer(tokenizer_class="BertTokenizer", cls_token=None), "switches a special token off"),
            (_tokenizer(tokenizer_class="BertTokenizer", do_lower_case="no"), "do_lower_case"),
            (_tokenizer(tokenizer_class="XLMRobertaTokenizer"), "not Unigram"),
            (_both(_recorded, _added(lambda token: {**token, "lstrip": True})), "different added tokens"),
            (_added(lambda token: {**token, "id": 90}), "other ids"),
            (_pipeline(post_processor=None), "no post_processor"),
            (_pipeline(model={"type": "WordPiece", "unk_token": "[UNK]"}), "no vocabulary"),
            (_model(unk_token="[PAD]", tokenizer_class="BertTokenizer"), "unk_token"),
            (lambda folder: (folder / "tokenizer.json").write_text('{"a": }'), r"tokenizer\.json"),
            (lambda folder: (folder / "tokenizer_config.json").unlink(), r"tokenizer_config\.json"),
            (_both(_with_special_tokens_map, _json("special_tokens_map.json", more=["<new>"])), "has more"),
            (_json("config_sentence_transformers.json", default_prompt_name="topic"), "default prompt"),
            (_json("sentence_bert_config.json", transformer_task="fill-mask"), "transformer_task"),
            (_json("config.json", is_encoder_decoder=True), "is_encoder_decoder"),
            (_json("config.json", model_type="distilbert"), "distilbert"),
            (_json("adapter_config.json", peft_type="LORA"), "adapter"),
            (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "header"),
            (_header(lambda header: {**header, "embeddings.LayerNorm.bias": _SHORT}), "damaged"),
            (_also_in("model-2.safetensors"), "is in"),
            (_weights(lambda weights: {**weights, "embeddings.LayerNorm.gamma": torch.ones(32)}), "two tensors"),
            (_json("added_tokens.json", **{"<new>": 999}), r"added_tokens\.json"),
            (_json("sentence_bert_config.json", processing_kwargs={"text": {}}), "processing_kwargs"),
            (_json("1_Pooling/config.json", pooling_mode_mean_tokens=True), "pooling"),
            (_json("1_Pooling/config.json", word_embedding_dimension=64), "pooling"),
            (_json("2_Normalize/config.json", module_output_name="other"), "normalise"),
            (_json("config_sentence_transformers.json", truncate_dim=8), "truncate_dim"),
            (_json("config_sentence_transformers.json", model_type="SparseEncoder"), "SparseEncoder"),
            (_weights(lambda weights: {**weights, "bert.embeddings.word_embeddings.weight": torch.zeros(1)}), "twice"),
            (_weights(lambda weights: dict(list(weights.items())[1:])), "have no"),
            (_of_type(torch.int8), "I8"),
        ],
    )
    def test_what_is_special(self, tmp_path: Path, edit: Edit, reason: str) -> None:
        folder = make_checkpoint(tmp_path / "some-model", modules=("cls", "normalize"))
        edit(folder)
        request = _request(folder)
        checkpoint = locate_requested(request)
        with pytest.raises(NotPlainError, match=reason):
            describe(request, checkpoint, None)

    @pytest.mark.parametrize("change", [{"id2label": ...}, {"architectures": ["BertModel"]}, {"num_labels": 2}])
    def test_classifiers_that_may_be_none(self, tmp_path: Path, change: dict[str, Any]) -> None:
        folder = make_reranker(tmp_path / "some-model", "bert")
        _json("config.json", **change)(folder)
        request = _request(folder, "scores")
        with pytest.raises(NotPlainError):
            describe(request, locate_requested(request), None)


_CLASSES = {"bert": "BertTokenizer", "xlm-roberta": "XLMRobertaTokenizer"}
_NEW_TOKEN = {"id": 0, "content": "<new>", **dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)}


def _random_edits(rng: random.Random, architecture: str) -> list[Edit]:
    """Returns some changes of a tokenizer's files; not all of them can be described."""
    wordpiece = architecture == "bert"
    choices: list[Callable[[], Edit]] = [
        lambda: _tokenizer(tokenizer_class=rng.choice([_CLASSES[architecture], "PreTrainedTokenizerFast", ...])),
        lambda: _tokenizer(do_lower_case=rng.choice([True, False, None])),
        lambda: _tokenizer(strip_accents=rng.choice([True, False, None])),
        lambda: _tokenizer(tokenize_chinese_chars=rng.choice([True, False])),
        lambda: _recorded,
        lambda: _tokenizer(model_input_names=rng.choice([..., ["input_ids", "attention_mask"]])),
        lambda: _tokenizer(**{rng.choice(["cls_token", "mask_token", "pad_token", "unk_token"]): ...}),
        lambda: _pipeline(normalizer=rng.choice([None, {"type": "NFKC"}, {"type": "Lowercase"}])),
        lambda: _pipeline(truncation=rng.choice([None, _TRUNCATION])),
        lambda: _pipeline(padding=rng.choice([None, _PADDING if wordpiece else None])),
        lambda: _with_new_token(rng.random() < 0.5, rng.random() < 0.5),
        lambda: _with_special_tokens_map,
        lambda: _json("sentence_bert_config.json", do_lower_case=rng.random() < 0.5),
    ]
    return [make() for make in rng.sample(choices, rng.randrange(1, 5))]


def _with_new_token(normalized: bool, recorded: bool) -> Edit:
    """Adds a token after the vocabulary, as `tokenizer.add_tokens` does."""

    def edit(folder: Path) -> None:
        file = folder / "tokenizer.json"
        saved = json.loads(file.read_text(encoding="utf-8"))
        known = [token["content"] for token in saved["added_tokens"]]
        token = {**_NEW_TOKEN, "id": len(saved["model"]["vocab"]), "normalized": normalized}
        if token["content"] in known:
            return
        saved["added_tokens"].append(token)
        file.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if recorded and "added_tokens_decoder" in config:
            decoder = {
                **config["added_tokens_decoder"],
                str(token["id"]): {k: v for k, v in token.items() if k != "id"},
            }
            _tokenizer(added_tokens_decoder=decoder)(folder)

    return edit


@pytest.mark.parametrize("seed", range(24))
def test_any_tokenizer_is_read_as_the_libraries_read_it_or_left_to_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    architecture: Any = rng.choice(["bert", "xlm-roberta"])
    folder = make_checkpoint(tmp_path / "some-model", architecture, modules=("cls", "normalize"))
    for edit in _random_edits(rng, architecture):
        edit(folder)
    try:
        _described(folder)
    except NotPlainError:
        return  # left to the libraries, which is right for any file


class TestWithoutTorch:
    """The way from the class to the first vector imports none of the heavy libraries, cached or not."""

    @staticmethod
    def _run(code: str, tmp_path: Path) -> Any:  # noqa: ANN401
        after = """
import json, sys
heavy = [name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]
print(json.dumps([heavy, found]))
"""
        for _ in range(2):  # the second one finds the graph of the first
            done = subprocess.run(
                [sys.executable, "-c", code + after],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "BGE_INTEGRATIONS_CACHE": str(tmp_path / "cache")},
            )
            heavy, found = json.loads(done.stdout)
            assert heavy == []
        return found

    def test_langchain(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "bge-small-en-v1.5", modules=("cls", "normalize"))
        found = self._run(
            "from bge_integrations.langchain import HuggingFaceBgeEmbeddings\n"
            f"model = HuggingFaceBgeEmbeddings(model_name={str(folder)!r})\n"
            "found = [model.embed_documents(['the quick fox']), model.embed_query('a question')]\n",
            tmp_path,
        )
        question = "Represent this sentence for searching relevant passages: a question"
        expected = reference_vectors(folder, ["the quick fox", question])
        np.testing.assert_allclose(found[0][0], expected[0], atol=1e-5)
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)

    def test_llama_index(self, tmp_path: Path) -> None:
        folder = make_checkpoint(tmp_path / "bge-base-zh-v1.5", "xlm-roberta", modules=("cls", "normalize"))
        found = self._run(
            "from bge_integrations.llama_index import HuggingFaceBgeEmbedding\n"
            f"found = HuggingFaceBgeEmbedding({str(folder)!r}).get_text_embedding('样例数据')\n",
            tmp_path,
        )
        np.testing.assert_allclose(found, reference_vectors(folder, ["样例数据"])[0], atol=1e-5)

    @pytest.mark.parametrize("architecture", ["bert", "xlm-roberta"])
    def test_reranker(self, tmp_path: Path, architecture: Any) -> None:  # noqa: ANN401
        folder = make_reranker(tmp_path / "bge-reranker-base", architecture)
        passages = ["the quick brown fox", "a lazy dog"]
        found = self._run(
            "from bge_integrations import BgeReranker\n"
            f"found = BgeReranker({str(folder)!r}).score('what is it', {passages!r}).tolist()\n",
            tmp_path,
        )
        expected = reference_scores(folder, [("what is it", passage) for passage in passages])
        np.testing.assert_allclose(found, expected, atol=1e-5)
