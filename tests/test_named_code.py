"""What a checkpoint's files name is not imported, called or fetched, whatever is loaded and by whatever engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.errors import UnsafeWeightsError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import HuggingFaceBgeEmbedding
from bge_integrations.prepare import prepare
from bge_integrations.settings import EngineName, TransformersKwargs
from tests.checkpoints import make_checkpoint, reference_vectors
from tests.checkpoints_of_pairs import make_m3, make_reranker, reference_scores

KERNEL = "someone/kernel"
SETTINGS = "sentence_bert_config.json"
ENGINES: tuple[EngineName, ...] = ("auto", "torch", "sentence-transformers")
FASTEST_AND_SLOWEST: tuple[EngineName, ...] = ("auto", "sentence-transformers")
MODULES = "sentence_transformers.models"


def edit(file: Path, **values: Any) -> Path:  # noqa: ANN401
    """Adds keys to a JSON file."""
    content = json.loads(file.read_text()) if file.exists() else {}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**content, **values}))
    return file.parent


@pytest.fixture
def embedder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "my-embedder", modules=("cls", "normalize"))


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    return make_reranker(tmp_path / "my-reranker")


class TestKernels:
    @pytest.mark.parametrize(
        ("file", "content", "key"),
        [
            (SETTINGS, {"model_args": {"attn_implementation": KERNEL}}, "model_args.attn_implementation"),
            (SETTINGS, {"model_kwargs": {"attn_implementation": {"": KERNEL}}}, "model_kwargs.attn_implementation."),
            (SETTINGS, {"model_args": {"allow_all_kernels": True}}, "model_args.allow_all_kernels"),
            (SETTINGS, {"model_args": {"use_kernels": False}}, "model_args.use_kernels"),
            (SETTINGS, {"model_args": {"device_map": "auto"}}, "model_args.device_map"),
            (SETTINGS, {"config_args": {"attn_implementation": KERNEL}}, "config_args.attn_implementation"),
            (SETTINGS, {"config_kwargs": {"_configuration_file": "x.json"}}, "config_kwargs._configuration_file"),
            (SETTINGS, {"tokenizer_args": {"trust_remote_code": True}}, "tokenizer_args.trust_remote_code"),
            (SETTINGS, {"processor_kwargs": {"tokenizer_file": "/x"}}, "processor_kwargs.tokenizer_file"),
            (SETTINGS, {"tokenizer_name_or_path": "someone/else"}, "tokenizer_name_or_path"),
            (SETTINGS, {"modality_config": {"text": {"method": "push_to_hub"}}}, "modality_config.text.method"),
            ("sentence_roberta_config.json", {"model_args": {"attn_implementation": KERNEL}}, "attn_implementation"),
            ("config.json", {"attn_implementation": KERNEL}, "attn_implementation"),
            ("config.json", {"_attn_implementation": f"paged|{KERNEL}"}, "_attn_implementation"),
            ("config.json", {"_attn_implementation_internal": f"{KERNEL}@main:f"}, "_attn_implementation_internal"),
            ("config.json", {"text_config": {"attn_implementation": KERNEL}}, "text_config.attn_implementation"),
            ("config.json", {"parts": [{"attn_implementation": {"vision": KERNEL}}]}, "parts.0.attn_implementation"),
            ("config.json", {"attn_implementation": "flash_attention_2"}, "attn_implementation"),
            ("config.json", {"experts_implementation": "sonicmoe"}, "experts_implementation"),
            ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config.quant_method"),
            ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
            ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Y"}}}, "text_config.auto_map"),
            ("config.json", {"backbone_config": {"model_type": "timm_backbone"}}, "backbone_config.model_type"),
            ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.5.json"]}, "fast_tokenizer_files"),
            ("adapter_config.json", {"megatron_config": {"a": 1}, "megatron_core": "x"}, "megatron_config"),
            ("adapter_config.json", {"auto_mapping": {"parent_library": "x"}}, "auto_mapping.parent_library"),
            ("adapter_config.json", {"peft_type": "XLORA"}, "peft_type"),
        ],
    )
    def test_named_by_a_file_are_refused_before_anything_is_loaded(
        self, embedder: Path, file: str, content: dict[str, Any], key: str
    ) -> None:
        edit(embedder / file, **content)
        for engine in ENGINES:
            with pytest.raises(UnsafeWeightsError) as caught:
                BgeEncoder(embedder, engine=engine)
            assert str(embedder / file) in str(caught.value)
            assert key in str(caught.value)

    @pytest.mark.parametrize(
        "load",
        [
            lambda folder: HuggingFaceBgeEmbeddings(model_name=str(folder)).embed_query("fox"),
            lambda folder: HuggingFaceBgeEmbedding(str(folder)).get_query_embedding("fox"),
            lambda folder: BgeEncoder(folder, pooling="cls"),
            lambda folder: prepare(folder, folder.with_name("prepared")),
        ],
    )
    def test_are_refused_by_everything_that_loads_an_embedder(
        self, embedder: Path, load: Callable[[Path], object]
    ) -> None:
        edit(embedder / "config.json", attn_implementation=KERNEL)
        with pytest.raises(UnsafeWeightsError, match="attn_implementation = 'someone/kernel'"):
            load(embedder)

    def test_are_refused_for_other_kinds_of_models_too(self, reranker: Path, tmp_path: Path) -> None:
        edit(reranker / "config.json", _attn_implementation=KERNEL)
        decoder = make_reranker(tmp_path / "bge-reranker-v2-gemma")
        edit(decoder / "config.json", architectures=["GemmaForCausalLM"], attn_implementation=KERNEL)
        m3 = make_m3(tmp_path / "bge-m3")
        edit(m3 / SETTINGS, model_args={"attn_implementation": KERNEL})
        for kind, folder in ((BgeReranker, reranker), (BgeReranker, decoder), (BgeM3Encoder, m3)):
            with pytest.raises(UnsafeWeightsError, match="attn_implementation"):
                kind(folder)
        for folder in (reranker, m3):
            with pytest.raises(UnsafeWeightsError, match="attn_implementation"):
                prepare(folder, tmp_path / "prepared")

    def test_are_refused_in_the_folder_of_any_module(self, embedder: Path) -> None:
        listed = json.loads((embedder / "modules.json").read_text())
        router = {"idx": 3, "name": "3", "path": "3_Router", "type": f"{MODULES}.Router"}
        (embedder / "modules.json").write_text(json.dumps([*listed, router]))
        types = {"query_0_Transformer": f"{MODULES}.Transformer"}
        edit(embedder / "3_Router" / "router_config.json", types=types, structure={"query": list(types)}, parameters={})
        inner = embedder / "3_Router" / "query_0_Transformer"
        edit(inner / SETTINGS, model_args={"attn_implementation": KERNEL})
        with pytest.raises(UnsafeWeightsError, match=r"query_0_Transformer.sentence_bert_config\.json"):
            BgeEncoder(embedder)

    def test_a_checkpoint_may_ask_for_what_is_part_of_transformers(self, embedder: Path) -> None:
        expected = reference_vectors(embedder, ["lazy fox"])
        edit(embedder / "config.json", _attn_implementation="sdpa", _attn_implementation_autoset=True)
        edit(embedder / SETTINGS, model_args={"attn_implementation": "eager", "add_pooling_layer": False})
        for engine in FASTEST_AND_SLOWEST:
            np.testing.assert_allclose(BgeEncoder(embedder, engine=engine).encode(["lazy fox"]), expected, atol=1e-5)

    def test_what_the_user_names_is_the_users_choice(self, embedder: Path) -> None:
        expected = reference_vectors(embedder, ["lazy fox"])
        edit(embedder / "config.json", attn_implementation="flash_attention_2")
        own = TransformersKwargs.of(model={"attn_implementation": "eager"})
        encoder = BgeEncoder(embedder, engine="sentence-transformers", transformers_kwargs=own)
        np.testing.assert_allclose(encoder.encode(["lazy fox"]), expected, atol=1e-5)
        transformer: Any = encoder.client[0]
        assert transformer.auto_model.config._attn_implementation == "eager"

    def test_a_trusted_checkpoint_may_hand_on_what_it_likes(self, embedder: Path) -> None:
        edit(embedder / SETTINGS, model_args={"offload_buffers": False})
        with pytest.raises(UnsafeWeightsError, match="trust_remote_code=True"):
            BgeEncoder(embedder)
        assert BgeEncoder(embedder, trust_remote_code=True).encode(["fox"]).shape == (1, 32)


class TestNamedCode:
    @pytest.fixture
    def trap(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """The name of a class in a module that can be imported."""
        (tmp_path / "a_trap.py").write_text("import torch\nclass Trap(torch.nn.Identity): pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        return "a_trap.Trap"

    @pytest.mark.parametrize("name", ["a_trap.Trap", "torch.seed", "torch.nn.functional.relu", "torch.nn.init.zeros_"])
    @pytest.mark.parametrize("key", ["activation_fn", "sbert_ce_default_activation_function"])
    def test_a_rerankers_activation_is_never_called(self, reranker: Path, trap: str, key: str, name: str) -> None:
        saved = {"sentence_transformers": {key: name}} if key == "activation_fn" else {key: name}
        edit(reranker / "config.json", **saved)
        torch.manual_seed(20_231)
        for engine in ENGINES:
            with pytest.raises(UnsafeWeightsError, match=rf"config\.json has .*{key} = '{name}'"):
                BgeReranker(reranker, engine=engine)
        assert trap.split(".")[0] not in sys.modules
        assert torch.initial_seed() == 20_231

    def test_an_activation_of_torch_does_not_change_the_scores(self, reranker: Path) -> None:
        pairs = [("fox", "lazy dog")]
        expected = reference_scores(reranker, pairs)
        edit(reranker / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
        for engine in FASTEST_AND_SLOWEST:
            scores = BgeReranker(reranker, engine=engine, normalize=False).score("fox", ["lazy dog"])
            np.testing.assert_allclose(scores, expected, atol=1e-5)

    @pytest.mark.parametrize(
        ("kind", "file", "content"),
        [
            ("a_trap.Trap", "config.json", {}),
            ("sentence_transformers.util.tensor.torch", "config.json", {}),
            ("sentence_transformers.SentenceTransformer", "config.json", {}),
            (f"{MODULES}.Dense", "config.json", {"in_features": 32, "out_features": 32, "activation_function": "a.B"}),
            (f"{MODULES}.WordEmbeddings", "wordembedding_config.json", {"tokenizer_class": "a_trap.Trap"}),
            (
                f"{MODULES}.Router",
                "router_config.json",
                {"types": {"0": "a_trap.Trap"}, "structure": {}, "parameters": {}},
            ),
            (f"{MODULES}.Asym", "config.json", {"types": {"0": "a_trap.Trap"}, "structure": {}, "parameters": {}}),
        ],
    )
    def test_modules_name_no_foreign_class(
        self, embedder: Path, trap: str, kind: str, file: str, content: dict[str, Any]
    ) -> None:
        listed = json.loads((embedder / "modules.json").read_text())
        listed.insert(2, {"idx": 3, "name": "3", "path": "3_More", "type": kind})
        (embedder / "modules.json").write_text(json.dumps(listed))
        edit(embedder / "3_More" / file, **content)
        for engine in ENGINES:
            with pytest.raises(UnsafeWeightsError, match="imported"):
                BgeEncoder(embedder, engine=engine)
        assert trap.split(".")[0] not in sys.modules
