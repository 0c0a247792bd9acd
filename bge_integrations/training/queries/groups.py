"""Which questions are asked of which passages: single passages, and groups of passages for one question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.searchers import VectorSearcher
from bge_integrations.training.mining.exclusions import TextRules
from bge_integrations.training.mining.search import Embedders
from bge_integrations.training.queries.documents import Passage, hashed
from bge_integrations.training.queries.kinds import QuestionKind
from bge_integrations.training.queries.prompts import Task, make_task
from bge_integrations.training.queries.settings import QuerySettings
from bge_integrations.training.queries.wording import pieces, size

__all__ = ["Planned", "Searchable", "plan_tasks"]

_LEAST_WORDS = 3
"""Shorter passages, such as a heading, are not asked about."""
_SPARE = 8
"""Passages that are looked at beyond a group, since copies of its first one are left out."""
_DIGITS = 13
"""Hexadecimal digits that a float holds exactly."""


@dataclass(frozen=True)
class Searchable:
    """Queries and a corpus for a search."""

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    name: str = "passages"


@dataclass(frozen=True)
class Planned:
    """What is asked.

    Attributes:
        tasks: What is asked in each call.
        short: The number of passages that are too short to ask about.
        alone: The number of passages that were to begin a group, and have no other passage to go with.
    """

    tasks: tuple[Task, ...]
    short: int = 0
    alone: int = 0


def plan_tasks(passages: Sequence[Passage], settings: QuerySettings, how: Embedders | None) -> Planned:
    """Decides what is asked of which passages.

    It depends on the text of each passage by itself, so that other passages change nothing for it. Groups depend on the
    neighbours too.

    Args:
        passages: The passages.
        settings: What is asked for.
        how: Embeds passages, for groups of near ones; `None`: groups are neighbours in a document only.

    Raises:
        SettingsError: Near passages are asked for, and there is nothing to embed them with.
    """
    if settings.together == "near" and how is None:
        raise SettingsError("together='near' needs an encoder, which tells the passages that are near.")
    wanted = settings.wanted()
    is_long = [size(pieces(passage.text)) >= _LEAST_WORDS for passage in passages]
    asked: dict[int, dict[int, dict[QuestionKind, int]]] = {}
    for place, passage in enumerate(passages):
        for kind, number in wanted.items() if is_long[place] else ():
            count = _count(kind, number, passage.text)
            if count:
                asked.setdefault(kind.passages, {}).setdefault(place, {})[kind] = count
    tasks: list[tuple[int, int, Task]] = []
    alone = 0
    for members in sorted(asked):
        groups = _groups(passages, list(asked[members]), members, is_long, settings, how)
        alone += len(asked[members]) - len(groups.found) - groups.repeated
        for first, places in groups.found.items():
            texts = [passages[place].text for place in places]
            kinds = asked[members][first]
            task = make_task(places, texts, kinds, settings.language, settings.examples, settings.examples_shown)
            tasks.append((first, members, task))
    in_order = tuple(task for _, _, task in sorted(tasks, key=lambda one: one[:2]))
    return Planned(in_order, is_long.count(False), alone)


@dataclass
class _Groups:
    """The places of each group by that of its first passage, and how many groups were there already."""

    found: dict[int, tuple[int, ...]] = field(default_factory=dict)
    repeated: int = 0

    def add(self, first: int, places: tuple[int, ...]) -> None:
        if any(set(places) == set(other) for other in self._near(places)):
            self.repeated += 1
        else:
            self.found[first] = places

    def _near(self, places: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [self.found[place] for place in places if place in self.found]


def _groups(
    passages: Sequence[Passage],
    firsts: Sequence[int],
    members: int,
    is_long: Sequence[bool],
    settings: QuerySettings,
    how: Embedders | None,
) -> _Groups:
    groups = _Groups()
    if members == 1:
        groups.found = {first: (first,) for first in firsts}
        return groups
    neighbours = {} if settings.together == "near" else _neighbours(passages, firsts, members, is_long)
    rest = [first for first in firsts if first not in neighbours]
    near = {}
    if rest and how is not None and settings.together != "document":
        near = _nearest(passages, rest, members, is_long, how)
    for first in firsts:
        places = neighbours.get(first) or near.get(first)
        if places:
            groups.add(first, places)
    return groups


def _neighbours(
    passages: Sequence[Passage], firsts: Sequence[int], members: int, is_long: Sequence[bool]
) -> dict[int, tuple[int, ...]]:
    """Returns the passages that follow each in its document; at the end of the document, the last ones."""
    by_document: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        if passage.document is not None and is_long[place]:
            by_document.setdefault(passage.document, []).append(place)
    found: dict[int, tuple[int, ...]] = {}
    for first in firsts:
        places = by_document.get(passages[first].document or "", [])
        if len(places) >= members and first in places:
            start = min(places.index(first), len(places) - members)
            found[first] = tuple(places[start : start + members])
    return found


def _nearest(
    passages: Sequence[Passage], firsts: Sequence[int], members: int, is_long: Sequence[bool], how: Embedders
) -> dict[int, tuple[int, ...]]:
    """Returns each passage with the nearest others that are no copies of it, by exact search."""
    texts = [passage.text for passage in passages]
    corpus = {str(place): text for place, text in enumerate(texts) if is_long[place]}
    data = Searchable({str(first): texts[first] for first in firsts}, corpus)
    run = VectorSearcher(how.documents, how.documents).search(data, members + _SPARE, ignore_identical_ids=True)
    rules = TextRules(texts)
    found: dict[int, tuple[int, ...]] = {}
    for first in firsts:
        group = [first]
        for place in map(int, run[str(first)]):
            if len(group) < members and rules.reason(place, group) is None:
                group.append(place)
        if len(group) == members:
            found[first] = tuple(group)
    return found


def _count(kind: QuestionKind, number: float, text: str) -> int:
    """Returns the number of questions for a passage: of 1.5, one or two, as the passage's text decides."""
    whole = int(number)
    drawn = int(hashed(kind.name, text)[:_DIGITS], 16) / 16.0**_DIGITS
    return whole + (drawn < number - whole)
