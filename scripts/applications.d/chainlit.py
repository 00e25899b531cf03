# chainlit: pip chainlit openai
# note: its program says who is speaking and gives its thread as the conversation; an edit goes through its socket
import asyncio
import socket
import subprocess
import time
import urllib.request
import uuid
from os import environ as scene
from pathlib import Path

import socketio

Path("app.py").write_text("""
import os
import chainlit as cl
from openai import AsyncOpenAI

client = AsyncOpenAI(base_url=os.environ["URL"], api_key=os.environ["KEY"])

@cl.on_message
async def on_message(message):
    headers = {"x-mnemogate-user": os.environ["WHO"], "x-mnemogate-conversation": cl.context.session.thread_id}
    reply = cl.Message("")
    async for chunk in await client.chat.completions.create(
        model=os.environ["MODEL"], messages=cl.chat_context.to_openai(), stream=True, extra_headers=headers
    ):
        if chunk.choices:
            await reply.stream_token(chunk.choices[0].delta.content or "")
    await reply.send()
    print(reply.content, flush=True)
""")
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = str(probe.getsockname()[1])
# The runner ends the whole process group.
subprocess.Popen(["chainlit", "run", "app.py", "--headless", "--port", port])


async def send(*texts, edited=""):
    """Sends texts in one session. edited: a new text in place of the last one; "": the last one stays."""
    client, ended = socketio.AsyncClient(), asyncio.Queue()
    client.on("task_end", lambda *_: ended.put_nowait(None))
    auth = {"sessionId": str(uuid.uuid4()), "clientType": "webapp"}
    await client.connect(f"http://127.0.0.1:{port}", auth=auth, socketio_path="/ws/socket.io")
    await client.emit("connection_successful")
    await ended.get()  # a connection begins with such an event too
    message = {"type": "user_message", "name": "User", "createdAt": "2026-01-01T00:00:00Z"}
    for text in texts:
        message |= {"id": str(uuid.uuid4()), "output": text}
        await client.emit("client_message", {"message": message})
        await ended.get()
    if edited:  # the new text of the last message
        await client.emit("edit_message", {"message": {**message, "output": edited}})
        await ended.get()
    await client.disconnect()


async def main():
    await send(scene["SAY"], scene["MORE"], edited=scene["EDIT"])
    await send(scene["ASK"])


for _ in range(600):
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
        break
    except OSError:
        time.sleep(0.2)
else:
    raise SystemExit("chainlit did not start within two minutes")
asyncio.run(asyncio.wait_for(main(), 60))
