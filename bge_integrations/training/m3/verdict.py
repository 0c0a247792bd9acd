"""Judges a fine-tuned bge-m3: each output alone, and all together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.evaluation.comparison import Comparison, compare
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.m3_search import search_with_each
from bge_integrations.evaluation.report import RetrievalReport
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.evaluation.searchers import Output
from bge_integrations.evaluation.statistics import holm
from bge_integrations.m3 import BgeM3Encoder, M3Weights
from bge_integrations.settings import EncoderSettings, ModelOptions, ModelSettings
from bge_integrations.training.verdict import Verdict, by_group, plain, probe

__all__ = ["M3Verdict", "judge_m3"]

_METRIC = "ndcg@10"
_ALL: Output = "mixed"
_NAMES = {_ALL: "all outputs"}
_WEIGHTS: dict[Output, M3Weights] = {
    _ALL: M3Weights(),
    "dense": M3Weights(1, 0, 0),
    "sparse": M3Weights(0, 1, 0),
    "colbert": M3Weights(0, 0, 1),
}
_DEPTH = 100
_SINGLE: tuple[Output, ...] = tuple(output for output in get_args(Output) if output != _ALL)


@dataclass(frozen=True)
class M3Verdict(Verdict):
    """What a training of bge-m3 changed. `before`, `after` and `comparison` are those of all outputs together.

    A start without heads for lexical weights and token vectors is compared by its dense vectors alone.

    Attributes:
        outputs: The comparison by output: "dense", "sparse" and "colbert", with p values adjusted by Holm.
    """

    outputs: Mapping[str, Comparison] = field(default_factory=dict)

    def in_words(self) -> str:
        """Says whether the model is better, by all outputs and by each."""
        return " ".join([super().in_words(), *(one.in_words() for one in self.outputs.values())])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return {**super().to_dict(), "outputs": {name: plain(one) for name, one in self.outputs.items()}}


def judge_m3(
    start: str | os.PathLike[str] | EncoderSettings,
    tuned: str | os.PathLike[str],
    data: RetrievalData,
    *,
    general: RetrievalData | None = None,
    texts: Sequence[str] | None = None,
) -> M3Verdict:
    """Compares a trained bge-m3 with its start.

    Each model encodes each text once. All queries are compared with all documents token by token, which takes long for
    a large corpus. "All together" is the weighted mean of `BgeM3Encoder.score`.

    Raises:
        BgeError: A model can't be loaded.
    """
    settings = EncoderSettings.of(start)
    trained = EncoderSettings(model_name=os.fspath(tuned), device=settings.device)
    with _opened(settings) as before, _opened(trained) as after:
        reports = _reports(before, after, data, (_ALL, *_SINGLE))
        of_general = None if general is None else _reports(before, after, general, (_ALL,))[_ALL]
        found = probe(_dense(before), _dense(after), texts)
    compared = {output: compare(*pair, _METRIC) for output, pair in reports.items()}
    main = compared.pop(_ALL)
    adjusted = holm([one.p for one in compared.values()])
    return M3Verdict(
        *reports[_ALL],
        main,
        found,
        general=None if of_general is None else compare(*of_general, _METRIC),
        groups={
            **by_group(*reports[_ALL]),
            **{f"{output} alone": (single.before, single.after) for output, single in compared.items()},
        },
        outputs={name: replace(one, p=p) for (name, one), p in zip(compared.items(), adjusted, strict=True)},
    )


@contextmanager
def _opened(settings: EncoderSettings) -> Iterator[BgeM3Encoder | BgeEncoder]:
    """Gives a model with all outputs that it has."""
    quiet = settings.replace(on_truncation="ignore")
    options = {name: getattr(quiet, name) for name in ModelOptions.__annotations__}
    try:
        encoder: BgeM3Encoder | BgeEncoder = BgeM3Encoder.from_settings(
            ModelSettings(model_name=quiet.model_name, **options)
        )
    except UnsupportedModelError:
        encoder = BgeEncoder.from_settings(quiet)
    with encoder:
        yield encoder


def _dense(encoder: BgeM3Encoder | BgeEncoder) -> BgeEncoder:
    return encoder.dense_encoder() if isinstance(encoder, BgeM3Encoder) else encoder


def _reports(
    before: BgeM3Encoder | BgeEncoder, after: BgeM3Encoder | BgeEncoder, data: RetrievalData, outputs: Sequence[Output]
) -> dict[Output, tuple[RetrievalReport, RetrievalReport]]:
    """Returns reports of both models by output, where both have it. Of a start without heads, dense stands for all."""
    whole = isinstance(before, BgeM3Encoder)
    kept = [output for output in outputs if whole or output in ("dense", _ALL)]
    one = _of_model("the start", before, data, kept)
    other = _of_model("the trained model", after, data, kept)
    return {output: (first, second) for output, first, second in zip(kept, one, other, strict=True)}


def _of_model(
    who: str, encoder: BgeM3Encoder | BgeEncoder, data: RetrievalData, outputs: Sequence[Output]
) -> list[RetrievalReport]:
    """Returns a report for each output, and of a model without heads that of its dense vectors.

    Each text is encoded once for all outputs.
    """
    if isinstance(encoder, BgeEncoder):
        return [evaluate_retrieval(encoder, data, depth=_DEPTH, name=f"{who} (dense)")] * len(outputs)
    weights = [_WEIGHTS[output] for output in outputs]
    runs = search_with_each(
        encoder.encode_queries, encoder.encode_documents, data, _DEPTH, weights, ignore_identical_ids=False
    )
    return [
        evaluate_retrieval(_Known(run), data, depth=_DEPTH, output=output, name=f"{who} ({_NAMES.get(output, output)})")
        for output, run in zip(outputs, runs, strict=True)
    ]


@dataclass(frozen=True)
class _Known:
    """Documents that were found already, as a searcher."""

    run: dict[str, dict[str, float]]

    def search(self, *_: object, **__: object) -> dict[str, dict[str, float]]:
        """See `searchers.Searcher.search`."""
        return self.run
