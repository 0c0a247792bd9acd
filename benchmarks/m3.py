"""Measures bge-m3's three outputs together: this package beside FlagEmbedding and bge-m3-lite, on the same weights.

The weights are random, of bge-m3's shape or a smaller one; the vocabulary is small, since a table of tokens costs
memory and hardly any time. Everybody computes dense vectors, lexical weights and token vectors of every text. Whoever
gives other ones than FlagEmbedding is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import latency, machine, throughput
from benchmarks.command import add_workdir, names, parser_of, save
from benchmarks.contenders import Contender, choose
from benchmarks.docstrings.corpus import collect
from benchmarks.entrants import BATCH, Loaded, Place, made_once
from benchmarks.isolation import isolate
from benchmarks.lineup import assemble
from benchmarks.noise import Reference
from benchmarks.shapes import Shape, write_m3_heads, write_modules
from benchmarks.tables import print_results
from benchmarks.texts import make_mix

_FORMAT = 1
"""Raised with every change of what is written, so that older folders are not reused."""

_POSITIONS = 8192
_VOCABULARY = 8000
_TRAINED_TEXTS = 1000
_SPM = "sentencepiece.bpe.model"
_GRAPH = "model.onnx"
_CHECKED_DOCUMENTS, _CHECKED_QUERIES = 6, 3
_QUERIES_A_ROUND = 5
_LEAST_TEXTS = 8


def checkpoint(shape: Shape, workdir: Path) -> Path:
    """Returns the folder of a bge-m3 of random weights, made if it is not there from an earlier run."""
    folder = workdir / "models" / f"m3-{shape.layers}x{shape.width}-{_FORMAT}" / "bge-m3"
    return made_once(folder, partial(_write, shape))


def _write(shape: Shape, folder: Path) -> None:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    _write_tokenizer(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        num_hidden_layers=shape.layers,
        initializer_range=shape.width**-0.5,
        vocab_size=_VOCABULARY + 2,
        hidden_size=shape.width,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=_POSITIONS + 2,
        type_vocab_size=1,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    write_m3_heads(folder, shape.width)
    write_modules(folder, width=shape.width, positions=_POSITIONS, lower_case=False)


def _write_tokenizer(folder: Path) -> None:
    """Trains a vocabulary on docstrings, and writes it as transformers have XLM-RoBERTa's and as SentencePiece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    rust = Tokenizer(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(
        vocab_size=_VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    texts = [entry.text for entry in collect()]
    rust.train_from_iterator(texts[:_TRAINED_TEXTS], trainer)
    pieces = json.loads(rust.to_str())["model"]["vocab"]
    (folder / _SPM).write_bytes(_sentencepiece(pieces[len(special) :]))
    rust.add_special_tokens(["<mask>"])
    rust.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", [("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=rust,
        model_max_length=_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **names,
        pad_token="<pad>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def _sentencepiece(pieces: Sequence[tuple[str, float]]) -> bytes:
    """Returns a SentencePiece model in its protocol buffer, as far as bge-m3-lite reads it."""
    normal, unknown, control = 1, 2, 3
    special = [("<unk>", 0.0, unknown), ("<s>", 0.0, control), ("</s>", 0.0, control)]
    written = io.BytesIO()
    for piece, score, kind in (*special, *((piece, score, normal) for piece, score in pieces)):
        text = piece.encode()
        # A tag is the number of a field and how its value is written: 2 is a length and bytes, 5 is 4 bytes.
        message = bytes([1 << 3 | 2, len(text)]) + text + bytes([2 << 3 | 5]) + struct.pack("<f", score)
        message += bytes([3 << 3, kind])
        written.write(bytes([1 << 3 | 2, len(message)]) + message)
    return written.getvalue()


def _ours(precision: Any, place: Place) -> Loaded:  # noqa: ANN401 - one of the setting's literals
    from bge_integrations import BgeM3Encoder

    encoder = BgeM3Encoder(place.model, device="cpu", precision=precision, on_truncation="ignore")

    def parts(found: Any) -> list[Any]:  # noqa: ANN401
        return [*zip(found.dense, found.sparse, found.colbert, strict=True)]

    return Loaded(
        lambda texts: parts(encoder.encode_documents(texts)), lambda text: parts(encoder.encode_queries([text]))[0]
    )


def _flag_embedding(place: Place) -> Loaded:
    library = importlib.import_module("FlagEmbedding")
    model = library.BGEM3FlagModel(str(place.model), use_fp16=False, devices="cpu")
    wanted = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True, "batch_size": BATCH}
    return _of_dictionaries(lambda texts: model.encode(texts, **wanted, max_length=_POSITIONS))


def _lite(precision: str, place: Place) -> Loaded:
    """Loads bge-m3-lite with files made by its own tools; it only takes those of the hub, whose digests it knows."""
    hub = importlib.import_module("bge_m3_lite.hub")
    library = importlib.import_module("bge_m3_lite")
    folder = place.made("m3-lite", partial(_write_lite_graphs, place.model))
    for kind in ("TOKENIZER_FILES", "HEAD_FILES"):
        files = [
            dataclasses.replace(file, size=(place.model / file.name).stat().st_size, sha256=None)
            for file in getattr(hub, kind)
        ]
        setattr(hub, kind, tuple(files))
    model = library.BGEM3Embedder(place.model, model_path=folder / f"{precision}.onnx")
    wanted = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    return _of_dictionaries(lambda texts: model.encode(texts, **wanted))


def _of_dictionaries(encode: Callable[[list[str]], Any]) -> Loaded:
    def parts(texts: list[str]) -> list[Any]:
        found = encode(texts)
        return [*zip(found["dense_vecs"], found["lexical_weights"], found["colbert_vecs"], strict=True)]

    return Loaded(parts, lambda text: parts([text])[0])


def _write_lite_graphs(model: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModel

    onnx = importlib.import_module("onnx")

    class TokenEmbeddings(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.encoder(input_ids=ids, attention_mask=mask)[0]
            return hidden

    example = torch.full((2, 7), 5, dtype=torch.int64)
    inputs, output = ["input_ids", "attention_mask"], "token_embeddings"
    raw = folder / "raw"
    raw.mkdir()
    torch.onnx.export(
        TokenEmbeddings().eval(),
        (example, torch.ones_like(example)),
        str(raw / _GRAPH),
        input_names=inputs,
        output_names=[output],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*inputs, output)},
        opset_version=17,
        dynamo=False,
    )
    onnx.save_model(
        onnx.load(raw / _GRAPH),
        folder / _GRAPH,
        save_as_external_data=True,
        location=f"{_GRAPH}_data",
        all_tensors_to_one_file=True,
    )
    shutil.rmtree(raw)
    importlib.import_module("bge_m3_lite.fuse").fuse(folder / _GRAPH, basename="float32")
    importlib.import_module("bge_m3_lite.quantize").quantize(
        folder / "float32.onnx", folder / "int8.onnx", tokenizer_path=model / _SPM
    )


REFERENCE = Contender("FlagEmbedding", "float32", "BGEM3FlagModel, batches of 32", _flag_embedding)
CONTENDERS = (
    Contender("bge-m3-lite", "float32", "BGEM3Embedder, its fused graph", partial(_lite, "float32")),
    Contender("bge-m3-lite-int8", "int8", "the same, its own quantised graph", partial(_lite, "int8")),
    REFERENCE,
    *(
        Contender(
            f"bge-openvino-{precision}", precision, f"BgeM3Encoder, precision={precision!r}", partial(_ours, precision)
        )
        for precision in ("float32", "bfloat16", "int8")
    ),
)
"""bge-m3-lite comes first, since its graphs are made in 10 GB of memory, while no other model is loaded."""


def rows_of(parts: Sequence[Any]) -> Iterator[NDArray[np.floating]]:
    """Yields the vectors of some texts' outputs: dense, lexical weights as a vector over the vocabulary, of each token.

    A text without lexical weights has no vector of them.

    Args:
        parts: For each text the dense vector, lexical weights by token id, and an array of token vectors.
    """
    for dense, weights, vectors in parts:
        row = np.zeros(_VOCABULARY + 2)
        row[[int(token) for token in weights]] = [*weights.values()]
        yield from (dense, *([row] if weights else []), *vectors)


def main(arguments: Sequence[str] | None = None, reference: Contender = REFERENCE) -> None:
    """Reads the options, measures, prints and saves."""
    parser = _parser()
    options = parser.parse_args(arguments)
    workdir = options.workdir.resolve()
    isolate(workdir)
    console = Console(width=None if Console().is_terminal else 130)
    try:
        contenders = choose(options.contenders, among=CONTENDERS)
    except ValueError as error:
        parser.error(str(error))
    shape = Shape("bge-m3", "bge-m3", options.layers, options.width, max(options.width // 64, 1), _POSITIONS)
    place = Place(checkpoint(shape, workdir), workdir)
    checked = make_mix("mixed", _CHECKED_DOCUMENTS, place.model, seed=1).texts
    queries = make_mix("queries", (options.rounds + 1) * _QUERIES_A_ROUND, place.model, seed=2)
    lineup = assemble(contenders, place, checked, queries.texts[:_CHECKED_QUERIES], reference, rows_of)
    timer = Reference()
    common = {"rounds": options.rounds, "reference": timer, "baseline": reference.name}
    measured = {
        "shape": dataclasses.asdict(shape),
        "weights": "random",
        "baseline": reference.name,
        "contenders": {
            one.name: {"how": one.how, "precision": one.precision, **dataclasses.asdict(lineup.agreement[one.name])}
            for one in contenders
            if one.name in lineup.ready
        },
        "left_out": lineup.left_out,
        "throughput": {
            "mixed": throughput.measure(
                lineup.ready,
                make_mix("mixed", options.texts, place.model),
                seconds=options.seconds,
                least=min(_LEAST_TEXTS, options.texts),
                warm_up=options.seconds,
                **common,
            )
        },
        "latency": latency.measure(lineup.ready, queries, **common),
    }
    results = {"machine": machine.facts(), "rounds": options.rounds, "profile": "m3", "shapes": {"bge-m3": measured}}
    print_results(console, results)
    save(results, options.output, console)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.m3", __doc__)
    add = parser.add_argument
    known = ", ".join(contender.name for contender in CONTENDERS)
    add("--contenders", type=names, default=["*"], help=f"names or patterns, by commas; all of them: {known}")
    add("--layers", type=int, default=24, help="bge-m3 has 24; bge-m3-lite takes no other number")
    add("--width", type=int, default=1024, help="bge-m3 has 1024; bge-m3-lite takes no other number")
    add("--texts", type=int, default=64, help="texts at most, of 80 tokens on average")
    add("--seconds", type=float, default=8.0, help="what a contender may take in a round; a slow one gets fewer texts")
    add("--rounds", type=int, default=3, help="how often each contender is measured")
    add("--output", type=Path, default=Path("benchmarks/m3.json"), help="where to save what was measured")
    add_workdir(parser, "models and graphs")
    return parser


if __name__ == "__main__":
    main()
