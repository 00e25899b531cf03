"""Settings: precedence, errors that help, and a documentation that says what the code says."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from gateway.app import make_providers
from gateway.core.request.identity import identify
from gateway.errors import SettingsError
from gateway.metrics import Metrics
from gateway.run.chat import Chat
from gateway.run.upstream.route import resolve_route
from gateway.serve import example_model
from gateway.settings import (
    DEMO_PROFILE,
    ModelSettings,
    Settings,
    UpstreamSettings,
    is_loopback,
    load_settings,
)

EXAMPLE = Path(__file__).parents[3] / "mnemogate.example.toml"


def load(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **options: Any) -> Settings:
    file = tmp_path / "mnemogate.toml"
    file.write_text(text, "utf-8")
    return load_settings(config=str(file), environ=environ or {}, **options)


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    text = "[server]\nport = 1\nshutdown_s = 4\n[memory]\nrecall_tokens = 5"
    environ = {"MNEMOGATE_PORT": "2", "MNEMOGATE_MEMORY_RECALL_TOKENS": "6"}
    settings = load(tmp_path, text, environ, flags={("server", "port"): 3})
    assert (settings.server.port, settings.server.shutdown_s, settings.memory.recall_tokens) == (3, 4, 6)


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    text = '[server]\nhost = "::1"\n[memory]\nbackground_model = "small"'
    environ = {
        "MNEMOGATE_HOST": "",
        "MNEMOGATE_BACKGROUND_MODEL": "",
        "MNEMOGATE_PORT": "",
        "MNEMOGATE_DB": "",
    }
    assert load(tmp_path, text, environ) == load(tmp_path, text)


@pytest.mark.parametrize(
    "environ",
    [
        {"MNEMOGATE_PORT": "1", "MNEMOGATE_SERVER_PORT": "2"},
        {"MNEMOGATE_DB": "a", "MNEMOGATE_DATABASE_URL": "sqlite:///b"},
    ],
)
def test_two_variables_that_contradict_each_other_are_named(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=" and ".join(environ)):
        load_settings(environ=environ)
    assert load_settings(environ={"MNEMOGATE_DB": "a", "MNEMOGATE_DATABASE_URL": "sqlite:///a"})


@pytest.mark.parametrize(("name", "value"), [(("server", "port"), 70_000), (("database", "path"), "")])
def test_a_flag_is_held_to_what_the_file_is(tmp_path: Path, name: tuple[str, str], value: Any) -> None:
    with pytest.raises(SettingsError, match="^" + r"\.".join(name) + ": expected"):
        load(tmp_path, flags={name: value})


@pytest.mark.parametrize(
    ("name", "text", "table", "key", "value"),
    [
        ("MNEMOGATE_SERVER_HOST", "::1", "server", "host", "::1"),
        ("MNEMOGATE_DB", "x.db", "database", "path", "x.db"),
        ("MNEMOGATE_DATABASE_URL", "sqlite:////tmp/x.db", "database", "path", "/tmp/x.db"),
        ("MNEMOGATE_SINGLE_USER", "yes", "memory", "single_user", True),
        ("MNEMOGATE_SERVER_ACCESS_LOG", "0", "server", "access_log", False),
        ("MNEMOGATE_MEMORY_IDLE_S", "7", "memory", "idle_s", 7.0),
        ("MNEMOGATE_MEMORY_USER_ORDER", "user, x-who", "memory", "user_order", ("user", "x-who")),
        ("MNEMOGATE_BACKGROUND_MODEL", "small", "memory", "background_model", "small"),
    ],
)
def test_the_environment_says(tmp_path: Path, name: str, text: str, table: str, key: str, value: Any) -> None:
    assert getattr(getattr(load(tmp_path, "", {name: text}), table), key) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
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
        ("[server]\nport = 'x'", "server.port: expected a whole number, saw 'x'"),
        ("[server]\nport = 70000", "server.port: expected between 0 and 65535, saw 70000"),
        ("[server]\nport = true", "server.port: expected a whole number, saw True"),
        ("[server]\nkeep_alive_s = 60", "server.keep_alive_s: expected at least 130, saw 60"),
        ("[server]\naccess_log = 1", "server.access_log: expected true or false, saw 1"),
        ("[server]\nbody_timeout_s = nan", "server.body_timeout_s: expected at least 0.1, saw nan"),
        ("[memory]\ndefault = 'maybe'", "memory.default: expected one of on, read, off, saw 'maybe'"),
        ("[memory]\nuser_order = 'user'", "memory.user_order: expected a list, saw 'user'"),
        ("[memory]\nuser_order = [1]", "memory.user_order[0]: expected a text, saw 1"),
        ("server = 3", "server: expected a table, saw 3"),
        ("[[upstreams]]\nkind = 'openai'", "upstreams[0]: 'name' is missing"),
        ("upstreams = []", "the list is empty"),
        ("[[upstreams]]\nname = 'a'", "base_url must be an http(s) URL, saw None"),
        ("[[upstreams]]\nname = 'a'\nbase_url = 'ftp://x'", "base_url must be an http(s) URL, saw 'ftp://x'"),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_key_env = 'NOT_THERE'",
            "api_key_env names NOT_THERE, which is not set",
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
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_key = 'k'\napi_keys = ['l']",
            "upstreams 'a': give one of api_key, api_key_env, api_keys and api_keys_env",
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_keys = ['k', 'k']",
            "its keys: one is there twice",
        ),
        (
            "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\napi_keys_env = ['NOT_THERE']",
            "api_keys_env names NOT_THERE, which is not set",
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
        (
            "[[profiles]]\nname = 'bob'\n[[profiles.blocks]]\nlabel = 'x'\nlimit = 2\nvalue = 'abc'",
            "profiles 'bob': block 'x': its value has 3 characters, its limit is 2",
        ),
        ("[projects.blue]\nprofile = 'bob'", "projects.blue: profile: unknown name 'bob'"),
        ("[[memory.side_requests]]\nname = 'x'\npattern = '('", "memory.side_requests 'x': pattern: "),
        ('[database]\npath = "a\\u0000b"', "database.path: expected the name of a file, saw 'a\\x00b'"),
        # Patterns become one, in which flags cannot stand and names count once.
        ("[[memory.side_requests]]\nname = 'x'\npattern = '(?i)a'", "memory.side_requests 'x': pattern: "),
        (
            "[[memory.side_requests]]\nname = 'x'\npattern = '(?P<r0>a)'",
            "memory.side_requests 'x': pattern: ",
        ),
        ("[server", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("MNEMOGATE_PROT", "1", "environment: unknown name 'MNEMOGATE_PROT'; did you mean 'MNEMOGATE_PORT'?"),
        ("MNEMOGATE_PORT", "x", "MNEMOGATE_PORT: expected a whole number, saw 'x'"),
        ("MNEMOGATE_SINGLE_USER", "maybe", "MNEMOGATE_SINGLE_USER: expected true or false, saw 'maybe'"),
        ("MNEMOGATE_DATABASE_URL", "postgresql://u:secret@h/db", "PostgreSQL comes later"),
        ("MNEMOGATE_DATABASE_URL", "mysql://u:secret@h/db", "expected sqlite:///path, saw 'mysql'"),
        ("MNEMOGATE_CONFIG", "/nowhere/x.toml", ""),
    ],
)
def test_a_wrong_environment_is_told_what_is_wrong(name: str, text: str, says: str) -> None:
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
    ],
)
def test_the_example_names_a_model_that_is_answered(environ: dict[str, str], expected: str) -> None:
    settings = load_settings(environ=environ)
    assert example_model(settings) == expected
    assert resolve_route(settings, expected).model == expected
    own = dataclasses.replace(settings, models=(ModelSettings("quick", "m"),))
    assert example_model(own) == "quick"


def test_a_missing_file_is_an_error_only_when_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}) == dataclasses.replace(Settings(), profiles=(DEMO_PROFILE,))
    with pytest.raises(SettingsError, match="there is no such settings file"):
        load_settings(config="other.toml", environ={})


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
            (UpstreamSettings("openai", base_url="http://y/v1", api_key="k"),),
        ),
        ({"MNEMOGATE_UPSTREAM": "http://z/v1"}, None, (UpstreamSettings("openai", base_url="http://z/v1"),)),
    ],
)
def test_the_providers_own_variables_name_the_upstreams(
    tmp_path: Path, environ: dict[str, str], upstream: str | None, expected: tuple[UpstreamSettings, ...]
) -> None:
    assert load(tmp_path, "", environ, upstream=upstream).upstreams == expected


def test_a_stray_key_does_not_open_a_second_upstream(tmp_path: Path) -> None:
    text = "[[upstreams]]\nname = 'local'\nbase_url = 'http://x/v1'\napi_key_env = 'MNEMOGATE_MY_KEY'"
    settings = load(tmp_path, text, {"OPENAI_API_KEY": "k", "MNEMOGATE_MY_KEY": "mine"})
    assert [(each.name, each.api_key) for each in settings.upstreams] == [("local", "mine")]


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("", {"OPENAI_API_KEY": "secret\n"}),  # a mounted secret, as `echo` wrote it
        ('[[upstreams]]\nname = "a"\nkind = "groq"\napi_keys_env = ["K"]', {"K": "secret\r"}),
        ('[[upstreams]]\nname = "a"\nkind = "groq"\nheaders = {x = "secret\\n"}', {}),
    ],
)
def test_a_key_that_cannot_be_sent_is_refused_at_the_start(
    tmp_path: Path, text: str, environ: dict[str, str]
) -> None:
    with pytest.raises(SettingsError, match="has a line end") as caught:
        load(tmp_path, text, environ)
    assert "secret" not in caught.value.message


def test_several_keys_come_from_the_file_or_the_environment(tmp_path: Path) -> None:
    head = "[[upstreams]]\nname = 'a'\nbase_url = 'http://x'\n"
    assert load(tmp_path, head + "api_keys = ['k', 'l']").upstreams[0].api_keys == ("k", "l")
    environ = {"MNEMOGATE_KEY_1": "k", "KEY_2": "l"}
    named = head + "api_keys_env = ['MNEMOGATE_KEY_1', 'KEY_2']"
    assert load(tmp_path, named, environ).upstreams[0].api_keys == ("k", "l")


def test_keys_are_not_shown() -> None:
    shown = UpstreamSettings("a", api_key="sk-secret", api_keys=("sk-secret",), headers={"x": "sk-secret"})
    assert "sk-secret" not in repr(shown)


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
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("project", "profile", "expected"),
    [("blue", "bob", "off"), ("blue", "default", "read"), ("red", "bob", "off"), ("red", "default", "on")],
)
def test_the_profile_decides_before_the_project(
    tmp_path: Path, project: str, profile: str, expected: str
) -> None:
    text = "[projects.blue]\nmemory = 'read'\n[[profiles]]\nname = 'bob'\nmemory = 'off'"
    chat = Chat(load(tmp_path, text), None, {}, Metrics(), float)
    headers = [(b"x-mnemogate-agent", profile.encode())] if profile != "default" else []
    assert identify(headers, {}, chat._rules_of(project), project).mode == expected


def test_single_user(tmp_path: Path) -> None:
    assert load(tmp_path).default_user is None
    assert load(tmp_path, "[memory]\nsingle_user = true").default_user == "owner"
    assert load(tmp_path, "[memory]\nsingle_user = true\ndefault_user = 'ann'").default_user == "ann"


# --- the documentation ------------------------------------------------------------------------------------------


def names_in_code(cls: Any, where: str = "") -> set[str]:
    found: set[str] = set()
    for name, kind in get_type_hints(cls).items():
        path = f"{where}{name}"
        inner = [each for each in (kind, *get_args(kind)) if dataclasses.is_dataclass(each)]
        if not inner:
            found.add(path)
        for each in inner:
            found |= names_in_code(each, path + (".*." if get_origin(kind) is dict else "."))
    return found


def names_in_example(value: Any, where: str = "") -> set[str]:
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return {name for each in value for name in names_in_example(each, where)}
    if not isinstance(value, dict) or where == "upstreams.headers":
        return {where}
    found = set()
    for name, each in value.items():
        inner = "*" if where == "projects" else name
        found |= names_in_example(each, f"{where}.{inner}" if where else inner)
    return found


def test_the_example_names_every_setting_and_no_other() -> None:
    text = EXAMPLE.read_text("utf-8")
    shown = text.replace("# default_user", "default_user").replace("# background_model", "background_model")
    shown = (
        shown.replace("# takes_", "takes_")
        .replace("# api_key = ", "api_key = ")
        .replace("# retention_days", "retention_days")
    )
    shown = shown.replace("# embedder", "embedder")
    assert names_in_example(tomllib.loads(shown)) == names_in_code(Settings)


def test_the_example_shows_the_defaults_and_loads() -> None:
    settings = load_settings(config=str(EXAMPLE), environ={"OPENAI_API_KEY": "k"})
    assert (settings.server, settings.database) == (Settings().server, Settings().database)
    memory = dataclasses.replace(settings.memory, side_requests=Settings().memory.side_requests)
    assert memory == Settings().memory
    assert settings.upstreams[0].api_key == "k"
    assert settings.profiles[0].blocks[0].label == "human"


@pytest.mark.parametrize("address", ["http://[::1", "http://host:99999999/v1", "http://host/v1?key=v"])
def test_an_address_that_is_none_is_an_error_of_the_settings(address: str) -> None:
    settings = Settings(upstreams=(UpstreamSettings("a", base_url=address),))
    with pytest.raises(SettingsError, match="upstreams 'a': base_url: "):
        make_providers(settings)
