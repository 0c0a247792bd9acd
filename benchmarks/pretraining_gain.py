"""Measures what RetroMAE before contrastive training brings, on Python's documentation.

A model with CLS pooling is pre-trained on the passages, without labels. Then it and the model as it was are trained on
the same questions, in the same number of steps, once for each seed. Both are judged on the labelled questions, which
nothing was trained on. Prints a table and the paired comparisons, and saves everything as JSON.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.command import WORKDIR, parser_of, save
from benchmarks.docstrings.corpus import collect
from benchmarks.isolation import isolate
from benchmarks.questions import QUESTIONS
from benchmarks.questions.written import written_rows
from benchmarks.retrieval import as_data
from benchmarks.table_parts import make_table
from benchmarks.training_inputs import MINILM, model_folder
from bge_integrations import BgeEncoder
from bge_integrations.evaluation import RetrievalData, RetrievalReport, compare, evaluate_retrieval
from bge_integrations.evaluation.statistics import bootstrap_interval, randomization_p
from bge_integrations.training import (
    EmbedderTraining,
    RetroMaeTraining,
    TrainingData,
    pretrain_retromae,
    train_embedder,
)
from bge_integrations.training.rows.passages import load_passages

MAIN = "ndcg@10"
PLAIN, PRETRAINED = "as it was", "after RetroMAE"

_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        model: See `model_folder`.
        pretraining: How to pre-train.
        contrastive: How to train afterwards; the seed is put in.
        seeds: Of the contrastive trainings.
        texts: A file or folder with further texts to pre-train on; `None`: none.
        workdir: Where models are kept for the next run.
    """

    model: str
    pretraining: RetroMaeTraining
    contrastive: EmbedderTraining
    seeds: Sequence[int]
    texts: Path | None = None
    workdir: Path = WORKDIR


def measure(plan: Plan, console: Console) -> dict[str, Any]:
    """Pre-trains, trains and judges.

    Returns:
        Plain data: `model`, `machine`, `pretraining` (settings, texts, losses, seconds), `contrastive` (settings, rows,
        steps), `figures` (of each start, before contrastive training and by seed), `comparisons` (by seed, and of the
        means over the seeds).
    """
    entries = collect()
    data = as_data(entries, QUESTIONS)
    rows = TrainingData(written_rows(data.corpus), "written questions")
    texts = [entry.text for entry in entries]
    if plan.texts is not None:
        texts += load_passages(plan.texts)[0]
    reports: dict[tuple[str, int | None], RetrievalReport] = {}
    with tempfile.TemporaryDirectory() as work:
        start = model_folder(plan.model, Path(work) / "start", plan.workdir)
        begin = time.perf_counter()
        console.print(f"pre-training on {len(texts):,} texts", style="dim")
        parts: dict[int, dict[str, float]] = {}
        pretrained = pretrain_retromae(
            texts,
            start,
            Path(work) / "pretrained",
            settings=plan.pretraining,
            on_log=lambda step, logs: parts.update({step: logs}) if "encoder_loss" in logs else None,
        )
        seconds = time.perf_counter() - begin
        starts = {PLAIN: start, PRETRAINED: pretrained.output}
        for name, folder in starts.items():
            reports[name, None] = _judged(folder, data, name)
        steps = 0
        for seed in plan.seeds:
            for name, folder in starts.items():
                console.print(f"contrastive training, {name}, seed {seed}", style="dim")
                settings = EmbedderTraining(**{**vars(plan.contrastive), "seed": seed})
                tuned = train_embedder(rows, folder, Path(work) / "tuned", settings=settings)
                reports[name, seed] = _judged(tuned.output, data, name)
                steps = tuned.steps
                shutil.rmtree(tuned.output)
    return {
        "model": plan.model if plan.model == MINILM else Path(plan.model).name,
        "machine": machine.facts(),
        "pretraining": {
            "settings": asdict(plan.pretraining),
            "texts": len(texts),
            "steps": pretrained.steps,
            "seconds": seconds,
            "losses": {
                step: {key: logs[key] for key in ("encoder_loss", "decoder_loss")} for step, logs in parts.items()
            },
        },
        "contrastive": {"settings": asdict(plan.contrastive), "rows": len(rows.rows), "steps": steps},
        "figures": {
            name: {
                "none" if seed is None else str(seed): report.metrics
                for (one, seed), report in reports.items()
                if one == name
            }
            for name in starts
        },
        "comparisons": _comparisons(reports, plan.seeds),
    }


def _judged(folder: Path, data: RetrievalData, name: str) -> RetrievalReport:
    with BgeEncoder(folder, on_truncation="ignore") as encoder:
        return evaluate_retrieval(encoder, data, metrics=[MAIN, "recall@10", "mrr@10"], depth=100, name=name)


def _comparisons(
    reports: Mapping[tuple[str, int | None], RetrievalReport], seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Returns how the pre-trained model differs from the other, question by question."""
    found: dict[str, dict[str, Any]] = {}
    for seed in (None, *seeds):
        one = compare(reports[PLAIN, seed], reports[PRETRAINED, seed], MAIN)
        found["none" if seed is None else str(seed)] = {
            "difference": one.difference,
            "interval": list(one.interval),
            "p": one.p,
            "detectable": one.detectable,
        }
    # The mean over the seeds for each question, so that one question counts once.
    values = [[reports[name, seed].values(MAIN) for seed in seeds] for name in (PRETRAINED, PLAIN)]
    means = [[statistics.fmean(of_question) for of_question in zip(*of_start, strict=True)] for of_start in values]
    differences = [after - before for after, before in zip(*means, strict=True)]
    found["mean of the seeds"] = {
        "difference": statistics.fmean(differences),
        "interval": list(bootstrap_interval(differences)),
        "p": randomization_p(differences),
    }
    return found


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints the losses, the figures and the comparisons."""
    pretraining, contrastive = results["pretraining"], results["contrastive"]
    losses = list(pretraining["losses"].values())
    tenth = max(1, len(losses) // 10)
    for part in ("encoder_loss", "decoder_loss"):
        first, last = (statistics.fmean(one[part] for one in some) for some in (losses[:tenth], losses[-tenth:]))
        console.print(f"{part}: {first:.3f} in the first tenth of the steps, {last:.3f} in the last", highlight=False)
    console.print(
        f"{results['model']}: {pretraining['steps']} steps of RetroMAE on {pretraining['texts']:,} texts in "
        f"{pretraining['seconds']:,.0f} s; then {contrastive['steps']} contrastive steps on {contrastive['rows']} rows",
        highlight=False,
        markup=False,
    )
    columns = list(next(iter(results["figures"].values())))
    table = make_table(
        f"{MAIN} on the labelled questions", *("no training" if one == "none" else f"seed {one}" for one in columns)
    )
    for name, by_seed in results["figures"].items():
        table.add_row(name, *(f"{by_seed[one][MAIN]:.4f}" for one in columns))
    console.print(table)
    for name, one in results["comparisons"].items():
        low, high = one["interval"]
        label = {"none": "no training", "mean of the seeds": name}.get(name, f"seed {name}")
        console.print(f"{label}: {one['difference']:+.4f} [{low:+.4f}, {high:+.4f}], p {one['p']:.2g}", markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = parser_of("benchmarks.pretraining_gain", __doc__)
    parser.add_argument("--model", default=MINILM, help="minilm or a folder")
    parser.add_argument("--texts", type=Path, help="further texts to pre-train on: .jsonl, .txt or a BEIR folder")
    parser.add_argument("--steps", type=int, default=500, help="steps of RetroMAE")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="of RetroMAE")
    parser.add_argument("--batch-size", type=int, default=32, help="of both trainings")
    parser.add_argument("--contrastive-steps", type=int, default=60)
    parser.add_argument("--contrastive-learning-rate", type=float, default=2e-5)
    parser.add_argument("--seeds", type=int, default=3, help="contrastive trainings of each start")
    parser.add_argument("--output", type=Path, help="file to save everything in, as JSON")
    options = parser.parse_args(arguments)
    if min(options.steps, options.contrastive_steps, options.seeds) < 1:
        parser.error("steps and seeds must be at least 1")
    plan = Plan(
        model=options.model,
        pretraining=RetroMaeTraining(
            max_steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            save_every=1 << 30,
        ),
        contrastive=EmbedderTraining(
            max_steps=options.contrastive_steps,
            batch_size=options.batch_size,
            learning_rate=options.contrastive_learning_rate,
        ),
        seeds=range(options.seeds),
        texts=options.texts,
    )
    isolate(plan.workdir)
    console = Console(width=_WIDTH)
    results = measure(plan, console)
    print_results(console, results)
    if options.output:
        save(results, options.output, console)


if __name__ == "__main__":
    main()
