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


said = [("human", scene["SAY"])]
said.append(model.invoke(said))
print(said[-1].content)
print(model.invoke([*said, ("human", scene["MORE"])]).content)
print(model.invoke(scene["ASK"]).content)
print("".join(chunk.content for chunk in model.stream(scene["STREAM"])))
said = [("human", scene["TOOL"])]
said.append(model.bind_tools([get_weather]).invoke(said))
said += [get_weather.invoke(call) for call in said[-1].tool_calls]
print(model.bind_tools([get_weather]).invoke(said).content)
