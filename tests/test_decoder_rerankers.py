"""Rerankers that are decoders: prompt, the logit of "Yes", layers to stop after, and code that must be allowed."""

from __future__ import annotations

import json
import re
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bge_integrations import BgeReranker
from bge_integrations.errors import SettingsError, UnsafeWeightsError, UnsupportedModelError
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.llama_index import BgeRerank
from bge_integrations.prepare import prepare
from tests.adapters import assert_close
from tests.checkpoints import make_tokenizer as make_wordpiece
from tests.decoder_checkpoints import make_tokenizer, tiny_shape

YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
PREDICT = "Predict whether passage B contains an answer to query A."
PAIRS = [
    ("what is a vector?", "Retrieval with dense vectors finds passages"),
    ("fox", "The quick brown fox jumps over the lazy dog."),
    ("naïve 样例", ""),
    ("fox", "dense vectors " * 20),
    ("lazy dog " * 20, "fox " * 20),
]

# Written for these tests, with the interface of the hub's: one score a token after each layer named, and for the
# second one tokens that are merged, which shortens what follows the query.
_CODE = """
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput


class TinyConfig(PretrainedConfig):
    model_type = "KIND"

    def __init__(self, vocab_size=500, hidden_size=32, num_hidden_layers=4, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)


@dataclass
class Scores(ModelOutput):
    logits: tuple = None
    attention_masks: tuple = None


class TinyScorer(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        width, layers = config.hidden_size, config.num_hidden_layers
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers))
        self.post_init()

    def _states(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        states = self.embedding(input_ids) * mask
        for layer in self.layers:
            states = torch.tanh(layer(states.cumsum(1) / mask.cumsum(1).clamp(min=1))) * mask
            yield states


class LayerWiseMiniCPMForCausalLM(TinyScorer):
    def forward(self, input_ids=None, attention_mask=None, cutoff_layers=None, return_dict=None):
        wanted = cutoff_layers or [self.config.num_hidden_layers]
        found = [head(states)[..., 0] for states, head in zip(self._states(input_ids, attention_mask), self.heads)]
        return Scores(logits=tuple(found[layer - 1] for layer in wanted))


class CostWiseGemmaForCausalLM(TinyScorer):
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        cutoff_layers=None,
        compress_ratio=None,
        compress_layer=None,
        query_lengths=None,
        prompt_lengths=None,
        return_dict=None,
    ):
        wanted = cutoff_layers or [self.config.num_hidden_layers]
        states = list(self._states(input_ids, attention_mask))
        merged, masks = [], []
        for layer in wanted:
            rows = []
            texts = zip(states[layer - 1], attention_mask.bool(), query_lengths, prompt_lengths)
            for row, mask, query, prompt in texts:
                row = row[mask]
                ratio = compress_ratio if compress_layer and min(compress_layer) < layer else 1
                middle = [part.mean(0, keepdim=True) for part in row[query:-prompt].split(ratio)]
                rows.append(torch.cat([row[:query], *middle, row[-prompt:] + sum(middle) / 10]))
            width = max(map(len, rows))
            merged.append(torch.stack([nn.functional.pad(row, (0, 0, 0, width - len(row)), value=9.0) for row in rows]))
            masks.append(torch.stack([(torch.arange(width) < len(row)).long() for row in rows]))
        logits = tuple(self.heads[layer - 1](rows)[..., 0] for layer, rows in zip(wanted, merged))
        return Scores(logits=logits, attention_masks=tuple(masks))
"""


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma") / "bge-reranker-v2-gemma"
    tokenizer = make_tokenizer(GemmaTokenizer)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GemmaForCausalLM(GemmaConfig(**tiny_shape(len(tokenizer), **special))).save_pretrained(folder)
    return folder


def with_code(folder: Path, model_type: str, model_class: str, layers: int) -> Path:
    tokenizer = make_tokenizer(GemmaTokenizer)
    tokenizer.save_pretrained(folder)
    code = _CODE.replace("KIND", model_type)
    (folder / "modeling_tiny.py").write_text(code)
    module = sys.modules[model_type] = types.ModuleType(model_type)  # where dataclasses look for their types
    namespace: dict[str, Any] = vars(module)
    exec(compile(code, "modeling_tiny.py", "exec"), namespace)
    torch.manual_seed(5)
    model = namespace[model_class](namespace["TinyConfig"](vocab_size=len(tokenizer), num_hidden_layers=layers))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModelForCausalLM": f"modeling_tiny.{model_class}"}
    config |= {"model_type": model_type, "architectures": [model_class], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def layerwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layerwise") / "bge-reranker-v2-minicpm-layerwise"
    return with_code(folder, "tiny_minicpm", "LayerWiseMiniCPMForCausalLM", 30)


@pytest.fixture(scope="module")
def lightweight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightweight") / "bge-reranker-v2.5-gemma2-lightweight"
    return with_code(folder, "tiny_cost_wise_gemma", "CostWiseGemmaForCausalLM", 42)


def card_inputs(
    tokenizer: Any,  # noqa: ANN401
    pairs: Sequence[tuple[str, str]],
    prompt: str,
    max_length: int,
) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
    """The model cards' `get_inputs`: bos, A, newline, B cut to what is left, newline, prompt; padded on the left."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    newline, asked, rows, query_lengths = ids("\n"), ids(prompt), [], []
    for query, passage in pairs:
        first = [tokenizer.bos_token_id, *ids(f"A: {query}")[: max_length * 3 // 4]]
        second = [*newline, *ids(f"B: {passage}")]
        kept = second[: max_length - len(first)]
        rows.append([*first, *kept, *newline, *asked])
        query_lengths.append(len(first) + len(newline))
    width = -(-max(map(len, rows)) // 8) * 8
    padded = [[0] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    return inputs, query_lengths, [len(newline) + len(asked)] * len(rows)


def loaded(folder: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True), model


def gemma_scores(
    folder: Path, pairs: Sequence[tuple[str, str]], prompt: str = YES_OR_NO, max_length: int = 400
) -> NDArray[np.float32]:
    tokenizer, model = loaded(folder)
    inputs, _, _ = card_inputs(tokenizer, pairs, prompt, max_length)
    positions = inputs["attention_mask"].cumsum(1).sub(1).clamp(min=0)
    with torch.no_grad():
        logits = model(**inputs, position_ids=positions).logits[:, -1]
    scores: NDArray[np.float32] = logits[:, tokenizer("Yes", add_special_tokens=False)["input_ids"][0]].numpy()
    return scores


def test_gemma_scores_by_the_logit_of_yes(gemma: Path) -> None:
    reranker = BgeReranker(gemma, device="cpu")
    expected = gemma_scores(gemma, PAIRS)
    assert_close(reranker.score_pairs(PAIRS), expected)
    assert_close(
        reranker.score("fox", [passage for _, passage in PAIRS]),
        reranker.score_pairs([("fox", passage) for _, passage in PAIRS]),
    )
    squeezed = BgeReranker(gemma, device="cpu", normalize=True).score_pairs(PAIRS)
    assert_close(squeezed, 1 / (1 + np.exp(-expected)))


def test_another_prompt_is_asked_instead(gemma: Path) -> None:
    found = BgeReranker(gemma, device="cpu", prompt="Is B about A?").score_pairs(PAIRS)
    assert_close(found, gemma_scores(gemma, PAIRS, "Is B about A?"))
    assert np.abs(found - gemma_scores(gemma, PAIRS)).min() > 1e-4


def test_a_passage_is_cut_to_what_the_prompt_is_not_counted_in(gemma: Path) -> None:
    pairs = [PAIRS[0], PAIRS[1], PAIRS[3]]
    reranker = BgeReranker(gemma, device="cpu", max_length=48, on_truncation="ignore")
    expected = gemma_scores(gemma, pairs, max_length=48)
    assert_close(reranker.score_pairs(pairs), expected)
    assert abs(expected[2] - gemma_scores(gemma, pairs)[2]) > 1e-4


def test_layers_to_stop_after_are_refused_by_models_that_have_no_choice(gemma: Path) -> None:
    with pytest.raises(SettingsError, match=r"cutoff_layers=\(1,\) is given, but .* takes none"):
        BgeReranker(gemma, device="cpu", cutoff_layers=1)


def test_code_that_comes_with_a_model_runs_only_if_allowed(layerwise: Path, lightweight: Path) -> None:
    for folder in (layerwise, lightweight):
        with pytest.raises(UnsafeWeightsError, match="trust_remote_code=True"):
            BgeReranker(folder, device="cpu")


def layerwise_scores(folder: Path, layer: int) -> NDArray[np.float32]:
    tokenizer, model = loaded(folder)
    inputs, _, _ = card_inputs(tokenizer, PAIRS, YES_OR_NO, 10000)
    with torch.no_grad():
        scores: NDArray[np.float32] = model(**inputs, cutoff_layers=[layer]).logits[0][:, -1].numpy()
    return scores


def test_layerwise_scores_after_the_layer_named(layerwise: Path) -> None:
    authors = BgeReranker(layerwise, device="cpu", trust_remote_code=True).score_pairs(PAIRS)
    assert_close(authors, layerwise_scores(layerwise, 28))
    for layer in (3, [12]):
        found = BgeReranker(layerwise, device="cpu", trust_remote_code=True, cutoff_layers=layer).score_pairs(PAIRS)
        assert_close(found, layerwise_scores(layerwise, layer if isinstance(layer, int) else layer[0]))
        assert np.abs(found - authors).min() > 1e-4
    with pytest.raises(SettingsError, match="cutoff_layers=31 is more than the 30 layers"):
        BgeReranker(layerwise, device="cpu", trust_remote_code=True, cutoff_layers=31)


def lightweight_scores(folder: Path, layer: int, ratio: int, layers: list[int]) -> NDArray[np.float32]:
    tokenizer, model = loaded(folder)
    inputs, query_lengths, prompt_lengths = card_inputs(tokenizer, PAIRS, PREDICT, 10000)
    with torch.no_grad():
        output = model(
            **inputs,
            cutoff_layers=[layer],
            compress_ratio=ratio,
            compress_layer=layers,
            query_lengths=query_lengths,
            prompt_lengths=prompt_lengths,
        )
    ends = output.attention_masks[0].sum(dim=1) - 1
    scores: NDArray[np.float32] = output.logits[0][torch.arange(len(ends)), ends].numpy()
    return scores


def test_lightweight_merges_tokens_as_told(lightweight: Path) -> None:
    authors = BgeReranker(lightweight, device="cpu", trust_remote_code=True).score_pairs(PAIRS)
    assert_close(authors, lightweight_scores(lightweight, 28, 2, [24, 40]))
    told = BgeReranker(
        lightweight, device="cpu", trust_remote_code=True, cutoff_layers=20, compress_ratio=4, compress_layers=[8]
    ).score_pairs(PAIRS)
    assert_close(told, lightweight_scores(lightweight, 20, 4, [8]))
    assert np.abs(told - authors).min() > 1e-4
    unmerged = BgeReranker(
        lightweight, device="cpu", trust_remote_code=True, cutoff_layers=20, compress_ratio=4, compress_layers=[30]
    ).score_pairs(PAIRS)
    assert_close(unmerged, lightweight_scores(lightweight, 20, 4, [30]))
    assert np.abs(told - unmerged).max() > 1e-4


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of others, such as Qwen3-Reranker."""
    folder = tmp_path_factory.mktemp("foreign") / "Qwen3-Reranker-0.6B"
    tokenizer = make_tokenizer(Qwen2Tokenizer)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(9)
    Qwen3ForCausalLM(Qwen3Config(**tiny_shape(len(tokenizer)))).save_pretrained(folder)
    return folder


def without_weights(folder: Path, target: Path, **config: object) -> Path:
    """A copy whose weights can't be read, so that whoever tries says so."""
    shutil.copytree(folder, target)
    (target / "model.safetensors").write_bytes(b"no weights")
    content = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**content, **config}))
    return target


def write_modules(folder: Path, *kinds: str) -> None:
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if index == 0 else f"{index}_{kind.rsplit('.')[-1]}",
            "type": kind,
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))


TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"


class TestOfOthers:
    """Only BGE's own were trained with a question that is known."""

    def test_is_refused_before_its_weights_are_read(self, foreign: Path, tmp_path: Path) -> None:
        folder = without_weights(foreign, tmp_path / "a-language-model")
        for make in (
            lambda: BgeReranker(folder),
            lambda: LangChainReranker(model_name=str(folder)),
            lambda: BgeRerank(str(folder)),
        ):
            with pytest.raises(UnsupportedModelError, match=r"a-language-model is a causal .* give that .* as prompt="):
                make()

    def test_is_asked_what_the_user_says(self, foreign: Path) -> None:
        question = "Is B about A? Yes or No"
        tokenizer, model = loaded(foreign)
        expected = []
        for query, passage in PAIRS[:3]:
            texts = [f"A: {query}", "\n", f"B: {passage}", "\n", question]
            ids = [id_ for text in texts for id_ in tokenizer(text, add_special_tokens=False)["input_ids"]]
            with torch.no_grad():
                expected.append(float(model(torch.tensor([ids])).logits[0, -1, tokenizer.convert_tokens_to_ids("Yes")]))
        asked = BgeReranker(foreign, device="cpu", prompt=question)
        assert_close(asked.score_pairs(PAIRS[:3]), expected)
        assert_close(LangChainReranker(model_name=str(foreign), prompt=question).score(PAIRS[:3]), expected)
        with pytest.raises(UnsupportedModelError, match="prompt="):  # although the model is loaded already
            BgeReranker(foreign, device="cpu")
        assert asked.score_pairs(PAIRS[:1]).shape == (1,)

    def test_without_a_token_for_the_answer_it_is_refused(self, tmp_path: Path) -> None:
        tokenizer = make_wordpiece("bert", 512)  # in lower case
        tokenizer.save_pretrained(tmp_path / "another")
        Qwen3ForCausalLM(Qwen3Config(**tiny_shape(len(tokenizer)))).save_pretrained(tmp_path / "another")
        with pytest.raises(UnsupportedModelError, match="has no token 'Yes'"):
            BgeReranker(tmp_path / "another", device="cpu", prompt="Is B about A?")

    @pytest.mark.parametrize(("kind", "named"), [(LOGIT_SCORE, "LogitScore"), (POOLING, "Pooling")])
    def test_whose_modules_make_something_of_the_logits_is_refused(
        self, foreign: Path, tmp_path: Path, kind: str, named: str
    ) -> None:
        folder = without_weights(foreign, tmp_path / "saved")
        write_modules(folder, TRANSFORMER, kind)
        for prompt in (None, "Is B about A?"):
            with pytest.raises(UnsupportedModelError, match=f"computes the result from its output by {named}"):
                BgeReranker(folder, prompt=prompt)

    def test_what_records_a_bge_decoder_is_asked_as_that(self, gemma: Path, tmp_path: Path) -> None:
        folder = tmp_path / "fine-tuned"
        shutil.copytree(gemma, folder)
        config = json.loads((folder / "config.json").read_text())
        record = {**config, "_name_or_path": "BAAI/bge-reranker-v2-gemma"}
        (folder / "config.json").write_text(json.dumps(record))
        assert_close(BgeReranker(folder, device="cpu").score_pairs(PAIRS), gemma_scores(gemma, PAIRS))
        write_modules(folder, TRANSFORMER, LOGIT_SCORE)  # its own files come first
        with pytest.raises(UnsupportedModelError, match="computes the result from its output by LogitScore"):
            BgeReranker(folder, device="cpu")

    def test_called_like_a_bge_decoder_it_is_asked_as_that(self, gemma: Path, tmp_path: Path) -> None:
        folder = tmp_path / "bge-reranker-v2-gemma"
        shutil.copytree(gemma, folder)
        write_modules(folder, TRANSFORMER, LOGIT_SCORE)
        (folder / "1_LogitScore").mkdir()
        (folder / "1_LogitScore/config.json").write_text(json.dumps({"true_token_id": 1, "false_token_id": 2}))
        assert_close(BgeReranker(folder, device="cpu").score_pairs(PAIRS), gemma_scores(gemma, PAIRS))

    def test_none_can_be_prepared(self, gemma: Path, foreign: Path, tmp_path: Path) -> None:
        for folder in (gemma, foreign):
            with pytest.raises(UnsupportedModelError, match="can't be prepared: it is a decoder"):
                prepare(folder, tmp_path / "prepared", purpose="scores")


def test_a_prompt_that_leaves_no_room_for_the_texts_is_refused(gemma: Path) -> None:
    with pytest.raises(SettingsError, match=r"reads 512 tokens, which leaves no room for text .* a shorter prompt"):
        BgeReranker(gemma, device="cpu", prompt="Yes or No? " * 200)
    with pytest.raises(SettingsError, match="max_length=60 leaves no room for text beside the 198 tokens"):
        BgeReranker(gemma, device="cpu", query_instruction=YES_OR_NO * 2, max_length=60)


def test_the_least_room_there_is_goes_to_query_and_passage_alike(gemma: Path) -> None:
    with pytest.raises(SettingsError, match="give at least") as caught:
        BgeReranker(gemma, device="cpu", query_instruction="find: ", max_length=10)
    (least,) = (int(number) for number in re.findall(r"at least (\d+)", str(caught.value)))
    settings: dict[str, Any] = {"device": "cpu", "query_instruction": "find: ", "on_truncation": "ignore"}
    with pytest.raises(SettingsError):
        BgeReranker(gemma, max_length=least - 1, **settings)
    reranker = BgeReranker(gemma, max_length=least, **settings)
    pairs = [(query * 5, passage * 5) for query in ("fox ", "dog ") for passage in ("lazy ", "vector ")]
    found = reranker.score_pairs(pairs)
    assert np.diff(np.sort(found)).min() > 1e-4
