"""Measures this package beside the adapters and runtimes of today, on the same weights and texts, in turns.

Prints tables, and saves everything measured as JSON, which `--draw` turns into charts again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.command import add_workdir, names, parser_of, require_device, save
from benchmarks.contenders import CONTENDERS, choose
from benchmarks.elsewhere import at_home, versions
from benchmarks.isolation import isolate
from benchmarks.limit import PRECISIONS
from benchmarks.machine import PACKAGES
from benchmarks.profiles import PARTS, PROFILES, Profile
from benchmarks.shapes import SHAPES
from benchmarks.suite import Plan, run
from benchmarks.tables import print_results

_WIDTH_OF_FILES = 130
_OF_THE_CPU = "memory"


def main() -> None:
    """Reads the options, measures, prints, saves and draws."""
    parser = _parser()
    options = parser.parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    if options.draw:
        results = json.loads(options.draw.read_text(encoding="utf-8"))
        _draw(console, results, options.charts or options.draw.parent)
        return
    workdir, device = options.workdir.resolve(), require_device(parser, options.device)
    isolate(workdir)
    try:
        plan = _plan(options, workdir, device)
    except ValueError as error:
        parser.error(str(error))
    results = run(plan, lambda text: console.print(text, style="dim", markup=False), lambda r: save(r, options.output))
    print_results(console, results)
    save(results, options.output, console)
    if options.charts:
        _draw(console, results, options.charts)


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("benchmarks", __doc__)
    add = parser.add_argument
    add("--profile", choices=list(PROFILES), help="full: hours on a small machine; quick: a minute; gpu: for a GPU")
    add("--device", default="cpu", help="cpu, or a GPU such as cuda, which has contenders and limits of its own")
    add("--shapes", type=names, help=f"models, by commas: {', '.join(SHAPES)}")
    add("--parts", type=names, help=f"by commas: {', '.join(PARTS)}; all unless given, on a GPU without memory")
    add(
        "--contenders",
        type=names,
        default=["*"],
        help="names or patterns such as bge-*, by commas; all of them: "
        + ", ".join(contender.name for contender in CONTENDERS),
    )
    add(
        "--peers-python",
        type=Path,
        action="append",
        default=[],
        metavar="PYTHON",
        help="another Python with contenders' packages that can't be installed beside this one's; may be repeated",
    )
    add("--rounds", type=int, help="how often each contender is measured")
    add("--model", type=Path, help="a folder with weights of your own, instead of --shapes")
    add("--output", type=Path, default=Path("benchmarks/results.json"), help="where to save what was measured")
    add("--charts", type=Path, metavar="FOLDER", help="draw charts into it")
    add("--draw", type=Path, metavar="JSON", help="measure nothing, draw the charts of a saved run")
    add_workdir(parser, "models and graphs")
    return parser


def _plan(options: argparse.Namespace, workdir: Path, device: str) -> Plan:
    kind = device.split(":")[0]
    if kind not in PRECISIONS:
        raise ValueError(f"--device must be {' or '.join(PRECISIONS)}, not {options.device}")
    profile = PROFILES[options.profile or ("full" if kind == "cpu" else "gpu")]
    parts = options.parts or [part for part in PARTS if kind == "cpu" or part != _OF_THE_CPU]
    if kind != "cpu" and _OF_THE_CPU in parts:
        raise ValueError(f"the part {_OF_THE_CPU} is of the processor's memory; leave it out on a GPU")
    if options.model and options.shapes:
        raise ValueError("give either --model or --shapes")
    if options.model and not (options.model / "config.json").is_file():
        raise ValueError("--model must be a folder with a config.json")
    for given, known in ((options.shapes or [], SHAPES), (parts, PARTS)):
        for name in given:
            if name not in known:
                raise ValueError(f"{name!r} is unknown; there are {', '.join(known)}")
    contenders = at_home(choose(options.contenders, kind), options.peers_python)
    return Plan(
        profile=_changed(profile, options),
        parts=parts,
        contenders=contenders,
        elsewhere=[versions(python, PACKAGES) for python in options.peers_python],
        workdir=workdir,
        own_model=options.model.resolve() if options.model else None,
        kind=kind,
        device=device,
    )


def _changed(profile: Profile, options: argparse.Namespace) -> Profile:
    if options.rounds is not None and options.rounds < 1:
        raise ValueError("--rounds must be at least 1")
    return dataclasses.replace(
        profile, rounds=options.rounds or profile.rounds, shapes=tuple(options.shapes or profile.shapes)
    )


def _draw(console: Console, results: Mapping[str, Any], folder: Path) -> None:
    from benchmarks.charts import draw

    for file in draw(results, folder):
        console.print(f"drawn: {file.name}", markup=False)


if __name__ == "__main__":
    main()
