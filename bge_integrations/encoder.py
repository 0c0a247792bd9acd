"""BgeEncoder: texts in, float32 vectors out, with the right instruction on the right side."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.text.chunks import ChunkRuler
from bge_integrations.calls.call import ITEMS_A_SLICE, Call
from bge_integrations.calls.embedding import embedding_call
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.inputs import check_text, slices_of_texts
from bge_integrations.catalogue.instructions import Instruction, Role, read_role
from bge_integrations.errors import SettingsError
from bge_integrations.settings import EncoderOptions, EncoderSettings, Example

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_integrations.backend.loading.model import LoadedModel

_NAMESPACE_FORMAT = 1
"""Of what `cache_namespace` names; another number makes every cached vector one of the past."""


class BgeEncoder(ModelHandle[EncoderSettings]):
    """Encodes texts with a BGE model, or any other that sentence-transformers can load.

    Encoders with equal loading settings share one model in memory; instruction, normalisation, truncation and limits
    belong to the encoder. Safe to use from several threads. Pickles and copies carry settings, never weights.

    Example:
        ```python
        encoder = BgeEncoder("BAAI/bge-small-en-v1.5")
        scores = encoder.encode_queries(["what is a vector?"]) @ encoder.encode_documents(passages).T
        ```
    """

    _purpose = "vectors"
    _settings_kind = EncoderSettings

    def __init__(self, model_name: str | os.PathLike[str], **options: Unpack[EncoderOptions]) -> None:
        """Loads the model, or joins the encoders that already hold it.

        Args:
            model_name: Hub id (`"BAAI/bge-small-en-v1.5"`), local folder, or folder made by `bge prepare`.
            **options: The fields of `bge_integrations.settings.EncoderSettings`, which describes them.

        Raises:
            TypeError: An option that there isn't.
            SettingsError: A setting that can't be honoured, named with its value and the choices.
            ModelLoadError: The checkpoint can't be found, fetched or read, or would run code.
            PoolingMismatchError: A model that is called like a BGE model, but whose own files ask for another pooling.
            MissingExtraError: The engine named is not installed, or int8 needs the quantiser, which is not.
        """
        self._start(EncoderSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def _start(self, settings: EncoderSettings) -> None:
        super()._start(settings)
        self._ruler: ChunkRuler | None = None
        self._calls: dict[Role, Call[str, NDArray[np.float32]]] = {}

    def encode_queries(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encodes short queries that are to find longer passages, each with the query instruction.

        Args:
            texts: The queries. An iterator is read in slices, so that its texts need not all be in memory.

        Returns:
            C-contiguous float32 array, shape [n, dimension], rows in the order given; (0, dimension) for no texts.

        Raises:
            InputTypeError: A bare `str`, or an element that is no `str`.
            InputValueError: A text that UTF-8 can't write.
            TruncationError: A text over the limit, under `on_truncation="error"`.
            NonFiniteOutputError: The model gave NaN or infinity.
            ModelClosedError: After `close()`.
        """
        return self._encode(texts, "query", "encode_queries")

    def encode_documents(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encodes documents (passages), with the document instruction, which for BGE is none but for llm-embedder.

        Args:
            texts: The documents.

        Returns:
            As `encode_queries`.

        Raises:
            BgeError: As `encode_queries`.
        """
        return self._encode(texts, "document", "encode_documents")

    def encode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """Encodes texts for a symmetric use (similarity, clustering, classification), without an instruction.

        Args:
            texts: The texts.

        Returns:
            As `encode_queries`.

        Raises:
            BgeError: As `encode_queries`.
        """
        return self._encode(texts, "symmetric", "encode")

    async def aencode_queries(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """As `encode_queries`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        return await self._encode_async(texts, "query", "aencode_queries")

    async def aencode_documents(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """As `encode_documents`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        return await self._encode_async(texts, "document", "aencode_documents")

    async def aencode(self, texts: Iterable[str]) -> NDArray[np.float32]:
        """As `encode`, without blocking the event loop; cancelled, it gives up what has not been computed."""
        return await self._encode_async(texts, "symmetric", "aencode")

    def count_tokens(self, texts: Iterable[str], *, role: Role = "document") -> NDArray[np.int64]:
        """Counts the tokens that each text takes when it is encoded, before anything is cut. Computes nothing.

        Args:
            texts: The texts. An iterator is read in slices, so that its texts need not all be in memory.
            role: The side that the texts are on: "query", "document", or "symmetric" as in `encode`.

        Returns:
            int64 array, shape [n], in the order given: instruction and special tokens included. A text is cut if this
            is more than `max_length`.

        Raises:
            InputTypeError: A bare `str`, or an element that is no `str`.
            InputValueError: A text that UTF-8 can't write.
            SettingsError: A role that there isn't.
            ModelClosedError: After `close()`.
        """
        tokenizer, instruction = self._loaded().tokenizer, self.instruction(role)
        _, slices = slices_of_texts(texts, "count_tokens", ITEMS_A_SLICE)
        counts = [tokenizer.count([instruction.apply(text) for text in part]) for part in slices]
        return np.concatenate([np.empty(0, dtype=np.int64), *counts])

    @property
    def chunk_size(self) -> int:
        """Tokens, by `chunk_length` and `chunk_tokens`, that a chunk of a document may have so as never to be cut.

        That is `max_length` without special tokens and the document instruction, and a few tokens less for some models.

        Raises:
            SettingsError: `max_length` leaves no room for chunks.
        """
        return self._chunk_ruler().size

    def chunk_length(self, text: str) -> int:
        """Counts what a text adds to a chunk of a document, at most: a splitter's `length_function`.

        Splitters add up the lengths of the pieces that they join to a chunk. Some tokenizers need more tokens for the
        whole than for its pieces, so a piece counts as the most that it takes anywhere. Without special tokens and
        instruction, which `chunk_size` leaves room for.

        Args:
            text: A piece of a document.

        Returns:
            Its tokens.

        Raises:
            InputTypeError: No `str`.
            InputValueError: A text that UTF-8 can't write.
            ModelClosedError: After `close()`.
        """
        return len(self.chunk_tokens(text))

    def chunk_tokens(self, text: str) -> list[int]:
        """Gives ids, as many as `chunk_length`, for splitters that count what their `tokenizer` returns.

        LlamaIndex's SentenceSplitter leaves room for metadata itself, but not for what your own `text_template` adds.

        Args:
            text: A piece of a document.

        Returns:
            Ids without special tokens; where a piece alone has less than it may add to a chunk, filled up with padding.

        Raises:
            BgeError: As `chunk_length`.
        """
        return self._chunk_ruler().tokens(check_text(text))

    def instruction(self, role: Role) -> Instruction:
        """Returns what is put around the texts of a role with these settings.

        Raises:
            SettingsError: A role that there isn't.
        """
        return self._instruction(self._loaded(), role)

    def _instruction(self, model: LoadedModel, role: Role) -> Instruction:
        role = read_role(role)
        explicit = {"query": self.settings.query_instruction, "document": self.settings.document_instruction}
        examples = cast("Sequence[Example] | None", self.settings.examples)
        return self._resolve(model, role, explicit=explicit.get(role), task=self.settings.task, examples=examples)

    @property
    def client(self) -> SentenceTransformer:
        """The SentenceTransformer underneath; its `encode` knows none of these settings, and it takes none."""
        return cast("SentenceTransformer", self._loaded().original)

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        full = self._loaded().facts.dimension
        return min(self.settings.truncate_dim or full, full)

    @property
    def normalizes(self) -> bool:
        """Whether the vectors are L2-normalised."""
        if isinstance(self.settings.normalize, bool):
            return self.settings.normalize
        facts = self._loaded().facts
        return facts.normalizes if self.settings.normalize == "checkpoint" else facts.normalizes_by_default

    def cache_namespace(self, role: Role) -> str:
        """Names everything that a vector of this role depends on, for the keys of a cache.

        Args:
            role: The side that the vectors are on.

        Returns:
            A name made of letters, digits, `.`, `-` and `_`; equal for equal models and settings, in any process.
        """
        model, instruction = self._loaded(), self.instruction(role)
        key = key_of(
            {
                "format": _NAMESPACE_FORMAT,
                "content": model.identity,
                "precision": model.request.precision,
                "pooling": model.request.pooling or model.facts.pooling,
                "transformers_kwargs": model.request.transformers_kwargs.as_dicts(),
                "instruction": [instruction.prefix, instruction.suffix],
                "max_length": self.max_length,
                "normalizes": self.normalizes,
                "dimension": self.dimension,
            }
        )
        name = re.sub(r"[^A-Za-z0-9.]+", "-", os.path.basename(os.path.normpath(self.settings.model_name)))
        return f"{name}_{read_role(role)}_{key[:16]}"

    def close(self) -> None:
        """Lets go of the model, whose memory is free once nobody else holds it. May be called twice."""
        super().close()
        self._ruler = None
        self._calls = {}

    def _check_against(self, model: LoadedModel) -> None:
        """Refuses settings that this model can't honour."""
        super()._check_against(model)
        settings = self.settings
        if settings.truncate_dim is not None and settings.truncate_dim > model.facts.dimension:
            raise SettingsError(
                f"truncate_dim={settings.truncate_dim} is more than the {model.facts.dimension} dimensions of "
                f"{settings.model_name}."
            )
        # What the model itself brings is checked when it is used: who embeds documents needs no room for a query's.
        asked: dict[Role, tuple[object, ...]] = {
            "query": (settings.query_instruction, settings.task, settings.examples),
            "document": (settings.document_instruction, settings.task),
        }
        for role, given in asked.items():
            if any(value is not None for value in given):
                instruction = self._instruction(model, role)
                model.share(instruction.prefix, instruction.suffix).check(settings, self._limit_of(model))

    def _chunk_ruler(self) -> ChunkRuler:
        model, ruler = self._loaded(), self._ruler
        if ruler is None:
            ruler = self._ruler = ChunkRuler(model.tokenizer, self.instruction("document"), self.max_length)
        return ruler

    def _encode(self, texts: Iterable[str], role: Role, method: str) -> NDArray[np.float32]:
        return self._call(role).run(texts, method)

    async def _encode_async(self, texts: Iterable[str], role: Role, method: str) -> NDArray[np.float32]:
        await self._ready()
        return await self._call(role).run_async(texts, method)

    def _call(self, role: Role) -> Call[str, NDArray[np.float32]]:
        call, model = self._calls.get(role), self._loaded()
        if call is None or call.terms.model is not model:
            call = self._calls[role] = embedding_call(
                self._terms("interactive" if role == "query" else "bulk"),
                self._instruction(model, role),
                dimension=self.dimension,
                normalizes=self.normalizes,
            )
        return call
