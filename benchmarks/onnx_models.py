"""The same weights in onnxruntime: by fastembed, and by the plainest loop that sorts by length."""

from __future__ import annotations

import importlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.entrants import BATCH, Loaded, Place

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_GRAPH = "model.onnx"
_TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def exported(place: Place, precision: str = "float32") -> Path:
    """Returns a folder with the model's graph in ONNX, made once, attention and normalisation fused.

    Args:
        place: Where the model is.
        precision: "float32": onnxruntime's optimiser for transformers has been over the graph. "float16": what
            fastembed's own graphs of BGE v1.5 are, 2 bytes a weight with a fast GELU; on a processor onnxruntime
            computes them in float32. "int8": quantised as fastembed's and transformers.js' scripts do it, each
            channel on its own to 7 bits, activations as they come.

    Raises:
        ValueError: The model does not pool by CLS.
    """
    pooling = json.loads((place.model / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    if not (pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls"):
        raise ValueError("only CLS pooling is written for onnxruntime here")

    def write(folder: Path) -> None:
        with warnings.catch_warnings():
            # The exporter in torch itself calls itself deprecated; the one that replaces it needs another package.
            warnings.simplefilter("ignore")
            if precision == "float32":
                _export(place.model, folder)
            else:
                _lower(exported(place) / _GRAPH, folder / _GRAPH, precision)
        for name in _TOKENIZER_FILES:
            shutil.copy(place.model / name, folder)

    return place.made(f"onnx-{precision}", write)


def _lower(graph: Path, to: Path, precision: str) -> None:
    """Writes a graph in a lower precision."""
    if precision == "float16":
        model = importlib.import_module("onnxruntime.transformers.onnx_model_bert").BertOnnxModel(
            importlib.import_module("onnx").load(graph)
        )
        model.gelu_approximation()
        model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(to))
        return
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(
        graph,
        to,
        per_channel=True,
        reduce_range=True,
        weight_type=quantization.QuantType.QInt8,
        # The second because nothing infers types behind the fused operations.
        extra_options={"EnableSubgraph": True, "DefaultTensorType": importlib.import_module("onnx").TensorProto.FLOAT},
    )


def _export(model: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModel

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The optimiser knows attention by the operations that the eager code is made of.
            self.encoder = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types)[0]
            return hidden

    network = LastHiddenState().eval()
    example = torch.ones((2, 7), dtype=torch.int64)
    mask = torch.ones_like(example)
    mask[1, 5:] = 0
    raw = folder / "raw.onnx"
    torch.onnx.export(
        network,
        (example, mask, torch.zeros_like(example)),
        str(raw),
        input_names=list(_INPUTS),
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*_INPUTS, "last_hidden_state")},
        opset_version=17,
        dynamo=False,
    )
    optimizer = importlib.import_module("onnxruntime.transformers.optimizer")
    config = network.encoder.config
    fused = optimizer.optimize_model(
        str(raw), model_type="bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=0
    )
    fused.save_model_to_file(str(folder / _GRAPH))
    raw.unlink()


def load_fastembed(precision: str, place: Place) -> Loaded:
    """Loads fastembed's `TextEmbedding` with the graph as a custom model; it does not sort by length."""
    from bge_integrations.backend.machine.cpu import usable_threads

    fastembed = importlib.import_module("fastembed")
    descriptions = importlib.import_module("fastembed.common.model_description")
    folder = exported(place, precision)
    # The registry is the process's own, and two shapes in one run must not share a name.
    name = f"benchmarks/{folder.name}-{precision}"
    if all(known["model"] != name for known in fastembed.TextEmbedding.list_supported_models()):
        fastembed.TextEmbedding.add_custom_model(
            model=name,
            pooling=descriptions.PoolingType.CLS,
            normalization=True,
            sources=descriptions.ModelSource(hf=name),  # never asked, the folder is given below
            dim=json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"],
            model_file=_GRAPH,
        )
    model = fastembed.TextEmbedding(name, specific_model_path=str(folder), threads=usable_threads(), cuda=False)
    return Loaded(
        lambda texts: list(model.embed(texts, batch_size=BATCH)), lambda text: next(iter(model.query_embed(text)))
    )


def load_onnxruntime(precision: str, place: Place) -> Loaded:
    """Loads the graph into onnxruntime, with tokenizers before it and numpy after it."""
    from tokenizers import Tokenizer

    from bge_integrations.backend.machine.cpu import usable_threads

    onnxruntime = importlib.import_module("onnxruntime")
    folder = exported(place, precision)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_threads()
    session = onnxruntime.InferenceSession(str(folder / _GRAPH), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)

    def embed(texts: list[str]) -> NDArray[np.float32]:
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index]))
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(order), BATCH):
            indices = order[start : start + BATCH]
            for index, row in zip(indices, _cls_rows(session, [encoded[index] for index in indices]), strict=True):
                vectors[index] = row
        return np.stack(vectors)

    return Loaded(embed, lambda text: embed([text])[0])


def _cls_rows(session: Any, batch: list[list[int]]) -> NDArray[np.float32]:  # noqa: ANN401 - it has no types
    longest = max(map(len, batch))
    ids = np.array([row + [0] * (longest - len(row)) for row in batch], dtype=np.int64)
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in batch], dtype=np.int64)
    hidden = session.run(None, dict(zip(_INPUTS, (ids, mask, np.zeros_like(ids)), strict=True)))[0]
    rows: NDArray[np.float32] = hidden[:, 0] / np.linalg.norm(hidden[:, 0], axis=1, keepdims=True)
    return rows
