"""Renders the page's templates: the functions and filters that they call, and the static files that they link to.

Texts of people and models are hostile. Jinja2 escapes every value, and characters that show nothing are made visible.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gateway.page.shown_text import visible
from gateway.run.admin.page_paths import STATIC, page_path

_ROOT = Path(__file__).parent
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_UNKNOWN = "\u2013"
# The beginning of a character reference, which was cut off.
_HALF_REFERENCE = re.compile("&[^;]*$")
# More characters than most words have in a script without spaces: Thai to Khmer, kana, Han.
_UNSPACED_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{3}")


class StaticFile(NamedTuple):
    """A file in the folder `static`."""

    name: str
    content_type: str
    data: bytes


class Renderer:
    """Renders templates, and has the static files. now: seconds since the epoch."""

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
            "words": words,
            "has_several_words": has_several_words,
            "paragraph": paragraph,
            "cut": cut,
            "marked": marked,
            "when": when,
            "ago": lambda at: ago(at, self._now()),
            "clock": lambda at: clock(at, self._now()),
            "size": size,
            "count": count,
            "plural": plural,
            "score": score,
            "ms": milliseconds,
        }
        self._environment.globals["next_in"] = next_in

    def render(self, template: str, path: str, query: Mapping[str, Any], **context: Any) -> str:
        """Renders a template.

        path: that of the page below /ui/; links are relative to it.
        query: that of the page, which `here` repeats.
        context: the other names of the template.
        """
        path_to_root = "../" * path.count("/")

        def url(*parts: str | int | Sequence[str], **fields: Any) -> str:
            """Returns a link to a screen. A part is a segment of its path, or a sequence of them."""
            segments = [each for part in parts for each in ((part,) if isinstance(part, str | int) else part)]
            return (path_to_root + page_path(*segments) or "./") + _render_query(fields)

        def relative(to: str) -> str:
            """Returns a link to a path below /ui/."""
            return path_to_root + to or "./"

        def here(**fields: Any) -> str:
            """Returns a link to the same page with other fields."""
            return _render_query({**query, **fields}) or "?"

        return self._environment.get_template(template).render(
            url=url,
            relative=relative,
            here=here,
            asset=lambda name: path_to_root + STATIC + self.assets[name],
            style_sheet=self._style_sheet,
            **context,
        )

    @cached_property
    def _style_sheet(self) -> Markup:
        """The style sheet as an element, for a downloaded page, which cannot link to it."""
        return Markup("<style>\n{}</style>").format(Markup((_ROOT / "static/page.css").read_text("utf-8")))

    @cached_property
    def assets(self) -> dict[str, str]:
        """The names under which static files are served, by their names: each has a hash of the file's content."""
        return {file.name: served_name for served_name, file in self.files.items()}

    @cached_property
    def files(self) -> dict[str, StaticFile]:
        """The static files, by the names under which they are served."""
        files = {}
        for path in sorted((_ROOT / "static").iterdir()):
            data = path.read_bytes()
            served_name = f"{path.stem}.{hashlib.sha256(data).hexdigest()[:12]}{path.suffix}"
            files[served_name] = StaticFile(path.name, _CONTENT_TYPES[path.suffix], data)
        return files


def _finalize(value: Any) -> Any:
    """Returns a template's value as it is shown. Markup is the gateway's own."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return visible(value)
    return "" if value is None else value


def words(text: str) -> Markup:
    """Returns a text of a person or a model as HTML: never markup, in its own direction, in no known language."""
    return Markup(f'<span class="words" dir="auto" lang="">{escape(_finalize(text))}</span>')


def paragraph(text: str) -> Markup:
    """Returns what `words` does, as an element of its own, in which line ends are kept."""
    return Markup(f'<div class="words text" dir="auto" lang="">{escape(_finalize(text))}</div>')


def cut(text: str, max_bytes: int) -> Markup:
    """Returns a text as HTML, ended with "…" where it would take more bytes."""
    return _cut(text, max_bytes)[0]


def _cut(text: str, max_bytes: int) -> tuple[Markup, bool]:
    """Returns what `cut` does, and whether the text was cut."""
    html = str(escape(visible(text[: max_bytes + 1]))).encode("utf-8", "replace")
    if len(html) <= max_bytes:
        return Markup(html.decode()), False
    return Markup(_HALF_REFERENCE.sub("", html[:max_bytes].decode("utf-8", "ignore")) + "…"), True


def marked(text: str, spans: Sequence[tuple[int, int]], max_bytes: int) -> Markup:
    """Returns what `words` does for a text that is cut as by `cut`, with parts of it marked.

    spans: start and end of each marked part, in order.
    """
    html, bytes_left, end = Markup(), max_bytes, 0
    for start, next_end in (*spans, (len(text), len(text))):
        for part, form in ((text[end:start], "{}"), (text[start:next_end], "<mark>{}</mark>")):
            if part and bytes_left > 0:
                shown, is_cut = _cut(part, bytes_left)
                html += Markup(form).format(shown)
                bytes_left = 0 if is_cut else max_bytes - len(html.encode())
        end = next_end
    return Markup('<span class="words" dir="auto" lang="">{}</span>').format(html)


def next_in(loop: Any, kind: str = "", list: str = "forget") -> str | None:
    """Returns the id of the `forget_link` of the next item in a loop; at the last item, that of the item before it.

    Returns None if there is no other item, or if the other item is forgotten.

    loop: Jinja's loop.
    kind: the kind of all items; "": each item has its own.
    list: as in `forget_link`.
    """
    if loop.first and loop.last:
        return None
    item = loop.previtem if loop.last else loop.nextitem
    return f"{list}-{kind or item.kind}-{item.seq}" if item.seq else None


def _render_query(fields: Mapping[str, Any]) -> str:
    parts = [
        f"{name}={quote_plus(str(value).lower() if isinstance(value, bool) else str(value))}"
        for name, field in fields.items()
        for value in (field if isinstance(field, tuple | list) else (field,))
        if value is not None
    ]
    return "?" + "&".join(parts) if parts else ""


def when(at: float | None, *, form: str = "%-d %b %Y, %H:%M") -> str:
    """Returns a time in UTC as HTML. form: a format of `strftime`."""
    if at is None:
        return _UNKNOWN
    moment = datetime.fromtimestamp(at, UTC)
    return _render_time(moment, moment.strftime(form))


def ago(at: float | None, now: float) -> str:
    """Returns a time of the last week as HTML in words, such as "3 h ago", and any other time as a date."""
    if at is None:
        return _UNKNOWN
    passed_s = now - at
    if passed_s >= 7 * 86_400 or passed_s < -60:
        return when(at, form="%-d %b %Y")
    text = "just now"
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if passed_s >= unit_s:
            text = f"{int(passed_s // unit_s)} {unit} ago"
            break
    return _render_time(datetime.fromtimestamp(at, UTC), text)


def clock(at: float, now: float) -> str:
    """Returns the time of day as HTML, and the day too if it is not today."""
    is_today = now // 86_400 == at // 86_400
    return when(at, form="%H:%M:%S" if is_today else "%-d %b, %H:%M:%S")


def _render_time(moment: datetime, text: str) -> Markup:
    """Returns a time as HTML. text: the gateway's own words."""
    day, time = f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}"
    return Markup(f'<time datetime="{day}T{time}Z" title="{day} {time} UTC">{text}</time>')


def size(bytes: int) -> str:
    """Returns a size in the largest unit that gives 1 or more: 1.2 MB."""
    if bytes < 1000:
        return f"{bytes} bytes"
    number = bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"


def count(number: float) -> str:
    """Returns a number with separators of thousands: 1,204."""
    return f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Returns a number with its noun: 1 fact, 1,204 facts."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def has_several_words(text: str) -> bool:
    """Returns whether a text may have several words: in a script without spaces, if it has three characters."""
    return len(text.split()) > 1 or _UNSPACED_WORDS.search(text) is not None


def score(value: float | None) -> str:
    """Returns a score from 0 to 1 with two decimals: .97, 1.00."""
    return _UNKNOWN if value is None else f"{value:.2f}".removeprefix("0")


def milliseconds(value: float | None) -> str:
    """Returns a duration: 4.2 ms, 381 ms, 12.5 s."""
    if value is None:
        return _UNKNOWN
    if value < 10:
        return f"{value:,.1f} ms"
    return f"{value:,.0f} ms" if value < 10_000 else f"{value / 1000:,.1f} s"
