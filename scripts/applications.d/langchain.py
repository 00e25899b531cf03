# LangChain: pip langchain-openai
from os import environ as scene

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model=scene["MODEL"],
    base_url=scene["URL"],
    api_key=scene["KEY"],
    default_headers={"x-mnemogate-user": scene["WHO"]},
)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


messages = [("human", scene["SAY"])]
messages.append(model.invoke(messages))
print(messages[-1].content)
print(model.invoke([*messages, ("human", scene["MORE"])]).content)
print(model.invoke(scene["ASK"]).content)
print("".join(chunk.content for chunk in model.stream(scene["STREAM"])))
messages = [("human", scene["TOOL"])]
messages.append(model.bind_tools([get_weather]).invoke(messages))
messages += [get_weather.invoke(call) for call in messages[-1].tool_calls]
print(model.bind_tools([get_weather]).invoke(messages).content)
