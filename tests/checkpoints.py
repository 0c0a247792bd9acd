"""Tiny checkpoints of the true shapes, made on the spot, and an independent computation of what they should give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from tests.vocabularies import stored_tokenizer

Architecture = Literal["bert", "xlm-roberta"]


def make_checkpoint(
    folder: Path,
    architecture: Architecture = "bert",
    *,
    modules: Sequence[str] | None = None,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    positions: int = 64,
    seed: int = 0,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    recorded_name: str | None = None,
    safetensors: bool = True,
) -> Path:
    """Saves a random model whose folder reads like one from the hub.

    Args:
        folder: Where to.
        architecture: BERT, or XLM-RoBERTa with its position offset.
        modules: None for a bare transformers checkpoint; else a pooling mode and, if wanted, "normalize".
        hidden_size: Dimension.
        layers: Transformer layers.
        heads: Attention heads.
        positions: Longest text, special tokens included.
        seed: Of the weights.
        prompts: Saved prompts, which need modules.
        default_prompt_name: The saved prompt for every text.
        recorded_name: What config.json says that the model was made from.
        safetensors: Else pickled weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(architecture, positions)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = transformer_config(len(tokenizer), hidden_size, layers, heads)
    model: BertModel | XLMRobertaModel
    if architecture == "bert":
        model = BertModel(BertConfig(max_position_embeddings=positions, **shape))
    else:
        model = XLMRobertaModel(
            XLMRobertaConfig(max_position_embeddings=positions + 2, type_vocab_size=1, pad_token_id=1, **shape)
        )
    model.save_pretrained(folder)
    if not safetensors:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if recorded_name is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": recorded_name}))
    if modules is not None:
        _write_modules(folder, modules, hidden_size, positions)
        config = {"prompts": prompts or {}, "default_prompt_name": default_prompt_name}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config, ensure_ascii=False))
    return folder


def reference_vectors(
    folder: Path, texts: Sequence[str], *, max_length: int = 64, normalize: bool = True
) -> NDArray[np.float32]:
    """The usage snippet of the BGE model cards: plain transformers, CLS, L2 norm; one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=None).eval()
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        vectors = model(**encoded)[0][:, 0]
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
    result: NDArray[np.float32] = vectors.numpy()
    return result


def transformer_config(vocabulary: int, hidden_size: int, layers: int, heads: int) -> dict[str, Any]:
    """Returns what the configurations of all small transformers have in common."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden_size,
        "initializer_range": 0.2,
    }


def make_tokenizer(architecture: Architecture, positions: int) -> PreTrainedTokenizerFast:
    """Returns a small tokenizer of the kind that an architecture has; see `tests.vocabularies`."""
    return _wordpiece(positions) if architecture == "bert" else _unigram(positions)


def _wordpiece(positions: int) -> PreTrainedTokenizerFast:
    return _with_special_tokens(
        stored_tokenizer("wordpiece"),
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        model_max_length=positions,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _unigram(positions: int) -> PreTrainedTokenizerFast:
    return _with_special_tokens(
        stored_tokenizer("unigram"),
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        model_max_length=positions,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )


def _with_special_tokens(
    tokenizer: Tokenizer,
    *,
    single: str,
    pair: str,
    cls_token: str,
    sep_token: str,
    **settings: Any,  # noqa: ANN401
) -> PreTrainedTokenizerFast:
    """Has a tokenizer put its special tokens around one text and around a pair."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls_token, sep_token)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, cls_token=cls_token, sep_token=sep_token, **settings
    )


def _write_modules(folder: Path, modules: Sequence[str], hidden_size: int, positions: int) -> None:
    package = "sentence_transformers.models"
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{package}.Pooling"},
    ]
    if "normalize" in modules:
        listed.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{package}.Normalize"})
        (folder / "2_Normalize").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": "cls" in modules,
        "pooling_mode_mean_tokens": "mean" in modules,
        "pooling_mode_max_tokens": "max" in modules,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": positions, "do_lower_case": False}))
