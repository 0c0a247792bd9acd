"""The description of the routes: as OpenAPI, and as a page that needs nothing from elsewhere."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from bge_integrations import __version__
from bge_integrations.server.errors import Api, Refused
from bge_integrations.server.routes import Route

_PAGES = {
    "/health": "Says that the process runs. It needs no key.",
    "/ready": "Says whether requests are taken: 503 while the server stops. It needs no key.",
    "/info": "The model, the default side of texts, the instructions, and the limits.",
    "/v1/models": "The names of the models.",
    "/metrics": "Numbers for Prometheus.",
}

_ERRORS = {
    "400": "The request is wrong; the message names the place. TEI's paths use 422.",
    "401": "The key is missing or wrong.",
    "404": "The model is not served here.",
    "413": "Too many texts, too large a body, or a text over the limit that must not be cut.",
    "429": "The server is busy. Try again after the seconds in Retry-After.",
    "503": "The server is about to stop.",
}


def description(routes: Sequence[Route]) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document of the routes."""
    paths: dict[str, Any] = {
        path: {"get": {"summary": about, "responses": {"200": {"description": "Done."}}}}
        for path, about in _PAGES.items()
    }
    for route in routes:
        schema = route.body.model_json_schema(ref_template="#/components/schemas/{model}")
        paths.setdefault(route.path, {})["post"] = {
            "tags": [route.api.name],
            "summary": route.about,
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {
                "200": {"description": "Done.", "content": {"application/json": {"example": route.example}}},
                **{status: _error(route.api, about) for status, about in _ERRORS.items()},
            },
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bge serve", "version": __version__},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _error(api: Api, about: str) -> dict[str, Any]:
    example = api.body(Refused("invalid", about))
    return {"description": about, "content": {"application/json": {"example": example}}}


def page(routes: Sequence[Route]) -> str:
    """Returns a page about the routes in HTML."""
    rows = "".join(_row(f"GET {path}", about, "") for path, about in _PAGES.items())
    for route in routes:
        schema = route.body.model_json_schema()
        wanted = schema.get("required", [])
        fields = ", ".join(f"{name}{' (required)' if name in wanted else ''}" for name in schema["properties"])
        rows += _row(
            f"POST {route.path}", f"{route.about} {route.api.name}'s interface. Fields: {fields}.", route.example
        )
    errors = "".join(_row(status, about, "") for status, about in _ERRORS.items())
    return _PAGE.format(rows=rows, errors=errors)


def _row(what: str, about: str, example: object) -> str:
    shown = f"<pre>{html.escape(json.dumps(example, ensure_ascii=False))}</pre>" if example else ""
    return f"<tr><td><code>{html.escape(what)}</code></td><td>{html.escape(about)}{shown}</td></tr>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bge serve</title>
<style>body{{font-family:sans-serif;max-width:60em;margin:2em auto}}td{{padding:.4em;vertical-align:top}}
pre{{white-space:pre-wrap}}</style></head>
<body><h1>bge serve</h1><p>The same as <a href="openapi.json">OpenAPI</a>.</p>
<table>{rows}</table><h2>Errors</h2><table>{errors}</table></body></html>
"""
