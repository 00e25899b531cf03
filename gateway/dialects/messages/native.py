"""A request to Anthropic's Messages API that goes upstream in this dialect, with memory put into its value.

The memory section is a text block after the client's system blocks, a note is a text block before the person's words,
and a reply with hidden rounds becomes the messages that the model had. No cache mark is added, moved or removed, and
all other parts of the request stay as they came. (platform.claude.com/docs/en/api/messages)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from adapters.claude.content import make_assistant_blocks, make_tool_result, make_user_blocks
from adapters.claude.error_form import Untranslatable
from adapters.claude.history import find_unanswered_calls, without_unanswered_calls
from adapters.claude.model_traits import binds_thoughts
from adapters.claude.reply import choose_next_block_index
from adapters.types import NATIVE_REPLY, Json
from gateway.core.conversation.wire_message import list_raw_calls, read_call_id, read_text
from gateway.core.lenient import as_list
from gateway.core.request.edit import BodyEdit
from gateway.core.request.envelope import read_thinking_budget
from gateway.core.request.native_body import NO_CHANGES, MessageThread, NativeChanges, UpstreamBody
from gateway.dialects.messages.content import THOUGHT_TYPES
from gateway.dialects.messages.message_origin import MessageOrigin
from gateway.dialects.messages.native_thoughts import (
    allow_other_prefix,
    drop_refused_thinking,
    drop_thoughts,
    has_thoughts,
)

_CHOICE_TYPES: Final = {"none": "none", "auto": "auto", "required": "any"}
_CACHE_MARK: Final = "cache_control"


class _PlacedNote(NamedTuple):
    """A note in a message of the request."""

    # The index of the block with which the person's words begin: the note goes before this block.
    words_block: int
    # The text of the note.
    text: str


class _DroppedParts(NamedTuple):
    """The parts of the client's messages that are left out, by the indexes of the messages."""

    # The indexes of the messages that are left out.
    whole_messages: set[int]
    # The indexes of the result blocks that other messages lose, by the indexes of these messages.
    result_blocks: dict[int, set[int]]


class NativeMessages(Struct, frozen=True):
    """A request that goes to an upstream of its own dialect. Implements `NativeBody`."""

    # The body as it came.
    raw: bytes
    # The parsed value of the body.
    json: Json
    # For each message of the chat completion that memory reads, the part of `json` of which it is made. (A `chat_index`
    # is an index in that chat completion; other indexes of messages are those in `json`.)
    origins: Sequence[MessageOrigin]
    # The path below the upstream's base URL, with the query.
    upstream_path: str
    # A function that returns the body with another model's name.
    with_model: Callable[[str], bytes]
    # The thread to which the request belongs; None: the request has all messages of its conversation.
    thread: MessageThread | None = None
    # The names of parts without which no model of another dialect can answer.
    untranslatable: Sequence[str] = ()

    def with_messages_before(self, count: int) -> NativeMessages:
        """Returns a copy of the request for a chat completion that has `count` more messages at its beginning."""
        return replace(self, origins=[*([MessageOrigin(-1)] * count), *self.origins])

    def render(self, model: str, changes: NativeChanges = NO_CHANGES) -> UpstreamBody:
        """Returns the request for the upstream."""
        if self.thread is not None and self.thread.previous is not None:
            # The upstream has had the system prompt and the tools since the thread began, and refuses them now.
            changes = replace(changes, system=(), tools=())
        messages = self._edit_messages(changes)
        members = self._change_members(changes, messages)
        betas: Sequence[str] = ()
        consumed: Sequence[str] = ()
        if changes.is_fallback:
            change = drop_refused_thinking(self.json, model)
            members |= change.members
            consumed = change.left_out
            if has_thoughts(messages):
                members |= drop_thoughts({**self.json, **members}, messages)
        elif binds_thoughts(model) and self._may_move_thoughts(changes):
            change = allow_other_prefix({**self.json, **members}, messages)
            members |= change.members
            betas = change.betas
        has_same_model = model == self.json.get("model")
        if not members:
            return UpstreamBody(self.raw if has_same_model else self.with_model(model))
        if not has_same_model:
            members["model"] = model
        return UpstreamBody(
            self._replace_members(members), betas, choose_next_block_index([*changes.hidden_rounds]), consumed
        )

    def _change_members(self, changes: NativeChanges, messages: list[Json]) -> Json:
        """Returns the members of the body that the changes touch. messages: the messages, from `_edit_messages`."""
        members: Json = {}
        if messages is not self.json["messages"]:
            members["messages"] = messages
        system = self._extend_system(changes)
        if system is not self.json.get("system"):
            members["system"] = system
        if changes.tools:
            members["tools"] = [*as_list(self.json.get("tools")), *map(_translate_tool, changes.tools)]
        members |= _make_container_member(self.json.get("container"), changes.hidden_rounds)
        if changes.max_tokens is not None:
            # The API refuses a limit that the thoughts alone may reach, so a late round gets a higher limit.
            members["max_tokens"] = max(changes.max_tokens, read_thinking_budget(self.json) + 1)
        choice = changes.tool_choice.get("tool_choice")
        if choice is not None and ("tools" in members or "tools" in self.json):
            members["tool_choice"] = _translate_choice(choice)
        return members

    def _replace_members(self, members: Json) -> bytes:
        """Returns the body with these members in place of its own. A member with the value None is left out."""
        edit = BodyEdit(self.raw, self.json)
        for key, value in members.items():
            if value is None:
                edit.drop_member(key)
            else:
                edit.set_member(key, value)
        return edit.render()

    # -- the system prompt

    def _extend_system(self, changes: NativeChanges) -> Any:
        """Returns the system prompt with the texts that are added to it, in the client's form: a text or blocks."""
        system = self.json.get("system")
        texts = [text for text in changes.system if text]
        if not texts:
            return system
        if isinstance(system, list):
            return [*system, *({"type": "text", "text": text} for text in texts)]
        return "\n\n".join((*([system] if system else ()), *texts))

    # -- the messages

    def _edit_messages(self, changes: NativeChanges) -> list[Json]:
        """Returns the messages for the upstream: the same list where nothing is added or left out."""
        client_messages: list[Json] = self.json["messages"]
        replacements = self._map_restored_replies(changes)
        dropped = changes.dropped | {
            chat_index for chat_index, replacement in changes.replacements.items() if not replacement
        }
        notes = self._place_notes(changes.notes)
        if not (replacements or notes or dropped or changes.stored_messages or changes.hidden_rounds):
            return client_messages
        dropped_parts = self._split_dropped(dropped)
        upstream_messages = _translate(
            [_split_note(message, note) for message, note in changes.stored_messages]
        )
        ends_with_added = bool(upstream_messages)
        for index, message in enumerate(client_messages):
            if index in dropped_parts.whole_messages:
                continue
            if index in replacements:
                upstream_messages += _move_cache_mark(_restore_reply(replacements[index], message), message)
                ends_with_added = True
                continue
            dropped_results = dropped_parts.result_blocks.get(index, ())
            edited_message = _edit_message(message, dropped_results, notes.get(index))
            if edited_message is None:
                continue
            role = edited_message.get("role")
            added_role = upstream_messages[-1]["role"] if ends_with_added and upstream_messages else None
            if role == added_role:
                # The results of the gateway's tools and of the client's tools are one message, the gateway's first. So
                # are a stored reply and what was heard of a reply off the record after it.
                content = _join_results_first([upstream_messages[-1], edited_message])
                upstream_messages[-1] = {"role": role, "content": content}
            else:
                upstream_messages.append(edited_message)
            ends_with_added = False
        # A reply may have been broken off between a hidden round and the results of the server's tools after it. Calls
        # without results in the client's own messages are the client's, and so is the upstream's error about them.
        client_calls = find_unanswered_calls(
            [message for index, message in enumerate(client_messages) if index not in replacements]
        )
        upstream_messages += _translate(changes.hidden_rounds)
        return without_unanswered_calls(upstream_messages, exempt=client_calls)

    def _map_restored_replies(self, changes: NativeChanges) -> dict[int, Sequence[Json]]:
        """Returns the replies that get their hidden rounds back: index in the client's messages -> the rounds."""
        return {
            self.origins[chat_index].message_index: replacement
            for chat_index, replacement in changes.replacements.items()
            # A reply of one round stays as the client has sent it, with the thoughts that the client still has.
            if len(replacement) > 1
        }

    def _place_notes(self, notes: Mapping[int, str]) -> dict[int, _PlacedNote]:
        """Returns the notes by the indexes of the client's messages, each with its position in the message."""
        placed_notes = {}
        for chat_index, note in notes.items():
            origin = self.origins[chat_index]
            if note and origin.words_block is not None:
                placed_notes[origin.message_index] = _PlacedNote(origin.words_block, note)
        return placed_notes

    def _split_dropped(self, dropped: Set[int]) -> _DroppedParts:
        """Returns the parts of the request of which dropped messages are made. dropped: the messages' chat indexes."""
        remaining = {
            origin.message_index
            for chat_index, origin in enumerate(self.origins)
            if chat_index not in dropped
        }
        whole_messages: set[int] = set()
        result_blocks: dict[int, set[int]] = {}
        for origin in (self.origins[chat_index] for chat_index in dropped):
            if origin.message_index not in remaining:
                whole_messages.add(origin.message_index)
            elif origin.result_block is not None:
                result_blocks.setdefault(origin.message_index, set()).add(origin.result_block)
        return _DroppedParts(whole_messages, result_blocks)

    def _may_move_thoughts(self, changes: NativeChanges) -> bool:
        """Returns whether the messages before a thought may differ from those that the model had when it thought."""
        # A stored message may have another form than it had when it came.
        if changes.changes_prefix or changes.stored_messages:
            if not changes.moves_hidden_rounds:
                # The model has seen all messages of this turn's own rounds as they are.
                changes = replace(changes, hidden_rounds=())
            return has_thoughts(self._edit_messages(changes))
        # The client's own changes are the client's responsibility. But it cannot correct thoughts that it has not sent.
        return any(
            has_thoughts(_translate(replacement))
            and not has_thoughts([self._find_client_message(chat_index)])
            for chat_index, replacement in changes.replacements.items()
            if len(replacement) > 1
        )

    def _find_client_message(self, chat_index: int) -> Json:
        """Returns the client's message of which a message of the chat completion is made."""
        message: Json = self.json["messages"][self.origins[chat_index].message_index]
        return message


def _edit_message(
    message: Json, dropped_results: Collection[int], placed_note: _PlacedNote | None
) -> Json | None:
    """Returns a message without some results, and with a note before the person's words; None: no block remains."""
    if dropped_results:
        remaining = [block for index, block in enumerate(message["content"]) if index not in dropped_results]
        if not remaining:
            return None
        message = {**message, "content": remaining}
    if placed_note is None:
        return message
    dropped_before = sum(index < placed_note.words_block for index in dropped_results)
    return _insert_note(message, placed_note.words_block - dropped_before, placed_note.text)


def _insert_note(message: Json, index: int, note: str) -> Json:
    """Returns a message with a note in a block of its own. index: the index of the block after the note."""
    content = message["content"]
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    return {**message, "content": [*blocks[:index], {"type": "text", "text": note}, *blocks[index:]]}


def _split_note(message: Json, note: str) -> Json:
    """Returns a stored message with its note in a part of its own, as it stands in the client's messages."""
    content = message.get("content")
    if not note or not isinstance(content, str) or not content.startswith(note):
        return message
    parts = [{"type": "text", "text": note}, {"type": "text", "text": content[len(note) :]}]
    return {**message, "content": parts}


def _translate(chat_messages: Sequence[Json]) -> list[Json]:
    """Returns messages of a chat completion in this dialect; the results of a reply's calls are one message.

    A message that has no form in this dialect becomes its text, and its calls and their results are left out.
    """
    translated: list[Json] = []
    calls_left_out: set[str] = set()
    for index, message in enumerate(chat_messages):
        if message.get("tool_call_id") in calls_left_out:
            continue
        try:
            blocks = _translate_to_blocks(message, f"messages[{index}]")
        except Untranslatable:
            calls_left_out.update(map(read_call_id, list_raw_calls(message)))
            blocks = make_user_blocks({"content": read_text(message)}, "")
        role = "assistant" if message.get("role") == "assistant" else "user"
        if not blocks:
            continue
        if translated and translated[-1]["role"] == role:
            translated[-1] = {"role": role, "content": [*translated[-1]["content"], *blocks]}
        else:
            translated.append({"role": role, "content": blocks})
    return translated


def _restore_reply(replacement: Sequence[Json], message: Json) -> list[Json]:
    """Returns a reply with its hidden rounds, translated.

    A reply that was paused after its hidden rounds is stored only up to the pause. Then the part after the rounds is
    made of the client's blocks, which have the results of the server's tools that came after the pause.

    replacement: the messages of the chat completion that stand for the reply.
    message: the reply as the client has it.
    """
    *rounds, stored_reply = replacement
    client_blocks = _list_blocks_after_rounds(rounds, message) if stored_reply["role"] == "assistant" else []
    stored_blocks = (stored_reply.get(NATIVE_REPLY) or {}).get("content") or []
    client_text = "".join(read_text({"content": [block]}) for block in client_blocks)
    if len(client_blocks) > len(stored_blocks) and client_text.strip() == read_text(stored_reply).strip():
        return [*_translate(rounds), {"role": "assistant", "content": client_blocks}]
    return _translate(replacement)


def _list_blocks_after_rounds(rounds: Sequence[Json], message: Json) -> list[Json]:
    """Returns the client's blocks after the blocks of hidden rounds; []: the client lacks some of these."""
    native_replies = [reply.get(NATIVE_REPLY) or {} for reply in rounds if reply["role"] == "assistant"]
    if not all(native_replies):
        return []
    streamed = [block for native in native_replies for block in as_list(native.get("content"))]
    thoughts = [block for block in streamed if block.get("type") in THOUGHT_TYPES]
    # The calls are the gateway's, and a client may have dropped the thoughts.
    visible = [block for block in streamed if block not in thoughts and block.get("type") != "tool_use"]
    blocks = [block for block in as_list(message.get("content")) if block not in thoughts]
    client_forms = [_make_type_and_text(block) for block in blocks[: len(visible)]]
    return blocks[len(visible) :] if client_forms == [_make_type_and_text(block) for block in visible] else []


def _make_type_and_text(block: Json) -> tuple[Any, Any]:
    return block.get("type"), block.get("text")


def _translate_to_blocks(message: Json, path: str) -> list[Json]:
    match message.get("role"):
        case "assistant":
            return make_assistant_blocks(message, path)
        case "tool":
            return [make_tool_result(message, path)]
    # A system message here is the gateway's own, in the middle of a conversation.
    return make_user_blocks(message, path)


def _join_results_first(messages: Sequence[Json]) -> list[Json]:
    blocks: list[Json] = []
    for message in messages:
        content = message["content"]
        blocks += content if isinstance(content, list) else [{"type": "text", "text": content}]
    return sorted(blocks, key=lambda block: block.get("type") != "tool_result")


def _move_cache_mark(replacement: list[Json], message: Json) -> list[Json]:
    """Returns the messages that replace a message. If it ends with a cache mark, the last of them gets the mark."""
    content = message.get("content")
    last_block = content[-1] if isinstance(content, list) and content else {}
    if _CACHE_MARK not in last_block or not replacement:
        return replacement
    *earlier_messages, last_message = replacement
    *earlier_blocks, last_new_block = last_message["content"]
    if last_new_block.get("type") in THOUGHT_TYPES:
        return replacement
    marked_block = {**last_new_block, _CACHE_MARK: last_block[_CACHE_MARK]}
    return [*earlier_messages, {**last_message, "content": [*earlier_blocks, marked_block]}]


def _make_container_member(container: Any, hidden_rounds: Sequence[Json]) -> Json:
    """Returns the member `container` for the call after hidden rounds: the last container that a round has used.

    container: the client's container. A container with an id stays, so no member is returned. A container without an
        id names the skills of a new container; the skills stay.
    """
    if container is not None and not (isinstance(container, dict) and container.get("id") is None):
        return {}
    for message in reversed(hidden_rounds):
        used_container = (message.get(NATIVE_REPLY) or {}).get("container")
        if used_container:
            container_id = used_container["id"]
            if container is None:
                return {"container": container_id}
            return {"container": {**container, "id": container_id}}
    return {}


def _translate_tool(tool: Json) -> Json:
    function: Mapping[str, Any] = tool["function"]
    return {
        "name": function["name"],
        "description": function.get("description") or "",
        "input_schema": function.get("parameters") or {"type": "object"},
    }


def _translate_choice(choice: Any) -> Json:
    if isinstance(choice, dict):
        return {"type": "tool", "name": choice["function"]["name"]}
    return {"type": _CHOICE_TYPES[choice]}
