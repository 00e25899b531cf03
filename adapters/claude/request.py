"""The translation of a chat completion request into a request of the Messages API (`claude_request`). Pure.

Fields that both dialects have are translated. Fields that only OpenAI's has are refused by name, unless their value
asks for nothing. All other fields are passed on as they are, for Anthropic to judge.
(platform.claude.com/docs/en/api/messages)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from adapters.claude.cache_marks import place_marks
from adapters.claude.error_form import Untranslatable
from adapters.claude.history import arrange_turns
from adapters.claude.model_traits import ModelTraits, find_max_temperature, get_traits
from adapters.claude.thinking import drop_refused_thinking, drop_unbound_thoughts, set_effort
from adapters.claude.tool_schemas import translate_answer_schema, translate_tool_choice, translate_tools
from adapters.types import Json

_JSON_ONLY: Final = "Answer with a single JSON object and nothing else: no other text, no code fence."

# Fields that do not pass as they are: they are translated below, or mean nothing to Anthropic (`prompt_cache_key` only
# hints at which machine has the prefix, and `prompt_cache_options` at what to cache). Of `metadata` and
# `stream_options` only the parts that are read here have a counterpart at Anthropic's.
_TRANSLATED_FIELDS: Final = frozenset(
    (
        *("max_completion_tokens", "max_tokens", "messages", "metadata", "model", "output_config"),
        *("parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("reasoning_effort", "response_format", "safety_identifier", "service_tier", "stop", "stream"),
        *("stream_options", "system", "tool_choice", "tools", "user"),
    )
)
# Fields that only OpenAI has, each with the value that asks for nothing; null asks for nothing, either.
_OPENAI_FIELD_DEFAULTS: Final[Json] = {
    **dict.fromkeys(("audio", "prediction", "seed", "web_search_options")),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "top_logprobs"), 0),
    **dict.fromkeys(("logprobs", "store"), False),
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "n": 1,
    "verbosity": "medium",
}
_NOT_COPIED_FIELDS: Final = _TRANSLATED_FIELDS | _OPENAI_FIELD_DEFAULTS.keys()
# OpenAI's `service_tier` -> Anthropic's, whose own names are taken as well.
_TIERS: Final = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
# The form of an id that `metadata.user_id` may have; 256 characters are the API's limit.
_PLAIN_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,256}")
_PHONE: Final = re.compile(r"[\d-]{7,}")


def translate_request(
    body: Json, *, max_tokens_by_model: Mapping[str, int] | None = None, places_marks: bool = True
) -> Json:
    """Returns the request for the Messages API.

    body: a chat completion request.
    max_tokens_by_model: the most tokens that a model may write, by its name, for the models with a known limit.
    places_marks: True to place cache marks; False if the client has placed marks of its own.

    Raises: Untranslatable: names the field that the Messages API has no word for.
    """
    _check_fields(body)
    model = body.get("model")
    model_name = model if isinstance(model, str) else ""
    traits = get_traits(model_name)
    history = arrange_turns(body.get("messages") or (), takes_late_system=traits.takes_late_system)
    claude_request: Json = {
        "model": model,
        "max_tokens": _read_max_tokens(body, max_tokens_by_model or {}, traits.max_tokens),
    }
    _set_tools(claude_request, body)
    claude_request |= {
        key: value for key, value in body.items() if key not in _NOT_COPIED_FIELDS and value is not None
    }
    max_temperature = find_max_temperature(model_name)
    if max_temperature is not None:
        _drop_default_sampling(claude_request, max_temperature)
    if body.get("stream"):
        claude_request["stream"] = True
    _set_stop(claude_request, body.get("stop"))
    _set_user(claude_request, body)
    _set_tier(claude_request, body.get("service_tier"))
    _set_output(claude_request, body, traits)
    system = [
        *_read_system_field(body.get("system")),
        *history.system,
        *_make_format_prompt(body.get("response_format")),
    ]
    if system:
        claude_request["system"] = system
    claude_request["messages"] = history.messages
    drop_refused_thinking(claude_request)
    if traits.binds_thoughts:
        drop_unbound_thoughts(claude_request)
    if places_marks:
        place_marks(claude_request, _read_cache_ttl(body.get("prompt_cache_retention")))
    return claude_request


def _check_fields(body: Json) -> None:
    """Refuses a field that only OpenAI has, if its value asks for something. Raises: Untranslatable."""
    for key, default in _OPENAI_FIELD_DEFAULTS.items():
        if (value := body.get(key)) is not None and value != default:
            raise Untranslatable(f"`{key}` is not supported by this model's provider (Anthropic).", key)


def _set_tools(claude_request: Json, body: Json) -> None:
    """Sets `tools` and `tool_choice`. Raises: Untranslatable."""
    tools = translate_tools(body.get("tools") or [])
    if tools:
        claude_request["tools"] = tools
    choice = translate_tool_choice(
        body.get("tool_choice"), body.get("parallel_tool_calls"), has_tools=bool(tools)
    )
    if choice is not None:
        claude_request["tool_choice"] = choice


def _read_max_tokens(body: Json, max_tokens_by_model: Mapping[str, int], default: int) -> Any:
    for key in ("max_completion_tokens", "max_tokens"):
        if body.get(key) is not None:
            return body[key]
    return max_tokens_by_model.get(body.get("model") or "", default)


def _read_system_field(system: Any) -> list[Json]:
    """Returns the blocks of the field `system`, which OpenAI's dialect lacks: only clients made for Claude send it."""
    if isinstance(system, str):
        return [{"type": "text", "text": system}] if system.strip() else []
    if system is None:
        return []
    if isinstance(system, list) and all(isinstance(block, dict) for block in system):
        return system
    raise Untranslatable(
        f"`system` is a text or a list of blocks, and not a value of type {type(system).__name__}.",
        "system",
        "invalid_type",
    )


def _drop_default_sampling(claude_request: Json, max_temperature: float) -> None:
    """Drops a temperature and a `top_p` of 1. They are Claude's defaults, and many applications send both.

    Claude's models refuse both fields together from 4.1 on, and each of them with another value from 4.7 on. A higher
    temperature becomes the default.

    max_temperature: the highest temperature of the model, which is its default.
    """
    temperature: Any = claude_request.get("temperature")
    is_number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if is_number and temperature >= max_temperature:
        del claude_request["temperature"]
    top_p = claude_request.get("top_p")
    if top_p == 1 and not isinstance(top_p, bool):
        del claude_request["top_p"]


def _set_stop(claude_request: Json, stop: Any) -> None:
    if stop is not None and stop != []:
        claude_request["stop_sequences"] = [stop] if isinstance(stop, str) else stop


def _set_user(claude_request: Json, body: Json) -> None:
    metadata = body.get("metadata")
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    user = user_id or body.get("user") or body.get("safety_identifier")
    if user not in (None, ""):
        claude_request["metadata"] = {"user_id": _anonymize(user) if isinstance(user, str) else user}


def _anonymize(user: str) -> str:
    """Returns an id without personal data: the API refuses an id with an email address or a phone number in it."""
    if _PLAIN_ID.fullmatch(user) and not _PHONE.fullmatch(user):
        return user
    return hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()


def _set_tier(claude_request: Json, tier: Any) -> None:
    if tier is None:
        return
    if not isinstance(tier, str) or tier not in _TIERS:
        raise Untranslatable(
            f"There is no service tier {tier!r} at this model's provider. Send 'auto' or 'default'.",
            "service_tier",
        )
    claude_request["service_tier"] = _TIERS[tier]


def _make_format_prompt(response_format: Any) -> list[Json]:
    """Returns the system blocks that ask for JSON where the API has no mode for it.

    OpenAI demands of its clients that the prompt asks for it, too.
    """
    asks_json = isinstance(response_format, dict) and response_format.get("type") == "json_object"
    return [{"type": "text", "text": _JSON_ONLY}] if asks_json else []


def _set_output(claude_request: Json, body: Json, traits: ModelTraits) -> None:
    """Sets `output_config`: the reasoning effort, and the schema of the answer."""
    sent_config = body.get("output_config")
    config: Json = dict(sent_config) if isinstance(sent_config, dict) else {}
    set_effort(claude_request, config, body.get("reasoning_effort"), traits)
    match body.get("response_format"):
        case None | {"type": "text"}:
            pass
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            config["format"] = {"type": "json_schema", "schema": translate_answer_schema(schema)}
        case {"type": "json_object"}:
            pass  # `_make_format_prompt` asks for it
        case _:
            raise Untranslatable(
                "This `response_format` is not supported here. Send `text`, `json_object`, or `json_schema` with a "
                "schema.",
                "response_format",
            )
    if config:
        claude_request["output_config"] = config


def _read_cache_ttl(retention: Any) -> str | None:
    """Returns the `ttl` of the cache marks; None: the API's default. OpenAI's SDKs spell `in_memory` in two ways."""
    if retention in (None, "in_memory", "in-memory"):
        return None
    if retention == "24h":
        return "1h"  # the longest there is
    raise Untranslatable(
        f"There is no cache retention {retention!r} here.", "prompt_cache_retention", "invalid_value"
    )
