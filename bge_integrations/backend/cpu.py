"""How many processor cores and how much memory this process may really use."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MEMORY_IF_UNKNOWN = 4 << 30


def usable_cores() -> int:
    """Returns the cores that this process may use: its CPU affinity, or less where a container's quota says so.

    `os.cpu_count()` counts the machine's cores also inside a container that is given two of them; threads beyond the
    quota are stopped for the rest of each period, which costs more than they bring.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _quota() -> float | None:
    """Returns the control group's limit in cores; None without one."""
    try:
        if _CGROUP_V2.is_file():
            quota, period = _CGROUP_V2.read_text(encoding="ascii").split()[:2]
        else:
            quota, period = (path.read_text(encoding="ascii").strip() for path in _CGROUP_V1)
        cores = float(quota) / float(period)
    except (OSError, ValueError):  # no control groups, or the word "max"
        return None
    return cores if cores > 0 else None


def share_threads(threads: int, count: int) -> list[int]:
    """Shares threads out evenly; everybody gets at least one."""
    return [max((threads + index) // count, 1) for index in range(count)]


def usable_memory() -> int:
    """Returns the bytes of memory that this process may use: the machine's, or less where a container's limit says so.

    Where the system tells nothing, 4 GiB.
    """
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        memory = _MEMORY_IF_UNKNOWN
    limits = [memory]
    for file in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no control groups, or the word "max"
            limits.append(int(file.read_text(encoding="ascii")))
    return min(limits)
