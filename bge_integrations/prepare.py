"""Converts a model to a folder that loads offline and without torch."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from bge_integrations.backend.checkpoint.checks import locate_requested, pooling_is_guessed, vet
from bge_integrations.backend.checkpoint.files import Checkpoint
from bge_integrations.backend.checkpoint.location import name_without_path
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.display.steps import shown_steps
from bge_integrations.backend.engines.choice import require_usable
from bge_integrations.backend.loading.sources import Sources
from bge_integrations.backend.prepared.folder import Manifest, QuantizationChoice
from bge_integrations.backend.prepared.output import folder_to_fill, not_writable, output_folder
from bge_integrations.calls.inputs import check_texts
from bge_integrations.calls.progress import warn_user
from bge_integrations.catalogue.instructions import resolve_instruction
from bge_integrations.errors import PoolingWarning, SettingsError, UnsupportedModelError
from bge_integrations.settings import EncoderSettings, Pooling, Purpose

PreparedPrecision = Literal["float32", "bfloat16", "int8"]

_FEWEST_TEXTS = 10


def prepare(
    model_name: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precision: PreparedPrecision = "float32",
    purpose: Purpose | None = None,
    pooling: Pooling | None = None,
    quantization: QuantizationChoice | None = None,
    calibration: Sequence[str] | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    allow_pickle_weights: bool = False,
) -> Manifest:
    """Prepares a model for OpenVINO on the CPU.

    The folder's path is then a valid `model_name`. The folder holds everything that this package needs to run the
    model: graph, weights, tokenizer, query instruction, pooling and other facts.

    Args:
        model_name: Hub id or local folder of a BERT or XLM-RoBERTa encoder.
        output: Folder to create. An existing folder must be empty, such as the current folder or a mounted volume.
        precision: Precision in which the prepared model computes.
        purpose: Use of the model: `"vectors"`, `"scores"` (for a reranker), or `"m3"` for bge-m3's lexical weights and
            token vectors beside its dense vectors. `None`: `"scores"` for rerankers, `"vectors"` for other models.
        pooling: How the hidden states of a text's tokens become its vector: `"cls"`, `"mean"` or `"last"`. `None`: as
            the model was trained.
        quantization: Method for int8. `"dynamic"`, the default: weights are rounded now, activations while the model
            runs. `"static"`: the ranges of activations are fixed with calibration texts. `"mixed"`: only those of the
            activations without large outliers. `"fastest"`: all three are made and measured on this machine. The one
            nearest to float32 is kept, unless another is more than 5 % faster and its least cosine is at least 0.99.
        calibration: At least 10 texts similar to those of the later use. They serve for fixing ranges, and for
            measuring agreement and speed. `None`: texts that come with the package.
        revision: Branch, tag or commit on the hub.
        cache_folder: Folder for hub files.
        token: Hub token.
        trust_remote_code: Whether to run Python code that comes with the checkpoint.
        local_files_only: Whether to use only local files and never connect to the hub.
        allow_pickle_weights: Whether to load `pytorch_model.bin` if the checkpoint has no safetensors.

    Returns:
        The manifest of the folder, with the measured agreement with float32 and the measured speeds.

    Raises:
        SettingsError: An argument is invalid or not supported, or the folder can't be written.
        UnsupportedModelError: OpenVINO can't run the model here.
        ModelLoadError: The model can't be found, downloaded or read.
        MissingExtraError: OpenVINO is not installed, or nncf, which quantises statically.
    """
    texts = None if calibration is None else check_texts(calibration, "prepare")
    _check(precision, purpose, quantization, texts)
    target = output_folder(output)
    request = LoadRequest.from_settings(
        EncoderSettings(
            model_name=os.fspath(model_name),
            pooling=pooling,
            device="cpu",
            precision="float32",
            revision=revision,
            cache_folder=cache_folder,
            token=token,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
            allow_pickle_weights=allow_pickle_weights,
        ),
        purpose or "vectors",
    )
    require_usable("openvino", "cpu", "float32")
    if quantization not in (None, "dynamic"):
        from bge_integrations.backend.engines.openvino.library import import_quantizer

        import_quantizer()
    # Created before the download, so that a folder that can't be written fails first.
    title = f"Preparing {name_without_path(request.model_name)}"
    with folder_to_fill(target) as unfinished, shown_steps(title):
        manifest = _write(
            unfinished,
            target,
            request,
            precision=precision,
            of_any_purpose=purpose is None,
            quantization=quantization,
            calibration=texts,
        )
        # The libraries' models are reference cycles and keep the weights' file mapped. Windows can't delete such files.
        gc.collect()
    return manifest


def _write(
    folder: Path,
    target: Path,
    request: LoadRequest,
    *,
    precision: PreparedPrecision,
    of_any_purpose: bool,
    quantization: QuantizationChoice | None,
    calibration: Sequence[str] | None,
) -> Manifest:
    """Loads the model and writes it into an empty folder. The caller moves this folder to the target."""
    name = request.model_name
    checkpoint = locate_requested(request)
    if is_prepared(checkpoint.folder):
        raise UnsupportedModelError(f"{name} is prepared already; give the model that it was made from.")
    if of_any_purpose and _is_reranker(checkpoint):
        request = dataclasses.replace(request, purpose="scores")
    if request.purpose == "scores" and checkpoint.is_decoder:
        raise UnsupportedModelError(f"{name} can't be prepared: it is a decoder, and prepared models are encoders.")
    spec = vet(checkpoint, request)
    if note := pooling_is_guessed(checkpoint, request):
        warn_user(note, PoolingWarning)

    from bge_integrations.backend.prepared.build import prepared_from

    sources = Sources(request, checkpoint, spec)
    model = sources.description()
    if model is None:
        raise UnsupportedModelError(f"{name} can't be prepared: it is no {sources.runnable}.")
    if not model.tokenizer.has_rust_form:
        raise UnsupportedModelError(
            f"{name} can't be prepared: its tokenizer exists in Python only, and a prepared folder holds a "
            "tokenizer.json. It can be used as it is, with engine='torch'."
        )
    instruction = resolve_instruction(
        "symmetric" if request.purpose == "scores" else "query",
        explicit=None,
        task=None,
        spec=spec,
        saved_prompts=model.facts.prompts,
        default_prompt_name=model.facts.default_prompt_name,
        recognized_by=model.facts.recognized_by,
    )
    made = prepared_from(
        model,
        request,
        checkpoint,
        spec,
        precision=precision,
        quantization=quantization,
        calibration=calibration,
        query_instruction=instruction.prefix,
    )
    try:
        made.write(folder)
    except OSError as error:
        raise not_writable(target, error) from error
    return made.manifest


def read_calibration(file: str | os.PathLike[str]) -> list[str]:
    """Reads texts from a UTF-8 file with one text a line. Empty lines are left out.

    Raises:
        SettingsError: The file can't be read, or it is not UTF-8.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(
            f"calibration={os.fspath(file)!r} can't be read: {error.strerror or error}. Name a file that the user who "
            "runs this may read."
        ) from error
    except ValueError as error:
        raise SettingsError(
            f"calibration={os.fspath(file)!r} can't be read as UTF-8 ({error}); save the file in this encoding."
        ) from error
    return [line for line in lines if line.strip()]


def _is_reranker(checkpoint: Checkpoint) -> bool:
    found = checkpoint.recognition
    return found.spec.kind == "reranker" if found else checkpoint.scores_pairs and not checkpoint.is_decoder


def _check(
    precision: str,
    purpose: str | None,
    quantization: str | None,
    calibration: Sequence[str] | None,
) -> None:
    for name, value, allowed in (
        ("precision", precision, get_args(PreparedPrecision)),
        ("purpose", purpose, (None, *get_args(Purpose))),
        ("quantization", quantization, (None, *get_args(QuantizationChoice))),
    ):
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed if choice)
            raise SettingsError(f"{name}={value!r} can't be prepared; choose one of {choices}.")
    if quantization is not None and precision != "int8":
        raise SettingsError(f"quantization={quantization!r} needs precision='int8', but that is {precision!r}.")
    if calibration is not None and len(calibration) < _FEWEST_TEXTS:
        raise SettingsError(f"calibration has {len(calibration)} texts; give at least {_FEWEST_TEXTS}, better 200.")
