"""Divides rows into parts, so that rows with a common key stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bge_integrations.errors import TrainingDataError

__all__ = ["partition"]


def partition(keys: Sequence[Sequence[str]], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Divides rows at random into one part for each share and the rest.

    Rows with a common key are in one group, also over several rows; a group is never divided. The parts depend on the
    keys and the seed, not on the order of the rows.

    Args:
        keys: The keys of each row, at least one.
        shares: Share of the rows for each part, 0 to 1; a part with the share 0 is empty.
        seed: Another seed gives other parts.

    Returns:
        The positions of the rows of each part, in their order; the rest last.

    Raises:
        TrainingDataError: The groups are too large: a part has less than half or more than twice the rows that were
            wanted, or no rows are left.
    """
    groups = _groups(keys)
    impossible = TrainingDataError(
        f"{len(keys)} rows can't be divided by these shares: rows that belong together must stay on one side, and the "
        f"rows are {len(groups)} groups, the largest with {max(map(len, groups))} rows. Add rows about other passages, "
        'change the shares, or split by="query".'
    )
    groups.sort(key=lambda group: min(_hash(seed, key) for row in group for key in keys[row]))
    parts: list[list[int]] = []
    for share in shares:
        taken: list[int] = []
        if share > 0:
            wanted = max(1, round(share * len(keys)))
            taken, groups = _take(groups, wanted)
            if not wanted / 2 <= len(taken) <= wanted * 2:
                raise impossible
        parts.append(sorted(taken))
    if not groups:
        raise impossible
    return [*parts, sorted(row for group in groups for row in group)]


def _take(groups: list[list[int]], wanted: int) -> tuple[list[int], list[list[int]]]:
    """Returns the rows of the first groups that fit, and the other groups."""
    taken: list[int] = []
    left: list[list[int]] = []
    for group in groups:
        if len(taken) + len(group) <= wanted:
            taken += group
        else:
            left.append(group)
    if len(taken) < wanted / 2 and left:  # no other group fits; the smallest may still be small enough
        smallest = min(left, key=len)
        if len(taken) + len(smallest) <= wanted * 2:
            left.remove(smallest)
            taken += smallest
    return taken, left


def _groups(keys: Sequence[Sequence[str]]) -> list[list[int]]:
    """Returns the connected components of the rows."""
    parents = list(range(len(keys)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    first: dict[str, int] = {}
    for row, of_row in enumerate(keys):
        for key in of_row:
            parents[root(row)] = root(first.setdefault(key, row))
    groups: dict[int, list[int]] = {}
    for row in range(len(keys)):
        groups.setdefault(root(row), []).append(row)
    return list(groups.values())


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
