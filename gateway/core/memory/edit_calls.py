"""The edits of memory blocks that a call of an agent's built-in tool asks for.

Nothing here touches memory: `gateway.core.memory.edits` applies edits, and `gateway.agents.tools.agent_tools` asks
the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.core.memory.block_edit import BlockEdit
from gateway.core.memory.builtin import BUILT_IN_TOOLS
from gateway.core.memory.memory_tools import BLOCK_TOOLS, EditOperation

# The arguments that each command of the tool `memory` needs.
_NEEDED_ARGUMENTS: Final = {
    "str_replace": ("path", "old_string", "new_string"),
    "insert": ("path", "insert_text"),
}
# A line of a patch that begins the changes of another block.
_BLOCK_LINE = re.compile(r"^\*\*\* (Update|Add|Delete) Block: *(.*)$")
# The file header of a unified diff, which many models write. Elsewhere `--- a` removes the line `-- a`.
_FILE_HEADER = re.compile(r"\A\n*--- .*\n\+\+\+ .*\n(?=@@)")


class RefusedCall(Exception):
    """A call asks for an edit that is not possible. Its text is the call's result for the model."""


def read_edit_calls(name: str, arguments: Mapping[str, Any]) -> list[BlockEdit]:
    """Returns the edits that a call asks for. arguments: arguments that fit the schema. Raises: RefusedCall."""
    label = str(arguments.get("label") or "")
    match name:
        case "core_memory_append":
            return [_make_edit(EditOperation.INSERT, label, new_string=arguments["content"])]
        case "core_memory_replace":
            old, new = arguments["old_content"], arguments["new_content"]
            return [_make_edit(EditOperation.REPLACE, label, old_string=old, new_string=new, every=True)]
        case "memory":
            return [_read_memory_command(arguments)]
        case "memory_apply_patch":
            return _read_patch(label, str(arguments["patch"]))
        case _:
            names = BUILT_IN_TOOLS[name].schema["parameters"]["properties"].keys() - {"label"}
            # A model may add other arguments, such as `every`.
            known_arguments = {key: value for key, value in arguments.items() if key in names}
            return [_make_edit(BLOCK_TOOLS[name], label, **known_arguments)]


def _make_edit(op: EditOperation, label: str, **arguments: Any) -> BlockEdit:
    return BlockEdit(op, {"label": label, **arguments})


def _read_memory_command(arguments: Mapping[str, Any]) -> BlockEdit:
    """Returns the edit that a call of the tool `memory` asks for. Raises: RefusedCall."""
    command = str(arguments["command"])
    if command not in _NEEDED_ARGUMENTS:
        raise RefusedCall(
            f"Error: `{command}` is not possible here: blocks are made, named and removed by the agent's owner. "
            "Nothing was done."
        )
    for key in _NEEDED_ARGUMENTS[command]:
        if arguments.get(key) is None:
            raise RefusedCall(f"Error: `{command}` needs `{key}`. Nothing was done.")
    label = _read_label(str(arguments["path"]))
    if command == "insert":
        line = arguments.get("insert_line")
        return _make_edit(EditOperation.INSERT, label, new_string=arguments["insert_text"], insert_line=line)
    old, new = arguments["old_string"], arguments["new_string"]
    return _make_edit(EditOperation.REPLACE, label, old_string=old, new_string=new)


def _read_label(path: str) -> str:
    """Returns the label that a path names: /memories/human, memories/human and human are the same block."""
    return path.strip().removeprefix("/").removeprefix("memories/").strip("/")


def _read_patch(label: str, patch: str) -> list[BlockEdit]:
    """Returns the edits of a patch.

    label: the block of the lines before the first `*** Update Block`.

    Raises: RefusedCall.
    """
    parts: list[tuple[str, list[str]]] = [(label, [])]
    for line in patch.split("\n"):
        match = _BLOCK_LINE.match(line)
        if match is None:
            if not line.startswith(("*** Begin Patch", "*** End Patch")):
                parts[-1][1].append(line)
        elif match[1] == "Update":
            parts.append((_read_label(match[2]), []))
        else:
            raise RefusedCall(
                f"Error: `*** {match[1]} Block` is not possible here: blocks are made and removed by the agent's "
                "owner. Nothing was done."
            )
    texts = [(name, _FILE_HEADER.sub("", "\n".join(lines))) for name, lines in parts]
    patches = [(name, text) for name, text in texts if text.strip()]
    if not patches:
        raise RefusedCall("Error: the patch is empty. Nothing was done.")
    return [_make_edit(EditOperation.PATCH, name, patch=text) for name, text in patches]
