"""Makes one model of several with the same shape: the weighted mean of their weights.

A tuned model forgets some of what it could. Its mean with the model that it was tuned from often keeps most of both:
LM-Cocktail, https://arxiv.org/abs/2311.13534.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bge_integrations.backend.checkpoint.checks import locate_requested
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import SettingsError
from bge_integrations.evaluation.data import RetrievalData
from bge_integrations.evaluation.retrieval import evaluate_retrieval
from bge_integrations.evaluation.searchers import Output
from bge_integrations.m3 import BgeM3Encoder
from bge_integrations.settings import EncoderSettings, Purpose
from bge_integrations.training.trainer.saving import RECORD, require_free, set_prompts, write_model, write_record
from bge_integrations.training.trainer.work import base_model, shown_name

if TYPE_CHECKING:
    from bge_integrations.training.trainer.starting import Start

__all__ = ["MergeResult", "best_merge", "merge_models"]

Model = str | os.PathLike[str]

_METRIC = "ndcg@10"
_SUM_TOLERANCE = 1e-6
_CANDIDATE = ".candidate"


@dataclass(frozen=True)
class MergeResult:
    """What `best_merge` found.

    Attributes:
        output: The folder with the best model.
        share: The share of the tuned model in it.
        figures: nDCG@10 on the validation data by share.
    """

    output: Path
    share: float
    figures: dict[float, float]


def merge_models(models: Sequence[Model], weights: Sequence[float], output: str | os.PathLike[str]) -> Path:
    """Writes the weighted mean of models as a folder of sentence-transformers.

    Tensors of whole numbers are those of the first model. The prompts are those of the last one, and so is the record
    of its training, except for its figures, which are not those of the mean. If all models have the heads of bge-m3, so
    has the mean.

    Args:
        models: Folders or hub ids, at least two, with one architecture, pooling and vocabulary.
        weights: A weight of each; their sum is 1.
        output: The folder to make. It must be empty or not there.

    Returns:
        The folder.

    Raises:
        SettingsError: The models differ in more than their weights, the weights are wrong, or the output has content.
        BgeError: A model can't be loaded.
    """
    target = Path(output).expanduser()
    require_free(target)
    _check_weights(models, weights)
    _Mixer(models).write(weights, target)
    return target


def best_merge(
    start: Model,
    tuned: Model,
    shares: Sequence[float],
    validation: RetrievalData,
    output: str | os.PathLike[str],
    *,
    device: str | None = None,
) -> MergeResult:
    """Averages a tuned model with the model that it was tuned from, and writes the best mean.

    Each share of the tuned model is tried, and the tuned model alone. The best one has the highest nDCG@10 on the
    validation data; of equal ones it is that with the smallest share, which is nearest to the start. The validation
    data must not be the data for the final test. Models that are laid out like bge-m3 are compared by the weighted mean
    of their three scores.

    Args:
        start: Folder or hub id.
        tuned: Folder or hub id.
        shares: Shares of the tuned model, from 0 (the start alone) to 1, such as `(0.3, 0.5, 0.7)`.
        validation: Data to choose on.
        output: The folder to make. It must be empty or not there.
        device: Device to evaluate on; `None`: as for `BgeEncoder`.

    Returns:
        The folder, its share, and the figures of all shares.

    Raises:
        SettingsError: The models differ in more than their weights, a share is wrong, or the output has content.
        BgeError: A model can't be loaded.
    """
    target = Path(output).expanduser()
    require_free(target)
    for share in shares:
        if not 0 <= share <= 1:
            raise SettingsError(f"shares has {share}; give numbers from 0 to 1.")
    mixer = _Mixer([start, tuned])
    candidate = target.with_name(f"{target.name}{_CANDIDATE}")
    figures: dict[float, float] = {}
    for share in sorted({*map(float, shares), 1.0}):
        shutil.rmtree(candidate, ignore_errors=True)
        try:
            mixer.write([1 - share, share], candidate)
            kind = BgeM3Encoder if mixer.has_heads else BgeEncoder
            compared: Output = "mixed" if mixer.has_heads else "dense"
            with kind(candidate, device=device, on_truncation="ignore") as encoder:
                report = evaluate_retrieval(encoder, validation, metrics=[_METRIC], depth=10, output=compared)
            figures[share] = report.metrics[_METRIC]
        finally:
            shutil.rmtree(candidate, ignore_errors=True)
    best = max(figures, key=lambda share: (figures[share], -share))
    chosen_on = {
        "data": validation.name,
        "digest": validation.digest,
        _METRIC: {f"{share:g}": figure for share, figure in figures.items()},
    }
    mixer.write([1 - best, best], target, merge_chosen_on=chosen_on)
    return MergeResult(target, best, figures)


class _Mixer:
    """Models that differ only in their weights. They are loaded once for several means."""

    def __init__(self, models: Sequence[Model]) -> None:
        from bge_integrations.training.m3.model import M3Model
        from bge_integrations.training.trainer.starting import open_start

        self._names = [os.fspath(model) for model in models]
        settings = [EncoderSettings(model_name=name, device="cpu") for name in self._names]
        self.has_heads = all(map(_has_heads, settings))
        purpose: Purpose = "m3" if self.has_heads else "vectors"
        self._starts = [open_start(one, purpose=purpose) for one in settings]
        modules = [M3Model(start.model, start.heads) if self.has_heads else start.model for start in self._starts]
        self._last = modules[-1]
        first = _Shape.of(self._starts[0])
        for name, start in zip(self._names[1:], self._starts[1:], strict=True):
            first.require_equal(_Shape.of(start), self._names[0], name)
        # The last model gets the means, so its own weights are copied.
        *others, last = [dict(module.state_dict()) for module in modules]
        self._states = [*others, {name: tensor.clone() for name, tensor in last.items()}]

    def write(self, weights: Sequence[float], output: Path, **facts: object) -> None:
        """Writes a mean, with further facts in its record."""
        last = self._starts[-1]
        self._last.load_state_dict(_mean(self._states, weights))
        if not any(last.model.prompts.values()):
            set_prompts(last.model, last.asked)
        write_model(last.model, output)
        if self.has_heads:
            self._last.write_heads(output)
        write_record(output, {**self._record(weights), **facts})

    def _record(self, weights: Sequence[float]) -> dict[str, Any]:
        """Returns the record of a mean: that of the last model's training, and what was merged."""
        last = self._starts[-1]
        file = Path(self._names[-1]) / RECORD
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for figures in ("verdict", "figures"):
            known.pop(figures, None)
        names = map(shown_name, self._names)
        return {
            "base_model": base_model(last),
            "started_from": shown_name(self._names[-1]),
            **known,
            "query_instruction": last.instruction,
            "merged": [{"model": name, "weight": weight} for name, weight in zip(names, weights, strict=True)],
        }


def _has_heads(settings: EncoderSettings) -> bool:
    return not locate_requested(LoadRequest.from_settings(settings)).lacking_m3_files


@dataclass(frozen=True)
class _Shape:
    """What models must have in common, for a mean to make sense."""

    modules: list[str]
    architecture: str
    tensors: dict[str, tuple[int, ...]]
    vocabulary: dict[str, int]

    @classmethod
    def of(cls, start: Start) -> _Shape:
        model = start.model
        return cls(
            modules=[_described(module) for module in model],
            architecture=str(model[0].auto_model.config.model_type),
            tensors={name: tuple(value.shape) for name, value in {**model.state_dict(), **start.heads}.items()},
            vocabulary=model.tokenizer.get_vocab(),
        )

    def require_equal(self, other: _Shape, name: str, other_name: str) -> None:
        """Raises `SettingsError` if a mean makes no sense."""
        both = f"{shown_name(name)} and {shown_name(other_name)} can't be merged"
        if self.architecture != other.architecture:
            raise SettingsError(f"{both}: their architectures are {self.architecture} and {other.architecture}.")
        if self.modules != other.modules:
            raise SettingsError(f"{both}: their modules are {self.modules} and {other.modules}.")
        for tensor in dict.fromkeys([*self.tensors, *other.tensors]):
            shapes = [shapes.get(tensor) for shapes in (self.tensors, other.tensors)]
            if None in shapes:
                raise SettingsError(f"{both}: only one of them has the tensor {tensor}.")
            if shapes[0] != shapes[1]:
                raise SettingsError(f"{both}: the shapes of {tensor} are {shapes[0]} and {shapes[1]}.")
        if self.vocabulary != other.vocabulary:
            raise SettingsError(f"{both}: their vocabularies differ.")


def _described(module: Any) -> str:  # noqa: ANN401 - a module of sentence-transformers
    pooling = getattr(module, "pooling_mode", None)
    if pooling is None:
        return type(module).__name__
    modes = [pooling] if isinstance(pooling, str) else pooling
    return f"{type(module).__name__} ({', '.join(modes)})"


def _mean(states: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> dict[str, Any]:
    mean = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            mean[name] = first
            continue
        parts = [weight * state[name].double() for state, weight in zip(states, weights, strict=True)]
        mean[name] = sum(parts[1:], parts[0]).to(first.dtype)
    return mean


def _check_weights(models: Sequence[Model], weights: Sequence[float]) -> None:
    if isinstance(models, (str, os.PathLike)) or len(models) < 2:
        raise SettingsError(f"models={models!r}: give a list of at least two.")
    if len(models) != len(weights):
        raise SettingsError(f"There are {len(models)} models and {len(weights)} weights; give a weight for each model.")
    total = sum(weights)
    if not math.isfinite(total) or abs(total - 1) > _SUM_TOLERANCE:
        raise SettingsError(f"weights={list(weights)} has the sum {total:g}; it must be 1.")
