"""Loads everything that can run a model here, has it measured, and sums up what came of it."""

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
    """Compares everything that can run a model, in turns, on docstrings of Python's standard library.

    Args:
        model: Hub id, local folder, or prepared folder.
        seconds: About how long it may take. Half of it is for loading, which may take longer the first time, when
            graphs are made; what has not begun to load by then is left out, though never all.
        device: Where to run; None takes the first there is of cuda, mps and cpu on which all that is asked for can run.
        engines: Only these; None takes all.
        precisions: Only these; None takes float32, bfloat16 and, on a CPU, int8, elsewhere float16.
        tell: Called with what goes on, for people to read.
        **files: Where the model's files come from and how they are read; as in `BgeEncoder`.

    Raises:
        SettingsError: No combination can be run.
        ModelLoadError: The model can't be found or read.
        PoolingMismatchError: A BGE model whose own files ask for another pooling.
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
                # What can't run here at all is not for lack of time.
                require_usable(combination.engine, device, combination.precision)
                if runners and time.monotonic() - started > seconds * _LOADING_SHARE:
                    left_out[combination.keywords] = f"no time left to load it; allow more than {seconds:g} s"
                    not_loaded.append(combination)
                    continue
                tell(f"loading {combination.keywords}")
                runners.append(Runner(combination, encoders.enter_context(_load(model, device, combination, files))))
            except (ModelLoadError, PoolingMismatchError):  # no engine can help that
                raise
            except Exception as error:  # engines on machines that we have not seen raise whatever they like
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
    """Returns the device on which all that is asked for is compared, and the threads that a model there takes."""
    from bge_integrations.backend.checkpoint.request import LoadRequest

    any_engine: tuple[EngineName, ...] = ("auto",)
    any_precision: tuple[Precision, ...] = ("auto",)
    requests = [
        LoadRequest.from_settings(EncoderSettings(model_name=model, device=device, engine=engine, precision=precision))
        for engine, precision in itertools.product(engines or any_engine, precisions or any_precision)
    ]
    # The processor is what can do most: what needs it decides for the others.
    request = next((request for request in requests if request.device == "cpu"), requests[0])
    return request.device, request.threads


def _combinations(
    device: str, engines: Sequence[EngineName] | None, precisions: Sequence[Precision] | None
) -> list[Combination]:
    """Lists what to try, float32 first since the others are compared with it, int8 last since it takes longest."""
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
    # Once through either way: what an engine compiles at its first use belongs to loading.
    encoder.encode_documents(["A first text.", "A second one."])
    encoder.encode_queries(["a query"])
    return encoder
