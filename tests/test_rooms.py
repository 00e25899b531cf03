"""The arrows between the rooms: what each may import. `-s` draws those found."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from gateway.settings import Settings
from tests.gateway.lifecycle.test_settings import names_in_code

ROOT = Path(__file__).parent.parent
OURS = ("gateway", "adapters", "storage")

# Leaves of the gateway: they import nothing but errors (and one another, and how a URL is shown), so that any room may
# read them.
LEAVES = {
    "gateway.validation",
    "gateway.errors",
    "gateway.settings",
    "gateway.settings.check",
    "gateway.settings.value_syntax",
    "gateway.settings.load",
    "gateway.settings.masked",
    "gateway.settings.mistakes",
    "gateway.limits",
    "gateway.metrics",
    "gateway.log",
    "gateway.masks",
    "gateway.tokens",
}
DATA = {
    "adapters.json_escapes",
    "adapters.reply_headers",
    "adapters.token_counts",
    "adapters.types",
    "storage.batch_records",
    "storage.commands",
    "storage.digests",
    "storage.forget_commands",
    "storage.fusion",
    "storage.import_commands",
    "storage.link_record",
    "storage.listing",
    "storage.operator_records",
    "storage.reader_commands",
    "storage.recall_record",
    "storage.records",
    "storage.definition_records",
    "storage.file_records",
    "storage.job_records",
    "storage.key_record",
    "storage.run_records",
    "storage.run_commands",
    "storage.search_trace",
    "storage.store_rules",
    "storage.transfer_commands",
    "storage.usage_records",
}
ADAPTERS = {
    "adapters.base",
    "adapters.batch.batch_provider",
    "adapters.capabilities",
    "adapters.errors",
    "adapters.first_event",
    "adapters.json_escapes",
    "adapters.reply_headers",
    "adapters.reply_quota",
    "adapters.sse",
    "adapters.token_counts",
    "adapters.types",
    "adapters.whole_reply",
    "adapters.wrapped_stream",
}
STORAGE = {
    "storage.batch_records",
    "storage.commands",
    "storage.digests",
    "storage.forget_commands",
    "storage.fusion",
    "storage.import_commands",
    "storage.link_record",
    "storage.listing",
    "storage.operator_records",
    "storage.reader_commands",
    "storage.database",
    "storage.recall_record",
    "storage.records",
    "storage.definition_records",
    "storage.file_records",
    "storage.job_records",
    "storage.key_record",
    "storage.run_records",
    "storage.run_commands",
    "storage.search_trace",
    "storage.store_rules",
    "storage.transfer_commands",
    "storage.usage_records",
    "storage.errors",
    "storage.database_path",
    "storage.sidecar",
    "storage.task_set",
}

# The store and its groups, for the types of what a room is handed. Nobody can make one of these without a database,
# and those are below `storage.open`.
STORE = {
    f"storage.sql.{group}"
    for group in (
        "store",
        "jobs",
        "keys",
        "conversation_locks",
        "limits",
        "links",
        "recalls",
        "turns",
        "usage",
    )
}

# room -> what it may import of the product besides itself; a name ending in "." stands for everything below it.
ALLOWED: dict[str, set[str]] = {
    "adapters": set(),
    "storage": set(),
    "gateway.core": {"gateway.validation", "gateway.errors", "gateway.masks", *DATA},
    # Anthropic's dialect is translated once, both ways, by pure functions.
    "gateway.dialects": {"adapters.claude.", "gateway.core.", "gateway.validation", "gateway.errors", *DATA},
    "gateway.run": {"gateway.core.", *LEAVES, *ADAPTERS, *STORAGE, *STORE, "storage.search.text_words"},
    # The chat route hands a Provider on: it names the seam, never one of its makers.
    "gateway.web": {
        "gateway.run.",
        "gateway.dialects.",
        "gateway.core.",
        *LEAVES,
        "adapters.base",
        "adapters.sse",  # a socket cuts a stream into its events, as an upstream's is cut
        "adapters.types",
        "storage.errors",
        # Lists and pages of the agents API are the store's own values, which a room between would repeat.
        *DATA,
        *STORE,
    },
    "gateway.page": {
        "gateway.run.admin.",
        "gateway.core.",
        *LEAVES,
        *DATA,
        "storage.errors",
        "storage.search.text_words",  # what a search found is marked in the texts as the search sees them
    },
    # The second storey. No room above may import it.
    "gateway.agents": {
        "gateway.web.",
        "gateway.run.",
        "gateway.dialects.",
        "gateway.core.",
        *LEAVES,
        *ADAPTERS,
        *STORAGE,
        *STORE,
    },
    # A leaf: it reads accounts, and the application alone makes it.
    "gateway.traces": {
        "gateway.run.receipt",
        "gateway.run.upstream_call",
        "gateway.run.usage.gen_ai_metrics",
        "gateway.core.",
        *LEAVES,
        "adapters.reply_headers",
        "adapters.types",
    },
    "gateway": {"gateway.", *ADAPTERS, *STORAGE, "storage.masked_url", "storage.sql.store"},
}
# These alone make adapters, the store and what lies below it; the client of the commands reads who serves.
MAKERS = {
    "gateway.provider_factory": {"adapters."},
    "gateway.open_database": {"storage."},
    "gateway.operation_client": {"storage.sqlite.lock"},
}
# The rooms within a room, from the top floor down: each may import the floors below its own. A name that is no
# folder is a module that stands in the room itself.
FLOORS: dict[str, list[set[str]]] = {
    "gateway.core": [
        {"imports", "turn"},
        {"memory"},
        {"prompt"},
        {"conversation"},
        {"agent", "thoughts", "usage"},
        {
            "applications",
            "dates",
            "finish_reasons",
            "definition",
            "exact_json",
            "grammar_fields",
            "ids",
            "json_limits",
            "json_object",
            "lenient",
            "message_text",
            "roles",
            "subsequence",
            "tags",
            "nul",
            "tool_rule",
            "trace_context",
            "turn_name",
            "words",
        },
    ],
    "gateway.run": [
        {"native_chat", "responses"},
        {"chat"},
        {"chat_memory", "model_routes", "native_memory", "turn"},
        {"resolver", "round_requests", "tree_memory"},
        {"admin", "stored_agents", "turn_saving"},
        {"background", "call"},
        {"response_conversations", "upstream"},
        {"deferred_replies", "refused_parts", "stored_responses", "tools", "usage"},
        {"memory", "receipts", "request_log"},
        {"event_log", "receipt", "turn_services"},
        {
            "clock_jumps",
            "directory",
            "earlier_replies",
            "native_request",
            "pending",
            "request_clock",
            "request_context",
            "request_figures",
            "sink",
            "store_errors",
            "upstream_call",
        },
    ],
    "gateway.run.admin": [
        {"access", "manage_records", "mcp", "overview_operation", "transfer"},
        {"forgetting", "imports", "requests", "usage", "words"},
        {"audit_operations", "memory", "operation_table", "requested_page", "work"},
        {"command_line", "memory_by_uid", "operation_arguments"},
        {
            "audited_parts",
            "fault_errors",
            "list_page",
            "memory_names",
            "page_paths",
            "page_reads",
            "plain_text",
            "recall_retention",
            "records",
        },
    ],
    "gateway.web": [
        {"messages", "responses"},
        {"completions", "forwarding", "manage", "server"},
        {
            "admin",
            "incoming",
            "mcp",
            "memory_api",
            "middleware",
            "models",
            "resent_request",
            "sockets",
            "upload",
        },
        {"body", "client_reply", "health", "messages_paths", "request_info", "uvicorn_protocol"},
        {
            "auth",
            "client_connection",
            "documented_routes",
            "form",
            "json_response",
            "listening",
            "path_hints",
            "query",
            "raw_headers",
            "request_body",
            "slow_reader",
        },
    ],
    "gateway.page": [
        {"page_app"},
        {"page_routes", "route_table", "sign_in_pages"},
        {"page_answers"},
        {"about_me", "audit_screen"},
        {
            "block_screens",
            "conversation_screens",
            "export_screens",
            "fact_screens",
            "forget_screens",
            "key_screens",
            "memory_screens",
            "overview_screens",
            "people_screens",
            "request_screens",
            "run_screens",
            "trial_screens",
            "work_screens",
        },
        {"memory_access", "memory_routes", "reply_sources", "sessions", "window_bar"},
        {"page_operations", "rendering", "screen", "page_request", "page_reply"},
        {"text_filters"},
        {"defence", "shown_text", "visitor"},
    ],
    "gateway.agents": [
        {"migrate", "services"},
        {"routes"},
        {"agent_file", "chat_agents"},
        {"api"},
        {"batches", "files"},
        {"runs"},
        {"registry"},
        {"tools", "wire"},
        {"core"},
    ],
    "gateway.traces": [
        {"tracer"},
        {"export", "spans"},
        {"receipt_spans"},
        {"span_writer"},
        {"names", "otlp"},
        {"sampling"},
    ],
    "storage": [
        {"open"},
        {"postgres", "sql", "sqlite"},
        {"batch_records"},
        {"operator_records", "reader_commands", "run_commands", "store_rules"},
        {
            "commands",
            "database",
            "digests",
            "forget_commands",
            "import_commands",
            "link_record",
            "listing",
            "search",
            "sidecar",
            "transfer_commands",
        },
        {"database_path", "health_check", "records"},
        {
            "definition_records",
            "errors",
            "file_records",
            "fusion",
            "job_records",
            "key_record",
            "masked_url",
            "recall_record",
            "row_bytes",
            "run_records",
            "search_trace",
            "task_set",
            "text",
            "usage_records",
        },
    ],
}
# These stand alone: none of their neighbours imports them, and they import the lowest floor alone.
ALONE = {"gateway.core": {"request", "upstream"}}
LINES = 900  # of one file
# What only the top may import.
TOP = {
    "gateway.app",
    "gateway.routes",
    "gateway.services",
    "gateway.offline_work",
    "gateway.operations",
    "gateway.provider_factory",
    "gateway.trace_factory",
    "gateway.open_database",
    "gateway.agents.services",
    "gateway.serve",
    "gateway.start_notice",
    "gateway.cli",
    "gateway.config_check",
    "gateway.cli_commands",
    "gateway.operation_client",
    "gateway.__main__",
}


def _modules() -> Iterator[tuple[str, Path]]:
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    """Returns all nodes of a module. To walk its tree again would take ten times as long as to read the list."""
    return list(ast.walk(tree(path)))


def _imports(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of the product that a file imports, also inside functions."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            base = node.module or ""
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in OURS)


def _room(module: str) -> str:
    if module in LEAVES:
        return "leaf"
    parts = module.split(".")
    if parts[0] != "gateway":
        return parts[0]
    return ".".join(parts[:2]) if ".".join(parts[:2]) in ALLOWED else "gateway"


def _is_allowed(module: str, imported: str) -> bool:
    room = _room(module)
    if imported == module or imported in OURS:
        return True
    if imported in TOP:
        return module in TOP
    if room == "leaf":
        return imported in LEAVES or imported == "storage.masked_url"
    if room != "gateway" and (imported == room or imported.startswith(room + ".")):
        return True
    return any(
        imported == name or (name.endswith(".") and (imported + ".").startswith(name))
        for name in ALLOWED[room] | MAKERS.get(module, set())
    )


@cache
def _arrows() -> list[tuple[str, str]]:
    modules = list(_modules())
    known = {name for name, _ in modules}
    return [(name, imported) for name, path in modules for imported in set(_imports(path, known))]


def test_every_arrow_is_an_allowed_one() -> None:
    arrows = _arrows()
    assert len(arrows) > 20, "the walk found nothing: it looks in the wrong place"
    for line in sorted({f"{_room(a)} -> {_room(b)}" for a, b in arrows if _room(a) != _room(b)}):
        print(line)
    wrong = sorted(f"{a} -> {b}" for a, b in arrows if not _is_allowed(a, b))
    assert not wrong, f"ALLOWED, in this file, lets none of these import the other: {wrong}"


def test_the_command_line_alone_imports_the_move_from_letta() -> None:
    importers = {
        name
        for name, imported in _arrows()
        if imported.startswith("gateway.agents.migrate") and not name.startswith("gateway.agents.migrate")
    }
    assert importers == {"gateway.cli"}


def test_each_import_of_a_test_leads_to_a_module_or_a_name_in_it() -> None:
    """mypy does not read the tests, so a name that they import may be gone. Imports within texts count as well."""
    files = [path for folder in ("tests", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    lost = [f"{path.relative_to(ROOT)}: {name}" for path in files for name in _lost_imports(path)]
    assert not lost, f"nothing has these names: {lost}"


_IMPORT = re.compile(
    rf"^\s*from ((?:{'|'.join(OURS)}|tests|scripts)[\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE
)


def _lost_imports(path: Path) -> Iterator[str]:
    """Yields what a file imports of this repository and what is not there."""
    for module, listed in _IMPORT.findall(path.read_text()):
        for each in re.sub(r"#.*|[()]", "", listed).split(","):
            name = each.split(" as ")[0].strip()
            if name and name not in _names_in(module) and not _file_of(f"{module}.{name}").exists():
                yield f"{module}.{name}"


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _names_in(module: str) -> set[str]:
    """Returns the names that a module defines or imports at its top; none for one that is not there."""
    path = _file_of(module)
    return set() if not path.exists() else {name for node in tree(path).body for name in _names_of(node)}


def _names_of(node: ast.stmt) -> Iterator[str]:
    """Yields the names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (each.asname or each.name.partition(".")[0] for each in node.names)
    else:
        yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name))


def test_no_module_imports_itself_by_a_detour() -> None:
    _assert_no_circle(set(_arrows()))


def _assert_no_circle(found: set[tuple[str, str]]) -> None:
    arrows: dict[str, set[str]] = {}
    for a, b in found:
        if a != b:
            arrows.setdefault(a, set()).add(b)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        for each in sorted(arrows.get(module, ())):
            visit(each, (*path, module))
        done.add(module)

    for module in sorted(arrows):
        visit(module, ())


def _box(module: str, room: str) -> str:
    """The module or the folder directly in a room that a module lies in."""
    return ".".join(module.split(".")[: room.count(".") + 2])


def _boxes(room: str) -> set[str]:
    return {_box(name, room) for name, _ in _modules() if name.startswith(room + ".")}


def _between_boxes(room: str) -> set[tuple[str, str]]:
    inside = [(a, b) for a, b in _arrows() if a.startswith(room + ".") and b.startswith(room + ".")]
    arrows = {(_box(a, room), _box(b, room)) for a, b in inside}
    return {(a, b) for a, b in arrows if a != b}


def test_within_a_room_arrows_go_down() -> None:
    wrong = []
    for room, floors in FLOORS.items():
        height = {f"{room}.{box}": -n for n, floor in enumerate(floors) for box in floor}
        alone = {f"{room}.{box}" for box in ALONE.get(room, ())}
        for a, b in _between_boxes(room):
            if a in alone:
                is_down = height.get(b) == 1 - len(floors)
            else:
                is_down = a in height and b in height and height[b] < height[a]
            if not is_down:
                wrong.append(f"{a} -> {b}")
    assert not wrong, f"FLOORS, in this file, has the imported one on no lower floor: {sorted(wrong)}"


def test_every_box_has_a_floor() -> None:
    for room, floors in FLOORS.items():
        listed = {f"{room}.{box}" for floor in [*floors, ALONE.get(room, set())] for box in floor}
        actual = _boxes(room)
        assert not actual - listed, f"give these a floor in FLOORS, in this file: {sorted(actual - listed)}"
        assert not listed - actual, f"take these out of FLOORS, they are gone: {sorted(listed - actual)}"


def test_no_folder_imports_itself_by_a_detour() -> None:
    _assert_no_circle({(_smallest_box(a), _smallest_box(b)) for a, b in _arrows()})


def _smallest_box(module: str) -> str:
    rooms = [room for room in FLOORS if module.startswith(room + ".")]
    if rooms:
        return _box(module, max(rooms, key=len))
    folder = module.rpartition(".")[0]
    return module if folder in OURS else folder


def test_no_file_is_too_long_to_read() -> None:
    sizes = {str(path.relative_to(ROOT)): path.read_text("utf-8").count("\n") for _, path in _modules()}
    long = {name: lines for name, lines in sizes.items() if lines > LINES}
    assert not long, f"divide these files, {LINES} lines are the most: {long}"


def test_no_module_lists_its_public_names() -> None:
    """A name without an underscore is public (docs/decisions.md); a list repeats the rest, and nothing reads it."""
    lists = [module for module, path in _modules() if "__all__ = " in path.read_text("utf-8")]
    assert not lists, f"take `__all__` out of {lists}"


# Each of these settings is read through a property of Settings or of its class, which then has to be read.
READ_THROUGH = {
    "api_key": "keys",
    "single_user": "default_user",
    "price": "background_model",
    "takes": "capabilities",
}


def test_every_setting_is_read() -> None:
    """Outside the folder of the settings, an attribute of its name is read.

    Of [server], [database] and [memory], whose names others bear too, from a value that is called so or `settings`.
    """
    files = [path for path in (ROOT / "gateway").rglob("*.py") if path.parent.name != "settings"]
    nodes = [node for path in files for node in nodes_of(path) if isinstance(node, ast.Attribute)]
    read = {(_last_name(node.value).lstrip("_"), node.attr) for node in nodes}
    unread = set()
    for path in names_in_code(Settings):
        table, _, name = path.rpartition(".")
        owners = (
            {table, "settings"} if table in ("server", "database", "memory") else {each for each, _ in read}
        )
        if not any((owner, READ_THROUGH.get(name, name)) in read for owner in owners):
            unread.add(path)
    assert not unread, f"no code outside gateway/settings reads {sorted(unread)}"


def _last_name(value: ast.expr) -> str:
    """Returns `c` of `a.b.c`, and "" of what is no name."""
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""


def test_a_public_type_name_stands_for_one_thing() -> None:
    """One thing for one name: two modules define no class or alias alike."""
    defined: dict[str, list[str]] = {}
    for module, path in _modules():
        for node in tree(path).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            for name in names:
                if name[0].isupper() and not name.isupper():
                    defined.setdefault(name, []).append(module)
    assert len(defined) > 200
    twice = {name: modules for name, modules in defined.items() if len(modules) > 1}
    assert not twice, f"give one of each another name: {twice}"


def test_a_docstring_begins_with_its_subject_or_a_verb() -> None:
    """No docstring begins with a word that leaves the reader to guess what the sentence is about."""
    vague_opening = re.compile(r"(What|Whether|Of|Whose|Another|It)\b")
    wrong = []
    for module, path in _modules():
        for node in nodes_of(path):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.get_docstring(node) or ""
                if vague_opening.match(words):
                    wrong.append(f"{module}: {words.splitlines()[0]}")
    assert not wrong, f"begin these with their subject or a verb (Returns ...): {wrong}"


def test_a_property_is_described_as_a_value() -> None:
    """Callers read a property as a field, so its docstring is a noun phrase or begins with "True if"."""
    properties = [
        (module, node)
        for module, path in _modules()
        for node in nodes_of(path)
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(each).endswith("property") for each in node.decorator_list)
    ]
    assert len(properties) > 200
    wrong = [
        f"{m}: {node.name}" for m, node in properties if (ast.get_docstring(node) or "").startswith("Returns")
    ]
    assert not wrong, f"begin these with a noun, or with True if: {wrong}"


def test_private_state_is_no_parameter_of_a_constructor() -> None:
    """A private field with a default is state that the class begins with itself: `field(..., init=False)`."""
    count, wrong = 0, []
    for module, path in _modules():
        for owner in nodes_of(path):
            if not isinstance(owner, ast.ClassDef) or not any(
                "dataclass" in ast.unparse(each) for each in owner.decorator_list
            ):
                continue
            for node in owner.body:
                if isinstance(node, ast.AnnAssign) and node.value is not None:
                    name = ast.unparse(node.target)
                    count += name.startswith("_")
                    if name.startswith("_") and "init=False" not in ast.unparse(node.value):
                        wrong.append(f"{module}: {owner.name}.{name}")
    assert count > 60
    assert not wrong, f"take these out of the constructor: {wrong}"


# What a `find_x` returns: None or an empty collection where there is nothing (`Messages`, `Hits`: structs of many).
_MAY_BE_NOTHING = re.compile(r"\| None$|\[|Any|Json|Messages|Hits")
# Methods of libraries' classes that we override.
_OVERRIDES = {"get_help_option", "get_pipe_transport", "get_returncode"}


def test_a_look_up_is_named_by_what_it_does_where_there_is_nothing() -> None:
    """`find_x` returns None or nothing, `get_x` raises, and `load_x` reads many or builds from rows."""
    count, wrong = 0, []
    for module, path in _modules():
        for node in nodes_of(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.returns is None:
                continue
            verb = re.match(r"_?(find|get|load)_(?!or_)", node.name)
            if verb is None or node.name in _OVERRIDES:
                continue
            count += 1
            returned = ast.unparse(node.returns)
            may_be_none = returned.endswith("| None")
            if not _MAY_BE_NOTHING.search(returned) if verb[1] == "find" else may_be_none:
                wrong.append(f"{module}: {node.name} -> {returned}")
    assert count > 400
    assert not wrong, f"call these find_, get_ or load_ by what they return: {wrong}"
