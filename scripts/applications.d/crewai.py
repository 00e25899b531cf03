# CrewAI: pip crewai
# memory: off
# note: a program, so its key has memory off
from os import environ as scene

from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool

llm = LLM(
    model=f"openai/{scene['MODEL']}",
    base_url=scene["URL"],
    api_key=scene["KEY"],
    default_headers={"x-mnemogate-user": scene["WHO"]},
)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"Rain in {city}."


def crew(*texts, **more):
    agent = Agent(role="Helper", goal="Be kind.", backstory="None.", llm=llm, **more)
    tasks = [Task(description=text, expected_output="A sentence.", agent=agent) for text in texts]
    print(Crew(agents=[agent], tasks=tasks).kickoff().raw)


crew(scene["SAY"], scene["MORE"])
crew(scene["ASK"])
crew(scene["TOOL"], tools=[get_weather])
