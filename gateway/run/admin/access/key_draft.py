"""Reads and checks keys that are to be created or changed, over REST, on the command line or on the page."""

from __future__ import annotations

from typing import Any, Final, get_args

from msgspec.structs import replace

from gateway.core.dates import END_OF_DATES_S
from gateway.errors import BadRequest, NotAllowed
from gateway.run.admin.operation_arguments import Arguments, RawArguments, check_project
from gateway.settings import DefaultMode
from storage.key_record import OPERATOR, OPERATOR_READ, Key
from storage.records import DEFAULT_PROJECT
from storage.sql.keys import IssuedKey, Keys

# The project of operators' keys for all projects.
ALL_PROJECTS = ""
_OPERATOR_KINDS = (OPERATOR, OPERATOR_READ)
# The names under which the keys of the settings are stored. A new key in the settings replaces the one of its name.
SETTINGS_KEY = "server.key"
SETTINGS_OPERATOR_KEY = "server.operator_key"
_KEY_KINDS: Final = ("metrics", *_OPERATOR_KINDS)


async def create_key(keys: Keys, draft: Key) -> IssuedKey:
    """Creates a key. Raises: BadRequest: its time of expiry has passed."""
    if keys.has_expired(draft):
        raise BadRequest("expires_at must be in the future: this key would open nothing.", param="expires_at")
    return await keys.create(
        draft.project,
        draft.name,
        draft.memory,
        draft.opens,
        expires=draft.expires,
        models=draft.models,
        user=draft.user,
    )


def read_draft(raw: RawArguments, visible_project: str | None = None) -> Key:
    """Returns a key that is to be created. visible_project: the only project that the caller sees; None: all projects.

    Raises: BadRequest, UnknownId, NotAllowed.
    """
    opens = raw.get("opens")
    if opens is not None and opens not in _KEY_KINDS:
        raise BadRequest(
            f"opens must be null or one of {', '.join(_KEY_KINDS)}, saw {opens!r}.", param="opens"
        )
    project = Arguments(raw).read_optional_text("project") or visible_project
    if project is None:
        project = ALL_PROJECTS if opens in _OPERATOR_KINDS else DEFAULT_PROJECT
    check_project(project, visible_project)
    if opens == "metrics" and visible_project is not None:
        raise NotAllowed("A key for /metrics, which shows all projects, is made by operators of all.")
    return with_fields(raw, Key(id=0, project=project, name="key", prefix="", created=0.0, opens=opens))


def with_fields(raw: RawArguments, key: Key) -> Key:
    """Returns a key with the fields that a request names. Raises: BadRequest."""
    name = raw.get("name", key.name)
    if not isinstance(name, str) or not name:
        raise BadRequest(f"name must be a non-empty text, saw {name!r}.", param="name")
    _check_reserved_names(name, key.name)
    user = Arguments(raw).read_optional_id("user") if "user" in raw else key.user
    memory = raw.get("memory", key.memory)
    if memory is not None and memory not in get_args(DefaultMode):
        raise BadRequest(f"memory must be on, read or off, saw {memory!r}.", param="memory")
    expires = raw.get("expires_at", key.expires)
    if expires is not None and not _is_time(expires):
        raise BadRequest(f"expires_at must be seconds since 1970, saw {expires!r}.", param="expires_at")
    models: Any = raw.get("models", key.models)
    if models is not None:
        if not isinstance(models, list | tuple) or not all(isinstance(each, str) and each for each in models):
            raise BadRequest("models must be a list of patterns.", param="models")
        models = tuple(models)
    check_opens(key.opens, memory=memory, models=models, user=user)
    return replace(key, name=name, memory=memory, expires=expires, models=models, user=user)


def check_opens(opens: str | None, **bounds: object) -> None:
    """Checks that a key which opens metrics or the page has no bounds of requests. Raises: BadRequest.

    opens: the value of `Key.opens`; None: the key is for requests.
    bounds: the key's bounds, by their fields; None: the key has no such bound.
    """
    for field, value in bounds.items():
        if opens is not None and value is not None:
            raise BadRequest(f"A key that opens metrics or /v1/manage has no {field}.", param=field)


def _check_reserved_names(name: str, present_name: str) -> None:
    """Checks that the keys in the settings keep their names, and that no other key gets one of them.

    present_name: the name that the key has now.

    Raises: BadRequest.
    """
    for reserved in (SETTINGS_KEY, SETTINGS_OPERATOR_KEY):
        if name != present_name and reserved in (name, present_name):
            raise BadRequest(
                f"The name {reserved} is that of the key in the settings, and of no other.", param="name"
            )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < END_OF_DATES_S
