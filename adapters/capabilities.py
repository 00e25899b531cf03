"""The capabilities of upstreams. They are data: a row of `providers.py` has those of a provider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

# Whether an upstream has `/responses`. "stored": the upstream stores responses, and has the routes of stored responses.
# "stateless": the upstream stores no responses. False: the upstream has no such endpoint.
ResponsesEndpoint = Literal["stored", "stateless", False]


# The defaults of capabilities that depend on the model.
def _always(model: str) -> bool:
    return True


def _never(model: str) -> bool:
    return False


def allow_any_effort(model: str) -> None:
    """Returns None: a model may be asked for any effort (`Capabilities.effort_with_tools`)."""


def _know_no_maximum(model: str) -> None:
    """Returns None: no highest temperature is known (`Capabilities.max_temperature`)."""


def _refuse_no_field(model: str) -> frozenset[str]:
    return frozenset()


class Capabilities(Struct, frozen=True):
    """The capabilities of an upstream on which the gateway acts. The defaults are those of an unknown upstream.

    The abilities of models (tools, images, schemas) have no field here: a request that needs them goes upstream, and
    the upstream answers.
    """

    # True if the upstream takes `max_completion_tokens`; False: the gateway's own calls send the older `max_tokens`.
    max_completion_tokens: bool = False
    # True if the upstream has the role `developer`; False: the gateway sends `system` instead; None: not known.
    developer_role: bool | None = None
    # True if the upstream takes `metadata` without `store`; False: `metadata` is dropped from requests without `store`.
    metadata: bool = False
    # The upstream takes `stream_options.include_usage`. True: the gateway adds this field where hidden rounds share a
    # client's limit, and where a client always gets the usage. None: not known, so the field is added only where a
    # client always gets the usage.
    stream_usage: bool | None = None
    # "stored": the upstream has `/responses` and stores responses, so requests to `/responses` go upstream as they are.
    # "stateless" (it stores no responses) and False (it has no `/responses`): the gateway answers by way of chat
    # completions.
    responses: ResponsesEndpoint = False
    # True if its chat completions take OpenAI's custom tools, and `allowed_tools` among the choices.
    custom_tools: bool = False
    # True if its chat completions take Claude's web search among the tools.
    web_search: bool = False
    # True if the upstream speaks Anthropic's Messages API itself, so requests in this dialect go upstream as they are.
    speaks_messages: bool = False
    # True if the upstream counts the tokens of a request (`COUNT_TOKENS_PATH`) without answering the request.
    counts_tokens: bool = False
    # Returns for a model's name whether its thoughts are valid only after the messages that they were about.
    binds_thoughts: Callable[[str], bool] = _never
    # Returns for a model's name whether it thinks only when the request asks it to.
    thinks_on_request: Callable[[str], bool] = _never
    # True if pieces of tool calls in its streams have no `index`, so the adapter adds one.
    omits_call_index: bool = False
    # True if the upstream takes tool calls with ids of any form; False: only ids of the form that it makes itself.
    any_call_id: bool = True
    # True if the upstream refuses tool calls without its signature, unless they have the mark of unsigned calls.
    requires_call_signatures: bool = False
    # True if the upstream takes replies without `reasoning_content` in a request with tools. False: each reply needs
    # this field, perhaps empty, and the upstream's models think without being asked, and cannot be forced to call a
    # tool.
    replies_without_thoughts: bool = True
    # Fields of a chat completion that the translation drops, since the upstream's dialect has no place for them.
    untranslatable_fields: tuple[str, ...] = ()
    # Returns for a model's name the highest temperature that it takes, which is its default: the translation leaves a
    # higher one out, and the reply's headers name the field. None: no highest temperature is known.
    max_temperature: Callable[[str], float | None] = _know_no_maximum
    # True if a model that is asked to think can be forced to call a tool.
    can_force_when_thinking: bool = True
    # Returns for a model's name whether it can be forced to call a tool at all.
    can_force: Callable[[str], bool] = _always
    # Returns for a model's name the effort that a chat completion with functions must name, since the model does not
    # think there; "": the request must name no effort; None: the request may name any effort.
    effort_with_tools: Callable[[str], str | None] = allow_any_effort
    # Returns for a model's name the fields that the model refuses. Such a field is left out if an agent's settings have
    # it, and sent if the application has it.
    refused_fields: Callable[[str], frozenset[str]] = _refuse_no_field
