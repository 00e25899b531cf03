# Instructor: pip instructor
import os

import instructor
from openai import OpenAI
from pydantic import BaseModel

scene = os.environ
client = instructor.from_openai(
    OpenAI(base_url=scene["URL"], api_key=scene["KEY"], default_headers={"x-mnemogate-user": scene["WHO"]})
)


class City(BaseModel):
    name: str
    people: int


def user(text):
    return {"role": "user", "content": text}


messages = [user(scene["SAY"])]
plain = client.client.chat.completions  # what a program does besides its structured answers
messages.append(plain.create(model=scene["MODEL"], messages=messages).choices[0].message)
print(messages[-1].content)
print(
    plain.create(model=scene["MODEL"], messages=[*messages, user(scene["MORE"])]).choices[0].message.content
)
create = client.chat.completions
print(create.create(model=scene["MODEL"], response_model=City, messages=[user(scene["ASK"])]))
*_, last = create.create_partial(model=scene["MODEL"], response_model=City, messages=[user(scene["STREAM"])])
print(last)
