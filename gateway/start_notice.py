"""The notice of a start: the gateway's address, its database and upstreams, and an example of a request."""

from __future__ import annotations

from contextlib import suppress

from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.errors import UnknownModel
from gateway.run.upstream.route import resolve_route
from gateway.settings import DEMO_PROFILE, Settings, UpstreamSettings
from storage.database import StoreHealth

# The model of the example, by an upstream's address or kind. The scripted model answers to any name; the example asks
# for it by the name of a model that other upstreams have.
_EXAMPLE_MODELS = {
    "scripted": "gpt-4o-mini",
    "https://api.openai.com/v1": "gpt-4o-mini",
    "anthropic": "claude-haiku-5",
    "https://api.anthropic.com/v1": "claude-haiku-5",
}

# Flush left, so that Python takes the copied lines.
_EXAMPLE = """\
Try it (pip install openai):

from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
chat = client.chat.completions
tell = [{{"role": "user", "content": "My cat is called Miso."}}]
print(chat.create(model="{model}", {user}messages=tell).choices[0].message.content)
ask = [{{"role": "user", "content": "What is my cat called?"}}]  # a second conversation
print(chat.create(model="{model}", {user}messages=ask).choices[0].message.content)
"""


def describe_start(
    settings: Settings, health: StoreHealth, url: str, local_url: str, *, has_keys: bool
) -> str:
    """Returns the notice of a gateway that has started.

    health: the health of the database.
    url: the URL at which the gateway listens.
    local_url: the URL at which programs of this machine reach the gateway.
    has_keys: True if the gateway has keys, so that requests need one.
    """
    down_note = " cannot be used (the log says why); until it can, nothing is remembered"
    upstreams = ", ".join(
        f"{upstream.name} ({_describe_upstream(upstream)})" for upstream in settings.upstreams
    )
    is_single = settings.memory.single_user
    lines = [
        f"Mnemogate listens on {url}",
        f"Database: {settings.database.shown}{'' if health.is_up else down_note}",
        f"Upstream: {upstreams}",
        *_describe_background_model(settings),
        *_describe_demo(settings),
    ]
    if is_single:
        lines.append(f"Memory: everybody's is that of the user {settings.default_user!r}")
    if settings.ui.enabled:
        opens = "`mnemogate ui` opens it" if settings.database.url is None else "an operator key opens it"
        lines.append(f"Page: {local_url}/ui ({opens})")
    example = _EXAMPLE.format(
        url=local_url,
        key=choose_example_key(settings, has_keys=has_keys),
        model=choose_example_model(settings),
        user="" if is_single else 'user="alice", ',
    )
    return "\n".join([*lines, "", example])


def _describe_background_model(settings: Settings) -> list[str]:
    """Returns a line about the background model, unless the settings name it."""
    if settings.background_model is None:
        return [
            "Background model: none; memory.background_model names one, to note facts and to write summaries"
        ]
    if settings.memory.background_model is None:
        return [f"Background model: {settings.background_model}, the cheapest of [[models]]"]
    return []


def _describe_demo(settings: Settings) -> list[str]:
    """Returns a line that shows how to see memory tools at work, if the built-in profile is there."""
    demo = settings.find_profile(DEMO_PROFILE.name)
    if demo is None or demo.model != DEMO_PROFILE.model:
        return []
    with_user = "" if settings.memory.single_user else " with a `user`,"
    model_field = f'model="{AGENT_PREFIX}{demo.name}"'
    return [f'Say "remember: I like tea" to {model_field}{with_user} and it uses its memory tools.']


def _describe_upstream(upstream: UpstreamSettings) -> str:
    """Returns where an upstream is, and which key it gets."""
    if upstream.kind == "scripted":
        return "built in, no key needed"
    key_note = ", with the caller's own key" if upstream.gets_caller_key else ""
    return f"{upstream.base_url or upstream.kind}{key_note}"


def choose_example_key(settings: Settings, *, has_keys: bool) -> str:
    """Returns the `api_key` of the example. has_keys: True if the gateway has keys, so that requests need one."""
    if has_keys:
        return "mg-..."
    upstream = settings.upstreams[0]
    with suppress(UnknownModel):
        upstream = settings.get_upstream(resolve_route(settings, choose_example_model(settings)).upstream)
    return "sk-..." if upstream.gets_caller_key else "none"


def choose_example_model(settings: Settings) -> str:
    """Returns a model name that is answered here, for the example; "..." where the settings name none."""
    names = [model.alias for model in settings.models]
    if settings.upstreams[0].kind != "scripted":
        names += [f"{AGENT_PREFIX}{profile.name}" for profile in settings.profiles if profile.model]
    for upstream in settings.upstreams:
        names.append(_EXAMPLE_MODELS.get((upstream.base_url or upstream.kind).rstrip("/"), ""))
    for name in filter(None, names):
        with suppress(UnknownModel):
            resolve_route(settings, name)
            return name
    return "..."
