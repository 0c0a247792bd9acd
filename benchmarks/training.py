"""Measures how fast fine-tuning is and how much memory it takes, beside sentence-transformers and FlagEmbedding.

All train the same model, an embedder with CLS pooling or a reranker, on the same batches, with the same loss, limits of
length and precision, each in a process of its own, in turns. --check shows that they compute the same loss. Prints
tables, and saves everything as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.command import WORKDIR, add_workdir, names, parser_of, save
from benchmarks.isolation import isolate
from benchmarks.noise import Reference, judge
from benchmarks.shapes import SHAPES, shape_of
from benchmarks.stats import interleaved, percentile, ratio_of_medians, spread
from benchmarks.table_parts import make_table, print_left_out, ratio_cell
from benchmarks.trainers import BASELINE, Job, Trained, choose, contenders_of, run
from benchmarks.training_inputs import MINILM, classifier_folder, count_tokens, make_rows, model_folder

MOST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Between first losses without dropout, in parts of the loss, beyond which two trainers compute something else."""

_WIDTH = 150


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        model: See `model_folder`.
        contenders: Names of those that take part.
        cells: What each trains. Their model and rows are put in when these are made.
        steps: Steps that count.
        warm_up: Steps before them.
        rounds: How often each contender trains.
        workdir: Where models are kept for the next run.
    """

    model: str
    contenders: Sequence[str]
    cells: Sequence[Job]
    steps: int = 5
    warm_up: int = 2
    rounds: int = 3
    workdir: Path = WORKDIR


@dataclass(frozen=True)
class _Cell:
    """What all contenders train in turns.

    Attributes:
        job: The training.
        tokens: Real tokens of each step, those of warm-up too.
        texts: What is to be known of the lengths.
    """

    job: Job
    tokens: list[int]
    texts: dict[str, float]


def measure(plan: Plan, console: Console) -> dict[str, Any]:
    """Trains everybody in turns.

    On the processor every training has a process of its own, since a process keeps memory that it had once. On a GPU,
    whose memory is counted from the start of each training, a process trains all cells.

    Returns:
        Plain data: `model`, `device`, `machine`, `steps`, `warm_up`, `rounds`, `contenders` (how each trains) and
        `cells`, see `summarize`; with `job`, `texts`, `noise` and `left_out` of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(plan.model, Path(folder) / "model", plan.workdir)
        cells = [
            _cell(job, model, Path(folder) / f"rows-{number}.jsonl", plan.warm_up + plan.steps)
            for number, job in enumerate(plan.cells)
        ]
        is_gpu = any(job.device != "cpu" for job in plan.cells)
        shape = shape_of(model)
        results = []
        for together in [cells] if is_gpu else [[cell] for cell in cells]:
            results += _race(together, plan, console)
    return {
        "model": plan.model if plan.model in (MINILM, *SHAPES) else Path(plan.model).name,
        "shape": {"layers": shape.layers, "width": shape.width},
        "device": _device(is_gpu=is_gpu),
        "machine": machine.facts(),
        "steps": plan.steps,
        "warm_up": plan.warm_up,
        "rounds": plan.rounds,
        "contenders": {one.name: one.how for one in contenders_of(plan.cells[0].task) if one.name in plan.contenders},
        "cells": results,
    }


def check(plan: Plan) -> dict[str, Any]:
    """Compares the losses of the first batch, without dropout: whether all trainers compute the same.

    Returns:
        Plain data: `model` and `cells`: `job`, `losses` by contender, `difference` of each from the baseline's in parts
        of it, `most` (the largest that there may be), `wrong` (the names beyond it) and `left_out`.
    """
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(plan.model, Path(folder) / "model", plan.workdir, dropout=False)
        ready = [
            _cell(job, model, Path(folder) / f"rows-{number}.jsonl", 1).job for number, job in enumerate(plan.cells)
        ]
        found = {name: run(name, ready) for name in plan.contenders}
    for place, job in enumerate(plan.cells):
        of_job = {name: trained[place] for name, trained in found.items()}
        losses = {name: one.losses[0] for name, one in of_job.items() if isinstance(one, Trained)}
        left_out = {name: one for name, one in of_job.items() if isinstance(one, str)}
        compared = compare(losses, MOST_DIFFERENCE[job.precision])
        cells.append({"job": _described(job), **compared, "left_out": left_out})
    return {"model": Path(plan.model).name, "cells": cells}


def compare(losses: Mapping[str, float], most: float) -> dict[str, Any]:
    """Compares losses with the baseline's, or with the first one if the baseline has none.

    Args:
        losses: By contender.
        most: The largest difference that there may be, in parts of the loss.
    """
    expected = losses.get(BASELINE, next(iter(losses.values()), 0.0))
    difference = {name: abs(loss - expected) / abs(expected) for name, loss in losses.items()}
    wrong = [name for name, value in difference.items() if not value <= most]
    return {"losses": dict(losses), "difference": difference, "most": most, "wrong": wrong}


def summarize(
    rounds: Mapping[str, Sequence[Trained]], tokens: Sequence[int], *, batch_size: int, warm_up: int
) -> dict[str, dict[str, Any]]:
    """Turns what was measured into medians over the steps of all rounds.

    Args:
        rounds: What each contender's trainings took.
        tokens: Real tokens of each step; padding is nobody's achievement.
        batch_size: Rows of a step.
        warm_up: Steps that do not count, at least 1.

    Returns:
        By contender: `step_seconds` of each round, `step_s`, `tokens_per_s`, `rows_per_s`, `ratio` (how many times as
        fast as the baseline), `spread` (of the rounds' medians), `cpu_s` and `cpu_ratio` (the same of processor time,
        which other programs on the machine change less), `peak_mib`, `growth_mib` (above the loaded model), and the
        `losses` of the first round.
    """
    seconds = {name: [one.step_seconds[warm_up - 1 :] for one in found] for name, found in rounds.items()}
    steps = {name: [step for one in of_rounds for step in one] for name, of_rounds in seconds.items()}
    cpu = {name: [step for one in found for step in one.cpu_seconds[warm_up - 1 :]] for name, found in rounds.items()}
    results: dict[str, dict[str, Any]] = {}
    for name, found in rounds.items():
        speeds = [count / step for one in seconds[name] for count, step in zip(tokens[warm_up:], one, strict=True)]
        results[name] = {
            "step_seconds": seconds[name],
            "step_s": statistics.median(steps[name]),
            "tokens_per_s": statistics.median(speeds),
            "rows_per_s": batch_size / statistics.median(steps[name]),
            "ratio": ratio_of_medians(steps[name], steps[BASELINE]) if BASELINE in steps else None,
            "spread": spread([statistics.median(one) for one in seconds[name]]),
            "cpu_s": statistics.median(cpu[name]),
            "cpu_ratio": ratio_of_medians(cpu[name], cpu[BASELINE]) if BASELINE in cpu else None,
            "peak_mib": statistics.median(one.peak_mib for one in found),
            "growth_mib": statistics.median(one.peak_mib - one.loaded_mib for one in found),
            "losses": found[0].losses,
        }
    return results


def _race(cells: Sequence[_Cell], plan: Plan, console: Console) -> list[dict[str, Any]]:
    """Trains everybody in turns on some cells, all in one process; returns a result for each cell."""
    found: list[dict[str, list[Trained]]] = [{name: [] for name in plan.contenders} for _ in cells]
    left_out: list[dict[str, str]] = [{} for _ in cells]
    names = ", ".join(f"{cell.job.precision}, batches of {cell.job.batch_size}" for cell in cells)
    reference = Reference()
    reference.time()
    for number, order in interleaved(list(plan.contenders), plan.rounds):
        console.print(f"round {number + 1} of {plan.rounds}: {names}", style="dim", markup=False)
        for name in order:
            places = [place for place in range(len(cells)) if name not in left_out[place]]
            trained = run(name, [cells[place].job for place in places]) if places else []
            for place, one in zip(places, trained, strict=True):
                if isinstance(one, Trained):
                    found[place][name].append(one)
                else:
                    left_out[place][name] = one
            reference.time()
    results = []
    for cell, of_cell, without in zip(cells, found, left_out, strict=True):
        summary = summarize(
            {name: of_name for name, of_name in of_cell.items() if name not in without},
            cell.tokens,
            batch_size=cell.job.batch_size,
            warm_up=plan.warm_up,
        )
        noise = judge(reference.seconds, [result["spread"] for result in summary.values()])
        described = {"job": _described(cell.job), "texts": cell.texts, "noise": asdict(noise)}
        results.append({**described, "results": summary, "left_out": without})
    return results


def _cell(job: Job, model: Path, file: Path, steps: int) -> _Cell:
    """Writes the rows of a training."""
    size = job.batch_size
    data = make_rows(model, rows=steps * size, batch_size=size, negatives=job.negatives)
    data.save(file)
    job = dataclasses.replace(job, model=str(model), rows=str(file))
    if job.task == "reranker":
        job = dataclasses.replace(job, model=str(classifier_folder(model, file.with_suffix(""))))
    tokens = count_tokens(
        model,
        data,
        query_length=job.query_length,
        passage_length=job.passage_length,
        in_pairs=job.task == "reranker",
    )
    counts = [sum(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    texts = {
        "texts_a_step": size * (1 + job.negatives + (job.task == "embedder")),
        "tokens_a_step": statistics.fmean(counts),
        "tokens_a_row": statistics.fmean(tokens),
        "tokens_a_row_p95": percentile(tokens, 95),
    }
    return _Cell(job, counts, texts)


def _described(job: Job) -> dict[str, Any]:
    return {name: value for name, value in asdict(job).items() if name not in ("model", "rows")}


def _device(*, is_gpu: bool) -> str:
    if not is_gpu:
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints a table for each cell, the fastest first."""
    shape, versions = results["shape"], results["machine"]["versions"]
    where = results["machine"]["processor"] if results["device"] == "cpu" else results["device"]
    console.print(
        f"{results['model']}: {shape['layers']} layers, width {shape['width']}; {where}, "
        f"{results['machine']['cores']} cores; torch {versions['torch']}, transformers {versions['transformers']}, "
        f"sentence-transformers {versions['sentence-transformers']}; {results['rounds']} rounds of {results['steps']} "
        f"steps after {results['warm_up']} that do not count",
        highlight=False,
        markup=False,
    )
    for name, how in results["contenders"].items():
        console.print(f"  {name}: {how}", style="dim", markup=False, highlight=False)
    for cell in results["cells"]:
        _print_cell(console, cell)


def _print_cell(console: Console, cell: Mapping[str, Any]) -> None:
    job, texts = cell["job"], cell["texts"]
    memory = "GPU" if job["device"] != "cpu" else "process"
    table = make_table(
        f"{job['precision']}, batches of {job['batch_size']} rows, negatives of each: {job['negatives']}; "
        f"{texts['texts_a_step']} texts and {texts['tokens_a_step']:,.0f} real tokens a step; ratios to {BASELINE}; "
        f"memory of the {memory}, and its growth above the loaded model",
        *("s a step", "tokens/s", "ratio", "spread", "CPU s", "ratio", "peak MiB", "growth MiB", "first loss"),
    )
    for name, result in sorted(cell["results"].items(), key=lambda item: float(item[1]["step_s"])):
        table.add_row(
            name,
            f"{result['step_s']:.3f}",
            f"{result['tokens_per_s']:,.0f}",
            ratio_cell(result["ratio"]),
            f"{result['spread']:.2f}" if len(result["step_seconds"]) > 1 else "–",
            f"{result['cpu_s']:.3f}",
            ratio_cell(result["cpu_ratio"]),
            f"{result['peak_mib']:,.0f}",
            f"{result['growth_mib']:,.0f}",
            f"{result['losses'][0]:.4f}",
        )
    console.print(table)
    console.print(f"Noise: {cell['noise']['verdict']}.", markup=False)
    print_left_out(console, cell["left_out"])


def print_check(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the first losses of each cell."""
    for cell in results["cells"]:
        job = cell["job"]
        table = make_table(
            f"First loss without dropout, {job['precision']}, a batch of {job['batch_size']} rows",
            *("loss", f"difference from {BASELINE}", "at most"),
        )
        for name, loss in cell["losses"].items():
            table.add_row(name, f"{loss:.6f}", f"{cell['difference'][name]:.1e}", f"{cell['most']:.0e}")
        console.print(table)
        console.print(f"other losses: {', '.join(cell['wrong']) or 'none'}", markup=False)
        print_left_out(console, cell["left_out"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = _parser()
    options = parser.parse_args(arguments)
    isolate(options.workdir)
    if options.device == "cuda":
        # transformers' trainer would divide each batch between all GPUs that it sees.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    console = Console(width=_WIDTH)
    try:
        plan = _plan(options)
        results = check(plan) if options.check else measure(plan, console)
    except ValueError as error:
        parser.error(str(error))
    (print_check if options.check else print_results)(console, results)
    if options.output:
        save(results, options.output, console)
    if options.check and any(cell["wrong"] for cell in results["cells"]):
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks.training", __doc__)
    add = parser.add_argument
    add(
        "--model",
        default=MINILM,
        help=f"{MINILM} (its real weights), random weights of a size ({', '.join(SHAPES)}), or a folder; a folder "
        "without weights gets random ones",
    )
    add("--task", choices=("embedder", "reranker"), default="embedder", help="what is trained")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--precisions", type=names, help="float32, bfloat16, by commas; both, if the device has bfloat16")
    add(
        "--batch-sizes",
        type=_numbers,
        default=[32],
        help="rows of a batch, by commas; on a processor, attention dropout of a small model takes 7 GiB for 32 rows "
        "and four times as much for 128",
    )
    add("--negatives", type=int, default=1, help="of each row; FlagEmbedding needs at least 1")
    add("--query-length", type=int, default=64, help="tokens of a query, at most")
    add("--passage-length", type=int, default=256, help="tokens of a passage, at most")
    add("--temperature", type=float, default=0.02, help="divisor of the cosines")
    add("--steps", type=int, default=5, help="steps that count")
    add("--warm-up", type=int, default=2, help="steps before them, at least 1")
    add("--rounds", type=int, default=3, help="how often each trains")
    add(
        "--contenders",
        type=names,
        default=["*"],
        help="names or patterns such as bge*, by commas; all of them: "
        + ", ".join(contender.name for contender in contenders_of("embedder")),
    )
    add("--check", action="store_true", help="only compare the first losses without dropout")
    add("--output", type=Path, help="save what was measured as JSON")
    add_workdir(parser, "models")
    return parser


def _numbers(value: str) -> list[int]:
    return [int(number) for number in names(value)]


def _plan(options: argparse.Namespace) -> Plan:
    for name in ("steps", "warm_up", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.batch_sizes) < 2:
        raise ValueError("--batch-sizes must be at least 2, since the rows of a batch give each other negatives")
    if options.device == "cuda" and not _has_gpu():
        raise ValueError("--device cuda needs a GPU that torch can use; there is none")
    precisions = options.precisions or ["float32", *["bfloat16"] * _has_bfloat16(options.device)]
    for precision in precisions:
        if precision not in MOST_DIFFERENCE:
            raise ValueError(f"{precision!r} is unknown; there are {', '.join(MOST_DIFFERENCE)}")
    cells = [
        Job(
            model="",
            rows="",
            device=options.device,
            precision=precision,
            batch_size=size,
            negatives=options.negatives,
            query_length=options.query_length,
            passage_length=options.passage_length,
            temperature=options.temperature,
            task=options.task,
        )
        for precision in precisions
        for size in options.batch_sizes
    ]
    return Plan(
        model=options.model,
        contenders=choose(options.contenders, options.task),
        cells=cells,
        steps=options.steps,
        warm_up=options.warm_up,
        rounds=options.rounds,
        workdir=options.workdir,
    )


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _has_bfloat16(device: str) -> bool:
    if device == "cpu":
        from bge_integrations.backend.engines.openvino.engine import computes_bfloat16

        return computes_bfloat16()
    import torch

    return bool(torch.cuda.is_bf16_supported())


if __name__ == "__main__":
    main()
