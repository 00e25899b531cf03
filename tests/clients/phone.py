"""A phone call through LiveKit Agents: its session, its turn taking, its preemptive requests, its OpenAI plugin.

Speech recognition, speech synthesis and audio are doubles: a test emits the events of a speech recognition, and sets
how much of a reply the caller hears. So no test depends on a clock or on a speech model.

    async with dial(world) as phone:
        assert await phone.say("Hello.") == "Ok."
        await phone.pause_sentence("I would like")  # LiveKit sends a preemptive request
        await phone.say("I would like a table.")    # LiveKit cancels it, and sends the whole sentence

This module imports LiveKit, which takes seconds, so tests import it in a fixture.
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

# Samples per second.
RATE = 16_000
EventType = stt.SpeechEventType


class _UnusedSpeechToText(stt.STT):
    """A speech-to-text that LiveKit requires and never calls: `_Agent.stt_node` yields the events."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))

    async def _recognize_impl(self, *_: Any, **__: Any) -> stt.SpeechEvent:
        raise NotImplementedError


class _SilentMicrophone(io.AudioInput):
    def __init__(self) -> None:
        super().__init__(label="microphone")

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.Future()
        raise StopAsyncIteration


class _Loudspeaker(io.AudioOutput):
    """A loudspeaker that plays a reply in no time, unless `heard_part` is set."""

    def __init__(self) -> None:
        super().__init__(
            label="loudspeaker", sample_rate=RATE, capabilities=io.AudioOutputCapabilities(pause=False)
        )
        # The part of a reply that the caller hears before an interruption. None: replies are played to their end.
        self.heard_part: str | None = None
        self.is_playing = asyncio.Event()
        # Seconds of the reply that were captured so far.
        self._captured_s = 0.0

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        self._captured_s += frame.duration
        if not self.is_playing.is_set():
            self.is_playing.set()
            self.on_playback_started(created_at=time.time())

    def flush(self) -> None:
        super().flush()
        if self.heard_part is None:
            self._end(is_interrupted=False)

    def clear_buffer(self) -> None:
        self._end(is_interrupted=True)

    def _end(self, *, is_interrupted: bool) -> None:
        if self.is_playing.is_set():
            self.is_playing.clear()
            captured_s, self._captured_s = self._captured_s, 0.0
            self.on_playback_finished(
                playback_position=captured_s,
                interrupted=is_interrupted,
                synchronized_transcript=self.heard_part if is_interrupted else None,
            )


class _Agent(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You answer a phone.", tools=[llm.function_tool(self.get_weather)])
        self.speech_events: asyncio.Queue[stt.SpeechEvent] = asyncio.Queue()
        # The cities for which the tool was called.
        self.cities: list[str] = []

    async def get_weather(self, city: str) -> str:
        """The weather in a city."""
        self.cities.append(city)
        return f"Rain in {city}."

    async def stt_node(self, audio: AsyncIterable[rtc.AudioFrame], _: Any) -> AsyncIterator[stt.SpeechEvent]:
        while True:
            yield await self.speech_events.get()

    async def tts_node(self, text: AsyncIterable[str], _: Any) -> AsyncIterator[rtc.AudioFrame]:
        async for _piece in text:
            yield rtc.AudioFrame(bytes(2 * RATE // 100), RATE, 1, RATE // 100)


@dataclass
class Phone:
    """A phone call."""

    world: World
    session: AgentSession[None]
    agent: _Agent
    speaker: _Loudspeaker
    # The messages that LiveKit added to its history, as (role, text).
    messages: asyncio.Queue[tuple[str, str]] = field(default_factory=asyncio.Queue)
    # Errors of LiveKit's requests.
    errors: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    def emit(self, event_type: EventType, text: str = "") -> None:
        """Emits an event of the speech-to-text. text: the transcript."""
        alternatives = [stt.SpeechData(language=LanguageCode("en"), text=text)] if text else []
        self.agent.speech_events.put_nowait(stt.SpeechEvent(type=event_type, alternatives=alternatives))

    async def next_message(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.messages.get()

    async def next_error(self) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await self.errors.get()

    async def say(self, text: str) -> str:
        """Takes one turn without an interruption. Returns the reply when it was played to its end."""
        await self.finish_sentence(text)
        role, reply = await self.next_message()
        assert role == "assistant"
        return reply

    async def finish_sentence(self, text: str) -> None:
        """Has the caller finish a sentence. Returns before the agent's reply."""
        self.emit(EventType.START_OF_SPEECH)
        self.emit(EventType.FINAL_TRANSCRIPT, text)
        self.emit(EventType.END_OF_SPEECH)
        assert await self.next_message() == ("user", text)

    async def pause_sentence(self, text: str) -> None:
        """Has the caller pause after a part of a sentence.

        Returns when LiveKit's preemptive request has reached the upstream.
        """
        count = len(self.world.upstream.requests)
        self.emit(EventType.START_OF_SPEECH)
        self.emit(EventType.PREFLIGHT_TRANSCRIPT, text)
        await self.world.upstream.request_gate(count + 1).wait()

    def continue_sentence(self, text: str) -> None:
        """Has the caller say more of a sentence, which does not end yet."""
        self.emit(EventType.START_OF_SPEECH)
        self.emit(EventType.INTERIM_TRANSCRIPT, text)

    async def interrupt(self, text: str) -> str:
        """Has the caller interrupt the reply. Returns the part of it that LiveKit adds to its history."""
        self.continue_sentence(text)
        role, part = await self.next_message()
        assert role == "assistant"
        return part


@asynccontextmanager
async def dial(
    world: World, room: str | None = None, model: str = "m", letta_agent: str | None = None, **options: Any
) -> AsyncIterator[Phone]:
    """Opens a phone call.

    room: the value of the header in which a LiveKit job names its conversation.
    letta_agent: the id of an agent, whose model is `LLM.with_letta` then.
    options: further parameters of `LLM`.
    """
    if letta_agent is not None:
        url = f"{world.gateway.url}/v1/chat/completions"
        language_model = plugin.LLM.with_letta(agent_id=letta_agent, base_url=url, api_key="sk-app")
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
        stt=_UnusedSpeechToText(),
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

    def add_message(event: Any) -> None:
        if event.item.type == "message":
            phone.messages.put_nowait((event.item.role, event.item.text_content or ""))

    session.on("conversation_item_added", add_message)
    session.on("error", lambda event: phone.errors.put_nowait(event.error.error))
    session.input.audio, session.output.audio = _SilentMicrophone(), phone.speaker
    await session.start(phone.agent)
    try:
        yield phone
    finally:
        await session.aclose()
        await language_model.aclose()
