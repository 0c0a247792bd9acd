"""Groups of options, which commands take as one argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from bge_integrations.cli.options import Files, Loading, OptionGroup, Server, reranker_settings, with_single_options
from bge_integrations.cli.wording import options_of

seen: list[object] = []


@dataclass(frozen=True, kw_only=True)
class Inner(OptionGroup):
    size: Annotated[int, typer.Option("--how-many", help="Number.")] = 3
    fast: Annotated[bool, typer.Option("--fast", help="Quickly.")] = False


@dataclass(frozen=True, kw_only=True)
class Outer(OptionGroup):
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name.")]
    inner: Inner


@with_single_options
def command(
    first: Annotated[str, typer.Option(help="First.")] = "a",
    *,
    outer: Outer,
    last: Annotated[str, typer.Option(help="Last.")] = "z",
) -> None:
    """Does something."""
    seen.append((first, outer, last))


def run(*arguments: str) -> str:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_command_gets_its_groups() -> None:
    seen.clear()
    run("x", "--how-many", "5", "--first", "b")
    run("y", "--fast")
    assert seen == [
        ("b", Outer(name="x", inner=Inner(size=5)), "z"),
        ("a", Outer(name="y", inner=Inner(fast=True)), "z"),
    ]


def test_the_help_has_the_options_of_a_group_in_its_place() -> None:
    shown = run("--help")
    places = [shown.index(text) for text in ("Does something.", "--first", "--how-many", "--fast", "--last")]
    assert places == sorted(places)
    assert "default: 3" in shown


def test_messages_name_the_options_of_a_group() -> None:
    assert options_of(command)["size"] == "--how-many"
    assert options_of(command)["name"] == "NAME"


def test_a_group_gives_settings() -> None:
    loading = Loading(pooling="cls", files=Files(local_files_only=True))
    assert loading.settings() == {
        "pooling": "cls",
        "revision": None,
        "cache_folder": None,
        "local_files_only": True,
        "trust_remote_code": False,
        "allow_pickle_weights": False,
    }


@pytest.mark.parametrize(
    ("server", "options"),
    [
        (Server(), {}),
        (Server(endpoint="http://host", endpoint_key_env="KEY"), {"api_key_env": "KEY"}),
        (Server(endpoint="http://host", endpoint_model="m"), {"model": "m"}),
    ],
)
def test_what_is_not_given_about_a_server_is_left_out(server: Server, options: dict[str, str]) -> None:
    assert server.settings() == {"endpoint": server.endpoint, "endpoint_options": options}


def test_a_reranker_takes_files_and_device_of_the_encoder_beside_it() -> None:
    options = {"device": "cpu", "local_files_only": True, "max_length": 9, "precision": "int8", "pooling": "cls"}
    found = reranker_settings("name", options, "bfloat16")
    assert (found.device, found.local_files_only, found.max_length) == ("cpu", True, None)
    assert (found.precision, found.on_truncation) == ("bfloat16", "ignore")
