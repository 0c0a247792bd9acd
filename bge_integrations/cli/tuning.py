"""The commands that make models better, with their options: `bge pretrain`, `bge mine` and `bge train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from bge_integrations.cli.options import (
    AsJson,
    Device,
    EngineOfMany,
    Files,
    HowToPool,
    Instruction,
    Loading,
    MaxLength,
    Precision,
    Resume,
    Revision,
    Seed,
    TensorBoard,
    TrainingDevice,
    with_single_options,
)
from bge_integrations.cli.terminal import open_console, print_json

__all__ = ["mine", "pretrain", "train"]


@with_single_options
def mine(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Training data: a .jsonl, .json, .csv or .tsv file with queries and positives, LlamaIndex's .json "
            "file, a folder of such files, or a BEIR folder.",
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="Hub id or folder of the encoder.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="File for the data with negatives, such as out.jsonl."),
    ],
    corpus: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Passages to choose from: a .jsonl file with text (and title, document), a .txt file with a passage a "
            "line, or a BEIR folder; the passages of the data unless given.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--negatives", min=1, metavar="N", help="Negatives of a row.")] = 7,
    ranks: Annotated[str, typer.Option(metavar="A-B", help="The first and the last rank to choose from.")] = "2-200",
    relative_margin: Annotated[
        float,
        typer.Option(
            "--margin", min=0, metavar="N", help="A negative scores at least this share lower than the lowest positive."
        ),
    ] = 0.05,
    absolute_margin: Annotated[
        float | None, typer.Option(min=0, metavar="N", help="The same as a difference of scores; both must hold.")
    ] = None,
    sampling: Annotated[str, typer.Option(help="top: the nearest; random: any of these ranks.")] = "top",
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed gives another random choice.")] = 0,
    lexical: Annotated[
        bool, typer.Option("--lexical", help="Find every second negative by words (BM25); needs bm25s.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id or folder of a reranker that scores the result.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="File for the report with rows to read, as Markdown.")] = None,
    chart: Annotated[Path | None, typer.Option(help="Picture to draw, such as chart.png; needs matplotlib.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute everything; neither use nor keep results of other runs.")
    ] = False,
    precision: Precision = "auto",
    teacher_precision: Annotated[str, typer.Option(metavar="P", help="Precision of the reranker.")] = "auto",
    engine: EngineOfMany = "auto",
    device: Device = None,
    max_length: MaxLength = None,
    pooling: HowToPool = None,
    *,
    files: Files,
    as_json: AsJson = False,
) -> None:
    """Add hard negatives to training data: passages near to a query that do not answer it."""
    from bge_integrations.cli.mine import MinePlan, read_ranks
    from bge_integrations.cli.mine import mine as run
    from bge_integrations.training.mining.choice import MiningSettings, Sampling

    settings = MiningSettings(
        count=count,
        ranks=read_ranks(ranks),
        relative_margin=relative_margin,
        absolute_margin=absolute_margin,
        sampling=cast("Sampling", sampling),
        seed=seed,
        lexical=lexical,
    )
    options = {
        "precision": precision,
        "engine": engine,
        "device": device,
        "max_length": max_length,
        "pooling": pooling,
        **files.settings(),
    }
    plan = MinePlan(
        data=data,
        model=model,
        output=output,
        settings=settings,
        corpus=corpus,
        teacher=teacher,
        teacher_precision=teacher_precision,
        report=report,
        chart=chart,
        options=options,
        overwrite=force,
        keep=not no_cache,
        as_json=as_json,
    )
    run(plan)


@with_single_options
def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Rows of query, pos and neg (.jsonl, .csv, or a folder of them), a .json file of LlamaIndex's, or a "
            "BEIR folder.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder to start from.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to create.")],
    reranker: Annotated[
        bool, typer.Option("--reranker", help="Train a reranker. --model is one, or an encoder that becomes one.")
    ] = False,
    embedder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Embedding model that finds the passages that a reranker is judged on."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Passages of a query that a reranker is judged on.")
    ] = 100,
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the rows; 1 unless given.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Rows of a batch; 32 unless given, 16 for rerankers.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="R", help="Learning rate; 1e-5 unless given, 6e-5 for rerankers.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="Temperature; 0.02, or 0.01 for BGE's first models, unless given.")
    ] = None,
    negatives: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Negatives of a row; 7 unless given.")
    ] = None,
    easy_negatives: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="N", help="Part of them from other rows, for rerankers; 0.25 unless given."),
    ] = None,
    query_length: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="Tokens of a query; 64 unless given.")
    ] = None,
    passage_length: Annotated[
        int | None, typer.Option(min=3, metavar="N", help="Tokens of a passage; 256 unless given.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=5, metavar="N", help="Tokens of a pair, for rerankers; 512 unless given.")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="KIND", help="How the scores of the data act: kl_div or m3_kd_loss.")
    ] = None,
    guide: Annotated[str | None, typer.Option(metavar="MODEL", help="Model that tells false negatives.")] = None,
    teacher_margin: Annotated[
        float | None,
        typer.Option(metavar="N", help="Leave out negatives whose score is above the positive's less N."),
    ] = None,
    distil_from: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Learn the vectors of this model on the texts of DATA, without its labels."),
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(metavar="S,…", help="Average the result with its start, and keep the best of these shares."),
    ] = None,
    m3: Annotated[bool, typer.Option("--m3", help="Train all outputs of bge-m3: dense, sparse and colbert.")] = False,
    distil_after: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="With --m3: steps before its scores teach each other; 0 unless given."),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Train a LoRA adapter of this rank, such as 32, instead of all weights."),
    ] = None,
    lora_merge: Annotated[
        bool, typer.Option("--lora-merge", help="Save the whole model, with the adapter in its weights.")
    ] = False,
    same_source: Annotated[
        bool, typer.Option("--same-source", help="Fill a batch with rows of one file only.")
    ] = False,
    validation: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Data to choose the checkpoint by; a tenth of DATA unless given."),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Steps between evaluations on them; after each epoch unless given."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N evaluations without a better one.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data to judge by; a tenth of DATA unless given.")
    ] = None,
    general: Annotated[
        Path | None, typer.Option(metavar="DATA", help="Data of another kind, to see what is forgotten.")
    ] = None,
    instruction: Instruction = None,
    prepare_as: Annotated[
        str | None,
        typer.Option("--prepare", metavar="P", help="Also make a prepared folder: float32, bfloat16 or int8."),
    ] = None,
    resume: Resume = False,
    seed: Seed = None,
    tensorboard: TensorBoard = False,
    device: TrainingDevice = None,
    *,
    loading: Loading,
    as_json: AsJson = False,
) -> None:
    """Fine-tune an embedding model or a reranker on your own data, and see whether it helps on held-out questions."""
    from bge_integrations.cli.train import Job, print_outcome, run_training
    from bge_integrations.cli.train_options import embedder_of, lora_of, settings_of, shares_of
    from bge_integrations.settings import EncoderSettings

    start = EncoderSettings(
        model_name=model,
        device=device,
        query_instruction=instruction,
        **loading.settings(),
    )
    job = Job(
        data=data,
        start=start,
        output=output,
        settings=settings_of(
            distil_from,
            m3=m3,
            distil_after=distil_after,
            reranker=reranker,
            lora=lora_of(lora, merge=lora_merge),
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            temperature=temperature,
            negatives=negatives,
            easy_negatives=easy_negatives,
            query_length=query_length,
            passage_length=passage_length,
            max_length=max_length,
            distillation=teacher,
            guide=guide,
            teacher_margin=teacher_margin,
            same_source=same_source,
            evaluate_every=evaluate_every,
            patience=patience,
            seed=seed,
        ),
        validation=validation,
        test=test,
        general=general,
        prepared=prepare_as,
        resume=resume,
        report_to="tensorboard" if tensorboard else "none",
        distil_from=distil_from,
        merge=shares_of(merge),
        embedder=embedder_of(start, reranker=reranker, model=embedder, merge=merge),
        candidates=candidates,
    )
    outcome = run_training(job, open_console(stderr=True))
    if outcome is None:
        return
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_outcome(outcome, open_console())


@with_single_options
def pretrain(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Texts: a .jsonl file with text in each line, a .txt file with a text a line, a .parquet file, a "
            "folder of such files, or a folder that the library datasets has saved.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder to start from: BERT or XLM-RoBERTa.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="Folder to create.")],
    epochs: Annotated[float | None, typer.Option(metavar="N", help="Passes over the texts; 1 unless given.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Steps, instead of --epochs.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Texts of a batch in each process; 32 unless given.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(metavar="R", help="Learning rate; 2e-5 unless given.")] = None,
    length: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a text; longer ones are cut; 512 unless given.")
    ] = None,
    encoder_masking: Annotated[
        float | None, typer.Option(metavar="N", help="Part of the tokens that the encoder must tell; 0.3 unless given.")
    ] = None,
    decoder_masking: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Part of the words that a position of the decoder does not see; 0.5 unless given."
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Steps between checkpoints; 500 unless given.")
    ] = None,
    keep_head: Annotated[
        bool, typer.Option("--keep-head", help="Keep the head of masked language modelling in the folder.")
    ] = False,
    resume: Resume = False,
    seed: Seed = None,
    tensorboard: TensorBoard = False,
    device: TrainingDevice = None,
    revision: Revision = None,
    *,
    files: Files,
    as_json: AsJson = False,
) -> None:
    """Pre-train an encoder on plain texts by RetroMAE, as a start for `bge train`."""
    from bge_integrations.cli.pretrain import Plan, print_outcome, run_pretraining, settings_of
    from bge_integrations.settings import EncoderSettings

    plan = Plan(
        data=data,
        start=EncoderSettings(
            model_name=model,
            device=device,
            revision=revision,
            **files.settings(),
        ),
        output=output,
        settings=settings_of(
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            length=length,
            encoder_masking=encoder_masking,
            decoder_masking=decoder_masking,
            save_every=save_every,
            seed=seed,
        ),
        keep_head=keep_head,
        resume=resume,
        report_to="tensorboard" if tensorboard else "none",
    )
    outcome = run_pretraining(plan, open_console(stderr=True))
    if outcome is None:
        return
    if as_json:
        print_json(outcome.to_dict())
    else:
        print_outcome(outcome, open_console())
