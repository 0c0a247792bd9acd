"""Starts the engine that asks a server, for a request with an address."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bge_integrations.backend.checkpoint.digests import key_of
from bge_integrations.backend.checkpoint.location import local_folder
from bge_integrations.backend.checkpoint.manifest import is_prepared
from bge_integrations.backend.checkpoint.reading import Reading, read_texts
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.engines.interface import TextsRefused
from bge_integrations.backend.engines.remote.connection import Connection
from bge_integrations.backend.engines.remote.engine import RemoteEngine
from bge_integrations.backend.engines.remote.routes import OpenAiRoutes, Routes, TeiRoutes, first_that_answers
from bge_integrations.backend.guarantees.logs import get_logger
from bge_integrations.backend.loading.started import Started
from bge_integrations.backend.model.facts import ModelFacts
from bge_integrations.backend.model.pooling import NAMES_OF_CATALOGUE
from bge_integrations.backend.prepared.folder import PreparedFolder
from bge_integrations.backend.scheduler import EngineSlot
from bge_integrations.backend.text.tokenizer import TextTokenizer
from bge_integrations.catalogue import MODELS, ModelSpec, Recognition, find_model, recognize
from bge_integrations.errors import (
    EndpointError,
    ModelLoadError,
    ModelNotFoundError,
    PoolingMismatchError,
    SettingsError,
    UnsupportedModelError,
)
from bge_integrations.settings import Purpose

logger = get_logger(__name__)

PROBE = "The quick brown fox jumps over the lazy dog."
"""The first text that a server gets: its answer shows the dimension."""

_BATCH_TOKENS = 2048
"""Tokens of a request. Servers make their own batches of many requests. With the usual number of connections, a server
that computes 150 tokens a second answers all of them in time."""
_MOST_TEXTS = 2048
"""OpenAI's own limit of texts in a request."""
_MOST_TEXTS_OF_TEI = 32
"""The default of text-embeddings-inference."""

# The names of poolings in text-embeddings-inference's `/info`.
_POOLING_OF_TEI = {"cls": "cls", "mean": "mean", "last_token": "lasttoken", "lasttoken": "lasttoken"}


@dataclass(frozen=True)
class RemoteModel:
    """A model on a server.

    Attributes:
        started: The engine, and what is known of the model.
        spec: The catalogue's row; `None` for a model that is not a BGE model.
        identity: Digest of the address and of what the server says of its model.
        routes: The server's routes.
        cuts_at: Number of tokens to which the server cuts a longer text, as a local engine does; `None` if it is not
            known to do so.
        tokens_of_probe: Tokens of the text `PROBE`, as the server counts them; `None` if it does not say.
    """

    started: Started
    spec: ModelSpec | None
    identity: str
    routes: Routes
    cuts_at: int | None
    tokens_of_probe: int | None


@dataclass(frozen=True)
class _Server:
    """What a server says about itself, from the route `/info`.

    Attributes:
        info: The answer; empty for a server without this route.
    """

    info: Mapping[str, Any]

    def count(self, name: str) -> int | None:
        """Returns a number, or `None` without a valid one."""
        value = self.info.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def text(self, name: str) -> str | None:
        """Returns a text, or `None` without one."""
        value = self.info.get(name)
        return value if isinstance(value, str) and value else None

    def own(self, part: str) -> Mapping[str, Any]:
        """Returns a part of what only `bge serve` says; {} for other servers."""
        said = self.info.get("bge")
        found = said.get(part) if isinstance(said, dict) else None
        return found if isinstance(found, dict) else {}

    def limit(self, purpose: Purpose) -> int | None:
        """Returns the number of tokens to which longer texts are cut; `None` if it is not said."""
        served = _Server(self.own("reranker")) if purpose == "scores" else _Server({})
        return served.count("max_length") or self.count("max_input_length")

    @property
    def pooling(self) -> str | None:
        """The pooling under sentence-transformers' name; `None` if it is not said."""
        kind = self.info.get("model_type")
        embedding = kind.get("embedding") if isinstance(kind, dict) else None
        pooling = embedding.get("pooling") if isinstance(embedding, dict) else None
        return _POOLING_OF_TEI.get(str(pooling).lower())


def connect(request: LoadRequest) -> RemoteModel:
    """Asks a server for a first result, and reads the model's tokenizer if it is on this machine or on the hub.

    Raises:
        EndpointError: The server gives no usable answer, or runs another model.
        PoolingMismatchError: The server says that it pools otherwise than the BGE model was trained.
        SettingsError: The variable of the key is not set, or an option is wrong.
        UnsupportedModelError: The model is of another kind than requested.
        ModelLoadError: The files of `endpoint_options["tokenizer"]` can't be found or read.
    """
    connection = Connection(request.device, request.endpoint_options, _key(request))
    try:
        return _connected(request, connection)
    except BaseException:
        connection.close()
        raise


def _connected(request: LoadRequest, connection: Connection) -> RemoteModel:
    server = _Server(_info(request, connection))
    reading = _reading(request)
    recognition = (reading.recognition if reading else None) or recognize(request.model_name)
    spec = recognition.spec if recognition else None
    _require_kind(request, spec)
    _require_same_model(request, server, spec)
    if recognition is not None and recognition.by == "name":
        _require_same_pooling(request, server, recognition.spec)
    routes, dimension = _probed(request, connection, server)
    expected = (reading.dimension if reading else None) or (spec.dimension if spec else None)
    if request.purpose != "scores" and expected not in (None, dimension):
        raise EndpointError(
            f"{connection.address} gives vectors of {dimension} numbers, but {request.model_name} has {expected}: the "
            "server runs another model. Check endpoint, and endpoint_options['model']."
        )
    engine = RemoteEngine(
        routes,
        connection,
        dimension=dimension,
        batch_tokens=_BATCH_TOKENS,
        max_texts=server.count("max_client_batch_size") or (_MOST_TEXTS_OF_TEI if routes.api == "tei" else _MOST_TEXTS),
    )
    # Each slot has a thread, which waits for the answer to one request.
    slot = EngineSlot(partial(_itself, engine), engine, stop=engine.stop)
    tokens_of_probe = routes.tokens
    facts = _facts(request.purpose, server, reading, recognition, dimension)
    started = Started(
        slots=(slot,) * request.endpoint_options.connections,
        facts=facts,
        tokenizer=reading.tokenizer if reading else TextTokenizer.estimate(),
        heads={},
    )
    identity = key_of(
        {
            "endpoint": request.endpoint,
            "model": request.endpoint_options.model or request.model_name,
            "said": [server.text(name) for name in ("model_id", "model_sha", "model_dtype")],
        }
    )
    return RemoteModel(started, spec, identity, routes, server.limit(request.purpose), tokens_of_probe)


def _itself(engine: RemoteEngine) -> RemoteEngine:
    return engine


def _key(request: LoadRequest) -> str | None:
    name = request.endpoint_options.api_key_env
    if name is None:
        return request.api_key
    key = os.environ.get(name, "").strip()
    if not key:
        raise SettingsError(
            f"The environment variable {name}, named by endpoint_options['api_key_env'], is not set; set it to the "
            "server's key."
        )
    return key


def _info(request: LoadRequest, connection: Connection) -> Mapping[str, Any]:
    """Returns the answer of `/info`; {} if the server has OpenAI's routes."""
    api = request.endpoint_options.api
    if api == "openai" or (api == "auto" and connection.address.endswith("/v1")):
        return {}
    info = connection.look("/info")
    if isinstance(info, dict) and "model_id" in info:
        return info
    return {} if api == "auto" else {"model_id": None}


def _reading(request: LoadRequest) -> Reading | None:
    """Returns how the model reads texts; `None` if its tokenizer can't be had."""
    given = request.endpoint_options.tokenizer
    name = given or request.model_name
    try:
        folder = local_folder(name, request.revision)
        if folder is None:
            if given is None and "/" not in name and find_model(name) is None:
                return None  # a name on the server, such as "bge-m3:latest"
            from bge_integrations.backend.checkpoint.hub import fetch

            folder = fetch(_named(request, name), weights=False)
        if is_prepared(folder):
            return _reading_of_prepared(PreparedFolder.open(folder))
        reading = read_texts(folder, request.model_name, request.purpose)
    except ModelLoadError as error:
        if given is not None:
            raise
        logger.info("%s: no tokenizer, so tokens are estimated: %s", name, error)
        return None
    if reading is None and given is not None:
        raise ModelNotFoundError(f"endpoint_options['tokenizer']={given!r} has no tokenizer that can be loaded here.")
    return reading


def _named(request: LoadRequest, name: str) -> LoadRequest:
    return dataclasses.replace(request, model_name=name)


def _reading_of_prepared(prepared: PreparedFolder) -> Reading:
    facts = prepared.manifest.facts
    spec = next((spec for spec in MODELS if spec.model_id == prepared.manifest.model_id), None)
    return Reading(
        prepared.tokenizer,
        facts.max_tokens,
        facts.prompts,
        facts.default_prompt_name,
        Recognition(spec, facts.recognized_by) if spec and facts.recognized_by else None,
        dimension=facts.dimension,
    )


def _require_kind(request: LoadRequest, spec: ModelSpec | None) -> None:
    if spec is None:
        return
    if (spec.kind == "reranker") != (request.purpose == "scores"):
        raise UnsupportedModelError(
            f"{request.model_name} is {'a reranker' if spec.kind == 'reranker' else 'no reranker'}; use "
            f"{'BgeReranker' if spec.kind == 'reranker' else 'BgeEncoder'}."
        )


def _require_same_model(request: LoadRequest, server: _Server, spec: ModelSpec | None) -> None:
    """Refuses a server that names another model. A path or a name of the user's own says nothing."""
    served = server.text("model_id")
    theirs = find_model(served) if served else None
    if theirs is None or spec is None or theirs == spec or request.purpose == "scores":
        return
    raise EndpointError(
        f"{request.endpoint} runs {served}, not {request.model_name}; give the model that it runs as model_name."
    )


def _require_same_pooling(request: LoadRequest, server: _Server, spec: ModelSpec) -> None:
    trained = NAMES_OF_CATALOGUE[spec.pooling or "cls"]
    if request.purpose != "scores" and server.pooling not in (None, trained):
        raise PoolingMismatchError(
            f"{request.endpoint} says that it uses {server.pooling} pooling, but {spec.model_id} was trained with "
            f"{trained} pooling, so its vectors are wrong; start the server with the model's own pooling "
            f"(text-embeddings-inference: --pooling {spec.pooling or 'cls'})."
        )


def _plain_prompt(request: LoadRequest, server: _Server) -> str | None:
    """Returns the name of a prompt of `bge serve` that adds nothing to a text; `None` for other servers."""
    instructions = server.own("embeddings").get("instructions")
    if not isinstance(instructions, dict) or request.purpose == "scores":
        return None
    for name in ("symmetric", "document", "query"):
        if instructions.get(name) == {"before": "", "after": ""}:
            return name
    raise EndpointError(
        f"{request.endpoint} adds an instruction to every text, so there is no way to send texts as they are; start "
        "`bge serve` with the model's own instructions."
    )


def _probed(request: LoadRequest, connection: Connection, server: _Server) -> tuple[Routes, int]:
    """Returns the routes that answer, and the length of a vector."""
    width = 1

    def ask(routes: Routes) -> None:
        nonlocal width
        if request.purpose == "scores":
            routes.scores(PROBE, [PROBE])
            return
        width = routes.vectors([PROBE], "interactive").shape[1]
        if request.purpose == "m3":
            routes.weights([PROBE], "interactive")

    try:
        if server.info:
            routes: Routes = TeiRoutes(connection, plain_prompt=_plain_prompt(request, server))
            ask(routes)
            return routes, width
        options = request.endpoint_options
        model = options.model or request.model_name
        prefixes = ("",) if connection.address.endswith("/v1") else ("/v1", "")
        choices = [OpenAiRoutes(connection, prefix=one, model=model, scores=options.scores) for one in prefixes]
        return first_that_answers(choices, ask), width
    except TextsRefused as error:
        raise EndpointError(f"The first request failed: {error}", status=error.status) from None
    except EndpointError as error:
        if error.status != 404 or server.info:
            raise
        raise EndpointError(f"{error}{_models_there(connection)}", status=404) from None


def _models_there(connection: Connection) -> str:
    """Returns a sentence with the names of a server's models; "" if it does not list them."""
    for path in ("/models",) if connection.address.endswith("/v1") else ("/v1/models", "/models"):
        listed = connection.look(path)
        rows = listed.get("data") if isinstance(listed, dict) else None
        names = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        if names:
            return f" The server has the models {', '.join(map(repr, names[:10]))}."
    return ""


def _facts(
    purpose: Purpose, server: _Server, reading: Reading | None, recognition: Recognition | None, dimension: int
) -> ModelFacts:
    own_files = recognition is None or (recognition.by == "record" and reading is not None and reading.has_modules)
    spec = recognition.spec if recognition else None
    limits = [
        server.limit(purpose),
        reading.max_tokens if reading else None,
        spec.max_tokens if spec and not own_files else None,
    ]
    known = [limit for limit in limits if limit is not None]
    tokenizer = reading.tokenizer if reading else None
    return ModelFacts(
        dimension=dimension,
        # Without a tokenizer no text is known to be too long.
        max_tokens=min(known, default=sys.maxsize) if tokenizer else sys.maxsize,
        positions=None,
        word_rows=None,
        type_rows=None,
        second_type=0,
        normalizes=True,
        normalizes_by_default=True,
        recognized_by=recognition.by if recognition else None,
        pooling=None,
        pools_without_prompt=False,
        prompts=reading.prompts if reading else {},
        default_prompt_name=reading.default_prompt_name if reading else None,
        unweighted_ids=(),
        pad_id=tokenizer.pad_id if tokenizer else 0,
        truncation_side=tokenizer.truncation_side if tokenizer else "right",
        splits_special_tokens=tokenizer.splits_special_tokens if tokenizer else False,
        encoder=None,
    )
