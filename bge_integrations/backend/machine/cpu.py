"""The cores, threads and memory that this process may use. Imports no torch."""

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
    """Returns the number of cores that this process may use: its CPU affinity, or a container's smaller quota.

    `os.cpu_count()` counts all cores of the machine, even in a container with two cores. Threads beyond the quota are
    stopped for the rest of each period, which costs more time than they save. The efficiency cores of Apple's
    processors do not count: the other cores would wait for them at every operation.
    """
    known = [
        _affinity() or _performance_cores() or os.cpu_count() or 1,
        _python_cores(),
        *(math.ceil(quota) for quota in _quotas()),
    ]
    return max(1, min(cores for cores in known if cores is not None))


def thread_limits() -> dict[str, int]:
    """Returns the limits on the default number of threads, by name.

    torch's number counts only if torch is already imported. It includes `MKL_NUM_THREADS`: of the engines, only torch
    uses MKL.
    """
    limits = {"usable cores": usable_cores(), _OPENMP: _openmp_threads(), "torch.get_num_threads()": _torch_threads()}
    return {name: limit for name, limit in limits.items() if limit is not None}


def usable_threads() -> int:
    """Returns the default number of threads, the minimum of `thread_limits`."""
    return min(thread_limits().values())


def share_threads(threads: int, count: int) -> list[int]:
    """Divides threads evenly into `count` numbers, each at least 1."""
    return [max((threads + index) // count, 1) for index in range(count)]


def give_back_freed_memory() -> None:
    """Asks the C library to give the memory that was freed back to the system. Only glibc keeps much of it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def set_torch_threads(threads: int) -> None:
    """Sets torch's number of threads, which is one number for the whole process.

    `thread_limits` ignores this number, because the user has not set it. It keeps the previous number until the user
    sets another.
    """
    global _torch_number_before, _torch_number_set
    import torch

    _torch_number_before = _torch_threads()
    torch.set_num_threads(threads)
    _torch_number_set = threads


def usable_memory() -> int:
    """Returns the bytes of memory that this process may use: the machine's memory, or a container's smaller limit.

    If the size of the machine's memory is unknown, it counts as 4 GiB.
    """
    return min(_machine_memory() or _MEMORY_IF_UNKNOWN, *_memory_limits(), sys.maxsize)


def _affinity() -> int | None:
    """Returns the number of cores that this process is bound to; `None` without a binding, or if it is unknown."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    kernel = _windows_kernel()
    if kernel is None:
        return None
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    own, machine = ctypes.c_size_t(), ctypes.c_size_t()
    handle = ctypes.c_void_p(kernel.GetCurrentProcess())
    found = kernel.GetProcessAffinityMask(handle, ctypes.byref(own), ctypes.byref(machine))
    # A mask covers one processor group, which has at most 64 cores. A process without a binding has the mask of the
    # machine. A process with threads in several groups has an empty mask. Both may use the cores of all groups.
    return own.value.bit_count() if found and own.value not in (0, machine.value) else None


def _python_cores() -> int | None:
    """Returns the number from `-X cpu_count` or `PYTHON_CPU_COUNT`, else of all cores; `None` before Python 3.13."""
    count = getattr(os, "process_cpu_count", None)
    return count() if count else None


def _performance_cores() -> int | None:
    """Returns the number of cores of an Apple processor without efficiency cores; `None` on other processors.

    Level 0 is the fastest; each level has a name (`sysctl hw.perflevel0`). Some processors have no efficiency cores.
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
    """Returns the value of macOS's `sysctlbyname`; `None` if the function or the name does not exist."""
    value = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(value))
    try:
        ask = ctypes.CDLL(None).sysctlbyname
    except (AttributeError, OSError, TypeError):  # TypeError: on Windows, `CDLL(None)` is not possible
        return None
    failed = ask(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.raw[: size.value]


def _windows_kernel() -> Any:  # noqa: ANN401 - ctypes knows no types of a library's functions
    """Returns Windows' kernel32; `None` on other systems."""
    load = getattr(ctypes, "WinDLL", None)
    return load("kernel32") if load else None


def _openmp_threads() -> int | None:
    """Returns the first number in `OMP_NUM_THREADS`. Further numbers of a list are for nested regions."""
    first = os.environ.get(_OPENMP, "").partition(",")[0].strip()
    return int(first) if re.fullmatch(r"[0-9]+", first) and int(first) > 0 else None


def _torch_threads() -> int | None:
    """Returns torch's number of threads without changes by this package; `None` if torch is not imported."""
    count = getattr(sys.modules.get("torch"), "get_num_threads", None)  # it does not exist during the import of torch
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
            if cores > 0:  # -1: no limit
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
    """Yields the folders of this process's control group and of all visible groups above it, for cgroup v1 and v2.

    Any of them may have a limit: systemd and Kubernetes set it above the group of the process. See "cgroup files" in
    cgroups(7), and proc_pid_mountinfo(5).
    """
    try:
        own = os.fsdecode((_PROCESS / "cgroup").read_bytes()).splitlines()
        mounts = os.fsdecode((_PROCESS / "mountinfo").read_bytes()).splitlines()
    except OSError:  # not Linux
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
        except ValueError:  # the process's own group is mounted, and `group` is its name outside the container
            inside = PurePosixPath()
        if ".." not in inside.parts:
            yield Path(mounted, inside)
            yield from (Path(mounted, above) for above in inside.parents)


def _machine_memory() -> int | None:
    """Returns the machine's memory in bytes; `None` if it is unknown."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _windows_memory()
    return memory if memory > 0 else None  # -1: unknown


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX. Its first field must hold its own size."""

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
