"""Rerankers, bge-m3 and decoders on a GPU: pairs or texts a second beside other libraries.

Everybody computes the same with the same random weights of true width, one after the other. Outputs are first compared
with those of plain float32; who gives others is left out.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.lineup import reason
from benchmarks.shapes import Decoder, decoder_checkpoint, m3_checkpoint, reranker_checkpoint
from benchmarks.shares import rate
from benchmarks.table_parts import make_table, print_left_out
from benchmarks.texts import enlarged, make_mix
from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.calls.m3 import M3Output
from bge_integrations.catalogue import M3_HEAD_FILES

_CHECKED = 32
_LONGEST = 512
_SMALL_BATCH, _LARGE_BATCH = 32, 256
_LEAST_COSINE = 0.99
_LEAST_AGREEMENT_OF_SCORES = 0.9

Compute = Callable[[Sequence[Any]], Any]
"""Texts or pairs in, outputs on the processor out."""


@dataclass(frozen=True)
class Racer:
    """One way to compute.

    Attributes:
        name: In tables.
        load: Loads the model.
        form: Brings its outputs into the form of the race; not timed.
    """

    name: str
    load: Callable[[], Compute]
    form: Callable[[Any], Any] = lambda outputs: outputs


@dataclass(frozen=True, kw_only=True)
class Race:
    """What is computed, and by whom.

    Attributes:
        title: The model.
        unit: "pairs" or "texts".
        items: These.
        reference: Gives the right outputs; not timed.
        racers: Who is measured. Others are compared with the first.
        agreement: How near outputs are to the right ones; 1 is equal.
        least: What must be reached.
    """

    title: str
    unit: str
    items: Sequence[Any]
    reference: Racer
    racers: Sequence[Racer]
    agreement: Callable[[Any, Any], float]
    least: float


@dataclass(frozen=True)
class Where:
    """Where models are, and how they compute.

    Attributes:
        workdir: The folder where models are kept.
        device: The device.
        precision: "float16" or another that all know.
    """

    workdir: Path
    device: str
    precision: str


def measure(race: Race, seconds: float) -> dict[str, Any]:
    """Runs a race.

    Args:
        race: The race.
        seconds: Least time for each racer.

    Returns:
        Plain data: `title`, `unit`, `items`, `left_out`, and `results` by name: `per_s` and `agreement`.
    """
    expected = race.reference.form(race.reference.load()(race.items[:_CHECKED]))
    results: dict[str, dict[str, float]] = {}
    left_out: dict[str, str] = {}
    for racer in race.racers:
        _give_memory_back()  # of the one before
        try:
            results[racer.name] = _measured(race, racer, expected, seconds)
        except Exception as error:  # whatever these libraries raise must not end the others' race
            left_out[racer.name] = reason(error)
    _give_memory_back()
    return {
        "title": race.title,
        "unit": race.unit,
        "items": len(race.items),
        "results": results,
        "left_out": left_out,
    }


def _measured(race: Race, racer: Racer, expected: Any, seconds: float) -> dict[str, float]:  # noqa: ANN401 - any outputs
    compute = racer.load()
    agreement = race.agreement(racer.form(compute(race.items[:_CHECKED])), expected)
    if not agreement >= race.least:  # also if it is NaN
        raise ValueError(f"other outputs than {race.reference.name}: agreement {agreement:.4f}")
    return {"per_s": rate(partial(_count, compute, race.items), seconds), "agreement": agreement}


def _count(compute: Compute, items: Sequence[Any]) -> float:
    compute(items)
    return float(len(items))


def _give_memory_back() -> None:
    import torch

    gc.collect()  # models of libraries are reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def print_race(console: Console, result: dict[str, Any]) -> None:
    """Prints a table, the fastest first."""
    table = make_table(
        f"{result['title']}: {result['items']:,} {result['unit']}", f"{result['unit']}/s", "ratio", "agreement"
    )
    results = result["results"]
    baseline = next(iter(results.values()), None)
    for name, one in sorted(results.items(), key=lambda item: -float(item[1]["per_s"])):
        ratio = one["per_s"] / baseline["per_s"] if baseline else 1.0
        table.add_row(name, f"{one['per_s']:,.0f}", f"{ratio:.2f}", f"{one['agreement']:.5f}")
    console.print(table)
    print_left_out(console, result["left_out"])


def rerankers(where: Where, size: str, *, pairs: int) -> Race:
    """Describes the race of rerankers.

    Args:
        where: Where they compute.
        size: "tiny", "base" or "large".
        pairs: Number of pairs.
    """
    folder = reranker_checkpoint(size, where.workdir)
    passages = enlarged(make_mix("mixed", pairs, folder), pairs, folder).texts
    queries = make_mix("queries", 64, folder).texts
    theirs = partial(_cross_encoder, folder, where.device)
    return Race(
        title=f"shape of bge-reranker-{size}, {where.precision}",
        unit="pairs",
        items=[(queries[index % len(queries)], passage) for index, passage in enumerate(passages)],
        reference=Racer("CrossEncoder in float32", partial(theirs, "float32", _SMALL_BATCH)),
        racers=(
            Racer("CrossEncoder, batches of 32", partial(theirs, where.precision, _SMALL_BATCH)),
            Racer("CrossEncoder, batches of 256", partial(theirs, where.precision, _LARGE_BATCH)),
            Racer("FlagReranker, batches of 256", partial(_flag_reranker, folder, where)),
            Racer("bge", partial(_our_reranker, folder, where)),
        ),
        agreement=_agreement_of_scores,
        least=_LEAST_AGREEMENT_OF_SCORES,
    )


def _cross_encoder(folder: Path, device: str, precision: str, batch: int) -> Compute:
    import torch
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device=device, model_kwargs={"dtype": getattr(torch, precision)})
    return partial(model.predict, batch_size=batch, activation_fn=torch.nn.Identity())


def _flag_reranker(folder: Path, where: Where) -> Compute:
    library = importlib.import_module("FlagEmbedding")
    half = where.precision == "float16"
    model = library.FlagReranker(str(folder), use_fp16=half, devices=where.device, batch_size=_LARGE_BATCH)
    compute: Compute = model.compute_score
    return compute


def _our_reranker(folder: Path, where: Where) -> Compute:
    settings: dict[str, Any] = {"device": where.device, "precision": where.precision}
    return BgeReranker(folder, on_truncation="ignore", **settings).score_pairs


def _agreement_of_scores(found: Any, expected: Any) -> float:  # noqa: ANN401 - whatever holds numbers
    """Returns 1 minus the largest error, as a part of how far the scores are apart."""
    right, given = (np.asarray(scores, dtype=np.float64).reshape(-1) for scores in (expected, found))
    return 1 - float(np.abs(given - right).max() / np.ptp(right))


def m3(where: Where, size: str, *, texts: int) -> Race:
    """Describes the race of the three outputs of bge-m3; the arguments are those of `rerankers`."""
    folder = m3_checkpoint(size, where.workdir)
    return Race(
        title=f"bge-m3's three outputs, shape {size}, {where.precision}",
        unit="texts",
        items=make_mix("mixed", texts, folder).texts,
        reference=Racer("transformers in float32", partial(_plain_m3, folder, where.device, "float32", _SMALL_BATCH)),
        racers=(
            Racer(
                "transformers, sorted, batches of 256",
                partial(_plain_m3, folder, where.device, where.precision, _LARGE_BATCH),
            ),
            Racer("BGEM3FlagModel, batches of 256", partial(_flag_m3, folder, where), _of_flag_m3),
            Racer("bge", partial(_our_m3, folder, where)),
        ),
        agreement=_agreement_of_m3,
        least=_LEAST_COSINE,
    )


def _plain_m3(folder: Path, device: str, precision: str, batch: int) -> Compute:
    """Computes the three outputs with transformers, by the formulas of the model's authors."""
    import torch
    from torch.nn import functional

    model = _Padded(folder, device, precision)
    heads = {
        name: {
            key: tensor.to(device, model.dtype) for key, tensor in torch.load(folder / file, weights_only=True).items()
        }
        for name, file in M3_HEAD_FILES.items()
    }
    special = {*model.tokenizer.all_special_ids}

    def compute(texts: Sequence[str]) -> M3Output:
        dense: list[Any] = [None] * len(texts)
        sparse: list[dict[int, float]] = [{} for _ in texts]
        colbert: list[Any] = [None] * len(texts)
        for indices, ids, states in model.batches(texts, batch):
            vectors = functional.normalize(states[:, 0], dim=-1).float().cpu().numpy()
            weights = functional.relu(functional.linear(states, **heads["sparse"]))[..., 0].tolist()
            rows = functional.normalize(functional.linear(states[:, 1:], **heads["colbert"]), dim=-1)
            tokens = rows.float().cpu().numpy()
            for place, index in enumerate(indices):
                dense[index] = vectors[place]
                colbert[index] = tokens[place, : len(ids[place]) - 1].copy()
                for token, weight in zip(ids[place], weights[place], strict=False):  # padding follows the text
                    if weight > 0 and token not in special:
                        sparse[index][token] = max(weight, sparse[index].get(token, 0.0))
        return M3Output(np.stack(dense), sparse, colbert)

    return compute


def _flag_m3(folder: Path, where: Where) -> Compute:
    library = importlib.import_module("FlagEmbedding")
    model = library.BGEM3FlagModel(str(folder), use_fp16=where.precision == "float16", devices=where.device)
    outputs = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    return partial(model.encode, batch_size=_LARGE_BATCH, max_length=_LONGEST, **outputs)


def _of_flag_m3(outputs: Any) -> M3Output:  # noqa: ANN401 - a library that may be missing
    weights = [{int(token): float(weight) for token, weight in one.items()} for one in outputs["lexical_weights"]]
    return M3Output(outputs["dense_vecs"], weights, outputs["colbert_vecs"])


def _our_m3(folder: Path, where: Where) -> Compute:
    settings: dict[str, Any] = {"device": where.device, "precision": where.precision}
    return BgeM3Encoder(folder, allow_pickle_weights=True, on_truncation="ignore", **settings).encode_documents


def _agreement_of_m3(found: M3Output, expected: M3Output) -> float:
    """Returns the least cosine of any vector; the lexical weights of all texts are one vector."""
    given, right = (
        {(text, token): weight for text, weights in enumerate(one.sparse or ()) for token, weight in weights.items()}
        for one in (found, expected)
    )
    keys = {*given, *right}
    lexical = [[[one.get(key, 0.0) for key in keys]] for one in (given, right)]
    return min(
        _least_cosine(found.dense, expected.dense),
        _least_cosine(*lexical),
        *map(_least_cosine, found.colbert or (), expected.colbert or ()),
    )


def decoders(where: Where, decoder: Decoder, *, texts: int) -> Race:
    """Describes the race of a decoder of few layers; see `rerankers` for the other arguments."""
    folder = decoder_checkpoint(decoder, where.workdir)
    plain = partial(_plain_decoder, folder, where.device)
    return Race(
        title=f"{decoder.folder_name}, {decoder.layers} of its layers, {where.precision}",
        unit="texts",
        items=_Padded.short_enough(folder, make_mix("mixed", texts, folder).texts),
        reference=Racer("transformers in float32", partial(plain, "float32", _SMALL_BATCH)),
        racers=(
            Racer("transformers, sorted, batches of 32", partial(plain, where.precision, _SMALL_BATCH)),
            Racer("transformers, sorted, batches of 256", partial(plain, where.precision, _LARGE_BATCH)),
            Racer("bge", partial(_our_decoder, folder, where)),
        ),
        agreement=_least_cosine,
        least=_LEAST_COSINE,
    )


def _plain_decoder(folder: Path, device: str, precision: str, batch: int) -> Compute:
    """Pools the last token of each text, as the models' authors do."""
    import torch
    from torch.nn import functional

    model = _Padded(folder, device, precision)

    def compute(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: list[Any] = [None] * len(texts)
        for indices, ids, states in model.batches(texts, batch):
            last = torch.tensor([len(one) - 1 for one in ids], device=states.device)
            rows = functional.normalize(states[torch.arange(len(last), device=states.device), last].float(), dim=-1)
            for index, row in zip(indices, rows.cpu().numpy(), strict=True):
                vectors[index] = row
        return np.stack(vectors)

    return compute


def _our_decoder(folder: Path, where: Where) -> Compute:
    settings: dict[str, Any] = {"device": where.device, "precision": where.precision}
    return BgeEncoder(folder, on_truncation="ignore", **settings).encode_documents


class _Padded:
    """A model of transformers on padded batches of texts, sorted by length."""

    def __init__(self, folder: Path, device: str, precision: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.dtype = getattr(torch, precision)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder, dtype=self.dtype).to(device).eval()
        self._device = device

    @staticmethod
    def short_enough(folder: Path, texts: Sequence[str]) -> list[str]:
        """Returns the texts that no model cuts."""
        from transformers import AutoTokenizer

        ids = AutoTokenizer.from_pretrained(folder)(list(texts))["input_ids"]
        return [text for text, one in zip(texts, ids, strict=True) if len(one) <= _LONGEST]

    def batches(self, texts: Sequence[str], size: int) -> Iterator[tuple[list[int], list[list[int]], Any]]:
        """Yields positions of texts, their token ids, and their states on the device, padded at the end."""
        import torch

        ids = self.tokenizer(list(texts), truncation=True, max_length=_LONGEST)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: -len(ids[index]))
        for start in range(0, len(order), size):
            indices = order[start : start + size]
            own = [ids[index] for index in indices]
            padded = self.tokenizer.pad({"input_ids": own}, padding_side="right", return_tensors="pt").to(self._device)
            with torch.inference_mode():
                yield indices, own, self._model(**padded).last_hidden_state


def _least_cosine(found: Any, expected: Any) -> float:  # noqa: ANN401 - whatever holds vectors
    given, right = (np.asarray(rows, dtype=np.float64) for rows in (found, expected))
    norms = np.linalg.norm(given, axis=1) * np.linalg.norm(right, axis=1)
    return float((np.einsum("td,td->t", given, right) / norms).min())
