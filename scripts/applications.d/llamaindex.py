# LlamaIndex (Python): pip llama-index-llms-openai-like llama-index-core
import asyncio
from os import environ as scene

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model=scene["MODEL"],
    api_base=scene["URL"],
    api_key=scene["KEY"],
    is_chat_model=True,
    is_function_calling_model=True,
    default_headers={"x-mnemogate-user": scene["WHO"]},
)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


async def main():
    engine = SimpleChatEngine.from_defaults(llm=llm)
    print(await engine.achat(scene["SAY"]))
    print(await engine.achat(scene["MORE"]))
    print(await SimpleChatEngine.from_defaults(llm=llm).achat(scene["ASK"]))
    streamed = await SimpleChatEngine.from_defaults(llm=llm).astream_chat(scene["STREAM"])
    print("".join([token async for token in streamed.async_response_gen()]))
    print(await FunctionAgent(tools=[get_weather], llm=llm).run(scene["TOOL"]))


asyncio.run(main())
