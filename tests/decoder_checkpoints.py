"""Tiny decoders of the true classes, with byte-level vocabularies, as folders that read like ones from the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaTokenizer,
    MistralConfig,
    MistralModel,
    Qwen2Config,
    Qwen2Model,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
)

from tests.vocabularies import stored_tokenizer

EMBEDDERS: dict[str, tuple[Any, Any, Any]] = {
    "bge-multilingual-gemma2": (Gemma2Model, Gemma2Config, GemmaTokenizer),
    "bge-en-icl": (MistralModel, MistralConfig, LlamaTokenizer),
    "bge-code-v1": (Qwen2Model, Qwen2Config, Qwen2Tokenizer),
    "bge-reasoner-embed-qwen3-8b-0923": (Qwen3Model, Qwen3Config, Qwen2Tokenizer),
}
"""Model, configuration and tokenizer classes by the name in the catalogue."""

SPECIAL_TOKENS: dict[Any, list[str]] = {
    GemmaTokenizer: ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
    LlamaTokenizer: ["<unk>", "<s>", "</s>", "<pad>"],
    Qwen2Tokenizer: ["<|endoftext|>", "<unk>"],
}


def make_tokenizer(kind: Any, **settings: Any) -> Any:  # noqa: ANN401 - transformers' classes share no typed base
    """Wraps a byte-level vocabulary in a tokenizer class of transformers; see `tests.vocabularies`."""
    content = json.loads(stored_tokenizer(f"bpe-{kind.__name__}").to_str())["model"]
    return kind(vocab=content["vocab"], merges=[tuple(pair) for pair in content["merges"]], **settings)


def tiny_shape(vocabulary: int, **further: Any) -> dict[str, Any]:  # noqa: ANN401
    """Keywords of a decoder's configuration."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        **further,
    }


def make_embedder(folder: Path, name: str, *, modules: bool = False, add_eos_token: bool = True) -> Path:
    """Saves a random decoder under a name of the catalogue.

    Args:
        folder: Its parent.
        name: A key of `EMBEDDERS`.
        modules: Whether it has sentence-transformers' modules: last-token pooling and normalisation.
        add_eos_token: Whether its tokenizer ends every text with the end-of-text token.
    """
    model_class, config_class, tokenizer_class = EMBEDDERS[name]
    target = folder / name
    tokenizer = make_tokenizer(
        tokenizer_class, add_eos_token=add_eos_token, pad_token=SPECIAL_TOKENS[tokenizer_class][0]
    )
    tokenizer.save_pretrained(target)
    torch.manual_seed(7)
    model_class(config_class(**tiny_shape(len(tokenizer)))).save_pretrained(target)
    if modules:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds.items())
        ]
        (target / "modules.json").write_text(json.dumps(listed))
        (target / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
        (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        (target / "2_Normalize").mkdir()
    return target


def say_text_ends(folder: Path, **flags: bool) -> None:
    """Writes `add_bos_token` and `add_eos_token` into tokenizer_config.json, as transformers 4 did and 5 doesn't."""
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **flags}))


def last_token_vectors(folder: Path, texts: Sequence[str], *, padding_side: str) -> NDArray[np.float32]:
    """Plain transformers: one padded batch, the state of the last token that is no padding, L2 norm."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=padding_side)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
    mask = encoded["attention_mask"]
    positions = mask.cumsum(1).sub(1).clamp(min=0)
    with torch.no_grad():
        states = model(input_ids=encoded["input_ids"], attention_mask=mask, position_ids=positions)[0]
    last = (mask * torch.arange(mask.shape[1])).argmax(1)
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(states[torch.arange(len(last)), last], dim=1).numpy()
    return vectors
