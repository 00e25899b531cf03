"""The work of the commands. Most commands have an operation performed, and print the operation's answer."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from msgspec.structs import replace

from gateway.cli_options import EXIT_FAILED
from gateway.core.json_object import without_none
from gateway.errors import BadRequest, GatewayError
from gateway.limits import Limits
from gateway.loading import exit_on_interrupt, loading
from gateway.operation_client import OperationClient
from gateway.run.admin.command_line import outcome_text, printed, record_lists
from gateway.run.admin.command_line.printed import print_error
from gateway.run.admin.command_line.progress import Progress
from gateway.run.admin.command_line.serving import FILE_ANSWER_S, ProcessGone
from gateway.run.admin.command_line.streams import open_input, open_output, read_line_pages
from gateway.settings import Settings
from gateway.settings.load import load_settings
from gateway.settings.value_syntax import POSTGRES
from storage.records import DEFAULT_PROJECT

# The time between two polls of a compaction or an import.
POLL_S = 0.5
# The most rows of usage that one call returns.
_USAGE_ROWS = 10_000

_Arguments = Mapping[str, Any]


@dataclass
class Commands:
    """The commands, over the files that the command line named.

    All methods raise GatewayError and SettingsError.
    """

    # The settings file; None: mnemogate.toml, if there is one.
    config: str | None = None
    # The database file; None: the file that the settings name.
    db: str | None = None
    # The limits of the gateway that is served; None: the default limits.
    limits: Limits | None = None

    def load(
        self,
        flags: Mapping[tuple[str, str], Any] | None = None,
        upstream: str | None = None,
        *,
        needs_secrets: bool = False,
    ) -> Settings:
        """Returns the settings. flags: values of settings that override those in the settings file."""
        flags = {("database", "path"): self.db, **(flags or {})}
        return load_settings(
            config=self.config,
            flags={name: value for name, value in flags.items() if value is not None},
            upstream=upstream,
            needs_secrets=needs_secrets,
        )

    @cached_property
    def settings(self) -> Settings:
        """The settings, in which secrets are not resolved."""
        return self.load()

    @cached_property
    def client(self) -> OperationClient:
        """The operations. Mistakes in the settings are raised before an operation can be performed."""
        return OperationClient(self.settings)

    def perform(self, operation: str, arguments: _Arguments, answer_s: float | None = None) -> Any:
        """Returns the answer of an operation.

        arguments: the operation's arguments; an argument that is None counts as left out.
        answer_s: the most seconds that the answer may take; None: `ANSWER_S` of a serving process.
        """
        return self.client.perform(operation, arguments, answer_s)

    # -- serving

    def serve(
        self, flags: Mapping[tuple[str, str], Any], upstream: str | None, *, performs_jobs: bool
    ) -> int:
        """Serves until a signal stops the process, and returns the exit code.

        flags: the values of settings by (table, key), which override the settings file.
        upstream: the base URL of the one upstream to use; None: the upstreams of the settings.
        performs_jobs: True if this process performs background jobs, too.
        """
        with loading():
            from gateway.serve import serve

        logging.captureWarnings(True)
        return serve(self.load(flags, upstream, needs_secrets=True), self.limits, performs_jobs=performs_jobs)

    def work(self, flags: Mapping[tuple[str, str], Any], *, listens: bool) -> int:
        """Performs background jobs until a signal stops the process, and returns the exit code.

        flags: the values of settings by (table, key), which override the settings file.
        listens: True if health checks and scrapes are answered, too.
        """
        with loading():
            from gateway.serve import work

        logging.captureWarnings(True)
        return work(self.load(flags, needs_secrets=True), self.limits, listens=listens)

    def migrate(self) -> None:
        """Brings the database to the present schema."""
        with loading():
            from gateway.offline_work import migrate

        asyncio.run(migrate(self.settings))
        print(f"{self.settings.database.shown} has the schema of this version.", file=sys.stderr)

    def check_config(self, *, is_strict: bool) -> int:
        """Prints the settings, and the mistakes for which a start would fail. Makes no file and opens no port.

        is_strict: True if a warning counts as a failure in the exit code.
        """
        with loading():
            from gateway.config_check import check_start
            from gateway.settings.masked import render_masked

        settings = self.load(needs_secrets=True)
        database = check_start(settings)
        for sentence in (*database.notes, *database.warnings):
            print_error(sentence)
        printed.show_json(render_masked(settings))
        return EXIT_FAILED if is_strict and database.warnings else 0

    def open_page(self, *, only_prints: bool) -> None:
        """Prints the address of the page, with a sign-in code. On a terminal, opens a browser, too.

        only_prints: True if no browser is opened.
        """
        process = self.client.find_process()
        if process is None:
            database = self.settings.database
            reason = "is served by no gateway: start one first, or name the file of another with --db"
            if database.url is not None:
                reason = "is PostgreSQL: sign in with an operator key, of `mnemogate keys create --operator`"
            raise GatewayError(f"{database.shown} {reason}.")
        try:
            url = process.address + process.ask("ui", b"{}")["path"]
        except ProcessGone as error:
            raise GatewayError(f"The gateway at {process.address} has ended. Start it again.") from error
        print(url, flush=True)
        if sys.stdout.isatty() and not only_prints:
            webbrowser.open(url)

    def move(self, target: str) -> int:
        """Moves all memories to another database. target: the URL of a PostgreSQL, or a file. Returns the exit code."""
        with loading():
            from gateway.offline_work import move_store

        settings_database = self.settings.database
        if target.startswith(POSTGRES):
            source = replace(settings_database, url=None)
            destination = replace(settings_database, url=target)
            if not os.path.exists(source.path):
                raise GatewayError(f"There is no database at {os.path.abspath(source.path)} to be moved.")
        elif settings_database.url is None:
            raise GatewayError(
                "A file is filled from a PostgreSQL, which database.url or MNEMOGATE_DATABASE_URL names."
            )
        else:
            source = settings_database
            destination = replace(settings_database, url=None, path=target)
        with Progress("Moving memories") as progress:
            show = progress.show if progress.is_shown else printed.show_progress
            outcome = asyncio.run(
                move_store(
                    self.settings,
                    source,
                    destination,
                    lambda outcome_so_far, count: show(outcome_so_far.count, count),
                )
            )
        printed.show_move(outcome.moved, outcome.already_there, outcome.refused)
        return EXIT_FAILED if outcome.refused else 0

    def serve_mcp(self, arguments: _Arguments, *, is_read_only: bool) -> None:
        """Serves the tools of MCP over stdio. arguments: the project, profile and user of the memory."""
        with loading():
            from gateway.run.admin.mcp.mcp_memory import MCP_CALL

            try:
                from gateway.web.mcp.stdio import serve_stdio
            except ModuleNotFoundError as error:
                raise GatewayError(
                    "`mnemogate mcp` needs the extra `mcp`: in the clone run pip install -e '.[mcp]', "
                    "or uv sync --extra mcp"
                ) from error
        # Mistakes in the settings are reported before anything is served.
        client = self.client
        memory = {**without_none(arguments), "read": is_read_only}
        # The threads that read the input and perform a call cannot be interrupted, and asyncio would wait for them.
        # A call writes all or nothing, however the process ends.
        with exit_on_interrupt():
            serve_stdio(lambda call: client.perform(MCP_CALL, call), memory)

    # -- operations

    def list_pages(
        self,
        operation: str,
        arguments: _Arguments,
        listing: record_lists.RecordList,
        limit: int | None,
        *,
        as_json: bool,
    ) -> None:
        """Prints a list. limit: the most lines; None: all lines."""
        lines = (line for page in self.client.read_pages(operation, arguments) for line in page["lines"])
        printed.show_list(listing, islice(lines, limit), as_json=as_json)

    def show_usage(self, arguments: _Arguments, *, as_csv: bool, as_json: bool) -> None:
        """Prints sums of usage."""
        pages = list(self.client.read_pages("usage", {**arguments, "limit": _USAGE_ROWS}, "after"))
        rows = [row for page in pages for row in page["data"]]
        if as_csv:
            from gateway.run.admin.usage.usage_csv import render_usage_csv

            print(render_usage_csv({"by": pages[0]["by"], "data": rows}).replace("\r\n", "\n"), end="")
        else:
            by = pages[0]["by"]
            keys = self.perform("keys-list", {}) if "key" in by and not as_json else ()
            names = {key["id"]: key["name"] for key in keys}
            printed.show_list(record_lists.make_usage_list(by, names), rows, as_json=as_json)

    def add_limit(self, arguments: _Arguments) -> None:
        """Adds a limit and prints it. Warns if no key and no setting names its project: the name may be misspelt."""
        projects_of_keys = {key["project"] for key in self.perform("keys-list", {})}
        limit = self.perform("limits-add", arguments)
        printed.show_record(record_lists.LIMITS, limit)
        project = limit["project"]
        if project not in (DEFAULT_PROJECT, *self.settings.projects, *projects_of_keys):
            print(f"This project is new: no key and no setting names {project!r}.", file=sys.stderr)

    def forget(
        self, arguments: _Arguments, require_consent: Callable[[str], None], *, all_users: bool
    ) -> None:
        """Forgets a memory or a part of it.

        require_consent: asks the operator whether to do the action in its text, and raises GatewayError at a refusal.
        """
        arguments = without_none(arguments)
        _check_forget_arguments(arguments, all_users=all_users)
        # The settings are read first, so that mistakes in them are reported before the question.
        is_server = self.settings.database.url is not None
        # The texts of facts are for a person alone, not for the log of a script.
        if sys.stderr.isatty():
            preview = self.perform("memory-forget-preview", arguments)
            print(
                outcome_text.describe_going_facts(preview, arguments.get("keep", ())), file=sys.stderr, end=""
            )
        require_consent(outcome_text.describe_forget_request(arguments))
        first_answer = self.perform("memory-forget", arguments)
        answer = first_answer
        count = answer["memories"]
        with Progress("Forgetting memories") as progress:
            while not answer["done"]:
                progress.show(count)
                answer = self.perform("memory-forget", {**arguments, "left": answer["left"]})
                count += answer["memories"]
        files = {"config": self.config, "db": self.db}
        print(
            outcome_text.describe_forget_result({**files, **arguments}, count, first_answer), file=sys.stderr
        )
        if not answer["swept"]:
            print(outcome_text.describe_unswept(is_server=is_server), file=sys.stderr)

    def export(self, arguments: _Arguments, path: str | None, *, may_replace: bool) -> None:
        """Writes a memory to a file, or to the standard output.

        path: the path of the file; None: the standard output.
        may_replace: True if a file that exists already is replaced.
        """
        arguments = without_none(arguments)
        pages = self.client.read_pages("memory-export", arguments)
        first_page = next(pages)
        other_memories = first_page["others"]
        message_count = 0
        with Progress("Exporting messages") as progress, open_output(path, may_replace=may_replace) as file:
            page: Any = first_page
            while page is not None:
                file.writelines(f"{line}\n" for line in page["lines"])
                message_count += page["messages"]
                if path or not sys.stdout.isatty():  # a bar would mix with the lines
                    progress.show(message_count)
                page = next(pages, None)
        if path:
            size = os.stat(path).st_size
            print(outcome_text.describe_export(arguments, message_count, path, size), file=sys.stderr)
        if other_memories:
            print(outcome_text.describe_others(other_memories), file=sys.stderr)

    def import_memory(self, arguments: _Arguments, path: str | None) -> None:
        """Imports an exported memory from a file, or from the standard input."""
        position = None
        line_number = 1
        read_bytes = 0
        file_size = os.path.getsize(path) if path and os.path.isfile(path) else None
        with Progress("Importing", "bytes") as progress, open_input(path) as file:
            for lines in read_line_pages(file):
                page = {**arguments, "lines": lines, "line": line_number, "at": position}
                position = self.perform("memory-import", page)["at"]
                line_number += len(lines)
                read_bytes += sum(len(line.encode()) + 1 for line in lines)
                progress.show(read_bytes, file_size)
        if position is None:
            raise BadRequest("There is nothing to import.")
        self.perform("memory-import", {**arguments, "lines": [], "at": position, "end": True})
        print(outcome_text.describe_import(without_none(arguments), path, read_bytes), file=sys.stderr)

    def import_file(self, path: str, arguments: _Arguments, *, as_json: bool) -> int:
        """Imports a file that another application exported, with a bar on a terminal. Returns the exit code."""
        arguments = without_none(arguments)
        title = "Looking at the file" if arguments.get("preview") else "Importing"
        with Progress(title) as progress:

            def report(record: Mapping[str, Any]) -> None:
                counts = record["facts" if record["facts"]["found"] else "conversations"]
                progress.show(counts["new"] + counts["known"] + counts["skipped"], counts["found"])

            last_record = self._import(os.path.abspath(path), arguments, report)
        printed.show_import(last_record, as_json=as_json)
        return EXIT_FAILED if last_record["status"] in ("failed", "stopped") else 0

    def _import(
        self, path: str, arguments: dict[str, Any], report: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """Has a file imported by the process that serves the database, or imports it here if none serves.

        report: a function that is called with the import's record while the import runs.

        Returns the last record.
        """

        def import_here() -> dict[str, Any]:
            with loading():
                from gateway.offline_work import import_file

            return asyncio.run(import_file(self.settings, path, arguments, report))

        return self.client.dispatch(import_here, lambda _: self._follow_import(path, arguments, report))

    def _follow_import(
        self, path: str, arguments: dict[str, Any], report: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        """Has the process that serves import a file, and waits for the end. Returns the import's last record."""
        record: dict[str, Any] = self.perform("imports-begin", {**arguments, "path": path}, FILE_ANSWER_S)
        same_import = {"import": record["id"], "preview": arguments.get("preview")}
        while record["status"] == "running":
            report(record)
            time.sleep(POLL_S)
            record = self.perform("imports-show", same_import)
        return record

    def undo_import(self, import_id: str) -> None:
        """Undoes an import."""
        with Progress("Undoing the import") as progress:
            while self.perform("imports-undo", {"import": import_id})["status"] != "undone":
                progress.show()
        print(f"The import {import_id} is undone.", file=sys.stderr)

    def compact(self, arguments: _Arguments) -> None:
        """Asks for a summary of a conversation. On a terminal, waits for the summary while a gateway serves."""
        job = self.perform("compact", arguments)["job"]
        print(f"Job {job}; `mnemogate jobs` shows it until it is done.", file=sys.stderr)
        with Progress("Summarising (^C leaves it to the gateway)") as progress:
            if not progress.is_shown or self.client.find_process() is None:
                return
            is_done = self._wait_for_job(job, progress)
        message = "It is done." if is_done else "The gateway has ended; the next one goes on."
        print(message, file=sys.stderr)

    def _wait_for_job(self, job: Any, progress: Progress) -> bool:
        """Waits for a job as long as a gateway serves. Returns whether it is done.

        Raises: GatewayError: the job has failed.
        """
        while self.client.find_process() is not None:
            record = next(iter(self.perform("jobs-list", {"job": job})), None)
            if record is None:  # jobs that are done are not listed
                return True
            if record["state"] not in ("pending", "running"):
                raise GatewayError(f"The job {job} is {record['state']}: {record['error']}")
            progress.show()
            time.sleep(POLL_S)
        return False


def _check_forget_arguments(arguments: _Arguments, *, all_users: bool) -> None:
    """Checks that arguments name either all users, or a memory or its part. Raises: BadRequest: both, or neither."""
    is_narrowed = not arguments.keys().isdisjoint(
        ("message", "exchange", "in", "fact", "passage", "user", "conversation", "agent")
    )
    if all_users and is_narrowed:
        raise BadRequest(
            "Say what to forget: --all-users forgets every user, and cannot be combined with options that name one."
        )
    if not all_users and not is_narrowed:
        raise BadRequest("Say what to forget: --user, --conversation, --agent, or --all-users.")
