"""A token that was put in the wrong place is in no message, record, repr or saved setting."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from typer.testing import CliRunner

from bge_integrations import BgeEncoder, BgeM3Encoder, BgeReranker
from bge_integrations.cli import app
from bge_integrations.errors import BgeError, InputTypeError, ModelLoadError, SettingsError
from bge_integrations.langchain import BgeM3Reranker, BgeSparseEmbeddings, HuggingFaceBgeEmbeddings
from bge_integrations.langchain import BgeReranker as LangChainReranker
from bge_integrations.llama_index import BgeM3Rerank, BgeRerank, BgeSparseEmbedding, HuggingFaceBgeEmbedding
from bge_integrations.redaction import holds_secret, is_secret_name, shown, without_secret_keys, without_secrets
from bge_integrations.settings import EncoderSettings, TransformersKwargs
from tests.adapters import everything_of

HUB_TOKEN = "hf_SECRETsecretSECRETsecret123456"
PASSWORD = "open sesame, please"
NOWHERE = "./no-such-folder"

# All but `model_validate` of settings are refused before a model is looked for.
MAKERS: dict[str, Callable[..., Any]] = {
    "BgeEncoder": lambda **k: BgeEncoder(NOWHERE, **k),
    "BgeReranker": lambda **k: BgeReranker(NOWHERE, **k),
    "BgeM3Encoder": lambda **k: BgeM3Encoder(NOWHERE, **k),
    **{
        f"LangChain's {kind.__name__}": lambda kind=kind, **k: kind(model_name=NOWHERE, **k)
        for kind in (HuggingFaceBgeEmbeddings, LangChainReranker, BgeSparseEmbeddings, BgeM3Reranker)
    },
    **{
        f"LlamaIndex's {kind.__name__}": lambda kind=kind, **k: kind(NOWHERE, **k)
        for kind in (HuggingFaceBgeEmbedding, BgeRerank, BgeSparseEmbedding, BgeM3Rerank)
    },
    "model_validate": lambda **k: HuggingFaceBgeEmbeddings.model_validate({"model_name": NOWHERE, **k}),
    "from_dict": lambda **k: HuggingFaceBgeEmbedding.from_dict({"model_name": NOWHERE, **k}),
}


def misplaced(secret: str) -> list[dict[str, Any]]:
    nested = {"model_kwargs": {"hf_token": secret}}
    keywords = ("model_kwargs", "encode_kwargs", "sentence_transformer_kwargs", "cross_encoder_kwargs", "config_kwargs")
    return [
        *({name: secret} for name in ("hf_token", "tokens", "api_key", "token_", "apiKey", "tokne", "hub_password")),
        *({"token": wrong} for wrong in ([secret], {"a": secret}, secret.encode(), (secret,))),
        *({name: {"hf_token": secret}} for name in keywords),
        *({name: nested} for name in keywords),
        *({name: [("token", secret)]} for name in keywords),
        {"model_kwargs": {"hf_token": secret, "made": object()}},
        {"model_kwargs": {"model_kwargs": {"quantization_config": {"auth": {"token": secret}}}}},
        {"transformers_kwargs": {"model": {"hf_token": secret}}},
        {"token": secret, "precision": "float8"},
        {"token": secret, "unknown": 1},
        {"token": secret, "max_length": -1},
        {"examples": [{"token": secret}]},
    ]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("secret", [HUB_TOKEN, PASSWORD])
def test_a_misplaced_token_is_in_no_part_of_the_error(maker: str, secret: str) -> None:
    for keywords in misplaced(secret):
        with pytest.raises((BgeError, ValidationError, TypeError)) as caught:
            MAKERS[maker](**copy.copy(keywords))
        assert secret not in everything_of(caught.value), keywords


@pytest.mark.parametrize("maker", MAKERS)
def test_a_hub_token_is_hidden_under_any_name(maker: str) -> None:
    for name in ("revision", "device", "precision", "tokenizer_name", "query_instruction", "whatever", "top_n"):
        with pytest.raises((BgeError, ValidationError, TypeError)) as caught:
            MAKERS[maker](**{name: HUB_TOKEN}, max_length=0)
        assert HUB_TOKEN not in everything_of(caught.value)


def test_the_message_still_says_what_is_wrong_and_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"hf_token='\*+' is unknown; the known arguments are .*token"):
        HuggingFaceBgeEmbedding(NOWHERE, hf_token=HUB_TOKEN)
    with pytest.raises(SettingsError, match="devise='cpu' is unknown"):
        HuggingFaceBgeEmbedding(NOWHERE, devise="cpu")
    with pytest.raises(SettingsError, match=r"model_kwargs\['hf_token'\] reads like a secret.* as token="):
        TransformersKwargs.of(model={"hf_token": PASSWORD})
    with pytest.raises(SettingsError, match="token is a list; give a text, True, False or None"):
        BgeEncoder(NOWHERE, token=[HUB_TOKEN])  # type: ignore[arg-type]
    with pytest.raises(ValidationError) as caught:
        HuggingFaceBgeEmbeddings(model_name=NOWHERE, max_length="many", hf_token=PASSWORD, truncate_dim=0)
    recorded = {error["loc"]: (error["type"], error["input"]) for error in caught.value.errors()}
    assert recorded[("max_length",)] == ("int_parsing", "many")
    assert recorded[("hf_token",)] == ("extra_forbidden", "**********")


def test_pydantics_errors_keep_ours(bge_small_en: Path) -> None:
    with pytest.raises(ValidationError, match="1 validation error for HuggingFaceBgeEmbeddings") as caught:
        HuggingFaceBgeEmbeddings(model_name=str(bge_small_en), truncate_dim=0)
    (error,) = caught.value.errors()
    assert isinstance(error["ctx"]["error"], SettingsError)
    assert error["msg"] == "Value error, truncate_dim=0 must be a whole number of at least 1."


def test_an_error_of_loading_inside_another_models_validation_shows_no_token(bge_small_en: Path) -> None:
    class Chain(BaseModel):
        """Holds a reranker, as LangChain's retrievers do."""

        compressor: LangChainReranker

    given = {"model_name": str(bge_small_en), "token": PASSWORD}  # no reranker
    for validate in (
        lambda: Chain.model_validate({"compressor": given}),
        lambda: TypeAdapter(LangChainReranker).validate_python(given),
        lambda: LangChainReranker.model_validate_json(json.dumps(given)),
    ):
        with pytest.raises(ValidationError, match="bge-small-en") as caught:
            validate()
        assert PASSWORD not in everything_of(caught.value)


def test_reprs_show_no_hub_token_wherever_it_was_put() -> None:
    settings = EncoderSettings(model_name="a", revision=HUB_TOKEN, query_instruction=f"say {HUB_TOKEN}: ", token="x")
    assert "revision='**********'" in repr(settings)
    assert "query_instruction='say **********: '" in repr(settings)
    assert "token" not in repr(settings).replace("max_queued", "").replace("batch_tokens", "")
    assert repr(EncoderSettings(model_name="a")).startswith("EncoderSettings(model_name='a', device=None, precision=")


@pytest.mark.parametrize("kind", [BgeError, SettingsError, ModelLoadError, InputTypeError])
def test_no_message_of_this_package_holds_a_hub_token(kind: type[BgeError]) -> None:
    error = kind(f"no model {HUB_TOKEN!r} at https://user:{HUB_TOKEN}@hub")
    assert str(error) == "no model '**********' at https://user:**********@hub"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_command_line_shows_none_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prepare", HUB_TOKEN, "-o", str(tmp_path / "made")])
    assert isinstance(result.exception, BgeError)
    assert HUB_TOKEN not in everything_of(result.exception) + result.output
    result = CliRunner().invoke(app, ["prepare", "a", "-o", "b", f"--token={HUB_TOKEN}"])
    assert result.exit_code == 2
    assert HUB_TOKEN not in result.output


SECRET_NAMES = (
    "token",
    "tokens",
    "token_",
    "TOKEN",
    "hf_token",
    "hfToken",
    "HF_TOKEN",
    "use_auth_token",
    "access-token",
    "huggingfacehub_api_token",
    "tokn",
    "hubtoken",
    "accesskey",
    "toekn",
    "auth_tokne",
    "api_key",
    "apiKey",
    "key",
    "hf_key",
    "aws_secret_access_key",
    "secret",
    "password",
    "pasword",
    "credentials",
    "Authorization",
    "auth",
)
PLAIN_NAMES = (
    "batch_tokens",
    "max_new_tokens",
    "pad_token",
    "pad_token_id",
    "additional_special_tokens",
    "add_eos_token",
    "token_type_ids",
    "tokenizer",
    "tokenizer_kwargs",
    "tokenizer_name",
    "num_key_value_heads",
    "key_mapping",
    "device",
    "devise",
    "path",
    "author",
    "revision",
    "task",
    "prompt",
)


def test_names_of_secrets_are_known_in_any_spelling_and_no_others() -> None:
    assert [name for name in SECRET_NAMES if not is_secret_name(name)] == []
    assert [name for name in PLAIN_NAMES if is_secret_name(name)] == []


def test_only_secrets_are_hidden() -> None:
    given = {"token": "x", "device": ["cpu"], "deep": [{"api_key": "y", "n": 1}, ("auth", "z")], "query_token": "[Q]"}
    hidden = {
        "token": "**********",
        "device": ["cpu"],
        "deep": [{"api_key": "**********", "n": 1}, ("auth", "**********")],
        "query_token": "[Q]",
    }
    assert without_secrets(given) == hidden
    assert shown(given) == repr(hidden)
    assert shown(True, "token") == "True"
    assert without_secret_keys({"a": {"token": "x", "b": 1}, "token": None, "c": HUB_TOKEN}) == {
        "a": {"b": 1},
        "token": None,
    }
    assert given["token"] == "x"
    assert holds_secret({"deep": [{"api_key": "y"}]})
    assert not holds_secret({"deep": [{"pad_token": "[PAD]", "token": None}], "num_tokens": 3})
    prompts = {"prompts": {"key": "find: ", "token": "say: "}}
    assert without_secrets(prompts) == without_secret_keys(prompts) == prompts
