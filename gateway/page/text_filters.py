"""The filters of the page's templates: texts, times and numbers as HTML or as words.

Texts of people and models are hostile: they are escaped, and characters that show nothing are made visible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from gateway.core.dates import DAY_S
from gateway.core.memory.orders import get_own_text
from gateway.page.shown_text import write_out_hidden

_UNKNOWN = "\u2013"
# The beginning of a character reference, which was cut off.
_HALF_REFERENCE = re.compile("&[^;]*$")
# More characters than most words have in a script without spaces: Thai to Khmer, kana, Han.
_UNSPACED_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{3}")


def finalize(value: Any) -> Any:
    """Returns a template's value as it is shown. Markup is the gateway's own."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        return write_out_hidden(value)
    return "" if value is None else value


def words(text: str) -> Markup:
    """Returns a text of a person or a model as HTML: never markup, in its own direction, in no known language."""
    return Markup(f'<span class="words" dir="auto" lang="">{escape(finalize(text))}</span>')


def paragraph(text: str) -> Markup:
    """Returns what `words` does, as an element of its own, in which line ends stay."""
    return Markup(f'<div class="words text" dir="auto" lang="">{escape(finalize(text))}</div>')


def quote_statement(text: str, kind: str = "fact") -> str:
    """Returns the text of a fact as each screen shows it: a sentence that was taken from a message as it was is quoted.

    kind: the kind of the text; any text but a fact's is returned as it is.
    """
    return text if (sentence := get_own_text(text, kind)) == text else f"“{sentence}”"


def cut(text: str, max_bytes: int) -> Markup:
    """Returns a text as HTML, ended with "…" where it would take more bytes."""
    return _cut(text, max_bytes)[0]


def _cut(text: str, max_bytes: int) -> tuple[Markup, bool]:
    """Returns what `cut` does, and whether the text was cut."""
    html = str(escape(write_out_hidden(text[: max_bytes + 1]))).encode("utf-8", "replace")
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
    if passed_s >= 7 * DAY_S or passed_s < -60:
        return when(at, form="%-d %b %Y")
    text = "just now"
    for unit_s, unit in ((DAY_S, "d"), (3_600, "h"), (60, "min")):
        if passed_s >= unit_s:
            text = f"{int(passed_s // unit_s)} {unit} ago"
            break
    return _render_time(datetime.fromtimestamp(at, UTC), text)


def clock(at: float, now: float) -> str:
    """Returns the time of day as HTML, and the day too if it is not today."""
    is_today = now // DAY_S == at // DAY_S
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
