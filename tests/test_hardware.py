"""What is taken of the machine: cores as the container allows, and torch only where there could be more than a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bge_integrations.backend import cpu, devices


class TestCores:
    @pytest.fixture(autouse=True)
    def eight_cores(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(cpu, "_CGROUP_V2", tmp_path / "cpu.max")
        monkeypatch.setattr(cpu, "_CGROUP_V1", (tmp_path / "quota", tmp_path / "period"))
        return tmp_path

    def test_affinity_is_respected(self) -> None:
        assert cpu.usable_cores() == 8

    @pytest.mark.parametrize(
        ("quota", "cores"),
        [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)],
    )
    def test_a_containers_quota_is_respected(self, eight_cores: Path, quota: str, cores: int) -> None:
        (eight_cores / "cpu.max").write_text(quota)
        assert cpu.usable_cores() == cores

    @pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 8)])
    def test_also_one_of_the_older_kind(self, eight_cores: Path, quota: str, cores: int) -> None:
        (eight_cores / "quota").write_text(f"{quota}\n")
        (eight_cores / "period").write_text("100000\n")
        assert cpu.usable_cores() == cores

    def test_an_unreadable_quota_is_none(self, eight_cores: Path) -> None:
        (eight_cores / "cpu.max").write_text("nonsense")
        assert cpu.usable_cores() == 8


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
