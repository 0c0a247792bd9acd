"""Measures how long it takes to rerank the passages found for a query, beside the rerankers of today.

All score the same pairs with the same random weights of a BGE reranker's size, one query after the other, in turns.
Scores are compared with sentence-transformers' first; who gives others is left out.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import machine
from benchmarks.command import add_workdir, parser_of, save
from benchmarks.isolation import isolate
from benchmarks.lineup import reason
from benchmarks.noise import Reference, judge
from benchmarks.shapes import reranker_checkpoint
from benchmarks.stats import interleaved, ratio_of_medians, spread
from benchmarks.table_parts import make_table, print_left_out, ratio_cell
from benchmarks.texts import make_mix

Score = Callable[[str, list[str]], Sequence[float]]
"""A query and passages in, a score each out, in the order of the passages."""

REFERENCE = "sentence-transformers"

_MOST_ERROR = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.3}
"""Of a score, in parts of how far the reference's scores are apart, beyond which it counts as wrong."""

_CHECKED = 16
_WIDTH = 100


@dataclass(frozen=True)
class Contender:
    """One way to score pairs.

    Attributes:
        name: As on the command line.
        precision: How it computes.
        load: Loads the model of a folder.
    """

    name: str
    precision: str
    load: Callable[[Path], Score]


def _sentence_transformers(folder: Path) -> Score:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    return lambda query, passages: _floats(model.predict([(query, passage) for passage in passages]))


def _langchain(folder: Path) -> Score:
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_community.cross_encoders import HuggingFaceCrossEncoder

    model = HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs={"device": "cpu"})
    scores: list[float] = []

    class Listening(HuggingFaceCrossEncoder):
        """Keeps the scores, which the compressor drops."""

        def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
            scores[:] = _floats(super().score(text_pairs))
            return scores

    listening = Listening.model_construct(client=model.client)
    return _compressing(CrossEncoderReranker(model=listening, top_n=3), lambda _: scores)


def _our_langchain(engine: Any, precision: Any, folder: Path) -> Score:  # noqa: ANN401 - two settings' literals
    from bge_integrations.langchain import BgeReranker

    reranker = BgeReranker(
        model_name=str(folder), engine=engine, precision=precision, device="cpu", on_truncation="ignore", normalize=True
    )

    def by_place(found: Sequence[Any]) -> list[float]:
        scores = {document.metadata["place"]: document.metadata["relevance_score"] for document in found}
        return [scores[place] for place in range(len(scores))]

    return _compressing(reranker, by_place)


def _compressing(compressor: Any, scores: Callable[[Sequence[Any]], Sequence[float]]) -> Score:  # noqa: ANN401
    from langchain_core.documents import Document

    def score(query: str, passages: list[str]) -> Sequence[float]:
        documents = [Document(text, metadata={"place": place}) for place, text in enumerate(passages)]
        return scores(compressor.compress_documents(documents, query))

    return score


def _llama_index(folder: Path) -> Score:
    from llama_index.core.postprocessor import SentenceTransformerRerank

    return _postprocessing(lambda top_n: SentenceTransformerRerank(model=str(folder), top_n=top_n, device="cpu"))


def _our_llama_index(engine: Any, precision: Any, folder: Path) -> Score:  # noqa: ANN401 - two settings' literals
    from bge_integrations.llama_index import BgeRerank

    return _postprocessing(
        lambda top_n: BgeRerank(
            str(folder),
            top_n=top_n,
            engine=engine,
            precision=precision,
            device="cpu",
            on_truncation="ignore",
            normalize=True,
        )
    )


def _postprocessing(make: Callable[[int], Any]) -> Score:
    from llama_index.core.schema import NodeWithScore, TextNode

    rerank = make(10**6)

    def score(query: str, passages: list[str]) -> Sequence[float]:
        nodes = [NodeWithScore(node=TextNode(id_=str(place), text=text)) for place, text in enumerate(passages)]
        scores = {
            int(found.node.node_id): float(found.score) for found in rerank.postprocess_nodes(nodes, query_str=query)
        }
        return [scores[place] for place in range(len(scores))]

    return score


def _flag_embedding(folder: Path) -> Score:
    flag_embedding = importlib.import_module("FlagEmbedding")
    model = flag_embedding.FlagReranker(str(folder), use_fp16=False, devices="cpu", batch_size=32, normalize=True)
    return lambda query, passages: _floats(model.compute_score([(query, passage) for passage in passages]))


def _floats(scores: Any) -> list[float]:  # noqa: ANN401 - whatever holds numbers
    return [float(score) for score in scores]


def _ours(engine: str, precision: str) -> Contender:
    return Contender(f"bge-{engine}-{precision}", precision, partial(_our_langchain, engine, precision))


CONTENDERS = (
    Contender(REFERENCE, "float32", _sentence_transformers),
    Contender("langchain", "float32", _langchain),
    Contender("llama-index", "float32", _llama_index),
    Contender("FlagEmbedding", "float32", _flag_embedding),
    _ours("openvino", "float32"),
    Contender("bge-llama-index-openvino-float32", "float32", partial(_our_llama_index, "openvino", "float32")),
    _ours("openvino", "bfloat16"),
    _ours("openvino", "int8"),
    _ours("torch", "float32"),
)


def measure(
    folder: Path,
    contenders: Sequence[Contender],
    *,
    passages: int,
    rounds: int,
    warm_up: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Measures everybody on the same queries and passages.

    Args:
        folder: The reranker.
        contenders: Who takes part.
        passages: For each query.
        rounds: Queries that count.
        warm_up: Seconds that each works before anything counts.
        tell: Is told what is going on.

    Returns:
        Plain data: `texts` (lengths of the passages), `noise`, `left_out`, and `results` by name: `seconds` of each
        round, `median_s`, `pairs_per_s`, `spread`, `ratio` (how many times as fast as the reference) and `error` (the
        largest of the checked scores).
    """
    documents = make_mix("mixed", passages, folder)
    queries = make_mix("queries", rounds + 1, folder).texts
    ready, errors, left_out = _lineup(folder, contenders, queries[0], documents.texts[:_CHECKED], tell)
    reference = Reference()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for name, score in ready.items():
        tell(f"warming up {name}")
        start = time.perf_counter()
        score(queries[0], documents.texts)
        while time.perf_counter() - start < warm_up:
            score(queries[0], documents.texts)
    reference.time()
    for number, order in interleaved(list(ready), rounds):
        tell(f"round {number + 1} of {rounds}")
        for name in reference.rested(order):
            start = time.perf_counter()
            ready[name](queries[number + 1], documents.texts)
            times[name].append(time.perf_counter() - start)
        reference.time()
    baseline = times.get(REFERENCE)
    results = {
        name: {
            "seconds": taken,
            "median_s": statistics.median(taken),
            "pairs_per_s": len(documents.texts) / statistics.median(taken),
            "spread": spread(taken),
            "ratio": ratio_of_medians(taken, baseline) if baseline else None,
            "error": errors[name],
        }
        for name, taken in times.items()
    }
    noise = judge(reference.seconds, [spread(taken) for taken in times.values()])
    return {"texts": documents.statistics(), "noise": asdict(noise), "left_out": left_out, "results": results}


def _lineup(
    folder: Path, contenders: Sequence[Contender], query: str, passages: list[str], tell: Callable[[str], None]
) -> tuple[dict[str, Score], dict[str, float], dict[str, str]]:
    """Loads contenders; returns those whose scores are right, how right they are, and why others are left out."""
    expected = _array(_sentence_transformers(folder)(query, passages))
    gc.collect()  # sentence-transformers' models are reference cycles
    apart = float(np.ptp(expected))
    ready: dict[str, Score] = {}
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for contender in contenders:
        tell(f"loading {contender.name}")
        try:
            score = contender.load(folder)
            error = float(np.abs(_array(score(query, passages)) - expected).max())
        except Exception as failure:  # whatever a dozen libraries raise must not end the others' race
            left_out[contender.name] = reason(failure)
            continue
        if error > _MOST_ERROR[contender.precision] * apart:
            left_out[contender.name] = f"gives other scores than {REFERENCE}: by up to {error:.4f}"
            continue
        ready[contender.name] = score
        errors[contender.name] = error
    return ready, errors, left_out


def _array(scores: Sequence[float]) -> NDArray[np.float64]:
    return np.array(scores, dtype=np.float64)


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints a table, the fastest first."""
    texts = results["texts"]
    table = make_table(
        f"{results['model']}: {texts['texts']} passages a query, mean {texts['mean']:.0f} tokens, p95 "
        f"{texts['p95']:.0f}",
        *("s a query", "pairs/s", f"ratio to {REFERENCE}", "spread", "error of a score"),
        width=_WIDTH,
    )
    for name, result in sorted(results["results"].items(), key=lambda item: float(item[1]["median_s"])):
        table.add_row(
            name,
            f"{result['median_s']:.2f}",
            f"{result['pairs_per_s']:.1f}",
            ratio_cell(result["ratio"]),
            f"{result['spread']:.2f}",
            f"{result['error']:.1e}",
        )
    console.print(table)
    console.print(f"Noise: {results['noise']['verdict']}.", markup=False)
    print_left_out(console, results["left_out"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = parser_of("benchmarks.reranking", __doc__)
    add = parser.add_argument
    add("--shape", choices=("tiny", "base", "large"), default="base", help="of bge-reranker-base or -large")
    add("--model", type=Path, help="a folder with a reranker of your own, instead of --shape")
    add("--passages", type=int, default=100, help="for each query")
    add("--rounds", type=int, default=3, help="queries that count")
    add("--warm-up", type=float, default=8.0, help="seconds that each works before anything counts")
    add("--contenders", help=f"by commas: {', '.join(contender.name for contender in CONTENDERS)}")
    add("--output", type=Path, help="save what was measured as JSON")
    add_workdir(parser, "models")
    options = parser.parse_args(arguments)
    names = options.contenders.split(",") if options.contenders else [contender.name for contender in CONTENDERS]
    unknown = set(names) - {contender.name for contender in CONTENDERS}
    if unknown:
        parser.error(f"there is no contender {', '.join(sorted(unknown))}")
    isolate(options.workdir)
    console = Console(width=_WIDTH + 20)
    folder = options.model or reranker_checkpoint(options.shape, options.workdir)
    results = {
        "model": folder.name if options.model else f"shape of bge-reranker-{options.shape}, random weights",
        "machine": machine.facts(),
        **measure(
            folder,
            [contender for contender in CONTENDERS if contender.name in names],
            passages=options.passages,
            rounds=options.rounds,
            warm_up=options.warm_up,
            tell=lambda text: console.print(text, style="dim", markup=False),
        ),
    }
    print_results(console, results)
    if options.output:
        save(results, options.output)


if __name__ == "__main__":
    main()
