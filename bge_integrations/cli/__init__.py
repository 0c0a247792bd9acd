"""The command `bge`."""

from bge_integrations.cli.app import app, main

__all__ = ["app", "main"]
