"""The library's model behind `client`: it can be used, saved and copied, and refuses what nobody would follow."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import GemmaConfig, GemmaForCausalLM, GemmaTokenizer

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.errors import SettingsError
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import BgeRerank, HuggingFaceBgeEmbedding
from bge_integrations.settings import EngineName
from tests.adapters import assert_close
from tests.checkpoints import make_checkpoint
from tests.checkpoints_of_pairs import make_m3
from tests.decoder_checkpoints import make_tokenizer, tiny_shape

LONG = "the lazy fox answers questions " * 8
ENGINES: tuple[EngineName, ...] = ("openvino", "torch", "sentence-transformers")

OF_MODELS = {
    "max_seq_length": "max_length",
    "max_length": "max_length",
    "prompts": "query_instruction",
    "default_prompt_name": "query_instruction",
    "truncate_dim": "truncate_dim",
    "similarity_fn_name": "vector store",
    "tokenizer": "TransformersKwargs",
    "device": "device",
    "dtype": "precision",
    "batch_size": "batch_size",
    "normalize_embeddings": "normalize",
    "normalize": "normalize",
}
OF_TOKENIZERS = {
    "model_max_length": "max_length",
    "padding_side": "TransformersKwargs",
    "truncation_side": "TransformersKwargs",
    "pad_token": "TransformersKwargs",
    "pad_token_id": "TransformersKwargs",
    "split_special_tokens": "TransformersKwargs",
    "add_eos_token": "TransformersKwargs",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "find: ", "document": ""}
    return make_checkpoint(tmp_path_factory.mktemp("client") / "a-model", modules=("cls", "normalize"), prompts=prompts)


def assert_refused(holder: Any, names: dict[str, str]) -> None:  # noqa: ANN401 - a library's object
    for name, ours in names.items():
        with pytest.raises(SettingsError, match=rf"^{name} can't be changed here.*Set .*{ours}.* instead.*deepcopy"):
            setattr(holder, name, 5)


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_an_embedder_are_refused_by_the_name_of_ours(folder: Path, engine: EngineName) -> None:
    encoder = BgeEncoder(folder, device="cpu", engine=engine)
    before = encoder.encode([LONG, "fox"])
    client = encoder.client
    assert_refused(client, OF_MODELS)
    assert_refused(client[0], {"max_seq_length": "max_length", "do_lower_case": "TransformersKwargs"})
    assert_refused(client[1], {"pooling_mode": "pooling", "include_prompt": "the checkpoint's own files"})
    assert_refused(client.tokenizer, OF_TOKENIZERS)
    for change in (
        lambda: client.prompts.update(query="x: "),
        lambda: client.prompts.__setitem__("query", "x: "),
        lambda: client.prompts.pop("query"),
        lambda: client.tokenizer.add_tokens(["qwertz"]),
        lambda: client.set_pooling_include_prompt(False),
        lambda: client.half(),
        lambda: client.to(torch.bfloat16),
        lambda: client.to("meta"),
        lambda: client[0].double(),
        lambda: client.train(),
    ):
        with pytest.raises(SettingsError, match="can't be changed here"):
            change()
    assert encoder.client is client
    np.testing.assert_array_equal(encoder.encode([LONG, "fox"]), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_stays_the_librarys_object(folder: Path, engine: EngineName, tmp_path: Path) -> None:
    client = BgeEncoder(folder, device="cpu", engine=engine).client
    plain = SentenceTransformer(str(folder), device="cpu")
    assert isinstance(client, SentenceTransformer)
    assert client.__class__ is SentenceTransformer
    assert (repr(client), client.prompts, client.similarity_fn_name) == (repr(plain), plain.prompts, "cosine")
    for asked in ({}, {"prompt_name": "query"}, {"truncate_dim": 8}, {"device": "cpu"}):
        assert_close(client.encode([LONG, "fox"], **asked), plain.encode([LONG, "fox"], **asked))
    assert client.eval().to("cpu").float() is client  # which it is
    client.save(str(tmp_path / "ours"), create_model_card=False)
    plain.save(str(tmp_path / "theirs"), create_model_card=False)
    for file in ("modules.json", "config_sentence_transformers.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / file).read_text() == (tmp_path / "theirs" / file).read_text()


def test_copies_and_pickles_of_it_are_the_users_own(folder: Path) -> None:
    encoder = BgeEncoder(folder, device="cpu", engine="sentence-transformers")
    before = encoder.encode([LONG])
    saved = io.BytesIO()
    torch.save(encoder.client, saved)
    saved.seek(0)
    plain = SentenceTransformer(str(folder), device="cpu")
    plain.max_seq_length = 16
    expected = plain.encode("x: " + LONG)
    for own in (
        copy.deepcopy(encoder.client),
        pickle.loads(pickle.dumps(encoder.client)),
        torch.load(saved, weights_only=False),
    ):
        assert type(own) is SentenceTransformer
        assert [type(part) for part in (*own, own.tokenizer)] == [type(part) for part in (*plain, plain.tokenizer)]
        own.max_seq_length = 16
        own.prompts["mine"] = "x: "
        own.tokenizer.padding_side = "right"
        assert_close(own.encode(LONG, prompt_name="mine"), expected)
        own.half()
    np.testing.assert_array_equal(encoder.encode([LONG]), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_a_cross_encoder_are_refused(bge_reranker_base: Path, engine: EngineName) -> None:
    reranker = BgeReranker(bge_reranker_base, device="cpu", engine=engine)
    client, plain = reranker.client, CrossEncoder(str(bge_reranker_base), device="cpu")
    assert isinstance(client, CrossEncoder)
    names = {"activation_fn": "normalize", "default_activation_function": "normalize"}
    assert_refused(client, {**{name: OF_MODELS[name] for name in ("max_seq_length", "max_length", "prompts")}, **names})
    assert_refused(client.tokenizer, OF_TOKENIZERS)
    asked = [("fox", LONG), ("vector", "dense")]
    assert_close(client.predict(asked), plain.predict(asked))
    own = copy.deepcopy(client)
    own.max_seq_length = 16
    assert np.abs(own.predict(asked) - plain.predict(asked)).max() > 1e-6


def test_settings_of_a_decoder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "bge-reranker-v2-gemma"
    tokenizer = make_tokenizer(GemmaTokenizer)
    tokenizer.save_pretrained(folder)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GemmaForCausalLM(GemmaConfig(**tiny_shape(len(tokenizer), **special))).save_pretrained(folder)
    reranker = BgeReranker(folder, device="cpu")
    before = reranker.score("fox", ["dense vectors"])
    client = reranker.client
    assert isinstance(client, GemmaForCausalLM)
    assert_refused(client, {name: name for name in ("max_length", "prompt", "cutoff_layers", "device", "normalize")})
    with pytest.raises(SettingsError, match="Set precision instead"):
        reranker.client.half()
    assert type(copy.deepcopy(client)) is GemmaForCausalLM
    np.testing.assert_array_equal(reranker.score("fox", ["dense vectors"]), before)


def test_every_class_gives_the_same_object(folder: Path, bge_reranker_base: Path) -> None:
    same: tuple[tuple[Any, Any], ...] = (
        (HuggingFaceBgeEmbeddings(model_name=str(folder)), HuggingFaceBgeEmbedding(str(folder))),
        (LangChainReranker(model_name=str(bge_reranker_base)), BgeRerank(str(bge_reranker_base))),
    )
    for first, second in same:
        assert first.client is second.client
        with pytest.raises(SettingsError, match="max_length"):
            first.client.max_seq_length = 32


def test_a_setting_is_not_taken_by_what_holds_the_model_either(
    folder: Path, bge_reranker_base: Path, tmp_path: Path
) -> None:
    m3 = make_m3(tmp_path / "bge-m3")
    for holder in (BgeEncoder(folder), BgeReranker(bge_reranker_base), BgeM3Encoder(m3)):
        for name in ("max_length", "query_instruction", "device", "settings"):
            with pytest.raises(SettingsError, match=rf"^{name} can't be changed afterwards; create a new.*replace"):
                setattr(holder, name, None)
        changed = type(holder).from_settings(holder.settings.replace(max_length=16))  # type: ignore[arg-type]
        assert changed.max_length == 16
        assert changed.backend is holder.backend
