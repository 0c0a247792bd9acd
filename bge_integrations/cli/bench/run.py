"""Loads every engine and precision that can run a model here, measures them and returns the report."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import get_args

from typing_extensions import Unpack

from bge_integrations.cli.bench.measuring import Runner, evaluate, race
from bge_integrations.cli.bench.recommending import recommend
from bge_integrations.cli.bench.results import BenchReport, Combination
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import ModelLoadError, PoolingMismatchError, SettingsError
from bge_integrations.settings import EmbedderFileOptions, EncoderSettings, EngineName, Precision

__all__ = ["run_bench"]

_LOADING_SHARE = 0.5
_STEADY_SPREAD = 1.25


def run_bench(
    model: str,
    seconds: float = 120.0,
    *,
    device: str | None = None,
    engines: Sequence[EngineName] | None = None,
    precisions: Sequence[Precision] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    **files: Unpack[EmbedderFileOptions],
) -> BenchReport:
    """Compares all engines and precisions for a model, in turns, on docstrings of Python's standard library.

    Args:
        model: Hub id, local folder, or prepared folder.
        seconds: Approximate duration. Half of it is for loading, which can take longer the first time, when graphs are
            made. After this half no further combination is loaded, but always at least one.
        device: Device. `None`: the first available one of cuda, mps and cpu that supports everything to compare.
        engines: Engines to compare. `None`: all engines.
        precisions: Precisions to compare. `None`: float32, bfloat16 and, on a CPU, int8, elsewhere float16.
        tell: Function that gets texts about the progress, for people to read.
        **files: Settings about the model's files, as in `BgeEncoder`.

    Raises:
        SettingsError: No combination can be run.
        ModelLoadError: The model can't be found or read.
        PoolingMismatchError: A BGE model's own files ask for another pooling.
    """
    from bge_integrations.backend.engines.choice import require_usable

    started = time.monotonic()
    device, threads = _place(model, device, engines, precisions)
    wanted = _combinations(device, engines, precisions)
    left_out: dict[str, str] = {}
    not_loaded: list[Combination] = []
    with contextlib.ExitStack() as encoders:
        runners: list[Runner] = []
        for combination in wanted:
            try:
                # Before the check of the time, so that the reason is the right one.
                require_usable(combination.engine, device, combination.precision)
                if runners and time.monotonic() - started > seconds * _LOADING_SHARE:
                    left_out[combination.keywords] = f"no time left to load it; allow more than {seconds:g} s"
                    not_loaded.append(combination)
                    continue
                tell(f"loading {combination.keywords}")
                runners.append(Runner(combination, encoders.enter_context(_load(model, device, combination, files))))
            except (ModelLoadError, PoolingMismatchError):  # no engine can help that
                raise
            except Exception as error:  # engines on unknown machines can raise anything
                left_out[combination.keywords] = str(error) or type(error).__name__
        if not runners:
            raise SettingsError(f"Nothing can run {model} on {device}: {' '.join(dict.fromkeys(left_out.values()))}")
        rounds = race(runners, started + seconds, tell)
        measured = evaluate(runners)
    exact, lossy = recommend(measured)
    return BenchReport(
        model=model,
        device=device,
        threads=threads if device == "cpu" else None,
        rounds=rounds,
        seconds=time.monotonic() - started,
        mean_tokens=runners[0].tokens / len(runners[0].texts),
        measured=tuple(measured),
        left_out=left_out,
        not_loaded=tuple(not_loaded),
        exact=exact,
        lossy=lossy,
        is_noisy=statistics.median(one.spread for one in measured) > _STEADY_SPREAD,
    )


def _place(
    model: str, device: str | None, engines: Sequence[EngineName] | None, precisions: Sequence[Precision] | None
) -> tuple[str, int]:
    """Returns the common device of all combinations, and the number of threads of a model there."""
    from bge_integrations.backend.checkpoint.request import LoadRequest

    any_engine: tuple[EngineName, ...] = ("auto",)
    any_precision: tuple[Precision, ...] = ("auto",)
    requests = [
        LoadRequest.from_settings(EncoderSettings(model_name=model, device=device, engine=engine, precision=precision))
        for engine, precision in itertools.product(engines or any_engine, precisions or any_precision)
    ]
    # The CPU supports most combinations: if one needs it, all run there.
    request = next((request for request in requests if request.device == "cpu"), requests[0])
    return request.device, request.threads


def _combinations(
    device: str, engines: Sequence[EngineName] | None, precisions: Sequence[Precision] | None
) -> list[Combination]:
    """Returns the combinations: float32 first, since it is the reference, int8 last, since it takes longest."""
    here: tuple[Precision, ...] = ("float32", "bfloat16", "int8" if device == "cpu" else "float16")
    chosen = engines or [engine for engine in get_args(EngineName) if engine != "auto"]
    return [Combination(engine, precision) for precision, engine in itertools.product(precisions or here, chosen)]


def _load(model: str, device: str, combination: Combination, files: EmbedderFileOptions) -> BgeEncoder:
    encoder = BgeEncoder(
        model,
        device=device,
        engine=combination.engine,
        precision=combination.precision,
        on_truncation="ignore",
        **files,
    )
    # One call of each kind, since compilation at the first use belongs to loading.
    encoder.encode_documents(["A first text.", "A second one."])
    encoder.encode_queries(["a query"])
    return encoder
