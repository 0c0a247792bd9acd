"""An HTTP server for a model: OpenAI's, TEI's and Cohere's interfaces for embeddings and reranking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bge_integrations._lazy import attach

if TYPE_CHECKING:
    from bge_integrations.server.app import ServerApp, create_app
    from bge_integrations.server.limits import Limits
    from bge_integrations.server.process import serve

__all__ = ["Limits", "ServerApp", "create_app", "serve"]

_HOMES = {"Limits": "limits", "ServerApp": "app", "create_app": "app", "serve": "process"}

__getattr__, __dir__ = attach(__name__, _HOMES)
