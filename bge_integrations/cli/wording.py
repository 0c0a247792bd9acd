"""Replaces names of settings in error messages by options of the command line."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping

from typer.models import ArgumentInfo

__all__ = ["in_options", "options_of"]

_VALUE = r"""None|True|False|…|'[^'\n]*'|"[^"\n]*"|[\w./…-]*[\w/…]"""

_QUOTES = "'\""

_ENVIRONMENT = {"token": "HF_TOKEN"}
"""Variables instead of options: every user of the machine can see a token on a command line."""


def options_of(command: Callable[..., object]) -> dict[str, str]:
    """Returns a command's option for each setting: `--cache-folder` for `cache_folder`, `MODEL` for `model_name`."""
    spelled = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        (declared,) = parameter.annotation.__metadata__
        # In `Annotated`, the first name stands where the default would be.
        names = (declared.default, *(declared.param_decls or ()))
        flags = [flag for flag in names if isinstance(flag, str) and flag.startswith("--")]
        option = name.upper() if isinstance(declared, ArgumentInfo) else (*flags, f"--{name.replace('_', '-')}")[0]
        spelled["model_name" if name == "model" else name] = option
    return spelled


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Replaces settings in a message by a command's options.

    `precision='int4'` becomes `--precision int4`, `allow_pickle_weights=True` becomes `--allow-pickle-weights`, and
    `leave revision=None` becomes `leave out --revision`. A name without a value is replaced only if it has an
    underscore, since it can be an ordinary word. A setting without an option is not changed.
    """
    names = "|".join(map(re.escape, {**_ENVIRONMENT, **options}))
    pattern = rf"(leave )?(?<![\w.-])({names})(?:=({_VALUE}))?(?![\w=])"
    return re.sub(pattern, lambda found: _spelled(found, options), message)


def _spelled(found: re.Match[str], options: Mapping[str, str]) -> str:
    leave, name, value = found[1] or "", found[2], found[3]
    if name not in options:
        return f"{leave}{_ENVIRONMENT[name]}={value}" if value else found[0]
    option = options[name]
    if value is None:
        return f"{leave}{option}" if "_" in name else found[0]
    if value in ("None", "False"):
        return f"{'leave out' if leave else 'no'} {option}"
    if value == "True":
        return f"{leave}{option}"
    is_quoted = value[0] == value[-1] and value[0] in _QUOTES
    return f"{leave}{option} {shlex.quote(value[1:-1]) if is_quoted else value}"
