"""Runs tasks of MTEB one after the other, and collects their scores."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bge_integrations.backend.machine.versions import version_of
from bge_integrations.catalogue import find_model
from bge_integrations.catalogue.scores import BENCHMARKS, find_benchmark, published_scores
from bge_integrations.errors import BgeError, EvaluationDataError, SettingsError
from bge_integrations.evaluation.mteb.library import import_mteb, quiet
from bge_integrations.evaluation.mteb.local import LocalTask, fill_task, find_local_tasks
from bge_integrations.evaluation.mteb.meta import with_data
from bge_integrations.evaluation.mteb.report import MtebReport, TaskScore

__all__ = ["Work", "choose_tasks", "run_mteb"]

_VERSIONS = ("bge-integrations", "mteb", "openvino", "torch", "sentence-transformers", "scikit-learn", "numpy")
_CARD_SPLITS = {"MultilingualSentiment": ["validation"]}
"""Splits of BAAI's model cards where mteb's benchmark has more."""
_CARD_METRICS = {"PairClassification": "cosine_ap"}
"""Metrics of BAAI's model cards where mteb has another main score: the best of several similarities, and for Chinese
tasks of their accuracies."""
_BATCH = 256
"""Texts that mteb hands over together. The engine makes its own batches of all of them."""


Work = list[tuple[Any, list[tuple[Any, LocalTask | None]]]]
"""Each task with the tasks to run for it: itself, or the parts of an aggregate."""


def run_mteb(
    model: Any,  # noqa: ANN401 - one of the wrappers
    *,
    benchmark: str | None = None,
    tasks: Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    results: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] | None = None,
) -> MtebReport:
    """Runs tasks, and sets the scores beside the published ones.

    mteb computes every score. A task that has been run with the same model, settings and data is not run again, so an
    interrupted run goes on where it stopped.

    The score of a task is the one in BAAI's model cards. It is mteb's main score, with these exceptions: the average
    precision of the cosine for pair classification, and only the split `validation` for MultilingualSentiment.

    Args:
        model: What `as_mteb_model`, `as_mteb_reranker` or `as_mteb_search` returned.
        benchmark: "MTEB(eng, v1)", "MTEB(cmn, v1)", or another name of one of them. `None`: both, if `tasks` or `data`
            choose the tasks; else the Chinese one for a Chinese model, and the English one for others.
        tasks: mteb's names of the tasks. `None`: all tasks of the benchmark; with `data`, those that it has.
        data: Folder with local data; see the module `local` for its shape. `None`: data from the hub.
        results: Folder for results. `None`: mteb's own cache.
        tell: Gets a line of text before each task.

    Raises:
        SettingsError: A benchmark or a task is unknown, or the benchmark does not have the task.
        EvaluationDataError: There is no local data for a task, local data is wrong, or the hub can't be reached.
        BgeError: Encoding fails.
    """
    mteb = import_mteb()
    tell = tell or (lambda _: None)
    work = choose_tasks(_model_name(model), benchmark=benchmark, tasks=tasks, data=data)
    with quiet():
        runner = _Runner(mteb, model, mteb.ResultCache(None if results is None else Path(results).expanduser()))
        held = model.mteb_model_meta
        known = published_scores(_model_name(model))
        scores: dict[str, TaskScore] = {}
        for number, (task, parts) in enumerate(work, start=1):
            name = task.metadata.name
            tell(f"{name} ({number} of {len(work)})")
            done = [runner.run(part, local) for part, local in parts]
            result = done[0].result
            if hasattr(task, "combine_task_results"):
                result = task.combine_task_results([one.result for one in done])
            scores[name] = _score(task, result, done, known.get(name))
    return MtebReport(
        model=held.name,
        settings=dict(held.experiment_kwargs),
        versions={package: version for package in _VERSIONS if (version := version_of(package))},
        tasks=scores,
    )


@dataclass(frozen=True)
class _Done:
    result: Any
    is_resumed: bool
    data: str | None


@dataclass(frozen=True)
class _Runner:
    """Runs one task at a time."""

    mteb: Any
    model: Any
    cache: Any

    def run(self, task: Any, local: LocalTask | None) -> _Done:  # noqa: ANN401 - mteb's AbsTask
        """Runs a task, or takes its result from an earlier run."""
        name, model, digest = task.metadata.name, copy.copy(self.model), None
        if local is not None:
            digest = fill_task(task, local)
            model.mteb_model_meta = with_data(model.mteb_model_meta, digest)
        before = self.cache.load_task_result(name, model.mteb_model_meta)
        # mteb takes a complete result whatever its data were.
        is_current = before is not None and before.dataset_revision == task.metadata.revision
        is_resumed = is_current and not before.get_missing_evaluations(task)
        try:
            if not is_resumed and local is None:
                _load(task)
            found = self.mteb.evaluate(
                model,
                task,
                cache=self.cache,
                co2_tracker=False,
                encode_kwargs={"batch_size": _BATCH, "show_progress_bar": False},
                overwrite_strategy="only-missing" if is_current else "always",
                show_progress_bar=False,
            )
        except BgeError:  # some are a TypeError too
            raise
        except (TypeError, OSError) as error:
            raise EvaluationDataError(f"{name} can't be run with this model: {error}") from error
        finally:
            if task.data_loaded:
                task.unload_data()
        return _Done(found.task_results[0], is_resumed, digest)


def _load(task: Any) -> None:  # noqa: ANN401 - mteb's AbsTask
    try:
        task.load_data()
    except BgeError:
        raise
    except Exception as error:
        raise EvaluationDataError(
            f"{task.metadata.name}: its data can't be loaded from the hub ({type(error).__name__}: {error}). Finished "
            "tasks are kept. Try again with a connection, or give a folder with local data as data=…."
        ) from error


def choose_tasks(
    model: str,
    *,
    benchmark: str | None = None,
    tasks: Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
) -> Work:
    """Returns the tasks that `run_mteb` runs with equal arguments. It loads no model and no data.

    Raises:
        SettingsError: As for `run_mteb`.
        EvaluationDataError: There is no local data for a task.
    """
    mteb = import_mteb()
    with quiet():
        chosen = _chosen(mteb, _benchmarks(model, benchmark, is_open=tasks is None and data is None), benchmark, tasks)
        return _official(chosen) if data is None else _local(chosen, data, is_strict=tasks is not None)


def _benchmarks(model: str, benchmark: str | None, *, is_open: bool) -> list[str]:
    if benchmark is not None:
        return [find_benchmark(benchmark).name]
    if not is_open:
        return list(BENCHMARKS)
    spec = find_model(model)
    return ["MTEB(cmn, v1)" if spec and spec.languages == ("zh",) else "MTEB(eng, v1)"]


def _chosen(mteb: Any, names: Sequence[str], benchmark: str | None, tasks: Sequence[str] | None) -> list[Any]:  # noqa: ANN401
    """Returns copies of mteb's tasks, with the subsets and splits of the benchmarks."""
    known = {task.metadata.name: copy.copy(task) for name in names for task in mteb.get_benchmark(name).tasks}
    for name, splits in _CARD_SPLITS.items():
        if name in known:
            known[name].filter_eval_splits(splits)
    if tasks is None:
        return list(known.values())
    chosen = []
    for name in dict.fromkeys(tasks):
        if name not in known and benchmark is not None:
            raise SettingsError(f"tasks={name!r} is not in {names[0]}. Its tasks are {', '.join(sorted(known))}.")
        chosen.append(known[name] if name in known else _other_task(mteb, name))
    if not chosen:
        raise SettingsError("tasks is empty; name at least one, or leave it out for all.")
    return chosen


def _other_task(mteb: Any, name: str) -> Any:  # noqa: ANN401 - the module, and its AbsTask
    try:
        return mteb.get_task(name)
    except KeyError as error:
        raise SettingsError(
            f"tasks={name!r} is no task of mteb: {str(error.args[0]).removeprefix('KeyError: ')}"
        ) from error


def _parts(task: Any) -> list[Any]:  # noqa: ANN401 - mteb's AbsTask
    return [copy.copy(part) for part in task.tasks] if hasattr(task, "combine_task_results") else [task]


def _official(chosen: Iterable[Any]) -> Work:
    return [(task, [(part, None) for part in _parts(task)]) for task in chosen]


def _local(chosen: Sequence[Any], data: str | os.PathLike[str], *, is_strict: bool) -> Work:
    work: Work = []
    for task in chosen:
        parts = _parts(task)
        found = find_local_tasks(data, parts)
        lacking = [part.metadata.name for part in parts if part.metadata.name not in found]
        if not lacking:
            work.append((task, [(part, found[part.metadata.name]) for part in parts]))
        elif is_strict:
            raise EvaluationDataError(
                f"{os.fspath(data)} has no folder {lacking[0]}, which {task.metadata.name} needs. Add it, or leave the "
                "task out."
            )
    if not work:
        raise EvaluationDataError(
            f"{os.fspath(data)} has no folder with the name of a task, such as STSBenchmark. Give a folder with one "
            "folder a task."
        )
    return work


def _score(task: Any, result: Any, done: Sequence[_Done], published: float | None) -> TaskScore:  # noqa: ANN401
    kind = task.metadata.type
    key = _CARD_METRICS.get(kind, "main_score")
    splits = [split for split in task.eval_splits if split in result.scores]
    found = [entry[key] for split in splits for entry in result.scores[split]]
    return TaskScore(
        task=task.metadata.name,
        type=kind,
        metric=task.metadata.main_score if key == "main_score" else key,
        split=", ".join(splits),
        main_score=100 * statistics.fmean(found),
        published=published,
        seconds=result.evaluation_time,
        is_resumed=all(one.is_resumed for one in done),
        data=", ".join(one.data for one in done if one.data) or None,
        scores=_plain(result.scores),
    )


def _plain(scores: Mapping[str, Iterable[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    return {split: [dict(entry) for entry in entries] for split, entries in scores.items()}


def _model_name(model: Any) -> str:  # noqa: ANN401 - one of the wrappers
    held = next(getattr(model, name) for name in ("encoder", "reranker", "m3") if hasattr(model, name))
    return str(held.settings.model_name)
