"""The JSON of `/v1/manage/…`, as `/openapi.json` describes it. Tests compare the responses with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from gateway.run.admin.import_progress import ImportCounts
from gateway.run.admin.requested_page import DEFAULT_LIMIT, MAX_LIMIT
from gateway.settings import DefaultMode
from storage.records import ImportStatus
from storage.usage_records import SHOWN_COUNTERS

_Unit = Literal["requests", "tokens", "cost", "concurrent"]
_Period = Literal["minute", "day", "month"]
_Amount = Annotated[float, Meta(ge=0)]
_Opens = Literal["metrics", "operator", "operator-read"]
_Text = Annotated[str, Meta(min_length=1)]
_PageLimit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]


class _Record(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object of these routes. Times are seconds since the epoch.

    The names and docstrings of its subclasses are those of the schemas in /openapi.json.
    """


class _Page(_Record, frozen=True, kw_only=True):
    """A page of records."""

    object: Literal["list"]
    has_more: bool
    # The parameter `after` of the request for the next page; null: this page is the last one.
    next: str | None


class ManagedLimit(_Record, frozen=True, kw_only=True):
    """A limit."""

    id: int
    object: Literal["limit"]
    project: str
    key: int | None
    user: str | None
    unit: _Unit
    per: _Period | None
    most: float
    then: str


class LimitTerms(_Record, frozen=True, kw_only=True):
    """A limit to be added together with the key that it bounds."""

    unit: _Unit
    most: _Amount
    # The user that it bounds; "*": each user separately.
    user: _Text | None = None
    per: _Period | None = None
    # An alias that answers instead, or `refuse`.
    then: str = "refuse"


class LimitBody(LimitTerms, frozen=True, kw_only=True):
    """A limit to be added."""

    project: _Text | None = None
    key: int | None = None


class LimitChange(_Record, frozen=True, kw_only=True):
    """A change of a limit."""

    most: _Amount | UnsetType = UNSET
    then: str | UnsetType = UNSET


class ManagedKey(_Record, frozen=True, kw_only=True):
    """A gateway key, without its secret."""

    id: int
    object: Literal["key"]
    name: str
    project: str | None
    prefix: str
    memory: DefaultMode | None
    models: list[str] | None
    user: str | None
    opens: _Opens | None
    created_at: int
    expires_at: float | None
    revoked_at: int | None
    rotated_until: int | None


class ManagedNewKey(ManagedKey, frozen=True, kw_only=True):
    """A key with its secret, which is shown once."""

    secret: str
    limits: list[ManagedLimit] | UnsetType = UNSET


class KeyChange(_Record, frozen=True, kw_only=True):
    """A change of a key; null takes a bound away."""

    name: _Text | UnsetType = UNSET
    memory: DefaultMode | UnsetType | None = UNSET
    models: list[_Text] | UnsetType | None = UNSET
    user: _Text | UnsetType | None = UNSET
    expires_at: float | UnsetType | None = UNSET


class KeyBody(KeyChange, frozen=True, kw_only=True):
    """A key to be made."""

    project: _Text | None = None
    opens: _Opens | None = None
    # Limits of this key alone.
    limits: list[LimitTerms] | None = None


class RotationBody(_Record, frozen=True, kw_only=True):
    """A rotation of a key's secret."""

    # How long the previous secret stays valid.
    overlap_s: Annotated[int, Meta(ge=0, le=2_592_000)] = 86_400


class DeletedRecord(_Record, frozen=True, kw_only=True):
    """The response to a removal."""

    id: int
    object: Literal["key", "limit"]
    deleted: Literal[True]


class KeyList(_Page, frozen=True, kw_only=True):
    """A page of keys, the oldest first."""

    data: list[ManagedKey]


class LimitList(_Page, frozen=True, kw_only=True):
    """A page of limits, the oldest first."""

    data: list[ManagedLimit]


_COUNTER_FIELDS: list[tuple[str, Any]] = [(name, float if name == "cost" else int) for name in SHOWN_COUNTERS]
UsageCounters = defstruct(
    "UsageCounters", _COUNTER_FIELDS, frozen=True, forbid_unknown_fields=True, kw_only=True
)
# A line has those of these columns that the parameter `by` names.
_GROUP_FIELDS: list[Any] = [
    (name, int | UnsetType if name == "key" else str | UnsetType, UNSET)
    for name in ("day", "project", "user", "key", "upstream", "model")
]
UsageLine = defstruct(
    "UsageLine", [*_COUNTER_FIELDS, *_GROUP_FIELDS], frozen=True, forbid_unknown_fields=True, kw_only=True
)


class UsagePage(_Page, frozen=True, kw_only=True, rename={"from_": "from"}):
    """A page of sums of usage."""

    from_: str
    to: str
    by: list[str]
    as_of: float
    data: list[UsageLine]  # type: ignore[valid-type]


class ListParameters(_Record, frozen=True, kw_only=True):
    """The parameters of a request for a page of keys, limits or imports."""

    project: str | None = None
    limit: _PageLimit = DEFAULT_LIMIT
    after: str | None = None


class UsageParameters(_Record, frozen=True, kw_only=True, rename={"from_": "from"}):
    """The parameters of a request for usage. Days are YYYY-MM-DD, UTC."""

    by: str = "day"
    from_: str | None = None
    to: str | None = None
    project: str | None = None
    user: str | None = None
    key: int | None = None
    upstream: str | None = None
    model: str | None = None
    limit: _PageLimit = DEFAULT_LIMIT
    after: str | None = None
    format: Literal["json", "csv"] = "json"


class HeldLimit(_Record, frozen=True, kw_only=True):
    """A limit of a key, with what is used of it."""

    id: int
    unit: _Unit
    per: _Period | None
    user: str | None
    most: float
    then: str
    used: float
    remaining: float
    resets_at: float | None


class HeldUsage(_Record, frozen=True, kw_only=True):
    """The usage of a key."""

    today: UsageCounters  # type: ignore[valid-type]
    month: UsageCounters  # type: ignore[valid-type]


class HeldKey(ManagedKey, frozen=True, kw_only=True):
    """A key, as its holder is shown it."""

    limits: list[HeldLimit]
    usage: HeldUsage


class UserParameter(_Record, frozen=True, kw_only=True):
    """The parameter of a request for one's own key."""

    # The user of a key for many users to narrow the limits and the usage to.
    user: str | None = None


class ImportFault(_Record, frozen=True, kw_only=True):
    """The fault that ended an import."""

    message: str
    param: str


class ManagedImport(_Record, frozen=True, kw_only=True):
    """An import. Times of the file are in ISO 8601."""

    id: str
    object: Literal["import"]
    status: ImportStatus
    format: str | None
    project: str
    profile: str
    user: str
    created_at: float
    conversations: ImportCounts
    messages: ImportCounts
    facts: ImportCounts
    first_at: str | None
    last_at: str | None
    learn_tokens: int
    warnings: list[str]
    error: ImportFault | None


class ImportParameters(_Record, frozen=True, kw_only=True):
    """The parameters of an import. Its file is the body."""

    user: str
    project: str | None = None
    profile: str | None = None
    format: Literal["chatgpt", "claude", "list", "mem0", "mastra", "jsonl"] | None = None
    source_user: str | None = None
    learn: bool = False
    preview: bool = False


class ImportList(_Page, frozen=True, kw_only=True):
    """A page of imports, the newest first."""

    data: list[ManagedImport]
