"""Evaluates vectors as the input of a classifier, by MTEB's protocol."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from bge_integrations._optional import TORCH, require
from bge_integrations.calls.inputs import check_texts
from bge_integrations.errors import EvaluationDataError, SettingsError
from bge_integrations.evaluation.symmetric import embed

__all__ = ["ClassificationReport", "evaluate_classification"]

_SEED = 42


@dataclass(frozen=True)
class ClassificationReport:
    """How well a classifier on the vectors does.

    Attributes:
        accuracy: The mean accuracy over all experiments; the main score.
        f1: The mean macro F1.
        accuracies: The accuracy of each experiment.
        labels: The number of labels.
    """

    accuracy: float
    f1: float
    accuracies: tuple[float, ...]
    labels: int


def evaluate_classification(
    embedder: object,
    train: tuple[Sequence[str], Sequence[Hashable]],
    test: tuple[Sequence[str], Sequence[Hashable]],
    *,
    samples_per_label: int = 8,
    experiments: int = 10,
) -> ClassificationReport:
    """Trains logistic regressions on a few vectors of each label, and measures them on the test texts.

    As in MTEB: in each experiment the training rows are shuffled by a generator with the seed 42, from the order of the
    experiment before, and the first rows of each label are taken. So the order of the training rows matters.
    https://github.com/embeddings-benchmark/mteb, `AbsTaskClassification`.

    Args:
        embedder: An encoder, embeddings of LangChain or LlamaIndex, or a function from texts to vectors.
        train: Texts and their labels.
        test: Texts and their labels.
        samples_per_label: Training texts of each label. MTEB takes 8, and 16 or 32 for some tasks.
        experiments: The number of experiments.

    Raises:
        EvaluationDataError: Texts and labels differ in number, or a label of the test texts is not in training.
        InputTypeError: An element is no text.
        SettingsError: A number is below 1, or the embedder gives no vectors.
        MissingExtraError: scikit-learn, which comes with sentence-transformers, is not installed.
    """
    for argument, value in (("samples_per_label", samples_per_label), ("experiments", experiments)):
        if value < 1:
            raise SettingsError(f"{argument}={value} must be at least 1.")
    (train_texts, train_labels), (test_texts, test_labels) = (
        _checked(name, *part) for name, part in (("train", train), ("test", test))
    )
    unknown = next((label for label in test_labels if label not in set(train_labels)), None)
    if unknown is not None:
        raise EvaluationDataError(f"The label {unknown!r} of a test text has no training text. Add one.")
    if len(set(train_labels)) < 2:
        raise EvaluationDataError("The training texts have one label only; a classifier needs two.")
    linear, metrics = require("sklearn.linear_model", extra=TORCH), require("sklearn.metrics", extra=TORCH)
    samples = _samples(train_labels, samples_per_label, experiments)
    used = sorted({row for rows in samples for row in rows})
    vectors = embed(embedder, [train_texts[row] for row in used] + test_texts)
    place = {row: index for index, row in enumerate(used)}
    asked = vectors[len(used) :]
    accuracies, f1 = [], []
    for rows in samples:
        classifier = linear.LogisticRegression(max_iter=100, random_state=_SEED)
        classifier.fit(vectors[[place[row] for row in rows]], [train_labels[row] for row in rows])
        found = classifier.predict(asked)
        accuracies.append(float(metrics.accuracy_score(test_labels, found)))
        f1.append(float(metrics.f1_score(test_labels, found, average="macro")))
    return ClassificationReport(
        statistics.fmean(accuracies), statistics.fmean(f1), tuple(accuracies), len(set(train_labels))
    )


def _checked(name: str, texts: Sequence[str], labels: Sequence[Hashable]) -> tuple[list[str], list[Hashable]]:
    checked = check_texts(texts, "evaluate_classification")
    if len(labels) != len(checked):
        raise EvaluationDataError(f"{name} has {len(checked)} texts, but {len(labels)} labels; give one for each text.")
    return checked, list(labels)


def _samples(labels: Sequence[Hashable], count: int, experiments: int) -> list[list[int]]:
    """Returns the rows that each experiment trains on."""
    rows = list(range(len(labels)))
    samples = []
    for _ in range(experiments):
        np.random.RandomState(_SEED).shuffle(rows)
        taken: Counter[Hashable] = Counter()
        chosen = []
        for row in rows:
            if taken[labels[row]] < count:
                chosen.append(row)
                taken[labels[row]] += 1
        samples.append(chosen)
    return samples
