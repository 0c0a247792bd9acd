"""Makes a model ready to encode: finds its files, vets them, and starts the engine that runs it."""

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
from bge_integrations.backend.scheduler import Meter, Scheduler
from bge_integrations.backend.text.pairs import PairLayout, layout_of_encoder
from bge_integrations.backend.text.templates import Share, share_of
from bge_integrations.backend.torch_models import load_source
from bge_integrations.backend.torch_models.client import kept
from bge_integrations.catalogue import MODELS
from bge_integrations.errors import UnsupportedModelError

if TYPE_CHECKING:
    from bge_integrations.backend.torch_models.base import Source

logger = get_logger(__name__)

# Of instructions, which are measured once; a model in memory has few of them.
_SHARES_KEPT = 64


class LoadedModel:
    """One model in memory, shared by every encoder with an equal `LoadRequest`.

    Attributes:
        request: What was asked for.
        checkpoint: Where it came from.
        spec: The catalogue's row, or None for a model that is no BGE.
        identity: Tells its content from any other, so that a copied folder keeps its identity.
        facts: What is known of it.
        tokenizer: Its tokenizer.
        heads: The weights on top of the encoder, where there are any.
        meter: Counts what it does.
        notes: What its first user is to be warned of.
        torch_threads: The number of torch's threads that its first user is to set too, if one was set: what another
            thread sets holds for new threads alone.
    """

    def __init__(self, request: LoadRequest) -> None:
        """Loads the model; see `registry.acquire`, which does so once.

        Raises:
            ModelLoadError: Or one of its kinds, if the files can't be had or read.
            PoolingMismatchError: A BGE model whose files ask for another pooling.
            UnsupportedModelError: Not an embedding model, or without a transformer.
            EngineNotAvailableError: The engine named, or every engine, can't run it so.
            MissingExtraError: The engine named is not installed, or int8 needs the quantiser, which is not.
        """
        self.request = request
        self.checkpoint = locate_requested(request)
        self.notes: deque[str] = deque()
        if is_prepared(self.checkpoint.folder):
            prepared = PreparedFolder.open(self.checkpoint.folder)
            self.spec = next((spec for spec in MODELS if spec.model_id == prepared.manifest.model_id), None)
            self.identity = prepared.identity
            started = start_prepared(prepared, request)
        else:
            self.spec = vet(self.checkpoint, request)
            note = pooling_is_guessed(self.checkpoint, request)
            self.notes += [note] if note else []
            self.identity = self.checkpoint.fingerprint
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
        # No `__del__`: while it ended the threads, another encoder could still be given this model by the registry.
        weakref.finalize(self, finish, self._held.release).atexit = False

    @property
    def engine(self) -> Engine:
        """What runs it; the first, where there are several."""
        return self._held.engine

    @property
    def scheduler(self) -> Scheduler:
        """The queue that every use of the engine goes through."""
        return self._held.scheduler

    @property
    def device(self) -> str:
        """The device that it runs on."""
        return self.request.device

    @property
    def prompts(self) -> Mapping[str, str]:
        """The prompts saved in the checkpoint."""
        return self.facts.prompts

    @property
    def original(self) -> Any:  # noqa: ANN401 - a library's model: a SentenceTransformer, a CrossEncoder, a decoder
        """The model as its library loads it; loaded at the first use where the engine doesn't hold it.

        It refuses to be changed, since all that share this model would share the change, or not follow it.

        Raises:
            UnsupportedModelError: For a prepared folder, which holds none.
        """
        return uninterrupted(self._load_original)

    def _load_original(self) -> Any:  # noqa: ANN401 - as above
        with self._loading_source:
            if self._held.source is None:
                if is_prepared(self.checkpoint.folder):
                    raise UnsupportedModelError(
                        f"{self.request.model_name} is a prepared model, which no other library can load; load the "
                        "model that it was made from for that (its bge.json names it)."
                    )
                precision = "float32" if self.request.precision == "int8" else self.request.precision
                self._held.source = load_source(self.request, self.checkpoint, self.spec, precision)
            return kept(self._held.source.original)

    @property
    def vector_head(self) -> Head:
        """Gives one vector a text, as `vectors`."""
        return Head(self.vectors, self._room_for_vectors, _finite_rows)

    @property
    def score_head(self) -> Head:
        """Gives one logit a pair, float32, shape [pairs]."""
        return Head(self._scores, partial(np.empty, dtype=np.float32), np.isfinite)

    def vectors(self, batch: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns one vector a text, before normalisation, float32, shape [texts, dimension]."""
        return one_row_a_text(self.engine.rows, self.facts.pooling, batch, rows)

    def _room_for_vectors(self, count: int) -> NDArray[np.float32]:
        return np.empty((count, self.facts.dimension), dtype=np.float32)

    def _scores(self, _: TokenBatch, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return one_score_a_pair(self.engine.rows, self.heads, rows)

    def pair_layout(self, prompt: str | None) -> PairLayout:
        """Returns what stands around the texts of a pair.

        Args:
            prompt: What a decoder is asked; None takes its own.

        Raises:
            UnsupportedModelError: A decoder that has none of its own.
        """
        decoder = self.facts.decoder
        if decoder is None:
            return layout_of_encoder(self.tokenizer)
        question = decoder.prompt if prompt is None else prompt
        newline, asked = self.tokenizer.contents(["\n", require_question(self.request.model_name, question)])
        return PairLayout(decoder.first_ids, tuple(newline), (*newline, *asked), "A: ", "B: ")

    def share(self, prefix: str, suffix: str = "") -> Share:
        """Returns what an instruction takes of each text's tokens."""
        return self._shares(prefix, suffix)

    def prompt_length(self, instruction: str) -> int:
        """Returns how many leading tokens to leave out of pooling: 0 unless the checkpoint asks for it."""
        if not instruction or not self.facts.pools_without_prompt:
            return 0
        return int(self.tokenizer.count([instruction])[0]) - self.tokenizer.suffix_tokens


def _finite_rows(found: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(found).all(axis=1))


@dataclass
class _Held:
    """What a loaded model takes along when it goes."""

    engine: Engine
    scheduler: Scheduler
    source: Source | None

    def release(self) -> None:
        """Ends the threads, and gives the weights back at once: the libraries' models are reference cycles."""
        self.scheduler.close()
        had_cycles = self.source is not None
        with native_code():  # whose threads end here
            self.__dict__.clear()
            if had_cycles:
                gc.collect()
