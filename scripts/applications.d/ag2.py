# AG2: pip ag2[openai]
import asyncio
from os import environ as scene

from ag2 import Agent
from ag2.config import OpenAIConfig


def config(**more):
    headers = {"x-mnemogate-user": scene["WHO"]}
    return OpenAIConfig(
        model=scene["MODEL"], base_url=scene["URL"], api_key=scene["KEY"], default_headers=headers, **more
    )


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


async def main():
    first = await Agent("helper", "Be kind.", config=config()).ask(scene["SAY"])
    print(first.body)
    print((await first.ask(scene["MORE"])).body)
    print((await Agent("helper", "Be kind.", config=config()).ask(scene["ASK"])).body)
    print((await Agent("teller", config=config(streaming=True)).ask(scene["STREAM"])).body)
    print((await Agent("forecaster", config=config(), tools=[get_weather]).ask(scene["TOOL"])).body)


asyncio.run(main())
