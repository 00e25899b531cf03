"""Docstrings, comments and pages explain parameters, and name classes and functions, that are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.test_rooms import nodes_of

ROOT = Path(__file__).parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef
# "name: words" or "name, other: words", at the beginning of a line or after a sentence.
EXPLAINED = re.compile(r"(?:^|(?<=[.!?] ))([a-z_]\w*(?:, [a-z_]\w*)*): ", re.MULTILINE)
# A name in backticks that can be nothing else: of a class's member, with an underscore, or with a capital inside.
MEMBER = re.compile(r"`([A-Z]\w*)\.(\w+)(?:\(\))?`")
NAME = re.compile(r"`(\w*[a-z0-9]_\w+|_[a-z]\w*|[A-Z]+[a-z]+[A-Z]\w*|_?[A-Z]+_[A-Z_]+)(?:\(\))?`")
# Docstrings and comments.
PROSE = re.compile(r'"""[\s\S]*?"""|(?<!\S)# .*$', re.MULTILINE)
# Of systems and clients; the product has no such name.
FOREIGN = {"LD_PRELOAD", "close_fds", "seq_id", "with_letta"}
# The pages for contributors.
PAGES = (
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("architecture", "conversations", "decisions", "glossary")),
)


@cache
def modules() -> list[Path]:
    return [path for room in ("adapters", "gateway", "storage") for path in (ROOT / room).rglob("*.py")]


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path in modules():
        yield from ((path, node) for node in nodes_of(path))


def test_a_docstring_explains_parameters_that_its_function_has() -> None:
    """The fields of JSON are explained likewise, where a function takes them as `raw`."""
    wrong, count = [], 0
    for path, function in nodes():
        if not isinstance(function, Function):
            continue
        parameters = {each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg)}
        for names in EXPLAINED.findall(ast.get_docstring(function) or ""):
            count += 1
            unknown = set(names.split(", ")) - parameters
            if unknown and "raw" not in parameters:
                wrong.append(f"{path.relative_to(ROOT)}: {function.name}: {sorted(unknown)}")
    assert count > 1000
    assert wrong == []


def test_a_name_in_a_docstring_a_comment_or_a_page_is_there() -> None:
    words = set(re.findall(r"\w+", "\n".join(texts_beside_prose())))
    prose = {path: prose_and_code(path)[0] for path in modules()}
    prose |= {ROOT / page: (ROOT / page).read_text("utf-8") for page in PAGES}
    wrong, count = [], 0
    for path, text in prose.items():
        names = [name for name in NAME.findall(text) if name not in FOREIGN]
        count += len(names)
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in names if name not in words]
    assert count > 1000
    assert wrong == []


def test_a_member_that_a_docstring_or_a_comment_names_is_there() -> None:
    members = members_of_classes()
    wrong, count = [], 0
    for path in modules():
        for owner, member in MEMBER.findall(prose_and_code(path)[0]):
            count += 1
            if owner in members and member not in members[owner]:
                wrong.append(f"{path.relative_to(ROOT)}: {owner}.{member}")
    assert count > 100
    assert wrong == []


@cache
def prose_and_code(path: Path) -> tuple[str, str]:
    """Returns the docstrings and comments of a module, and the remainder of its text."""
    text = path.read_text("utf-8")
    return "\n".join(PROSE.findall(text)), PROSE.sub("", text)


def texts_beside_prose() -> Iterator[str]:
    """Yields the code of the product, and all texts beside it."""
    yield from (prose_and_code(path)[1] for path in modules())
    for pattern in (
        "storage/**/*.sql",
        "gateway/data/*.toml",
        "gateway/page/**/*.html",
        "docs/*.toml",
        "scripts/**/*.py",
        "tests/**/*.py",
    ):
        yield from (path.read_text("utf-8") for path in ROOT.glob(pattern) if path.is_file())


def members_of_classes() -> dict[str, set[str]]:
    """Returns the names of each class's members, with those of its bases."""
    own: dict[str, set[str]] = {}
    bases: dict[str, set[str]] = {}
    for _, owner in nodes():
        if not isinstance(owner, ast.ClassDef):
            continue
        members = own.setdefault(owner.name, set())
        bases.setdefault(owner.name, set()).update(ast.unparse(each).split("[")[0] for each in owner.bases)
        for node in ast.walk(owner):
            if isinstance(node, Function):
                members.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                members.add(node.id if isinstance(node, ast.Name) else node.attr)

    def with_bases(name: str) -> set[str]:
        return own.get(name, set()).union(*map(with_bases, bases.get(name, ())))

    return {name: with_bases(name) for name in own}
