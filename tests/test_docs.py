"""README and docs name what a client and an operator can see, and nothing that is not there."""

from __future__ import annotations

import ast
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path

import pytest

from gateway.core.turn.states import TRANSITIONS, TurnState
from gateway.traces.otlp import OtlpSettings
from scripts import make_plots
from storage.sqlite.connection import DatabaseFile, open_writer
from storage.sqlite.migration import migrate
from tests.agents import test_differences as differences
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import remember
from tests.test_rooms import nodes_of

ROOT = Path(__file__).parent.parent
HEADER = re.compile(r"x-mnemogate(?:-[a-z]+)+")
# Of an upstream's own, and labels.
NO_METRICS = {
    "mnemogate_billed",
    *("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_tool_name"),
}
METRIC = re.compile(r"\b(?:mnemogate|gen_ai)_[a-z_]*[a-z]\b")


def documents() -> str:
    return "\n".join(path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))


def strings_in_code() -> Iterator[str]:
    """Yields every literal of the product, bytes among them; a docstring too, which names no header that is not one."""
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in nodes_of(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                yield node.value if isinstance(node.value, str) else node.value.decode("latin-1")


def test_every_header_is_documented_and_no_other() -> None:
    in_code = {name for text in strings_in_code() for name in HEADER.findall(text)}
    assert len(in_code) > 15
    assert set(HEADER.findall(documents())) == in_code


@pytest.mark.parametrize("kind", ["request", "reply"])
def test_the_reference_has_a_table_of_headers(kind: str) -> None:
    """Each header in a row of its table, and no row without one."""
    _, _, table = (ROOT / "docs/reference.md").read_text("utf-8").partition(f"| {kind} header | meaning |\n")
    rows = table.partition("\n\n")[0].splitlines()[1:]
    assert len(rows) >= 7
    assert all(HEADER.match(row.removeprefix("| `")) for row in rows)


def test_every_metric_is_documented_and_no_other(upstream: StrictUpstream, tmp_path: Path) -> None:
    """Those of a gateway with memory that has answered something."""
    otlp = OtlpSettings("http://127.0.0.1:9/v1/traces", sampler="always_off")
    with remember(upstream, tmp_path, otlp=otlp) as world:
        world.chat(user="alice").say("Hi.")
        shown = world.gateway.ask("GET", "/metrics").body.decode()
    names = {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE ")}
    assert len(names) > 10
    in_documents = {name for name in METRIC.findall(documents()) if name not in NO_METRICS}
    assert in_documents == names


def test_every_path_that_a_document_names_exists() -> None:
    """A file or a folder of this repository, so that a move takes its mentions along."""
    paths = re.findall(r"`((?:gateway|adapters|storage|tests|scripts|docs)/[\w./-]*\w)`", documents())
    assert len(paths) > 20
    missing = {path for path in paths if not any(ROOT.glob(f"{path}*"))}
    assert not missing


def test_the_table_of_rooms_names_each_folder() -> None:
    table = _page("architecture").partition("\n## Rooms")[2].partition("\n## ")[0]
    rooms = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", table)}
    folders = {module.parent.name for module in (ROOT / "gateway").rglob("__init__.py")}
    assert len(folders) > 30
    assert folders <= rooms, folders - rooms


def test_every_name_that_a_page_puts_into_a_file_or_a_class_is_defined_there() -> None:
    """`name` in `file`, `name` (`file`) and `Class.member`: a renaming takes its mentions along."""
    tops = ("gateway", "adapters", "storage", "tests")
    texts = {path.as_posix(): path.read_text("utf-8") for top in tops for path in (ROOT / top).rglob("*.py")}
    pages = _page("architecture") + _page("conversations")
    in_files = re.findall(r"`(?:\w+\.)*(\w+)` (?:in |\()`([\w/]+\.py)`", pages)
    in_classes = re.findall(r"`(_?[A-Z]\w*[a-z]\w*)\.(\w+)`", pages)
    assert len(in_files) > 60
    assert len(in_classes) > 30
    missing = [
        f"{name} in {file}"
        for name, file in in_files
        if not any(_defines(text, name) for path, text in texts.items() if path.endswith(f"/{file}"))
    ]
    missing += [
        f"{name}.{member}"
        for name, member in in_classes
        if not any(
            _defines(text, member)
            for text in texts.values()
            if f"class {name}" in text and re.search(rf"^class {name}\b", text, re.M)
        )
    ]
    assert not missing


def test_the_drawings_name_what_is_defined() -> None:
    rows = re.findall(r"^ *(?:(\w+)\.)?(\w+) +([\w/]+\.py)\b", _page("architecture"), re.M)
    assert len(rows) > 60
    for owner, name, path in rows:
        text = (ROOT / (path if path.startswith("storage/") else f"gateway/{path}")).read_text("utf-8")
        assert _defines(text, name), (name, path)
        assert not owner or _defines(text, owner), (owner, path)


def test_a_recipe_names_a_method_with_its_class() -> None:
    """So that the test above holds it to what is there: a bare name may be a function's or a field's elsewhere."""
    recipes = _page("architecture").partition("\n## How to add")[2].partition("\n## ")[0]
    # The argument of a tool, a table, and a column.
    bare = set(re.findall(r"`([a-z_]\w+)`(?! in `)", recipes)) - {"label", "usage", "agent"}
    assert len(bare) > 10
    assert bare.isdisjoint(_methods()), bare.intersection(_methods())


def _methods() -> Iterator[str]:
    """Yields the names of all methods, without properties, which are mostly named as fields are."""
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                functions = [
                    each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                yield from (each.name for each in functions if not each.decorator_list)


def _defines(text: str, name: str) -> bool:
    """Returns whether a module defines or assigns a name, at any depth."""
    assigned = rf"^ *(?:self\.)?{name}\b(?:: [^=\n]+)?(?: =|$)"
    return re.search(rf"\b(?:def|class) {name}\b|{assigned}", text, re.M) is not None


def test_every_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    """The pages' links to one another; an anchor is a heading as GitHub writes it."""
    pages = (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
    texts = {page: re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S) for page in pages}
    headings = {
        page: {_anchor(line) for line in re.findall("^#+ (.*)$", t, re.M)} for page, t in texts.items()
    }
    links = [(page, link) for page, text in texts.items() for link in re.findall(r"\]\(([^)]+)\)", text)]
    inner = [(page, *link.partition("#")[::2]) for page, link in links if not link.startswith("https://")]
    assert len(inner) > 40
    leads = [(page, (page.parent / path).resolve() if path else page, anchor) for page, path, anchor in inner]
    assert not [
        lead for lead in leads if not lead[1].exists() or (lead[2] and lead[2] not in headings[lead[1]])
    ]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_copy_that_is_made_in_a_container_may_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image has no `sqlite3`, and a backup is made each night under the same name."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    (code,) = re.findall(r'^docker compose exec mnemogate python -c "(.+)"$', text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    with closing(sqlite3.connect("mnemogate.db")) as served:
        served.execute("PRAGMA journal_mode = WAL")
        for row in range(2):
            served.execute(f"CREATE TABLE t{row} (a)")  # it lies in the log still
            subprocess.run([sys.executable, "-c", code], check=True)
            with closing(sqlite3.connect("copy.db")) as copy:
                assert copy.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (row + 1,)


def test_the_table_of_what_raises_rev_names_the_tables_of_its_triggers(tmp_path: Path) -> None:
    with closing(open_writer(DatabaseFile(str(tmp_path / "m.db")))) as connection:
        migrate(connection, "m.db")
        triggers = connection.execute("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'trigger'")
        raising = {table for name, table in triggers if name.startswith("rev_")}
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    table = page.partition("| table | raises `rev` of its memory |\n")[2].partition("\n\n")[0]
    assert {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    } == raising


def test_no_file_next_to_the_database_comes_into_a_clone_of_the_repository() -> None:
    table = re.findall(r"^\| (`<database>.+?) \|", (ROOT / "docs/operations.md").read_text("utf-8"), re.M)
    ends = {end for row in table for end in re.findall(r"`<database>(\S+)`", row)}
    assert {"-wal", ".lock"} <= ends
    assert {f"*.db{end}" for end in ends} <= set((ROOT / ".gitignore").read_text("utf-8").split())


def test_every_application_that_is_run_is_in_the_table_of_clients() -> None:
    """With the version that it was tried in, and the other way round."""
    drivers = [
        path for path in (ROOT / "scripts/applications.d").iterdir() if path.suffix in (".py", ".sh", ".mjs")
    ]
    heads = [path.read_text("utf-8").partition("\n")[0] for path in drivers if not path.name.startswith("_")]
    run = {head.lstrip("#/ ").partition(": ")[0] for head in heads}
    page = (ROOT / "docs/clients.md").read_text("utf-8")
    tried = set(re.findall(r"^\| ([^|]+) \|(?:[^|]*\|){4} \d[\d.]* \|$", page, re.MULTILINE))
    assert len(run) > 20
    assert run == tried


def test_each_difference_from_lettas_server_has_a_reason_and_a_program() -> None:
    rows = differences.rows()
    assert rows.keys() == differences.PROGRAMS.keys()
    assert all(len(cells) == 3 and all(cells) for cells in rows.values())


def test_the_readme_gives_a_reason_for_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [
        *project["dependencies"],
        *(name for each in project["optional-dependencies"].values() for name in each),
    ]
    names = {re.split(r"[^\w-]", each)[0].lower() for each in needed}
    section = (
        (ROOT / "README.md").read_text("utf-8").partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    )
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert {
        word.lower() for row in rows for word in re.findall(r"[\w-]+", re.sub(r"\(.*\)", "", row))
    } == names


def test_each_decision_is_short_and_has_an_entry_in_the_index() -> None:
    """At most eight lines that begin with a date; a struck entry names what replaced it; no other bold paragraph."""
    page = (ROOT / "docs/decisions.md").read_text("utf-8")
    head, *sections = re.split(r"^(?=## )", page, flags=re.M)
    index, sections = sections[0], sections[1:]
    decisions = [re.split(r"^### ", section, flags=re.M)[1:] for section in sections]
    for section, decisions_of_section in zip(sections, decisions, strict=True):
        assert decisions_of_section, section.partition("\n")[0]
        assert section.partition("\n### ")[0].count("\n") == 1, f"text before a heading: {section[:80]!r}"
    titles = []
    for decision in chain.from_iterable(decisions):
        title, _, text = decision.partition("\n")
        titles.append(title)
        lines = text.strip().splitlines()
        assert len(lines) <= 8, f"{title}: {len(lines)} lines"
        assert max(map(len, lines)) <= 170, title
        assert re.match(r"\*20\d\d-\d\d-\d\d(, 20\d\d-\d\d-\d\d)*\.\* ", lines[0]), f"{title}: no date"
    entries = re.findall(r"^- .*$", index, re.M)
    replaced = [entry for entry in entries if entry.startswith("- ~~")]
    assert "~~" not in head
    assert entries[len(entries) - len(replaced) :] == replaced, "struck entries come last"
    assert entries[: -len(replaced)] == [f"- [{title}](#{_anchor(title)})" for title in titles]
    for entry in replaced:
        match = re.fullmatch(r"- ~~.+~~ \(20\d\d-\d\d-\d\d\): \[(.+)\]\(#.+\)", entry)
        assert match, entry
        assert match[1] in titles


def _drawn_transitions() -> str:
    """Returns the table of a turn's transitions as the page shows it: events that lead to the same states together."""
    rows = ["| state | meaning | event → next state |", "|---|---|---|"]
    for state, row in TRANSITIONS.items():
        events: dict[str, list[str]] = {}
        for event, allowed in row.items():
            after = ", ".join(each.name for each in TurnState if each in allowed)
            events.setdefault(after, []).append(f"`{event.__name__}`")
        arrows = "<br>".join(f"{', '.join(names)} → {after}" for after, names in events.items())
        rows.append(f"| {state.name} | {state.value} | {arrows or 'every event comes too late'} |")
    return "\n".join(rows)


def test_the_states_of_a_turn_are_drawn_as_the_machine_takes_them() -> None:
    assert _drawn_transitions() in _page("architecture"), f"the page needs:\n{_drawn_transitions()}"


def test_each_term_of_the_glossary_is_a_word_of_its_file() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|.*\| `(.+?)` \|$", _page("glossary"), re.M)
    assert 30 < len(rows) <= 60
    assert len(rows) == _page("glossary").count("\n| **")
    assert [term for term, _ in rows] == sorted((term for term, _ in rows), key=str.lower)
    for term, path in rows:
        code = (ROOT / path).read_text("utf-8")
        words = re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", code)).lower()
        assert re.search(rf"\b{term.replace('-', ' ').lower()}", words), f"{path} has no {term!r}"


def test_the_changes_before_the_first_release_are_a_page() -> None:
    """What it does, in about twenty lines; from 0.1.0 on each change has a line."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if "\n## 0." not in text:
        assert len(text.strip().splitlines()) <= 40
        assert len(text.split()) <= 900


def _page(name: str) -> str:
    return (ROOT / f"docs/{name}.md").read_text("utf-8")


def test_the_pictures_of_the_benchmarks_show_the_tables_of_the_page() -> None:
    page = _page("benchmarks")
    files = {path.name: path.read_text("utf-8") for path in make_plots.PICTURES.glob("*.svg")}
    assert files == {name: draw(page) for name, draw in make_plots.DRAWN.items()}, "run scripts/make_plots.py"
    assert {f"pictures/{name}" for name in files} == set(re.findall(r"!\[.+\]\((.+)\)", page))


def test_the_readme_stays_short() -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("\n## Dependencies\n")[0]
    assert len(text.split()) < 1_200
