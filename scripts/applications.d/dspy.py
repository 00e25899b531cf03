# DSPy: pip dspy
# memory: off
# note: a program, so its key has memory off
from os import environ as scene

import dspy

lm = dspy.LM(
    f"openai/{scene['MODEL']}",
    api_base=scene["URL"],
    api_key=scene["KEY"],
    cache=False,
    extra_headers={"x-mnemogate-user": scene["WHO"]},
)
dspy.configure(lm=lm)
answer = dspy.Predict("question, history: dspy.History -> answer")
first = answer(question=scene["SAY"], history=dspy.History(messages=[]))
print(first.answer)
turns = [{"question": scene["SAY"], **first}]
print(answer(question=scene["MORE"], history=dspy.History(messages=turns)).answer)
print(dspy.Predict("question -> answer")(question=scene["ASK"]).answer)
