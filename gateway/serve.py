"""`mnemogate serve`, `work` and `migrate`, and operations on a database that no process serves.

`serve` binds the address, then opens the database, then makes the application and the server.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from types import FrameType

from gateway import event_loop
from gateway.agents.services import AgentServices
from gateway.app import Gateway, WorkerHealth
from gateway.errors import GatewayError, SettingsError
from gateway.limits import Limits
from gateway.log import configure_logging
from gateway.open_database import find_network_warning, name_location_setting, open_database
from gateway.run.admin.command_line.serving import AdminFile
from gateway.services import Services, install_keys
from gateway.settings import Settings, is_loopback
from gateway.start_notice import describe_start
from gateway.trace_factory import check_package
from gateway.traces.otlp import OtlpSettings, read_otlp
from gateway.web.listening import bind, listen
from gateway.web.server import make_server
from storage.errors import FileOwned, StoreError, StoreUnavailable, is_known
from storage.sql.store import Store

_log = logging.getLogger("mnemogate")


def serve(settings: Settings, limits: Limits | None = None, *, performs_jobs: bool = True) -> int:
    """Serves until a signal stops the process, and returns the exit code.

    performs_jobs: True if this process performs background jobs, too.

    Raises: SettingsError: the gateway cannot start; GatewayError: the gateway cannot start now, but may later.
    """
    configure_logging()
    if not performs_jobs:
        _require_shared_database(settings, "--no-work")
    _allow_connections()
    return event_loop.run(
        _serve(settings, limits, read_otlp_settings(os.environ), performs_jobs=performs_jobs)
    )


def work(settings: Settings, limits: Limits | None = None, *, listens: bool = False) -> int:
    """Performs background jobs until a signal stops the process, and returns the exit code.

    listens: True if health checks and scrapes are answered at the address of the settings.

    Raises: SettingsError: the process cannot start; GatewayError: the process cannot start now, but may later.
    """
    configure_logging()
    _require_shared_database(settings, "a worker of its own")
    return event_loop.run(_run_worker(settings, limits, read_otlp_settings(os.environ), listens=listens))


def read_otlp_settings(environ: Mapping[str, str]) -> OtlpSettings | None:
    """Returns the settings of the export of traces, or None if traces are not exported.

    Raises: SettingsError: also if the package for the export is missing.
    """
    otlp = read_otlp(environ)
    if otlp is not None:
        check_package()
    return otlp


async def _run_worker(
    settings: Settings, limits: Limits | None, otlp: OtlpSettings | None, *, listens: bool
) -> int:
    """Performs background jobs until a signal stops the process. Returns the exit code.

    listens: True if /health and /metrics are answered, too.
    """
    listener = bind(settings.server.host, settings.server.port) if listens else None
    store = await _open_store(settings)
    _report_fault(store, "No background jobs are performed")
    services = Services(
        settings, store, limits=limits, takes_requests=False, make_agents=AgentServices, otlp=otlp
    )
    if listener is not None:
        return await _run_listening_worker(services, listener)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for stop_signal in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop_signal, stopped.set)
    _stop_on_hangup(lambda *_: loop.call_soon_threadsafe(stopped.set))
    try:
        await services.start()
        _tune_interpreter()
        _print_notice(f"Mnemogate works on {settings.database.shown}")
        await stopped.wait()
    finally:
        await services.stop()
    return 0


async def _run_listening_worker(services: Services, listener: socket.socket) -> int:
    """Performs jobs and answers /health and /metrics, until a signal stops the process. Returns the exit code."""
    settings = services.settings
    try:
        await _install_keys(settings, services.store)
        listen(listener)
    except BaseException:
        listener.close()
        await services.store.close()
        raise
    app = WorkerHealth(services)
    url = f"http://{_render_url_host(settings.server.host)}:{listener.getsockname()[1]}"

    def report_start() -> None:
        _tune_interpreter()
        _print_notice(
            f"Mnemogate works on {settings.database.shown}\nIt answers {url}/health and {url}/metrics"
        )

    server = make_server(app, settings.server, app.readiness, report_start, services.limits)
    _stop_on_hangup(server.handle_exit)
    await server.serve(sockets=[listener])
    return 0 if server.started else 1


def _require_shared_database(settings: Settings, option: str) -> None:
    """Checks that processes can share the database, as the option needs. Raises: SettingsError: it is a file."""
    if settings.database.url is None:
        raise SettingsError(f"database.url: {option} needs PostgreSQL; one process owns a SQLite file")


async def _serve(
    settings: Settings, limits: Limits | None, otlp: OtlpSettings | None, *, performs_jobs: bool
) -> int:
    """Serves requests until a signal stops the process. Returns the exit code. Raises: GatewayError."""
    listener = bind(settings.server.host, settings.server.port)
    port = listener.getsockname()[1]
    host = settings.server.host
    url = f"http://{_render_url_host(host)}:{port}"
    # The address at which programs of this machine reach the gateway.
    local_url = f"http://127.0.0.1:{port}" if host == "0.0.0.0" else url
    store = None
    try:
        check_mcp(settings)
        store = await _open_store(settings, local_url)
        _report_fault(store, "Requests are answered without memory")
        if (warning := find_network_warning(settings)) is not None:
            _log.warning(warning)
        has_keys = await _install_keys(settings, store)
        # A database server has no owning process: the command line opens it itself.
        admin = AdminFile(settings.database.path) if settings.database.url is None else None
        token = None if admin is None else admin.token
        app = Gateway(
            settings, store, admin_token=token, limits=limits, performs_jobs=performs_jobs, otlp=otlp
        )
        listen(listener)
        # An interrupt that came meanwhile ends the start here, before the application starts its work.
        await asyncio.sleep(0)
    except BaseException:
        listener.close()
        if store is not None:
            await store.close()
        raise

    def report_start() -> None:
        _tune_interpreter()
        _print_notice(describe_start(settings, store.health, url, local_url, has_keys=has_keys))

    server = make_server(
        app,
        settings.server,
        app.readiness,
        report_start,
        limits=limits,
        on_stopping=app.begin_stop,
    )
    if admin is not None:
        _publish_address(admin, store, local_url)
    _stop_on_hangup(server.handle_exit)
    try:
        await server.serve(sockets=[listener])
    finally:
        if admin is not None:
            admin.remove()
    return 0 if server.started else 1


def _allow_connections() -> None:
    """Lets this process open as many files as the system allows: a reply uses two, and shells allow 1024.

    Near the limit new connections are refused (`gateway.web.server`).
    """
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS has a lower limit than it reports
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _stop_on_hangup(stop: Callable[[int, FrameType | None], object]) -> None:
    """Has the process stop in order when its terminal closes, unless `nohup` lets it go on."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, stop)


def _tune_interpreter() -> None:
    """Tunes the interpreter for a process with one gateway, which has started."""
    # All objects of the start stay, so they need not be traversed again.
    gc.collect()
    gc.freeze()
    # A request makes hundreds of objects and next to no cycles, so collections are rarer than by default.
    gc.set_threshold(20_000, 20, 20)
    # A thread that writes, imports or renders a page gives way to the event loop after this time, not after 5 ms.
    sys.setswitchinterval(0.0005)


def _publish_address(admin: AdminFile, store: Store, address: str) -> None:
    """Writes the address for commands, now and each time the database works again.

    At a recovery the file may be missing: it could not be written at the start, or was removed with the database.
    """
    # Another process that owns the database has written its own address.
    if store.database.is_owned:
        _write_address(admin, address)
    store.database.add_recovery_listener(partial(_write_address, admin, address))


def _write_address(admin: AdminFile, address: str) -> None:
    try:
        admin.write(address)
    except (OSError, StoreError) as error:
        _log.error("Commands will not find this gateway, and open its database themselves: %s", error)


async def _open_store(settings: Settings, address: str | None = None) -> Store:
    """Opens the store. The database need not work yet: until it works, requests are answered without memory.

    Raises: SettingsError; GatewayError: another process has the file, perhaps a command that soon ends.
    """
    try:
        return await open_database(settings, address)
    except FileOwned as error:
        raise GatewayError(f"{name_location_setting(settings)}: {error.message}") from error
    except StoreError as error:
        raise SettingsError(f"{name_location_setting(settings)}: {error.message}") from error


def _report_fault(store: Store, consequence: str) -> None:
    """Logs why a store cannot be used at the start, which nothing else logs.

    consequence: the sentence about requests or jobs until the store can be used.
    """
    if not store.health.is_up:
        _log.error("%s until the database can be used: %s", consequence, store.health.error)


async def _install_keys(settings: Settings, store: Store) -> bool:
    """Stores the key of the settings. Returns whether a caller needs a key.

    Raises: SettingsError: there is no key, and other machines could reach the gateway.
    """
    key = settings.server.key
    try:
        await install_keys(store, settings.server)
        has_keys = await store.keys.has_any()
    except StoreUnavailable as error:
        # The store gets the key when it works again. Until then, callers of other machines are refused (see Guard).
        if not is_known(error):
            _log.error("The gateway keys cannot be read: %s", error.message)
        return key is not None or not is_loopback(settings.server.host)
    check_exposure(settings, has_keys=has_keys)
    return has_keys


def check_exposure(settings: Settings, *, has_keys: bool) -> None:
    """Checks that other machines need a key. Raises: SettingsError: without keys, the gateway would serve them."""
    if not (has_keys or is_loopback(settings.server.host)):
        raise SettingsError(
            f"server.host: {settings.server.host!r} would open this gateway to others, and it has no keys. "
            "Make one with `mnemogate keys create`, set MNEMOGATE_KEY, or listen on 127.0.0.1."
        )


def check_mcp(settings: Settings) -> None:
    """Checks that MCP can be served if the settings ask for it. Raises: SettingsError: its package is missing."""
    if settings.server.mcp and find_spec("mcp") is None:
        raise SettingsError(
            "server.mcp: it needs the extra `mcp`: in the clone run pip install -e '.[mcp]', "
            "or uv sync --extra mcp"
        )


def _print_notice(text: str) -> None:
    """Prints a notice for an operator. A stdout without a reader, or a full disk, does not stop the process."""
    try:
        print(text, flush=True)
    except OSError:
        # Python's own last flush of the text must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _render_url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
