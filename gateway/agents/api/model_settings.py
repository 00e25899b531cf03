"""The settings of an agent's model in bodies, and their effect on an agent's definition.

A body has them as fields of its own, in `model_settings`, and in the older object `llm_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias, TypedDict

from msgspec import Meta, Struct

from gateway.agents.wire.faults import Unprocessable
from gateway.agents.wire.struct_fields import partly_honoured
from gateway.core.definition import AgentDefinition
from gateway.validation import InvalidValue, Path, convert

_MAX_TOKENS = 100_000_000
# A system text, a note and a reply take some hundreds of tokens, so no prompt fits into a smaller window.
WindowTokens = Annotated[int, Meta(ge=1000, le=_MAX_TOKENS)]
# A limit of tokens.
Tokens = Annotated[int, Meta(ge=1, le=_MAX_TOKENS)]
# The name of a model in `llm_config`; "": it is not given.
_MaybeModelName = Annotated[str, Meta(pattern=r"^$|\S", max_length=200)]


class _TextFormat(Struct, tag_field="type", tag="text"):
    """A `response_format` for a reply in words."""


class _ObjectFormat(Struct, tag_field="type", tag="json_object"):
    """A `response_format` for a reply that is a JSON object."""


class _SchemaFormat(Struct, tag_field="type", tag="json_schema"):
    """A `response_format` for a reply that follows a JSON schema."""

    json_schema: dict[str, Any]


_ResponseFormat: TypeAlias = _TextFormat | _ObjectFormat | _SchemaFormat


class _Reasoning(TypedDict, total=False):
    """The `reasoning` of `model_settings`. Its other fields are stored."""

    reasoning_effort: str | None


# The fields of `llm_config` and of `model_settings` that have an effect, with their types. Other fields are stored.
_LLM_TYPES: dict[str, Any] = {
    "handle": _MaybeModelName, "model": _MaybeModelName, "context_window": int, "temperature": float,
    "max_tokens": Tokens, "reasoning_effort": str, "put_inner_thoughts_in_kwargs": bool, "parallel_tool_calls": bool,
}  # fmt: skip
SETTINGS_TYPES: dict[str, Any] = {
    "temperature": float, "parallel_tool_calls": bool, "response_format": _ResponseFormat, "verbosity": str,
    "thinking": dict, "max_output_tokens": Tokens, "effort": str, "reasoning": _Reasoning,
}  # fmt: skip
_PLAIN_SETTINGS = ("temperature", "parallel_tool_calls", "response_format", "verbosity", "thinking")
# The fields of `model_settings` that are in a definition's sampling, with their names there. The reasoning effort has
# no entry, since it has two forms in `model_settings`.
SAMPLING_SETTINGS = {**{name: name for name in _PLAIN_SETTINGS}, "max_output_tokens": "max_tokens"}
# The fields of `model_settings` that depend on the model's provider, so a change of the model drops them. The value of
# `effort` is in the sampling, and stays; the field says that the client reads the value under this name.
PROVIDER_SETTINGS = frozenset(("provider_type", "effort"))
# The annotations of `llm_config` and of `model_settings` in bodies.
LLM_CONFIG = partly_honoured(*_LLM_TYPES)
SETTINGS = partly_honoured(*SETTINGS_TYPES, "provider_type")


def read_model(definition: AgentDefinition, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a definition by the fields about the model.

    A field of the body takes precedence over the same value in the older objects `llm_config` and `model_settings`.

    fields: the fields of the body that were sent, without nulls.

    Raises: Unprocessable.
    """
    sampling = dict(definition.sampling)
    config = fields.get("llm_config", {})
    for name in ("temperature", "max_tokens", "reasoning_effort", "parallel_tool_calls"):
        _copy_or_remove(config, name, sampling)
    set_sampling(sampling, fields.get("model_settings", {}))
    _check_types(fields, ("body",), {"response_format": _ResponseFormat})
    for name in ("max_tokens", "response_format", "parallel_tool_calls"):
        _copy_or_remove(fields, name, sampling)
    return {**_read_llm_config(config, fields), "sampling": sampling}


def _read_llm_config(config: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the changes of a definition, besides its sampling, by the older object `llm_config`.

    fields: the fields of the body that has the object.

    Raises: Unprocessable.
    """
    _check_types(config, ("body", "llm_config"), _LLM_TYPES)
    values: dict[str, Any] = {}
    model = config.get("handle") or config.get("model")
    if model and "model" not in fields:
        values["model"] = model
    if config.get("context_window") and "context_window_limit" not in fields:
        _check_types(config, ("body", "llm_config"), {"context_window": WindowTokens})
        values["context_window"] = config["context_window"]
    if config.get("put_inner_thoughts_in_kwargs") is not None:
        values["thinks_aloud"] = config["put_inner_thoughts_in_kwargs"]
    return values


def set_sampling(sampling: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Copies the settings of a model that have an effect on its replies. Raises: Unprocessable."""
    _check_types(settings, ("body", "model_settings"), SETTINGS_TYPES)
    for name, sampling_name in SAMPLING_SETTINGS.items():
        _copy_or_remove(settings, name, sampling, sampling_name)
    _copy_or_remove(settings, "effort", sampling, "reasoning_effort")
    _copy_or_remove(settings.get("reasoning") or {}, "reasoning_effort", sampling)


def _check_types(values: Mapping[str, Any], path: Path, types: Mapping[str, Any]) -> None:
    """Checks the values that have an effect; other values may be anything.

    path: the path of the values in the request.

    Raises: Unprocessable.
    """
    for name, value_type in types.items():
        if values.get(name) is not None:
            try:
                convert(values[name], value_type, (*path, name))
            except InvalidValue as error:
                raise Unprocessable(error.fault) from error


def _copy_or_remove(
    source: Mapping[str, Any], key: str, target: dict[str, Any], name: str | None = None
) -> None:
    """Copies a value that `source` has into `target`; a null removes the value in `target`.

    key: the key in `source`.
    name: the key in `target`; None: the same key.
    """
    if key in source:
        name = name or key
        if source[key] is None:
            target.pop(name, None)
        else:
            target[name] = source[key]
