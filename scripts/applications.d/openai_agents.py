# OpenAI Agents: pip openai-agents
import asyncio
from os import environ as scene

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(True)
client = AsyncOpenAI(
    base_url=scene["URL"], api_key=scene["KEY"], default_headers={"x-mnemogate-user": scene["WHO"]}
)
model = OpenAIChatCompletionsModel(scene["MODEL"], client)


@function_tool
def get_weather(city: str) -> str:
    return f"Rain in {city}."


async def main():
    """Plays the scene."""
    agent = Agent(name="Helper", instructions="Be kind.", model=model)
    session = SQLiteSession("one")
    for text in (scene["SAY"], scene["MORE"]):
        print((await Runner.run(agent, text, session=session)).final_output)
    print((await Runner.run(agent, scene["ASK"])).final_output)
    streamed = Runner.run_streamed(agent, scene["STREAM"])
    async for _ in streamed.stream_events():
        pass
    print(streamed.final_output)
    with_tool = Agent(name="Forecaster", model=model, tools=[get_weather])
    print((await Runner.run(with_tool, scene["TOOL"])).final_output)


asyncio.run(main())
