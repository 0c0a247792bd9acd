"""What is taken of the machine: cores, threads, memory and devices, on Linux, macOS and Windows."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

import bge_integrations
from bge_integrations import BgeEncoder
from bge_integrations.backend.checkpoint.request import LoadRequest
from bge_integrations.backend.loading.torch_engines import _limit_torch_threads
from bge_integrations.backend.machine import cpu, devices
from bge_integrations.cli import environment
from bge_integrations.cli.bench import run
from bge_integrations.errors import EngineNotAvailableError
from bge_integrations.settings import EncoderSettings, EngineName, RerankerSettings

_WINDOWS_MEMORY = 96 << 30


class _Windows:
    """As much of kernel32 as is asked for: affinity masks of a process and of its processor group, and memory."""

    def __init__(self, own: int, machine: int) -> None:
        self._masks = own, machine

        def handle() -> int:
            return -1

        self.GetCurrentProcess = handle  # ctypes sets what it returns

    def GetProcessAffinityMask(self, handle: Any, own: Any, machine: Any) -> int:  # noqa: ANN401
        assert handle.value == ctypes.c_void_p(-1).value
        own._obj.value, machine._obj.value = self._masks
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:  # noqa: ANN401
        assert status._obj.length == 64  # the size of MEMORYSTATUSEX, without which Windows refuses
        status._obj.total = _WINDOWS_MEMORY
        return 1


class _Mac:
    """A C library whose `sysctlbyname` knows some names."""

    def __init__(self, **values: int | str) -> None:
        self._values = {f"hw.{name.replace('__', '.')}".encode(): value for name, value in values.items()}

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, length: Any) -> int:  # noqa: ANN401
        assert new is None
        assert length.value == 0
        known = self._values.get(name)
        if known is None:
            return -1
        written = f"{known}\0".encode() if isinstance(known, str) else known.to_bytes(4, sys.byteorder)
        assert size._obj.value >= len(written)
        value[: len(written)] = written
        size._obj.value = len(written)
        return 0


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process with eight cores, in no control group and with nothing set, whose /proc/self is this folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 8, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cpu, "_PROCESS", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cpu, "_torch_number_before", None)
    monkeypatch.setattr(cpu, "_torch_number_set", None)
    return tmp_path


@pytest.fixture
def no_linux(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")


def put_in_group(process: Path, own: str, mounts: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Puts the process into a control group.

    Args:
        process: Its /proc/self.
        own: The line of the group.
        mounts: The root that is mounted in each folder of the process's, and what follows the dash in mountinfo.
        files: Content by file.
    """
    (process / "cgroup").write_text(f"1:name=systemd:/\n{own}\n")
    lines = [
        f"32 31 0:29 {root} {process / folder} rw,relatime - {described}"
        for folder, (root, described) in ((name, value.split(" ", 1)) for name, value in mounts.items())
    ]
    (process / "mountinfo").write_text("\n".join(["23 1 0:2 / / rw - ext4 /dev/vda rw", *lines]) + "\n")
    for name, content in files.items():
        (process / name).parent.mkdir(parents=True, exist_ok=True)
        (process / name).write_text(content)


SECOND = {"groups": "/ cgroup2 cgroup2 rw,nsdelegate"}
FIRST = {"cpu,cpuacct": "/ cgroup cgroup rw,cpu,cpuacct", "mem": "/ cgroup cgroup rw,memory"}


class TestCores:
    def test_affinity_is_respected(self, process: Path) -> None:
        assert cpu.usable_cores() == 8

    @pytest.mark.parametrize(
        ("quota", "cores"),
        [
            ("200000 100000", 2),
            ("150000 100000", 2),
            ("50000 100000", 1),
            ("max 100000", 8),
            ("1600000 100000", 8),
            ("nonsense", 8),
            ("100000 0", 8),
        ],
    )
    def test_a_containers_quota_is_respected(self, process: Path, quota: str, cores: int) -> None:
        put_in_group(process, "0::/", SECOND, {"groups/cpu.max": quota})
        assert cpu.usable_cores() == cores

    @pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8)])
    def test_also_one_of_the_older_kind(self, process: Path, quota: str, cores: int) -> None:
        files = {"cpu,cpuacct/cpu.cfs_quota_us": f"{quota}\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
        put_in_group(process, "4:cpu,cpuacct:/", FIRST, files)
        assert cpu.usable_cores() == cores

    @pytest.mark.parametrize(
        ("limited", "cores"),
        [("a.slice/b.service", 3), ("a.slice", 3), (".", 3), ("other.slice", 8), ("a.slice/b.service/below", 8)],
    )
    def test_a_quota_counts_for_the_groups_below_it(self, process: Path, limited: str, cores: int) -> None:
        put_in_group(process, "0::/a.slice/b.service", SECOND, {f"groups/{limited}/cpu.max": "300000 100000"})
        assert cpu.usable_cores() == cores

    def test_the_least_of_several_quotas_counts(self, process: Path) -> None:
        quotas = {"groups/cpu.max": "600000 100000", "groups/a/cpu.max": "200000 100000", "groups/a/b/cpu.max": "max 1"}
        put_in_group(process, "0::/a/b", SECOND, quotas)
        assert cpu.usable_cores() == 2

    def test_a_container_that_sees_its_own_group_alone(self, process: Path) -> None:
        mounts = {"own": "/docker/c0ffee cgroup cgroup rw,cpu"}
        files = {
            "own/worker/cpu.cfs_quota_us": "200000",
            "own/worker/cpu.cfs_period_us": "100000",
            "own/cpu.cfs_quota_us": "400000",
            "own/cpu.cfs_period_us": "100000",
        }
        put_in_group(process, "3:cpu:/docker/c0ffee/worker", mounts, files)
        assert cpu.usable_cores() == 2
        put_in_group(process, "3:cpu:/../elsewhere", mounts, files)
        assert cpu.usable_cores() == 4

    @pytest.mark.usefixtures("no_linux")
    @pytest.mark.parametrize(
        ("values", "cores"),
        [
            ({}, 8),  # a Mac of Intel's
            ({"nperflevels": 1, "perflevel0__logicalcpu": 5}, 5),
            (
                {
                    "nperflevels": 2,
                    "perflevel0__logicalcpu": 6,
                    "perflevel1__logicalcpu": 2,
                    "perflevel0__name": "Performance",
                    "perflevel1__name": "Efficiency",
                },
                6,
            ),
            (
                {
                    "nperflevels": 2,
                    "perflevel0__logicalcpu": 3,
                    "perflevel1__logicalcpu": 4,
                    "perflevel0__name": "Super",
                    "perflevel1__name": "Performance",
                },
                7,
            ),
            ({"nperflevels": 2, "perflevel0__logicalcpu": 6, "perflevel1__logicalcpu": 2}, 6),
        ],
        ids=["intel", "one level", "efficiency cores", "no efficiency cores", "levels without names"],
    )
    def test_apples_efficiency_cores_do_not_count(
        self, monkeypatch: pytest.MonkeyPatch, values: dict[str, int | str], cores: int
    ) -> None:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: _Mac(**values))
        assert cpu.usable_cores() == cores

    @pytest.mark.usefixtures("no_linux")
    @pytest.mark.parametrize(
        ("own", "machine", "cores"),
        [(0b1011, 0xFF, 3), (0xFF, 0xFF, 128), (0, 0, 128), ((1 << 64) - 1, (1 << 64) - 1, 128)],
        ids=["bound", "free", "in several groups", "free in one of two groups"],
    )
    def test_windows_affinity_is_respected_and_processor_groups_are_all_used(
        self, monkeypatch: pytest.MonkeyPatch, own: int, machine: int, cores: int
    ) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 128)
        monkeypatch.setattr(os, "process_cpu_count", lambda: 128, raising=False)
        monkeypatch.setattr(ctypes, "WinDLL", lambda name: _Windows(own, machine), raising=False)
        assert cpu.usable_cores() == cores

    @pytest.mark.usefixtures("no_linux")
    def test_a_system_that_tells_nothing_has_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        monkeypatch.setattr(os, "process_cpu_count", lambda: None, raising=False)
        assert cpu.usable_cores() == 1

    def test_what_python_is_told_counts(self, process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)  # python -X cpu_count=3
        assert cpu.usable_cores() == 3


class TestMemory:
    @pytest.fixture(autouse=True)
    def sixteen_gib(self, process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = {"SC_PHYS_PAGES": 4 << 20, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)

    def test_without_a_container_it_is_the_machines(self) -> None:
        assert cpu.usable_memory() == 16 << 30

    @pytest.mark.parametrize("limited", ["a/b", "a", "."])
    @pytest.mark.parametrize(
        ("own", "mounts", "folder", "file"),
        [("0::/a/b", SECOND, "groups", "memory.max"), ("5:memory:/a/b", FIRST, "mem", "memory.limit_in_bytes")],
        ids=["second version", "first version"],
    )
    def test_a_containers_limit_is_respected_wherever_it_stands(
        self, process: Path, limited: str, own: str, mounts: dict[str, str], folder: str, file: str
    ) -> None:
        content = {f"{folder}/{limited}/{file}": f"{2 << 30}\n", f"{folder}/other/{file}": "1"}
        put_in_group(process, own, mounts, content)
        assert cpu.usable_memory() == 2 << 30

    @pytest.mark.parametrize("limit", ["max", str((1 << 63) - 4096), "", "-1"])
    def test_no_limit_is_none(self, process: Path, limit: str) -> None:
        put_in_group(process, "0::/", SECOND, {"groups/memory.max": limit})
        assert cpu.usable_memory() == 16 << 30

    def test_windows_is_asked_where_there_is_no_sysconf(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(os, "sysconf")
        monkeypatch.setattr(ctypes, "WinDLL", lambda name: _Windows(1, 1), raising=False)
        assert cpu.usable_memory() == _WINDOWS_MEMORY

    @pytest.mark.parametrize("pages", [-1, None])
    def test_a_system_that_tells_nothing_is_taken_for_a_small_one(
        self, monkeypatch: pytest.MonkeyPatch, pages: int | None
    ) -> None:
        if pages is None:
            monkeypatch.delattr(os, "sysconf")
        else:
            monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 4096}.__getitem__)
        assert cpu.usable_memory() == 4 << 30


class _Torch:
    """torch's one number for the process."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def get_num_threads(self) -> int:
        return self.threads

    def set_num_threads(self, threads: int) -> None:
        self.threads = threads


class TestThreads:
    @pytest.fixture(autouse=True)
    def torch(self, process: Path, monkeypatch: pytest.MonkeyPatch) -> _Torch:
        """A torch that knows of as many threads as there are cores."""
        torch = _Torch(8)
        monkeypatch.setitem(sys.modules, "torch", torch)
        return torch

    @staticmethod
    def _load(folder: Path, **settings: Any) -> LoadRequest:  # noqa: ANN401
        """Does what loading a torch model on the CPU does to threads."""
        request = LoadRequest.from_settings(EncoderSettings(model_name=str(folder), **{"device": "cpu", **settings}))
        _limit_torch_threads(request)
        return request

    @pytest.mark.parametrize(
        ("variable", "threads"),
        [
            ("3", 3),
            (" 4 , 2", 4),
            ("4,2", 4),
            ("100", 8),
            ("", 8),
            ("0", 8),
            ("-2", 8),
            ("many", 8),
            (",3", 8),
            ("1.5", 8),
            ("\u0663", 8),
        ],
    )
    def test_openmps_variable_is_the_most(self, monkeypatch: pytest.MonkeyPatch, variable: str, threads: int) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
        assert cpu.usable_threads() == threads

    def test_what_the_user_told_torch_is_the_most(self, torch: _Torch) -> None:
        torch.set_num_threads(3)
        assert cpu.thread_limits() == {"usable cores": 8, "torch.get_num_threads()": 3}
        torch.set_num_threads(200)
        assert cpu.usable_threads() == 8

    @pytest.mark.parametrize("torch_module", [None, types.ModuleType("torch")], ids=["absent", "being imported"])
    def test_torch_is_asked_only_where_it_is_imported(
        self, monkeypatch: pytest.MonkeyPatch, torch_module: types.ModuleType | None
    ) -> None:
        if torch_module is None:
            monkeypatch.delitem(sys.modules, "torch")
        else:
            monkeypatch.setitem(sys.modules, "torch", torch_module)
        assert cpu.thread_limits() == {"usable cores": 8}
        assert sys.modules.get("torch") is torch_module

    @pytest.mark.parametrize("before", [1, 8, 16])
    def test_loading_never_raises_torchs_number(self, tmp_path: Path, torch: _Torch, before: int) -> None:
        torch.set_num_threads(before)
        assert self._load(tmp_path).threads == min(before, 8)
        assert torch.threads == min(before, 8)

    def test_what_one_model_lowers_no_other_raises(self, tmp_path: Path, torch: _Torch) -> None:
        self._load(tmp_path, device=["cpu", "cpu"])
        assert torch.threads == 4
        self._load(tmp_path)
        assert torch.threads == 4

    def test_threads_that_are_given_win_over_everything(
        self, tmp_path: Path, torch: _Torch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(2)
        assert self._load(tmp_path, threads=6).threads == 6
        assert torch.threads == 6
        self._load(tmp_path, threads=6, device=["cpu", "cpu"])
        assert torch.threads == 3

    def test_threads_given_to_one_model_are_no_limit_for_the_others(self, tmp_path: Path, torch: _Torch) -> None:
        self._load(tmp_path, threads=1)
        assert torch.threads == 1
        assert cpu.thread_limits() == {"usable cores": 8, "torch.get_num_threads()": 8}
        torch.set_num_threads(2)  # by the user, later
        assert cpu.usable_threads() == 2

    def test_a_gpu_leaves_torchs_number_alone(
        self, tmp_path: Path, torch: _Torch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["cuda:0", "cpu"])
        self._load(tmp_path, device="cuda", threads=2)
        assert torch.threads == 8

    def test_without_a_number_models_are_shared_whatever_has_become_of_the_process(
        self, tmp_path: Path, torch: _Torch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self._load(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(1)
        second = self._load(tmp_path)
        assert (first.threads, second.threads) == (8, 1)
        assert first == second
        assert hash(first) == hash(second)
        assert first != self._load(tmp_path, threads=8)


class _LeftOpen(NamedTuple):
    """What a user asks for without a device, and where it runs with a GPU of NVIDIA's, and with one of Apple's."""

    settings: dict[str, Any]
    cuda: str
    mps: str


LEFT_OPEN = [
    _LeftOpen({}, "cuda:0", "mps"),
    _LeftOpen({"engine": "openvino"}, "cpu", "cpu"),
    _LeftOpen({"precision": "int8"}, "cpu", "cpu"),
    _LeftOpen({"engine": "openvino", "precision": "bfloat16"}, "cpu", "cpu"),
    _LeftOpen({"precision": "bfloat16"}, "cuda:0", "mps"),
    _LeftOpen({"precision": "float16"}, "cuda:0", "mps"),
    _LeftOpen({"engine": "torch"}, "cuda:0", "mps"),
    _LeftOpen({"engine": "torch", "precision": "int8"}, "cuda:0", "mps"),  # nothing does that: the error says so
]


class TestDeviceThatIsLeftOpen:
    @pytest.mark.parametrize("asked", LEFT_OPEN, ids=str)
    @pytest.mark.parametrize("device", [None, "auto", "all"])
    @pytest.mark.parametrize("settings_class", [EncoderSettings, RerankerSettings])
    def test_is_one_that_can_do_what_is_asked(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        asked: _LeftOpen,
        device: str | None,
        settings_class: type[EncoderSettings | RerankerSettings],
    ) -> None:
        for there, expected in ((["cuda:0", "cpu"], asked.cuda), (["mps", "cpu"], asked.mps), (["cpu"], "cpu")):
            monkeypatch.setattr(devices, "available_devices", lambda there=there: there)
            settings = settings_class(model_name=str(tmp_path), device=device, **asked.settings)
            assert LoadRequest.from_settings(settings).devices == (expected,)

    @pytest.mark.parametrize("settings", [{"engine": "openvino"}, {"precision": "int8"}])
    def test_is_the_processor_at_once_where_only_it_can(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: pytest.fail("would import torch"))
        assert LoadRequest.from_settings(EncoderSettings(model_name=str(tmp_path), **settings)).device == "cpu"

    @pytest.mark.parametrize("there", ["mps", "cuda:0"])
    @pytest.mark.parametrize("settings", [{"engine": "openvino"}, {"precision": "int8"}])
    def test_one_that_is_named_and_can_not_is_an_error_with_the_remedy(
        self, monkeypatch: pytest.MonkeyPatch, bge_small_en: Path, there: str, settings: dict[str, Any]
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: [there, "cpu"])
        with pytest.raises(EngineNotAvailableError, match=r"Set device='cpu', or leave device=None"):
            BgeEncoder(bge_small_en, device=there, **settings)

    def test_the_error_names_no_device_where_none_can(self, bge_small_en: Path) -> None:
        with pytest.raises(EngineNotAvailableError, match=r"not in int8\.$"):
            BgeEncoder(bge_small_en, device="cpu", engine="torch", precision="int8")

    def test_int8_then_runs_where_there_is_a_gpu(self, monkeypatch: pytest.MonkeyPatch, bge_small_en: Path) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["mps", "cpu"])
        assert BgeEncoder(bge_small_en, engine="openvino").backend.engine.name == "openvino"

    @pytest.mark.parametrize(
        ("asked", "device"),
        [
            ({}, "mps"),
            ({"engines": ["openvino"]}, "cpu"),
            ({"precisions": ["float32", "int8"]}, "cpu"),
            ({"engines": ["torch"], "precisions": ["float32"]}, "mps"),
        ],
    )
    def test_the_bench_compares_all_that_is_asked_for_on_one_device(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: dict[str, Any], device: str
    ) -> None:
        monkeypatch.setattr(devices, "available_devices", lambda: ["mps", "cpu"])
        place = run._place(str(tmp_path), None, asked.get("engines"), asked.get("precisions"))
        assert place == (device, cpu.usable_threads())


POSIX_ONLY = {
    "os": ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "getuid", "getpgid", "uname", "O_NOFOLLOW"),
    "signal": ("SIGALRM", "SIGKILL", "alarm", "pthread_kill"),
}


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    """The files of all modules, imported already: none must stay behind as it is without POSIX."""
    folder = Path(bge_integrations.__file__).parent
    files = [file for file in sorted(folder.rglob("*.py")) if file.name != "__main__.py"]
    named = {".".join(file.relative_to(folder.parent).with_suffix("").parts): file for file in files}
    for name in named:
        importlib.import_module(name.removesuffix(".__init__"))
    return named


class TestWithoutPosix:
    """As on Windows: functions and modules that only POSIX systems have are not there."""

    @pytest.fixture(autouse=True)
    def windows(self, modules: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        for module, names in POSIX_ONLY.items():
            for name in names:
                monkeypatch.delattr(f"{module}.{name}", raising=False)
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            monkeypatch.setitem(sys.modules, name, None)

    def test_every_module_can_be_imported(self, modules: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(modules) > 100
        for name, file in modules.items():
            # Beside the module itself, which stays.
            spec = importlib.util.spec_from_file_location(f"{name}_again", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
            spec.loader.exec_module(module)

    def test_models_run(self, bge_small_en: Path) -> None:
        for engine in get_args(EngineName)[1:]:
            assert BgeEncoder(bge_small_en, device="cpu", engine=engine).encode(["fox"]).shape == (1, 32)

    def test_info_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "symlink", _refused)
        told = environment.describe()
        assert told["machine"]["memory_gib"] == 4
        assert told["machine"]["cores"] == os.cpu_count()


def _refused(*_: object) -> None:
    raise OSError(1314, "A required privilege is not held by the client")


class TestAccelerator:
    @pytest.fixture
    def torch_built_with(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A torch that was installed, but not imported, in a build of one's choice."""
        from importlib.machinery import ModuleSpec

        spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(devices, "_DRIVER_FILES", (str(tmp_path / "driver"),))
        return tmp_path / "version.py"

    def test_a_build_for_the_cpu_needs_no_look(self, torch_built_with: Path) -> None:
        torch_built_with.write_text("cuda: Optional[str] = None\nhip: Optional[str] = None\n")
        (torch_built_with.parent / "driver").touch()
        assert not devices._may_have_accelerator()

    def test_nor_does_one_for_cuda_without_a_driver(self, torch_built_with: Path) -> None:
        torch_built_with.write_text("cuda: Optional[str] = '13.0'\n")
        assert not devices._may_have_accelerator()

    @pytest.mark.parametrize("built", ["cuda: Optional[str] = '13.0'\n", "cuda = '12.8'\n", "hip: str = '7.1'\n"])
    def test_with_a_driver_torch_is_asked(self, torch_built_with: Path, built: str) -> None:
        torch_built_with.write_text(built)
        (torch_built_with.parent / "driver").touch()
        assert devices._may_have_accelerator()

    def test_an_unknown_build_is_asked(self, torch_built_with: Path) -> None:
        assert devices._may_have_accelerator()


COLD = """
import sys
from bge_integrations import BgeEncoder
encoder = BgeEncoder(sys.argv[1], device=None)
encoder.encode_queries(["lazy fox"])
encoder.encode_documents(["fox " * (i % 50) for i in range(300)])
heavy = {"torch", "transformers", "sentence_transformers", "scipy", "sklearn", "nncf"} & set(sys.modules)
assert not heavy, heavy
assert encoder.backend.engine.name == "openvino"
encoder.client
assert "torch" in sys.modules
"""


def test_once_its_graph_is_cached_a_model_is_loaded_and_run_without_torch(bge_small_en: Path) -> None:
    from bge_integrations import BgeEncoder

    if devices.available_devices() != ["cpu"]:
        pytest.skip("with an accelerator, torch runs the model")
    BgeEncoder(bge_small_en, device="cpu")
    subprocess.run([sys.executable, "-c", COLD, str(bge_small_en)], check=True, capture_output=True, text=True)
