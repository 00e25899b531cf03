# aider: pip aider-chat
import subprocess
from os import environ as scene
from pathlib import Path

from aider.main import main

model = f"openai/{scene['MODEL']}"
Path("models.yml").write_text(f"""
- name: {model}
  weak_model_name: {model}
  extra_params: {{extra_headers: {{x-mnemogate-user: {scene["WHO"]}}}}}
""")
subprocess.run(
    "git init -q . && git config user.email a@example.org && git config user.name A", shell=True, check=True
)
flags = ["--no-show-model-warnings", "--no-check-update", "--no-analytics", "--yes-always", "--no-pretty"]
address = ["--model", model, "--openai-api-base", scene["URL"], "--openai-api-key", scene["KEY"]]


def coder(*more):
    return main([*address, *flags, "--model-settings-file", "models.yml", *more], return_coder=True)


first = coder()
first.run(scene["SAY"])
first.run(scene["MORE"])
coder("--no-stream").run(scene["ASK"])
Path("cat.txt").write_text("Miso\n")
subprocess.run(["git", "add", "cat.txt"], check=True)
coder().run("/commit")
