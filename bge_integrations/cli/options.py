"""Options that several commands have, and groups of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer
from typing_extensions import Self, TypeIs

from bge_integrations.settings import RerankerOptions, RerankerSettings, description

__all__ = [
    "PRIVATE",
    "AsJson",
    "Computation",
    "Device",
    "Engine",
    "EngineOfMany",
    "Files",
    "HowToPool",
    "Instruction",
    "Loading",
    "MaxLength",
    "OptionGroup",
    "Precision",
    "Resume",
    "Revision",
    "Seed",
    "Server",
    "TensorBoard",
    "Threads",
    "TokensRead",
    "TrainingDevice",
    "reranker_settings",
    "with_single_options",
]

PRIVATE = "A private model needs HF_TOKEN, or `hf auth login` once."
"""Words below the help of commands that load a model."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
HowToPool = Annotated[
    str | None, typer.Option(help="Pooling: cls, mean or last; as the model's files say unless given.")
]
Revision = Annotated[str | None, typer.Option(help=description("revision"))]
Precision = Annotated[str, typer.Option(help="float32, bfloat16, float16, int8 or auto.")]
Engine = Annotated[str, typer.Option(help="openvino, torch, sentence-transformers or auto.")]
EngineOfMany = Annotated[str, typer.Option(help="auto, openvino, torch or sentence-transformers.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; the best there is unless given.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens of a text; the model's own limit unless given.")
]
TokensRead = Annotated[
    int | None, typer.Option(min=1, help="Tokens of a text that are read; as many as the model can unless given.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; the usable cores unless given.")]
Instruction = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Text before each query; the model's own unless given.")
]
TrainingDevice = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best there is unless given.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Seed; 0 unless given.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write logs for TensorBoard.")]


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """Options that several commands have, in the order of the help. A field is an option or a further group."""

    @classmethod
    def options(cls) -> Iterator[inspect.Parameter]:
        """Yields the options one by one."""
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if _is_group(hint):
                yield from hint.options()
            else:
                default = getattr(cls, name, inspect.Parameter.empty)
                yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Self:
        """Takes the values of this group out of a dictionary by name."""
        hints = get_type_hints(cls, include_extras=True).items()
        return cls(**{name: hint.taken_from(options) if _is_group(hint) else options.pop(name) for name, hint in hints})

    @classmethod
    def by_default(cls) -> Self:
        """Returns the group when no option of it is given. Each option needs a default."""
        return cls.taken_from({option.name: option.default for option in cls.options()})

    def settings(self) -> dict[str, Any]:
        """Returns the values as keywords of settings, which check them."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            found |= value.settings() if isinstance(value, OptionGroup) else {name: value}
        return found


def _is_group(hint: object) -> TypeIs[type[OptionGroup]]:
    return isinstance(hint, type) and issubclass(hint, OptionGroup)


@dataclass(frozen=True, kw_only=True)
class Files(OptionGroup):
    """Where the files of a model are, and what is allowed with them."""

    cache_folder: Annotated[
        str | None, typer.Option(help="Folder for hub files; the hub's usual cache folder unless given.")
    ] = None
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help=description("local_files_only"))] = False
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=description("trust_remote_code"))] = (
        False
    )
    allow_pickle_weights: Annotated[
        bool, typer.Option("--allow-pickle-weights", help=description("allow_pickle_weights"))
    ] = False


@dataclass(frozen=True, kw_only=True)
class Loading(OptionGroup):
    """How one embedding model is read."""

    pooling: HowToPool = None
    revision: Revision = None
    files: Files


@dataclass(frozen=True, kw_only=True)
class Computation(OptionGroup):
    """How a model computes."""

    precision: Precision = "auto"
    engine: Engine = "auto"
    device: Device = None


@dataclass(frozen=True, kw_only=True)
class Server(OptionGroup):
    """The server that runs a model."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Server that runs the model, such as http://localhost:8080; none by default."
        ),
    ] = None
    endpoint_model: Annotated[
        str | None,
        typer.Option("--endpoint-model", metavar="NAME", help="The model's name on that server; MODEL unless given."),
    ] = None
    endpoint_key_env: Annotated[
        str | None,
        typer.Option("--endpoint-key-env", metavar="NAME", help="Environment variable with that server's key."),
    ] = None

    def settings(self) -> dict[str, Any]:
        """Returns the address, and the rest as its options."""
        options = {"model": self.endpoint_model, "api_key_env": self.endpoint_key_env}
        given = {name: value for name, value in options.items() if value is not None}
        return {"endpoint": self.endpoint, "endpoint_options": given}


def reranker_settings(model: str, options: Mapping[str, Any], precision: str) -> RerankerSettings:
    """Returns the settings of a reranker that is used beside an encoder.

    Args:
        model: Hub id or folder.
        options: Settings of the encoder; those that concern files, engine and device hold for the reranker too.
        precision: Precision of the reranker.
    """
    # A limit is meant for texts, not for pairs.
    shared = {name: options[name] for name in RerankerOptions.__annotations__ if name in options}
    own = {"max_length": None, "precision": precision, "on_truncation": "ignore"}
    return RerankerSettings(model_name=model, **{**shared, **own})


def with_single_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command with the options of its groups one by one, for typer."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += groups[name].options()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @functools.wraps(command)
    def single(**options: Any) -> None:  # noqa: ANN401 - the options' own types
        taken = {name: group.taken_from(options) for name, group in groups.items()}
        command(**options, **taken)

    single.__annotations__ = {one.name: one.annotation for one in parameters}
    vars(single)["__signature__"] = inspect.Signature(parameters)
    return single
