"""Settings: precedence, errors that help, and a documentation that says what the code says."""

from __future__ import annotations

import re
import tomllib
from base64 import b64encode
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from msgspec.structs import replace

from gateway.core.request.identity import identify
from gateway.core.request.request_ids import CONVERSATION_ORDER, USER_ORDER
from gateway.errors import SettingsError
from gateway.provider_factory import make_providers
from gateway.run.resolver import make_identity_rules
from gateway.run.upstream.route import resolve_route
from gateway.settings import (
    DEMO_PROFILE,
    Capability,
    DatabaseSettings,
    ModelSettings,
    Settings,
    ToolHeader,
    UpstreamSettings,
    is_loopback,
)
from gateway.settings.load import load_settings
from gateway.start_notice import choose_example_key, choose_example_model
from gateway.validation import is_struct
from storage.masked_url import mask_password
from tests.rows import each_row

ROOT = Path(__file__).parents[3]
UPSTREAM = "[[upstreams]]\nname = 'a'\nkind = 'groq'\n"
STARTER, REFERENCE = ROOT / "mnemogate.example.toml", ROOT / "docs/settings.toml"


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **options: Any) -> Settings:
    file = tmp_path / "mnemogate.toml"
    file.write_text(text, "utf-8")
    return load_settings(config=str(file), environ=environ or {}, **options)


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    text = "[server]\nport = 1\nshutdown_s = 4\n[memory]\nrecall_tokens = 5"
    environ = {"MNEMOGATE_PORT": "2", "MNEMOGATE_MEMORY_RECALL_TOKENS": "6"}
    settings = load(tmp_path, text, environ, flags={("server", "port"): 3})
    assert (settings.server.port, settings.server.shutdown_s, settings.memory.recall_tokens) == (3, 4, 6)


def test_each_value_of_a_table_has_a_variable(tmp_path: Path) -> None:
    for table in ("server", "database", "memory", "tools", "batch", "responses", "usage", "ui", "traces"):
        with pytest.raises(SettingsError, match=f"MNEMOGATE_{table.upper()}_"):
            load(tmp_path, environ={f"MNEMOGATE_{table.upper()}_NO_SUCH_KEY": "1"})
    environ = {"MNEMOGATE_USAGE_ASK_STREAMS": "false", "MNEMOGATE_USAGE_WRITE_S": "30"}
    usage = load(tmp_path, environ=environ).usage
    assert (usage.ask_streams, usage.write_s) == (False, 30)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff[server]\nport = 81").server.port == 81


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    text = '[server]\nhost = "::1"\n[memory]\nbackground_model = "small"'
    environ = {
        "MNEMOGATE_HOST": "",
        "MNEMOGATE_BACKGROUND_MODEL": "",
        "MNEMOGATE_PORT": "",
        "MNEMOGATE_DB": "",
    }
    assert load(tmp_path, text, environ) == load(tmp_path, text)


def test_variables_that_kubernetes_sets_for_a_service_of_that_name_are_none_of_settings(
    tmp_path: Path,
) -> None:
    address = "10.0.0.11"
    environ = {
        "MNEMOGATE_SERVICE_HOST": address,
        "MNEMOGATE_SERVICE_PORT": "80",
        "MNEMOGATE_SERVICE_PORT_HTTP": "80",
        "MNEMOGATE_PORT": f"tcp://{address}:80",
        "MNEMOGATE_PORT_80_TCP": f"tcp://{address}:80",
        "MNEMOGATE_PORT_80_TCP_PROTO": "tcp",
        "MNEMOGATE_PORT_80_TCP_PORT": "80",
        "MNEMOGATE_PORT_80_TCP_ADDR": address,
        "MNEMOGATE_WORKER_SERVICE_HOST": address,
        "MNEMOGATE_WORKER_PORT": f"tcp://{address}:80",
    }
    assert load(tmp_path, "[server]\nport = 81", environ) == load(tmp_path, "[server]\nport = 81")


def test_blanks_around_a_variable_do_not_count(tmp_path: Path) -> None:
    """As files of variables and mounted secrets end lines."""
    plain = {
        "MNEMOGATE_DB": "x.db",
        "MNEMOGATE_KEY": "mg-0123456789abcdef0123456789abcdef",
        "MNEMOGATE_MEMORY_DEFAULT": "read",
        "OPENAI_API_KEY": "sk-1",
        "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
    }
    assert load(tmp_path, "", {name: f" {value}\r\n" for name, value in plain.items()}) == load(
        tmp_path, "", plain
    )
    assert load_settings(environ={"MNEMOGATE_CONFIG": " ", "MNEMOGATE_UPSTREAM": "\t"}) == load_settings(
        environ={}
    )


@pytest.mark.parametrize(
    "environ",
    [
        {"MNEMOGATE_PORT": "1", "MNEMOGATE_SERVER_PORT": "2"},
        {"MNEMOGATE_DB": "a", "MNEMOGATE_DATABASE_URL": "sqlite:///b"},
        {"MNEMOGATE_DB": "a", "MNEMOGATE_DATABASE_URL": "postgresql://h/b"},
    ],
)
def test_two_variables_that_contradict_each_other_are_named(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=" and ".join(environ)):
        load_settings(environ=environ)
    assert load_settings(environ={"MNEMOGATE_DB": "a", "MNEMOGATE_DATABASE_URL": "sqlite:///a"})


@pytest.mark.parametrize(("name", "value"), [(("server", "port"), 70_000), (("database", "path"), "")])
def test_a_flag_is_held_to_what_the_file_is(tmp_path: Path, name: tuple[str, str], value: Any) -> None:
    with pytest.raises(SettingsError, match="^" + r"\.".join(name) + ": (expected|it is empty)"):
        load(tmp_path, flags={name: value})


@pytest.mark.parametrize(
    ("name", "text", "table", "key", "value"),
    [
        ("MNEMOGATE_SERVER_HOST", "::1", "server", "host", "::1"),
        ("MNEMOGATE_DB", "x.db", "database", "path", "x.db"),
        ("MNEMOGATE_DATABASE_URL", "sqlite:////tmp/x.db", "database", "path", "/tmp/x.db"),
        ("MNEMOGATE_DATABASE_URL", "postgresql://h/db", "database", "url", "postgresql://h/db"),
        ("MNEMOGATE_DATABASE_POOL", "20", "database", "pool", 20),
        ("MNEMOGATE_SINGLE_USER", "yes", "memory", "single_user", True),
        ("MNEMOGATE_SERVER_ACCESS_LOG", "0", "server", "access_log", False),
        ("MNEMOGATE_MEMORY_IDLE_S", "7", "memory", "idle_s", 7.0),
        ("MNEMOGATE_MEMORY_USER_ORDER", "user, x-who", "memory", "user_order", ("user", "x-who")),
        ("MNEMOGATE_TOOLS_HOSTS", "a.org, *.b.org", "tools", "hosts", ("a.org", "*.b.org")),
        ("MNEMOGATE_BACKGROUND_MODEL", "small", "memory", "background_model", "small"),
    ],
)
def test_a_variable_sets_its_setting(
    tmp_path: Path, name: str, text: str, table: str, key: str, value: Any
) -> None:
    assert getattr(getattr(load(tmp_path, "", {name: text}), table), key) == value


@each_row(
    ("text", "says"),
    [
        ("[tools]\nhosts = ['a.org/path']", "tools.hosts: expected a host such as api.example.org"),
        (
            "[tools]\nwebhook_secret = 'whsec_c2hvcnQ='",
            "tools.webhook_secret: expected whsec_ and at least 24",
        ),
        ("[tools]\nwebhook_secret = 'whsec_?'", "tools.webhook_secret: expected whsec_ and at least 24"),
        (
            "[tools]\nwebhook_secret = 'env:NOT_THERE'",
            "tools.webhook_secret names NOT_THERE, which is not set",
        ),
        ("[tools]\nmcp_stdio = ['a \"b']", "tools.mcp_stdio: 'a \"b': No closing quotation"),
        *(
            (
                f"[tools]\nsecrets_key = '{key}'",
                "tools.secrets_key (MNEMOGATE_SECRETS_KEY): expected 32 random bytes",
            )
            for key in ("c2hvcnQ=", "?", "A" * 43 + "=", "mw7hJ7HqSl1rQ8i2kq0xg5Tn0B6aYwBcDq1k2J4f9sEA")
        ),
        (
            "[tools]\nmcp_stdio_env = ['A=B']",
            "tools.mcp_stdio_env: expected the name of a variable, saw 'A=B'",
        ),
        ("[tools]\nmcp_stdio = ['']", "tools.mcp_stdio[0]: it is empty"),
        (
            "[[tools.headers]]\nname = 'a'\nhost = 'https://h/mcp'\nheader = 'X'\nvalue = 'x'",
            "tools.headers 'a': host: expected a name without a scheme, a port or *, saw 'https://h/mcp'",
        ),
        (
            "[[tools.headers]]\nname = 'a'\nhost = 'h'\nheader = 'X'\nvalue = 'env:NOT_THERE'",
            "tools.headers 'a': value names NOT_THERE, which is not set",
        ),
        (
            "[[tools.headers]]\nname = 'a'\nhost = 'h'\nheader = 'X: Y'\nvalue = 'x'",
            "tools.headers 'a': it is no header that can be sent",
        ),
        ("[tools]\nprivate_hosts = ['*']", "tools.private_hosts: expected a host such as api.example.org"),
        ("[sever]\nport = 1", "unknown name 'sever'; did you mean 'server'?"),
        ("[server]\nprot = 1", "server: unknown name 'prot'; did you mean 'port'?"),
        (
            '[[profiles]]\nname = "bob"\nmemmory = "on"',
            "profiles 'bob': unknown name 'memmory'; did you mean 'memory'?",
        ),
        (
            '[[profiles]]\nname = "bob"\n[[profiles.blocks]]\nlabel = "human"\nlimt = 1',
            "profiles 'bob'.blocks 'human': unknown name 'limt'; did you mean 'limit'?",
        ),
        (
            "[projects.default]\nprofil = 'x'",
            "projects.default: unknown name 'profil'; did you mean 'profile'?",
        ),
        # A name is right, and its table is not.
        ("port = 8080", "unknown name 'port'; it belongs in [server]"),
        ("[server]\nrecall_tokens = 1", "server: unknown name 'recall_tokens'; it belongs in [memory]"),
        (
            "[memory]\ndeployments = 1",
            "memory: unknown name 'deployments'; it belongs in [[models]]",
        ),
        ("[server]\nlabel = 'x'", "server: unknown name 'label'; it belongs in [[profiles.blocks]]"),
        # A list that is written as a table. What stands in it is not shown: it may be a key.
        (
            "[upstreams]\nname = 'a'\napi_key = 'sk-1'",
            "upstreams: expected a list, saw a table; an entry begins with [[upstreams]]",
        ),
        (
            "[[profiles]]\nname = 'bob'\n[profiles.blocks]\nlabel = 'x'",
            "profiles 'bob'.blocks: expected a list, saw a table; an entry begins with [[profiles.blocks]]",
        ),
        ("[[memory]]\ndefault = 'on'", "memory: expected a table, saw a list"),
        ("[server]\nkey = ['mg-1']", "server.key: expected a text, saw a list"),
        ("[server]\nport = 'x'", "server.port: expected a whole number, saw 'x'"),
        ("[server]\nport = 70000", "server.port: expected between 0 and 65535, saw 70000"),
        ("[server]\nport = true", "server.port: expected a whole number, saw true"),
        ("[server]\nport = 08:30:00", "server.port: expected a whole number, saw 08:30:00"),
        ("[memory]\ndefault = 2026-01-31", "memory.default: expected one of on, read, off, saw 2026-01-31"),
        ("[server]\naccess_log = 1", "server.access_log: expected true or false, saw 1"),
        ("[memory]\nidle_s = nan", "memory.idle_s: expected at least 0.0, saw nan"),
        # TOML has it, and no timer takes it: each chat would fail.
        ("[memory]\nidle_s = inf", "memory.idle_s: expected a number up to 1000000000, saw inf"),
        ("[memory]\nidle_s = -2e9", "memory.idle_s: expected at least 0.0, saw -2000000000.0"),
        ("[memory]\ndefault = 'maybe'", "memory.default: expected one of on, read, off, saw 'maybe'"),
        ("[memory]\nuser_order = 'user'", "memory.user_order: expected a list, saw 'user'"),
        ("[memory]\nuser_order = [1]", "memory.user_order[0]: expected a text, saw 1"),
        # Each request that carries it is refused.
        (
            "[memory]\nuser_order = ['x-mnemogate-user', 'X-Mnemogate-Uid']",
            "memory.user_order: 'X-Mnemogate-Uid': of headers that begin with x-mnemogate- only x-mnemogate-user can",
        ),
        (
            "[memory]\nconversation_order = ['x-mnemogate-memory']",
            "memory.conversation_order: 'x-mnemogate-memory': of headers that begin with x-mnemogate- only",
        ),
        ("server = 3", "server: expected a table, saw 3"),
        ("database = 'memory.db'", "database: expected a table, saw 'memory.db'"),
        ("[[database]]\npath = 'memory.db'", "database: expected a table, saw a list"),
        ("[[upstreams]]\nkind = 'openai'", "upstreams[0]: 'name' is missing"),
        ("upstreams = []", "the list is empty"),
        ("[[upstreams]]\nname = 'a'", "base_url must be an http(s) URL, saw None"),
        ("[[upstreams]]\nname = 'a'\nbase_url = 'ftp://x'", "base_url must be an http(s) URL, saw 'ftp://x'"),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_key = 'env:NOT_THERE'",
            "upstreams 'a': api_key names NOT_THERE, which is not set",
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\nproxy = 'env:NOT_THERE'",
            "upstreams 'a': proxy names NOT_THERE, which is not set",
        ),
        *(
            (
                f"[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\nproxy = '{proxy}'",
                "upstreams 'a': proxy: expected http://host:port (in a password, # is written %23, ? %3F and / %2F)",
            )
            for proxy in (
                "socks5://me:secret@y",
                "http://me:se#cret@y:3128",
                "http://me:se?cret@y:3128",
                "http://y:99999",
                "http://me@",
            )
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\n[[upstreams]]\nname = 'a'\nbase_url = 'http://y'",
            "upstreams: 'a' is there twice",
        ),
        (
            "[[upstreams]]\nname = 'abc'\nbase_url = 'http://x'\n[[models]]\nalias = 'q'\nmodel = 'm'\nupstream='abd'",
            "models 'q': upstream: unknown name 'abd'; did you mean 'abc'?",
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_key = ['k', 'k']",
            "api_key: one is there twice",
        ),
        ("[[upstreams]]\nname = 'a'\napi_key = 3", "upstreams 'a'.api_key: expected a text, saw 3"),
        ("[[upstreams]]\nname = 'a'\napi_key = [3]", "upstreams 'a'.api_key[0]: expected a text, saw 3"),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_key = ['env:NOT_THERE']",
            "api_key names NOT_THERE, which is not set",
        ),
        (
            "[[upstreams]]\nname = 'a'\ntakes = { metdata = true }",
            "upstreams 'a'.takes: unknown name 'metdata'; did you mean 'metadata'?",
        ),
        (
            "[[upstreams]]\nname = 'a'\ntakes = { responses = 'kept' }",
            "upstreams 'a'.takes.responses: expected one of stored, stateless, saw 'kept'",
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x/v1'\ntakes = { metadata = 'stored' }",
            "upstreams 'a'.takes.metadata: expected true or false, saw 'stored'",
        ),
        (
            "[[upstreams]]\nname = 'a'\ntakes = { metadata = 1 }",
            "upstreams 'a'.takes.metadata: expected true or false, saw 1",
        ),
        ("[[upstreams]]\nname = 'a#2'\nbase_url = 'http://x'", "'#' is for the numbers of its keys"),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\n[[models]]\nalias = 'q'\nmodel = 'm'\nfallbacks = ['q']",
            "models 'q': it is its own fallback",
        ),
        (
            "[[upstreams]]\nname = 'abc'\nbase_url = 'http://x'\n[[models]]\nalias = 'q'\nmodel = 'm'\n"
            "[[models.deployments]]\nupstream = 'abd'",
            "models 'q': deployments: upstream: unknown name 'abd'; did you mean 'abc'?",
        ),
        ("[[profiles]]\nname = 'a b'", "profiles 'a b': a name is"),
        ("[[profiles]]\nname = '@'", "profiles '@': this name is for agents"),
        (
            "[[profiles]]\nname = 'bob'\n[[profiles.blocks]]\nlabel = 'x'\nlimit = 2\nvalue = 'abc'",
            "profiles 'bob': block 'x': its value has 3 characters, its limit is 2",
        ),
        ("[projects.blue]\nprofile = 'bob'", "projects.blue: profile: unknown name 'bob'"),
        ("[memory]\nopenwebui_jwt_secret = ''", "memory.openwebui_jwt_secret: it is empty"),
        ("[memory]\nbackground_model = ''", "memory.background_model: it is empty"),
        ("[memory]\nembedder = ''", "memory.embedder: it is empty"),
        ("[memory]\ndefault_user = ' '", "memory.default_user: it is empty"),
        # None of these would ever be the name that a request has.
        ("[server]\nallowed_hosts = ['gw.example:80']", "server.allowed_hosts: expected a name without"),
        ("[server]\nallowed_hosts = ['192.168.1.5:8080']", "server.allowed_hosts: expected a name without"),
        ("[server]\nallowed_hosts = ['cafe.de:80']", "server.allowed_hosts: expected a name without"),
        ("[server]\nallowed_hosts = ['https://gw.example']", "server.allowed_hosts: expected a name without"),
        ("[server]\nallowed_hosts = ['*']", "server.allowed_hosts: expected a name without"),
        # With these the upstream would read another request, or none.
        (UPSTREAM + "headers = { 'a b' = 'c' }", "upstreams 'a': headers: 'a b' is no header"),
        (
            UPSTREAM + "headers = { Content-Length = '3' }",
            "upstreams 'a': headers: 'Content-Length' is no header",
        ),
        (
            "[memory]\nopenwebui_jwt_secret = 'env:NOT_THERE'",
            "memory.openwebui_jwt_secret names NOT_THERE, which is not set",
        ),
        ("[[memory.side_requests]]\nname = 'x'\npattern = '('", "memory.side_requests 'x': pattern: "),
        (
            "[[memory.side_requests]]\nname = 'x'\npattern = '([ab])x\\1'",
            "memory.side_requests 'x': pattern: its groups have other numbers among the other patterns, saw \\1",
        ),
        (
            "[[memory.side_requests]]\nname = 'x'\npattern = 'a)|(?:b'",
            "memory.side_requests 'x': pattern: unbalanced parenthesis, here: a >>> )|(?:b",
        ),
        ("[[memory.side_requests]]\nname = 'x'\npattern = ''", "pattern: it matches every message"),
        ("[[memory.side_requests]]\nname = 'x'\npattern = '.*'", "pattern: it matches every message"),
        # What has a name, and what is sent in a header, is one line with something in it.
        ("[server]\nhost = ''", "server.host: it is empty"),
        ("[memory]\nuser_order = ['']", "memory.user_order[0]: it is empty"),
        ("[[models]]\nalias = 'q'\nmodel = ' '", "models 'q'.model: it is empty"),
        ("[database]\npath = ''", "database.path: it is empty"),
        ('[database]\npath = "a\\u0000b"', "database.path: it has a line end or another control character"),
        (
            '[[memory.side_requests]]\nname = "a\\nb"\npattern = "x"',
            ".name: it has a line end or another control character",
        ),
        # All patterns become one, in which flags cannot stand and names count once.
        ("[[memory.side_requests]]\nname = 'x'\npattern = '(?i)a'", "memory.side_requests 'x': pattern: "),
        (
            "[[memory.side_requests]]\nname = 'x'\npattern = '(?P<r0>a)'",
            "memory.side_requests 'x': pattern: its groups cannot have names, saw r0",
        ),
        (
            "[server",
            ".toml is not TOML: Expected ']'",
        ),
        (f"x = {'[' * 5000}{']' * 5000}", ".toml cannot be read: its values are nested too deeply."),
        (f"x = {'9' * 5000}", ".toml is not TOML: Exceeds the limit"),
        (f"[memory]\nidle_s = {'9' * 400}", "memory.idle_s: expected a number up to 1000000000, saw 999"),
        ("#" * (1024 * 1024 + 1), ".toml cannot be read: it has more than 1,048,576 bytes."),
    ],
)
def test_the_error_of_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert says in caught.value.message


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(SettingsError, match="/dev/zero cannot be read: it has more than 1,048,576 bytes"):
        load_settings(config="/dev/zero", environ={})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("MNEMOGATE_PROT", "1", "environment: unknown name 'MNEMOGATE_PROT'; did you mean 'MNEMOGATE_PORT'?"),
        ("MNEMOGATE_PORT", "x", "MNEMOGATE_PORT: expected a whole number, saw 'x'"),
        ("MNEMOGATE_SINGLE_USER", "maybe", "MNEMOGATE_SINGLE_USER: expected true or false, saw 'maybe'"),
        ("MNEMOGATE_DATABASE_URL", "mysql://u:secret@h/db", "or sqlite:///path, saw 'mysql'"),
        ("MNEMOGATE_DATABASE_URL", "u:secret@h", "expected postgresql://… or"),
        ("MNEMOGATE_DATABASE_ULR", "secret", "did you mean 'MNEMOGATE_DATABASE_URL'?"),
        ("MNEMOGATE_DATABASE_POOL", "1", "MNEMOGATE_DATABASE_POOL: expected between 2 and 1000, saw 1"),
        ("MNEMOGATE_CONFIG", "/nowhere/x.toml", ""),
    ],
)
def test_the_error_of_a_wrong_environment_says_what_is_wrong(name: str, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={name: text})
    assert says in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "gpt-4o-mini"),  # the scripted model answers to any name
        ({"OPENAI_API_KEY": "k"}, "gpt-4o-mini"),
        ({"ANTHROPIC_API_KEY": "a"}, "claude-haiku-5"),
        ({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "a"}, "gpt-4o-mini"),
        ({"MNEMOGATE_UPSTREAM": "https://api.openai.com/v1/"}, "gpt-4o-mini"),
        ({"MNEMOGATE_UPSTREAM": "http://127.0.0.1:11434/v1"}, "..."),  # who knows what it serves
    ],
)
def test_the_example_names_a_model_that_is_answered(environ: dict[str, str], expected: str) -> None:
    settings = load_settings(environ=environ)
    assert choose_example_model(settings) == expected
    assert resolve_route(settings, expected).model == expected
    own = replace(settings, models=(ModelSettings("quick", "m"),))
    assert choose_example_model(own) == "quick"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "none"),
        ({"OPENAI_API_KEY": "k"}, "none"),
        ({"MNEMOGATE_UPSTREAM": "https://api.openai.com/v1"}, "sk-..."),  # the caller's own goes there
        ({"MNEMOGATE_UPSTREAM": "https://api.openai.com/v1", "MNEMOGATE_UPSTREAM_KEY": "k"}, "none"),
    ],
)
def test_the_example_shows_whose_key_is_asked_for(environ: dict[str, str], expected: str) -> None:
    settings = load_settings(environ=environ)
    assert choose_example_key(settings, has_keys=False) == expected
    assert choose_example_key(settings, has_keys=True) == "mg-..."


def test_the_example_asks_for_the_key_that_is_sent_next_to_a_header_of_the_settings() -> None:
    settings = load_settings(environ={"MNEMOGATE_UPSTREAM": "https://api.openai.com/v1"})
    for header, expected in (("OpenAI-Organization", "sk-..."), ("Authorization", "none")):
        upstream = replace(settings.upstreams[0], headers={header: "org-1"})
        assert choose_example_key(replace(settings, upstreams=(upstream,)), has_keys=False) == expected


def test_the_example_shows_the_key_of_the_upstream_that_serves_its_model() -> None:
    settings = load_settings(environ={"MNEMOGATE_UPSTREAM": "https://api.openai.com/v1"})
    (first,) = settings.upstreams
    second = replace(first, name="second", api_key="k")
    for upstreams, expected in (((first, second), "none"), ((second, first), "sk-...")):
        alias = ModelSettings("quick", "m", upstream=upstreams[1].name)
        both = replace(settings, upstreams=upstreams, models=(alias,))
        assert choose_example_key(both, has_keys=False) == expected


def test_a_missing_file_is_an_error_only_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == replace(Settings(), profiles=(DEMO_PROFILE,))
    with pytest.raises(SettingsError, match=r"The settings file other\.toml does not exist\."):
        load_settings(config="other.toml", environ={})


def test_a_settings_file_that_cannot_be_read_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    for name, why in (("", "Is a directory"), ("latin.toml", "byte 5 is not UTF-8")):
        with pytest.raises(SettingsError) as caught:
            load_settings(config=str(tmp_path / name), environ={})
        assert caught.value.message == f"The settings file {tmp_path / name} cannot be read: {why}."
        assert not caught.value.is_in_file  # or its name would be shown twice


OPENAI = UpstreamSettings("openai", base_url="https://api.openai.com/v1", api_key="k")
CLAUDE = UpstreamSettings(
    "anthropic", "anthropic", base_url="https://api.anthropic.com/v1", api_key="a", models=("claude-*",)
)
SCRIPTED = UpstreamSettings("scripted", kind="scripted")


@pytest.mark.parametrize(
    ("environ", "upstream", "expected"),
    [
        ({}, None, (SCRIPTED,)),
        ({"OPENAI_API_KEY": ""}, None, (SCRIPTED,)),
        ({"OPENAI_API_KEY": "k"}, None, (OPENAI,)),
        ({"OPENAI_BASE_URL": "http://x/v1"}, None, (UpstreamSettings("openai", base_url="http://x/v1"),)),
        ({"ANTHROPIC_API_KEY": "a"}, None, (CLAUDE,)),
        ({"ANTHROPIC_API_KEY": "a", "ANTHROPIC_BASE_URL": "https://api.anthropic.com"}, None, (CLAUDE,)),
        ({"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "a"}, None, (OPENAI, CLAUDE)),
        (
            {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://x/v1", "ANTHROPIC_API_KEY": "a"},
            "http://y/v1",  # --upstream is the only one
            (UpstreamSettings("openai", base_url="http://y/v1"),),  # which is not sent OpenAI's key
        ),
        (
            {"OPENAI_API_KEY": "k", "MNEMOGATE_UPSTREAM_KEY": "u"},
            "http://y/v1",
            (UpstreamSettings("openai", base_url="http://y/v1", api_key="u"),),
        ),
        ({"MNEMOGATE_UPSTREAM": "http://z/v1"}, None, (UpstreamSettings("openai", base_url="http://z/v1"),)),
    ],
)
def test_the_providers_own_variables_name_the_upstreams(
    tmp_path: Path, environ: dict[str, str], upstream: str | None, expected: tuple[UpstreamSettings, ...]
) -> None:
    assert load(tmp_path, "", environ, upstream=upstream).upstreams == expected


@pytest.mark.parametrize("text", ["", UPSTREAM])
def test_a_key_of_an_upstream_that_is_not_named_is_refused(tmp_path: Path, text: str) -> None:
    environ = {"MNEMOGATE_UPSTREAM_KEY": "k"}
    with pytest.raises(
        SettingsError, match="the key of MNEMOGATE_UPSTREAM or --upstream, which is not given"
    ):
        load(tmp_path, text, environ)
    assert load(tmp_path, text, environ, needs_secrets=False).upstreams  # commands know nothing of it
    own = load(tmp_path, UPSTREAM + "api_key = 'env:MNEMOGATE_UPSTREAM_KEY'", environ)
    assert own.upstreams[0].api_key == "k"


@pytest.mark.parametrize("flag", ["upstream", "config"])
def test_an_empty_flag_is_not_one_that_was_left_out(tmp_path: Path, flag: str) -> None:
    with pytest.raises(SettingsError, match=f"--{flag}: expected a value, saw ''"):
        load_settings(environ={}, **{flag: ""})


def test_a_stray_key_does_not_open_a_second_upstream(tmp_path: Path) -> None:
    text = "[[upstreams]]\nname = 'local'\nbase_url = 'http://x/v1'\napi_key = 'env:MNEMOGATE_MY_KEY'"
    settings = load(tmp_path, text, {"OPENAI_API_KEY": "k", "MNEMOGATE_MY_KEY": "mine"})
    assert [(each.name, each.api_key) for each in settings.upstreams] == [("local", "mine")]


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("", {"OPENAI_API_KEY": "sec\nret"}),
        (
            '[[upstreams]]\nname = "a"\nkind = "groq"\napi_key = ["env:K"]',
            {"K": "secret\n"},
        ),  # a mounted secret, as `echo` wrote it
        ('[[upstreams]]\nname = "a"\nkind = "groq"\nheaders = {x = "secret\\n"}', {}),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_at_the_start(
    tmp_path: Path, text: str, environ: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="has a line end") as caught:
        load(tmp_path, text, environ)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "key",
    [
        "mg-short",
        "mg-" + "a" * 40,
        "mg-" + "password" * 4,
        "sk-" + "0123456789abcdef" * 3,
        "mg-" + "0123456789 abcdef" * 3,
    ],
)
def test_a_gateway_key_that_could_be_guessed_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SettingsError, match=r"MNEMOGATE_KEY.*at least 32 random") as caught:
        load(tmp_path, "", {"MNEMOGATE_KEY": key})
    assert key not in caught.value.message


def test_a_gateway_key_may_come_from_the_environment(tmp_path: Path) -> None:
    key = "mg-" + "0123456789abcdef" * 3
    settings = load(tmp_path, "", {"MNEMOGATE_KEY": key})
    assert settings.server.key == key
    assert key not in repr(settings)


def test_a_key_for_secrets_may_come_from_the_environment(tmp_path: Path) -> None:
    key = b64encode(bytes(range(32))).decode()
    settings = load(tmp_path, "", {"MNEMOGATE_SECRETS_KEY": f"{key}\n"})
    assert settings.tools.secrets_key == key
    assert key not in repr(settings)
    with pytest.raises(SettingsError, match="MNEMOGATE_SECRETS_KEY") as caught:
        load(tmp_path, "", {"MNEMOGATE_SECRETS_KEY": key[:-5]})
    assert key[:-5] not in caught.value.message


@pytest.mark.parametrize("name", ["MNEMOGATE_SIGNING", "SIGNING"])
def test_a_secret_comes_from_a_variable(tmp_path: Path, name: str) -> None:
    settings = load(tmp_path, f"[memory]\nopenwebui_jwt_secret = 'env:{name}'", {name: "hush"})
    assert settings.memory.openwebui_jwt_secret == "hush"
    secret = "whsec_" + "A" * 32
    settings = load(tmp_path, f"[tools]\nwebhook_secret = 'env:{name}'", {name: secret})
    assert settings.tools.webhook_secret == secret
    header = f"[[tools.headers]]\nname = 'a'\nhost = 'H.org'\nheader = 'X'\nvalue = 'env:{name}'"
    assert load(tmp_path, header, {name: "hush"}).tools.headers == (ToolHeader("a", "h.org", "X", "hush"),)
    assert "hush" not in repr(settings)
    server = load(tmp_path, f"[server]\nkey = 'env:{name}'", {name: "mg-" + "0123456789abcdef" * 2}).server
    assert server.key == "mg-" + "0123456789abcdef" * 2
    proxy = f"[[upstreams]]\nname = 'a'\nkind = 'groq'\nproxy = 'env:{name}'"
    assert load(tmp_path, proxy, {name: "http://p:3128"}).upstreams[0].proxy == "http://p:3128"


SERVER = "postgresql://ann:hush@db.example/memory"


@pytest.mark.parametrize(
    ("text", "environ", "flags", "url", "path"),
    [
        (f"url = '{SERVER}'", {}, {}, SERVER, "mnemogate.db"),
        ("url = 'env:PG'", {"PG": SERVER}, {}, SERVER, "mnemogate.db"),
        ("path = 'a.db'", {"MNEMOGATE_DATABASE_URL": SERVER}, {}, SERVER, "a.db"),
        (f"url = '{SERVER}'", {"MNEMOGATE_DB": "b.db"}, {}, None, "b.db"),
        (f"url = '{SERVER}'", {}, {("database", "path"): "c.db"}, None, "c.db"),
        ("", {"MNEMOGATE_DATABASE_URL": SERVER}, {("database", "path"): "c.db"}, None, "c.db"),
        ("url = 'sqlite:///d.db'", {}, {}, None, "d.db"),
    ],
)
def test_the_database_that_is_named_closest_counts(
    tmp_path: Path,
    text: str,
    environ: dict[str, str],
    flags: dict[tuple[str, str], Any],
    url: str | None,
    path: str,
) -> None:
    database = load(tmp_path, f"[database]\n{text}", environ, flags=flags).database
    assert (database.url, database.path) == (url, path)
    assert "hush" not in repr(database)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"path = 'a.db'\nurl = '{SERVER}'", "name one of them"),
        (f"url = '{SERVER}'\npooled = true", "database.listen_url is missing"),
        (f"url = '{SERVER}'\npooler_prepares = true", "database.pooled is false"),
        (f"url = '{SERVER}'\nlisten_url = 'sqlite:///a'", "database.listen_url: expected postgresql://…"),
        ("url = 'env:PG'", "database.url names PG, which is not set"),
    ],
)
def test_a_wrong_server_address_is_reported(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"[database]\n{text}")
    assert says in caught.value.message
    assert "hush" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SERVER, "postgresql://ann:***@db.example/memory"),
        ("postgresql://ann:hu@sh@h1,h2:5433/m?x=1", "postgresql://ann:***@h1,h2:5433/m?x=1"),
        ("postgresql:///m?user=a&password=hush&host=/run", "postgresql:///m?user=a&password=***&host=/run"),
        ("postgresql://ann@h/m", "postgresql://ann@h/m"),
        ("postgresql://ann@ours:hush@h/m", "postgresql://ann@ours:***@h/m"),
        ("postgresql://ann:hu/sh@h/m", "postgresql://ann:***@h/m"),
        ("postgresql://an/n:hush@h/m", "postgresql://an/n:***@h/m"),
        ("postgresql://an#n:hush@h/m", "postgresql://an#n:***@h/m"),
        ("postgresql://h:1/m?user=a&password=hu@sh", "postgresql://h:1/m?user=a&password=***"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert mask_password(url) == shown == DatabaseSettings(url=url).shown


def test_several_keys_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    head = "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\n"
    assert load(tmp_path, head + "api_key = ['k', 'l']").upstreams[0].keys == ("k", "l")
    environ = {"MNEMOGATE_KEY_1": "k", "KEY_2": "l"}
    named = head + "api_key = ['env:MNEMOGATE_KEY_1', 'env:KEY_2']"
    assert load(tmp_path, named, environ).upstreams[0].keys == ("k", "l")
    assert load(tmp_path, head + "api_key = []").upstreams[0].keys == ()


def test_keys_are_not_shown() -> None:
    for key in ("sk-secret", ("sk-secret", "sk-secret-2")):
        assert "sk-secret" not in repr(UpstreamSettings("a", api_key=key, headers={"x": "sk-secret"}))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("[::1]", True),
        ("app.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("192.168.0.1", False),
        ("", False),
    ],
)
def test_loopback_addresses_are_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("project", "profile", "expected"),
    [("blue", "bob", "off"), ("blue", "default", "read"), ("red", "bob", "off"), ("red", "default", "on")],
)
def test_the_profile_decides_before_the_project(
    tmp_path: Path, project: str, profile: str, expected: str
) -> None:
    text = "[projects.blue]\nmemory = 'read'\n[[profiles]]\nname = 'bob'\nmemory = 'off'"
    rules = make_identity_rules(load(tmp_path, text), project)
    headers = [(b"x-mnemogate-agent", profile.encode())] if profile != "default" else []
    assert identify(headers, {}, rules, project).mode == expected


def test_single_user_makes_one_person_of_everybody(tmp_path: Path) -> None:
    assert load(tmp_path).default_user is None
    assert load(tmp_path, "[memory]\nsingle_user = true").default_user == "owner"
    assert load(tmp_path, "[memory]\nsingle_user = true\ndefault_user = 'ann'").default_user == "ann"


# --- the documentation ------------------------------------------------------------------------------------------


def names_in_code(cls: Any, where: str = "") -> set[str]:
    found: set[str] = set()
    for name, kind in get_type_hints(cls).items():
        path = f"{where}{name}"
        inner = [each for each in (kind, *get_args(kind)) if is_struct(each)]
        if not inner:
            found.add(path)
        for each in inner:
            found |= names_in_code(each, path + (".*." if get_origin(kind) is dict else "."))
    return found


def names_in_example(value: Any, where: str = "") -> set[str]:
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return {name for each in value for name in names_in_example(each, where)}
    if not isinstance(value, dict) or where in ("upstreams.headers", "upstreams.takes"):
        return {where}
    found = set()
    for name, each in value.items():
        inner = "*" if where == "projects" else name
        found |= names_in_example(each, f"{where}.{inner}" if where else inner)
    return found


def test_the_reference_names_every_setting_and_no_other() -> None:
    text = re.sub(r"^# (?=[a-z_]+ = )", "", REFERENCE.read_text("utf-8"), flags=re.M)
    documented, known = names_in_example(tomllib.loads(text)), names_in_code(Settings)
    assert not known - documented, f"docs/settings.toml lacks {sorted(known - documented)}"
    assert not documented - known, (
        f"docs/settings.toml names what is no setting: {sorted(documented - known)}"
    )


def test_the_reference_shows_the_defaults_and_loads() -> None:
    settings = load_settings(config=str(REFERENCE), environ={"OPENAI_API_KEY": "k"})
    assert (settings.server, settings.database) == (Settings().server, Settings().database)
    assert replace(settings.tools, headers=()) == Settings().tools
    memory = settings.memory
    assert (memory.user_order, memory.conversation_order) == (USER_ORDER, CONVERSATION_ORDER)
    plain = replace(memory, side_requests=(), user_order=None, conversation_order=None)
    assert plain == Settings().memory
    (upstream,) = settings.upstreams
    assert upstream.keys == ("k",)
    assert set(upstream.takes) == set(get_args(Capability))
    assert settings.profiles[0].blocks[0].label == "human"


def test_the_starter_is_short_and_loads() -> None:
    assert len(STARTER.read_text().splitlines()) <= 12
    settings = load_settings(config=str(STARTER), environ={"OPENAI_API_KEY": "k"})
    assert settings.upstreams[0].keys == ("k",)


def test_the_documents_name_no_setting_that_does_not_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    named = {".".join(each) for each in re.findall(r"`(server|database|memory|tools)\.([a-z_]+)", text)}
    named |= {f"upstreams.{each}" for each in re.findall(r"`\[\[upstreams\]\] ([a-z_]+)`", text)}
    assert len(named) > 10, "the pattern found nothing: it looks in the wrong place"
    # A table's name may stand for a list of tables.
    known = names_in_code(Settings) | {"memory.side_requests", "tools.headers"}
    assert not named - known, f"a page names what is no setting: {sorted(named - known)}"


@pytest.mark.parametrize("address", ["http://[::1", "http://host:99999999/v1", "http://host/v1?key=v"])
def test_an_address_that_is_none_is_an_error_of_the_settings(address: str) -> None:
    settings = Settings(upstreams=(UpstreamSettings("a", base_url=address),))
    with pytest.raises(SettingsError, match="upstreams 'a': base_url: "):
        make_providers(settings)
