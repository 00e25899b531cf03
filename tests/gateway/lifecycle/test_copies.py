"""Forked processes (`forked`) make ids of their own, as new processes do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.doubles.upstream import StrictUpstream
from tests.gateway.process import serving
from tests.test_rooms import OURS, ROOT, tree

# Functions whose results differ from process to process.
PROCESS_FUNCTIONS = {
    "Random",
    "SystemRandom",
    "getpid",
    "monotonic",
    "perf_counter",
    "time",
    "urandom",
    "uuid4",
}
# The calls of these functions at an import. `forked.reseed_ids` repeats them.
RESEEDED = {
    "gateway/run/memory/conversation_uid.py: random.Random()",
    "gateway/web/middleware.py: random.Random()",
    "storage/postgres/connection.py: secrets.token_hex(4)",
}


def test_each_random_value_of_an_import_is_reseeded_in_a_forked_process() -> None:
    calls = {
        f"{file.relative_to(ROOT)}: {ast.unparse(call)}"
        for room in OURS
        for file in (ROOT / room).rglob("*.py")
        for call in _calls_at_import(tree(file))
        if (name := ast.unparse(call.func)).startswith("secrets.")
        or name.rpartition(".")[2] in PROCESS_FUNCTIONS
    }
    assert calls == RESEEDED


def _calls_at_import(node: ast.AST) -> Iterator[ast.Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            for default in (*child.args.defaults, *child.args.kw_defaults):
                if default is not None:
                    yield from _calls_at_import(ast.Expr(default))
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from _calls_at_import(child)


def test_two_forked_processes_give_no_id_twice(upstream: StrictUpstream, tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with serving(tmp_path, "--upstream", upstream.base_url) as gateway:
            ids.append(gateway.ask("GET", "/v1/models").headers["x-request-id"])
    assert len(set(ids)) == 2
