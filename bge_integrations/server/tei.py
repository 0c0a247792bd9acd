"""The interface of Hugging Face's text-embeddings-inference (TEI)."""

from __future__ import annotations

from bge_integrations.server.errors import TEI, Refused
from bge_integrations.server.inputs import (
    Body,
    Queued,
    Sided,
    Text,
    TextOrTexts,
    Texts,
    list_of,
    side_of,
    text_of,
    texts_of,
)
from bge_integrations.server.models import Models
from bge_integrations.server.routes import PRIORITY, Answer, Route

_TOKENIZED_CHARACTERS = 2**18
"""Greatest number of characters of a request for tokens."""


class Truncating(Body):
    """A request that can say what happens to texts over the limit."""

    truncate: bool | None = None
    truncation_direction: str | None = None


class EmbedBody(Queued, Truncating):
    """The body of `/embed`."""

    inputs: TextOrTexts
    normalize: bool | None = None
    dimensions: int | None = None


class EmbedSparseBody(Queued, Truncating):
    """The body of `/embed_sparse`."""

    inputs: TextOrTexts


class RerankBody(Truncating):
    """The body of `/rerank`."""

    query: Text
    texts: Texts
    raw_scores: bool = False
    return_text: bool = False


class TokenizeBody(Sided):
    """The body of `/tokenize`."""

    inputs: TextOrTexts
    add_special_tokens: bool = True


async def embed(models: Models, body: EmbedBody) -> Answer:
    """Answers `/embed`."""
    _require_direction(models, body)
    texts = texts_of(body.inputs, "inputs", models.admission.limits)
    rows, counts = await models.embed(
        texts,
        side_of(body, models.default_side),
        field="inputs",
        priority=body.priority,
        dimensions=body.dimensions,
        normalize=body.normalize,
        truncate=body.truncate,
    )
    return Answer.of(list(rows), counts)


async def embed_sparse(models: Models, body: EmbedSparseBody) -> Answer:
    """Answers `/embed_sparse`."""
    _require_direction(models, body)
    texts = texts_of(body.inputs, "inputs", models.admission.limits)
    side = side_of(body, models.default_side)
    found, counts = await models.embed_sparse(
        texts, side, field="inputs", priority=body.priority, truncate=body.truncate
    )
    content = [[{"index": index, "value": value} for index, value in weights.items()] for weights in found]
    return Answer.of(content, counts)


async def rerank(models: Models, body: RerankBody) -> Answer:
    """Answers `/rerank`."""
    _require_direction(models, body)
    texts = list_of(body.texts, "texts", models.admission.limits)
    query = text_of(body.query, "query", models.admission.limits)
    scores, counts = await models.score(query, texts, field="texts", raw=body.raw_scores, truncate=body.truncate)
    content = [
        {"index": place, "score": float(scores[place]), **({"text": texts[place]} if body.return_text else {})}
        for place in (-scores).argsort(kind="stable").tolist()
    ]
    return Answer.of(content, counts)


async def tokenize(models: Models, body: TokenizeBody) -> Answer:
    """Answers `/tokenize`."""
    texts = texts_of(body.inputs, "inputs", models.admission.limits)
    if sum(map(len, texts)) > _TOKENIZED_CHARACTERS:
        # A token takes a hundred times the memory of a character.
        raise Refused("too_large", f"inputs have more than {_TOKENIZED_CHARACTERS:,} characters.", place="inputs")
    side = side_of(body, "symmetric")
    found = await models.tokenize(texts, side, with_special=body.add_special_tokens)
    content = [
        [
            {"id": id_, "text": text, "special": special, "start": span and span[0], "stop": span and span[1]}
            for id_, text, special, span in tokens
        ]
        for tokens in found
    ]
    return Answer(content)


def _require_direction(models: Models, body: Truncating) -> None:
    """Refuses to cut at the other end than the model does."""
    side = next(iter(models.handles().values())).backend.tokenizer.truncation_side
    if body.truncation_direction is not None and body.truncation_direction.lower() != side:
        raise Refused(
            "invalid",
            f"truncation_direction={body.truncation_direction!r} is not possible: this model cuts texts at the "
            f"{side} end.",
            place="truncation_direction",
        )


_VECTORS = [[0.01, -0.02]]

ROUTES = (
    Route("/embed", TEI, EmbedBody, embed, f"Vectors of texts. prompt_name is query or document. {PRIORITY}", _VECTORS),
    Route("/", TEI, EmbedBody, embed, "The same as /embed, as clients of Inference Endpoints call it.", _VECTORS),
    Route(
        "/embed_sparse",
        TEI,
        EmbedSparseBody,
        embed_sparse,
        f"Lexical weights of bge-m3 by token id. {PRIORITY}",
        [[{"index": 4, "value": 0.25}]],
    ),
    Route(
        "/rerank",
        TEI,
        RerankBody,
        rerank,
        "Scores of texts for a query, the best first. raw_scores are logits.",
        [{"index": 1, "score": 0.98}, {"index": 0, "score": 0.02}],
    ),
    Route(
        "/tokenize",
        TEI,
        TokenizeBody,
        tokenize,
        "Tokens of texts, with their spans in characters.",
        [[{"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}]],
    ),
)
