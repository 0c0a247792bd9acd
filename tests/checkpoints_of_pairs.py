"""Tiny rerankers and a tiny bge-m3, made on the spot, and what plain transformers computes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from tests.checkpoints import Architecture, make_checkpoint, make_tokenizer, transformer_config

Pairs = Sequence[tuple[str, str]]


def make_reranker(
    folder: Path,
    architecture: Architecture = "xlm-roberta",
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    positions: int = 64,
    labels: int = 1,
    seed: int = 0,
) -> Path:
    """Saves a random classifier of pairs.

    Args:
        folder: Where to; by its name the catalogue knows it, or not.
        architecture: BERT, which tells the texts of a pair apart by type, or XLM-RoBERTa, which doesn't.
        hidden_size: Width.
        layers: Transformer layers.
        heads: Attention heads.
        positions: Longest pair, special tokens included.
        labels: Outputs.
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(architecture, positions)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {**transformer_config(len(tokenizer), hidden_size, layers, heads), "num_labels": labels}
    if architecture == "bert":
        BertForSequenceClassification(BertConfig(max_position_embeddings=positions, **shape)).save_pretrained(folder)
    else:
        config = XLMRobertaConfig(max_position_embeddings=positions + 2, type_vocab_size=1, pad_token_id=1, **shape)
        XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def reference_scores(folder: Path, pairs: Pairs, *, max_length: int = 64) -> NDArray[np.float32]:
    """The usage snippet of the reranker cards: plain transformers, one padded batch; only the passage is cut."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    queries, passages = (list(texts) for texts in zip(*pairs, strict=True))
    encoded = tokenizer(
        queries, passages, padding=True, truncation="only_second", max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        scores: NDArray[np.float32] = model(**encoded).logits.view(-1).numpy()
    return scores


def make_m3(folder: Path, *, hidden_size: int = 32, positions: int = 64, seed: int = 0, **shape: Any) -> Path:  # noqa: ANN401
    """Saves a random model laid out like bge-m3; arguments as of `make_checkpoint`."""
    make_checkpoint(
        folder,
        "xlm-roberta",
        modules=("cls", "normalize"),
        hidden_size=hidden_size,
        positions=positions,
        seed=seed,
        **shape,
    )
    torch.manual_seed(seed + 1)
    for name, outputs, bias in (("sparse_linear", 1, 0.5), ("colbert_linear", hidden_size, 0.0)):
        head = torch.nn.Linear(hidden_size, outputs).state_dict()
        # Lifted, so that many tokens have a weight above 0.
        torch.save({**head, "bias": head["bias"] + bias}, folder / f"{name}.pt")
    return folder


@dataclass(frozen=True)
class ReferenceM3:
    """What bge-m3's formulas give for some texts."""

    dense: NDArray[np.float32]
    sparse: list[dict[int, float]]
    colbert: list[NDArray[np.float32]]


def reference_m3(folder: Path, texts: Sequence[str], *, max_length: int = 64) -> ReferenceM3:
    """Computes the three outputs with plain transformers, one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    heads = {name: torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")}
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**encoded)[0]
        weights = functional.relu(functional.linear(hidden, **heads["sparse"]))[..., 0]
        vectors = functional.normalize(functional.linear(hidden[:, 1:], **heads["colbert"]), dim=-1)
    # As FlagEmbedding's M3Embedder; its eos is BERT's sep.
    left_out = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    sparse: list[dict[int, float]] = []
    for ids, row in zip(encoded["input_ids"].tolist(), weights.tolist(), strict=True):
        found: dict[int, float] = {}
        for token, weight in zip(ids, row, strict=True):
            if weight > 0 and token not in left_out:
                found[token] = max(weight, found.get(token, 0.0))
        sparse.append(found)
    lengths = encoded["attention_mask"].sum(dim=1).tolist()
    return ReferenceM3(
        functional.normalize(hidden[:, 0], dim=-1).numpy(),
        sparse,
        [rows[: length - 1].numpy() for rows, length in zip(vectors, lengths, strict=True)],
    )
