"""The command line: the commands, their options, and the texts of their help.

Help, completion and errors of usage need this module alone, so they are fast. `gateway.cli_commands`, which performs
the commands, is loaded once it is known which command runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import click

from gateway.cli_options import (
    EXIT_FAILED,
    Group,
    add_memory_options,
    json_option,
    limit_option,
    make_choice_option,
    make_flag,
    make_option,
    read_seconds,
    yes_option,
)
from gateway.errors import GatewayError, SettingsError
from gateway.loading import loading
from gateway.run.admin.command_line import printed, record_lists
from gateway.run.admin.command_line.printed import print_error
from gateway.run.admin.command_line.progress import Progress
from gateway.run.admin.command_line.streams import open_closed_streams, recode
from gateway.run.admin.plain_text import escape_controls

if TYPE_CHECKING:
    from gateway.cli_commands import Commands
    from gateway.limits import Limits

# The exit code of a call that click refuses (click uses 2 as well).
_EXIT_REFUSED = 2
# The exit code that shells report of a process that SIGPIPE ended.
_EXIT_PIPE = 141
# The variable with which shells ask for completions, as click names the variable.
_COMPLETION_VARIABLE = "_MNEMOGATE_COMPLETE"

_Arguments = dict[str, Any]


def main(argv: Sequence[str] | None = None, limits: Limits | None = None) -> int:
    """Runs one command and returns its exit code.

    argv: the arguments; None: `sys.argv`.
    limits: the limits of the gateway that `serve` starts; None: the default limits.

    Raises: SystemExit: a help text was printed, or the arguments are refused.
    """
    open_closed_streams()
    # A character that the terminal's encoding lacks is printed as an escape.
    recode(sys.stdout, errors="backslashreplace")
    arguments = list(argv if argv is not None else sys.argv[1:])
    if instruction := os.environ.get(_COMPLETION_VARIABLE):
        from click.shell_completion import shell_complete

        return shell_complete(root, {}, "mnemogate", _COMPLETION_VARIABLE, instruction)
    try:
        return _run_command(arguments, limits)
    except click.UsageError as error:
        _refuse(error, arguments)
    except GatewayError as error:
        print_error(escape_controls(error.message))
        return EXIT_FAILED
    except BrokenPipeError:
        # The reader of the pipe has stopped reading, as in `mnemogate users | head`.
        _drop_output()
        return _EXIT_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_output()
        print_error(f"what it says cannot be written: {error.strerror}")
        return EXIT_FAILED


def _run_command(arguments: list[str], limits: Limits | None) -> int:
    """Runs the command. Returns the exit code. Raises: SystemExit: a help text or the version was printed."""
    try:
        colour = None if printed.wants_colour() else False
        with root.make_context("mnemogate", arguments.copy(), color=colour, obj=limits) as context:
            try:
                code: int | None = root.invoke(context)
            except SettingsError as error:
                code = _report_settings(error, context.meta.get("config"))
    except click.exceptions.Exit as end:  # of --help and --version
        sys.exit(end.exit_code)
    sys.stdout.flush()
    return code or 0


def _drop_output() -> None:
    """Drops the text that could not be printed, so that Python's own last flush of the text does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(error: click.UsageError, arguments: list[str]) -> NoReturn:
    """Prints the mistake in the command line, and ends the process."""
    command_path = "mnemogate"
    message = error.format_message()
    if error.ctx is not None:
        command_path = error.ctx.command_path
        print(error.ctx.get_usage(), file=sys.stderr)
    if isinstance(error, click.NoSuchOption):
        if error.possibilities:
            print(f"Did you mean {error.possibilities[0]}?", file=sys.stderr)
        name = error.option_name
        argument = next((word for word in arguments if word.partition("=")[0] == name), name)
        message = f"unrecognized arguments: {argument}"
    print_error(f"error: {escape_controls(message)}", command_path)
    sys.exit(_EXIT_REFUSED)


def _report_settings(error: SettingsError, config: str | None) -> int:
    """Prints the mistakes in the settings, each with its file. Returns the exit code."""
    from gateway.settings.load import find_settings_file

    file = find_settings_file(config) if error.is_in_file else None
    for mistake in error.mistakes:
        names_file = file is not None and mistake.is_in_file and len(error.mistakes) > 1
        print_error(f"{file}: {mistake.message}" if names_file else mistake.message)
    if file is not None:
        # Variables override the file, so the variables that are set are named, too.
        variables = ", ".join(sorted(name for name in os.environ if name.startswith("MNEMOGATE_")))
        variables_note = f"; set besides it: {variables}" if variables else ""
        print_error(f"the settings file is {file}{variables_note}")
    return _EXIT_REFUSED


# -- shared by all commands


def _load_commands() -> Commands:
    """Loads the code that performs commands. Returns the commands, over the files that the options name."""
    context = click.get_current_context()
    with loading():
        from gateway.cli_commands import Commands
    return Commands(context.meta.get("config"), context.meta.get("db"), context.obj)


def _print_answer(operation: str, arguments: _Arguments, show: Callable[[Any], None]) -> None:
    """Performs an operation. show: a function that prints the operation's answer."""
    show(_load_commands().perform(operation, arguments))


def _print_list(
    operation: str, arguments: _Arguments, listing: record_lists.RecordList, as_json: bool = False
) -> None:
    """Prints the records of an operation that answers with all of them."""
    printed.show_list(listing, _load_commands().perform(operation, arguments), as_json=as_json)


def _print_records(
    operation: str, arguments: _Arguments, listing: record_lists.RecordList, as_json: bool
) -> None:
    """Prints all records of an operation that answers page by page."""
    printed.show_list(listing, _load_commands().client.read_records(operation, arguments), as_json=as_json)


def _require_consent(yes: bool, action: str) -> None:
    """Asks the operator before an action that cannot be undone, unless the operator said --yes.

    action: a sentence about the action.

    Raises: GatewayError: the operator refuses; UsageError: there is no terminal to ask on, and no --yes.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        click.get_current_context().fail(
            f"{action} It cannot be undone, and there is no terminal to ask on: add --yes."
        )
    try:
        is_agreed = click.confirm(
            escape_controls(f"{action} It cannot be undone. Go on?"), prompt_suffix=" ", err=True
        )
    except click.Abort as end:  # by ^D or ^C
        print(file=sys.stderr)
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from end
        is_agreed = False
    if not is_agreed:
        raise GatewayError("Nothing was done.")


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="The OpenAI-compatible gateway that remembers.",
)
@click.version_option(
    package_name="mnemogate", message="mnemogate %(version)s", help="print the version and exit"
)
def root() -> None: ...


# -- serving


@root.command(help="serve requests until it is stopped")
@make_option("host", "the address to listen on (default: 127.0.0.1)")
@make_option("port", "the port to listen on (default: 8080; 0 takes any free one)", type=int)
@make_option("upstream", "the base URL of an OpenAI-compatible upstream, with its /v1", "URL")
@make_flag("single-user", "treat all callers as one person, so that requests need no `user`")
@make_flag("no-work", "leave background jobs to others that share the database (mnemogate worker)")
def serve(host: str | None, port: int | None, upstream: str | None, single_user: bool, no_work: bool) -> int:
    flags = {("server", "host"): host, ("server", "port"): port}
    flags["memory", "single_user"] = single_user or None
    return _load_commands().serve(flags, upstream, performs_jobs=not no_work)


@root.command(
    help="serve a user's memory to an editor or a desktop client, over stdio (MCP), until the input ends"
)
@make_option("user", "the person whose memory it is", required=True)
@make_option("project", "the project (default: default)", default="default")
@make_option("profile", "the profile (default: the project's)")
@make_flag("read", "refuse what writes")
def mcp(read: bool, **arguments: Any) -> None:
    _load_commands().serve_mcp(arguments, is_read_only=read)


@root.command(help="perform background jobs until it is stopped, without a server")
@make_option("port", "answer /health and /metrics at this port of server.host (default: at none)", type=int)
def worker(port: int | None) -> int:
    return _load_commands().work({("server", "port"): port}, listens=port is not None)


@root.command(help="bring the database to the schema of this version")
def migrate() -> None:
    _load_commands().migrate()


@root.command(help="check the settings and print them, without secrets")
@make_flag("strict", "fail (exit code 1) on a warning, such as of a gateway that would start without memory")
def check_config(strict: bool) -> int:
    return _load_commands().check_config(is_strict=strict)


@root.command("version", help="print the version", reads_settings=False)
def show_version() -> None:
    from importlib.metadata import version

    print(f"mnemogate {version('mnemogate')}")


@root.command(
    help="open the page for operators in a browser: print its address with a sign-in code, which works once"
)
@make_flag("print", "print the address, and open no browser", "only_print")
def ui(only_print: bool) -> None:
    _load_commands().open_page(only_prints=only_print)


# -- keys


@root.group(help="create, rotate, list and revoke gateway keys")
def keys() -> None: ...


@keys.command("create", help="create a key, which is shown only once")
@make_option("project", "whose memories it opens (default: default; with --operator: all)")
@make_option("name", "what `keys list` calls it (default: key)", default="key")
@make_choice_option(
    "memory",
    "memory for its requests that do not choose it themselves (default: as in the settings)",
    *("off", "read", "on"),
)
@make_flag("metrics", "a key that opens /metrics and nothing else")
@make_flag("operator", "a key that opens /v1/manage and the page (/ui), and nothing else")
@make_flag("read", "with --operator: a key that changes nothing")
@make_option(
    "expires", "it ends after so long, such as 90d or 12h (default: never)", "TIME", type=read_seconds
)
@make_option(
    "models", "the names that it may ask for, between commas, with * and ? (default: all)", "PATTERN,..."
)
@make_option("user", "the person of all its requests (default: the one that each request names)")
def create_key(**arguments: Any) -> None:
    _print_answer("keys-create", arguments, printed.show_new_key)


@keys.command("rotate", help="give a key a new secret; the old one is good for a time")
@make_option(
    "overlap", "how long the old one is good, such as 24h (the default) or 0s", "TIME", type=read_seconds
)
@click.argument("key", help="the key's number, as `keys list` shows it", type=int)
def rotate_key(key: int, overlap: int | None) -> None:
    _print_answer("keys-rotate", {"key": key, "overlap_s": overlap}, lambda key: print(key["secret"]))


@keys.command("list", help="list the keys")
@json_option
def list_keys(as_json: bool) -> None:
    _print_list("keys-list", {}, record_lists.KEYS, as_json)


@keys.command("revoke", help="revoke a key for good")
@yes_option
@click.argument("key", help="the key's number or name, as `keys list` shows them")
def revoke_key(yes: bool, key: str) -> None:
    _require_consent(yes, f"This revokes the key {key!r} for good: whoever uses it is locked out.")
    _print_answer("keys-revoke", {"key": key}, printed.show_revoked_key)


# -- memory


@root.group(help="show, explain, add to, correct, undo, mute, forget, export and import what is remembered")
def memory() -> None: ...


@memory.command("show", help="show blocks, facts and recent messages of a memory")
@add_memory_options
@make_option("query", "show what would be recalled for this question, and the messages found, too")
@make_flag("why", "show where blocks, passages and facts come from, too")
def show_memory(**arguments: Any) -> None:
    _print_answer("memory-show", arguments, printed.show_memory)


@memory.command("forget", help="forget for good: it cannot be undone")
@add_memory_options
@yes_option
@make_option("message", "one message, by its number in `memory show`", "N", type=int)
@make_option("exchange", "a message with its question or answer", "N", type=int)
@make_option("in", "one conversation of the user's, by its id", "ID")
@make_option("fact", "one learned fact: the messages it came from stay", "N", type=int)
@make_option("passage", "one passage of archival memory", "N", type=int)
@make_option(
    "keep",
    "a fact that would go with it and stays, on no message; several times",
    "N",
    type=int,
    multiple=True,
)
@make_flag(
    "all-users", "all users of --profile; without one all that the project has, agents of the agents API too"
)
def forget_memory(yes: bool, all_users: bool, keep: Sequence[int], **arguments: Any) -> None:
    if keep:
        arguments["keep"] = [*keep]
    _load_commands().forget(arguments, partial(_require_consent, yes), all_users=all_users)


@memory.command("undo", help="undo the last change of a block")
@add_memory_options
@make_option("block", "the block", "LABEL", required=True)
def undo_block(**arguments: Any) -> None:
    _print_answer("memory-undo", arguments, printed.show_block)


@memory.command("add", help="add a fact that rests on no message")
@add_memory_options
@make_option("text", "what is true", "TEXT", required=True)
@make_flag("always", "show it to the model before each reply, whatever is asked")
def add_fact(**arguments: Any) -> None:
    _print_answer("memory-add", arguments, printed.show_fact)


@memory.command("correct", help="put another text in the place of a learned fact")
@add_memory_options
@make_option("fact", "the fact, by its number in `memory show`", "N", type=int, required=True)
@make_option("text", "what is true", "TEXT", required=True)
def correct_fact(**arguments: Any) -> None:
    _print_answer("memory-correct", arguments, printed.show_fact)


@memory.command("mute", help="recall a learned fact no more, but leave it in lists: it is not forgotten")
@add_memory_options
@make_option("fact", "the fact, by its number in `memory show`", "N", type=int, required=True)
@make_flag("off", "have it said again")
def mute_fact(**arguments: Any) -> None:
    _print_answer("memory-mute", arguments, printed.show_fact)


@memory.command("why", help="show why a reply recalled what it did")
@json_option
@click.argument("request", help="the x-mnemogate-request-id of the reply")
def explain_request(request: str, as_json: bool) -> None:
    explained = _load_commands().perform("memory-why", {"request": request})
    printed.show_request(explained, as_json=as_json)


@memory.command("export", help="export a memory as JSON lines")
@add_memory_options
@make_flag("force", "replace a file that is there")
@click.argument(
    "file", required=False, type=click.Path(), help="the file to write (default, and -: standard output)"
)
def export_memory(file: str | None, force: bool, **arguments: Any) -> None:
    _load_commands().export(arguments, None if file == "-" else file, may_replace=force)


@memory.command("import", help="import an exported memory for a user who has none")
@add_memory_options
@click.argument(
    "file", required=False, type=click.Path(), help="the file to read (default, and -: standard input)"
)
def import_memory(file: str | None, **arguments: Any) -> None:
    _load_commands().import_memory(arguments, None if file == "-" else file)


@root.command(
    "import", help="import what another application has exported: conversations, or a list of facts"
)
@click.argument("file", type=click.Path(), help="the file: a ZIP, JSON, JSON lines, or lines of text")
@make_option("user", "whose memory it is for (default: the settings' user of requests that name none)")
@make_option("project", "the project (default: default)")
@make_option("profile", "the profile (default: the project's)")
@make_choice_option(
    "format",
    "the format of the file (default: recognised by its contents)",
    *("chatgpt", "claude", "list", "jsonl", "mem0", "mastra"),
)
@make_option("source-user", "the user in the file to import facts of, if it has several", "NAME")
@make_flag("learn", "learn from the conversations, too, which asks the background model")
@make_flag("preview", "show what would be imported, and write nothing")
@json_option
def import_file(file: str, as_json: bool, **arguments: Any) -> int:
    return _load_commands().import_file(file, arguments, as_json=as_json)


@root.group(help="list imports, and undo one", invoke_without_command=True)
def imports() -> None: ...


@imports.command("list", help="list imports, the newest first (the default action)")
@make_option("project", "the project (default: all of them)")
@json_option
def list_imports(as_json: bool, project: str | None) -> None:
    _print_records("imports-list", {"project": project}, record_lists.IMPORTS, as_json)


@imports.command(
    "undo", help="take away what an import added, and all that came of it; it may be imported again"
)
@yes_option
@click.argument("import_id", metavar="ID", help="the import's id, as `imports` shows it")
def undo_import(yes: bool, import_id: str) -> None:
    _require_consent(yes, f"This takes away all that the import {import_id!r} added.")
    _load_commands().undo_import(import_id)


# -- lists


_project_option = make_option("project", "the project (default: all of them)")


@root.command(help="list whose memories there are, and how to forget each")
@_project_option
@limit_option
@json_option
def users(limit: int | None, as_json: bool, project: str | None) -> None:
    _load_commands().list_pages("users", {"project": project}, record_lists.USERS, limit, as_json=as_json)


@root.command(help="list a user's conversations, the newest first, and how to forget each")
@add_memory_options
@limit_option
@json_option
def conversations(limit: int | None, as_json: bool, **arguments: Any) -> None:
    _load_commands().list_pages(
        "conversations", arguments, record_lists.CONVERSATIONS, limit, as_json=as_json
    )


_uid_option = make_option("memory", "of this memory alone, by its uid in `users --json`", "UID")


@root.command(help="list the last requests of the process that serves, the newest first")
@_project_option
@_uid_option
@limit_option
@json_option
def requests(limit: int | None, as_json: bool, **arguments: Any) -> None:
    _load_commands().list_pages("requests", arguments, record_lists.REQUESTS, limit, as_json=as_json)


@root.command(help="list what operators did, and people by their links, the newest first")
@_project_option
@_uid_option
@make_option("user", "of the memories of this user alone")
@make_option("action", "of this kind alone, such as forget or read")
@make_option("since", "from this day or time on, UTC", "YYYY-MM-DD")
@make_option("until", "until this time, or the end of this day", "YYYY-MM-DD")
@limit_option
@json_option
def audit(limit: int | None, as_json: bool, **arguments: Any) -> None:
    _load_commands().list_pages("audit", arguments, record_lists.AUDIT, limit, as_json=as_json)


@root.command(help="show what requests used: tokens, calls and cost, added up")
@make_option(
    "by", "group by these columns: day, project, user, key, upstream, model (default: day)", "COLUMN,..."
)
@make_option("from", "from this day on, UTC (default: the last 30 days)", "YYYY-MM-DD")
@make_option("to", "up to this day (default: today)", "YYYY-MM-DD")
@_project_option
@make_option("user", "of this user alone")
@make_option("key", "of this key alone, by its number in `keys list`", "N")
@make_flag("csv", "as CSV with all counters", "as_csv")
@json_option
def usage(as_csv: bool, as_json: bool, **arguments: Any) -> None:
    _load_commands().show_usage(arguments, as_csv=as_csv, as_json=as_json)


@root.group(help="list, add and remove limits of what may be used", invoke_without_command=True)
def limits() -> None: ...


@limits.command("list", help="list the limits (the default action)")
@_project_option
@json_option
def list_limits(as_json: bool, project: str | None) -> None:
    _print_records("limits-list", {"project": project}, record_lists.LIMITS, as_json)


@limits.command("add", help="add a limit, which holds from now on")
@make_option("project", "of this project (default: default)")
@make_option("key", "of this key alone, by its number", "N", type=int)
@make_option("user", "of this user alone; '*': of each user by itself")
@make_choice_option("unit", "what is limited", "requests", "tokens", "cost", "concurrent")
@make_choice_option("per", "in which period, by the calendar of UTC", "minute", "day", "month")
@make_option("most", "how much is allowed; 0 allows nothing", "N", type=float, required=True)
@make_option("then", "`refuse` (the default), or an alias that answers instead", "ALIAS")
def add_limit(most: float, **arguments: Any) -> None:
    amount = int(most) if most.is_integer() else most
    _load_commands().add_limit({**arguments, "most": amount})


@limits.command("remove", help="remove a limit")
@click.argument("limit", help="its number, as `limits` shows it", type=int)
def remove_limit(limit: int) -> None:
    _print_answer("limits-remove", {"limit": limit}, lambda _: None)


# -- background work


@root.command(help="summarise a conversation now, before its window is full")
@add_memory_options
@make_option("in", "the conversation's id (default: the user's last conversation)", "ID")
def compact(**arguments: Any) -> None:
    _load_commands().compact(arguments)


@root.group(help="list, retry and cancel background jobs", invoke_without_command=True)
def jobs() -> None: ...


@jobs.command("list", help="list jobs, the newest first (the default action)")
@make_choice_option("state", "only these", "pending", "running", "retrying", "dead")
@make_option("limit", "at most N jobs (default: 100)", "N", type=int, default=100)
@json_option
def list_jobs(as_json: bool, **arguments: Any) -> None:
    _print_list("jobs-list", arguments, record_lists.JOBS, as_json)


_job_argument = click.argument("job", type=int, help="the job's number")


@jobs.command("show", help="show one job with the steps it has done")
@_job_argument
def show_job(**arguments: Any) -> None:
    _print_answer("jobs-show", arguments, printed.show_json)


@jobs.command("retry", help="retry a failed job now")
@_job_argument
def retry_job(**arguments: Any) -> None:
    _print_answer("jobs-retry", arguments, partial(printed.show_record, record_lists.JOBS))


@jobs.command("cancel", help="cancel a job; one that is running changes nothing more")
@yes_option
@_job_argument
def cancel_job(yes: bool, job: int) -> None:
    _require_consent(yes, f"This removes the job {job}.")
    _print_answer("jobs-cancel", {"job": job}, printed.show_cancelled_job)


@root.group(help="list, show and cancel batches of agents", invoke_without_command=True)
def batches() -> None: ...


@batches.command("list", help="list batches, the newest first (the default action)")
@make_option("limit", "at most N batches (default: 100)", "N", type=int, default=100)
@json_option
def list_batches(as_json: bool, **arguments: Any) -> None:
    _print_list("batches-list", arguments, record_lists.BATCHES, as_json)


_batch_argument = click.argument("batch", help="the batch's id")


@batches.command("show", help="show one batch with its items that did not complete")
@_batch_argument
def show_batch(**arguments: Any) -> None:
    _print_answer("batches-show", arguments, printed.show_json)


@batches.command("cancel", help="cancel what has not ended of a batch")
@yes_option
@_batch_argument
def cancel_batch(yes: bool, batch: str) -> None:
    _require_consent(yes, f"This ends all that has not ended of the batch {batch!r}.")
    _print_answer("batches-cancel", {"batch": batch}, partial(printed.show_record, record_lists.BATCHES))


# -- moving


def _read_url_or_file(text: str) -> str:
    from gateway.settings.value_syntax import POSTGRES

    if "://" in text and not text.startswith(POSTGRES):
        raise click.BadParameter("expected postgresql://USER@HOST/NAME or a file")
    return text


def _read_http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise click.BadParameter("expected http://HOST:PORT")
    # Base URLs of OpenAI's SDKs end in /v1, which belongs to the paths here.
    return text.rstrip("/").removesuffix("/v1")


@root.command(
    help="move all that the SQLite file holds to a PostgreSQL, or back; if interrupted, run it again"
)
@click.argument(
    "target",
    type=_read_url_or_file,
    help="the database to fill: postgresql://USER@HOST/NAME, or a file where the settings name a PostgreSQL",
)
def move(target: str) -> int:
    return _load_commands().move(target)


@root.command(
    help="move the agents of a Letta server, with all that they remember, to a gateway; if interrupted, run it again",
    reads_settings=False,
)
@click.argument("url", type=_read_http_url, help="the Letta server: http://HOST:8283")
@make_option("token", "its password or token (default: LETTA_API_KEY)")
@make_option(
    "to", "the gateway", "URL", type=_read_http_url, default="http://127.0.0.1:8080", show_default=True
)
@make_option("key", "a gateway key of the agents' project (default: MNEMOGATE_KEY)")
@make_option("model", "the model that they get (default: the one that each has)")
@make_option("agent", "an agent's id; may be given several times (default: all agents)", "ID", multiple=True)
def from_letta(
    url: str, token: str | None, to: str, key: str | None, model: str | None, agent: Sequence[str]
) -> int:
    with loading():
        from gateway.agents.migrate.agents_server import Server
        from gateway.agents.migrate.from_letta import LettaMove
    source = Server(url, token or os.environ.get("LETTA_API_KEY"))
    target = Server(to, key or os.environ.get("MNEMOGATE_KEY"))
    with Progress("Moving agents") as progress:
        outcome = LettaMove(source, target, model).run(agent, printed.show_line, progress.show)
    printed.show_agents_move(outcome.moved, outcome.already_there, outcome.failed, outcome.models)
    return EXIT_FAILED if outcome.failed else 0
