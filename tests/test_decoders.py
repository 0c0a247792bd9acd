"""Instruct models that are decoders: template, task, examples, end of text, the last token, and truncation."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from bge_integrations import BgeEncoder, find_model
from bge_integrations.backend.engines.interface import TokenBatch
from bge_integrations.errors import SettingsError, TruncationError, TruncationWarning
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.settings import EncoderSettings, TransformersKwargs
from tests.adapters import assert_close
from tests.decoder_checkpoints import EMBEDDERS, last_token_vectors, make_embedder, say_text_ends

TASK = "Find the {query} that answers."
TEXTS = ["fox", "The quick brown fox jumps over the lazy dog.", "dense vectors " * 12, "样例 naïve café 👩‍👩‍👧", ""]
EXAMPLES = [
    {"instruct": "Name {query}.", "query": "what is a fox", "response": "an animal {task}"},
    {"instruct": "T", "query": "q", "response": "r"},
]
SHOWN = (
    "<instruct>Name {query}.\n<query>what is a fox\n<response>an animal {task}\n\n"
    "<instruct>T\n<query>q\n<response>r\n\n"
)
each_model = pytest.mark.parametrize("name", EMBEDDERS)


def as_query(name: str, task: str, query: str) -> str:
    if "reasoner" in name:
        return f"Instruct: {task}\nQuery: {query}"
    return f"<instruct>{task}\n<query>{query}" + ("\n<response>" if name == "bge-en-icl" else "")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make_embedder(tmp_path_factory.mktemp("decoders"), name) for name in EMBEDDERS}


@each_model
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_vectors_equal_plain_transformers_however_that_pads(
    folders: dict[str, Path], name: str, padding_side: str
) -> None:
    encoder = BgeEncoder(folders[name], device="cpu", task=TASK)
    queries = [as_query(name, TASK, text) for text in TEXTS]
    expected = last_token_vectors(folders[name], queries, padding_side=padding_side)
    assert_close(encoder.encode_queries(TEXTS), expected)
    expected = last_token_vectors(folders[name], TEXTS, padding_side=padding_side)
    assert_close(encoder.encode_documents(TEXTS), expected)
    assert_close(encoder.encode(TEXTS), expected)


@each_model
def test_folders_with_modules_give_the_same_as_bare_ones(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, name, modules=True)
    for each in (folder, folders[name]):
        spec = find_model(each)
        assert spec is not None
        assert spec.name == name
    assert_close(
        BgeEncoder(folder, device="cpu").encode_queries(TEXTS),
        BgeEncoder(folders[name], device="cpu").encode_queries(TEXTS),
    )


@each_model
def test_the_end_of_text_is_read_last_even_of_texts_that_are_cut(folders: dict[str, Path], name: str) -> None:
    end = AutoTokenizer.from_pretrained(folders[name]).eos_token_id
    encoder = BgeEncoder(folders[name], device="cpu")
    for limit in (40, 9):
        tokens = encoder.backend.tokenizer.tokenize([*TEXTS, "fox " * 100], limit)
        assert set(tokens.ids[np.cumsum(tokens.lengths) - 1]) == {end}
        assert tokens.lengths.max() == limit


@each_model
def test_no_end_of_text_is_put_in_where_the_tokenizers_flags_are_false(name: str, tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, name, add_eos_token=False)
    say_text_ends(folder, add_eos_token=False)
    assert_close(
        BgeEncoder(folder, device="cpu").encode(TEXTS[:-1]),
        last_token_vectors(folder, TEXTS[:-1], padding_side="left"),
    )


def last_states(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Plain transformers, with ids written by hand: the last state, with unit length."""
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids]))[0]
    found: NDArray[np.float32] = torch.nn.functional.normalize(states[0, -1], dim=0).numpy()
    return found


@pytest.mark.parametrize(
    ("name", "flags", "begins", "ends"),
    [
        ("my-embedder", {"add_bos_token": True, "add_eos_token": True}, True, True),
        ("my-embedder", {"add_eos_token": True}, False, True),
        ("my-embedder", {"add_bos_token": True}, True, False),
        ("my-embedder", {"add_bos_token": False, "add_eos_token": False}, False, False),
        ("my-embedder", {}, False, False),
        ("bge-en-icl", {}, True, True),
        ("bge-en-icl", {"add_bos_token": False, "add_eos_token": True}, False, True),
        ("bge-en-icl", {"add_bos_token": False, "add_eos_token": False}, False, False),
        ("bge-multilingual-gemma2", {}, False, True),
        # The flags of transformers 4 count where tokenizer.json adds a token that they don't want.
        ("my-embedder with eos", {"add_bos_token": True}, True, True),
        ("my-embedder with eos", {"add_bos_token": True, "add_eos_token": False}, True, False),
        ("my-embedder with eos", {"add_bos_token": False, "add_eos_token": False}, False, True),
    ],
    ids=str,
)
def test_texts_begin_and_end_as_the_checkpoint_or_the_catalogue_says(
    name: str, flags: dict[str, bool], begins: bool, ends: bool, tmp_path: Path
) -> None:
    made = make_embedder(
        tmp_path, name if name in EMBEDDERS else "bge-en-icl", modules=True, add_eos_token=name.endswith("eos")
    )
    folder = made.rename(tmp_path / name)
    say_text_ends(folder, **flags)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = tokenizer("the quick fox", add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id] * begins + words + [tokenizer.eos_token_id] * ends
    encoder = BgeEncoder(folder, device="cpu")
    assert_close(encoder.encode(["the quick fox"])[0], last_states(folder, ids))
    assert encoder.count_tokens(["the quick fox"]) == [len(ids)]
    # What is underneath gives the same.
    assert_close(encoder.client.encode(["the quick fox"])[0], last_states(folder, ids))


def test_what_the_user_says_of_the_end_comes_first(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, "bge-en-icl", add_eos_token=False)
    say_text_ends(folder, add_eos_token=True)
    words = AutoTokenizer.from_pretrained(folder)("the quick fox")["input_ids"]
    kwargs = TransformersKwargs.of(processor={"add_eos_token": False})
    found = BgeEncoder(folder, device="cpu", transformers_kwargs=kwargs).encode(["the quick fox"])
    assert_close(found[0], last_states(folder, words))


def test_flags_change_nothing_where_all_tokens_are_pooled(tmp_path: Path) -> None:
    folder = make_embedder(tmp_path, "bge-code-v1", add_eos_token=False).rename(tmp_path / "my-embedder")
    say_text_ends(folder, add_eos_token=True)
    words = AutoTokenizer.from_pretrained(folder)("the quick fox")["input_ids"]
    assert BgeEncoder(folder, device="cpu", pooling="mean").count_tokens(["the quick fox"]) == [len(words)]
    assert BgeEncoder(folder, device="cpu", pooling="last").count_tokens(["the quick fox"]) == [len(words) + 1]


@each_model
def test_bfloat16_is_near(folders: dict[str, Path], name: str) -> None:
    exact = BgeEncoder(folders[name], device="cpu").encode(TEXTS)
    near = BgeEncoder(folders[name], device="cpu", precision="bfloat16").encode(TEXTS)
    assert 0 < np.abs(near - exact).max() < 0.1


def test_batches_are_padded_to_the_multiple_that_the_model_wants(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BgeEncoder(folders["bge-code-v1"], device="cpu")
    engine: Any = encoder.backend.engine
    ids = np.array([2, 3, 4, 5, 6], dtype=np.int32)
    widths = []
    engine._modules[0].register_forward_pre_hook(lambda _, given: widths.append(given[0]["input_ids"].shape[1]))
    batch = TokenBatch(ids, np.array([2, 3]))
    padded = engine.submit(batch).result()
    monkeypatch.setattr(engine, "_pad_to_multiple_of", 1)
    assert_close(engine.submit(batch).result(), padded)
    assert widths == [8, 3]


@pytest.mark.parametrize("examples", [EXAMPLES, [tuple(example.values()) for example in EXAMPLES]])
def test_examples_go_before_the_query(folders: dict[str, Path], examples: list[Any]) -> None:
    folder = folders["bge-en-icl"]
    encoder = BgeEncoder(folder, device="cpu", task=TASK, examples=examples)
    expected = [SHOWN + as_query("bge-en-icl", TASK, text) for text in TEXTS]
    assert [encoder.instruction("query").apply(text) for text in TEXTS] == expected
    assert_close(encoder.encode_queries(TEXTS), last_token_vectors(folder, expected, padding_side="left"))
    assert_close(encoder.encode_documents(TEXTS), last_token_vectors(folder, TEXTS, padding_side="left"))


def test_examples_are_part_of_a_querys_cache_namespace_alone(folders: dict[str, Path]) -> None:
    plain, shown = (BgeEncoder(folders["bge-en-icl"], device="cpu", examples=given) for given in (None, EXAMPLES))
    assert plain.cache_namespace("query") != shown.cache_namespace("query")
    assert plain.cache_namespace("document") == shown.cache_namespace("document")
    assert plain.backend is shown.backend


def test_examples_are_frozen_and_survive_pickle_and_json() -> None:
    first = dict(EXAMPLES[0])
    given: list[Mapping[str, str] | Sequence[str]] = [first, ["t", "q", "r"]]
    settings = EncoderSettings(model_name="BAAI/bge-en-icl", examples=given)
    first["query"] = "changed"
    assert settings.examples == (tuple(EXAMPLES[0].values()), ("t", "q", "r"))
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.replace(examples=json.loads(json.dumps(settings.examples))) == settings
    hash(settings)
    assert EncoderSettings(model_name="m", examples=[]) == EncoderSettings(model_name="m")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("abc", r"examples='abc' is a str"),
        ([("t", "q", "r"), ("t", "q")], r"examples\[1\]=\('t', 'q'\) is no example"),
        ([{"query": "q", "response": "r"}], r"examples\[0\]=.* is no example"),
        ([("t", "q", "r"), "tqr"], r"examples\[1\]='tqr' is no example"),
        ([("t", 1, "r")], r"examples\[0\]=\('t', 1, 'r'\) is no example"),
    ],
)
def test_bad_examples_are_named_by_their_position(examples: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EncoderSettings(model_name="BAAI/bge-en-icl", examples=examples)


def test_examples_are_refused_by_models_that_take_none(folders: dict[str, Path], bge_small_en: Path) -> None:
    for folder in (folders["bge-code-v1"], bge_small_en):
        with pytest.raises(SettingsError, match=r"examples are given, but BAAI/bge-.* takes none"):
            BgeEncoder(folder, device="cpu", examples=EXAMPLES)
    with pytest.raises(SettingsError, match="set task instead of query_instruction"):
        BgeEncoder(folders["bge-en-icl"], device="cpu", examples=EXAMPLES, query_instruction="")


@pytest.mark.parametrize("examples", [None, EXAMPLES])
@pytest.mark.parametrize("query", ["fox " * 300, "样例👩‍👩‍👧" * 90, "dense vectors " * 5000])
def test_long_queries_are_cut_themselves_and_nothing_around_them(
    folders: dict[str, Path], examples: list[dict[str, str]] | None, query: str
) -> None:
    folder, limit = folders["bge-en-icl"], 200
    encoder = BgeEncoder(folder, device="cpu", max_length=limit, task=TASK, examples=examples, on_truncation="ignore")
    instruction = encoder.instruction("query")
    fitting = [size for size in range(1, limit * 8) if encoder.count_tokens([query[:size]], role="query")[0] <= limit]
    candidates = [instruction.apply(query[:size]) for size in fitting]
    longest = last_token_vectors(folder, candidates, padding_side="left")
    found = encoder.encode_queries([query, "fox"])
    near = np.abs(longest - found[0]).max(axis=1) < 1e-5
    assert near.any()
    # No more than a few characters, of a token that came out differently, are given up.
    assert fitting[int(np.flatnonzero(near)[-1])] >= fitting[-1] - 8
    assert_close(found[1:], encoder.encode_queries(["fox"]))


def test_long_queries_are_reported_with_their_own_length(folders: dict[str, Path]) -> None:
    folder, query = folders["bge-en-icl"], "fox " * 300
    encoder = BgeEncoder(folder, device="cpu", max_length=100)
    tokens = encoder.count_tokens([query], role="query")[0]
    with pytest.warns(TruncationWarning, match=f"text 0, has {tokens} tokens, the limit is 100"):
        encoder.encode_queries([query])
    with pytest.raises(TruncationError, match=f"Text 0 has {tokens} tokens"):
        BgeEncoder(folder, device="cpu", max_length=100, on_truncation="error").encode_queries([query])


def test_examples_that_leave_no_room_are_refused_before_any_work(folders: dict[str, Path]) -> None:
    folder = folders["bge-en-icl"]
    around = int(BgeEncoder(folder, device="cpu", examples=EXAMPLES).count_tokens([""], role="query")[0])
    with pytest.raises(SettingsError, match=f"max_length={around} leaves no room .* the {around} tokens"):
        BgeEncoder(folder, device="cpu", examples=EXAMPLES, max_length=around)
    BgeEncoder(folder, device="cpu", examples=EXAMPLES, max_length=around + 1)


@each_model
def test_both_adapters_take_a_task(folders: dict[str, Path], name: str) -> None:
    expected = last_token_vectors(folders[name], [as_query(name, TASK, "a fox"), "a fox"], padding_side="left")
    langchain = HuggingFaceBgeEmbeddings(model_name=str(folders[name]), device="cpu", task=TASK)
    llama_index = HuggingFaceBgeEmbedding(str(folders[name]), device="cpu", task=TASK)
    assert_close([langchain.embed_query("a fox"), *langchain.embed_documents(["a fox"])], expected)
    assert_close([llama_index.get_query_embedding("a fox"), llama_index.get_text_embedding("a fox")], expected)


def test_both_adapters_take_examples_and_keep_them(folders: dict[str, Path]) -> None:
    folder = str(folders["bge-en-icl"])
    query = SHOWN + as_query("bge-en-icl", TASK, "a fox")
    expected = last_token_vectors(Path(folder), [query], padding_side="left")[0]
    settings: dict[str, Any] = {"device": "cpu", "task": TASK, "examples": EXAMPLES}
    langchain = HuggingFaceBgeEmbeddings(model_name=folder, **settings)
    llama_index = HuggingFaceBgeEmbedding(folder, **settings)
    assert_close(langchain.embed_query("a fox"), expected)
    assert_close(llama_index.get_query_embedding("a fox"), expected)
    again = HuggingFaceBgeEmbeddings.model_validate_json(langchain.model_dump_json())
    assert_close(again.embed_query("a fox"), expected)
    restored = HuggingFaceBgeEmbedding.from_dict(json.loads(json.dumps(llama_index.to_dict())))
    assert_close(restored.get_query_embedding("a fox"), expected)
    assert_close(pickle.loads(pickle.dumps(llama_index)).get_query_embedding("a fox"), expected)
    with pytest.raises(ValueError, match=r"examples\[0\]"):
        HuggingFaceBgeEmbeddings(model_name=folder, device="cpu", examples=[("only", "two")])
    with pytest.raises(SettingsError, match=r"examples\[0\]"):
        HuggingFaceBgeEmbedding(folder, device="cpu", examples=[("only", "two")])
