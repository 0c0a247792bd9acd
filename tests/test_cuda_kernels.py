"""The kernels between the matrix products: by Triton's interpreter, by its compiler, and what happens to faulty ones.

Triton's wheel has 286 MB, so it is not among the packages for development. Where it is missing, most of these tests are
left out. Run them as `pip install triton` and `pytest tests/test_cuda_kernels.py`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bge_integrations.backend.engines.torch import kernel_choice
from bge_integrations.backend.engines.torch.kernel_choice import (
    attention_kernel,
    check,
    check_attention,
    fastest_operations,
)
from bge_integrations.backend.engines.torch.operations import TorchOperations
from tests.eager_launches import attention

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The interpreter must be chosen before the first import of the kernels, so it has a process of its own.
INTERPRETED = """
import torch
from bge_integrations.backend.engines.torch import kernel_choice
from bge_integrations.backend.engines.torch.kernels import TritonOperations
for width in (64, 384, 512, 768, 1024):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows in (1, 7, 13):
            kernel_choice._ROWS_OF_CHECK = rows
            kernel_choice.check(TritonOperations(), torch.device("cpu"), dtype, width)
"""

# For cards with the instructions of Turing, Ampere and Hopper.
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bge_integrations.backend.engines.torch import kernels

for width in (384, 1024):
    for kind in ("fp16", "bf16", "fp32"):
        rows, norm = {"width": width, "block": triton.next_power_of_2(width), "rows_a_program": 4}, ["weight", "bias"]
        of_kernel = {
            kernels._add_and_norm: (["out", "rows", "residual", *norm], [], ["eps"], ["count"], rows),
            kernels._embed_and_norm: (
                ["out", "words", "table", *norm], ["ids", "positions"], ["eps"], ["count"], rows
            ),
            kernels._bias_and_gelu: (["rows", "bias"], [], [], [], {"width": 4 * width, "block": 1024, "blocks": 4}),
        }
        for kernel, (pointers, indices, numbers, counts, constants) in of_kernel.items():
            types = dict.fromkeys(pointers, f"*{kind}") | dict.fromkeys(indices, "*i32")
            types |= dict.fromkeys(numbers, "fp32") | dict.fromkeys(counts, "i32")
            types |= dict.fromkeys(constants, "constexpr")
            signature = {name: types[name] for name in kernel.arg_names}
            places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
            for capability in (75, 80, 90):
                source = ASTSource(kernel, signature, constexprs=places)
                assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
"""


def _run(code: str, tmp_path: Path, **environment: str) -> None:
    own = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment}
    subprocess.run([sys.executable, "-c", code], check=True, env=own, timeout=280)


@NEEDS_TRITON
@pytest.mark.slow
def test_kernels_agree_with_float64_in_the_interpreter(tmp_path: Path) -> None:
    _run(INTERPRETED, tmp_path, TRITON_INTERPRET="1")


@NEEDS_TRITON
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton brings the assembler for Linux only")
def test_kernels_compile_for_cards_that_are_not_here(tmp_path: Path) -> None:
    _run(COMPILED, tmp_path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 1024])
def test_torchs_operations_pass_the_check_of_kernels(dtype: torch.dtype, width: int) -> None:
    check(TorchOperations(), CPU, dtype, width)


class _Spoilt(TorchOperations):
    """Like a kernel that leaves out the last number of a row."""

    def __init__(self, which: str) -> None:
        self._which = which

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name != object.__getattribute__(self, "_which"):
            return found

        def spoilt(*arguments: object) -> torch.Tensor:
            rows: torch.Tensor = found(*arguments)
            rows[:, -1] += 0.1
            return rows

        return spoilt


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["embedded", "added", "activated"])
def test_a_wrong_kernel_is_found(which: str, dtype: torch.dtype) -> None:
    with pytest.raises(ArithmeticError, match=r"differs by 0\.(1|0[89])"):
        check(_Spoilt(which), CPU, dtype, 384)


class TestChoice:
    @pytest.fixture(autouse=True)
    def triton_is_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Or seems to be. The kernels are replaced, since they can't run here."""
        monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
        monkeypatch.setattr(torch.cuda, "device", lambda _: torch.inference_mode())

    @pytest.fixture
    def kernels(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        module = ModuleType("kernels")
        module.TritonOperations = type("TritonOperations", (TorchOperations,), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "bge_integrations.backend.engines.torch.kernels", module)
        return module

    def test_takes_kernels_that_are_right(self, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = []
        monkeypatch.setattr(kernel_choice, "check", lambda *arguments: tried.append(arguments[1:]))
        assert type(fastest_operations(CUDA, torch.float16, 384)) is kernels.TritonOperations
        assert tried == [(CUDA, torch.float16, 384)]

    @pytest.mark.parametrize("error", [ArithmeticError("residual: differs"), RuntimeError("Failed to find C compiler")])
    def test_takes_torchs_operations_instead_of_faulty_kernels_and_says_so(
        self,
        kernels: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        error: Exception,
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(kernel_choice, "check", fail)
        assert type(fastest_operations(CUDA, torch.float16, 384)) is TorchOperations
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "torch's operations compute instead" in record.getMessage()
        assert str(error) in record.getMessage()

    def test_imports_no_kernels_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "bge_integrations.backend.engines.torch.kernels", None)
        assert type(fastest_operations(CPU, torch.float32, 384)) is TorchOperations

    def test_imports_no_kernels_without_triton(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        monkeypatch.setitem(sys.modules, "bge_integrations.backend.engines.torch.kernels", None)
        assert type(fastest_operations(CUDA, torch.float16, 384)) is TorchOperations
        assert not caplog.records


class TestAttention:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("head_size", [8, 64])
    def test_that_is_right_passes(self, head_size: int, dtype: torch.dtype) -> None:
        check_attention(attention, CPU, dtype, head_size)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("longest_query", [1, 40])
    def test_that_reads_a_neighbours_token_is_found(self, longest_query: int, dtype: torch.dtype) -> None:
        def leaking(*arguments: Any) -> torch.Tensor:  # noqa: ANN401 - as the kernel's
            query, key, value, query_ends, ends, longest, longest_key = arguments
            wrong = ends.clone()
            wrong[1] -= int(longest == longest_query)
            return attention(query, key, value, query_ends, wrong, longest, longest_key + 1)

        with pytest.raises(ArithmeticError, match="first" if longest_query == 1 else "all"):
            check_attention(leaking, CPU, dtype, 32)

    @pytest.fixture
    def tried(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[object, ...]]]:
        """The arguments of the trials, which do nothing."""
        pytest.importorskip("torch.nn.attention.varlen", reason="torch has no such kernel before 2.10")
        found: list[tuple[object, ...]] = []
        monkeypatch.setattr(torch.cuda, "device", lambda _: torch.inference_mode())
        monkeypatch.setattr(kernel_choice, "check_attention", lambda *arguments: found.append(arguments[1:]))
        attention_kernel.cache_clear()
        yield found
        attention_kernel.cache_clear()

    def test_is_tried_once_for_each_device_precision_and_head_size(self, tried: list[tuple[object, ...]]) -> None:
        for _ in range(2):
            assert attention_kernel(CUDA, torch.float16, 32) is torch.nn.attention.varlen.varlen_attn
        assert attention_kernel(CUDA, torch.bfloat16, 32) is torch.nn.attention.varlen.varlen_attn
        assert tried == [(CUDA, torch.float16, 32), (CUDA, torch.bfloat16, 32)]

    @pytest.mark.usefixtures("tried")
    def test_is_torchs_own_where_the_kernel_fails(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")

        monkeypatch.setattr(kernel_choice, "check_attention", fail)
        caplog.set_level(logging.INFO, logger="bge_integrations")
        assert attention_kernel(CUDA, torch.float16, 32) is None
        assert "texts are padded during attention on cuda:0" in caplog.text
        assert "only supports Ampere" in caplog.text

    @pytest.mark.parametrize(("device", "dtype"), [(CUDA, torch.float32), (CPU, torch.float16)], ids=str)
    def test_is_torchs_own_in_float32_and_on_the_cpu(
        self, tried: list[tuple[object, ...]], device: torch.device, dtype: torch.dtype
    ) -> None:
        assert attention_kernel(device, dtype, 32) is None
        assert not tried
