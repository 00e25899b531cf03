"""The docstring of a tool that is written in Python: in Google's, Sphinx's or NumPy's style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from inspect import cleandoc
from typing import Final, NamedTuple

_ARGUMENTS: Final = ("args", "arguments", "parameters", "params", "keyword args", "keyword arguments")
_EXAMPLES: Final = ("example", "examples")
_SECTIONS: Final = (
    *_ARGUMENTS,
    *_EXAMPLES,
    *("returns", "return", "yields", "raises", "attributes", "note", "notes", "warning", "warnings", "todo"),
)
_FIELDS: Final = ("param", "parameter", "arg", "argument", "keyword", "key")  # `:param name: text` of Sphinx
_OTHER_FIELDS: Final = ("type", "return", "returns", "rtype", "raise", "raises", "yield", "yields")
_PARAMETER = re.compile(r"\*{0,2}(\w++)\s*+(?:\((?:[^()]|\([^()]*\))*+\)\s*+)?:\s*(.*)")
_NUMPY_PARAMETER = re.compile(r"\*{0,2}(\w++)(?:\s*+:.*)?")


class Docstring(NamedTuple):
    """The parts of a docstring."""

    # The description, with the examples.
    description: str
    # The descriptions of parameters, by name.
    parameters: dict[str, str]


def read_docstring(text: str) -> Docstring:
    """Returns the parts of a docstring."""
    beginning: list[str] = []
    current_lines = beginning
    sections: dict[str, list[str]] = {}
    fields: dict[str, list[str]] = {}  # the lines of Sphinx's fields, by parameter
    is_numpy = False
    lines = cleandoc(text).splitlines()
    for line, next_line in zip(lines, (*lines[1:], ""), strict=False):
        if (title := _read_title(line, next_line)) is not None:
            is_numpy = is_numpy or (title == "args" and _is_rule(next_line))
            current_lines = sections.setdefault(title, [])
            if title == "examples":
                current_lines.append(line)
        elif (field := _read_field(line)) is not None:
            # The lines that follow belong to the field.
            current_lines = [field.text]
            if field.kind in _FIELDS:
                fields[field.name] = current_lines
        elif current_lines is beginning or not _is_rule(line):
            current_lines.append(line)
    description = ["\n".join(part).strip() for part in (beginning, sections.get("examples", ()))]
    parameters = {name: " ".join(" ".join(part).split()) for name, part in fields.items()}
    parameters |= _read_arguments(sections.get("args", ()), is_numpy=is_numpy)
    return Docstring("\n\n".join(filter(None, description)), parameters)


def _read_title(line: str, next_line: str) -> str | None:
    """Returns the section that a line begins: `args`, `examples` or another title; None if the line begins no section.

    next_line: the next line, which may underline the title.
    """
    title = line.rstrip().removesuffix(":").lower()
    if title not in _SECTIONS or not (line.rstrip().endswith(":") or _is_rule(next_line)):
        return None
    if title in _EXAMPLES:
        return "examples"
    return "args" if title in _ARGUMENTS else title


class _Field(NamedTuple):
    """A line `:kind [type] name: text` of Sphinx."""

    # The kind of the field, such as `param`.
    kind: str
    # The name of the parameter; "": the field has none.
    name: str
    # The text in the first line of the field.
    text: str


def _read_field(line: str) -> _Field | None:
    """Returns Sphinx's field in a line; None if the line has no field."""
    words, colon, text = line[1:].partition(":")
    kind, *names = words.split() or [""]
    if line[:1] not in (":", "@") or not colon or kind not in (*_FIELDS, *_OTHER_FIELDS):
        return None
    return _Field(kind, names[-1].lstrip("*") if names else "", text)


def _is_rule(line: str) -> bool:
    """Returns whether a line underlines a title."""
    return set(line.strip()) == {"-"}


def _read_arguments(lines: Sequence[str], *, is_numpy: bool) -> dict[str, str]:
    """Returns the descriptions of parameters, read from lines `name (type): text` and deeper lines after each.

    is_numpy: True if the lines are `name : type` or a name alone, and the text is in the deeper lines.
    """
    pattern = _NUMPY_PARAMETER if is_numpy else _PARAMETER
    depth = next((len(text_line) - len(text_line.lstrip()) for text_line in lines if text_line.strip()), 0)
    descriptions: dict[str, str] = {}
    name = ""
    for line in lines:
        match = pattern.fullmatch(line.strip()) if len(line) - len(line.lstrip()) <= depth else None
        if match is not None:
            name = match[1]
            descriptions[name] = "" if is_numpy else match[2].strip()
        elif name and line.strip():
            descriptions[name] = f"{descriptions[name]} {line.strip()}".strip()
    return descriptions
