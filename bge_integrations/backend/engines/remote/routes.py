"""The formats of servers: text-embeddings-inference and `bge serve`, and those with OpenAI's routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.backend.engines.interface import Priority
from bge_integrations.backend.engines.remote.connection import Answer, Connection
from bge_integrations.errors import EndpointError
from bge_integrations.settings import EndpointScores

Floats = NDArray[np.float32]
Weights = tuple[NDArray[np.int32], Floats]
"""Ids of the tokens of a text that have a lexical weight, and the weights."""

_TOKENS_OF_TEI = "x-compute-tokens"


class Routes(Protocol):
    """A server's routes.

    Attributes:
        api: Name in `endpoint_options["api"]`.
        tokens: Tokens of the last request, as the server counts them; `None` if it does not say.
    """

    api: str
    tokens: int | None

    def vectors(self, texts: Sequence[str], priority: Priority, /) -> Floats:
        """Returns one vector a text, float32, shape [texts, dimension]. Servers of `"tei"` do not normalise them.

        Args:
            texts: Texts.
            priority: Their priority, for a server that has a queue for each.

        Raises:
            TextsRefused: The server refuses the texts.
            EndpointError: No answer, or one that can't be used.
        """
        ...

    def scores(self, query: str, passages: Sequence[str]) -> Floats:
        """Returns one logit a passage, float32, shape [passages]. Raises the errors of `vectors`."""
        ...

    def weights(self, texts: Sequence[str], priority: Priority, /) -> list[Weights]:
        """Returns the lexical weights of each text. Arguments and errors are those of `vectors`."""
        ...


class TeiRoutes:
    """The routes of text-embeddings-inference, which `bge serve` has too."""

    api = "tei"

    def __init__(self, connection: Connection, *, plain_prompt: str | None = None) -> None:
        """Takes the connection.

        Args:
            connection: The connection.
            plain_prompt: Name of the prompt of `bge serve` that adds nothing. `None`: another server, which adds
                nothing by itself and knows no priorities.
        """
        self._connection = connection
        self._plain_prompt = plain_prompt
        self.tokens: int | None = None

    def vectors(self, texts: Sequence[str], priority: Priority) -> Floats:
        """See `Routes.vectors`."""
        content = {"inputs": list(texts), "normalize": False, "truncate": True, **self._own(priority)}
        found, answer = self._connection.post("/embed", content)
        self.tokens = _tokens_of_header(answer)
        return _matrix(self._connection, found, len(texts))

    def scores(self, query: str, passages: Sequence[str]) -> Floats:
        """See `Routes.scores`."""
        content = {"query": query, "texts": list(passages), "raw_scores": True, "truncate": True}
        found, _ = self._connection.post("/rerank", content)
        return _by_index(self._connection, found, len(passages), lambda row: row["score"])[:, 0]

    def weights(self, texts: Sequence[str], priority: Priority) -> list[Weights]:
        """See `Routes.weights`."""
        content = {"inputs": list(texts), "truncate": True, **self._own(priority)}
        found, _ = self._connection.post("/embed_sparse", content)
        if not isinstance(found, list) or len(found) != len(texts):
            raise _wrong_count(self._connection, found, len(texts))
        return [_weights(self._connection, row) for row in found]

    def _own(self, priority: Priority) -> dict[str, str]:
        """Returns the fields that only `bge serve` reads. Its prompt says nothing about who waits for the texts."""
        return {} if self._plain_prompt is None else {"prompt_name": self._plain_prompt, "priority": priority}


class OpenAiRoutes:
    """The routes `embeddings` and `rerank` that vLLM, infinity, Ollama, llama.cpp and others have."""

    api = "openai"

    def __init__(self, connection: Connection, *, prefix: str, model: str, scores: EndpointScores) -> None:
        """Takes the connection.

        Args:
            connection: The connection.
            prefix: Path before the routes: `"/v1"` or `""`.
            model: The model's name on the server.
            scores: What the server returns as scores.
        """
        self._connection = connection
        self._prefix = prefix
        self._model = model
        self._scores = scores
        self.tokens: int | None = None

    def vectors(self, texts: Sequence[str], _priority: Priority) -> Floats:
        """See `Routes.vectors`."""
        content = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        found, _ = self._connection.post(f"{self._prefix}/embeddings", content)
        self.tokens = _tokens_of_usage(found)
        rows = found.get("data") if isinstance(found, dict) else None
        return _by_index(self._connection, rows, len(texts), lambda row: row["embedding"])

    def scores(self, query: str, passages: Sequence[str]) -> Floats:
        """See `Routes.scores`."""
        content = {
            "model": self._model,
            "query": query,
            "documents": list(passages),
            "top_n": len(passages),
            "return_documents": False,
        }
        found, _ = self._connection.post(f"{self._prefix}/rerank", content)
        rows = found.get("results") if isinstance(found, dict) else None
        given = _by_index(self._connection, rows, len(passages), lambda row: row["relevance_score"], np.float64)[:, 0]
        return (given if self._scores == "logits" else self._logits(given)).astype(np.float32)

    def weights(self, _: Sequence[str], __: Priority) -> list[Weights]:
        """Refuses, for any texts: there is no such route."""
        raise EndpointError(
            f"{self._connection.address} has OpenAI's routes, of which none gives bge-m3's lexical weights; use `bge "
            "serve --m3`, or another server with /embed_sparse."
        )

    def _logits(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        if ((probabilities < 0) | (probabilities > 1)).any():
            raise EndpointError(
                f"{self._connection.address} gives scores outside of 0 to 1, so they are no probabilities; set "
                "endpoint_options={'scores': 'logits'}."
            )
        # The ends stand for what float32 rounds to 0 and 1.
        inside = np.clip(probabilities, float(np.finfo(np.float32).tiny), 1 - float(np.finfo(np.float64).epsneg))
        logits: NDArray[np.float64] = np.log(inside) - np.log1p(-inside)
        return logits


def _tokens_of_header(answer: Answer) -> int | None:
    written = answer.headers.get(_TOKENS_OF_TEI, "")
    return int(written) if written.isdigit() else None


def _tokens_of_usage(found: object) -> int | None:
    usage = found.get("usage") if isinstance(found, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def _by_index(
    connection: Connection,
    rows: object,
    count: int,
    value: Callable[[Mapping[str, Any]], Any],
    dtype: type[np.floating[Any]] = np.float32,
) -> NDArray[Any]:
    """Returns the values of rows in the order of the texts: each row has the index of its text."""
    if not isinstance(rows, list) or len(rows) != count:
        raise _wrong_count(connection, rows, count)
    found: list[Any] = [None] * count
    seen: set[int] = set()
    for place, row in enumerate(rows):
        try:
            index = row.get("index", place)
            found[index] = value(row)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise EndpointError(
                f"{connection.address} gives an answer in another format ({type(error).__name__}: {error}) for row "
                f"{place}; check endpoint_options['api']."
            ) from None
        seen.add(index)
    if seen != set(range(count)):
        raise EndpointError(
            f"{connection.address} gives results for the texts {sorted(seen)[:5]}…, not one for each of {count} texts."
        )
    return _matrix(connection, found, count, dtype)


def _matrix(
    connection: Connection, rows: object, count: int, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Returns rows of equal length as an array, shape [count, width]. A single number is a row of its own."""
    if not isinstance(rows, list) or len(rows) != count:
        raise _wrong_count(connection, rows, count)
    try:
        # A server may write NaN as null, which becomes NaN here; the caller names the text.
        found = np.array(rows, dtype=dtype).reshape(count, -1)
    except (TypeError, ValueError) as error:
        raise EndpointError(f"{connection.address} gives no rows of numbers of equal length: {error}.") from None
    if not found.shape[1]:
        raise EndpointError(f"{connection.address} gives empty vectors.")
    return found


def _weights(connection: Connection, row: object) -> Weights:
    try:
        pairs = [(one["index"], one["value"]) for one in row]  # type: ignore[attr-defined]
        ids = np.array([index for index, _ in pairs], dtype=np.int32)
        return ids, np.array([value for _, value in pairs], dtype=np.float32)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EndpointError(
            f"{connection.address} gives lexical weights in another format ({type(error).__name__}: {error})."
        ) from None


def _wrong_count(connection: Connection, rows: object, count: int) -> EndpointError:
    given = f"{len(rows)} results" if isinstance(rows, list) else f"a {type(rows).__name__} instead of a list"
    return EndpointError(f"{connection.address} gives {given} for {count} text(s).")


def first_that_answers(routes: Sequence[OpenAiRoutes], ask: Callable[[OpenAiRoutes], Any]) -> OpenAiRoutes:
    """Returns the first routes that exist on the server.

    Args:
        routes: At least one.
        ask: Function that sends a request.

    Raises:
        EndpointError: None exists. The error is that of the first.
        TextsRefused: As `Routes.vectors`.
    """
    first, *others = routes
    try:
        ask(first)
    except EndpointError as error:
        if error.status not in (404, 405) or not others:
            raise
        missing = error
    else:
        return first
    try:
        return first_that_answers(others, ask)
    except EndpointError as error:
        raise (missing if error.status in (404, 405) else error) from None
