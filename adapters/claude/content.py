"""The content of messages: OpenAI's parts in, Anthropic's blocks out, one message at a time.

Parts that are blocks already (`image` with a `source`, `document`, `search_result`, ...) pass as they are. Text
without a visible character is left out: the Messages API refuses it.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from adapters.claude.error_form import Untranslatable
from adapters.claude.reply import INDEX_FIELDS, OPAQUE_FIELDS, THINKING_TYPES
from adapters.types import NATIVE_REPLY, Json

# The fields of a text part, a tool call and a tool message that their blocks have, too. Other fields are left out,
# because the API refuses them: OpenAI's Agents for JavaScript put all fields of a reply into its text part.
_TEXT_FIELDS: Final = ("type", "text", "cache_control", "citations")
_CALL_FIELDS: Final = ("cache_control", "caller", "toolset_name")
_RESULT_FIELDS: Final = ("cache_control", "is_error", "toolset_name")
# The content of a tool's error without content, which the API would refuse.
_NO_MESSAGE: Final = "(no message)"
# Types of parts that OpenAI has and the Messages API has not.
_UNSUPPORTED_PARTS: Final = ("input_audio", "audio", "video_url", "input_video")
# The ids of calls that the API takes, whatever their length.
_VALID_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_BAD_ID_CHARACTER: Final = re.compile(r"[^a-zA-Z0-9_-]")
_DATA_SCHEME: Final = "data:"


def make_system_blocks(message: Json, path: str) -> list[Json]:
    """Returns the blocks of a system or developer message. path: its path in the request, for errors."""
    return _mark_last_block(_translate_content(message.get("content"), path), message)


def make_user_blocks(message: Json, path: str) -> list[Json]:
    """Returns the blocks of a user's message; its `name` becomes a block before the others."""
    blocks = _translate_content(message.get("content"), path)
    name = message.get("name")
    if blocks and isinstance(name, str) and name.strip():
        blocks.insert(0, {"type": "text", "text": f"[{name}]"})
    return _mark_last_block(blocks, message)


def make_tool_result(message: Json, path: str) -> Json:
    """Returns the block for a tool message. Raises: Untranslatable: the message names no call."""
    call_id = message.get("tool_call_id")
    if not isinstance(call_id, str) or not call_id:
        param = f"{path}.tool_call_id"
        raise Untranslatable(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    block: Json = {"type": "tool_result", "tool_use_id": _make_tool_use_id(call_id)}
    content = message.get("content")
    if isinstance(content, str):
        if content.strip():
            block["content"] = content
    elif blocks := _translate_content(content, path):
        block["content"] = blocks
    block |= _pick_fields(message, _RESULT_FIELDS)
    if block.get("is_error"):
        block.setdefault("content", _NO_MESSAGE)
    return block


def make_assistant_blocks(message: Json, path: str) -> list[Json]:
    """Returns the blocks of an assistant message: its text, its calls, and the blocks that only Anthropic can read.

    Thinking is left out where the API refuses it: without a signature, and where nothing follows it.

    path: the path of the message in the request.

    Raises: Untranslatable.
    """
    if message.get("function_call") is not None:
        raise Untranslatable(
            "`function_call` is not supported here: use `tool_calls`.", f"{path}.function_call"
        )
    if message.get("audio") is not None:
        raise Untranslatable("Audio is not supported by this model's provider.", f"{path}.audio")
    calls = message.get("tool_calls")
    indexed_calls = enumerate(calls if isinstance(calls, list) else ())
    tool_uses = [_translate_call(call, f"{path}.tool_calls[{index}]") for index, call in indexed_calls]
    native_reply = message.get(NATIVE_REPLY)
    if isinstance(native_reply, dict) and isinstance(native_reply.get("content"), list):
        blocks = _mark_last_block(_fill_in_calls(native_reply["content"], tool_uses), message)
    else:
        texts = _translate_content(message.get("content"), path) or _translate_refusal(message)
        blocks = _interleave(_read_opaque_blocks(message), _mark_last_block(texts, message), tool_uses)
    while blocks and blocks[-1].get("type") in THINKING_TYPES:
        blocks.pop()
    return blocks


def _make_tool_use_id(call_id: str) -> str:
    """Returns an id that Anthropic takes for the id of a call, whatever provider made it.

    The result of the call, which names it by the same id, gets the same new id.
    """
    if _VALID_ID.fullmatch(call_id):
        return call_id
    return f"{_BAD_ID_CHARACTER.sub('_', call_id)}_{zlib.crc32(call_id.encode('utf-8', 'replace')):08x}"


def _fill_in_calls(native_content: list[Any], tool_uses: list[Json]) -> list[Json]:
    """Returns the blocks of a `NATIVE_REPLY` with its calls filled in: in its content each call is a placeholder."""
    calls = iter(tool_uses)
    native_blocks = (block for block in native_content if isinstance(block, dict))
    blocks = [next(calls, None) if block.get("type") == "tool_use" else block for block in native_blocks]
    return _without_blank_text([*filter(None, blocks), *calls])


def _translate_content(content: Any, path: str) -> list[Json]:
    """Returns the blocks of a `content`: a text, or a list of parts. Raises: Untranslatable."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    parts = enumerate(content if isinstance(content, list) else ())
    blocks = (_translate_part(part, f"{path}.content[{index}]") for index, part in parts)
    return [block for block in blocks if block is not None]


def _translate_refusal(source: Json) -> list[Json]:
    """Returns the `refusal` of a message or a part as a block of text; []: there is no refusal."""
    refusal = source.get("refusal")
    return _translate_content(refusal, "") if isinstance(refusal, str) else []


def _pick_fields(source: Json, fields: tuple[str, ...]) -> Json:
    return {key: source[key] for key in fields if source.get(key) is not None}


def _translate_part(part: Any, path: str) -> Json | None:
    """Returns the block of a part; None: the part is a text without a visible character. Raises: Untranslatable."""
    part_type = part.get("type") if isinstance(part, dict) else None
    match part_type:
        case "text":
            text = part.get("text")
            if isinstance(text, str) and not text.strip():
                return None
            return {key: value for key, value in part.items() if key in _TEXT_FIELDS}
        case "refusal":
            return next(iter(_translate_refusal(part)), None)
        case "image_url":
            return _copy_cache_mark({"type": "image", "source": _make_image_source(part, path)}, part)
        case "file":
            return _copy_cache_mark(_translate_document(part, path), part)
        case None:
            raise Untranslatable(f"Missing required parameter: '{path}.type'.", f"{path}.type")
    if part_type in _UNSUPPORTED_PARTS:
        raise Untranslatable(
            f"Content of type '{part_type}' is not supported by this model's provider.", path
        )
    block: Json = part
    return block


def _copy_cache_mark(block: Json, part: Json) -> Json:
    return {**block, "cache_control": part["cache_control"]} if part.get("cache_control") else block


def _mark_last_block(blocks: list[Json], message: Json) -> list[Json]:
    """Returns blocks, the last one with the `cache_control` of their message."""
    if blocks and message.get("cache_control"):
        return [*blocks[:-1], {**blocks[-1], "cache_control": message["cache_control"]}]
    return blocks


def _make_image_source(part: Json, path: str) -> Json:
    """Returns the `source` of an image: its URL, or the data of a data URL. Raises: Untranslatable."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str):
        raise Untranslatable(f"Missing required parameter: '{path}.image_url.url'.", f"{path}.image_url")
    data_url = _parse_data_url(url, f"{path}.image_url.url")
    if data_url is None:
        return {"type": "url", "url": url}
    media_type, data = data_url
    if media_type == "image/jpg":  # not a media type, yet often sent
        media_type = "image/jpeg"
    return {"type": "base64", "media_type": media_type, "data": data}


def _translate_document(part: Json, path: str) -> Json:
    """Returns the block of a file: an uploaded file by its id, a text, or other data (a PDF unless it names its type).

    Raises: Untranslatable.
    """
    file = part.get("file")
    if not isinstance(file, dict):
        raise Untranslatable(f"Missing required parameter: '{path}.file'.", f"{path}.file")
    title = {"title": file["filename"]} if isinstance(file.get("filename"), str) else {}
    if isinstance(file.get("file_id"), str):
        return {"type": "document", "source": {"type": "file", "file_id": file["file_id"]}, **title}
    data = file.get("file_data")
    if not isinstance(data, str):
        raise Untranslatable(f"'{path}.file' has neither file_data nor file_id.", f"{path}.file")
    data_url = _parse_data_url(data, f"{path}.file.file_data")
    media_type, data = data_url or ("application/pdf", data)
    if media_type.startswith("text/"):
        try:
            text = base64.b64decode(data, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as error:
            param = f"{path}.file.file_data"
            raise Untranslatable(f"'{param}' is no UTF-8 text in base64.", param) from error
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        source = {"type": "base64", "media_type": media_type, "data": data}
    return {"type": "document", "source": source, **title}


class _DataUrl(NamedTuple):
    """The parts of a data URL (RFC 2397)."""

    # The media type, in small letters.
    media_type: str
    # The data, in base64 without line ends.
    data: str


def _parse_data_url(url: str, path: str) -> _DataUrl | None:
    """Returns the parts of a data URL; None: the text is no data URL. Raises: Untranslatable: it has no data."""
    if url[: len(_DATA_SCHEME)].lower() != _DATA_SCHEME:
        return None
    head, comma, data = url[len(_DATA_SCHEME) :].partition(",")
    if not comma:
        raise Untranslatable(f"'{path}' is a data URL without data.", path, "invalid_value")
    media_type, *options = head.split(";")
    if "base64" not in (option.strip().lower() for option in options):
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    # Tools such as `base64` put line ends into what they write.
    return _DataUrl(media_type.strip().lower() or "text/plain", "".join(data.split()))


def _read_opaque_blocks(message: Json) -> list[Json]:
    """Returns the blocks that OpenAI's message has no field for, as the client got them and in their old order.

    `thinking_blocks` are thinking with its signature, redacted or not; `provider_blocks` are all others.
    """
    blocks: list[Json] = []
    for key in OPAQUE_FIELDS:
        values = message.get(key)
        if isinstance(values, list):
            blocks += [block for block in values if isinstance(block, dict)]
    if all(isinstance(block.get("index"), int) for block in blocks):
        blocks.sort(key=lambda block: int(block["index"]))
    return [block for block in blocks if block.get("type") != "thinking" or block.get("signature")]


def _interleave(opaque: list[Json], texts: list[Json], tool_uses: list[Json]) -> list[Json]:
    """Returns all blocks in order: each opaque block names its offset in the text and among the calls, by default 0.

    Text is split at these offsets, since thinking is accepted only where it was.
    """
    if not opaque:
        return texts + tool_uses
    blocks: list[Json] = []
    remaining_text = _TextQueue(texts)
    # The number of calls in `blocks`.
    call_count = 0
    for block in opaque:
        blocks += remaining_text.take_before(_read_offset(block, "start_index"))
        calls_before = max(call_count, _read_offset(block, "call_index"))
        blocks += tool_uses[call_count:calls_before]
        call_count = calls_before
        blocks.append({key: value for key, value in block.items() if key not in INDEX_FIELDS})
    return _without_blank_text([*blocks, *remaining_text.take_rest(), *tool_uses[call_count:]])


class _TextQueue:
    """The text blocks of a message, which are taken in order and cut where another block stands."""

    def __init__(self, blocks: Iterable[Json]) -> None:
        self._blocks = deque(blocks)
        # The number of characters that were taken: of all blocks, and of the block that is now the first.
        self._chars_taken = 0
        self._first_block_offset = 0

    def take_before(self, end: int) -> Iterator[Json]:
        """Removes the text before an offset in the text of all blocks, and yields it as blocks."""
        while self._blocks and self._chars_taken < end:
            first_block = self._blocks[0]
            start = self._first_block_offset
            length = len(_read_text(first_block))
            cut = min(start + end - self._chars_taken, length)
            yield _cut_text_block(first_block, start, cut)
            self._chars_taken += cut - start
            self._first_block_offset = cut
            if cut == length:
                self._blocks.popleft()
                self._first_block_offset = 0

    def take_rest(self) -> Iterator[Json]:
        """Removes all text that is left, and yields it as blocks."""
        if self._first_block_offset:
            first_block = self._blocks.popleft()
            yield _cut_text_block(first_block, self._first_block_offset, len(_read_text(first_block)))
        yield from self._blocks


def _read_offset(block: Json, key: str) -> int:
    """Returns the characters of text ("start_index") or the number of calls ("call_index") before an opaque block."""
    offset = block.get(key)
    return offset if isinstance(offset, int) else 0


def _read_text(block: Json) -> str:
    text = block.get("text")
    return text if isinstance(text, str) else ""


def _cut_text_block(block: Json, start: int, end: int) -> Json:
    """Returns a part of a block of text; the cache is marked at the block's end."""
    text = _read_text(block)
    if end - start == len(text):
        return block
    fields = {key: value for key, value in block.items() if key != "cache_control" or end == len(text)}
    return {**fields, "text": text[start:end]}


def _without_blank_text(blocks: list[Json]) -> list[Json]:
    return [block for block in blocks if block.get("type") != "text" or str(block.get("text", "x")).strip()]


def _translate_call(call: Any, path: str) -> Json:
    """Returns the block of a call. Raises: Untranslatable: it is no function call, or its arguments are no object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise Untranslatable(f"'{path}' is not a function call.", path)
    return {
        "type": "tool_use",
        "id": _make_tool_use_id(str(call.get("id") or "")),
        "name": function.get("name"),
        "input": _parse_arguments(function.get("arguments"), f"{path}.function.arguments"),
        **_pick_fields(call, _CALL_FIELDS),
    }


def _parse_arguments(arguments: Any, path: str) -> Any:
    """Returns the arguments as they are written, so that no number is rounded and no key moved.

    Raises: Untranslatable: the arguments are no JSON object.
    """
    if isinstance(arguments, dict):
        return arguments
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    try:
        parsed = orjson.loads(arguments) if isinstance(arguments, str) else None
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise Untranslatable(
            f"'{path}' is not a JSON object, and this model's provider accepts nothing else.",
            path,
            "invalid_value",
        )
    return orjson.Fragment(arguments)
