"""The JSON of `/v1/manage/…`, as `/openapi.json` describes it. Tests compare the responses with it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from gateway.run.admin.imports.import_progress import ImportCounts
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
    # The id of the only key that the limit bounds; null: all keys of the project.
    key: int | None
    # The user that the limit bounds; "*": each user separately; null: all users together.
    user: str | None
    # The unit of `most`.
    unit: _Unit
    # The period; null: the limit is on requests under way.
    per: _Period | None
    # The most that may be used in a period.
    most: float
    # An alias that answers instead, or `refuse`.
    then: str


class LimitTerms(_Record, frozen=True, kw_only=True):
    """A limit to be added together with the key that it bounds."""

    # The unit of `most`.
    unit: _Unit
    # The most that may be used in a period.
    most: _Amount
    # The user that it bounds; "*": each user separately.
    user: _Text | None = None
    # The period; null: the limit is on requests under way.
    per: _Period | None = None
    # An alias that answers instead, or `refuse`.
    then: str = "refuse"


class LimitBody(LimitTerms, frozen=True, kw_only=True):
    """A limit to be added."""

    # The project of the limit; null: the default project.
    project: _Text | None = None
    # The id of the only key that it bounds; null: all keys of the project.
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
    # The project of its requests; null: an operator's key for all projects.
    project: str | None
    # The beginning of the secret, by which people recognise the key.
    prefix: str
    # The memory mode of its requests that name none.
    memory: DefaultMode | None
    # Patterns of the models that it may ask for; null: all models.
    models: list[str] | None
    # The only user of its requests; null: each request names its user.
    user: str | None
    # The routes that it opens in place of requests; null: requests.
    opens: _Opens | None
    created_at: int
    # The time at which it expires; null: never.
    expires_at: float | None
    # The time at which it was revoked; null: it was not.
    revoked_at: int | None
    # The time until which the previous secret is valid; null: there is none.
    rotated_until: int | None


class ManagedNewKey(ManagedKey, frozen=True, kw_only=True):
    """A key with its secret, which is shown once."""

    secret: str
    # The limits that were made with the key.
    limits: list[ManagedLimit] | UnsetType = UNSET


class KeyChange(_Record, frozen=True, kw_only=True):
    """A change of a key; null takes a bound away."""

    name: _Text | UnsetType = UNSET
    # The memory mode of its requests that name none.
    memory: DefaultMode | UnsetType | None = UNSET
    # Patterns of the models that it may ask for.
    models: list[_Text] | UnsetType | None = UNSET
    # The only user of its requests.
    user: _Text | UnsetType | None = UNSET
    # The time at which it expires.
    expires_at: float | UnsetType | None = UNSET


class KeyBody(KeyChange, frozen=True, kw_only=True):
    """A key to be made."""

    # The project of its requests; null: the default project, or all for an operator's key.
    project: _Text | None = None
    # The routes that it opens in place of requests; null: requests.
    opens: _Opens | None = None
    # Limits of this key alone.
    limits: list[LimitTerms] | None = None


class RotationBody(_Record, frozen=True, kw_only=True):
    """A rotation of a key's secret."""

    # The seconds for which the previous secret stays valid.
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

    # The first day.
    from_: str
    # The last day.
    to: str
    # The columns by which the sums are grouped.
    by: list[str]
    # The time at which the sums were read.
    as_of: float
    data: list[UsageLine]  # type: ignore[valid-type]


class ListParameters(_Record, frozen=True, kw_only=True):
    """The parameters of a request for a page of keys, limits or imports."""

    # The only project with records that are listed; null: all projects.
    project: str | None = None
    # The most records of the page.
    limit: _PageLimit = DEFAULT_LIMIT
    # The `next` of the page before; null: the first page.
    after: str | None = None


class UsageParameters(_Record, frozen=True, kw_only=True, rename={"from_": "from"}):
    """The parameters of a request for usage. Days are YYYY-MM-DD, UTC."""

    # The columns by which the sums are grouped, with commas.
    by: str = "day"
    # The first day; null: the last 30 days.
    from_: str | None = None
    # The last day; null: today.
    to: str | None = None
    # The usage of this project alone.
    project: str | None = None
    # The usage of this user alone.
    user: str | None = None
    # The usage of the key with this id alone.
    key: int | None = None
    # The usage of this upstream alone.
    upstream: str | None = None
    # The usage of this model alone.
    model: str | None = None
    # The most lines of the page.
    limit: _PageLimit = DEFAULT_LIMIT
    # The `next` of the page before; null: the first page.
    after: str | None = None
    format: Literal["json", "csv"] = "json"


class HeldLimit(_Record, frozen=True, kw_only=True):
    """A limit of a key, with what is used of it."""

    id: int
    # The unit of `most`, `used` and `remaining`.
    unit: _Unit
    # The period; null: the limit is on requests under way.
    per: _Period | None
    # The user that the limit bounds; "*": each user separately; null: all users together.
    user: str | None
    most: float
    # An alias that answers instead, or `refuse`.
    then: str
    # The amount that is used or reserved in this period.
    used: float
    remaining: float
    # The end of the period; null: the limit has no period.
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
    # The parameter at fault.
    param: str


class ManagedImport(_Record, frozen=True, kw_only=True):
    """An import. Times of the file are in ISO 8601."""

    id: str
    object: Literal["import"]
    status: ImportStatus
    # The format of the file; null: not recognised yet.
    format: str | None
    project: str
    profile: str
    # The user with the memory that gets the content.
    user: str
    created_at: float
    # The conversations so far.
    conversations: ImportCounts
    # The messages so far.
    messages: ImportCounts
    # The facts so far.
    facts: ImportCounts
    # The time of the first message in the file.
    first_at: str | None
    # The time of the last message in the file.
    last_at: str | None
    # The estimated tokens of learning from the new messages.
    learn_tokens: int
    # Sentences about parts of the file that were left out.
    warnings: list[str]
    # The fault that ended the import; null: none.
    error: ImportFault | None


class ImportParameters(_Record, frozen=True, kw_only=True):
    """The parameters of an import. Its file is the body."""

    # The user with the memory that gets the content.
    user: str
    # The project; null: the default project.
    project: str | None = None
    # The profile; null: the profile of the project.
    profile: str | None = None
    # The format of the file; null: the content shows the format.
    format: Literal["chatgpt", "claude", "list", "mem0", "mastra", "jsonl"] | None = None
    # The only user in the file with facts that are imported; null: all users.
    source_user: str | None = None
    # True: facts are learned from the conversations.
    learn: bool = False
    # True: the content is counted, and nothing is written.
    preview: bool = False


class ImportList(_Page, frozen=True, kw_only=True):
    """A page of imports, the newest first."""

    data: list[ManagedImport]
