"""A phone call through LiveKit Agents: its session, its turn taking, its preemptive requests, its OpenAI plugin.

Only ears and voice are doubles: the caller's words come as the events of a speech-to-text, and the loudspeaker plays as
long as a test says. So no test depends on a clock or on a model.

    async with dial(world) as phone:
        assert await phone.say("Hello.") == "Ok."
        await phone.begin("I would like")       # the caller pauses: LiveKit asks at once, just in case
        await phone.say("I would like a table.")   # but more came: what was asked for is thrown away

Importing this imports LiveKit, which takes seconds; tests do it in a fixture.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from livekit import rtc
from livekit.agents import APIConnectOptions, LanguageCode, llm, stt
from livekit.agents.voice import Agent, AgentSession, io
from livekit.agents.voice.agent_session import SessionConnectOptions
from livekit.plugins import openai as plugin

from tests.gateway.sdk import World
from tests.patience import PATIENCE_S

RATE = 16_000
Heard = stt.SpeechEventType


class _Ears(stt.STT):
    """A speech-to-text that is never asked: `_Agent.stt_node` brings the words."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))

    async def _recognize_impl(self, *_: Any, **__: Any) -> stt.SpeechEvent:
        raise NotImplementedError


class _Microphone(io.AudioInput):
    def __init__(self) -> None:
        super().__init__(label="microphone")

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.Future()
        raise StopAsyncIteration


class _Loudspeaker(io.AudioOutput):
    """A loudspeaker that plays at once and to the end, unless `cut` says what was heard before an interruption."""

    def __init__(self) -> None:
        super().__init__(
            label="loudspeaker", sample_rate=RATE, capabilities=io.AudioOutputCapabilities(pause=False)
        )
        self.cut: str | None = None
        self.is_playing = asyncio.Event()
        self._length = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self._length += frame.duration
        if not self.is_playing.is_set():
            self.is_playing.set()
            self.on_playback_started(created_at=time.time())

    def flush(self) -> None:
        super().flush()
        if self.cut is None:
            self._end(is_interrupted=False)

    def clear_buffer(self) -> None:
        self._end(is_interrupted=True)

    def _end(self, *, is_interrupted: bool) -> None:
        if self.is_playing.is_set():
            self.is_playing.clear()
            length, self._length = self._length, 0.0
            self.on_playback_finished(
                playback_position=length,
                interrupted=is_interrupted,
                synchronized_transcript=self.cut if is_interrupted else None,
            )


class _Agent(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You answer a phone.", tools=[llm.function_tool(self.get_weather)])
        self.words: asyncio.Queue[stt.SpeechEvent] = asyncio.Queue()
        self.cities: list[str] = []

    async def get_weather(self, city: str) -> str:
        """The weather in a city."""
        self.cities.append(city)
        return f"Rain in {city}."

    async def stt_node(self, audio: AsyncIterable[rtc.AudioFrame], _: Any) -> AsyncIterator[stt.SpeechEvent]:
        while True:
            yield await self.words.get()

    async def tts_node(self, text: AsyncIterable[str], _: Any) -> AsyncIterator[rtc.AudioFrame]:
        async for _piece in text:
            yield rtc.AudioFrame(bytes(2 * RATE // 100), RATE, 1, RATE // 100)


@dataclass
class Phone:
    """A phone call. said: the messages that LiveKit took into its list, as (role, text)."""

    world: World
    session: AgentSession[None]
    agent: _Agent
    speaker: _Loudspeaker
    said: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)
    errors: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def hear(self, kind: Heard, text: str = "") -> None:
        found = [stt.SpeechData(language=LanguageCode("en"), text=text)] if text else []
        self.agent.words.put_nowait(stt.SpeechEvent(type=kind, alternatives=found))

    async def next_said(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.said.get()

    async def next_error(self) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.errors.get()

    async def say(self, text: str) -> str:
        """Makes one undisturbed turn. Returns the reply when it was spoken to its end."""
        await self.end(text)
        role, reply = await self.next_said()
        assert role == "assistant"
        return reply

    async def end(self, text: str) -> None:
        """Ends the caller's sentence; returns before the agent's reply."""
        self.hear(Heard.START_OF_SPEECH)
        self.hear(Heard.FINAL_TRANSCRIPT, text)
        self.hear(Heard.END_OF_SPEECH)
        assert await self.next_said() == ("user", text)

    async def begin(self, text: str) -> None:
        """Pauses in the caller's sentence; returns when LiveKit's preemptive request has reached the upstream."""
        count = len(self.world.upstream.seen)
        self.hear(Heard.START_OF_SPEECH)
        self.hear(Heard.PREFLIGHT_TRANSCRIPT, text)
        await self.world.upstream.arrived(count + 1).wait()

    def go_on(self, text: str) -> None:
        """Lets the caller speak on, without an end."""
        self.hear(Heard.START_OF_SPEECH)
        self.hear(Heard.INTERIM_TRANSCRIPT, text)

    async def cut_in(self, text: str) -> str:
        """Interrupts the reply that is being spoken. Returns the part of it that LiveKit keeps."""
        self.go_on(text)
        role, spoken = await self.next_said()
        assert role == "assistant"
        return spoken


@asynccontextmanager
async def dial(
    world: World, room: str | None = None, model: str = "m", letta: str | None = None, **options: Any
) -> AsyncIterator[Phone]:
    """Opens a phone call.

    room: the header by which a LiveKit job names its conversation. letta: the id of an agent, as `with_letta` asks it.
    """
    if letta is not None:
        url = f"{world.gateway.url}/v1/chat/completions"
        language_model = plugin.LLM.with_letta(agent_id=letta, base_url=url, api_key="sk-app")
    else:
        language_model = plugin.LLM(
            model=model,
            base_url=f"{world.gateway.url}/v1",
            api_key="sk-app",
            user="alice",
            timeout=httpx.Timeout(PATIENCE_S),
            extra_headers={"X-LiveKit-Room-ID": room} if room else {},
            **options,
        )
    session: AgentSession[None] = AgentSession(
        llm=language_model,
        stt=_Ears(),
        vad=None,
        turn_handling={
            "turn_detection": "stt",
            "endpointing": {"min_delay": 0.0, "max_delay": 0.0},
            "interruption": {"resume_false_interruption": False},
        },
        aec_warmup_duration=None,
        session_close_transcript_timeout=0.0,
        tts_text_transforms=None,
        conn_options=SessionConnectOptions(
            llm_conn_options=APIConnectOptions(max_retry=3, retry_interval=0.0, timeout=PATIENCE_S)
        ),
    )
    phone = Phone(world, session, _Agent(), _Loudspeaker())

    def note(event: Any) -> None:
        if event.item.type == "message":
            phone.said.put_nowait((event.item.role, event.item.text_content or ""))

    session.on("conversation_item_added", note)
    session.on("error", lambda event: phone.errors.put_nowait(event.error.error))
    session.input.audio, session.output.audio = _Microphone(), phone.speaker
    await session.start(phone.agent)
    try:
        yield phone
    finally:
        await session.aclose()
        await language_model.aclose()
