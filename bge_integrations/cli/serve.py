"""The command `bge serve`, with its options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from bge_integrations._optional import require
from bge_integrations.cli.options import Computation, Instruction, Loading, Threads, TokensRead, with_single_options
from bge_integrations.cli.terminal import open_console, print_text
from bge_integrations.errors import SettingsError

if TYPE_CHECKING:
    from bge_integrations.encoder import BgeEncoder
    from bge_integrations.m3 import BgeM3Encoder
    from bge_integrations.reranker import BgeReranker

__all__ = ["loaded", "serve"]


@with_single_options
def serve(
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Hub id or folder of an embedding model, or of bge-m3.")
    ] = None,
    reranker: Annotated[str | None, typer.Option(metavar="MODEL", help="Hub id or folder of a reranker.")] = None,
    m3: Annotated[bool, typer.Option("--m3", help="MODEL is bge-m3: serve its lexical weights too.")] = False,
    host: Annotated[str, typer.Option(help="Interface to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8080,
    uds: Annotated[
        str | None, typer.Option(metavar="PATH", help="Listen on this Unix socket instead of host and port.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the key that requests must send; no key unless given."
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name of MODEL in requests beside its own. Repeat the option for more names."
        ),
    ] = None,
    default_input_type: Annotated[
        str, typer.Option(help="Side of texts if a request names none: query, document or symmetric.")
    ] = "document",
    no_truncate: Annotated[
        bool, typer.Option("--no-truncate", help="Refuse texts over the limit unless a request allows to cut them.")
    ] = False,
    max_texts: Annotated[int | None, typer.Option(min=1, help="Texts of a request; 2048 unless given.")] = None,
    max_characters: Annotated[
        int | None, typer.Option(min=1, help="Characters of a text; 1000000 unless given.")
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of a request; 33554432 unless given.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Requests at once; 512 unless given.")] = None,
    max_queued_texts: Annotated[
        int | None,
        typer.Option(min=1, help="Documents in progress, and as many queries, over all requests; 8192 unless given."),
    ] = None,
    body_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Time for a request to arrive; 60 seconds unless given.")
    ] = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="Time for requests in progress after SIGTERM.")] = 30.0,
    *,
    computation: Computation,
    max_length: TokensRead = None,
    threads: Threads = None,
    query_instruction: Instruction = None,
    loading: Loading,
) -> None:
    """Serve models over HTTP: OpenAI's, TEI's and Cohere's interfaces."""
    if model is None and reranker is None:
        raise SettingsError("There is no model to serve; give --model, --reranker, or both.")
    if m3 and model is None:
        raise SettingsError("--m3 needs --model with a bge-m3 model.")
    key = _key(api_key_env)
    for module in ("orjson", "prometheus_client", "starlette", "uvicorn"):
        require(module, "serve")
    from bge_integrations.server import Limits, create_app
    from bge_integrations.server.inputs import read_default_side
    from bge_integrations.server.process import bound, is_local
    from bge_integrations.server.process import serve as run

    side = read_default_side(default_input_type)
    limits = Limits.of(
        max_texts=max_texts,
        max_characters=max_characters,
        max_body_bytes=max_body_bytes,
        max_requests=max_requests,
        max_queued_texts=max_queued_texts,
        body_seconds=body_seconds,
    )
    options = {
        "max_length": max_length,
        "threads": threads,
        "query_instruction": query_instruction,
        **computation.settings(),
        **loading.settings(),
    }
    console = open_console(stderr=True)
    # The address comes first, since a model may take minutes to load.
    with bound(host, port, uds) as (listener, address):
        if key is None and uds is None and not is_local(listener):
            print_text(
                console,
                f"bge: {address} is open to the network, and there is no key: everyone who reaches it can use it. Give "
                "--api-key-env, or listen on 127.0.0.1.",
                style="yellow",
            )
        app = create_app(
            **loaded(model, reranker, options, m3=m3),
            names=name or (),
            api_key=key,
            default_input_type=side,
            truncate=not no_truncate,
            limits=limits,
        )
        run(
            app,
            listener,
            drain_seconds=drain_seconds,
            on_start=lambda: print_text(console, f"serving at {address}"),
        )


class Loaded(TypedDict):
    """The models for `create_app`."""

    encoder: BgeEncoder | None
    reranker: BgeReranker | None
    m3: BgeM3Encoder | None


def loaded(model: str | None, reranker: str | None, options: Mapping[str, Any], *, m3: bool) -> Loaded:
    """Loads what is served. bge-m3 comes first, since an encoder of its own would lack the weights for words.

    Args:
        model: Hub id or folder of the embedding model; `None`: none.
        reranker: Hub id or folder of the reranker; `None`: none.
        options: Settings of all models. `pooling`, `revision` and `query_instruction` are of the embedding model.
        m3: Whether the embedding model is bge-m3, with its lexical weights.
    """
    from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker

    of_m3 = {name: value for name, value in options.items() if name != "pooling"}
    of_reranker = {name: value for name, value in of_m3.items() if name not in ("revision", "query_instruction")}
    whole = BgeM3Encoder(model, **of_m3) if model and m3 else None
    return {
        "encoder": BgeEncoder(model, **options) if model else None,
        "reranker": BgeReranker(reranker, **of_reranker) if reranker else None,
        "m3": whole,
    }


def _key(variable: str | None) -> str | None:
    """Returns the key in an environment variable; `None` if no variable is named."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SettingsError(f"--api-key-env {variable}: this variable is not set, or it is empty.")
    return key
