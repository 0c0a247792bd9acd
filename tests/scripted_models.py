"""Chat models of both frameworks that answer as a function says."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.llms import CustomLLM

from tests.scripted_answers import Respond

Framework = Literal["langchain", "llama-index"]
FRAMEWORKS: tuple[Framework, ...] = ("langchain", "llama-index")


class ScriptedChat(BaseChatModel):
    """A chat model of LangChain."""

    respond: Respond
    model_name: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> ChatResult:
        assert isinstance(messages[0].content, str)
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self.respond(messages[0].content)))])


class ScriptedLLM(CustomLLM):
    """An LLM of LlamaIndex."""

    respond: Respond

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="scripted")

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ANN401
        return CompletionResponse(text=self.respond(prompt))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:  # noqa: ANN401
        raise NotImplementedError


def model_of(framework: Framework, respond: Respond) -> ScriptedChat | ScriptedLLM:
    """Returns a model of a framework that answers as a function says."""
    return ScriptedChat(respond=respond) if framework == "langchain" else ScriptedLLM(respond=respond)
