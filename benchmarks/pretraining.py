"""Measures how fast RetroMAE is: its masks beside a loop over tokens, and its steps beside masked language modelling.

All steps are of the same model on the same masked texts, in turns, with AdamW. Prints tables of medians and ratios, and
saves everything as JSON.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import machine
from benchmarks.command import WORKDIR, parser_of, save
from benchmarks.isolation import isolate
from benchmarks.noise import Reference, judge
from benchmarks.shapes import SHAPES
from benchmarks.stats import interleaved, ratio_of_medians, spread
from benchmarks.table_parts import make_table
from benchmarks.texts import make_mix
from benchmarks.training_inputs import MINILM, model_folder
from bge_integrations.backend.display.quiet import quiet_transformers
from bge_integrations.settings import EncoderSettings
from bge_integrations.training import RetroMaeTraining
from bge_integrations.training.embedders.unpadded import without_padding
from bge_integrations.training.retromae.batches import PieceCollator
from bge_integrations.training.retromae.masks import visible_tokens
from bge_integrations.training.retromae.pieces import make_pieces
from bge_integrations.training.retromae.subject import build_model
from bge_integrations.training.retromae.texts import TextSource
from bge_integrations.training.retromae.tokens import tokens_of
from bge_integrations.training.rows.batches import Epochs
from bge_integrations.training.trainer.starting import Start, open_start
from bge_integrations.training.trainer.work import budget_of

Batch = dict[str, Tensor]

VECTORISED, LOOP = "visible_tokens", "a loop over tokens"
RETROMAE, ENCODER = "RetroMAE", "its encoder alone"
BASELINE, NO_DROPOUT = "transformers' ForMaskedLM", "the same without attention dropout"

_MOST_SAMPLES = 128
"""Masks of a text that the loop draws its rows from."""
_WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        model: See `model_folder`.
        mix: The lengths of the texts; see `benchmarks.texts`.
        precision: "float32" or "bfloat16".
        device: "cpu" or "cuda".
        batch_size: Texts of a step.
        steps: Steps of a round.
        rounds: How often everybody's turn comes.
        workdir: Where models are kept for the next run.
    """

    model: str
    mix: str
    precision: str
    device: str
    batch_size: int = 32
    steps: int = 3
    rounds: int = 5
    workdir: Path = WORKDIR


def measure(plan: Plan) -> dict[str, Any]:
    """Times masks and steps.

    Returns:
        Plain data: `plan`, `machine`, `tokens` (real tokens of a step), `noise`, `masks` and `steps`: for each
        contender `seconds` of each turn, their `median`, `spread`, the processor time `cpu_s`, and `ratio` (how many
        times as fast as the loop, or as transformers' own model).
    """
    reference = Reference()
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        folder = model_folder(plan.model, Path(work) / "model", plan.workdir)
        start = open_start(EncoderSettings(model_name=str(folder), device=plan.device))
        batches = _batches(start, folder, plan, Path(work))
        table = _inside(start)
        masks: dict[str, Callable[[], object]] = {
            VECTORISED: lambda: [_vectorised(batch) for batch in batches],
            LOOP: lambda: [loop_masks(batch, table) for batch in batches],
        }
        of_masks = _race(masks, plan.rounds, reference, plan.device, LOOP)
        steps = {name: _stepping(make(folder, plan, stack), batches) for name, make in _MAKERS.items()}
        of_steps = _race(steps, plan.rounds, reference, plan.device, BASELINE)
    tokens = [int(batch["attention_mask"].sum()) for batch in batches]
    noise = judge(reference.seconds, [one["spread"] for one in of_steps.values()])
    described = {name: value for name, value in asdict(plan).items() if name != "workdir"}
    described["model"] = plan.model if plan.model in (MINILM, *SHAPES) else Path(plan.model).name
    return {
        "plan": described,
        "machine": machine.facts(),
        "tokens": sum(tokens) / len(tokens),
        "noise": asdict(noise),
        "masks": of_masks,
        "steps": of_steps,
    }


def loop_masks(batch: Batch, continues: Sequence[bool], rate: float = 0.5) -> list[Tensor]:
    """Makes the decoder's masks token by token, as RetroMAE's own collators do.

    Up to 128 masks of whole words are drawn for each text. Each position takes one of them, and hides itself.

    Args:
        batch: Texts.
        continues: By token id, whether a token belongs to the word before it.
        rate: The part of the tokens that is hidden.
    """
    found = []
    for ids, length in zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True):
        words: list[list[int]] = []
        for place in range(1, length - 1):
            if words and continues[ids[place]]:
                words[-1].append(place)
            else:
                words.append([place])
        samples = []
        for _ in range(min(_MOST_SAMPLES, length)):
            random.shuffle(words)
            hidden: set[int] = set()
            for word in words:
                if len(hidden) + len(word) <= max(1, round(rate * length)):
                    hidden.update(word)
            samples.append([int(place not in hidden) for place in range(length)])
        rows = []
        for place in range(length):
            row = list(random.choice(samples))
            row[place] = 0
            row[0] = 1
            rows.append(row)
        found.append(torch.tensor(rows))
    return found


def _vectorised(batch: Batch) -> Tensor:
    draws = torch.Generator(batch["words"].device).manual_seed(int(batch["seed"]))
    return visible_tokens(batch["words"], batch["attention_mask"].bool(), 0.5, draws)


def _inside(start: Start) -> list[bool]:
    vocabulary = start.model.tokenizer.get_vocab()
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    return [name.startswith("##") for name in names]


def _batches(start: Start, folder: Path, plan: Plan, work: Path) -> list[Batch]:
    texts = make_mix(plan.mix, plan.batch_size * plan.steps, folder).texts
    tokens = tokens_of(start, 512, "the model")
    pieces = make_pieces(TextSource.of(texts), tokens, work, show_progress=False)
    collate = PieceCollator(pieces, tokens.table, masking=0.3, pad_id=start.pad_id, seed=0, epochs=Epochs())
    size = min(plan.batch_size, len(pieces) // plan.steps)
    rows = [[{"row": row} for row in range(step * size, (step + 1) * size)] for step in range(plan.steps)]
    return [{name: one.to(plan.device) for name, one in collate(some).items()} for some in rows]


@dataclass(frozen=True)
class _Trained:
    """A model, and its loss of a batch."""

    model: torch.nn.Module
    loss: Callable[[Batch], Tensor]
    precision: str


def _retromae(folder: Path, plan: Plan, stack: ExitStack) -> _Trained:
    model = _own_copy(folder, plan, stack)
    return _Trained(model, model, plan.precision)


def _encoder_alone(folder: Path, plan: Plan, stack: ExitStack) -> _Trained:
    model = _own_copy(folder, plan, stack)
    inside = model.transformer

    def loss(batch: Batch) -> Tensor:
        features = {"input_ids": batch["read_ids"], "attention_mask": batch["attention_mask"]}
        rows = inside(features)["token_embeddings"][batch["is_chosen"]]
        table = inside.auto_model.embeddings.word_embeddings.weight
        found: Tensor = model.head.loss(rows, table, batch["input_ids"][batch["is_chosen"]]) / len(rows)
        return found

    return _Trained(model, loss, plan.precision)


def _own_copy(folder: Path, plan: Plan, stack: ExitStack) -> Any:  # noqa: ANN401 - a RetroMae
    start = open_start(EncoderSettings(model_name=str(folder), device=plan.device))
    chosen = RetroMaeTraining(precision=plan.precision)
    model = build_model(start, chosen, budget_of(start, chosen), "the model", warns=False)
    stack.enter_context(without_padding(start.model, start.encoder, cls_only=False))
    return model


def _for_masked_lm(
    folder: Path,
    plan: Plan,
    stack: ExitStack,  # noqa: ARG001 - as the others
    **changes: float,
) -> _Trained:
    from transformers import AutoModelForMaskedLM

    # It has no head for words: a new one is as fast.
    with quiet_transformers():
        model: Any = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, **changes).to(plan.device)

    def loss(batch: Batch) -> Tensor:
        labels = batch["input_ids"].masked_fill(~batch["is_chosen"], -100)
        found: Tensor = model(input_ids=batch["read_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        return found

    return _Trained(model, loss, plan.precision)


_MAKERS: Mapping[str, Callable[[Path, Plan, ExitStack], _Trained]] = {
    RETROMAE: _retromae,
    ENCODER: _encoder_alone,
    BASELINE: _for_masked_lm,
    NO_DROPOUT: partial(_for_masked_lm, attention_probs_dropout_prob=0.0),
}


def _stepping(trained: _Trained, batches: Sequence[Batch]) -> Callable[[], object]:
    """Returns a function that makes a step with each batch."""
    trained.model.train()
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=1e-6)
    kind = batches[0]["input_ids"].device.type

    def step() -> None:
        for batch in batches:
            context: AbstractContextManager[object] = (
                torch.autocast(kind, torch.bfloat16) if trained.precision == "bfloat16" else nullcontext()
            )
            with context:
                loss = trained.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    return step


def _race(
    contenders: Mapping[str, Callable[[], object]], rounds: int, reference: Reference, device: str, baseline: str
) -> dict[str, dict[str, Any]]:
    """Lets everybody work in turns; the first turn of each does not count."""
    for work in contenders.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _, order in interleaved(list(contenders), rounds):
        reference.time()
        for name in order:
            _wait(device)
            begin, begin_cpu = time.perf_counter(), time.process_time()
            contenders[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - begin)
            cpu[name].append(time.process_time() - begin_cpu)
    return {
        name: {
            "seconds": seconds[name],
            "median": statistics.median(seconds[name]),
            "spread": spread(seconds[name]),
            "cpu_s": statistics.median(cpu[name]),
            "ratio": ratio_of_medians(seconds[name], seconds[baseline]),
            "cpu_ratio": ratio_of_medians(cpu[name], cpu[baseline]),
        }
        for name in contenders
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def print_results(console: Console, results: Mapping[str, Any]) -> None:
    """Prints a table of masks and one of steps."""
    plan, tokens = results["plan"], results["tokens"]
    for part, title in (("masks", "masks of the decoder"), ("steps", "steps of training")):
        table = make_table(
            f"{title}: {plan['model']}, {plan['mix']} texts, {plan['precision']}, {plan['device']}, batches of "
            f"{plan['batch_size']}, {tokens:,.0f} real tokens each",
            *("s a batch", "tokens/s", "ratio", "spread", "CPU s", "CPU ratio"),
        )
        for name, one in results[part].items():
            table.add_row(
                name,
                f"{one['median'] / plan['steps']:.4f}",
                f"{tokens * plan['steps'] / one['median']:,.0f}",
                f"{one['ratio']:.2f}",
                f"{one['spread']:.2f}",
                f"{one['cpu_s'] / plan['steps']:.4f}",
                f"{one['cpu_ratio']:.2f}",
            )
        console.print(table)
    console.print(f"Noise: {results['noise']['verdict']}.", markup=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, measures, prints and saves."""
    parser = parser_of("benchmarks.pretraining", __doc__)
    parser.add_argument("--model", default=MINILM, help=f"{MINILM}, a BERT among {', '.join(SHAPES)}, or a folder")
    parser.add_argument("--mix", default="mixed", help="queries, short, mixed or long")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="file to save everything in, as JSON")
    options = parser.parse_args(arguments)
    if min(options.batch_size, options.steps, options.rounds) < 1:
        parser.error("--batch-size, --steps and --rounds must be at least 1")
    plan = Plan(**{name: value for name, value in vars(options).items() if name != "output"})
    isolate(plan.workdir)
    console = Console(width=_WIDTH)
    results = measure(plan)
    print_results(console, results)
    if options.output:
        save(results, options.output, console)


if __name__ == "__main__":
    main()
