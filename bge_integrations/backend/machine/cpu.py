"""How many processor cores, how many threads and how much memory this process may really use. Imports no torch."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_PROCESS = Path("/proc/self")
_MEMORY_IF_UNKNOWN = 4 << 30
_OPENMP = "OMP_NUM_THREADS"

_torch_number_before: int | None = None
_torch_number_set: int | None = None


def usable_cores() -> int:
    """Returns the cores that this process may use: its CPU affinity, or less where a container's quota says so.

    `os.cpu_count()` counts the machine's cores also inside a container that is given two of them; threads beyond the
    quota are stopped for the rest of each period, which costs more than they bring. Of Apple's processors the
    efficiency cores are left out: at every operation the other cores would wait for them.
    """
    known = [
        _affinity() or _performance_cores() or os.cpu_count() or 1,
        _python_cores(),
        *(math.ceil(quota) for quota in _quotas()),
    ]
    return max(1, min(cores for cores in known if cores is not None))


def thread_limits() -> dict[str, int]:
    """Returns what limits the threads that compute while no number of them is given, each limit by its name.

    torch's number is asked for only where torch is imported already. `MKL_NUM_THREADS` counts through it: of the
    engines only torch uses MKL.
    """
    limits = {"usable cores": usable_cores(), _OPENMP: _openmp_threads(), "torch.get_num_threads()": _torch_threads()}
    return {name: limit for name, limit in limits.items() if limit is not None}


def usable_threads() -> int:
    """Returns the threads that compute while no number of them is given: the least of `thread_limits`."""
    return min(thread_limits().values())


def share_threads(threads: int, count: int) -> list[int]:
    """Shares threads out evenly; everybody gets at least one."""
    return [max((threads + index) // count, 1) for index in range(count)]


def set_torch_threads(threads: int) -> None:
    """Sets torch's number of threads, of which it has one for the whole process.

    What this package sets is no wish of the user's: `thread_limits` goes on with the number that was there before,
    until the user sets another.
    """
    global _torch_number_before, _torch_number_set
    import torch

    _torch_number_before = _torch_threads()
    torch.set_num_threads(threads)
    _torch_number_set = threads


def usable_memory() -> int:
    """Returns the bytes of memory that this process may use: the machine's, or less where a container's limit says so.

    Where the system tells nothing, 4 GiB.
    """
    return min(_machine_memory() or _MEMORY_IF_UNKNOWN, *_memory_limits(), sys.maxsize)


def _affinity() -> int | None:
    """Returns the cores that this process is bound to; None where it is bound to none, or the system doesn't say."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    kernel = _windows_kernel()
    if kernel is None:
        return None
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    own, machine = ctypes.c_size_t(), ctypes.c_size_t()
    handle = ctypes.c_void_p(kernel.GetCurrentProcess())
    found = kernel.GetProcessAffinityMask(handle, ctypes.byref(own), ctypes.byref(machine))
    # The masks are those of one processor group, of 64 cores at most. A process that is bound to nothing has the
    # machine's mask, and one with threads in several groups has none: both may use the cores of all groups.
    return own.value.bit_count() if found and own.value not in (0, machine.value) else None


def _python_cores() -> int | None:
    """Returns what `-X cpu_count` or `PYTHON_CPU_COUNT` say, else all cores; None before Python 3.13."""
    count = getattr(os, "process_cpu_count", None)
    return count() if count else None


def _performance_cores() -> int | None:
    """Returns the cores of Apple's processors but for the efficiency cores; None elsewhere.

    Level 0 is the fastest, and each has a name (`sysctl hw.perflevel0`). Some processors have no efficiency cores.
    """
    levels = _system_number("hw.nperflevels") or 0
    counts = [
        _system_number(f"hw.perflevel{level}.logicalcpu") or 0
        for level in range(levels)
        if level == 0 or _system_value(f"hw.perflevel{level}.name") not in (None, b"Efficiency\0")
    ]
    return sum(counts) or None


def _system_number(name: str) -> int | None:
    value = _system_value(name)
    return None if value is None else int.from_bytes(value, sys.byteorder)


def _system_value(name: str) -> bytes | None:
    """Returns what macOS's `sysctlbyname` gives for a name; None where there is no such function or name."""
    value = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(value))
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (AttributeError, OSError, TypeError):  # TypeError: Windows can't open the program itself
        return None
    failed = ask(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.raw[: size.value]


def _windows_kernel() -> Any:  # noqa: ANN401 - ctypes knows no types of a library's functions
    """Returns Windows' kernel32; None elsewhere."""
    load = getattr(ctypes, "WinDLL", None)
    return load("kernel32") if load else None


def _openmp_threads() -> int | None:
    """Returns the number in `OMP_NUM_THREADS`; of a list, whose further numbers are for nested regions, the first."""
    first = os.environ.get(_OPENMP, "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"[0-9]+", first) and int(first) > 0 else None


def _torch_threads() -> int | None:
    """Returns torch's number as the user has left it; None where torch is not imported."""
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)  # not there yet while torch is being imported
    if count is None:
        return None
    now: int = count()
    return _torch_number_before if now == _torch_number_set else now


def _quotas() -> Iterator[float]:
    """Yields the limits, in cores, of this process's control group and those above it."""
    for group in _control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no limit: no file, or the word "max"
            if (group / "cpu.max").is_file():
                quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota, period = (
                    (group / f"cpu.cfs_{part}_us").read_text(encoding="ascii") for part in ("quota", "period")
                )
            cores = float(quota) / float(period)
            if cores > 0:  # -1 is none
                yield cores


def _memory_limits() -> Iterator[int]:
    """Yields the limits, in bytes, of this process's control group and those above it."""
    for group in _control_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # no limit: no file, or the word "max"
                limit = int((group / name).read_text(encoding="ascii"))
                if limit > 0:
                    yield limit


def _control_groups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control group and of all above it that can be seen, in both versions.

    A limit may stand in any of them: systemd and Kubernetes put it above the group that the process is in. See
    "cgroup files" in cgroups(7), and proc_pid_mountinfo(5).
    """
    try:
        own = os.fsdecode((_PROCESS / "cgroup").read_bytes()).splitlines()
        mounts = os.fsdecode((_PROCESS / "mountinfo").read_bytes()).splitlines()
    except OSError:  # no Linux
        return
    groups = {name: path for _, names, path in (line.split(":", 2) for line in own) for name in names.split(",")}
    for line in mounts:
        place, _, described = line.partition(" - ")
        root, mounted = (re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), part) for part in place.split()[3:5])
        kind, _, options = (*described.split(" ", 2), "", "")[:3]
        if kind == "cgroup2":
            group = groups.get("")
        else:
            group = groups.get(controller) if kind == "cgroup" and controller in options.split(",") else None
        if group is None:
            continue
        try:
            inside = PurePosixPath(group).relative_to(root)
        except ValueError:  # what is mounted is the process's own group, and `group` its name outside the container
            inside = PurePosixPath()
        if ".." not in inside.parts:
            yield Path(mounted, inside)
            yield from (Path(mounted, above) for above in inside.parents)


def _machine_memory() -> int | None:
    """Returns the bytes of memory of the machine; None where the system doesn't tell."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _windows_memory()
    return memory if memory > 0 else None  # -1: unknown


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX, whose first field is its own size."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("further", ctypes.c_uint64 * 6),
    )


def _windows_memory() -> int | None:
    kernel = _windows_kernel()
    if kernel is None:
        return None
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    return status.total if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
