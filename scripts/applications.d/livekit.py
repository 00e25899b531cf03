# LiveKit Agents: pip livekit-agents livekit-plugins-openai
# note: with room= in a job the room is the conversation
import asyncio
from os import environ as scene

from livekit.agents import Agent, AgentSession, function_tool
from livekit.plugins import openai


@function_tool
async def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


async def talk(*texts, tools=()):
    model = openai.LLM(model=scene["MODEL"], base_url=scene["URL"], api_key=scene["KEY"], user=scene["WHO"])
    async with AgentSession(llm=model) as session:
        await session.start(Agent(instructions="Be kind.", tools=list(tools)))
        for text in texts:
            ran = await session.run(user_input=text)
            print(ran.events[-1].item.text_content)
    await model.aclose()


async def main():
    await talk(scene["SAY"], scene["MORE"])
    await talk(scene["ASK"])
    await talk(scene["TOOL"], tools=[get_weather])


asyncio.run(main())
