"""Makes a model ready to encode: finds its files, checks them, and starts the engine that runs it."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.checkpoint.checks import locate_requested, pooling_is_guessed, vet
from bge_integrations.backend.checkpoint.digests import Digests
from bge_integrations.backend.checkpoint.location import name_without_path
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.questions import require_question
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.interface import Engine, Head, TokenBatch
from bge_integrations.backend.guarantees.forks import ForkSafeLock, native_code
from bge_integrations.backend.guarantees.interrupts import finish, uninterrupted
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.loading.openvino import start_prepared
from bge_integrations.backend.loading.start import start
from bge_integrations.backend.loading.started import Started
from bge_integrations.backend.model.heads import one_score_a_pair
from bge_integrations.backend.model.pooling import one_row_a_text
from bge_integrations.backend.prepared.folder import PreparedFolder
from bge_integrations.backend.scheduler import Meter, Scheduler, Statistics
from bge_integrations.backend.text.pairs import PairLayout, layout_of_encoder
from bge_integrations.backend.text.templates import Share, share_of
from bge_integrations.backend.torch_models import load_source
from bge_integrations.backend.torch_models.client import kept
from bge_integrations.catalogue import MODELS
from bge_integrations.errors import SettingsError, UnsupportedModelError

if TYPE_CHECKING:
    from bge_integrations.backend.loading.remote import RemoteModel
    from bge_integrations.backend.torch_models.base import Source

logger = get_logger(__name__)

_SHARES_KEPT = 64
"""Number of instructions whose token counts are kept. A model is used with few instructions."""


class LoadedModel:
    """One model in memory or on a server, shared by every encoder with an equal `LoadRequest`.

    Attributes:
        request: The load request.
        checkpoint: The model's files. A model on a server lacks this attribute.
        served: What is known of a model on a server; `None` for a model in memory.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        identity: Digest of the content. A copied folder keeps its identity.
        source_name: Hub id, or last part of the folder's path. For a prepared folder, that of its source.
        digests: Digests of the model's files. For a prepared folder, those of its source, as far as it records them.
        facts: Facts of the model.
        tokenizer: The model's tokenizer.
        heads: Weights on top of the encoder; empty if there are none.
        meter: Counter of the model's work.
        notes: Warnings for the model's first user.
        torch_threads: Number of torch's threads that was set while loading; `None` if none was set. The first user's
            thread must set it too, since torch applies a number only to the thread that sets it and to new threads.
    """

    def __init__(self, request: LoadRequest) -> None:
        """Loads the model. `registry.acquire` calls this once for equal requests.

        Raises:
            ModelLoadError: The files can't be found or read. It may be a subclass.
            PoolingMismatchError: The model has the name of a BGE model, but its files ask for another pooling.
            UnsupportedModelError: The model is not of the requested kind, or has no transformer.
            EngineNotAvailableError: The requested engine, or every engine, can't run the model with these settings.
            MissingExtraError: The requested engine is not installed, or the quantiser that int8 needs is not.
            EndpointError: The server gives no usable answer.
        """
        self.served: RemoteModel | None = None
        self.request = request
        self.notes: deque[str] = deque()
        if request.endpoint is not None:
            from bge_integrations.backend.loading.remote import connect

            self.served = connect(request)
            self.spec, self.identity = self.served.spec, self.served.identity
            self.source_name, self.digests = name_without_path(request.model_name), Digests("")
            self._adopt(self.served.started)
            logger.info("%s: asking %s, %d dimensions", request.model_name, request.endpoint, self.facts.dimension)
            return
        self.checkpoint = locate_requested(request)
        if is_prepared(self.checkpoint.folder):
            prepared = PreparedFolder.open(self.checkpoint.folder)
            self.spec = next((spec for spec in MODELS if spec.model_id == prepared.manifest.model_id), None)
            self.identity = prepared.identity
            self.source_name, self.digests = prepared.manifest.source, Digests(prepared.manifest.content)
            started = start_prepared(prepared, request)
        else:
            self.spec = vet(self.checkpoint, request)
            note = pooling_is_guessed(self.checkpoint, request)
            self.notes += [note] if note else []
            self.source_name, self.digests = name_without_path(request.model_name), self.checkpoint.digests
            self.identity = self.digests.content
            started = start(request, self.checkpoint, self.spec)
        self._adopt(started)
        logger.info(
            "loaded %s: engine %s, %s, %s, %d dimensions, %d tokens",
            request.model_name,
            self.engine.name,
            request.device,
            request.precision,
            self.facts.dimension,
            self.facts.max_tokens,
        )

    def _adopt(self, started: Started) -> None:
        self.facts = started.facts
        self.torch_threads = started.torch_threads
        self.tokenizer = started.tokenizer
        self.heads = started.heads
        self.meter = Meter(self.request.model_name, self.request.device)
        self._held = _Held(started.engine, Scheduler(started.slots, self.meter), started.source)
        self._loading_source = ForkSafeLock()
        self._shares = lru_cache(_SHARES_KEPT)(partial(share_of, self.tokenizer))
        # Not `__del__`: while it ends the threads, the registry could still give this model to another encoder.
        weakref.finalize(self, finish, self._held.release).atexit = False

    @property
    def engine(self) -> Engine:
        """The engine that runs it; the first, if there are several."""
        return self._held.engine

    def statistics(self) -> Statistics:
        """Returns what the model has computed so far, and the state of its engine now."""
        graphs = getattr(self.engine, "graphs", None)  # of the engine `torch` on CUDA
        return self.meter.read(None if graphs is None else graphs.state)

    @property
    def scheduler(self) -> Scheduler:
        """The queue that every use of the engine goes through."""
        return self._held.scheduler

    @property
    def device(self) -> str:
        """The first device that it runs on."""
        return self.request.device

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts that are saved in the checkpoint, by name."""
        return self.facts.prompts

    @property
    def original(self) -> Any:  # noqa: ANN401 - a library's model: a SentenceTransformer, a CrossEncoder, a decoder
        """The model as its library loads it. If the engine does not need it, it is loaded at the first use.

        It refuses changes: all encoders that share it would get them, and a compiled engine would not follow them.

        Raises:
            UnsupportedModelError: The model is a prepared folder, which no other library can load, or on a server.
        """
        return uninterrupted(self._load_original)

    def _load_original(self) -> Any:  # noqa: ANN401 - as above
        if self.served is not None:
            raise UnsupportedModelError(
                f"{self.request.model_name} runs at {self.request.endpoint}, so there is no model of a library here."
            )
        with self._loading_source:
            if self._held.source is None:
                if is_prepared(self.checkpoint.folder):
                    raise UnsupportedModelError(
                        f"{self.request.model_name} is a prepared model, which no other library can load; instead load "
                        "the model that it was made from (its bge.json names it)."
                    )
                precision = "float32" if self.request.precision == "int8" else self.request.precision
                self._held.source = load_source(self.request, self.checkpoint, self.spec, precision)
            return kept(self._held.source.original)

    @property
    def vector_head(self) -> Head:
        """The head that computes one vector per text, as `vectors` does."""
        return Head(self.vectors, self._room_for_vectors, _finite_rows)

    @property
    def score_head(self) -> Head:
        """The head that computes one logit per pair, float32, shape [pairs]."""
        return Head(self._scores, partial(np.empty, dtype=np.float32), np.isfinite)

    def vectors(self, batch: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns one vector per text, before normalisation, float32, shape [texts, dimension]."""
        return one_row_a_text(self.engine.rows, self.facts.pooling, batch, rows)

    def _room_for_vectors(self, count: int) -> NDArray[np.float32]:
        return np.empty((count, self.facts.dimension), dtype=np.float32)

    def _scores(self, _: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return one_score_a_pair(self.engine.rows, self.heads, rows)

    def pair_layout(self, prompt: str | None) -> PairLayout:
        """Returns the tokens around the texts of a pair.

        Args:
            prompt: Question for a decoder; `None`: the question that the model was trained with.

        Raises:
            UnsupportedModelError: `prompt` is `None`, and the decoder's own question is unknown.
        """
        decoder = self.facts.decoder
        if decoder is None:
            return layout_of_encoder(self.tokenizer)
        question = decoder.prompt if prompt is None else prompt
        newline, asked = self.tokenizer.contents(["\n", require_question(self.request.model_name, question)])
        return PairLayout(decoder.first_ids, tuple(newline), (*newline, *asked), "A: ", "B: ")

    def require_tokenizer(self, purpose: str) -> None:
        """Refuses a purpose that needs exact tokens if the tokenizer of a model on a server can't be had.

        Raises:
            SettingsError: Tokens are only estimated.
        """
        if self.tokenizer.is_estimate:
            raise SettingsError(
                f"{purpose} needs the tokenizer of {self.request.model_name}, which is not on this machine and not on "
                "the hub; give a folder with it as endpoint_options={'tokenizer': …}."
            )

    def share(self, prefix: str, suffix: str = "") -> Share:
        """Returns an instruction's share of each text's tokens."""
        return self._shares(prefix, suffix)

    def prompt_length(self, instruction: str) -> int:
        """Returns the number of leading tokens that pooling leaves out: 0 unless the checkpoint asks for it."""
        if not instruction or not self.facts.pools_without_prompt:
            return 0
        return int(self.tokenizer.count([instruction])[0]) - self.tokenizer.suffix_tokens


def _finite_rows(found: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(found).all(axis=1))


@dataclass
class _Held:
    """What a loaded model releases when it is garbage-collected."""

    engine: Engine
    scheduler: Scheduler
    source: Source | None

    def release(self) -> None:
        """Ends the threads and frees the weights at once. The libraries' models are reference cycles."""
        self.scheduler.close()
        had_cycles = self.source is not None
        with native_code():  # the threads of native code end here
            self.__dict__.clear()
            if had_cycles:
                gc.collect()
