"""Loads a checkpoint as a BGE model wants it: device, precision, pooling; then keeps it with its tokenizer."""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from bge_integrations.backend.checkpoint import Checkpoint, locate
from bge_integrations.backend.engines.sentence_transformers import SentenceTransformersEngine
from bge_integrations.backend.tokenization import TextTokenizer
from bge_integrations.catalogue import ModelSpec, find_model
from bge_integrations.errors import (
    DeviceNotAvailableError,
    ModelLoadError,
    PoolingMismatchError,
    UnsupportedModelError,
)
from bge_integrations.settings import EncoderSettings, TransformersKwargs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bge_integrations.backend.engines import Engine, TokenBatch

logger = logging.getLogger(__name__)

_POOLING_MODES = {"cls": "cls", "last_token": "lasttoken"}
# RoBERTa-like position tables start after the padding index, so that many of their rows are never used.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer")


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """Everything that a loaded model depends on; equal requests share one. The token only opens the door."""

    model_name: str
    device: str
    precision: str
    revision: str | None = None
    cache_folder: str | None = None
    trust_remote_code: bool = False
    local_files_only: bool = False
    allow_pickle_weights: bool = False
    transformers_kwargs: TransformersKwargs = field(default_factory=TransformersKwargs)
    token: str | bool | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_settings(cls, settings: EncoderSettings) -> LoadRequest:
        """Takes what concerns loading, with device and precision resolved.

        Raises:
            DeviceNotAvailableError: If the device is not on this machine.
        """
        device = resolve_device(settings.device)
        return cls(
            model_name=settings.model_name,
            device=device,
            precision=resolve_precision(settings.precision, device),
            revision=settings.revision,
            cache_folder=settings.cache_folder,
            trust_remote_code=settings.trust_remote_code,
            local_files_only=settings.local_files_only,
            allow_pickle_weights=settings.allow_pickle_weights,
            transformers_kwargs=settings.transformers_kwargs,
            token=settings.token,
        )


def resolve_device(device: str | None) -> str:
    """Returns the device to use, the first there is of cuda, mps and cpu for None or `"auto"`.

    Raises:
        DeviceNotAvailableError: If it is not on this machine, naming those that are.
    """
    available = available_devices()
    if device in (None, "auto"):
        return available[0]
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", str(device))
    known = {name.split(":")[0] for name in available}
    if match and match[1] in known and (match[1] != "cuda" or int(match[2] or 0) < torch.cuda.device_count()):
        # "cuda" and "cuda:0", or "cpu" and "cpu:0", are one device and must share one model.
        return f"cuda:{match[2] or 0}" if match[1] == "cuda" else match[1]
    raise DeviceNotAvailableError(
        f"device={device!r} is not on this machine; it has {', '.join(map(repr, available))}. Leave "
        "device=None to take the first of these."
    )


def available_devices() -> list[str]:
    """Returns the devices that models can run on here, best first."""
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return [*devices, "cpu"]


def resolve_precision(precision: str, device: str) -> str:
    """Returns the precision to compute in: `"auto"` is float16 on CUDA, as the authors run their models."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"


class LoadedModel:
    """One model in memory, shared by every encoder with an equal `LoadRequest`.

    Attributes:
        spec: The catalogue's row, or None for a model that is no BGE.
        checkpoint: Where it came from.
        sentence_transformer: The model as sentence-transformers loaded it.
        tokenizer: A private copy of its tokenizer.
        dimension: Length of its vectors.
        max_tokens: The longest text it reads, special tokens included.
        checkpoint_normalizes: Whether the checkpoint's own modules end in an L2 normalisation.
    """

    def __init__(self, request: LoadRequest) -> None:
        """Loads the model; see `sharing.acquire`, which does so once.

        Raises:
            ModelLoadError: Or one of its kinds, if the files can't be had or read.
            PoolingMismatchError: A BGE model whose files ask for another pooling.
            UnsupportedModelError: Not an embedding model, or without a transformer.
        """
        self.request = request
        self.checkpoint = locate(
            request.model_name,
            revision=request.revision,
            cache_folder=request.cache_folder,
            token=request.token,
            local_files_only=request.local_files_only,
            allow_pickle_weights=request.allow_pickle_weights,
            trust_remote_code=request.trust_remote_code,
        )
        self.spec = find_model(request.model_name) or find_model(self.checkpoint.folder)
        _require_embedder(self.spec, request.model_name)
        self.checkpoint.require_loadable(
            allow_pickle_weights=request.allow_pickle_weights, trust_remote_code=request.trust_remote_code
        )
        if self.spec:
            _require_matching_pooling(self.spec, self.checkpoint)
        self.sentence_transformer = _load(request, self.checkpoint, self.spec)
        self.tokenizer = TextTokenizer(self.sentence_transformer.tokenizer)
        modules = list(self.sentence_transformer)
        self.checkpoint_normalizes = isinstance(modules[-1], Normalize)
        self.dimension = int(self.sentence_transformer.get_embedding_dimension() or 0)
        self.max_tokens = self._longest_text()
        self.engine: Engine = SentenceTransformersEngine(
            modules[:-1] if self.checkpoint_normalizes else modules,
            device=self.sentence_transformer.device,
            pad_id=self.tokenizer.pad_id,
        )
        self._pools_without_prompt = any(isinstance(m, Pooling) and not m.include_prompt for m in modules)
        self._lock = threading.Lock()
        logger.info(
            "loaded %s: %s, %s, engine %s, %d dimensions, %d tokens",
            request.model_name,
            request.device,
            request.precision,
            self.engine.name,
            self.dimension,
            self.max_tokens,
        )

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return self.request.device

    @property
    def identity(self) -> str:
        """Tells this checkpoint from any other, by content, so that a copied folder keeps its identity."""
        return self.checkpoint.fingerprint

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts saved in the checkpoint."""
        return {name: text or "" for name, text in self.sentence_transformer.prompts.items()}

    def pool(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Runs one batch; see `Engine.pool`. One batch at a time, since each already uses every core."""
        with self._lock:
            return self.engine.pool(batch)

    def prompt_length(self, instruction: str) -> int:
        """Returns how many leading tokens to leave out of pooling: 0 unless the checkpoint asks for it."""
        if not instruction or not self._pools_without_prompt:
            return 0
        ids = self.tokenizer.tokenize([instruction], self.max_tokens).ids[0]
        return len(ids) - self.tokenizer.suffix_tokens

    def position_capacity(self) -> int | None:
        """Returns how many tokens the model has positions for; None where its positions are unbounded."""
        config = self.checkpoint.config
        positions = config.get("max_position_embeddings")
        if not isinstance(positions, int) or positions <= 0:
            return None
        if config.get("model_type") in _OFFSET_POSITIONS:
            positions -= int(config.get("pad_token_id") or 0) + 1
        return positions

    def _longest_text(self) -> int:
        limits = [self.sentence_transformer.max_seq_length, self.position_capacity()]
        if self.spec:
            limits.append(self.spec.max_tokens)
        known = [int(limit) for limit in limits if limit]
        return min(known) if known else sys.maxsize

    def __del__(self) -> None:
        """Gives the weights back at once: sentence-transformers' models are reference cycles."""
        if self.__dict__.pop("sentence_transformer", None) is not None and not sys.is_finalizing():
            self.__dict__.pop("engine", None)
            gc.collect()


def _require_embedder(spec: ModelSpec | None, name: str) -> None:
    if spec is None or spec.kind == "embedder":
        return
    if spec.kind == "reranker":
        raise UnsupportedModelError(f"{name} is a reranker ({spec.model_id}): it scores pairs and gives no vectors.")
    raise UnsupportedModelError(
        f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors; "
        "'BAAI/bge-m3' is the embedder made from it."
        if "m3" in spec.model_id
        else f"{name} ({spec.model_id}) is a base model for further training and gives no usable vectors."
    )


def _require_matching_pooling(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    saved = checkpoint.pooling_modes
    expected = _POOLING_MODES[spec.pooling or "cls"]
    if saved is not None and saved != (expected,):
        raise PoolingMismatchError(
            f"{checkpoint.name} is {spec.model_id} or made from it, which uses {expected} pooling, but its "
            f"modules.json asks for {' + '.join(saved)}. If it really was trained so, its folder and config must not "
            "say that it is a BGE model (rename the folder and its recorded base model); if not, set the pooling in "
            f"{checkpoint.folder} to {expected}."
        )


def _load(request: LoadRequest, checkpoint: Checkpoint, spec: ModelSpec | None) -> SentenceTransformer:
    kwargs = request.transformers_kwargs.as_dicts()
    kwargs["model_kwargs"]["dtype"] = getattr(torch, request.precision)
    if not request.allow_pickle_weights:
        kwargs["model_kwargs"]["use_safetensors"] = True
    # Custom code may sit in another repository than the weights, so only then may files still be fetched.
    common: dict[str, Any] = {
        "trust_remote_code": request.trust_remote_code,
        "local_files_only": request.local_files_only or not request.trust_remote_code,
        "token": request.token,
        **kwargs,
    }
    folder = str(checkpoint.folder)
    try:
        if spec is None or checkpoint.modules is not None:
            model = SentenceTransformer(folder, device=request.device, **common)
        else:
            transformer = Transformer.load(folder, **common)
            pooling = Pooling(transformer.get_embedding_dimension(), _POOLING_MODES[spec.pooling or "cls"])
            model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=request.device)
    except Exception as error:  # loaders of four libraries raise whatever they like at a damaged checkpoint
        raise ModelLoadError(f"{request.model_name} can't be loaded from {folder}: {error}") from error
    model.eval()
    if not isinstance(model[0], Transformer) or not any(isinstance(module, Pooling) for module in model):
        raise UnsupportedModelError(
            f"{request.model_name} is made of {', '.join(type(module).__name__ for module in model)}; only models with "
            "a text transformer and a pooling can be run."
        )
    return model
