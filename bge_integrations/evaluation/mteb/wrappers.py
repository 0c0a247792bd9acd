"""This package's models under mteb's protocols: an encoder, a cross encoder, and a search with bge-m3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.catalogue.instructions import Role
from bge_integrations.encoder import BgeEncoder
from bge_integrations.errors import EvaluationDataError, SettingsError
from bge_integrations.evaluation.held import held_by
from bge_integrations.evaluation.mteb.library import import_mteb
from bge_integrations.evaluation.mteb.meta import model_meta
from bge_integrations.evaluation.mteb.policy import VERSION, Handling, Policy, decide, family_of, read_policy
from bge_integrations.evaluation.searchers import Output, Run, as_searcher
from bge_integrations.evaluation.vectors import Floats, unique_vectors
from bge_integrations.m3.encoder import BgeM3Encoder
from bge_integrations.m3.scores import M3Weights
from bge_integrations.reranker import BgeReranker
from bge_integrations.texts import kind_of

__all__ = ["MtebEncoder", "MtebReranker", "MtebSearch"]

_WEIGHTS: Mapping[str, M3Weights] = {
    "dense": M3Weights(1, 0, 0),
    "sparse": M3Weights(0, 1, 0),
    "colbert": M3Weights(0, 0, 1),
    "mixed": M3Weights(),
}
_ROLES: tuple[Role, ...] = ("query", "document", "symmetric")


class MtebEncoder:
    """An encoder for mteb. `as_mteb_model` describes it."""

    def __init__(self, encoder: object, policy: str = "published") -> None:
        """Takes an encoder, or an object that holds one.

        Raises:
            SettingsError: There is no encoder, or no such policy.
            MissingExtraError: mteb is not installed, or this Python is too old for it.
        """
        self.encoder = _encoder_of(encoder)
        self.policy: Policy = read_policy(policy)
        self.family = family_of(self.encoder.backend.spec)
        asks = self.policy != "never" and bool(self.encoder.instruction("query").apply(""))
        self.mteb_model_meta = model_meta(
            self.encoder,
            kind="dense",
            vectors=[VERSION, *(self.encoder.cache_namespace(role).rpartition("_")[2] for role in _ROLES)],
            variant={"policy": self.policy, "output": "dense"},
            use_instructions=asks,
            dimension=self.encoder.dimension,
        )
        self._variants: dict[tuple[str | None, bool | None, bool], BgeEncoder] = {}

    def handling(self, task_metadata: Any) -> Handling:  # noqa: ANN401 - mteb's TaskMetadata
        """Returns how the texts of a task are encoded."""
        return decide(self.policy, self.family, task_metadata.name, task_metadata.type)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ANN401 - mteb's TaskMetadata
        hf_split: str = "",  # noqa: ARG002 - mteb's protocol
        hf_subset: str = "",  # noqa: ARG002
        prompt_type: str | None = None,
        **kwargs: object,  # noqa: ARG002 - batch size and progress bar are settings of the encoder
    ) -> Floats:
        """Encodes the texts of one side of a task, each different text once.

        Args:
            inputs: Batches with the texts under `"text"`.
            task_metadata: mteb's description of the task.
            hf_split: Not used.
            hf_subset: Not used.
            prompt_type: "query", "document" or `None`.
            **kwargs: Not used.

        Returns:
            float32 array of shape [texts, dimension].
        """
        handling = self.handling(task_metadata)
        treatment = handling.of(prompt_type)
        # Bare texts go as documents without an instruction, since the scheduler has queries overtake them.
        task = _task_text(task_metadata, prompt_type) if handling.takes_task and treatment == "query" else None
        variant = self._variant(task, handling.normalize, treatment == "bare")
        embed = {"query": variant.encode_queries, "symmetric": variant.encode}.get(treatment, variant.encode_documents)
        return unique_vectors(embed, _texts(inputs))

    def _variant(self, task: str | None, normalize: bool | None, is_bare: bool) -> BgeEncoder:
        """Returns an encoder with other settings and the same weights. The user's own instruction is kept."""
        key, settings = (task, normalize, is_bare), self.encoder.settings
        if key in self._variants:
            return self._variants[key]
        changes: dict[str, Any] = {"document_instruction": "", "task": None} if is_bare else {}
        if task is not None and settings.task is None and settings.query_instruction is None:
            changes["task"] = task
        if normalize is not None:
            changes["normalize"] = normalize
        variant = BgeEncoder.from_settings(settings.replace(**changes)) if changes else self.encoder
        self._variants[key] = variant
        return variant

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401 - arrays or tensors
        """Returns the cosines of all pairs, as mteb computes them."""
        return _similarities().cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:  # noqa: ANN401 - arrays or tensors
        """Returns the cosine of each pair of rows, as mteb computes it."""
        return _similarities().pairwise_cos_sim(embeddings1, embeddings2)


class MtebReranker:
    """A reranker for mteb. `as_mteb_reranker` describes it."""

    def __init__(self, reranker: object) -> None:
        """Takes a reranker, or an object that holds one.

        Raises:
            SettingsError: There is no reranker.
            MissingExtraError: mteb is not installed, or this Python is too old for it.
        """
        held = held_by(reranker)
        if not isinstance(held, BgeReranker):
            raise SettingsError(f"reranker={reranker!r} is {kind_of(reranker)}, and holds no BgeReranker. Give one.")
        self.reranker = held
        self.mteb_model_meta = model_meta(
            held,
            kind="cross-encoder",
            vectors=held.cache_namespace().rpartition("_")[2],
            variant={"output": "scores"},
        )

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        **kwargs: object,  # noqa: ARG002 - mteb's protocol
    ) -> NDArray[np.float32]:
        """Scores pairs of query and document, each different pair once.

        Args:
            inputs1: Batches of queries, with the texts under `"text"`.
            inputs2: Batches of documents.
            **kwargs: Not used.

        Returns:
            float32 array of shape [pairs].
        """
        pairs = list(zip(_texts(inputs1), _texts(inputs2), strict=True))
        places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
        scores: NDArray[np.float32] = self.reranker.score_pairs(list(places))[[places[pair] for pair in pairs]]
        return scores


@dataclass(frozen=True)
class _Corpus:
    """Queries and documents of a task, as searchers want them. mteb keeps the grades."""

    queries: Mapping[str, str]
    corpus: Mapping[str, str]
    name: str


class MtebSearch:
    """A search with bge-m3 for mteb. `as_mteb_search` describes it."""

    def __init__(self, m3: BgeM3Encoder, output: Output = "mixed") -> None:
        """Takes an encoder.

        Raises:
            SettingsError: It is no `BgeM3Encoder`, or there is no such output.
            MissingExtraError: mteb is not installed, or this Python is too old for it.
        """
        if not isinstance(m3, BgeM3Encoder):
            raise SettingsError(f"m3={m3!r} is {kind_of(m3)}; give a BgeM3Encoder.")
        if output not in _WEIGHTS:
            raise SettingsError(f"output={output!r} is unknown; choose one of {', '.join(map(repr, _WEIGHTS))}.")
        self.m3, self.output = m3, output
        kinds = {"dense": "dense", "sparse": "sparse", "colbert": "late-interaction", "mixed": "hybrid"}
        keywords = m3.backend.request.transformers_kwargs.as_dicts()
        vectors = [asdict(_WEIGHTS[output]), m3.settings.query_instruction, keywords]
        self.mteb_model_meta = model_meta(
            m3, kind=kinds[output], vectors=vectors, variant={"output": output}, dimension=m3.dimension
        )
        self._documents: dict[str, str] = {}

    def index(self, corpus: Iterable[Mapping[str, Any]], **kwargs: object) -> None:  # noqa: ARG002 - mteb's protocol
        """Keeps the corpus for `search`.

        Args:
            corpus: Documents with "id", "text" and perhaps "title".
            **kwargs: Not used.
        """
        self._documents = {
            row["id"]: _required(f"{row.get('title') or ''} {row['text']}".strip(), row["id"]) for row in corpus
        }

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ANN401 - mteb's TaskMetadata
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **kwargs: object,  # noqa: ARG002 - mteb's protocol
    ) -> Run:
        """Searches the corpus, or orders the candidates of each query.

        Args:
            queries: Queries with "id" and "text".
            task_metadata: mteb's description of the task.
            top_k: Number of documents to return for a query.
            top_ranked: Candidates of each query, for a reranking task.
            **kwargs: Not used.

        Returns:
            Scores by query id and document id.
        """
        asked = {row["id"]: _required(row["text"], row["id"]) for row in queries}
        documents, self._documents = self._documents, {}
        if top_ranked is None:
            data = _Corpus(asked, documents, task_metadata.name)
            return as_searcher(self.m3, output=self.output).search(data, top_k, ignore_identical_ids=False)
        return {id_: self._ranked(text, top_ranked.get(id_, ()), documents) for id_, text in asked.items()}

    def _ranked(self, query: str, candidates: Sequence[str], documents: Mapping[str, str]) -> dict[str, float]:
        places = {text: place for place, text in enumerate(dict.fromkeys(documents[id_] for id_ in candidates))}
        scores = self.m3.score(query, list(places), weights=_WEIGHTS[self.output])
        return {id_: float(scores[places[documents[id_]]]) for id_ in candidates}


def _encoder_of(it: object) -> BgeEncoder:
    held = held_by(it)
    if isinstance(held, BgeM3Encoder):
        return held.dense_encoder()
    if isinstance(held, BgeEncoder):
        return held
    raise SettingsError(
        f"encoder={it!r} is {kind_of(it)}, and holds no BgeEncoder. Give a BgeEncoder, a BgeM3Encoder, or embeddings "
        "of this package for LangChain or LlamaIndex."
    )


def _task_text(task_metadata: Any, prompt_type: str | None) -> str:  # noqa: ANN401 - mteb's TaskMetadata
    """Returns mteb's description of a task for an instruct model, or that of its kind of task."""
    prompt = task_metadata.prompt
    if isinstance(prompt, Mapping):
        prompt = prompt.get(prompt_type or "query") or prompt.get("query")
    if prompt:
        return str(prompt)
    import_mteb()
    from mteb.abstasks.abstask import get_abstask_prompt

    return str(get_abstask_prompt(task_metadata.name))


def _texts(inputs: Iterable[Mapping[str, Any]]) -> list[str]:
    return [text for batch in inputs for text in batch["text"]]


def _required(text: object, id_: str) -> str:
    if not isinstance(text, str):
        raise EvaluationDataError(f"{id_!r} is {kind_of(text)} instead of a text, which bge-m3 can't read.")
    return text


@cache
def _similarities() -> Any:  # noqa: ANN401 - a module of mteb
    import_mteb()
    from mteb import similarity_functions

    return similarity_functions
