"""BgeEncoder: computes float32 vectors of texts, with the right instruction for queries and for documents."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from bge_integrations.backend.guarantees.interrupts import in_thread
from bge_integrations.backend.model.pooling import NAMES_OF_SETTING
from bge_integrations.backend.text.chunks import ChunkRuler
from bge_integrations.calls.call import ITEMS_A_SLICE, Call
from bge_integrations.calls.embedding import embedding_call, handing, in_slices
from bge_integrations.calls.handle import ModelHandle
from bge_integrations.calls.inputs import check_text, slices_of_texts
from bge_integrations.calls.outputs import VectorOutput, VectorStream
from bge_integrations.catalogue.instructions import Instruction, Role, read_role
from bge_integrations.errors import SettingsError
from bge_integrations.fingerprint import PROBES, Fingerprint
from bge_integrations.settings import EncoderOptions, EncoderSettings, Example

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_integrations.backend.loading.model import LoadedModel

_DIGITS = 32
"""Hex digits of a digest in a fingerprint."""

_NAMESPACE_FORMAT = 1
"""Version of the key in `cache_namespace`. A change of this number invalidates every cached vector."""


class BgeEncoder(ModelHandle[EncoderSettings]):
    """Encodes texts with a BGE model, or any other embedding model that sentence-transformers can load.

    Encoders with equal loading settings share one model in memory. Instruction, normalisation, truncation and limits
    belong to each encoder. Several threads can use one encoder. Pickles and copies contain the settings, not the
    weights.

    Example:
        ```python
        encoder = BgeEncoder("BAAI/bge-small-en-v1.5")
        scores = encoder.encode_queries(["what is a vector?"]) @ encoder.encode_documents(passages).T
        ```
    """

    _purpose = "vectors"
    _settings_kind = EncoderSettings

    def __init__(self, model_name: str | os.PathLike[str], **options: Unpack[EncoderOptions]) -> None:
        """Loads the model, or uses the loaded model of encoders with equal loading settings.

        Args:
            model_name: Hub id (`"BAAI/bge-small-en-v1.5"`), local folder, or folder made by `bge prepare`.
            **options: The fields of `bge_integrations.settings.EncoderSettings`, which describes them.

        Raises:
            TypeError: An option is unknown.
            SettingsError: A setting is invalid or not supported. The message gives its value and the choices.
            ModelLoadError: The checkpoint can't be found, downloaded or read, or it would run code.
            PoolingMismatchError: The model has the name of a BGE model, but its own files ask for another pooling.
            MissingExtraError: The chosen engine, or the quantiser for int8, is not installed.
        """
        self._start(EncoderSettings(model_name=cast("str", model_name), **options))
        self._loaded()

    def _start(self, settings: EncoderSettings) -> None:
        super()._start(settings)
        self._ruler: ChunkRuler | None = None
        self._fingerprint: Fingerprint | None = None
        self._calls: dict[Role, Call[str, NDArray[np.float32]]] = {}

    def encode_queries(self, texts: Iterable[str], *, output: VectorOutput | None = None) -> NDArray[np.float32]:
        """Encodes short queries for the search of longer passages, each with the query instruction.

        Args:
            texts: Queries: any iterable. A list, an array or a column is checked completely before any work is done.
                All others, such as generators and open files, are read and checked in slices of 4096 texts, fewer if
                they are very long, so they need not all fit into memory. Equal texts are computed once in a slice.
            output: The place for the vectors. `None`: a new array. An array, such as a `numpy.memmap`: float32, of
                shape [n, dimension], or with more rows if `texts` has no length. The path of a `.npy` file: it is
                written slice by slice, and gets its name, or replaces an older file, when all vectors are in it.

        Returns:
            Float32 array of shape [n, dimension], rows in the order of the texts: new and C-contiguous; or the rows of
            `output` that were written; or the file, mapped into memory and read-only. The shape is (0, dimension) for
            no texts.

        Raises:
            InputTypeError: `texts` is a bare `str`, or an element is not a `str`.
            InputValueError: UTF-8 can't encode a text.
            TruncationError: A text is over the limit, and `on_truncation` is `"error"`.
            NonFiniteOutputError: The model gave NaN or infinity.
            ModelClosedError: The encoder was closed.
            SettingsError: `output` has another dtype or shape, is read-only, or is no name of a `.npy` file. This is
                said before any work is done. If the number of texts is not known, the missing row is found at its text.
            CorpusWriteError: The file can't be written. It is then not there, or still the older one.
            Exception: What the iterable of texts raised. After each error, the rows of an array before the failed slice
                are complete, and a note on the error gives their number.
        """
        return self._encode(texts, "query", "encode_queries", output)

    def encode_documents(self, texts: Iterable[str], *, output: VectorOutput | None = None) -> NDArray[np.float32]:
        """Encodes documents (passages), each with the document instruction. Of BGE's models only llm-embedder has one.

        Arguments, result and errors are those of `encode_queries`.
        """
        return self._encode(texts, "document", "encode_documents", output)

    def encode(self, texts: Iterable[str], *, output: VectorOutput | None = None) -> NDArray[np.float32]:
        """Encodes texts for a symmetric use (similarity, clustering, classification), without an instruction.

        Arguments, result and errors are those of `encode_queries`.
        """
        return self._encode(texts, "symmetric", "encode", output)

    def encode_slices(
        self, slices: Iterable[Sequence[str]], take: Callable[[NDArray[np.float32]], None], *, role: Role = "document"
    ) -> None:
        """Encodes slices of texts one after the other, and hands on the vectors of each.

        A batch holds texts of one slice only. With the setting `batch_tokens`, the vectors of a slice are therefore the
        same bit by bit, whatever comes before and after it. Memory holds three slices at most, however many there are.

        Args:
            slices: Lists of texts, none of them empty. Some thousand texts a slice keep the engine busy.
            take: Function that gets the vectors of each slice, in their order: float32, shape [texts, dimension].
            role: Role of the texts: `"query"`, `"document"`, or `"symmetric"` as in `encode`.

        Raises:
            BgeError: As `encode_queries`. The index of a text counts the texts of all slices.
        """
        in_slices(self._handing(role, take), slices).run((), "encode_slices")

    async def aencode_queries(self, texts: Iterable[str], *, output: VectorOutput | None = None) -> NDArray[np.float32]:
        """Async form of `encode_queries`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return await self._encode_async(texts, "query", "aencode_queries", output)

    async def aencode_documents(
        self, texts: Iterable[str], *, output: VectorOutput | None = None
    ) -> NDArray[np.float32]:
        """Async form of `encode_documents`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return await self._encode_async(texts, "document", "aencode_documents", output)

    async def aencode(self, texts: Iterable[str], *, output: VectorOutput | None = None) -> NDArray[np.float32]:
        """Async form of `encode`. It does not block the event loop. Cancelling it drops uncomputed texts."""
        return await self._encode_async(texts, "symmetric", "aencode", output)

    def count_tokens(self, texts: Iterable[str], *, role: Role = "document") -> NDArray[np.int64]:
        """Counts the tokens of each text before truncation. The model itself does not run.

        Args:
            texts: Texts. An iterator is read in slices, so its texts need not all fit into memory.
            role: Role of the texts: `"query"`, `"document"`, or `"symmetric"` as in `encode`.

        Returns:
            int64 array of shape [n], in the order of the texts. Instruction and special tokens are included. A text is
            cut if its count is greater than `max_length`.

        Raises:
            InputTypeError: `texts` is a bare `str`, or an element is not a `str`.
            InputValueError: UTF-8 can't encode a text.
            SettingsError: The role is unknown.
            ModelClosedError: The encoder was closed.
        """
        self._loaded().require_tokenizer("count_tokens")
        tokenizer, instruction = self._loaded().tokenizer, self.instruction(role)
        _, slices = slices_of_texts(texts, "count_tokens", ITEMS_A_SLICE)
        counts = [tokenizer.count([instruction.apply(text) for text in part]) for part in slices]
        return np.concatenate([np.empty(0, dtype=np.int64), *counts])

    @property
    def chunk_size(self) -> int:
        """Greatest size of a document chunk that is never cut, in tokens as `chunk_length` counts them.

        It is `max_length` minus special tokens and document instruction. For some models it is a few tokens less.

        Raises:
            SettingsError: `max_length` leaves no room for chunks.
        """
        return self._chunk_ruler().size

    def chunk_length(self, text: str) -> int:
        """Returns the greatest number of tokens that a text adds to a document chunk: a splitter's `length_function`.

        A splitter adds up the lengths of the pieces of a chunk. Some tokenizers need more tokens for the whole chunk
        than for its pieces alone, so each piece counts with the most tokens that it takes at any place. Special tokens
        and instruction are not counted: `chunk_size` leaves room for them.

        Raises:
            InputTypeError: The text is not a `str`.
            InputValueError: UTF-8 can't encode the text.
            ModelClosedError: The encoder was closed.
        """
        return len(self.chunk_tokens(text))

    def chunk_tokens(self, text: str) -> list[int]:
        """Returns as many token ids as `chunk_length` counts: the `tokenizer` of a splitter.

        LlamaIndex's SentenceSplitter leaves room for metadata, but not for the text that your own `text_template` adds.

        The ids contain no special tokens. Padding ids follow if the piece alone has fewer tokens.

        Raises:
            BgeError: As `chunk_length`.
        """
        return self._chunk_ruler().tokens(check_text(text))

    def instruction(self, role: Role) -> Instruction:
        """Returns the text before and after each text of a role, under these settings.

        Raises:
            SettingsError: The role is unknown.
        """
        return self._instruction(self._loaded(), role)

    def _instruction(self, model: LoadedModel, role: Role) -> Instruction:
        role = read_role(role)
        explicit = {"query": self.settings.query_instruction, "document": self.settings.document_instruction}
        examples = cast("Sequence[Example] | None", self.settings.examples)
        return self._resolve(model, role, explicit=explicit.get(role), task=self.settings.task, examples=examples)

    @property
    def client(self) -> SentenceTransformer:
        """The underlying SentenceTransformer. Its `encode` ignores these settings. Its own settings are read-only.

        Raises:
            UnsupportedModelError: The model is a prepared folder, or on a server.
        """
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
        """Returns a name for the keys of a cache. It depends on everything that a vector of this role depends on.

        Args:
            role: Role of the texts.

        Returns:
            Letters, digits, `.`, `-` and `_`. The name is the same in every process for equal models and settings.
        """
        model, instruction = self._loaded(), self.instruction(role)
        facts = {
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
        return self._cache_name(read_role(role), facts)

    def fingerprint(self) -> Fingerprint:
        """Returns what the document vectors depend on, with the vectors of eight probe texts, for an index's metadata.

        The first call computes the probes, eight texts of about 800 tokens in all. `Fingerprint.compare` compares it
        with another one.

        Raises:
            BgeError: As `encode_documents`. Long probes are cut without a warning or an error.
        """
        found = self._fingerprint
        if found is None:
            found = self._fingerprint = self._make_fingerprint()
        return found

    def _make_fingerprint(self) -> Fingerprint:
        model, instruction = self._loaded(), self.instruction("document")
        with silent_encoder(self) as encoder:
            vectors = encoder.encode_documents(PROBES)
        digests = {
            name: digest[:_DIGITS] if digest else None for name, digest in dataclasses.asdict(model.digests).items()
        }
        return Fingerprint.of_vectors(
            vectors,
            model=model.source_name,
            **digests,
            pooling=NAMES_OF_SETTING.get(model.request.pooling or "", model.facts.pooling),
            normalizes=self.normalizes,
            document_instruction=instruction.prefix,
            document_suffix=instruction.suffix,
            max_length=None if model.tokenizer.is_estimate else self.max_length,
            precision=None if model.served else model.request.precision,
            engine=model.engine.name,
        )

    def close(self) -> None:
        """Releases the model. Its memory is free when no other encoder uses it. A second call does nothing."""
        super().close()
        self._ruler = None
        self._calls = {}

    def _check_against(self, model: LoadedModel) -> None:
        """Raises `SettingsError` for settings that this model does not support."""
        super()._check_against(model)
        settings = self.settings
        if settings.truncate_dim is not None and settings.truncate_dim > model.facts.dimension:
            raise SettingsError(
                f"truncate_dim={settings.truncate_dim} is more than the {model.facts.dimension} dimensions of "
                f"{settings.model_name}."
            )
        if settings.normalize is False and model.served and model.served.routes.api == "openai":
            raise SettingsError(
                f"normalize=False can't be asked of {settings.endpoint}: servers with OpenAI's routes normalise "
                "vectors by themselves. Leave it out."
            )
        # The model's own instructions are checked at their first use: an encoder may never embed a query.
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
            model.require_tokenizer("The length of chunks")
            ruler = self._ruler = ChunkRuler(model.tokenizer, self.instruction("document"), self.max_length)
        return ruler

    def _encode(
        self, texts: Iterable[str], role: Role, method: str, output: VectorOutput | None
    ) -> NDArray[np.float32]:
        if output is None:
            return self._call(role).run(texts, method)
        with VectorStream.to(output, self.dimension) as stream:
            self._handing(role, stream.take, stream.expect).run(texts, method)
            return stream.finish()

    async def _encode_async(
        self, texts: Iterable[str], role: Role, method: str, output: VectorOutput | None
    ) -> NDArray[np.float32]:
        await self._ready()
        if output is None:
            return await self._call(role).run_async(texts, method)
        with VectorStream.to(output, self.dimension) as stream:
            await self._handing(role, stream.take, stream.expect).run_async(texts, method)
            return await in_thread(stream.finish)

    def _handing(
        self,
        role: Role,
        take: Callable[[NDArray[np.float32]], None],
        expect: Callable[[int | None], None] = lambda _: None,
    ) -> Call[str, None]:
        return handing(self._call(role), take, expect, dimension=self.dimension, normalizes=self.normalizes)

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


def silent_encoder(encoder: BgeEncoder, **options: Unpack[EncoderOptions]) -> BgeEncoder:
    """Returns an encoder on the same model that cuts long texts in silence and shows no progress."""
    return BgeEncoder.from_settings(encoder.settings.replace(on_truncation="ignore", show_progress=False, **options))
