"""Who trains: this package, sentence-transformers and FlagEmbedding, on the same rows in the same order.

`run` starts a process for one of them; `python -m benchmarks.trainers` is what runs in it.

All compute InfoNCE over the passages of a batch, with the same temperature, limits of length, optimiser, learning rate
and warm-up; those that train rerankers, the cross entropy over the group of each row. What differs is each one's own
choice: dropout inside attention, how texts are put together for a forward pass, and what is kept in memory.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lineup import reason

if TYPE_CHECKING:
    from bge_integrations.training import TrainingData

BASELINE = "sentence-transformers"

_WITHOUT_LIMIT = 1 << 40
_SURELY = 100.0
"""A label whose softmax beside zeros is 1."""
_LEARNING_RATE, _WARM_UP, _SEED = 1e-5, 0.1, 0
_TRAINED, _FAILED = "trained ", "failed "


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training. The rows are whole batches.

    Attributes:
        model: The folder of the model, with CLS pooling and normalisation; for rerankers, a classifier with one output.
        rows: A .jsonl file in FlagEmbedding's format. Its order is that of the batches.
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16".
        batch_size: Rows of a batch.
        negatives: Negatives of each row.
        query_length: Tokens of a query, at most.
        passage_length: Tokens of a passage, at most.
        temperature: Divisor of the cosines.
        task: What is trained: "embedder" or "reranker".
    """

    model: str
    rows: str
    device: str = "cpu"
    precision: str = "float32"
    batch_size: int = 32
    negatives: int = 1
    query_length: int = 64
    passage_length: int = 256
    temperature: float = 0.02
    task: str = "embedder"

    @property
    def pair_length(self) -> int:
        """Tokens of a pair, at most."""
        return self.query_length + self.passage_length


@dataclass(frozen=True)
class Trained:
    """What was measured of a training.

    Attributes:
        step_seconds: Of each step but the first.
        cpu_seconds: Processor time of these steps, over all threads.
        losses: Of each step.
        loaded_mib: Memory before the first step: of the process, or on the GPU.
        peak_mib: The most that it was until the end of the last step.
    """

    step_seconds: list[float]
    cpu_seconds: list[float]
    losses: list[float]
    loaded_mib: float
    peak_mib: float


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: As on the command line and in tables.
        how: Its settings, in words.
        train: Trains; the second argument is an empty folder for what it writes.
    """

    name: str
    how: str
    train: Callable[[Job, Path], None]


def _ours(job: Job, work: Path, **changes: Any) -> None:  # noqa: ANN401 - settings of several types
    from bge_integrations.settings import EncoderSettings
    from bge_integrations.training import EmbedderTraining, train_embedder

    settings = EmbedderTraining(
        batch_size=job.batch_size,
        learning_rate=_LEARNING_RATE,
        warmup=_WARM_UP,
        temperature=job.temperature,
        negatives=job.negatives,
        query_length=job.query_length,
        passage_length=job.passage_length,
        precision=job.precision,
        seed=_SEED,
        **changes,
    )
    start = EncoderSettings(model_name=job.model, device=job.device)
    train_embedder(_laid_out(job), start, work / "model", settings=settings)


def _our_reranker(job: Job, work: Path) -> None:
    from bge_integrations.settings import RerankerSettings
    from bge_integrations.training import RerankerTraining, train_reranker

    settings = RerankerTraining(
        batch_size=job.batch_size,
        learning_rate=_LEARNING_RATE,
        warmup=_WARM_UP,
        weight_decay=0.0,
        negatives=job.negatives,
        easy_negatives=0,
        max_length=job.pair_length,
        precision=job.precision,
        seed=_SEED,
    )
    start = RerankerSettings(model_name=job.model, device=job.device)
    train_reranker(_laid_out(job), start, work / "model", settings=settings)


def _laid_out(job: Job) -> TrainingData:
    """Returns the rows in an order that training shuffles into the order of the file."""
    from bge_integrations.training import TrainingData, load_training_data
    from bge_integrations.training.rows.batches import Epochs, RowBatches

    rows = list(load_training_data(job.rows).rows)
    batches = RowBatches([range(len(rows))], job.batch_size, seed=_SEED, epochs=Epochs())
    places = [place for batch in batches for place in batch]
    laid_out = dict(zip(places, rows, strict=True))
    return TrainingData([laid_out[place] for place in range(len(rows))])


def _sentence_transformers(job: Job, work: Path, *, cached: bool = False, attention_dropout: bool = True) -> None:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from torch.utils.data import SequentialSampler

    changes = {} if attention_dropout else {"attention_probs_dropout_prob": 0.0}
    model = SentenceTransformer(job.model, device=job.device, config_kwargs=changes)
    rows = [json.loads(line) for line in Path(job.rows).read_text(encoding="utf-8").splitlines()]
    columns = {"query": [row["query"] for row in rows], "positive": [row["pos"][0] for row in rows]}
    for number in range(job.negatives):
        columns[f"negative_{number}"] = [row["neg"][number] for row in rows]
    kind = CachedMultipleNegativesRankingLoss if cached else MultipleNegativesRankingLoss
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            **_arguments(job, work),
            batch_sampler=lambda dataset, **given: DefaultBatchSampler(SequentialSampler(dataset), **given),
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=kind(model, scale=1 / job.temperature),
        data_collator=SentenceTransformerDataCollator(
            preprocess_fn=model.preprocess,
            router_mapping={name: "query" if name == "query" else "document" for name in columns},
            max_length={"query": job.query_length, "document": job.passage_length},
        ),
    )
    trainer.train()


def _sentence_transformers_reranker(job: Job, work: Path, *, attention_dropout: bool = True) -> None:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from torch.utils.data import SequentialSampler

    changes = {} if attention_dropout else {"attention_probs_dropout_prob": 0.0}
    model = CrossEncoder(job.model, device=job.device, max_length=job.pair_length, config_kwargs=changes)
    rows = [json.loads(line) for line in Path(job.rows).read_text(encoding="utf-8").splitlines()]
    columns = {
        "query": [row["query"] for row in rows],
        "docs": [[*row["pos"][:1], *row["neg"][: job.negatives]] for row in rows],
        "labels": [[_SURELY, *[0.0] * job.negatives] for _ in rows],
    }
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            **_arguments(job, work),
            batch_sampler=lambda dataset, **given: DefaultBatchSampler(SequentialSampler(dataset), **given),
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=ListNetLoss(model),
    )
    trainer.train()


def _flag_embedding(job: Job, work: Path) -> None:
    base = importlib.import_module("FlagEmbedding.finetune.embedder.encoder_only.base")
    runner = base.EncoderOnlyEmbedderRunner(
        model_args=base.EncoderOnlyEmbedderModelArguments(model_name_or_path=job.model),
        data_args=base.EncoderOnlyEmbedderDataArguments(
            train_data=[job.rows],
            train_group_size=1 + job.negatives,
            query_max_len=job.query_length,
            passage_max_len=job.passage_length,
            cache_path=str(work / "datasets"),
        ),
        training_args=base.EncoderOnlyEmbedderTrainingArguments(
            **_arguments(job, work),
            temperature=job.temperature,
            sentence_pooling_method="cls",
            normalize_embeddings=True,
            train_sampling_strategy="sequential",
        ),
    )
    runner.trainer.train()


def _arguments(job: Job, work: Path) -> dict[str, Any]:
    """Returns the arguments of transformers' trainer that this package uses too."""
    return {
        "output_dir": str(work / "output"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.batch_size,
        "learning_rate": _LEARNING_RATE,
        "warmup_steps": _WARM_UP,
        "weight_decay": 0.0,
        "bf16": job.precision == "bfloat16",
        "use_cpu": job.device == "cpu",
        "seed": _SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": job.device != "cpu",
    }


CONTENDERS = (
    Contender("bge", "train_embedder as it comes", _ours),
    Contender("bge-attention-dropout", "attention_dropout=True", partial(_ours, attention_dropout=True)),
    Contender(
        "bge-whole-batch",
        "all activations of a batch in memory, however large it is",
        partial(_ours, tokens_in_memory=_WITHOUT_LIMIT),
    ),
    Contender(BASELINE, "MultipleNegativesRankingLoss", _sentence_transformers),
    Contender(
        "sentence-transformers-no-attention-dropout",
        "MultipleNegativesRankingLoss, attention_probs_dropout_prob=0",
        partial(_sentence_transformers, attention_dropout=False),
    ),
    Contender(
        "sentence-transformers-cached",
        "CachedMultipleNegativesRankingLoss, mini-batches of 32 texts",
        partial(_sentence_transformers, cached=True),
    ),
    Contender("FlagEmbedding", "its runner for encoders, without sub-batches", _flag_embedding),
)


RERANKER_CONTENDERS = (
    Contender("bge", "train_reranker as it comes", _our_reranker),
    Contender(BASELINE, "ListNetLoss whose labels are all or nothing", _sentence_transformers_reranker),
    Contender(
        "sentence-transformers-no-attention-dropout",
        "the same, attention_probs_dropout_prob=0",
        partial(_sentence_transformers_reranker, attention_dropout=False),
    ),
)


def contenders_of(task: str) -> tuple[Contender, ...]:
    """Returns those that train embedders or rerankers."""
    return RERANKER_CONTENDERS if task == "reranker" else CONTENDERS


def choose(patterns: Sequence[str], task: str = "embedder") -> list[str]:
    """Returns the names of the contenders that match one of the patterns, in the order of `contenders_of`.

    Args:
        patterns: Names, or shell-like patterns such as `bge*`.
        task: What is trained.

    Raises:
        ValueError: A pattern that matches nobody.
    """
    names = [contender.name for contender in contenders_of(task)]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no contender is called {pattern!r}; there are {', '.join(names)}")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def train(name: str, job: Job) -> Trained:
    """Trains in this process.

    Args:
        name: The contender.
        job: What to train.
    """
    from benchmarks.step_clock import StepClock

    contender = next(contender for contender in contenders_of(job.task) if contender.name == name)
    clock = StepClock(job.device)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as work, clock.watching():
        warnings.simplefilter("ignore")  # of the libraries, about their own insides
        contender.train(job, Path(work))
    seconds, cpu_seconds = map(_differences, (clock.ends, clock.cpu_ends))
    return Trained(seconds, cpu_seconds, clock.losses, clock.loaded_mib, clock.peak_mib)


def _differences(ends: Sequence[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(ends)]


def run(name: str, jobs: Sequence[Job]) -> list[Trained | str]:
    """Trains in a process of its own, one job after the other.

    Args:
        name: The contender.
        jobs: What to train.

    Returns:
        For each job, what was measured, or in one line why there is nothing.
    """
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trainers", name]
    command += [json.dumps(asdict(job)) for job in jobs]
    finished = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found: list[Trained | str] = []
    for line in finished.stdout.splitlines():  # libraries may write lines of their own between ours
        if line.startswith(_TRAINED):
            found.append(Trained(**json.loads(line.removeprefix(_TRAINED))))
        elif line.startswith(_FAILED):
            found.append(line.removeprefix(_FAILED))
    written = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
    ended = written[-1] if finished.returncode > 0 and written else f"ended with status {finished.returncode}"
    return [*found, *[ended] * (len(jobs) - len(found))]


def main() -> None:
    """Trains, and tells the process that started this one."""
    with contextlib.suppress(OSError):  # where memory runs out, Linux ends this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    name, *jobs = sys.argv[1:]
    for job in jobs:
        try:
            line = _TRAINED + json.dumps(asdict(train(name, Job(**json.loads(job)))))
        except Exception as error:  # whatever the libraries raise must not end the others' race
            line = _FAILED + reason(error)
        sys.stdout.write(f"\n{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
