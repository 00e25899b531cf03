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
_PARAMETER = re.compile(r"\*{0,2}(\w++)\s*+(?:\([^)]*\)\s*+)?:\s*(.*)")


class Docstring(NamedTuple):
    """A docstring, read."""

    # The description, examples included.
    description: str
    # The descriptions of parameters, by name.
    parameters: dict[str, str]


def read_docstring(text: str) -> Docstring:
    """Returns the parts of a docstring."""
    sections: dict[str, list[str]] = {"": []}
    current = sections[""]
    field_parameters: dict[str, str] = {}
    lines = cleandoc(text).splitlines()
    is_numpy = False
    for line, below in zip(lines, (*lines[1:], ""), strict=False):
        title = line.rstrip().removesuffix(":").lower()
        if title in _SECTIONS and (line.rstrip().endswith(":") or _is_rule(below)):
            is_args = title in _ARGUMENTS
            is_numpy = is_numpy or (is_args and _is_rule(below))
            current = sections.setdefault(
                "examples" if title in _EXAMPLES else "args" if is_args else title, []
            )
            if title in _EXAMPLES:
                current.append(line)
        elif (field := _read_field(line)) is not None:
            # What is written below belongs to it.
            current = sections[f":{field.kind} {field.name}"] = [field.text]
            if field.kind in _FIELDS:
                field_parameters[field.name] = f":{field.kind} {field.name}"
        elif not (_is_rule(line) and len(sections) > 1):
            current.append(line)
    parts = ["\n".join(sections.get(each, ())).strip() for each in ("", "examples")]
    parameters = {
        name: " ".join(" ".join(sections[section]).split()) for name, section in field_parameters.items()
    }
    parameters |= _read_arguments(sections.get("args", ()), is_numpy=is_numpy)
    return Docstring("\n\n".join(filter(None, parts)), parameters)


class _Field(NamedTuple):
    """A line `:kind [type] name: text` of Sphinx."""

    kind: str
    name: str
    text: str


def _read_field(line: str) -> _Field | None:
    """Returns the field that a line has; None: it has none."""
    words, colon, text = line[1:].partition(":")
    kind, *names = words.split() or [""]
    if line[:1] not in (":", "@") or not colon or kind not in (*_FIELDS, *_OTHER_FIELDS):
        return None
    return _Field(kind, names[-1].lstrip("*") if names else "", text)


def _is_rule(line: str) -> bool:
    """Returns whether a line underlines a title."""
    return set(line.strip()) == {"-"}


def _read_arguments(lines: Sequence[str], *, is_numpy: bool) -> dict[str, str]:
    """Returns the parameters' descriptions: `name (type): text`, its further lines deeper than the first.

    is_numpy: these lines are `name : type`, and the text is in the further ones.
    """
    depth = next((len(each) - len(each.lstrip()) for each in lines if each.strip()), 0)
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        match = _PARAMETER.fullmatch(line.strip()) if len(line) - len(line.lstrip()) <= depth else None
        if match is not None:
            name = match[1]
            found[name] = "" if is_numpy else match[2].strip()
        elif name and line.strip():
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found
