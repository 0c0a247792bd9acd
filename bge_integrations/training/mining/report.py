"""What mining found and left out: plain data that is shown in words, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bge_integrations.training.mining.choice import DISTANCE_STEP, MiningSettings, RowResult
from bge_integrations.training.mining.exclusions import REASONS, Reason
from bge_integrations.training.mining.histogram import SCORE_STEP, Histogram
from bge_integrations.training.mining.pool import Pool
from bge_integrations.training.prose import counted, escaped, shown_in_markdown
from bge_integrations.training.rows.data import TrainingData

__all__ = ["MiningReport", "Sample", "make_report"]

MARGINS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Relative margins for which the report says what they would leave out."""
_SAMPLES, _DOUBTFUL_SAMPLES = 6, 3
_BAR, _SCORE_ROWS = 30, 16
_WIDTH = 100

Scored = tuple[str, float]


@dataclass(frozen=True)
class Sample:
    """A row to read.

    Attributes:
        row: The row's id.
        query: Its query.
        positives: Texts and scores of its positives.
        given: Texts and scores of the negatives that it had.
        negatives: Texts, scores, ranks and sources of the negatives that were found.
        left_out: Texts, scores and reasons of the nearest passages that were left out.
        is_doubtful: Whether most candidates are nearer to the query than the margin allows, or than the positive.
    """

    row: str
    query: str
    positives: Sequence[Scored]
    given: Sequence[Scored]
    negatives: Sequence[tuple[str, float, int, str]]
    left_out: Sequence[tuple[str, float, Reason]]
    is_doubtful: bool


@dataclass(frozen=True, kw_only=True)
class MiningReport:
    """What mining found and left out.

    Attributes:
        data: The data's name.
        digest: The data's digest.
        model: The encoder's name.
        settings: What was asked for.
        rows: The number of rows.
        passages: The number of different passages to choose from.
        asked: The number of negatives that rows lacked.
        given: The number of negatives that rows had.
        found: The number of negatives that were found.
        sources: How many of them were found by vectors and by words.
        short: The number of rows that have fewer negatives than asked for.
        empty: The number of rows that have none.
        doubtful: The number of rows of which most candidates are too near; their positive may be wrong.
        without_scores: The number of rows that lost a teacher's scores.
        left_out: How many passages were left out by each rule, at the ranks of the window and before.
        candidates: The number of passages at the ranks of the window, margins not regarded.
        positives: Scores of positives.
        negatives: Scores of negatives that were found.
        distances: Of the candidates: how far they are below the lowest positive, as a share of its score.
        samples: Rows to read.
        seconds: How long it took.
    """

    data: str
    digest: str
    model: str
    settings: Mapping[str, Any]
    rows: int
    passages: int
    asked: int
    given: int
    found: int
    sources: Mapping[str, int]
    short: int
    empty: int
    doubtful: int
    without_scores: int
    left_out: Mapping[Reason, int]
    candidates: int
    positives: Histogram
    negatives: Histogram
    distances: Histogram
    samples: Sequence[Sample]
    seconds: float

    @property
    def margins(self) -> dict[float, float]:
        """What part of the candidates some relative margins would leave out."""
        return {margin: self.distances.share_below(margin) for margin in MARGINS}

    def in_words(self) -> str:
        """Returns the report in sentences, in lines of at most 100 characters, and a table of `margins`."""
        rows = [(_percent(margin, 0), _percent(share)) for margin, share in self.margins.items()]
        heads = ("relative margin", "leaves out of the candidates")
        table = "\n".join(
            f"{head:<{len(heads[1])}}" + "".join(f"{cell:>9}" for cell in cells)
            for head, cells in zip(heads, zip(*rows, strict=True), strict=True)
        )
        sentences = (textwrap.fill(part, _WIDTH, break_on_hyphens=False) for part in self.sentences())
        return "\n\n".join([*sentences, table])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return dataclasses.asdict(self)

    def to_markdown(self) -> str:
        """Returns the report with tables, a histogram and the rows to read, as Markdown."""
        parts = [f"# Hard negatives of {escaped(self.data)}", *map(escaped, self.sentences())]
        lines = [f"| {REASONS[reason]} | {self.left_out.get(reason, 0):,} |" for reason in REASONS]
        parts.append("\n".join(["| left out | passages |", "|---|---|", *lines]))
        lines = [f"| {_percent(margin, 0)} | {_percent(share)} |" for margin, share in self.margins.items()]
        parts.append("\n".join(["| relative margin | leaves out of the candidates |", "|---|---|", *lines]))
        parts.append(self._histogram())
        parts.append("## Rows to read")
        parts += [_sample_in_markdown(sample) for sample in self.samples]
        return "\n\n".join(parts) + "\n"

    def sentences(self) -> Iterator[str]:
        """Yields what was found and left out, in sentences that belong together."""
        first, last = self.settings["ranks"]
        yield (
            f"{self.data}: {counted(self.rows, 'row')}, {counted(self.passages, 'passage')} to choose from, with "
            f"{self.model}, in {self.seconds:,.1f} s. {self.found:,} of {counted(self.asked, 'negative')} that rows "
            f"lacked were found"
            + (f" ({self.sources.get('words', 0):,} by words)" if self.settings["lexical"] else "")
            + f"; {counted(self.given, 'negative')} were there before."
        )
        if self.short:
            rest = f", {self.empty:,} of them none" if self.empty else ""
            yield (
                f"{counted(self.short, 'row')} {_has(self.short)} fewer negatives than {self.settings['count']}{rest}"
                ". More passages, more ranks or a smaller margin give more."
            )
        if self.doubtful:
            yield (
                f"In {counted(self.doubtful, 'row')}, more than half of the candidates are too near to the query: the "
                "positive may be wrong, or many passages answer the query. Read such rows."
            )
        if self.without_scores:
            yield (
                f"{counted(self.without_scores, 'row')} lost the scores of a teacher, since new negatives have none. "
                "Score the data again."
            )
        rules = [
            f"{self.left_out[reason]:,} × {words}" for reason, words in REASONS.items() if self.left_out.get(reason)
        ]
        yield f"Left out at the ranks to {last}: {'; '.join(rules) or 'nothing'}."
        if self.positives.total and self.negatives.total:
            yield f"Scores: positives {_spread(self.positives)}; negatives {_spread(self.negatives)}."
        if self.candidates:
            middle, distance = self.positives.quantiles[50], self.distances.quantiles[50]
            margin = self.settings["relative_margin"]
            taken = f"The margin of {_percent(margin)} is {margin * abs(middle):.3f}." if margin is not None else ""
            yield (
                f"The {counted(self.candidates, 'passage')} at the ranks {first} to {last} are in the median "
                f"{_percent(distance)} below the lowest positive, which is {distance * abs(middle):.3f} for a positive "
                f"of {middle:.3f}. {taken}"
            ).strip()

    def _histogram(self) -> str:
        """Returns a table of shares: the scores of positives beside those of negatives."""
        bins = [*self.positives.counts, *self.negatives.counts]
        if not bins:
            return ""
        width = -(-(max(bins) - min(bins) + 1) // _SCORE_ROWS)
        lines = ["| score | positives | negatives | |", "|---|---|---|---|"]
        for start in range(min(bins) // width * width, max(bins) + 1, width):
            shares = [
                sum(one.counts.get(number, 0) for number in range(start, start + width)) / max(one.total, 1)
                for one in (self.positives, self.negatives)
            ]
            bars = "".join(mark * round(share * _BAR) for mark, share in zip("█░", shares, strict=True))
            lines.append(f"| {start * SCORE_STEP:.2f} | {_percent(shares[0])} | {_percent(shares[1])} | {bars} |")
        return "\n".join(lines)


def make_report(
    data: TrainingData,
    pool: Pool,
    results: Sequence[RowResult],
    settings: MiningSettings,
    model: str,
    seconds: float,
) -> MiningReport:
    """Sums up the results of all rows."""
    totals = [len(result.given) + len(result.negatives) for result in results]
    left_out: Counter[Reason] = Counter()
    distances: Counter[int] = Counter()
    for result in results:
        left_out.update(result.left_out)
        distances.update(result.distances)
    negatives = [one for result in results for one in result.negatives]
    return MiningReport(
        data=data.name,
        digest=data.digest,
        model=model,
        settings=dataclasses.asdict(settings),
        rows=len(results),
        passages=pool.candidates,
        asked=sum(max(0, settings.count - len(result.given)) for result in results),
        given=sum(len(result.given) for result in results),
        found=len(negatives),
        sources=dict(Counter(one.source for one in negatives)),
        short=sum(total < settings.count for total in totals),
        empty=totals.count(0),
        doubtful=sum(map(_is_doubtful, results)),
        without_scores=sum(
            bool(result.negatives) and (row.pos_scores or row.neg_scores) is not None
            for row, result in zip(data.rows, results, strict=True)
        ),
        left_out={reason: left_out[reason] for reason in REASONS if left_out[reason]},
        candidates=sum(result.candidates for result in results),
        positives=Histogram.of([score for result in results for score in result.positives]),
        negatives=Histogram.of([one.score for one in negatives]),
        distances=Histogram.of_bins(distances, DISTANCE_STEP),
        samples=[_sample(data, pool, result) for result in _chosen(results)],
        seconds=seconds,
    )


def _is_doubtful(result: RowResult) -> bool:
    return result.left_out.get("margin", 0) > result.candidates / 2


def _chosen(results: Sequence[RowResult]) -> list[RowResult]:
    """Returns rows from all over the data, and some doubtful ones."""
    spread = {len(results) * part // _SAMPLES: None for part in range(_SAMPLES)}
    doubtful = [number for number, result in enumerate(results) if _is_doubtful(result)]
    return [results[number] for number in dict.fromkeys([*spread, *doubtful[:_DOUBTFUL_SAMPLES]])]


def _sample(data: TrainingData, pool: Pool, result: RowResult) -> Sample:
    row = data.rows[result.row]
    return Sample(
        row=row.id,
        query=row.query,
        positives=list(zip(row.pos, result.positives, strict=True)),
        given=list(zip(row.neg, result.given, strict=True)),
        negatives=[(pool.texts[one.place], one.score, one.rank, one.source) for one in result.negatives],
        left_out=[(pool.texts[one.place], one.score, one.reason) for one in result.nearest],
        is_doubtful=_is_doubtful(result),
    )


def _sample_in_markdown(sample: Sample) -> str:
    lines = [
        f"**{escaped(sample.query)}** (row {escaped(sample.row)}{', doubtful' if sample.is_doubtful else ''})",
        "",
    ]
    lines += [f"- {score:.3f} positive: {shown_in_markdown(text)}" for text, score in sample.positives]
    lines += [f"- {score:.3f} negative, given: {shown_in_markdown(text)}" for text, score in sample.given]
    lines += [
        f"- {score:.3f} negative, rank {rank}{' by words' if source == 'words' else ''}: {shown_in_markdown(text)}"
        for text, score, rank, source in sample.negatives
    ]
    lines += [
        f"- {score:.3f} left out, {REASONS[reason]}: {shown_in_markdown(text)}"
        for text, score, reason in sample.left_out
    ]
    return "\n".join(lines)


def _spread(histogram: Histogram) -> str:
    low, middle, high = (histogram.quantiles[percent] for percent in (5, 50, 95))
    return f"{middle:.3f} in the median, nine of ten from {low:.3f} to {high:.3f}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _has(count: int) -> str:
    return "has" if count == 1 else "have"
