"""Templates, what they may call, and static files. What people and models wrote is hostile: Jinja2 escapes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gateway.page.shown_text import visible
from gateway.run.admin.page_paths import page_path

_ROOT = Path(__file__).parent
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
STATIC = "static/"
_UNKNOWN = "\u2013"


class Renderer:
    """Renders templates. now: seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._environment = Environment(
            loader=FileSystemLoader(_ROOT / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "when": when,
            "ago": lambda at: ago(at, self._now()),
            "size": size,
            "count": count,
            "plural": plural,
            "score": score,
            "ms": milliseconds,
        }

    def render(self, template: str, path: str, query: Mapping[str, Any], **context: Any) -> str:
        """Renders a template. path, query: of the page, from which links are relative; path: below /ui/."""
        up = "../" * path.count("/")

        def url(*parts: str | int | Sequence[str], **fields: Any) -> str:
            """Links to a screen. A part may be several, as the beginning of the path."""
            whole = [one for part in parts for one in ((part,) if isinstance(part, str | int) else part)]
            return (up + page_path(*whole) or "./") + _query_of(fields)

        def relative(to: str) -> str:
            return up + to or "./"

        def here(**fields: Any) -> str:
            """Links to the same page with other fields."""
            return _query_of({**query, **fields}) or "?"

        found = self._environment.get_template(template)
        return found.render(
            url=url,
            relative=relative,
            here=here,
            asset=lambda name: up + STATIC + self.assets[name],
            sheet=self._sheet,
            **context,
        )

    @cached_property
    def _sheet(self) -> Markup:
        """The style sheet, for a file that stands by itself."""
        return Markup("<style>\n{}</style>").format(Markup((_ROOT / "static/page.css").read_text("utf-8")))

    @cached_property
    def assets(self) -> dict[str, str]:
        """The names of static files as they are served, which change with what is in them."""
        return {name: hashed for hashed, (name, _, _) in self.files.items()}

    @cached_property
    def files(self) -> dict[str, tuple[str, str, bytes]]:
        """Static files by the names as they are served: name, content type, bytes."""
        found = {}
        for path in sorted((_ROOT / "static").iterdir()):
            data = path.read_bytes()
            hashed = f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}"
            found[hashed] = path.name, _TYPES[path.suffix], data
        return found


def _finalize(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    return "" if value is None else value


def _query_of(fields: Mapping[str, Any]) -> str:
    given = [(name, _field(value)) for name, value in fields.items() if value is not None]
    return "?" + urlencode(given) if given else ""


def _field(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def when(at: float | None, *, form: str = "%-d %b %Y, %H:%M") -> str:
    """Returns a time as HTML, in UTC."""
    if at is None:
        return _UNKNOWN
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S"), moment.strftime(form)
    )


def ago(at: float | None, now: float) -> str:
    """Returns a time as HTML, as long ago as it is."""
    if at is None:
        return _UNKNOWN
    passed = now - at
    if passed >= 7 * 86_400 or passed < -60:
        return when(at, form="%-d %b %Y")
    words = "just now"
    for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if passed >= seconds:
            words = f"{int(passed // seconds)} {unit} ago"
            break
    moment = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"), moment.strftime("%Y-%m-%d %H:%M:%S"), words
    )


def size(bytes: int) -> str:
    """Returns a size in the largest unit of which there is one: 1.2 MB."""
    number = float(bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return (
        f"{bytes} bytes"
        if unit == "bytes"
        else f"{number:.3g} {unit}"
        if number < 100
        else f"{number:.0f} {unit}"
    )


def count(number: float) -> str:
    """Returns a number with its thousands apart: 1,204."""
    return f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with its noun: 1 fact, 1,204 facts."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def score(value: float | None) -> str:
    """Returns a score from 0 to 1 with two digits: .97, 1.00."""
    return _UNKNOWN if value is None else f"{value:.2f}".removeprefix("0")


def milliseconds(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return (
        f"{value:,.1f} ms"
        if value < 10
        else f"{value:,.0f} ms"
        if value < 10_000
        else f"{value / 1000:,.1f} s"
    )
