"""Reads the messages of a Messages request as messages of a chat completion.

A user's message has the results of calls first, then words. In a chat completion each result is a message of its own,
and so are the words. A reply is one message in both. Chat completions have no field for thoughts, which are left out.
(platform.claude.com/docs/en/api/messages)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from msgspec import Struct

from adapters.types import Json
from gateway.core.lenient import as_object, as_text
from gateway.core.prompt.frame import without_frame
from gateway.dialects.fields import QUOTED_CHARS, FieldPath, ItemPath
from gateway.dialects.messages.call_pairs import check_call_pairs
from gateway.dialects.messages.errors import make_field_error, make_untranslatable_error
from gateway.dialects.messages.field_checker import FieldChecker
from gateway.dialects.messages.message_origin import MessageOrigin

THOUGHT_TYPES: Final = ("thinking", "redacted_thinking")
_REMINDER_TAGS: Final = ("<system-reminder>", "</system-reminder>")
# The beginning of the line by which Claude Code names its version; a part of the line may change with each request.
_ATTRIBUTION_PREFIX: Final = "x-anthropic-billing-header:"

# The fields that are read, by the type of block, source or message.
_TEXT_FIELDS: Final = frozenset(("type", "text"))
_IMAGE_FIELDS: Final = frozenset(("type", "source"))
_DOCUMENT_FIELDS: Final = frozenset(("type", "source", "title", "context"))
_SEARCH_FIELDS: Final = frozenset(("type", "source", "title", "content"))
_CALL_FIELDS: Final = frozenset(("type", "id", "name", "input"))
_RESULT_FIELDS: Final = frozenset(("type", "tool_use_id", "content", "is_error"))
_REFERENCE_FIELDS: Final = frozenset(("type", "tool_name"))
_SOURCE_FIELDS: Final = frozenset(("type", "media_type", "data", "url", "content", "file_id"))
_MESSAGE_FIELDS: Final = frozenset(("role", "content"))
_TURN_CONFIG_FIELDS: Final = frozenset(("effort",))
# The fields of a system message. Its effort is that of the whole turn which has the message (`read_effort_of_turn`).
_SYSTEM_MESSAGE_FIELDS: Final = _MESSAGE_FIELDS | {"output_config"}


class TranslatedMessages(Struct, frozen=True):
    """The messages of a request as messages of a chat completion."""

    # The messages.
    messages: list[Json]
    # The origin of each message, at the same index.
    origins: list[MessageOrigin]


def read_system(system: Any, checker: FieldChecker) -> list[str]:
    """Returns the texts of a system prompt, without the attribution line. Raises: BadRequest."""
    if system is None:
        return []
    if isinstance(system, str):
        return [system] if system else []
    if not isinstance(system, list):
        raise make_field_error("system", "Input should be a valid string or list")
    texts = [_read_text(block, f"system.{index}", checker) for index, block in enumerate(system)]
    return [text for text in texts if text and not text.startswith(_ATTRIBUTION_PREFIX)]


def read_attribution(system: Any) -> str:
    """Returns the attribution line of Claude Code; "": the prompt has no such line."""
    first_block = system[0] if isinstance(system, list) and system else None
    text = as_text(as_object(first_block).get("text"))
    return text if text.startswith(_ATTRIBUTION_PREFIX) else ""


def read_messages(messages: Any, checker: FieldChecker) -> TranslatedMessages:
    """Returns messages as messages of a chat completion. Raises: BadRequest.

    checker: the checker of fields. If it is lenient, parts that a chat completion cannot have are skipped.
    """
    if messages is None:
        raise make_field_error("messages", "Field required")
    if not isinstance(messages, list):
        raise make_field_error("messages", "Input should be a valid list")
    if not messages:
        raise make_field_error("messages", "at least one message is required")
    reader = _MessageReader(checker)
    for index, message in enumerate(messages):
        reader.add(index, message)
    if not checker.is_lenient:
        check_call_pairs(reader.messages, reader.origins)
    return TranslatedMessages(reader.messages, reader.origins)


def read_effort_of_turn(messages: Sequence[Any], checker: FieldChecker) -> Any:
    """Returns the effort that a system message of the newest turn asks for; None: no message asks for an effort.

    A turn begins with a user's message that has other content than results of calls.

    Raises: BadRequest.
    """
    for index in reversed(range(len(messages))):
        message = messages[index]
        config = message.get("output_config")
        if message.get("role") == "system" and config is not None:
            path = f"messages.{index}.output_config"
            if not isinstance(config, dict):
                raise make_field_error(path, "Input should be a valid dictionary")
            checker.check(config, _TURN_CONFIG_FIELDS, path)
            if config.get("effort") is not None:
                return config["effort"]
        elif message.get("role") == "user" and not _is_tool_results(message.get("content")):
            return None
    return None


def _find_words_block(blocks: list[Any]) -> int | None:
    """Returns the index of the first block with a person's words, after results and reminders; None: no words."""
    for block_index, block in enumerate(blocks):
        text = block.get("text")
        if block.get("type") == "text" and not (isinstance(text, str) and _is_reminder(text)):
            return block_index
    return None


class _MessageReader:
    """Translates messages one by one."""

    def __init__(self, checker: FieldChecker) -> None:
        self.messages: list[Json] = []
        self.origins: list[MessageOrigin] = []
        self._checker = checker
        # The paths to the message that is read, to the block in it, and to the part of a result in the block.
        self._message_path = ItemPath("", "messages", ".{}")
        self._block_path = ItemPath(self._message_path, ".content", ".{}")
        self._part_path = ItemPath(self._block_path, ".content", ".{}")

    def add(self, message_index: int, message: Any) -> None:
        """Translates a message. message_index: its index in the request. Raises: BadRequest."""
        path = self._message_path
        path.index = message_index
        if not isinstance(message, dict):
            raise make_field_error(f"{path}", "Input should be a valid dictionary")
        role, content = message.get("role"), message.get("content")
        if content.__class__ is str and len(message) == 2 and (role == "user" or role == "assistant"):
            # The fast path, for plain text: nearly all messages.
            words_block = 0 if role == "user" and not _is_reminder(content) else None
            self._append({"role": role, "content": content}, MessageOrigin(message_index, words_block))
            return
        known_fields = _SYSTEM_MESSAGE_FIELDS if role == "system" else _MESSAGE_FIELDS
        self._checker.check(message, known_fields, path)
        match role:
            case "user":
                self._add_user_message(message_index, self._read_blocks(message))
            case "assistant":
                blocks = self._read_blocks(message)
                self._append(self._translate_reply(blocks), MessageOrigin(message_index))
            case "system":
                if content not in (None, []) or message.get("output_config") is None:
                    self._add_system_message(message_index, self._read_blocks(message))
            case _:
                raise make_field_error(f"{path}.role", "Input should be 'user', 'assistant' or 'system'")

    def _read_blocks(self, message: Json) -> list[Json]:
        """Returns the content of a message as blocks. Raises: BadRequest."""
        path = self._message_path
        content = message.get("content")
        if content is None:
            raise make_field_error(f"{path}.content", "Field required")
        if not isinstance(content, (str, list)):  # a union would be made for each message
            raise make_field_error(f"{path}.content", "Input should be a valid list")
        if content == [] and not self._checker.is_lenient:
            raise make_field_error(f"{path}", f"{message['role']} messages must have non-empty content")
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        for block_index, block in enumerate(content):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                raise make_field_error(
                    f"{path}.content.{block_index}", "Input should be a valid dictionary with a `type`"
                )
        return content

    def _add_system_message(self, message_index: int, blocks: list[Json]) -> None:
        if texts := [text for text in self._read_texts(blocks, f"{self._message_path}.content") if text]:
            self._append({"role": "system", "content": "\n\n".join(texts)}, MessageOrigin(message_index))

    def _add_user_message(self, message_index: int, blocks: list[Json]) -> None:
        """Adds each tool's result as a message, then a message with all other blocks. Raises: BadRequest."""
        parts: list[Json] = []
        path = self._block_path
        for block_index, block in enumerate(blocks):
            path.index = block_index
            if block["type"] == "tool_result":
                message, media_parts = self._translate_result(block)
                self._append(message, MessageOrigin(message_index, result_block=block_index))
                parts += media_parts
            else:
                parts += self._translate_block(block, path)
        if not parts:
            return
        # A client may send the same words as a text or as one block. Both become the same message.
        is_one_text = len(parts) == 1 and parts[0]["type"] == "text"
        content: str | list[Json] = parts[0]["text"] if is_one_text else parts
        self._append(
            {"role": "user", "content": content}, MessageOrigin(message_index, _find_words_block(blocks))
        )

    def _translate_reply(self, blocks: list[Json]) -> Json:
        """Returns the message of a reply; thoughts are left out. Raises: BadRequest."""
        text = ""
        calls = []
        path = self._block_path
        for block_index, block in enumerate(blocks):
            path.index = block_index
            block_type = block["type"]
            if block_type == "text":
                text += _read_text(block, path, self._checker)
            elif block_type == "tool_use":
                self._checker.check(block, _CALL_FIELDS, path)
                calls.append(_translate_call(block, path))
            elif block_type in THOUGHT_TYPES:
                self._checker.left_out["thinking"] = None
            elif not self._checker.is_lenient:
                raise make_untranslatable_error(f"{path}.{block_type}")
        message: Json = {"role": "assistant", "content": text or (None if calls else "")}
        if calls:
            message["tool_calls"] = calls
        return message

    def _translate_result(self, block: Json) -> tuple[Json, list[Json]]:
        """Returns the message of a tool's result, which is only text, and the parts of the result that are no texts."""
        path = self._block_path
        self._checker.check(block, _RESULT_FIELDS, path)
        call_id, content = block.get("tool_use_id"), block.get("content")
        if not isinstance(call_id, str):
            raise make_field_error(f"{path}.tool_use_id", "Field required")
        media_parts: list[Json] = []
        if isinstance(content, list):
            content = "\n".join(self._read_result_blocks(content, media_parts))
        elif content is None:
            content = ""
        elif not isinstance(content, str):
            raise make_field_error(f"{path}.content", "Input should be a valid list")
        if block.get("is_error") is True:
            content = f"Error: {content}"
        return {"role": "tool", "tool_call_id": call_id, "content": content}, media_parts

    def _read_result_blocks(self, blocks: list[Any], media_parts: list[Json]) -> list[str]:
        """Returns the texts of a result. media_parts: a list to which the parts that are no texts are added."""
        texts: list[str] = []
        path = self._part_path
        for block_index, block in enumerate(blocks):
            path.index = block_index
            if not isinstance(block, dict):
                raise make_field_error(f"{path}", "Input should be a valid dictionary")
            if block.get("type") == "tool_reference":
                self._checker.check(block, _REFERENCE_FIELDS, path)
                texts.append(str(block.get("tool_name") or ""))
                continue
            for part in self._translate_block(block, path):
                if part["type"] == "text":
                    texts.append(part["text"])
                else:
                    media_parts.append(part)
        return texts

    def _translate_block(self, block: Json, path: FieldPath) -> list[Json]:
        """Returns the parts of a chat message for a block; []: there are none, and the checker is lenient.

        path: the path of the block in the request, for errors.
        """
        match block.get("type"):
            case "text":
                return [{"type": "text", "text": _read_text(block, path, self._checker)}]
            case "image":
                self._checker.check(block, _IMAGE_FIELDS, path)
                return [self._translate_image(block, path)]
            case "document":
                self._checker.check(block, _DOCUMENT_FIELDS, path)
                return self._translate_document(block, path)
            case "search_result":
                self._checker.check(block, _SEARCH_FIELDS, path)
                return [{"type": "text", "text": self._translate_search_result(block, path)}]
            case block_type:
                if not self._checker.is_lenient:
                    raise make_untranslatable_error(f"{path}.{block_type}")
                return []

    def _read_source(self, block: Json, path: FieldPath) -> Json:
        source = block.get("source")
        if not isinstance(source, dict):
            return {}
        self._checker.check(source, _SOURCE_FIELDS, f"{path}.source")
        return source

    def _translate_image(self, block: Json, path: FieldPath) -> Json:
        """Returns the part for an image. A lenient checker lets an image of another source stay. Raises: BadRequest."""
        source = self._read_source(block, path)
        source_type = source.get("type")
        if source_type == "base64":
            url = f"data:{source.get('media_type')};base64,{source.get('data')}"
        elif source_type == "url":
            url = str(source.get("url"))
        elif self._checker.is_lenient:
            self._checker.left_out[f"image.source.{str(source_type)[:QUOTED_CHARS]}"] = None
            return _pick_fields(block, _IMAGE_FIELDS)
        else:
            raise make_untranslatable_error(f"{path}.source.{source_type}")
        return {"type": "image_url", "image_url": {"url": url}}

    def _translate_document(self, block: Json, path: FieldPath) -> list[Json]:
        """Returns the parts for a document: its text, or a file after the context. Raises: BadRequest."""
        source = self._read_source(block, path)
        source_type = source.get("type")
        title, context = block.get("title"), block.get("context")
        if source_type == "text":
            return [{"type": "text", "text": _with_title(block, str(source.get("data") or ""))}]
        if source_type == "content":
            text = source.get("content")
            if not isinstance(text, str):
                text = "\n".join(self._read_texts(text, f"{path}.source.content"))
            return [{"type": "text", "text": _with_title(block, text)}]
        if source_type == "base64":
            file_name = title if isinstance(title, str) and title else "document.pdf"
            data = f"data:{source.get('media_type')};base64,{source.get('data')}"
            parts: list[Json] = [{"type": "file", "file": {"filename": file_name, "file_data": data}}]
            if isinstance(context, str) and context:
                parts.insert(0, {"type": "text", "text": context})
            return parts
        if self._checker.is_lenient:
            self._checker.left_out[f"document.source.{str(source_type)[:QUOTED_CHARS]}"] = None
            return [_pick_fields(block, _DOCUMENT_FIELDS)]
        raise make_untranslatable_error(f"{path}.source.{source_type}")

    def _translate_search_result(self, block: Json, path: FieldPath) -> str:
        heading = f"{block.get('title') or ''} ({block.get('source') or ''})"
        return "\n".join((heading, *self._read_texts(block.get("content"), f"{path}.content")))

    def _read_texts(self, blocks: Any, path: str) -> list[str]:
        if not isinstance(blocks, list):
            raise make_field_error(path, "Input should be a valid list")
        return [_read_text(block, f"{path}.{index}", self._checker) for index, block in enumerate(blocks)]

    def _append(self, message: Json, origin: MessageOrigin) -> None:
        self.messages.append(message)
        self.origins.append(origin)


def _is_tool_results(content: Any) -> bool:
    return isinstance(content, list) and all(block.get("type") == "tool_result" for block in content)


def _is_reminder(text: str) -> bool:
    """Returns whether a text has no words of a person: it is empty, or an application wrote all of it."""
    trimmed = text.strip()
    if not trimmed or (trimmed.startswith(_REMINDER_TAGS[0]) and trimmed.endswith(_REMINDER_TAGS[1])):
        return True
    return trimmed.startswith(("<", "[")) and not without_frame(trimmed).strip()


def _read_text(block: Any, path: FieldPath, checker: FieldChecker) -> str:
    """Returns the text of a block; "": the block has another type, and the checker is lenient. Raises: BadRequest."""
    if not isinstance(block, dict):
        raise make_field_error(f"{path}", "Input should be a valid dictionary")
    if block.get("type") != "text":
        if checker.is_lenient:
            return ""
        raise make_field_error(f"{path}.type", "Input should be 'text'")
    checker.check(block, _TEXT_FIELDS, path)
    text = block.get("text")
    if not isinstance(text, str):
        raise make_field_error(f"{path}.text", "Input should be a valid string")
    return text


def _translate_call(block: Json, path: FieldPath) -> Json:
    """Returns the call of a function for a `tool_use` block. Raises: BadRequest."""
    name, call_id, arguments = block.get("name"), block.get("id"), block.get("input")
    if not isinstance(name, str):
        raise make_field_error(f"{path}.name", "Field required")
    if not isinstance(call_id, str):
        raise make_field_error(f"{path}.id", "Field required")
    if not isinstance(arguments, dict):
        raise make_field_error(f"{path}.input", "Input should be a valid dictionary")
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(arguments).decode()},
    }


def _pick_fields(block: Json, fields: frozenset[str]) -> Json:
    """Returns a copy of a block with some fields alone, without its cache mark, which moves between requests."""
    return {key: value for key, value in block.items() if key in fields}


def _with_title(document: Json, text: str) -> str:
    """Returns a document's text after its title and context."""
    headings = (document.get("title"), document.get("context"))
    return "\n\n".join((*(heading for heading in headings if isinstance(heading, str) and heading), text))
