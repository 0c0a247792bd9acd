"""Compares a model behind a server with the same model in this process: vectors, scores, and texts per second.

The server is started by hand, in an environment of its own. For infinity:

    infinity_emb v2 --model-id MODEL --served-model-name name --port 7997 --engine torch
    python -m benchmarks.endpoints MODEL http://127.0.0.1:7997 --name name

`--reranker` compares the scores of a reranker.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.command import parser_of
from benchmarks.docstrings.corpus import collect
from bge_integrations import BgeEncoder, BgeReranker, check_endpoint
from bge_integrations.backend.model.pooling import cosines
from bge_integrations.errors import BgeError

_MOST = 200
console = Console(soft_wrap=True)


def main() -> None:
    """Prints one line a comparison."""
    parser = parser_of("benchmarks.endpoints", __doc__)
    parser.add_argument("model", help="hub id or folder")
    parser.add_argument("address", help="address of the server")
    parser.add_argument("--name", help="name of the model on the server; MODEL unless given")
    parser.add_argument("--reranker", action="store_true", help="the model is a reranker")
    parser.add_argument("--scores", default="probabilities", help="what the server gives as scores")
    given = parser.parse_args()
    server: dict[str, Any] = {
        "endpoint": given.address,
        "endpoint_options": {"model": given.name, "scores": given.scores},
        "on_truncation": "ignore",
    }
    (compare_scores if given.reranker else compare_vectors)(given.model, server)


def compare_vectors(model: str, server: dict[str, Any]) -> None:
    """Compares the vectors of documents and of queries."""
    texts = [entry.text for entry in collect()[:_MOST]]
    with BgeEncoder(model, **server) as remote, BgeEncoder(model, on_truncation="ignore") as local:
        for name in ("encode_documents", "encode_queries"):
            start = time.perf_counter()
            theirs = getattr(remote, name)(texts)
            seconds = time.perf_counter() - start
            cosine = cosines(theirs, getattr(local, name)(texts))
            console.print(f"{name}: least cosine {cosine.min():.6f}, {len(texts) / seconds:.0f} texts/s")
        try:
            console.print("check_endpoint:", check_endpoint(remote, local).state)
        except BgeError as error:
            console.print("check_endpoint:", error, markup=False)


def compare_scores(model: str, server: dict[str, Any]) -> None:
    """Compares the logits of pairs."""
    texts = [entry.text for entry in collect()[:_MOST]]
    with BgeReranker(model, **server) as remote, BgeReranker(model, on_truncation="ignore") as local:
        theirs, mine = (one.score(texts[0], texts[1:50]) for one in (remote, local))
        console.print(f"score: greatest difference of logits {np.abs(theirs - mine).max():.6f}")


if __name__ == "__main__":
    main()
