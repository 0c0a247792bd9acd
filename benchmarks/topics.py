"""Banking77 as a help centre: customers' messages are the queries, and the names of the 77 topics the documents.

The data are those of Casanueva et al. 2020, "Efficient Intent Detection with Dual Sentence Encoders" (CC BY 4.0):
`train.csv` and `test.csv` of the folder `banking_data` in the GitHub repository PolyAI-LDN/task-specific-datasets.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bge_integrations.evaluation import RetrievalData
from bge_integrations.training import TrainingData, TrainingRow

__all__ = ["Message", "read_messages", "topics_as_data", "trained_topics"]

_LABELS = ("category", "label_text", "label")
"""Names of the column that holds the topic: of the authors' files, and of copies of them."""


@dataclass(frozen=True)
class Message:
    """A customer's message.

    Attributes:
        text: What the customer wrote.
        topic: The name of its topic, in words.
    """

    text: str
    topic: str


def read_messages(folder: Path, part: str) -> list[Message]:
    """Reads the messages of one part.

    Args:
        folder: Holds `train.csv` and `test.csv`, or the same as `.jsonl`.
        part: `"train"` or `"test"`.

    Raises:
        ValueError: There is no such file, or a row of it lacks a text or a topic that is a name.
    """
    for suffix, read in ((".csv", _csv), (".jsonl", _jsonl)):
        path = folder / f"{part}{suffix}"
        if path.exists():
            return [_message(row, f"{path}, row {number}") for number, row in enumerate(read(path), 1)]
    raise ValueError(f"{folder} holds neither {part}.csv nor {part}.jsonl")


def topics_as_data(messages: Sequence[Message], topics: Sequence[str], name: str) -> RetrievalData:
    """Returns messages as queries over all topics.

    Args:
        messages: Those to ask.
        topics: All topics, also those that no message here has.
        name: Of the data.
    """
    queries = {f"{name} {number}": message for number, message in enumerate(messages, 1)}
    return RetrievalData(
        queries={id_: message.text for id_, message in queries.items()},
        corpus={topic: topic for topic in topics},
        qrels={id_: {message.topic: 1} for id_, message in queries.items()},
        name=name,
    )


def trained_topics(topics: Sequence[str], left_out: float) -> list[str]:
    """Returns the topics to train on, when a share of them is left out at equal distances.

    Args:
        topics: All of them.
        left_out: The share, from 0 to below 1.
    """
    step = round(1 / left_out) if left_out else len(topics) + 1
    return [topic for number, topic in enumerate(sorted(topics), 1) if number % step]


def as_rows(messages: Sequence[Message]) -> TrainingData:
    """Returns messages as rows to train on, each with its topic as the positive."""
    return TrainingData([TrainingRow(message.text, (message.topic,)) for message in messages], "banking77")


def _csv(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _jsonl(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _message(row: dict[str, object], place: str) -> Message:
    topic = next((row[key] for key in _LABELS if isinstance(row.get(key), str)), None)
    text = row.get("text")
    if not isinstance(text, str) or not isinstance(topic, str):
        raise ValueError(f"{place}: text and the name of a topic are expected, found {row!r}")
    return Message(text, topic.replace("_", " ").lower())
