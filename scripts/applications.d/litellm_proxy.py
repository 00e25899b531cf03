# LiteLLM proxy: pip litellm[proxy]
# note: hands `user` on, where its settings allow it
import json
import socket
import subprocess
import time
import urllib.request
from os import environ as scene
from pathlib import Path

MASTER = "sk-4a1c9e0d7b2f4e6a8c3d5f7091b2a4c6"
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
Path("config.yaml").write_text(f"""
model_list:
  - model_name: gate
    litellm_params:
      model: "custom_openai/{scene["MODEL"]}"
      api_base: "{scene["URL"]}"
      api_key: "{scene["KEY"]}"
      allowed_openai_params: ["user"]
general_settings: {{master_key: {MASTER}}}
""")
subprocess.Popen(["litellm", "--config", "config.yaml", "--port", str(port)], stdout=subprocess.DEVNULL)


def ask(*messages, **more):
    body = {"model": "gate", "user": scene["WHO"], "messages": messages, **more}
    head = {"content-type": "application/json", "authorization": f"Bearer {MASTER}"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), head
    )
    return urllib.request.urlopen(request, timeout=60).read()


def user(text):
    return {"role": "user", "content": text}


for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5)
        break
    except OSError:
        time.sleep(0.2)
first = json.loads(ask(user(scene["SAY"])))["choices"][0]["message"]
print(first["content"])
back = {"role": "assistant", "content": first["content"]}
print(ask(user(scene["SAY"]), back, user(scene["MORE"])))
print(ask(user(scene["ASK"])))
print(ask(user(scene["STREAM"]), stream=True))
shape = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": shape}}]
call = json.loads(ask(user(scene["TOOL"]), tools=tools))["choices"][0]["message"]["tool_calls"]
rain = {"role": "tool", "tool_call_id": call[0]["id"], "content": "Rain."}
print(ask(user(scene["TOOL"]), {"role": "assistant", "content": None, "tool_calls": call}, rain, tools=tools))
