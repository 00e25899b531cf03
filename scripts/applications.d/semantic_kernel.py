# Semantic Kernel: pip semantic-kernel
import asyncio
from os import environ as scene

from openai import AsyncOpenAI
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function

client = AsyncOpenAI(
    base_url=scene["URL"], api_key=scene["KEY"], default_headers={"x-mnemogate-user": scene["WHO"]}
)


class Weather:
    @kernel_function(description="The weather in a city.")
    def get_weather(self, city: str) -> str:
        return f"Rain in {city}."


async def main():
    """Plays the scene."""
    service = OpenAIChatCompletion(ai_model_id=scene["MODEL"], async_client=client)
    agent = ChatCompletionAgent(service=service, name="Helper", instructions="Be kind.")
    thread = None
    for text in (scene["SAY"], scene["MORE"]):
        reply = await agent.get_response(messages=text, thread=thread)
        thread = reply.thread
        print(reply.content)
    print((await agent.get_response(messages=scene["ASK"])).content)
    print("".join([str(part.content) async for part in agent.invoke_stream(messages=scene["STREAM"])]))
    forecaster = ChatCompletionAgent(service=service, name="Forecaster", plugins=[Weather()])
    print((await forecaster.get_response(messages=scene["TOOL"])).content)


asyncio.run(main())
