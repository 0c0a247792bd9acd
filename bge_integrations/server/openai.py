"""OpenAI's interface for embeddings."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bge_integrations.server.errors import OPENAI
from bge_integrations.server.inputs import Queued, TextOrTexts, side_of, texts_of
from bge_integrations.server.models import Models
from bge_integrations.server.routes import PRIORITY, Answer, Route


class EmbeddingsBody(Queued):
    """The body of `/v1/embeddings`."""

    input: TextOrTexts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate: bool | None = None


async def embeddings(models: Models, body: EmbeddingsBody) -> Answer:
    """Answers `/v1/embeddings`."""
    name = models.embedder.name
    name.require(body.model)
    texts = texts_of(body.input, "input", models.admission.limits)
    side = side_of(body, models.default_side)
    rows, counts = await models.embed(
        texts,
        side,
        field="input",
        priority=body.priority,
        dimensions=body.dimensions,
        truncate=body.truncate,
    )
    vectors = in_base64(rows) if body.encoding_format == "base64" else list(rows)
    content = {
        "object": "list",
        "data": [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(vectors)],
        "model": name.shown,
        "usage": {"prompt_tokens": counts.tokens, "total_tokens": counts.tokens},
    }
    return Answer.of(content, counts)


def in_base64(rows: NDArray[np.float32]) -> list[str]:
    """Returns each row as the base64 of its little-endian float32 values."""
    return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii") for row in rows]


def listed(models: Models) -> dict[str, Any]:
    """Returns what `/v1/models` says."""
    return {
        "object": "list",
        "data": [
            {"id": name.shown, "object": "model", "created": 0, "owned_by": "bge-integrations"}
            for name in models.names()
        ],
    }


ROUTES = (
    Route(
        "/v1/embeddings",
        OPENAI,
        EmbeddingsBody,
        embeddings,
        f"Vectors of texts. input_type is query, document or symmetric. {PRIORITY}",
        {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.01, -0.02]}],
            "model": "BAAI/bge-small-en-v1.5",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        },
    ),
)
