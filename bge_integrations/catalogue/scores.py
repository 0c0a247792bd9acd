"""Published scores of models on the tasks of MTEB and C-MTEB, and the benchmarks' averages.

The figures are those of https://github.com/embeddings-benchmark/results, where their licence is CC0-1.0.
`published.json` names the commit and the folder of each model's figures:

- BGE models, v1 and v1.5: BAAI's own runs, from which the averages in BAAI's cards follow. The commit is the last one
  with all of them. Later commits drop bge-large-zh-noinstruct, and BAAI's figure of a task that mteb has run again.
  mteb's runs normalise all vectors and add the instruction in other tasks. So they give other figures: 63.87 instead of
  74.75 for bge-small-en-v1.5 on MTOPIntentClassification.
- bge-m3 and all-MiniLM-L6-v2: runs by mteb. bge-m3 has been run on some of the tasks only.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from bge_integrations.catalogue.recognition import plain_name
from bge_integrations.errors import SettingsError

__all__ = [
    "BENCHMARKS",
    "MINILM",
    "Averages",
    "Benchmark",
    "Metric",
    "Source",
    "averages",
    "find_benchmark",
    "published_scores",
    "published_source",
    "scored_models",
]

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
"""The one model with published scores here that is not a BGE model. Its weights can be had as a package."""

Metric = Literal["card", "main"]
"""Whose metric of pair classification; see `published_scores`."""

_MINILM_TITLE = re.compile(r"^# all-MiniLM-L6-v2\s*$", re.MULTILINE)
"""The heading of its model card. Cards of models that were made from it have another one."""


@dataclass(frozen=True)
class Benchmark:
    """A set of tasks.

    Attributes:
        name: Its name in mteb.
        aliases: Other names.
        groups: Names of tasks by their type. Both are spelled as in mteb. The order of the types is that of the columns
            in BAAI's model cards.
    """

    name: str
    aliases: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(hash=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks, group by group."""
        return tuple(itertools.chain.from_iterable(self.groups.values()))


@dataclass(frozen=True)
class Averages:
    """Means over the tasks of a benchmark.

    Attributes:
        overall: Mean over all tasks. Each task counts once. `None`: a task is missing.
        groups: Mean over the tasks of each type. `None`: a task of this type is missing.
        missing: Names of the tasks without a score.
    """

    overall: float | None
    groups: Mapping[str, float | None] = field(hash=False)
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where the figures of one model were published.

    Attributes:
        repository: Address of the repository.
        commit: Commit of the repository.
        folder: Folder with one file per task.
        licence: Licence of the figures, as an SPDX identifier.
    """

    repository: str
    commit: str
    folder: str
    licence: str


def _tasks(names: str) -> tuple[str, ...]:
    return tuple(names.split())


_ENGLISH = Benchmark(
    name="MTEB(eng, v1)",
    aliases=("MTEB(eng, classic)", "MTEB"),
    groups={
        "Retrieval": _tasks(
            "ArguAna ClimateFEVER CQADupstackRetrieval DBPedia FEVER FiQA2018 HotpotQA MSMARCO NFCorpus NQ "
            "QuoraRetrieval SCIDOCS SciFact Touche2020 TRECCOVID"
        ),
        "Clustering": _tasks(
            "ArxivClusteringP2P ArxivClusteringS2S BiorxivClusteringP2P BiorxivClusteringS2S MedrxivClusteringP2P "
            "MedrxivClusteringS2S RedditClustering RedditClusteringP2P StackExchangeClustering "
            "StackExchangeClusteringP2P TwentyNewsgroupsClustering"
        ),
        "PairClassification": _tasks("SprintDuplicateQuestions TwitterSemEval2015 TwitterURLCorpus"),
        "Reranking": _tasks("AskUbuntuDupQuestions MindSmallReranking SciDocsRR StackOverflowDupQuestions"),
        "STS": _tasks("BIOSSES SICK-R STS12 STS13 STS14 STS15 STS16 STS17 STS22 STSBenchmark"),
        "Summarization": _tasks("SummEval"),
        "Classification": _tasks(
            "AmazonCounterfactualClassification AmazonPolarityClassification AmazonReviewsClassification "
            "Banking77Classification EmotionClassification ImdbClassification MassiveIntentClassification "
            "MassiveScenarioClassification MTOPDomainClassification MTOPIntentClassification "
            "ToxicConversationsClassification TweetSentimentExtractionClassification"
        ),
    },
)
_CHINESE = Benchmark(
    name="MTEB(cmn, v1)",
    aliases=("MTEB(Chinese)", "CMTEB", "C-MTEB"),
    groups={
        "Retrieval": _tasks(
            "CmedqaRetrieval CovidRetrieval DuRetrieval EcomRetrieval MedicalRetrieval MMarcoRetrieval T2Retrieval "
            "VideoRetrieval"
        ),
        "STS": _tasks("AFQMC ATEC BQ LCQMC PAWSX QBQTC STSB"),
        "PairClassification": _tasks("Cmnli Ocnli"),
        "Classification": _tasks("IFlyTek JDReview MultilingualSentiment OnlineShopping TNews Waimai"),
        "Reranking": _tasks("CMedQAv1-reranking CMedQAv2-reranking MMarcoReranking T2Reranking"),
        "Clustering": _tasks("CLSClusteringP2P CLSClusteringS2S ThuNewsClusteringP2P ThuNewsClusteringS2S"),
    },
)

BENCHMARKS: Mapping[str, Benchmark] = {benchmark.name: benchmark for benchmark in (_ENGLISH, _CHINESE)}
"""The two benchmarks of BAAI's model cards of August 2023, by name: 56 English tasks and 31 Chinese ones."""


def find_benchmark(name: str) -> Benchmark:
    """Returns a benchmark by its name or an alias, in upper or lower case.

    Raises:
        SettingsError: There is no such benchmark.
    """
    for benchmark in BENCHMARKS.values():
        if name.lower() in (known.lower() for known in (benchmark.name, *benchmark.aliases)):
            return benchmark
    choices = ", ".join(
        f"{benchmark.name!r} (or {', '.join(map(repr, benchmark.aliases))})" for benchmark in BENCHMARKS.values()
    )
    raise SettingsError(f"benchmark={name!r} is unknown; choose one of {choices}.")


def published_scores(model: str | os.PathLike[str], *, metric: Metric = "card") -> Mapping[str, float]:
    """Returns the published scores of a model.

    Every task has one figure. Its split is the one that the averages of BAAI's model cards count: `dev` for MSMARCO,
    and `validation` for MultilingualSentiment. Tasks in several languages have the English one.

    Args:
        model: Hub id, bare name, folder with the name of a model, or snapshot of a hub cache. A folder that only
            records a model as its ancestor has no published scores, since a fine-tuned model scores differently.
        metric: Metric of pair classification. `"card"`: average precision of the cosine, as in BAAI's model cards.
            `"main"`: mteb's main score, which is the best of several similarities: of their average precisions
            (English), or of their accuracies (Chinese). Other types of task have one metric: nDCG@10 (retrieval), MAP
            (reranking), V-measure (clustering), Spearman correlation (STS, summarization), accuracy (classification).

    Returns:
        Scores from 0 to 100 by mteb's name of the task. Empty for an unknown model.

    Raises:
        SettingsError: `metric` is unknown.
    """
    if metric not in get_args(Metric):
        raise SettingsError(f"metric={metric!r} is unknown; choose 'card' or 'main'.")
    entry = _entry(model)
    if entry is None:
        return {}
    return {**entry["main_score"], **(entry["cosine_ap"] if metric == "card" else {})}


def published_source(model: str | os.PathLike[str]) -> Source | None:
    """Returns where the scores of a model were published, or `None` for a model without published scores."""
    entry = _entry(model)
    if entry is None:
        return None
    content = _published()
    return Source(content["repository"], entry["commit"], entry["folder"], content["licence"])


def scored_models() -> tuple[str, ...]:
    """Returns the hub ids of the models with published scores."""
    return tuple(_published()["models"])


def averages(scores: Mapping[str, float], benchmark: Benchmark) -> Averages:
    """Returns the means of a benchmark, by the rule of BAAI's model cards: each task counts once.

    Args:
        scores: Scores by task. Tasks of other benchmarks are ignored.
        benchmark: The benchmark.
    """
    return Averages(
        overall=_mean(scores, benchmark.tasks),
        groups={kind: _mean(scores, tasks) for kind, tasks in benchmark.groups.items()},
        missing=tuple(task for task in benchmark.tasks if task not in scores),
    )


def _mean(scores: Mapping[str, float], tasks: tuple[str, ...]) -> float | None:
    return statistics.fmean(scores[task] for task in tasks) if all(task in scores for task in tasks) else None


def _entry(model: str | os.PathLike[str]) -> dict[str, Any] | None:
    known: dict[str, dict[str, Any]] = {plain_name(id_): entry for id_, entry in _published()["models"].items()}
    return next((known[name] for name in _names(os.fspath(model)) if name in known), None)


def _names(model: str) -> Iterator[str]:
    """Yields the names of a model. Its folder's files count only for the one model that names itself in them."""
    yield plain_name(model)
    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        yield plain_name(os.path.realpath(folder))
        with contextlib.suppress(OSError, ValueError):  # no card, or no text
            if _MINILM_TITLE.search(Path(folder, "README.md").read_text(encoding="utf-8-sig")):
                yield plain_name(MINILM)


@functools.cache
def _published() -> dict[str, Any]:
    file = resources.files("bge_integrations.catalogue") / "published.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
