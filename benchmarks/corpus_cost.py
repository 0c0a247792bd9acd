"""Computes machines, hours and cost of embedding a large corpus, from tokens per second that were measured.

Nothing is measured here. Figures of a card that is not among those measured are estimates, and marked as such.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PASSAGES = (10_000_000, 100_000_000, 1_000_000_000)


@dataclass(frozen=True)
class Machine:
    """A machine, and how fast the package embeds on it.

    Attributes:
        name: The name in tables.
        kind: The name for `--price`.
        tokens_per_s: By model.
        estimated: Whether the figures are estimates.
    """

    name: str
    kind: str
    tokens_per_s: Mapping[str, float]
    estimated: bool = False


@dataclass(frozen=True)
class Card:
    """Published peaks of a GPU.

    Attributes:
        teraflops: Dense float16 products, in 1e12 operations per second.
        gigabytes_per_s: Bandwidth of the memory.
    """

    teraflops: float
    gigabytes_per_s: float


# From nvidia.com/en-us/data-center/h100 (SXM) and /l4. They give float16 with sparsity, which is twice the dense peak.
H100_CARD, L4_CARD = Card(1979 / 2, 3350), Card(242 / 2, 300)


def estimate(measured: Mapping[str, float], there: Card, here: Card) -> dict[str, float]:
    """Scales tokens per second to another card by the smaller of two ratios: of products, and of bandwidth.

    Args:
        measured: Tokens per second on a card, by model.
        there: The other card.
        here: The card of the measurement.
    """
    ratio = min(there.teraflops / here.teraflops, there.gigabytes_per_s / here.gigabytes_per_s)
    return {model: speed * ratio for model, speed in measured.items()}


# Measured in November 2026 on random weights of the true shapes, which compute as fast as real ones. CPU: OpenVINO,
# English paragraphs (mean 78 tokens). H100 80 GB with 16 CPU cores: torch, Cranfield's abstracts (mean 200 tokens).
_H100 = {"bge-small-en": 2_587_000.0, "bge-base-en": 1_358_000.0, "bge-large-en": 587_000.0}
MACHINES = (
    Machine("2 cores, Xeon with AMX, float32", "cpu", {"bge-small-en": 6086, "bge-base-en": 1599}),
    Machine("2 cores, Xeon with AMX, bfloat16", "cpu", {"bge-small-en": 12598, "bge-base-en": 5330}),
    Machine("1 L4, float16", "l4", estimate(_H100, L4_CARD, H100_CARD), estimated=True),
    Machine("1 H100, float16", "h100", _H100),
)

PRICES = {"cpu": 0.067, "l4": 0.80, "h100": 10.0}
"""Dollars per machine and hour, as an example: list prices of Hugging Face's Inference Endpoints on 20 August 2026.

The instances are intel-spr x2 and nvidia-l4 x1 (AWS), and nvidia-h100 x1 (GCP):
https://huggingface.co/docs/inference-endpoints/support/pricing.
"""


@dataclass(frozen=True)
class Bill:
    """What a corpus takes.

    Attributes:
        machine_hours: Hours of one machine.
        machines: The fewest machines that are done in time.
        hours: Hours until they are done.
        cost: Dollars.
    """

    machine_hours: float
    machines: int
    hours: float
    cost: float


def bill(passages: int, tokens: int, tokens_per_s: float, price: float, within: float) -> Bill:
    """Computes what a corpus takes.

    Args:
        passages: Number of passages.
        tokens: Tokens of a passage.
        tokens_per_s: Speed of a machine.
        price: Dollars per machine and hour.
        within: Hours within which the last machine is to be done.
    """
    machine_hours = passages * tokens / tokens_per_s / 3600
    machines = math.ceil(machine_hours / within)
    return Bill(machine_hours, machines, machine_hours / machines, machine_hours * price)


def rows(tokens: int, prices: Mapping[str, float], within: float) -> list[tuple[str, ...]]:
    """Returns the rows of the table: model, machine, tokens per second, and a cell for each of `PASSAGES`."""
    found = []
    for model in _H100:
        for machine in MACHINES:
            speed = machine.tokens_per_s.get(model)
            if speed is None:
                continue
            bills = [bill(passages, tokens, speed, prices[machine.kind], within) for passages in PASSAGES]
            cells = [f"{one.machines:,} × {_short(one.hours)} h, ${_short(one.cost)}" for one in bills]
            name = f"{machine.name} (estimate)" if machine.estimated else machine.name
            found.append((model, name, f"{_rounded(speed):,}", *cells))
    return found


def _rounded(value: float) -> int:
    """Returns a number with three digits that say something."""
    return int(float(f"{value:.3g}"))


def _short(value: float) -> str:
    return f"{_rounded(value):,}" if value >= 100 else f"{value:.2g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options and prints the table as Markdown."""
    options = _parser().parse_args(arguments)
    prices = {kind: getattr(options, f"price_{kind}") for kind in PRICES}
    heads = ["model", "machine", "tokens/s", *(f"{passages // 1_000_000:,} million" for passages in PASSAGES)]
    lines = [heads, ["---"] * len(heads), *rows(options.tokens, prices, options.within)]
    sys.stdout.writelines(f"| {' | '.join(cells)} |\n" for cells in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corpus_cost",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--tokens", type=int, default=100, help="of a passage")
    add("--within", type=float, default=24, help="hours within which all machines are to be done")
    for kind, price in PRICES.items():
        add(f"--price-{kind}", type=float, default=price, help="dollars per machine and hour")
    return parser


if __name__ == "__main__":
    main()
