"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bge_integrations.settings import description

__all__ = [
    "PRIVATE",
    "AllowPickleWeights",
    "AsJson",
    "CacheFolder",
    "Device",
    "Endpoint",
    "EndpointKeyEnv",
    "EndpointModel",
    "HowToPool",
    "LocalFilesOnly",
    "Resume",
    "Revision",
    "Seed",
    "TensorBoard",
    "TrainingDevice",
    "TrustRemoteCode",
    "of_server",
]

PRIVATE = "A private model needs HF_TOKEN, or `hf auth login` once."
"""Words below the help of commands that load a model."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
HowToPool = Annotated[
    str | None, typer.Option(help="Pooling: cls, mean or last; as the model's files say unless given.")
]
Revision = Annotated[str | None, typer.Option(help=description("revision"))]
CacheFolder = Annotated[
    str | None, typer.Option(help="Folder for hub files; the hub's usual cache folder unless given.")
]
LocalFilesOnly = Annotated[bool, typer.Option("--local-files-only", help=description("local_files_only"))]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help=description("trust_remote_code"))]
AllowPickleWeights = Annotated[bool, typer.Option("--allow-pickle-weights", help=description("allow_pickle_weights"))]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is unless given.")]
Endpoint = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Server that runs the model, such as http://localhost:8080; none by default."),
]
EndpointModel = Annotated[
    str | None,
    typer.Option("--endpoint-model", metavar="NAME", help="The model's name on that server; MODEL unless given."),
]
EndpointKeyEnv = Annotated[
    str | None,
    typer.Option("--endpoint-key-env", metavar="NAME", help="Environment variable with that server's key."),
]
TrainingDevice = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best there is unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed; 0 unless given.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard.")]


def of_server(endpoint: str | None, model: str | None, key_env: str | None) -> dict[str, Any]:
    """Returns the settings of the options for a server."""
    options = {name: value for name, value in (("model", model), ("api_key_env", key_env)) if value is not None}
    return {"endpoint": endpoint, "endpoint_options": options}
