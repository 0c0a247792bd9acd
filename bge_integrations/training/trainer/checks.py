"""Checks of rows and settings before training: what can't be trained on, and what people often get wrong."""

from __future__ import annotations

from collections.abc import Sequence

from bge_integrations.errors import SettingsError
from bge_integrations.training.rows.data import TrainingData, TrainingRow
from bge_integrations.training.settings import EmbedderTraining, RerankerTraining

__all__ = ["advice", "reranker_advice", "row_groups"]

_FEW_ROWS = 1000
_FLAT = 0.5
"""Temperature from which InfoNCE hardly tells passages apart: cosines differ by less than 1."""

_LOW_FOR_LORA = 5e-5


def row_groups(rows: Sequence[TrainingRow], *, same_source: bool) -> dict[tuple[str, str], list[int]]:
    """Returns the row numbers of each group by source and type. A batch has rows of one group.

    Args:
        rows: The rows.
        same_source: As in `EmbedderTraining`; without it, all rows are one group.
    """
    if not same_source:
        return {("", ""): list(range(len(rows)))}
    groups: dict[tuple[str, str], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.source, row.type), []).append(place)
    return groups


def advice(data: TrainingData, chosen: EmbedderTraining, *, processes: int = 1) -> list[str]:
    """Returns warnings about data and settings, each with a remedy.

    Raises:
        SettingsError: There is nothing to learn: fewer than two rows, or no row has a negative. Or scores are missing.
    """
    if len(data.rows) < 2:
        raise SettingsError(
            f"{data.name} has {len(data.rows)} row; a batch needs at least 2, since each gives the others negatives."
        )
    _require_teacher(data, chosen)
    found = _few_rows(data)
    if chosen.temperature is not None and chosen.temperature >= _FLAT:
        found.append(
            f"temperature={chosen.temperature} makes the loss flat; leave it out, or take 0.01 or 0.02 as BGE models "
            "were trained with."
        )
    if chosen.lora is not None and chosen.learning_rate < _LOW_FOR_LORA:
        found.append(
            f"learning_rate={chosen.learning_rate:g} is low for a LoRA adapter, which begins with no change at all; "
            "1e-4 is usual."
        )
    hopeless = _without_negatives(data.rows, chosen, processes)
    if hopeless:
        found.append(_about(hopeless, data, _why_without(data.rows[hopeless[0]], chosen)))
    return [*found, *_few_negatives(data.rows, chosen)]


def reranker_advice(data: TrainingData, chosen: RerankerTraining) -> list[str]:
    """Returns warnings about data and settings for a reranker, each with a remedy.

    Raises:
        SettingsError: There is nothing to learn, since no row has a negative. Or scores are missing.
    """
    _require_teacher(data, chosen)
    found = _few_rows(data)
    hopeless = _without_others(data.rows, chosen)
    if hopeless:
        where = _place_of(data, hopeless[0])
        reason = (
            "passages of other rows are not drawn (easy_negatives=0)"
            if not chosen.easy_negatives
            else "no passage of another row of their file can be one"
        )
        found.append(_about(hopeless, data, f" ({where} is the first): they have none of their own, and {reason}."))
    without_hard = sum(not row.neg for row in data.rows)
    if 2 * without_hard > len(data.rows) and chosen.easy_negatives:
        found.append(
            f"{without_hard} of {len(data.rows)} rows have no negatives of their own. Passages of other rows are easy "
            "to tell from the positive, but a reranker orders passages that an embedder finds: add hard ones with "
            "mine_hard_negatives, or `bge mine`."
        )
    elif not chosen.easy_negatives:
        found.append(
            "easy_negatives=0 trains on hard negatives only. Such rerankers can rank easy passages wrongly, or give "
            "all passages one score; leave it out to draw a quarter of the negatives from other rows."
        )
    return found


def _without_others(rows: Sequence[TrainingRow], chosen: RerankerTraining) -> list[int]:
    """Returns the rows that have no negative, neither of their own nor of other rows."""
    answers = _answers(rows)
    pools: dict[str, set[str]] = {}
    for row in rows:
        pools.setdefault(row.source, set()).update(row.pos, row.neg)
    return [
        place
        for place, row in enumerate(rows)
        if not row.neg and (not chosen.easy_negatives or row.no_in_batch_neg or pools[row.source] <= answers[row.query])
    ]


def _answers(rows: Sequence[TrainingRow]) -> dict[str, set[str]]:
    """Returns the positives of each query, over all its rows."""
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.query, set()).update(row.pos)
    return found


def _place_of(data: TrainingData, row: int) -> str:
    return data.places[row] if data.places else f"row {row} of {data.name}"


def _few_rows(data: TrainingData) -> list[str]:
    if len(data.rows) >= _FEW_ROWS:
        return []
    return [
        f"{data.name} has {len(data.rows)} rows; fine-tuning needs about a thousand, and some thousand are better. "
        "Add rows."
    ]


def _require_teacher(data: TrainingData, chosen: EmbedderTraining | RerankerTraining) -> None:
    """Checks that the scores are there that settings ask for."""
    if chosen.distillation is not None:
        _require_scores(data, chosen)
    if chosen.teacher_margin is not None and not any(row.neg_scores for row in data.rows):
        raise SettingsError(
            f"teacher_margin={chosen.teacher_margin} needs scores, and no row of {data.name} has neg_scores. "
            "Make them with score_with_teacher, or leave teacher_margin out."
        )


def _require_scores(data: TrainingData, chosen: EmbedderTraining | RerankerTraining) -> None:
    """Checks that a teacher's scores are there for each row that has something to compare."""
    asked = f"distillation={chosen.distillation!r}"
    if not chosen.negatives or not any(row.neg for row in data.rows):
        reason = "negatives=0" if not chosen.negatives else f"no row of {data.name} has any"
        raise SettingsError(
            f"{asked} compares a positive with negatives of its row, but {reason}. Add negatives with "
            "mine_hard_negatives and scores with score_with_teacher, or leave distillation out."
        )
    for name in ("pos_scores", "neg_scores"):
        lacking = [place for place, row in enumerate(data.rows) if row.neg and getattr(row, name) is None]
        if lacking:
            where = _place_of(data, lacking[0])
            others = f", and {len(lacking) - 1} more rows lack them" if len(lacking) > 1 else ""
            raise SettingsError(
                f"{asked} needs scores, but {where} has negatives and no {name}{others}. Make both with "
                "score_with_teacher."
            )


def _without_negatives(rows: Sequence[TrainingRow], chosen: EmbedderTraining, processes: int) -> list[int]:
    """Returns the rows that have no negative in any batch."""
    answers = _answers(rows)
    is_single = chosen.batch_size * processes == 1
    found = []
    for group in row_groups(rows, same_source=chosen.same_source).values():
        passages = {text for place in group for text in rows[place].pos}
        if chosen.negatives:
            passages.update(text for place in group for text in rows[place].neg)
        for place in group:
            row = rows[place]
            if row.neg and chosen.negatives:
                continue
            own = answers[row.query]
            if row.no_in_batch_neg or is_single or (len(passages) <= len(own) and passages <= own):
                found.append(place)
    return found


def _about(hopeless: Sequence[int], data: TrainingData, reason: str) -> str:
    """Returns the warning about rows without negatives.

    Raises:
        SettingsError: These are all rows.
    """
    said = f"{len(hopeless)} of {len(data.rows)} rows of {data.name} have no negatives{reason}"
    remedy = "Add negatives with mine_hard_negatives, or `bge mine`"
    if len(hopeless) == len(data.rows):
        raise SettingsError(f"{said} The loss would always be 0. {remedy}; or change the setting.")
    return f"{said} Their loss is always 0. {remedy}, or leave these rows out."


def _why_without(row: TrainingRow, chosen: EmbedderTraining) -> str:
    own, others = (
        "negatives of their own are not drawn (negatives=0)" if row.neg else "they have none of their own",
        "a batch has one row (batch_size=1)"
        if chosen.batch_size == 1
        else "passages of other rows do not count (no_in_batch_neg)"
        if row.no_in_batch_neg
        else "all passages of the other rows answer their query",
    )
    return f": {own}, and {others}."


def _few_negatives(rows: Sequence[TrainingRow], chosen: EmbedderTraining) -> list[str]:
    if not chosen.negatives:
        return []  # passages of other rows only, as asked for
    counted = [row for row in rows if row.type != "only_1neg"]
    most = max((len(row.neg) for row in counted), default=0)
    if chosen.negatives == 1 < most:
        return [
            f"negatives=1 draws one negative of a row, though rows have up to {most}. More of them often train better: "
            "leave it out to draw up to 7."
        ]
    few = sum(len(row.neg) <= 1 for row in counted)
    if 2 * few <= len(rows):
        return []
    return [
        f"{few} of {len(rows)} rows have one negative or none. Passages of other rows are negatives too, but most of "
        "them are easy: add several hard ones to each row with mine_hard_negatives, or `bge mine`."
    ]
