# AutoGen: pip autogen-agentchat autogen-ext[openai]
import asyncio
from os import environ as scene

from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.openai import OpenAIChatCompletionClient

client = OpenAIChatCompletionClient(
    model=scene["MODEL"],
    base_url=scene["URL"],
    api_key=scene["KEY"],
    default_headers={"x-mnemogate-user": scene["WHO"]},
)


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def agent(**more):
    return AssistantAgent("helper", model_client=client, **more)


async def main():
    """Plays the scene."""
    first = agent()
    for text in (scene["SAY"], scene["MORE"]):
        print((await first.run(task=text)).messages[-1].content)
    print((await agent().run(task=scene["ASK"])).messages[-1].content)
    async for message in agent(model_client_stream=True).run_stream(task=scene["STREAM"]):
        last = message
    print(last.messages[-1].content)
    print(
        (await agent(tools=[get_weather], reflect_on_tool_use=True).run(task=scene["TOOL"]))
        .messages[-1]
        .content
    )
    await client.close()


asyncio.run(main())
