"""The command line: it serves, checks the settings, and performs an operator's operations on the database.

Modules that only serving needs are imported where it begins, so that the other commands answer at once.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from gateway.errors import BadRequest, GatewayError, SettingsError
from gateway.limits import Limits
from gateway.run.admin.printed import (
    argument,
    counted,
    describe_exported,
    describe_forgetting,
    describe_forgotten,
    describe_moved,
    describe_others,
    describe_unswept,
    plain,
    show_as_json,
    show_batch,
    show_batches,
    show_block,
    show_cancelled,
    show_enqueued,
    show_job,
    show_jobs,
    show_keys,
    show_memory,
    show_new_key,
    show_progress,
    show_revoked,
    size,
)
from gateway.run.admin.serving import ProcessGone, ServingProcess
from gateway.run.admin.streams import (
    can_ask,
    is_agreed,
    open_closed_streams,
    opened,
    pages_of,
    recode,
    written,
)
from gateway.run.upstream.route import check_models
from gateway.settings import Settings, without_password
from gateway.settings.check import POSTGRES
from gateway.settings.load import load_settings, settings_file
from gateway.settings.schema import Mistakes
from storage.errors import ReadOnly, StoreError
from storage.sqlite.lock import owner_of

EXIT_SETTINGS = 2
EXIT_FAILED = 1
# As shells report a process that SIGPIPE ended.
EXIT_PIPE = 141
# Operations that make sense before the first `serve`: they may make the database.
FOUNDERS = ("keys-create", "memory-import")
URLS = ("url", "listen_url", "proxy")
SECRETS = ("api_key", "headers", "key", "openwebui_jwt_secret", "secrets_key", "webhook_secret")
# What is for this process, and not for an operation.
OWN = (
    "run",
    "parser",
    "limits",
    "config",
    "db",
    "file",
    "all_users",
    "json",
    "limit_lines",
    "no_work",
    "yes",
    "force",
)


def main(argv: Sequence[str] | None = None, limits: Limits | None = None) -> int:
    """Runs one command and returns its exit code. limits: of the gateway that `serve` starts."""
    open_closed_streams()
    # What the terminal's encoding has no sign for is shown by its number.
    recode(sys.stdout, errors="backslashreplace")
    arguments, left = _parser().parse_known_args(argv)
    if left:  # argparse would show the usage of the whole program, not that of the command
        arguments.parser.error(f"unrecognized arguments: {' '.join(left)}")
    arguments.limits = limits
    try:
        code: int | None = arguments.run(arguments)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        # The reader has enough, as `| head` does. Python's own last flush must not fail for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except SettingsError as error:
        file = settings_file(getattr(arguments, "config", None)) if error.in_file else None
        for each in error.mistakes:
            of = f"{file}: " if file is not None and each.in_file and len(error.mistakes) > 1 else ""
            print(f"mnemogate: {of}{each.message}", file=sys.stderr)
        if file is not None:
            # A value of theirs takes the place of the file's, and is named as the file's is.
            others = ", ".join(sorted(name for name in os.environ if name.startswith("MNEMOGATE_")))
            besides = f"; set besides it: {others}" if others else ""
            print(f"mnemogate: the settings file is {file}{besides}", file=sys.stderr)
        return EXIT_SETTINGS
    except GatewayError as error:
        print(f"mnemogate: {plain(error.message)}", file=sys.stderr)
        return EXIT_FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What was printed has no room. Python's own last flush must not fail for it either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"mnemogate: what it says cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mnemogate",
        description="The OpenAI-compatible gateway that remembers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mnemogate {version('mnemogate')}")
    _add_files(parser)
    parser.set_defaults(run=lambda _: parser.error("say which command: see `mnemogate -h`"), parser=parser)
    commands = parser.add_subparsers(metavar="command")
    _add_serving(commands)
    for name, add, text in (
        ("keys", _add_keys, "create, list and revoke gateway keys"),
        ("memory", _add_memory, "show, undo, forget, export and import what is remembered"),
    ):
        add(_add_files(commands.add_parser(name, help=text)).add_subparsers(required=True))
    _add_lists(commands)
    text = "summarise a conversation now, before its window is full"
    compact = _add_scope(_add_operation(commands, "compact", show_enqueued, text))
    which = "the conversation's id (default: the user's last conversation)"
    compact.add_argument("--in", metavar="ID", help=which)
    _add_jobs(commands)
    _add_batches(commands)
    text = "move all that the SQLite file holds to a PostgreSQL, or back; begun again, it goes on"
    move = _command(commands, "move", _move, text)
    text = "the database to fill: postgresql://USER@HOST/NAME, or a file where the settings name a PostgreSQL"
    move.add_argument("target", type=_url_or_file, help=text)
    _add_from_letta(commands)
    return parser


def _command(group: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> Any:
    """Adds a command, with the options that all commands have which read the settings."""
    sub = group.add_parser(name, help=text, description=text, allow_abbrev=False)
    sub.set_defaults(run=run, parser=sub)
    return _add_files(sub)


def _add_files(parser: Any) -> Any:
    """Adds the options that name files: before a command, behind it and behind its action they mean the same.

    They have no default, which would take the place of what was given in front of an action.
    """
    for name, text in (
        ("config", "the settings file (default: mnemogate.toml, if there is one)"),
        ("db", "the database file (default: mnemogate.db)"),
    ):
        parser.add_argument(f"--{name}", metavar="FILE", default=argparse.SUPPRESS, help=text)
    return parser


def _add_operation(
    group: Any,
    operation: str,
    show: Callable[[Any], None],
    text: str,
    name: str | None = None,
    describe: Callable[[dict[str, Any]], str] | None = None,
) -> Any:
    """Adds a command that performs one operation and shows its answer.

    name: by default the end of the operation's. describe: what the arguments will do, in a sentence, where it cannot be
    undone, so that the operator is asked first.
    """

    def run(arguments: argparse.Namespace) -> None:
        wanted = _given(arguments)
        if describe is not None:
            _check_consent(arguments, describe(wanted))
        show(_perform(_settings(arguments), operation, wanted))

    sub = _command(group, name or operation.rpartition("-")[2], run, text)
    return sub if describe is None else _add_consent(sub)


def _add_consent(sub: Any) -> Any:
    sub.add_argument("--yes", action="store_true", help="do not ask first, though it cannot be undone")
    return sub


def _check_consent(arguments: argparse.Namespace, action: str) -> None:
    """Asks before something that cannot be undone. action: what will be done, in a sentence.

    Raises: GatewayError: the operator said no; SystemExit: there is no terminal to ask on, and no --yes.
    """
    if arguments.yes:
        return
    if not can_ask():
        arguments.parser.error(
            f"{action} It cannot be undone, and there is no terminal to ask on: add --yes."
        )
    if not is_agreed(f"{action} It cannot be undone. Go on?"):
        raise GatewayError("Nothing was done.")


def _add_serving(commands: Any) -> None:
    serve = _command(commands, "serve", _serve, "serve requests until it is stopped")
    serve.add_argument("--host", help="the address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="the port to listen on (default: 8080; 0 takes any free one)")
    upstream = "the base URL of an OpenAI-compatible upstream, with its /v1"
    serve.add_argument("--upstream", metavar="URL", help=upstream)
    one = "treat all callers as one person, so that requests need no `user`"
    serve.add_argument("--single-user", action="store_true", default=None, help=one)
    others = "leave background jobs to others that share the database (mnemogate worker)"
    serve.add_argument("--no-work", action="store_true", help=others)
    _command(commands, "worker", _work, "perform background jobs until it is stopped, without a server")
    _command(commands, "migrate", _migrate, "bring the database to the schema of this version")
    _command(commands, "check-config", _check_config, "check the settings and print them, without secrets")
    text = "print the version"
    says = commands.add_parser("version", help=text, description=text, allow_abbrev=False)
    says.set_defaults(run=_version, parser=says)


def _add_keys(actions: Any) -> None:
    create = _add_operation(actions, "keys-create", show_new_key, "create a key, which is shown only once")
    create.add_argument("--project", default="default", help="whose memories it opens (default: default)")
    create.add_argument("--name", default="key", help="what `keys list` calls it (default: key)")
    mode = "what memory does for its requests that do not say it (default: as the settings say)"
    create.add_argument("--memory", choices=("off", "read", "on"), help=mode)
    create.add_argument("--metrics", action="store_true", help="a key that opens /metrics and nothing else")
    _add_operation(actions, "keys-list", show_keys, "list the keys")
    revoke = _add_operation(
        actions,
        "keys-revoke",
        show_revoked,
        "revoke a key for good",
        describe=lambda wanted: (
            f"This revokes the key {wanted['key']!r} for good: whoever uses it is locked out."
        ),
    )
    revoke.add_argument("key", help="the key's number or name, as `keys list` shows them")


def _add_from_letta(commands: Any) -> None:
    text = "move the agents of a Letta server, with all that they remember, to a gateway; begun again, it goes on"
    sub = commands.add_parser("from-letta", help=text, description=text, allow_abbrev=False)
    sub.set_defaults(run=_from_letta, parser=sub)
    sub.add_argument("url", type=_http_url, help="the Letta server: http://HOST:8283")
    sub.add_argument("--token", help="its password or token (default: LETTA_API_KEY)")
    here, text = "http://127.0.0.1:8080", "the gateway (default: %(default)s)"
    sub.add_argument("--to", metavar="URL", type=_http_url, default=here, help=text)
    sub.add_argument("--key", help="a gateway key of the agents' project (default: MNEMOGATE_KEY)")
    sub.add_argument("--model", help="the model that they get (default: the one that each has)")
    text = "an agent's id; may be given several times (default: all agents)"
    sub.add_argument("--agent", metavar="ID", action="append", default=[], help=text)


def _add_jobs(commands: Any) -> None:
    text = "list, retry and cancel background jobs"
    jobs = _add_operation(commands, "jobs-list", show_jobs, text, name="jobs")
    actions = jobs.add_subparsers()
    text = "list jobs, the newest first (the default action)"
    sub = _add_operation(actions, "jobs-list", show_jobs, text)
    sub.add_argument("--state", choices=("pending", "running", "retrying", "dead"), help="only these")
    sub.add_argument(
        "--limit", type=int, default=100, metavar="N", help="at most N jobs (default: %(default)s)"
    )
    cancelled = "cancel a job; one that is running changes nothing more"
    for name, show, text, describe in (
        ("show", show_as_json, "show one job with the steps it has done", None),
        ("retry", show_job, "retry a failed job now", None),
        ("cancel", show_cancelled, cancelled, lambda wanted: f"This removes the job {wanted['job']}."),
    ):
        sub = _add_operation(actions, f"jobs-{name}", show, text, describe=describe)
        sub.add_argument("job", type=int, help="the job's number")


def _add_batches(commands: Any) -> None:
    text = "list, show and cancel batches of agents"
    batches = _add_operation(commands, "batches-list", show_batches, text, name="batches")
    actions = batches.add_subparsers()
    text = "list batches, the newest first (the default action)"
    sub = _add_operation(actions, "batches-list", show_batches, text)
    sub.add_argument(
        "--limit", type=int, default=100, metavar="N", help="at most N batches (default: %(default)s)"
    )
    ended = "This ends all that has not ended of the batch {batch!r}."
    for name, show, text, describe in (
        ("show", show_as_json, "show one batch with its items that did not complete", None),
        (
            "cancel",
            show_batch,
            "cancel what has not ended of a batch",
            lambda wanted: ended.format_map(wanted),
        ),
    ):
        sub = _add_operation(actions, f"batches-{name}", show, text, describe=describe)
        sub.add_argument("batch", help="the batch's id")


def _add_scope(sub: Any) -> Any:
    """Adds the options that name a memory. What is left out is filled in as for a request that leaves it out."""
    for name, default, text in (
        ("user", None, "the user (default: the settings' user of requests that name none)"),
        ("project", "default", "the project (default: default)"),
        ("profile", None, "the profile (default: the project's; `forget` of a whole user: all profiles)"),
        ("conversation", None, "a conversation without a user, instead of --user"),
        ("agent", None, "an agent, archive or folder made over the agents API, by its id, instead of --user"),
    ):
        # Stripped of blanks as in requests.
        sub.add_argument(f"--{name}", type=lambda value: value.strip(" \t"), default=default, help=text)
    return sub


def _add_lists(commands: Any) -> None:
    users = _command(commands, "users", _list_users, "list whose memories there are, and how to forget each")
    users.add_argument("--project", help="the project (default: all of them)")
    text = "list a user's conversations, the newest first, and how to forget each"
    conversations = _add_scope(_command(commands, "conversations", _list_conversations, text))
    for sub in (users, conversations):
        sub.add_argument("--limit", type=_lines, dest="limit_lines", metavar="N", help="at most N lines")
        sub.add_argument("--json", action="store_true", help="a JSON object for each line")


def _add_memory(actions: Any) -> None:
    text = "show blocks, facts and recent messages of a memory"
    show = _add_scope(_add_operation(actions, "memory-show", show_memory, text))
    show.add_argument(
        "--query", help="show what would be recalled for this question, and the messages found, too"
    )
    show.add_argument(
        "--why", action="store_true", help="show where blocks, passages and facts come from, too"
    )
    text = "forget for good: it cannot be undone"
    forget = _add_consent(_add_scope(_command(actions, "forget", _memory_forget, text)))
    forget.add_argument(
        "--message", type=int, metavar="N", help="one message, by its number in `memory show`"
    )
    forget.add_argument("--exchange", type=int, metavar="N", help="a message with its question or answer")
    forget.add_argument("--in", metavar="ID", help="one conversation of the user's, by its id")
    everybody = "all users of --profile; without one all that the project has, agents made over REST too"
    forget.add_argument("--all-users", action="store_true", help=everybody)
    text = "undo the last change of a block"
    undo = _add_scope(_add_operation(actions, "memory-undo", show_block, text))
    undo.add_argument("--block", required=True, metavar="LABEL", help="the block")
    export = _add_scope(_command(actions, "export", _memory_export, "export a memory as JSON lines"))
    export.add_argument("file", nargs="?", help="the file to write (default: standard output)")
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    text = "import an exported memory for a user who has none"
    restore = _add_scope(_command(actions, "import", _memory_import, text))
    restore.add_argument("file", nargs="?", help="the file to read (default: standard input)")


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what was given for an operation, which passes over what it does not know."""
    return {name: value for name, value in vars(arguments).items() if name not in OWN and value is not None}


def _settings(arguments: argparse.Namespace, *, needs_secrets: bool = False) -> Settings:
    flags = {
        ("server", "host"): getattr(arguments, "host", None),
        ("server", "port"): getattr(arguments, "port", None),
        ("database", "path"): getattr(arguments, "db", None),
        ("memory", "single_user"): getattr(arguments, "single_user", None),
    }
    return load_settings(
        config=getattr(arguments, "config", None),
        flags={name: value for name, value in flags.items() if value is not None},
        upstream=getattr(arguments, "upstream", None),
        needs_secrets=needs_secrets,
    )


def _serve(arguments: argparse.Namespace) -> int:
    from gateway.serve import serve

    logging.captureWarnings(True)
    return serve(_settings(arguments, needs_secrets=True), arguments.limits, works=not arguments.no_work)


def _work(arguments: argparse.Namespace) -> int:
    from gateway.serve import work

    logging.captureWarnings(True)
    return work(_settings(arguments, needs_secrets=True), arguments.limits)


def _migrate(arguments: argparse.Namespace) -> None:
    from gateway.serve import migrate

    settings = _settings(arguments)
    asyncio.run(migrate(settings))
    print(f"{settings.database.shown} has the schema of this version.", file=sys.stderr)


def _check_config(arguments: argparse.Namespace) -> None:
    from gateway.database import DatabaseFindings, check_database
    from gateway.providers import make_embedder, make_providers
    from gateway.run.background.model import background_route
    from gateway.serve import check_door
    from gateway.web.server import find_address

    def check_address(settings: Settings) -> None:
        find_address(settings.server.host, settings.server.port)

    settings, mistakes = _settings(arguments, needs_secrets=True), Mistakes()
    database = DatabaseFindings()
    # The start would refuse what these refuse. Nothing is made, and no port is taken.
    for check in (check_models, check_address, make_providers, background_route, make_embedder):
        with mistakes.noted():
            check(settings)
    with mistakes.noted():
        database = check_database(settings)
        check_door(settings, database.is_keyed or settings.server.key is not None)
    mistakes.end()
    for note in database.notes:
        print(f"mnemogate: {note}", file=sys.stderr)
    if database.fault is not None:
        print(f"mnemogate: nothing would be remembered: {database.fault}", file=sys.stderr)
    if database.is_open:
        print(
            f"mnemogate: other accounts may read {settings.database.shown}; `chmod 600` closes it",
            file=sys.stderr,
        )
    print(json.dumps(_without_secrets(asdict(settings)), indent=2, default=str))


def _move(arguments: argparse.Namespace) -> int:
    from gateway.operations import move_store

    settings, target = _settings(arguments), arguments.target
    here = settings.database
    if target.startswith(POSTGRES):
        source, filled = replace(here, url=None), replace(here, url=target)
        if not os.path.exists(source.path):
            raise GatewayError(f"There is no database at {os.path.abspath(source.path)} to be moved.")
    elif here.url is None:
        raise GatewayError(
            "A file is filled from a PostgreSQL, which database.url or MNEMOGATE_DATABASE_URL names."
        )
    else:
        source, filled = here, replace(here, url=None, path=target)
    done = asyncio.run(move_store(settings, source, filled, show_progress))
    print(describe_moved(done))
    return EXIT_FAILED if done.refused else 0


def _from_letta(arguments: argparse.Namespace) -> int:
    from gateway.agents.migrate.from_letta import Server, move_agents

    source = Server(arguments.url, arguments.token or os.environ.get("LETTA_API_KEY"))
    target = Server(arguments.to, arguments.key or os.environ.get("MNEMOGATE_KEY"))
    done = move_agents(
        source,
        target,
        arguments.agent,
        lambda line: print(plain(line.replace("\n", " ")), flush=True),
        model=arguments.model,
    )
    models = ", ".join(f"{plain(model)} ({n})" for model, n in sorted(done.models.items()))
    print(f"{done.moved} moved, {done.there} here before, {done.failed} not moved.", file=sys.stderr)
    if models:
        print(f"Their models: {models}. The gateway's upstreams must serve these.", file=sys.stderr)
    return EXIT_FAILED if done.failed else 0


def _version(_: argparse.Namespace) -> None:
    print(f"mnemogate {version('mnemogate')}")


# -- operations of several calls


def _memory_forget(arguments: argparse.Namespace) -> None:
    wanted = _given(arguments)
    is_narrowed = not wanted.keys().isdisjoint(("message", "exchange", "in", "user", "conversation", "agent"))
    if arguments.all_users and is_narrowed:
        raise BadRequest("Say what to forget: --all-users is everybody, the others name somebody.")
    if not arguments.all_users and not is_narrowed:
        raise BadRequest("Say what to forget: --user, --conversation, --agent, or --all-users.")
    settings = _settings(arguments)
    _check_consent(arguments, describe_forgetting(wanted))
    answer = first = _perform(settings, "memory-forget", wanted)
    count = answer["memories"]
    while not answer["done"]:
        answer = _perform(settings, "memory-forget", {**wanted, "left": answer["left"]})
        count += answer["memories"]
    files = {name: getattr(arguments, name, None) for name in ("config", "db")}
    print(describe_forgotten({**files, **wanted}, count, first), file=sys.stderr)
    if not answer.get("swept", True):  # a gateway of an older version does not say
        print(describe_unswept(bool(settings.database.url)), file=sys.stderr)


def _list_users(arguments: argparse.Namespace) -> None:
    def line(each: dict[str, Any]) -> tuple[str, ...]:
        counts = (counted(each[name], name) for name in ("conversations", "blocks", "facts", "passages"))
        return (*size(each), *counts)

    _list(arguments, "users", line)


def _list_conversations(arguments: argparse.Namespace) -> None:
    _list(arguments, "conversations", lambda each: (*size(each), each["client_id"] or "-"))


def _list(
    arguments: argparse.Namespace, operation: str, fields: Callable[[dict[str, Any]], tuple[str, ...]]
) -> None:
    """Prints all pages of a list. The last field of a line is what `mnemogate memory forget` takes."""
    settings, wanted, left = _settings(arguments), _given(arguments), arguments.limit_lines
    answer, count = _perform(settings, operation, wanted), 0
    while True:
        for each in answer["lines"][: None if left is None else left - count]:
            forget = " ".join(map(argument, each["forget"]))
            line = json.dumps(each) if arguments.json else "\t".join(map(plain, fields(each))) + "\t" + forget
            print(line)
            count += 1
        if answer["next"] is None or count == left:
            break
        answer = _perform(settings, operation, {**wanted, "from": answer["next"]})
    if not count:
        print("There is nothing to list.", file=sys.stderr)


def _lines(text: str) -> int:
    if not text.isascii() or not text.isdigit() or text.strip("0") == "":
        raise argparse.ArgumentTypeError(f"expected a positive number, saw {text!r}")
    return int(text)


def _http_url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("expected http://HOST:PORT")
    # Base URLs of OpenAI's SDKs end in /v1, which belongs to the paths here.
    return text.rstrip("/").removesuffix("/v1")


def _url_or_file(text: str) -> str:
    if "://" in text and not text.startswith(POSTGRES):
        raise argparse.ArgumentTypeError("expected postgresql://USER@HOST/NAME or a file")
    return text


def _memory_export(arguments: argparse.Namespace) -> None:
    settings, wanted = _settings(arguments), _given(arguments)
    answer = _perform(settings, "memory-export", wanted)
    others = answer.get("others")  # a gateway of an older version does not say
    messages: int | None = 0
    with written(arguments.file, is_forced=arguments.force) as file:
        while True:
            file.writelines(f"{line}\n" for line in answer["lines"])
            # A gateway of an older version does not say how many there are.
            messages = None if messages is None or "messages" not in answer else messages + answer["messages"]
            if answer["next"] is None:
                break
            answer = _perform(settings, "memory-export", {**wanted, "from": answer["next"]})
    if arguments.file:
        bytes = os.stat(arguments.file).st_size
        print(describe_exported(wanted, messages, arguments.file, bytes), file=sys.stderr)
    if others:
        print(describe_others(others), file=sys.stderr)


def _memory_import(arguments: argparse.Namespace) -> None:
    settings, wanted, place, line = _settings(arguments), _given(arguments), None, 1
    with opened(arguments.file) as file:
        for lines in pages_of(file):
            page = {**wanted, "lines": lines, "line": line, "at": place}
            place = _perform(settings, "memory-import", page)["at"]
            line += len(lines)
    if place is None:
        raise BadRequest("There is nothing to import.")
    _perform(settings, "memory-import", {**wanted, "lines": [], "at": place, "end": True})


def _perform(settings: Settings, operation: str, arguments: dict[str, Any]) -> Any:
    """Asks the process that serves this database, or performs the operation here if there is none."""
    try:
        body = json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(error.start - 8, 0) : error.end]
        raise BadRequest(f"What was given is not UTF-8: {around!r}.") from error
    if (process := _serving_process(settings)) is not None:
        with suppress(ProcessGone):
            return process.ask(operation, body)
    is_there = settings.database.url is not None or os.path.exists(settings.database.path)
    if operation not in FOUNDERS and not is_there:
        raise GatewayError(
            f"There is no database at {settings.database.shown}; --db or database.path says where it is."
        )
    from gateway.serve import perform_here

    work: Coroutine[Any, Any, Any] = perform_here(settings, operation, arguments)
    answer = asyncio.run(work)
    if not is_there:
        print(f"There was no database: {settings.database.shown} is new.", file=sys.stderr)
    return answer


def _serving_process(settings: Settings) -> ServingProcess | None:
    """Returns the process that serves this database; None: nobody serves.

    The lock decides: a process that was killed leaves its file, and another program may have its port by now.
    Raises: GatewayError: the database is another account's.
    """
    if settings.database.url is not None:
        return None
    try:
        is_owned = owner_of(settings.database.path) is not None
    except ReadOnly as error:
        raise GatewayError(error.message) from error
    except StoreError:
        return None
    return ServingProcess.find(settings.database.path) if is_owned else None


def _without_secrets(value: Any, name: str = "") -> Any:
    """Replaces keys and headers, at any depth, by whether they are set, and passwords in URLs. name: the value's."""
    if name in SECRETS:
        return "(set)" if value else value
    if isinstance(value, dict):
        return {key: _without_secrets(each, key) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(each) for each in value]
    return without_password(value) if name in URLS and value else value
