"""Makes the slim distribution of the files and the metadata of the whole one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHOLE, SLIM = "bge-integrations", "bge-integrations-slim"
LEFT_OUT = ("scikit-learn", "scipy", "sentence-transformers", "torch", "transformers")
EXTRAS = (
    "langchain",
    "llama-index",
    "openvino",
    "prepare",
    "otel",
    "mteb",
    "corpus",
    "serve",
    "ray",
    "spark",
    "daft",
    "all",
)
NEED_TORCH = (f"{WHOLE}[lora,mteb,train]",)
"""Extras that need torch. `all` of the slim distribution leaves them out."""
PACKAGE, MAIN, LICENSE = "bge_integrations", "pyproject.toml", "LICENSE"


def source(root: str) -> tuple[Path, Path, Path]:
    """Returns where the package, the main pyproject.toml and the licence are: in a checkout, or in an sdist of ours."""
    here = Path(root)
    if (here / PACKAGE).is_dir():
        return here / PACKAGE, here / f"main-{MAIN}", here / LICENSE
    above = here.parents[1]
    return above / PACKAGE, above / MAIN, above / LICENSE


def name_of(requirement: str) -> str:
    """Returns the name of the package that a requirement is for."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


class CustomMetadataHook(MetadataHookInterface):
    """Takes what the whole distribution says of itself."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fills in what this pyproject.toml calls dynamic."""
        package, main, _ = source(self.root)
        whole = tomllib.loads(main.read_text(encoding="utf-8"))["project"]
        version = re.search(r'"([^"]+)"', (package / "_version.py").read_text(encoding="utf-8").split("=")[1])
        if version is None:
            raise ValueError(f"{package / '_version.py'} says no version")
        extras = {
            name: [
                requirement.replace(f"{WHOLE}[", f"{SLIM}[")
                for requirement in whole["optional-dependencies"][name]
                if not requirement.startswith(NEED_TORCH)
            ]
            for name in EXTRAS
        }
        metadata |= {
            "version": version[1],
            "description": f"{whole['description']} Without torch, transformers and sentence-transformers.",
            "dependencies": [needed for needed in whole["dependencies"] if name_of(needed) not in LEFT_OUT],
            "optional-dependencies": {
                **extras,
                "torch": [needed for needed in whole["dependencies"] if name_of(needed) in LEFT_OUT],
            },
            **{key: whole[key] for key in ("requires-python", "keywords", "classifiers")},
        }


class CustomBuildHook(BuildHookInterface[Any]):
    """Puts the package's files in."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds them to a wheel; and to an sdist with all that a wheel is made of."""
        if version == "editable":
            raise ValueError("the slim distribution can't be installed with -e; install the whole one so")
        package, main, licence = source(self.root)
        files = {str(package): PACKAGE}
        if self.target_name == "sdist":
            files |= {str(main): f"main-{MAIN}", str(licence): LICENSE}
        else:
            build_data["extra_metadata"] = {str(licence): f"licenses/{LICENSE}"}
        build_data["force_include"] = {**build_data.get("force_include", {}), **files}
