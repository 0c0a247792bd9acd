"""The models behind a server, as the interfaces use them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations import __version__
from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.model.heads import unit_rows
from bge_integrations.backend.scheduler import Priority
from bge_integrations.calls.call import with_priority
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.lengths import LengthCounts, counted_lengths
from bge_integrations.calls.scoring import sigmoid
from bge_integrations.catalogue.instructions import Role
from bge_integrations.errors import (
    BgeError,
    DeviceMemoryError,
    EngineFailedError,
    InvalidInputError,
    ModelClosedError,
    NonFiniteOutputError,
    SettingsError,
    TruncationError,
)
from bge_integrations.server.errors import Refused

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.m3 import BgeM3Encoder, LexicalWeights
    from bge_integrations.reranker import BgeReranker
    from bge_integrations.server.limits import Admission
    from bge_integrations.server.metrics import Metrics

logger = get_logger(__name__)

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

Handle = TypeVar("Handle", bound=ModelHandle[Any])


@dataclass(frozen=True)
class Pair(Generic[Handle]):
    """Two handles of one loaded model.

    Attributes:
        cutting: Cuts texts over the limit.
        strict: Refuses texts over the limit.
    """

    cutting: Handle
    strict: Handle

    @classmethod
    def of(cls, handle: Handle, **changes: Any) -> Pair[Handle]:  # noqa: ANN401 - the settings' own types
        """Returns handles with other settings, which share the model of the given one.

        Both are made before the first request, so that no request ever loads a model.
        """
        kind = type(handle)
        cutting, strict = (
            kind.from_settings(handle.settings.replace(on_truncation=way, show_progress=False, **changes))
            for way in ("ignore", "error")
        )
        return cls(cutting, strict)

    def choose(self, *, truncate: bool) -> Handle:
        """Returns one of the two."""
        return self.cutting if truncate else self.strict


@dataclass(frozen=True)
class Name:
    """The names of a served model.

    Attributes:
        shown: Its name in answers. It is never a path.
        accepted: Names that requests may use.
    """

    shown: str
    accepted: frozenset[str]

    @classmethod
    def of(cls, handle: ModelHandle[Any], others: Sequence[str]) -> Name:
        """Returns the names of a model: those of the user, its hub id, and the last part of its path."""
        given: str = handle.settings.model_name
        own = given if _HUB_ID.fullmatch(given) else PurePath(given).name
        spec = handle.backend.spec if handle.backend.facts.recognized_by == "name" else None
        known = {given, own, *others, *([spec.model_id] if spec else [])}
        return cls(others[0] if others else own, frozenset(name.casefold() for name in known))

    def require(self, asked: str | None) -> None:
        """Checks the model that a request asks for.

        Raises:
            Refused: It is another one. Its vectors would not fit into the client's index.
        """
        if asked is not None and asked.casefold() not in self.accepted:
            raise Refused(
                "no_model",
                f"The model {asked!r} is not served here, but {self.shown!r} is. Ask for that, or leave the field out.",
                place="model",
            )


@dataclass(frozen=True)
class Embedder:
    """The served embedding model.

    Attributes:
        encoder: The encoder as the user made it.
        vectors: Handles that give raw vectors of all dimensions. They are normalised after the cut to the dimensions
            that a request asks for.
        name: Its names.
    """

    encoder: BgeEncoder
    vectors: Pair[BgeEncoder]
    name: Name

    @classmethod
    def of(cls, encoder: BgeEncoder, names: Sequence[str]) -> Embedder:
        """Shares the model of an encoder."""
        return cls(encoder, Pair.of(encoder, normalize=False, truncate_dim=None), Name.of(encoder, names))


@dataclass(frozen=True)
class Scorer:
    """The served reranker."""

    logits: Pair[BgeReranker]
    name: Name

    @classmethod
    def of(cls, reranker: BgeReranker, names: Sequence[str]) -> Scorer:
        """Shares the model of a reranker."""
        return cls(Pair.of(reranker, normalize=False), Name.of(reranker, names))


class Models:
    """The models of a server.

    Attributes:
        default_side: The side of texts for which a request names none.
        truncates: Whether texts over the limit are cut if a request does not say.
        admission: The limits, and what is in progress.
    """

    def __init__(
        self,
        encoder: BgeEncoder | None,
        reranker: BgeReranker | None,
        m3: BgeM3Encoder | None,
        *,
        names: Sequence[str],
        default_side: Role,
        truncates: bool,
        admission: Admission,
        metrics: Metrics,
    ) -> None:
        """Shares the models of the given objects. Their own settings for lengths and progress have no effect here."""
        if encoder is None and m3 is not None:
            encoder = m3.dense_encoder()
        if encoder is None and reranker is None:
            raise SettingsError("A server needs a model: give an encoder, a reranker, or both.")
        self.default_side: Role = default_side
        self.truncates = truncates
        self.admission = admission
        self._metrics = metrics
        self._embedder = None if encoder is None else Embedder.of(encoder, names)
        self._m3 = None if m3 is None else Pair.of(m3)
        self._scorer = None if reranker is None else Scorer.of(reranker, () if encoder else names)
        for use, handle in self.handles().items():
            metrics.watch(use, handle)

    @property
    def embedder(self) -> Embedder:
        """The embedding model.

        Raises:
            Refused: There is none.
        """
        if self._embedder is None:
            raise Refused("no_model", "This server has no embedding model. Start it with --model.")
        return self._embedder

    @property
    def scorer(self) -> Scorer:
        """The reranker.

        Raises:
            Refused: There is none.
        """
        if self._scorer is None:
            raise Refused("no_model", "This server has no reranker. Start it with --reranker.")
        return self._scorer

    def handles(self) -> dict[str, ModelHandle[Any]]:
        """Returns a handle of each loaded model, by its use: "encoder", "reranker"."""
        found: dict[str, ModelHandle[Any]] = {}
        if self._embedder is not None:
            found["encoder"] = self._embedder.vectors.cutting
        if self._scorer is not None:
            found["reranker"] = self._scorer.logits.cutting
        return found

    def names(self) -> list[Name]:
        """Returns the names of each model, in the order of `handles`."""
        return [served.name for served in (self._embedder, self._scorer) if served is not None]

    async def embed(
        self,
        texts: list[str],
        side: Role,
        *,
        field: str,
        priority: Priority | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
    ) -> tuple[NDArray[np.float32], LengthCounts]:
        """Computes vectors.

        Args:
            texts: Checked texts.
            side: Their side.
            field: The field that holds them, for messages.
            priority: The queue in which they wait; `None`: that of their side.
            dimensions: Number of leading dimensions; `None`: as the encoder says.
            normalize: Whether the vectors get unit length; `None`: as the encoder says.
            truncate: Whether texts over the limit are cut; `None`: as the server says.

        Returns:
            float32 array of shape [texts, dimensions], and the counts of tokens.

        Raises:
            Refused: The vectors can't be computed, or the server is busy.
        """
        encoder = self.embedder.encoder
        handle = self.embedder.vectors.choose(truncate=self._cuts(truncate))
        full = handle.dimension
        if dimensions is not None and not 1 <= dimensions <= full:
            raise Refused(
                "invalid",
                f"dimensions={_short(dimensions)} is not possible: the vectors of this model have {full}. Give 1 to "
                f"{full}.",
                place="dimensions",
            )
        method = {"query": handle.aencode_queries, "document": handle.aencode_documents, "symmetric": handle.aencode}
        with self._working(side, len(texts), handle, field, priority) as counts:
            rows = (await method[side](texts))[:, : dimensions or encoder.dimension]
        return unit_rows(rows) if (encoder.normalizes if normalize is None else normalize) else rows, counts

    async def embed_sparse(
        self, texts: list[str], side: Role, *, field: str, priority: Priority | None = None, truncate: bool | None
    ) -> tuple[list[LexicalWeights], LengthCounts]:
        """Computes the lexical weights of bge-m3. Arguments and errors are those of `embed`.

        Returns:
            The weights of each text by token id, and the counts of tokens.
        """
        if self._m3 is None:
            raise Refused("no_model", "This server has no lexical weights. Start it with --m3 and a bge-m3 model.")
        handle = self._m3.choose(truncate=self._cuts(truncate))
        method = handle.aencode_queries if side == "query" else handle.aencode_documents
        with self._working(side, len(texts), handle, field, priority) as counts:
            found = await method(texts, dense=False, colbert=False)
        return found.sparse or [], counts

    async def score(
        self, query: str, texts: list[str], *, field: str, raw: bool, truncate: bool | None
    ) -> tuple[NDArray[np.float32], LengthCounts]:
        """Scores texts for a query.

        Args:
            query: Checked query.
            texts: Checked texts.
            field: The field that holds the texts, for messages.
            raw: Whether the scores are logits. Otherwise they are between 0 and 1.
            truncate: Whether pairs over the limit are cut; `None`: as the server says.

        Returns:
            float32 array of shape [texts], and the counts of tokens.

        Raises:
            Refused: The scores can't be computed, or the server is busy.
        """
        handle = self.scorer.logits.choose(truncate=self._cuts(truncate))
        with self._working("pair", len(texts), handle, field) as counts:
            logits = await handle.ascore(query, texts)
        return logits if raw else sigmoid(logits), counts

    async def tokenize(
        self, texts: list[str], side: Role, *, with_special: bool
    ) -> list[list[tuple[int, str, bool, tuple[int, int] | None]]]:
        """Returns the tokens of texts: id, text, whether it is a special token, and the span in characters.

        The instruction of the side is a part of each text.
        """
        encoder = self.embedder.encoder
        prompt = encoder.instruction(side)
        with self.admission.queued("tokenize", len(texts)):
            return await in_thread(lambda: [self._tokens(encoder, prompt.apply(text), with_special) for text in texts])

    def _tokens(
        self, encoder: BgeEncoder, text: str, with_special: bool
    ) -> list[tuple[int, str, bool, tuple[int, int] | None]]:
        tokenizer = encoder.backend.tokenizer
        ids: list[int] = tokenizer.tokenize([text], 2**31).ids.tolist()
        after = len(ids) - tokenizer.suffix_tokens
        before = tokenizer.special_tokens - tokenizer.suffix_tokens
        special = [(id_, tokenizer.token(id_), True, None) for id_ in (*ids[:before], *ids[after:])]
        spans: list[tuple[int, int]] = tokenizer.spans(text)
        content = ids[before:after]
        found: list[tuple[int, str, bool, tuple[int, int] | None]] = [
            (id_, text[start:stop], False, (start, stop))
            for id_, (start, stop) in zip(content, spans, strict=len(spans) == len(content))
        ]
        return [*special[:before], *found, *special[before:]] if with_special else found

    def info(self) -> dict[str, Any]:
        """Returns what `/info` says: TEI's fields, and in `bge` what this server adds."""
        limits = self.admission.limits
        use, handle = next(iter(self.handles().items()))
        model, name = handle.backend, self.names()[0]
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return {
            "model_id": name.shown,
            "model_sha": None,
            "model_dtype": model.request.precision,
            "model_type": {"embedding": {"pooling": model.request.pooling or model.facts.pooling or "own"}}
            if use == "encoder"
            else {"reranker": labels},
            "max_concurrent_requests": limits.max_requests,
            "max_input_length": handle.max_length,
            "max_batch_tokens": model.engine.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": limits.max_texts,
            "auto_truncate": self.truncates,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "bge": self._own_info(),
        }

    def _own_info(self) -> dict[str, Any]:
        limits = self.admission.limits
        found: dict[str, Any] = {
            "default_input_type": self.default_side,
            "limits": {
                "texts": limits.max_texts,
                "characters": limits.max_characters,
                "body_bytes": limits.max_body_bytes,
                "requests": limits.max_requests,
                "queued_texts": limits.max_queued_texts,
            },
            "embeddings": None,
            "sparse": self._m3 is not None,
            "reranker": None,
        }
        if self._embedder is not None:
            encoder = self._embedder.encoder
            sides: tuple[Role, ...] = ("query", "document", "symmetric")
            prompts = {side: encoder.instruction(side) for side in sides}
            found["embeddings"] = {
                "model": self._embedder.name.shown,
                "dimension": encoder.dimension,
                "normalizes": encoder.normalizes,
                "max_length": encoder.max_length,
                "instructions": {side: {"before": one.prefix, "after": one.suffix} for side, one in prompts.items()},
            }
        if self._scorer is not None:
            found["reranker"] = {
                "model": self._scorer.name.shown,
                "max_length": self._scorer.logits.cutting.max_length,
            }
        return found

    def _cuts(self, truncate: bool | None) -> bool:
        return self.truncates if truncate is None else truncate

    @contextmanager
    def _working(
        self, what: str, count: int, handle: ModelHandle[Any], field: str, priority: Priority | None = None
    ) -> Iterator[LengthCounts]:
        """A block in which texts are computed. Errors become refusals, and what was computed is counted.

        Args:
            what: Side of the texts, or "pair".
            count: Number of texts.
            handle: What computes them.
            field: The field that holds them, for messages.
            priority: The queue in which they wait, here and in the model; `None`: interactive for queries and pairs,
                bulk for other texts.
        """
        queue: Priority = priority or ("bulk" if what in ("document", "symmetric") else "interactive")
        with self.admission.queued(queue, count), with_priority(queue), counted_lengths() as counts:
            try:
                yield counts
            except BgeError as error:
                raise _refusal(error, handle, field, self._shown_names()) from error
        self._metrics.count(what, counts)

    def _shown_names(self) -> Mapping[str, str]:
        """Returns the shown name of each model by the name that its own messages use, which may be a path."""
        handles = self.handles().values()
        return {handle.settings.model_name: name.shown for handle, name in zip(handles, self.names(), strict=True)}


def _refusal(error: BgeError, handle: ModelHandle[Any], field: str, names: Mapping[str, str]) -> Refused:
    index = getattr(error, "index", None)
    place = None if index is None else f"{field}[{index}]"
    if isinstance(error, TruncationError):
        return Refused(
            "too_large",
            f"{place} is longer than the {handle.max_length} tokens that the model reads. Split it, or allow to cut it "
            "with truncate: true.",
            place=place,
        )
    message = str(error)
    for own, name in names.items():
        message = message.replace(own, name)
    if isinstance(error, InvalidInputError):
        return Refused("invalid", message, place=place)
    if isinstance(error, ModelClosedError):
        return Refused("closing", "The model is closed.")
    if isinstance(error, (NonFiniteOutputError, DeviceMemoryError, EngineFailedError)):
        logger.error("the engine failed for a request: %s", type(error).__name__)
        return Refused("failed", f"The model failed for {place or 'this request'}.", place=place)
    logger.error("a request failed: %s", type(error).__name__)
    return Refused("failed", "The model failed for this request.")


def _short(number: int) -> str:
    """Returns a number; a huge one in fewer digits."""
    return str(number) if abs(number) < 10**9 else "a huge number"
