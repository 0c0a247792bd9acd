"""Runs the parts in order, model by model, and puts together what they measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import cold, latency, limit, load, machine, memory, shares, throughput
from benchmarks.contenders import Contender
from benchmarks.entrants import Place
from benchmarks.lineup import Lineup, assemble
from benchmarks.noise import Reference
from benchmarks.profiles import Profile
from benchmarks.shapes import SHAPES, Shape, checkpoint, shape_of
from benchmarks.texts import TextMix, enlarged, make_mix

FORMAT = 1
"""Of the JSON. Raised when tables and charts could not read an older one."""

_CHECKED_DOCUMENTS, _CHECKED_QUERIES = 24, 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run measures.

    Attributes:
        profile: How much.
        parts: Some of `PARTS`.
        contenders: Who takes part.
        workdir: Where models, graphs and caches are kept.
        own_model: Somebody's own weights instead of the profile's shapes.
        kind: The kind of device that contenders and precisions are those of: "cpu" or "cuda".
        device: The device.
        elsewhere: Versions of packages, for each other Python that runs contenders.
    """

    profile: Profile
    parts: Sequence[str]
    contenders: Sequence[Contender]
    workdir: Path
    own_model: Path | None = None
    kind: str = "cpu"
    device: str = "cpu"
    elsewhere: Sequence[Mapping[str, str | None]] = ()


def run(plan: Plan, tell: Callable[[str], None], save: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Measures everything that was planned.

    Args:
        plan: What.
        tell: Is told what is going on.
        save: Is given everything measured so far after each model, so that a long run that is ended early keeps it.

    Returns:
        Plain data, ready for JSON, tables and charts.
    """
    results: dict[str, Any] = {
        "format": FORMAT,
        "profile": plan.profile.name,
        "parts": list(plan.parts),
        "rounds": plan.profile.rounds,
        "machine": machine.facts(),
        "device": plan.device,
        "elsewhere": plan.elsewhere,
        "shapes": {},
    }
    reference = Reference(plan.profile.rest_seconds)
    for shape, folder in _models(plan, tell):
        results["shapes"][shape.name] = _Model(plan, shape, folder, reference, tell).measure()
        save(results)
        gc.collect()
    return results


def _models(plan: Plan, tell: Callable[[str], None]) -> list[tuple[Shape, Path]]:
    if plan.own_model:
        return [(shape_of(plan.own_model), plan.own_model)]
    models = []
    for name in plan.profile.shapes:
        tell(f"{name}: making the model, unless it is there")
        models.append((SHAPES[name], checkpoint(SHAPES[name], plan.workdir)))
    return models


class _Model:
    """The parts for one model."""

    def __init__(
        self, plan: Plan, shape: Shape, folder: Path, reference: Reference, tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._shape = shape
        self._place = Place(folder, plan.workdir, plan.device)
        self._reference = reference
        self._told = tell

    def measure(self) -> dict[str, Any]:
        plan, profile, reference = self._plan, self._plan.profile, self._reference
        measured: dict[str, Any] = {"shape": asdict(self._shape), "weights": "own" if plan.own_model else "random"}
        if "cold" in plan.parts:
            fresh = [
                entrant for entrant in plan.contenders if entrant.name in (profile.fresh_contenders or [entrant.name])
            ]
            self._say(f"cold start of {len(fresh)} contenders")
            measured["cold"] = cold.measure(
                fresh, self._place, repetitions=profile.fresh_repetitions, reference=reference
            )
        if "memory" in plan.parts:
            self._say("memory of both adapters together")
            measured["memory"] = memory.measure(self._place, repetitions=profile.fresh_repetitions)
        if {"throughput", "latency", "load", "limit"} & set(plan.parts):
            measured.update(self._loaded_parts())
        return measured

    def _loaded_parts(self) -> dict[str, Any]:
        """Measures the parts that run in this process, where everybody is loaded at once."""
        plan, profile, reference = self._plan, self._plan.profile, self._reference
        mixes = {name: self._mix(name, most) for name, (most, _) in profile.mixes.items()}
        measured: dict[str, Any] = {"throughput": {}}
        are_wanted = plan.kind == "cuda" or {"throughput", "latency", "load"} & set(plan.parts)
        lineup = self._lineup() if are_wanted else Lineup()
        measured["contenders"] = {
            entrant.name: {"how": entrant.how, "precision": entrant.precision, **asdict(lineup.agreement[entrant.name])}
            for entrant in plan.contenders
            if entrant.name in lineup.ready
        }
        measured["left_out"] = lineup.left_out
        if "throughput" in plan.parts:
            for number, (name, mix) in enumerate(mixes.items()):
                self._say(f"throughput, {name} texts")
                measured["throughput"][name] = throughput.measure(
                    lineup.ready,
                    mix,
                    rounds=profile.rounds,
                    seconds=profile.seconds_a_round,
                    least=profile.mixes[name][1],
                    warm_up=0 if number else profile.warm_up_seconds,
                    reference=reference,
                )
        if "latency" in plan.parts:
            self._say("latency of queries")
            queries = self._queries((profile.rounds + 1) * profile.queries_a_round)
            measured["latency"] = latency.measure(lineup.ready, queries, rounds=profile.rounds, reference=reference)
        if "load" in plan.parts:
            self._say("many callers at once")
            measured["load"] = load.measure(
                lineup.ready,
                mixes["mixed"],
                self._queries(profile.queries_a_round),
                rounds=profile.rounds,
                seconds=profile.seconds_a_round,
                reference=reference,
            )
        if "limit" in plan.parts:
            self._say("the machine's limit")
            measured["limit"] = limit.measure(
                self._shape,
                {name: mix.statistics() for name, mix in mixes.items()},
                measured["throughput"],
                {entrant.name: entrant.precision for entrant in plan.contenders},
                kind=plan.kind,
                device=plan.device,
                seconds=profile.peak_seconds,
                reference=reference,
            )
        if "limit" in plan.parts and plan.kind == "cuda":
            self._say("engines alone")
            measured["shares"] = shares.measure(
                {name: loaded.encoder for name, loaded in lineup.ready.items() if loaded.encoder},
                mixes["mixed"],
                measured["limit"]["peaks"],
                measured["throughput"].get("mixed", {}).get("results", {}),
                seconds=profile.seconds_a_round,
            )
        for name, loaded in lineup.ready.items():
            if loaded.hand_over:
                measured["contenders"][name]["hand_over"] = loaded.hand_over()
        return measured

    def _mix(self, name: str, most: int) -> TextMix:
        mix = make_mix(name, most, self._place.model)
        return mix if self._plan.kind == "cpu" else enlarged(mix, most, self._place.model)

    def _lineup(self) -> Lineup:
        self._say(f"loading {len(self._plan.contenders)} contenders and comparing their vectors")
        documents = make_mix("mixed", _CHECKED_DOCUMENTS, self._place.model, seed=1).texts
        return assemble(self._plan.contenders, self._place, documents, self._queries(_CHECKED_QUERIES).texts)

    def _say(self, what: str) -> None:
        self._told(f"{self._shape.name}: {what}")

    def _queries(self, count: int) -> TextMix:
        return make_mix("queries", count, self._place.model, seed=2)
