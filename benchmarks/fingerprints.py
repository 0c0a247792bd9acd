"""Shows what a fingerprint notices: how far changes of a model move its vectors, and what that does to a search.

    python -m benchmarks.fingerprints MODEL --documents 2000

The index holds the docstrings of Python's standard library. Each line changes the model that is used now. "estimate"
is the least cosine of the probe texts as fingerprints tell it, "probes" and "documents" are the true least cosines.
"found again" is the share of the ten documents nearest to a query, over 200 queries, that a search with the changed
model still finds in the unchanged index.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file, save_file

from benchmarks.command import parser_of
from benchmarks.docstrings.corpus import collect
from bge_integrations import BgeEncoder
from bge_integrations.backend.model.pooling import cosines
from bge_integrations.fingerprint import PROBES
from bge_integrations.settings import EncoderOptions

_QUERIES, _DEPTH = 200, 10
_CHANGES: dict[str, EncoderOptions] = {
    "nothing": {},
    "engine torch": {"engine": "torch"},
    "engine sentence-transformers": {"engine": "sentence-transformers"},
    "precision bfloat16": {"precision": "bfloat16"},
    "precision int8": {"precision": "int8"},
    "max_length 255": {"max_length": 255},
    "max_length 128": {"max_length": 128},
    'document_instruction "passage: "': {"document_instruction": "passage: ", "query_instruction": "passage: "},
    "normalize=False": {"normalize": False},
    "pooling cls": {"pooling": "cls"},
}
_NOISES = (0.001, 0.01, 0.1)
"""Noise in the weights, relative to the standard deviation of each matrix: a stand-in for fine-tuning."""


def main() -> None:
    """Prints one line a change."""
    parser = parser_of("benchmarks.fingerprints", __doc__)
    parser.add_argument("model", help="folder of an embedder with safetensors weights")
    parser.add_argument("--documents", type=int, default=2000, help="documents of the index")
    given = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    texts = [entry.text for entry in collect()][:: max(1, len(collect()) // given.documents)][: given.documents]
    queries = [text.partition(": ")[2].split(". ")[0] for text in texts[:: len(texts) // _QUERIES]][:_QUERIES]
    with BgeEncoder(given.model, on_truncation="ignore") as encoder:
        before = encoder.fingerprint()
        probes, index = encoder.encode_documents(PROBES), encoder.encode_documents(texts)
        nearest = _nearest(index, encoder.encode_queries(queries))
    console.print(f"{len(texts)} documents, {len(queries)} queries, a fingerprint of {len(before.to_json())} bytes")
    console.print("change | state | estimate | probes | documents | found again")
    for name, model, options in _models(given.model):
        with BgeEncoder(model, on_truncation="ignore", **options) as encoder:
            found = before.compare(encoder.fingerprint())
            true = cosines(probes, encoder.encode_documents(PROBES)).min()
            documents = cosines(index, encoder.encode_documents(texts)).min()
            again = _overlap(nearest, _nearest(index, encoder.encode_queries(queries)))
        figures = f"{found.least_cosine:.6f} | {true:.6f} | {documents:.6f} | {again:.1%}"
        console.print(f"{name} | {found.state} | {figures}", markup=False)


def _models(model: str) -> Iterator[tuple[str, str, EncoderOptions]]:
    """Yields the name, the model and the options of each change."""
    for name, options in _CHANGES.items():
        yield name, model, options
    for noise in _NOISES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / Path(model).name
            shutil.copytree(model, folder)
            weights = load_file(folder / "model.safetensors")
            generator = np.random.default_rng(0)
            moved = {
                key: value + (generator.standard_normal(value.shape) * value.std() * noise).astype(value.dtype)
                if value.ndim == 2
                else value
                for key, value in weights.items()
            }
            save_file(moved, folder / "model.safetensors")
            yield f"weights moved by {noise:.1%}", str(folder), {}


def _nearest(index: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(-(queries @ index.T), axis=1)[:, :_DEPTH]


def _overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    return float(np.mean([len({*one} & {*other}) / _DEPTH for one, other in zip(first, second, strict=True)]))


if __name__ == "__main__":
    main()
