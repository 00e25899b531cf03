"""The structs of a send's body, and of other bodies with messages. `send_content.py` reads what a send has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from gateway.agents.core.rule_guide import DEFAULT_MAX_STEPS
from gateway.agents.wire.struct_fields import READ_ONLY, Body, Maybe, NoEffect, refused

# The most steps of one send. Not measured: it bounds the calls of a model that goes on without end.
MaxSteps = Annotated[int, Meta(ge=1, le=200)]

_GROUP = refused("Send to an agent; the agents of its group read the messages that it gets.")
_STORED_SIGNATURE = refused("The signatures of thoughts are stored with these.")
_NO_LOGPROBS = refused(
    "An agent's reply is made of several model calls; ask for logprobs in a chat completion."
)
_NO_TOKEN_IDS = refused("Providers of chat completions report no token ids.")
_FINAL_THOUGHT = refused("A thought stays as its model had it.")
_FINAL_CALL = refused("A call stays as its model made it.")

MessageType = Literal[
    "system_message", "user_message", "assistant_message", "reasoning_message", "hidden_reasoning_message",
    "tool_call_message", "tool_return_message", "approval_request_message", "approval_response_message",
    "summary_message", "event_message",
]  # fmt: skip

# -- parts of a message


class TextPart(Body, tag_field="type", tag="text"):
    text: str
    signature: Annotated[str | None, _STORED_SIGNATURE] | UnsetType = UNSET


class UrlSource(Body, tag_field="type", tag="url"):
    url: str


class Base64Source(Body, tag_field="type", tag="base64"):
    data: str
    media_type: str
    detail: Maybe[str] = UNSET


class ImagePart(Body, tag_field="type", tag="image"):
    source: UrlSource | Base64Source


Parts = list[TextPart | ImagePart]

# -- messages, answers and tools of a send


class PlainMessage(Body, tag_field="type", tag="message"):
    """A message. One of the role `system` is not the user's; the model gets it as a system message at its place."""

    role: Literal["user", "system", "assistant"]
    content: str | Annotated[Parts, Meta(min_length=1)]
    name: Maybe[str] = UNSET
    otid: Maybe[str] = UNSET
    sender_id: Maybe[str] = UNSET
    group_id: Annotated[str | None, _GROUP] | UnsetType = UNSET
    batch_item_id: Annotated[str | None, READ_ONLY] | UnsetType = UNSET


class Decision(Body, tag_field="type", tag="approval"):
    """A person's answer to one call."""

    tool_call_id: str
    approve: bool
    reason: Maybe[str] = UNSET


class ToolReturn(Body, tag_field="type", tag="tool"):
    """The result of a call of one of the client's tools."""

    tool_call_id: str
    status: Literal["success", "error"]
    tool_return: str | Parts
    stdout: Maybe[list[str]] = UNSET
    stderr: Maybe[list[str]] = UNSET


class Approvals(Body, tag_field="type", tag="approval"):
    """Answers to a pause; the older form (`approve`) answers all calls that wait at once."""

    approvals: Maybe[list[Decision | ToolReturn]] = UNSET
    approve: Maybe[bool] = UNSET
    approval_request_id: Maybe[str] = UNSET
    reason: Maybe[str] = UNSET
    otid: Maybe[str] = UNSET
    group_id: Annotated[str | None, _GROUP] | UnsetType = UNSET


class ToolReturns(Body, tag_field="type", tag="tool_return"):
    tool_returns: list[ToolReturn]
    otid: Maybe[str] = UNSET
    group_id: Annotated[str | None, _GROUP] | UnsetType = UNSET


class ClientTool(Body):
    """A tool that the client runs itself."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]+$")]
    description: Maybe[str] = UNSET
    parameters: Maybe[dict[str, Any]] = UNSET


class ClientSkill(Body):
    """A file with instructions that the client has, and that its own tools read."""

    name: str
    description: str
    location: str


class Send(Body):
    """A send to an agent or to one of its conversations."""

    messages: Maybe[list[dict[str, Any]]] = UNSET
    input: Maybe[str | list[dict[str, Any]]] = UNSET
    max_steps: MaxSteps = DEFAULT_MAX_STEPS
    client_tools: Maybe[list[ClientTool]] = UNSET
    override_model: Maybe[str] = UNSET
    override_system: Maybe[str] = UNSET
    include_return_message_types: Maybe[list[MessageType]] = UNSET
    use_assistant_message: bool = True
    assistant_message_tool_name: str = "send_message"
    assistant_message_tool_kwarg: str = "message"
    streaming: bool = False
    stream_tokens: bool = False
    include_pings: bool = True
    background: bool = False
    include_compaction_messages: Maybe[bool] = UNSET
    callback_url: Maybe[str] = UNSET
    enable_thinking: NoEffect[str | bool] = UNSET
    client_skills: Maybe[list[ClientSkill]] = UNSET
    return_logprobs: Annotated[bool | None, _NO_LOGPROBS] | UnsetType = UNSET
    top_logprobs: Annotated[int | None, refused("See return_logprobs.")] | UnsetType = UNSET
    return_token_ids: Annotated[bool | None, _NO_TOKEN_IDS] | UnsetType = UNSET


class UpdateMessage(Body):
    """A new text for a stored message, as a string or as parts that are text."""

    content: Maybe[str | list[TextPart]] = UNSET
    message_type: Maybe[MessageType] = UNSET
    reasoning: Annotated[str | None, _FINAL_THOUGHT] | UnsetType = UNSET
    tool_call: Annotated[dict[str, Any] | None, _FINAL_CALL] | UnsetType = UNSET


class ResetMessages(Body):
    add_default_initial_messages: NoEffect[bool] = UNSET


class CancelRuns(Body):
    run_ids: Maybe[list[str]] = UNSET
