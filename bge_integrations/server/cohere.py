"""Cohere's and Jina's interface for reranking, and Cohere's for embeddings."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from bge_integrations.server.errors import COHERE, Refused
from bge_integrations.server.inputs import Body, Queued, Text, Texts, list_of, side_of, text_of, texts_of
from bge_integrations.server.limits import Limits
from bge_integrations.server.models import Models
from bge_integrations.server.openai import in_base64
from bge_integrations.server.routes import Answer, Route

Version = Literal["1", "2"]

_DOCUMENT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
Documents = Annotated[Any, WithJsonSchema({"type": "array", "items": {"oneOf": [{"type": "string"}, _DOCUMENT]}})]


class RerankBody(Body):
    """The body of `/v1/rerank` and `/v2/rerank`."""

    query: Text
    documents: Documents
    model: str | None = None
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    rank_fields: list[str] | None = None


class EmbedBody(Queued):
    """The body of `/v1/embed` and `/v2/embed`."""

    texts: Texts
    model: str | None = None
    embedding_types: list[Literal["float", "base64"]] | None = None
    output_dimension: int | None = None
    truncate: Literal["NONE", "START", "END"] | None = None


async def rerank(models: Models, body: RerankBody) -> Answer:
    """Answers `/v1/rerank` and `/v2/rerank`."""
    name = models.scorer.name
    name.require(body.model)
    query = text_of(body.query, "query", models.admission.limits)
    texts = list_of(_texts(body, models.admission.limits), "documents", models.admission.limits)
    scores, counts = await models.score(query, texts, field="documents", raw=False, truncate=None)
    content = {
        "id": str(uuid.uuid4()),
        "model": name.shown,
        "results": [
            {
                "index": place,
                "relevance_score": float(scores[place]),
                **({"document": {"text": texts[place]}} if body.return_documents else {}),
            }
            for place in (-scores).argsort(kind="stable")[: body.top_n].tolist()
        ],
        "usage": {"total_tokens": counts.tokens},
        "meta": {"billed_units": {"search_units": 1}},
    }
    return Answer.of(content, counts)


async def embed(version: Version, models: Models, body: EmbedBody) -> Answer:
    """Answers `/v1/embed` and `/v2/embed`."""
    models.embedder.name.require(body.model)
    texts = texts_of(body.texts, "texts", models.admission.limits)
    if body.truncate == "START":
        raise Refused("invalid", "truncate='START' is not possible: give 'END' or 'NONE'.", place="truncate")
    rows, counts = await models.embed(
        texts,
        side_of(body, models.default_side),
        field="texts",
        priority=body.priority,
        dimensions=body.output_dimension,
        truncate=None if body.truncate is None else body.truncate == "END",
    )
    content: dict[str, Any] = {"id": str(uuid.uuid4()), "texts": texts}
    content["meta"] = {"api_version": {"version": version}, "billed_units": {"input_tokens": counts.tokens}}
    if version == "1" and body.embedding_types is None:
        return Answer.of(content | {"response_type": "embeddings_floats", "embeddings": list(rows)}, counts)
    wanted = body.embedding_types or ["float"]
    by_type: dict[str, Any] = {"float": list(rows)} if "float" in wanted else {}
    by_type |= {"base64": in_base64(rows)} if "base64" in wanted else {}
    return Answer.of(content | {"response_type": "embeddings_by_type", "embeddings": by_type}, counts)


def _texts(body: RerankBody, limits: Limits) -> object:
    """Returns the documents' texts. A document is a text, or an object with fields, of which `rank_fields` are read."""
    if not isinstance(body.documents, list):
        return body.documents
    names = body.rank_fields or ["text"]
    return [_text(document, place, names, limits) for place, document in enumerate(body.documents)]


def _text(document: object, place: int, names: list[str], limits: Limits) -> object:
    if not isinstance(document, dict):
        return document
    missing = next((name for name in names if name not in document), None)
    if missing is not None:
        where = f"documents[{place}]"
        raise Refused("invalid", f"{where} has no field {missing!r}; send a text, or an object with it.", place=where)
    return "\n".join(text_of(document[name], f"documents[{place}].{name}", limits) for name in names)


_RANKED = {"id": "…", "results": [{"index": 1, "relevance_score": 0.98}], "usage": {"total_tokens": 12}}
_EMBEDDED = {"id": "…", "embeddings": {"float": [[0.01, -0.02]]}, "texts": ["…"]}

ROUTES = (
    Route("/v1/rerank", COHERE, RerankBody, rerank, "Scores of documents for a query, the best first.", _RANKED),
    Route("/v2/rerank", COHERE, RerankBody, rerank, "Scores of documents for a query, the best first.", _RANKED),
    Route("/v1/embed", COHERE, EmbedBody, partial(embed, "1"), "Vectors of texts by input_type.", _EMBEDDED),
    Route("/v2/embed", COHERE, EmbedBody, partial(embed, "2"), "Vectors of texts by input_type.", _EMBEDDED),
)
