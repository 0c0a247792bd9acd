"""Every argument of sentence-transformers does to vectors here what it does there."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from bge_integrations.adapters.keywords import ENCODING_KEYS, LOADING_KEYS
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from tests.checkpoints import make_checkpoint
from tests.langchain.former import are_close, assert_close

TEXTS = ["lazy fox", "The quick brown fox jumps over the lazy dog. " * 12 + "vector", ""]
PROMPTS = {"topic": "group: "}

# Under each key: its value, and sentence-transformers' own way to say it, where that has another name by now.
CHANGING_LOADING: dict[str, tuple[Any, dict[str, Any]]] = {
    "truncate_dim": (8, {"truncate_dim": 8}),
    "default_prompt_name": ("topic", {"default_prompt_name": "topic"}),
    "config_kwargs": ({"layer_norm_eps": 0.5}, {"config_kwargs": {"layer_norm_eps": 0.5}}),
    "tokenizer_kwargs": ({"truncation_side": "left"}, {"processor_kwargs": {"truncation_side": "left"}}),
    "processor_kwargs": ({"truncation_side": "left"}, {"processor_kwargs": {"truncation_side": "left"}}),
    "torch_dtype": (torch.bfloat16, {"model_kwargs": {"dtype": torch.bfloat16}}),
    "dtype": ("bfloat16", {"model_kwargs": {"dtype": torch.bfloat16}}),
    "model_kwargs": ({"torch_dtype": "bfloat16"}, {"model_kwargs": {"dtype": torch.bfloat16}}),
}
UNCHANGING_LOADING: dict[str, Any] = {
    "attn_implementation": "eager",
    "backend": "torch",
    "cache_folder": "models",
    "device": torch.device("cpu"),
    "local_files_only": True,
    "prompts": {"unused": "x: "},
    "revision": "main",
    "similarity_fn_name": "dot",
    "token": "hf_x",
    "trust_remote_code": True,
    "use_auth_token": "hf_x",
}
CHANGING_ENCODING: dict[str, Any] = {
    "normalize_embeddings": True,
    "prompt": "find: ",
    "prompt_name": "topic",
    "truncate_dim": 8,
}
UNCHANGING_ENCODING: dict[str, Any] = {
    "batch_size": 1,
    "chunk_size": 2,
    "convert_to_numpy": False,
    "convert_to_tensor": True,
    "device": torch.device("cpu"),
    "output_value": "sentence_embedding",
    "precision": "float32",
    "show_progress_bar": True,
    "task": None,
}
# The same products in bfloat16 may be rounded in another order, where batches are made otherwise.
TOLERANCES = {"torch_dtype": 0.03, "dtype": 0.03, "model_kwargs": 0.03}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """No BGE model, so that sentence-transformers' own defaults apply: mean pooling, no normalisation."""
    return str(make_checkpoint(tmp_path_factory.mktemp("kwargs") / "model", modules=("mean",), prompts=PROMPTS))


@pytest.fixture(scope="module")
def plain(folder: str) -> Any:  # noqa: ANN401
    """What sentence-transformers gives without any argument."""
    return SentenceTransformer(folder, device="cpu").encode(TEXTS)


def test_no_key_is_left_out() -> None:
    assert set(CHANGING_LOADING) | set(UNCHANGING_LOADING) == set(LOADING_KEYS)
    assert set(CHANGING_ENCODING) | set(UNCHANGING_ENCODING) == set(ENCODING_KEYS)


@pytest.mark.parametrize("key", CHANGING_LOADING)
def test_model_kwargs_change_vectors_as_in_sentence_transformers(folder: str, plain: Any, key: str) -> None:  # noqa: ANN401
    value, theirs = CHANGING_LOADING[key]
    expected = SentenceTransformer(folder, device="cpu", **theirs).encode(TEXTS, convert_to_tensor=True).float().numpy()
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=folder, device="cpu", on_truncation="ignore", model_kwargs={key: value}
    )
    vectors = embeddings.embed_documents(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCES.get(key, 1e-5))
    np.testing.assert_allclose(embeddings.embed_query(TEXTS[0]), expected[0], atol=TOLERANCES.get(key, 1e-5))
    assert np.shape(vectors) != plain.shape or np.abs(np.asarray(vectors) - plain).max() > 1e-3


@pytest.mark.parametrize("key", UNCHANGING_LOADING)
def test_model_kwargs_that_choose_no_vectors_leave_them_as_they_are(folder: str, plain: Any, key: str) -> None:  # noqa: ANN401
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=folder, on_truncation="ignore", model_kwargs={"device": "cpu", key: UNCHANGING_LOADING[key]}
    )
    assert_close(embeddings.embed_documents(TEXTS), plain)


@pytest.mark.parametrize("key", CHANGING_ENCODING)
@pytest.mark.parametrize("side", ["both", "query"])
def test_encode_kwargs_change_vectors_as_in_sentence_transformers(
    folder: str,
    plain: Any,  # noqa: ANN401
    key: str,
    side: str,
) -> None:
    kwargs = {key: CHANGING_ENCODING[key]}
    expected = SentenceTransformer(folder, device="cpu").encode(TEXTS, **kwargs)
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=folder,
        device="cpu",
        on_truncation="ignore",
        encode_kwargs=kwargs if side == "both" else {},
        query_encode_kwargs=kwargs if side == "query" else {},
    )
    assert expected.shape != plain.shape or not are_close(expected, plain)
    assert_close(embeddings.embed_documents(TEXTS), expected if side == "both" else plain)
    assert_close(embeddings.embed_query(TEXTS[0]), expected[0])


@pytest.mark.parametrize("key", UNCHANGING_ENCODING)
def test_encode_kwargs_that_choose_no_vectors_leave_them_as_they_are(folder: str, plain: Any, key: str) -> None:  # noqa: ANN401
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=folder, device="cpu", on_truncation="ignore", encode_kwargs={key: UNCHANGING_ENCODING[key]}
    )
    vectors = embeddings.embed_documents(TEXTS)
    assert_close(vectors, plain)
    assert {type(value) for vector in vectors for value in vector} == {float}


def test_prompts_by_role_reach_their_side_only(folder: str) -> None:
    prompts = {"query": "ask: ", "document": "text: "}
    embeddings = HuggingFaceBgeEmbeddings(model_name=folder, device="cpu", model_kwargs={"prompts": prompts})
    theirs = SentenceTransformer(folder, device="cpu", prompts=prompts)
    assert_close(embeddings.embed_query("fox"), theirs.encode_query("fox"))
    assert_close(embeddings.embed_documents(["fox"]), theirs.encode_document(["fox"]))
    assert not are_close(theirs.encode_query("fox"), theirs.encode_document("fox"))


@pytest.mark.parametrize(
    ("field", "kwargs", "prefix"),
    [
        ({"query_instruction": "field: "}, {"prompt": "prompt: "}, "field: "),
        ({"query_instruction": ""}, {"prompt": "prompt: "}, ""),
        ({}, {"prompt_name": "topic"}, "group: "),
    ],
)
def test_the_plainest_way_to_name_an_instruction_wins(
    folder: str, field: dict[str, str], kwargs: dict[str, str], prefix: str
) -> None:
    embeddings = HuggingFaceBgeEmbeddings(model_name=folder, device="cpu", encode_kwargs=kwargs, **field)
    assert_close(embeddings.embed_query("fox"), SentenceTransformer(folder, device="cpu").encode(prefix + "fox"))


@pytest.mark.parametrize("field", ["encode_kwargs", "query_encode_kwargs"])
def test_a_prompt_and_a_prompts_name_together_are_warned_of(folder: str, field: str) -> None:
    both: dict[str, Any] = {"prompt": "prompt: ", "prompt_name": "topic"}
    said = r"prompt='prompt: ' and prompt_name='topic' are both given; prompt_name is ignored in favour of prompt"
    with pytest.warns(UserWarning, match=said) as caught:
        embeddings = HuggingFaceBgeEmbeddings(model_name=folder, device="cpu", **{field: both})
    assert [warning.filename for warning in caught] == [__file__]
    # Here sentence-transformers logs its warning, and ignores the name as well.
    expected = SentenceTransformer(folder, device="cpu").encode("fox", **both)
    assert_close(embeddings.embed_query("fox"), expected)  # without another warning
    with pytest.warns(UserWarning, match=said):
        embeddings.model_copy(update={"max_length": 32}).embed_query("fox")
    with pytest.warns(UserWarning, match=said):
        assert_close(pickle.loads(pickle.dumps(embeddings)).embed_query("fox"), expected)


def test_a_query_prompt_takes_the_place_of_a_prompt_for_both(folder: str) -> None:
    embeddings = HuggingFaceBgeEmbeddings(
        model_name=folder,
        device="cpu",
        encode_kwargs={"prompt": "both: ", "normalize_embeddings": True},
        query_encode_kwargs={"prompt_name": "topic"},
    )
    theirs = SentenceTransformer(folder, device="cpu")
    assert_close(embeddings.embed_query("fox"), theirs.encode("group: fox", normalize_embeddings=True))
    assert_close(embeddings.embed_documents(["fox"]), theirs.encode(["both: fox"], normalize_embeddings=True))


def test_the_users_dictionaries_are_left_alone(folder: str) -> None:
    given: dict[str, Any] = {
        "model_kwargs": {
            "device": torch.device("cpu"),
            "token": "hf_x",
            "model_kwargs": {"torch_dtype": torch.float32, "use_safetensors": True},
            "prompts": {"query": "q: "},
        },
        "encode_kwargs": {"show_progress_bar": False, "device": torch.device("cpu")},
        "query_encode_kwargs": {"prompt_name": "topic"},
    }
    before = copy.deepcopy(given)
    embeddings = HuggingFaceBgeEmbeddings(model_name=folder, **given)
    embeddings.embed_query("fox")
    assert given == before
    embeddings.model_kwargs["device"] = "changed"
    assert given == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_kwargs": {"model_kwargs": 3}}, r"model_kwargs\['model_kwargs'\]=3 is an int; give a dictionary"),
        ({"model_kwargs": {"prompts": ["a"]}}, r"model_kwargs\['prompts'\]=\['a'\] is a list; give a dictionary"),
        ({"model_kwargs": {"prompts": {"query": 3}}}, r"model_kwargs\['prompts'\]\['query'\]=3 is an int; give a text"),
        ({"model_kwargs": {"backend": "onnx"}}, r"model_kwargs\['backend'\]='onnx' is not supported"),
        ({"model_kwargs": {"model_kwargs": {"device_map": "auto"}}}, "device_map='auto' is not supported"),
        ({"model_kwargs": {"dtype": "bfloat16", "torch_dtype": "float32"}}, "'bfloat16', but torch_dtype='float32'"),
        ({"model_kwargs": {"torch_dtype": "float64"}}, "precision='float64' is unknown; choose one of"),
        ({"model_kwargs": {"torch_dtype": "bfloat16"}, "precision": "float32"}, "say it once"),
        ({"model_kwargs": {"model_kwargs": {"quantization_config": object()}}}, "can't be written as JSON"),
        ({"encode_kwargs": {"batch_size": "many"}}, "batch_size='many' must be a whole number"),
        ({"encode_kwargs": {"truncate_dim": 0}}, "truncate_dim=0 must be a whole number of at least 1"),
        ({"encode_kwargs": {"prompt": 5}}, r"encode_kwargs\['prompt'\]=5 is an int; give a text"),
        ({"query_encode_kwargs": {"prompt_name": 5}}, r"query_encode_kwargs\['prompt_name'\]=5 is an int"),
        ({"query_encode_kwargs": {"pool": {}}}, r"query_encode_kwargs\['pool'\] is not supported"),
        ({"query_encode_kwargs": {"normalize": True}}, r"query_encode_kwargs\['normalize'\] is unknown; the known"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(map(repr, value)),
)
def test_a_value_that_cant_be_honoured_is_a_validation_error_that_names_it(
    folder: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        HuggingFaceBgeEmbeddings(model_name=folder, **given)


def test_what_the_hub_is_asked_for_is_what_model_kwargs_say(
    bge_small_en: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **kwargs: Any) -> str:  # noqa: ANN401
        asked.append({"repository": repository, **kwargs})
        return str(bge_small_en)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    HuggingFaceBgeEmbeddings(
        model_name="BAAI/bge-small-en-v1.5",
        model_kwargs={
            "token": "hf_x",
            "revision": "v2",
            "cache_folder": "models",
            "local_files_only": True,
            "trust_remote_code": True,
        },
    )
    (call,) = asked
    expected = {
        "repository": "BAAI/bge-small-en-v1.5",
        "token": "hf_x",
        "revision": "v2",
        "cache_dir": "models",
        "local_files_only": True,
    }
    assert {key: call[key] for key in expected} == expected
    assert "*.py" in call["allow_patterns"]
