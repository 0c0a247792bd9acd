"""BgeEncoder: texts in, float32 vectors out, with the right instruction on the right side."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.text.chunks import ChunkRuler
from bge_integrations.calls.call import ITEMS_A_SLICE, Call
from bge_integrations.calls.embedding import embedding_call
from bge_integrations.calls.handle import ModelHolder
from bge_integrations.calls.inputs import check_text, slices_of_texts
from bge_integrations.catalogue.instructions import Instruction, Role, read_role
from bge_integrations.errors import SettingsError
from bge_integrations.settings import (
    EncoderSettings,
    EngineName,
    Example,
    Normalization,
    OnTruncation,
    Pooling,
    Precision,
    TransformersKwargs,
)

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from bge_integrations.backend.loading.model import LoadedModel

_NAMESPACE_FORMAT = 1
"""Of what `cache_namespace` names; another number makes every cached vector one of the past."""


class BgeEncoder(ModelHolder[EncoderSettings]):
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

    def __init__(
        self,
        model_name: str | os.PathLike[str],
        *,
        device: str | Sequence[str] | None = None,
        precision: Precision = "auto",
        engine: EngineName = "auto",
        max_length: int | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        task: str | None = None,
        examples: Sequence[Example | Sequence[str] | Mapping[str, str]] | None = None,
        pooling: Pooling | None = None,
        normalize: Normalization = None,
        truncate_dim: int | None = None,
        on_truncation: OnTruncation = "warn",
        revision: str | None = None,
        cache_folder: str | None = None,
        token: str | bool | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        allow_pickle_weights: bool = False,
        show_progress: bool = False,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        threads: int | None = None,
        max_queued_texts: int = 65536,
        transformers_kwargs: TransformersKwargs | None = None,
    ) -> None:
        """Loads the model, or joins the encoders that already hold it.

        Args:
            model_name: Hub id (`"BAAI/bge-small-en-v1.5"`), local folder, or folder made by `bge prepare`.
            device: `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`; None takes the first of cuda, mps and cpu that is
                there and can compute as `engine` and `precision` ask. A list, or `"all"`, puts the model on each, and
                they share the work.
            precision: How the model computes: `"float32"`, `"bfloat16"`, `"float16"`, `"int8"`; `"auto"` is float16 on
                CUDA and float32 elsewhere. Vectors are float32 in any case.
            engine: What runs the model: `"openvino"`, `"torch"` or `"sentence-transformers"`; `"auto"` takes the
                fastest that can run it here.
            max_length: Tokens per text, special tokens included; None takes the model's own limit.
            query_instruction: Text before each query: None takes what the model was trained with, `""` is none.
            document_instruction: The same for documents.
            task: What an instruct model is asked to do, or the name of one of llm-embedder's tasks.
            examples: For bge-en-icl, examples to go before each query: triples of task, query and response, or
                dictionaries with the keys `instruct`, `query` and `response`.
            pooling: How the hidden states of a text's tokens become its vector: `"cls"`, `"mean"` or `"last"`. `None`:
                as the model was trained; where nothing says how, a warning names this setting.
            normalize: L2-normalise the vectors: None as the model was trained (BGE: yes), True always, False never,
                `"checkpoint"` only if the checkpoint's own modules do, as sentence-transformers.
            truncate_dim: Keep only so many leading dimensions; normalised again afterwards.
            on_truncation: For texts over `max_length`: `"warn"` once a call, `"ignore"`, or `"error"`.
            revision: Branch, tag or commit on the hub.
            cache_folder: Where hub files are kept.
            token: Hub token; never shown, pickled or dumped.
            trust_remote_code: Run Python code that comes with the checkpoint.
            local_files_only: Never ask the hub.
            allow_pickle_weights: Load `pytorch_model.bin` where there are no safetensors.
            show_progress: A progress bar for `encode_documents` and `encode`, never for queries.
            batch_tokens: Tokens, padding included, in one forward pass.
            batch_size: Upper limit on the texts in one forward pass.
            threads: Threads that compute on the processor; None takes the least of the cores that this process may use,
                `OMP_NUM_THREADS`, and torch's number if torch is imported.
            max_queued_texts: Documents, and as many queries, that may be in flight at once in the model, over all
                callers; a call beyond it waits for room.
            transformers_kwargs: Keywords for transformers' `from_pretrained`.

        Raises:
            SettingsError: A setting that can't be honoured, named with its value and the choices.
            ModelLoadError: The checkpoint can't be found, fetched or read, or would run code.
            PoolingMismatchError: A model that is called like a BGE model, but whose own files ask for another pooling.
            MissingExtraError: The engine named is not installed, or int8 needs the quantiser, which is not.
        """
        self._start(
            EncoderSettings(
                model_name=cast("str", model_name),
                device=device,
                precision=precision,
                engine=engine,
                max_length=max_length,
                query_instruction=query_instruction,
                document_instruction=document_instruction,
                task=task,
                examples=examples,
                pooling=pooling,
                normalize=normalize,
                truncate_dim=truncate_dim,
                on_truncation=on_truncation,
                revision=revision,
                cache_folder=cache_folder,
                token=token,
                trust_remote_code=trust_remote_code,
                local_files_only=local_files_only,
                allow_pickle_weights=allow_pickle_weights,
                show_progress=show_progress,
                batch_tokens=batch_tokens,
                batch_size=batch_size,
                threads=threads,
                max_queued_texts=max_queued_texts,
                transformers_kwargs=transformers_kwargs or TransformersKwargs(),
            )
        )
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
            NonFiniteEmbeddingError: The model gave NaN or infinity.
            EncoderClosedError: After `close()`.
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
            EncoderClosedError: After `close()`.
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
            EncoderClosedError: After `close()`.
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
