"""Too little memory on every engine and device, and the tensors that Apple's GPUs can't hold."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DistilBertConfig, Gemma3Config, GemmaConfig, GemmaForCausalLM

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.backend.engines.decoder import DecoderEngine
from bge_integrations.backend.engines.interface import EngineOutOfMemory, TokenBatch
from bge_integrations.backend.engines.memory import (
    TensorLimit,
    TextTooLong,
    is_out_of_memory,
    memory_errors,
    rows_of_parts,
)
from bge_integrations.backend.engines.openvino.library import op, openvino_core, ov
from bge_integrations.errors import DeviceMemoryError, EngineFailedError, EngineNotAvailableError
from bge_integrations.settings import EngineName
from tests.decoder_checkpoints import tiny_shape

MEAN_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("MPS backend out of memory (MPS allocated: 18.02 GB, max allowed: 18.13 GB). Tried to allocate 4 MB."),
    RuntimeError("Invalid buffer size: 9.02 GB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    RuntimeError("Exception from infer_request.cpp:224:\nCheck 'ptr' failed\nFailed to allocate 14400000000 bytes"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("bad allocation"),
]
MEAN_SOMETHING_ELSE = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("The size of tensor a (513) must match the size of tensor b (512)"),
    ValueError("out of memory"),
    OSError("out of memory"),
]


class TestErrors:
    @pytest.mark.parametrize("error", MEAN_MEMORY, ids=str)
    def test_of_all_engines_are_recognised(self, error: Exception) -> None:
        with pytest.raises(EngineOutOfMemory) as caught, memory_errors():
            raise error
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize("error", MEAN_SOMETHING_ELSE, ids=repr)
    def test_of_another_kind_stay_what_they_are(self, error: Exception) -> None:
        with pytest.raises(type(error)) as caught, memory_errors():
            raise error
        assert caught.value is error

    def test_of_torch_itself_are_as_this_version_words_them(self) -> None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 50)
        assert is_out_of_memory(caught.value)

    def test_of_openvino_itself_are_as_this_version_words_them(self) -> None:
        column = op.parameter([-1, 1], np.float32)
        with openvino_core() as core:
            compiled = core.compile_model(ov.Model([op.matmul(column, column, False, True)], [column]), "CPU")
        with pytest.raises(RuntimeError) as caught:
            compiled(np.ones((1 << 23, 1), np.float32))
        assert is_out_of_memory(caught.value)

    @pytest.mark.parametrize("device", ["cuda", "mps"])
    def test_give_back_what_torch_keeps_of_the_devices_memory(
        self, monkeypatch: pytest.MonkeyPatch, device: str
    ) -> None:
        emptied: list[str] = []
        for name in ("cuda", "mps"):
            monkeypatch.setattr(getattr(torch, name), "empty_cache", lambda name=name: emptied.append(name))
        with pytest.raises(EngineOutOfMemory), memory_errors(device):
            raise RuntimeError("MPS backend out of memory")
        assert emptied == [device]

    def test_of_another_kind_stay_on_a_gpu_that_goes_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []
        monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
        with pytest.raises(ZeroDivisionError), memory_errors("cuda:1"):
            raise ZeroDivisionError
        assert asked == ["cuda:1"]

    def test_of_a_gpu_that_is_lost_say_that_no_text_is_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        error = RuntimeError("CUDA error: device-side assert triggered")

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        with pytest.raises(EngineFailedError, match=r"^cuda:1 .*assert triggered") as caught, memory_errors("cuda:1"):
            raise error
        assert caught.value.index is None
        assert caught.value.__cause__ is error

    def test_stay_errors_of_memory_if_the_cache_cannot_be_emptied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

        monkeypatch.setattr(torch.cuda, "empty_cache", fail)
        with pytest.raises(EngineOutOfMemory, match="too little"), memory_errors("cuda"):
            raise MemoryError("too little")

    @pytest.mark.parametrize("engine", get_args(EngineName)[1:])
    def test_halve_a_batch_whatever_the_engine(
        self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch, engine: EngineName
    ) -> None:
        texts = [f"fox {'dog ' * (index % 30)}" for index in range(60)]
        with BgeEncoder(bge_small_en, device="cpu", engine=engine) as encoder:
            expected = encoder.encode(texts)
            running = encoder.backend.engine
            # Below the engine's own handling of errors.
            name = {"openvino": "graph_inputs", "torch": "_encoder", "sentence-transformers": "_rows"}[engine]
            place: Any = running
            if engine == "openvino":
                from bge_integrations.backend.engines.openvino import engine as place
            monkeypatch.setattr(place, name, _in_little_memory(getattr(place, name)))
            with pytest.warns(RuntimeWarning, match="cpu ran out of memory"):
                found = encoder.encode(texts)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_while_openvino_compiles_say_so(self, bge_small_en: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("Failed to allocate 14400000000 bytes of memory")

        monkeypatch.setattr(ov.Core, "compile_model", fail)
        with pytest.raises(EngineNotAvailableError, match="too little memory to compile the model"):
            BgeEncoder(bge_small_en, device="cpu", engine="openvino", threads=1)


def _in_little_memory(compute: Callable[..., Any]) -> Callable[..., Any]:
    def limited(batch: TokenBatch, *further: object) -> Any:  # noqa: ANN401
        if batch.is_token.size > 200:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        return compute(batch, *further)

    return limited


def batch_of(*lengths: int, pairs: bool = False) -> TokenBatch:
    ids = np.arange(sum(lengths), dtype=np.int32)
    counts = np.array(lengths, dtype=np.int64)
    return TokenBatch(ids, counts, 1, counts // 2 if pairs else None)


class TestLimit:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_is_there_on_mps_alone(self, device: str) -> None:
        assert TensorLimit.of(device, heads=16, width=4096) is None
        assert TensorLimit.of("mps", heads=16, width=4096) == TensorLimit("mps", 16, 4096, 1, 2**32)

    @pytest.mark.parametrize(
        ("lengths", "parts"),
        [
            ([512] * 256, 1),  # 256 * 16 * 512² * 4 bytes are 2³²
            ([512] * 257, 2),
            ([8192], 1),  # the longest text of bge-m3, 2³² bytes
            ([8192, 8192, 10], 3),
            ([4096] * 4, 1),
            ([4096] * 5, 2),
        ],
    )
    def test_is_two_to_the_32_bytes_of_attention_scores_in_float32(self, lengths: list[int], parts: int) -> None:
        limit = TensorLimit.of("mps", heads=16, width=4096)
        assert limit is not None
        assert len(limit.parts(batch_of(*lengths))) == parts

    def test_counts_padding_and_rows_wider_than_attention(self) -> None:
        lengths = [15, 15, 9]
        assert len(TensorLimit("mps", 2, 1, 1, 4 * 3 * 2 * 15**2).parts(batch_of(*lengths))) == 1
        assert len(TensorLimit("mps", 2, 1, 8, 4 * 3 * 2 * 15**2).parts(batch_of(*lengths))) == 2
        assert len(TensorLimit("mps", 2, 1000, 1, 4 * 2 * 15 * 1000).parts(batch_of(*lengths))) == 2

    @pytest.mark.parametrize("lengths", [[5, 4, 3, 9, 1, 1, 7, 2], [2, 2, 2], [9], [1, 9, 1, 9]])
    def test_parts_are_the_batch_in_its_order_and_none_is_too_large(self, lengths: list[int]) -> None:
        limit = TensorLimit("mps", 3, 1, 1, 4 * 3 * 2 * 9**2)
        batch = batch_of(*lengths, pairs=True)
        parts = limit.parts(batch)
        assert np.concatenate([part.ids for part in parts]).tolist() == batch.ids.tolist()
        assert np.concatenate([part.lengths for part in parts]).tolist() == lengths
        assert batch.first_lengths is not None
        first = [part.first_lengths for part in parts if part.first_lengths is not None]
        assert np.concatenate(first).tolist() == batch.first_lengths.tolist()
        assert all(4 * 3 * part.is_token.size * part.lengths.max() <= limit.most_bytes for part in parts)
        rows = rows_of_parts(limit, batch, lambda part: part.ids.astype(np.float32)[:, None])
        assert rows.ravel().tolist() == batch.ids.tolist()

    def test_a_text_that_is_too_long_is_at_fault_alone(self) -> None:
        limit = TensorLimit("mps", 16, 1)
        with pytest.raises(
            EngineOutOfMemory, match=r"attention over 8193 tokens needs a tensor of 4,296,015,936 bytes"
        ):
            limit.parts(batch_of(8193))
        with pytest.raises(TextTooLong):
            limit.parts(batch_of(8193, 10))

    @pytest.mark.parametrize(
        ("config", "gives_logits", "heads", "width"),
        [
            ({"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 99}, False, 2, 32),
            ({"hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 99}, True, 2, 99),
            ({"hidden_size": 8}, True, 0, 8),
            ({}, True, 0, 0),
        ],
    )
    def test_is_read_from_a_models_configuration(
        self, config: dict[str, int], gives_logits: bool, heads: int, width: int
    ) -> None:
        class Config:
            pass

        described = Config()
        vars(described).update(config)
        limit = TensorLimit.of_model("mps", described, gives_logits=gives_logits)
        assert limit == TensorLimit("mps", heads, width)
        assert limit is not None
        if not config:
            assert len(limit.parts(batch_of(100_000, 100_000))) == 1

    def test_is_read_from_the_configuration_of_the_text_model_where_there_are_several(self) -> None:
        limit = TensorLimit.of_model("mps", Gemma3Config())
        assert limit is not None
        assert limit.heads == Gemma3Config().get_text_config().num_attention_heads
        limit = TensorLimit.of_model("mps", DistilBertConfig(n_heads=3))
        assert limit is not None
        assert limit.heads == 3


SMALL = 4 * 4 * 4 * 30**2
"""Bytes: four texts of 30 tokens at four heads."""
TEXTS = [f"fox {'dog ' * length}" for length in (0, 3, 26, 27, 5, 1, 26, 26, 9, 27, 2, 25)]

SHORT: dict[str, Any] = {
    "device": "cpu",
    "engine": "sentence-transformers",
    "max_length": 30,
    "on_truncation": "ignore",
}


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TokenBatch]]:
    """A processor with a limit like that of MPS, but a small one; gives all that was computed at once under it."""
    computed: list[TokenBatch] = []
    cut = TensorLimit.parts

    def parts(limit: TensorLimit, batch: TokenBatch) -> list[TokenBatch]:
        found = cut(limit, batch)
        computed.extend(found)
        return found

    def of(device: str, *, heads: int, width: int, pad_to_multiple_of: int = 1) -> TensorLimit:
        assert heads == 4
        return TensorLimit(device, heads, min(width, 1), pad_to_multiple_of, SMALL)

    monkeypatch.setattr(TensorLimit, "of", of)
    monkeypatch.setattr(TensorLimit, "parts", parts)
    yield computed
    assert computed
    assert all(16 * batch.is_token.size * batch.lengths.max() <= SMALL for batch in computed)
    assert max(len(batch.lengths) for batch in computed) > 1


class TestModelsUnderALimit:
    """Models that run as they would on MPS, in parts."""

    @staticmethod
    def _without(monkeypatch: pytest.MonkeyPatch, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(TensorLimit, "of", lambda *_, **__: None)
            return compute()

    @pytest.mark.parametrize("engine", ["torch", "sentence-transformers"])
    def test_give_the_same_vectors(
        self,
        bge_small_en: Path,
        small_device: list[TokenBatch],
        monkeypatch: pytest.MonkeyPatch,
        engine: EngineName,
    ) -> None:
        def vectors() -> NDArray[Any]:
            with BgeEncoder(bge_small_en, device="cpu", engine=engine) as encoder:
                return np.asarray(encoder.encode(TEXTS))

        np.testing.assert_allclose(vectors(), self._without(monkeypatch, vectors), atol=1e-5)

    def test_give_the_same_scores(
        self, bge_reranker_base: Path, small_device: list[TokenBatch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scores() -> NDArray[Any]:
            with BgeReranker(bge_reranker_base, **SHORT) as reranker:
                return np.asarray(reranker.score("fox", TEXTS))

        np.testing.assert_allclose(scores(), self._without(monkeypatch, scores), atol=1e-5)

    def test_give_the_same_tokens(
        self, bge_m3: Path, small_device: list[TokenBatch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def tokens() -> NDArray[Any]:
            with BgeM3Encoder(bge_m3, **SHORT) as encoder:
                return np.concatenate(encoder.encode_documents(TEXTS).colbert or [])

        np.testing.assert_allclose(tokens(), self._without(monkeypatch, tokens), atol=1e-5)

    def test_give_the_same_answers_of_decoders(
        self, small_device: list[TokenBatch], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        model = GemmaForCausalLM(GemmaConfig(**tiny_shape(1000)))
        batch = batch_of(*(length % 24 + 1 for length in range(40)))

        def answers() -> NDArray[Any]:
            return DecoderEngine(model, pad_id=0, answer=5, options=()).submit(batch).result()

        np.testing.assert_allclose(answers(), self._without(monkeypatch, answers), atol=1e-4)

    @pytest.mark.parametrize("engine", ["torch", "sentence-transformers"])
    def test_name_a_text_that_is_too_long_and_compute_the_others(
        self, bge_small_en: Path, small_device: list[TokenBatch], engine: EngineName
    ) -> None:
        with BgeEncoder(bge_small_en, device="cpu", engine=engine) as encoder, warnings.catch_warnings():
            warnings.simplefilter("error")  # no word of less memory, and no smaller batches
            budget = encoder.backend.engine.batch_tokens
            with pytest.raises(DeviceMemoryError, match=r"Text 3, of 62 tokens, .*smaller max_length.*device='cpu'"):
                encoder.encode(["fox", "dog", "lazy", "dog " * 60, "fox"])
            assert encoder.backend.engine.batch_tokens == budget
            assert encoder.encode(TEXTS).shape[0] == len(TEXTS)
