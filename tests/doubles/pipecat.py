"""A stand-in for the part of Pipecat 1.14 that docs/clients.md uses, for machines without it: 48 packages, numba too.

It takes what Pipecat takes, by these names alone, and asks by OpenAI's SDK as Pipecat does. Pipecat itself is driven by
`scripts/applications`, which makes its service as the page does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from openai import AsyncOpenAI


class LLMContext:
    def __init__(self, messages: list[Any] | None = None) -> None:
        self.messages = [*(messages or ())]


@dataclass
class Settings:
    model: str


class OpenAILLMService:
    Settings = Settings

    def __init__(
        self, *, base_url: str, api_key: str, default_headers: Mapping[str, str], settings: Settings
    ) -> None:
        assert api_key, "Pipecat requires an api_key"
        self._settings = settings
        self._client = AsyncOpenAI(base_url=base_url, api_key=api_key, default_headers=default_headers)

    async def run_inference(self, context: LLMContext) -> str | None:
        async with self._client as client:
            reply = await client.chat.completions.create(
                model=self._settings.model, messages=context.messages, stream=False
            )
        return reply.choices[0].message.content


def modules() -> dict[str, ModuleType]:
    """Returns the modules that the page imports, by name; none where Pipecat is installed."""
    if find_spec("pipecat") is not None:
        return {}
    by_name = {}
    for name, member in (
        ("pipecat.processors.aggregators.llm_context", LLMContext),
        ("pipecat.services.openai.llm", OpenAILLMService),
    ):
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            by_name.setdefault(".".join(parts[:n]), ModuleType(".".join(parts[:n])))
        setattr(by_name[name], member.__name__, member)
    return by_name
