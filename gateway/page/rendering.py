"""Renders the page's templates: the functions that they call, and the static files that they link to.

The filters that they call are in `text_filters`. Jinja2 escapes every value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gateway.core.memory.orders import get_own_text
from gateway.page import text_filters
from gateway.run.admin.page_paths import STATIC, page_path

_ROOT = Path(__file__).parent
# The content types of static files by the ends of their names.
_CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Hexadecimal digits of a static file's hash in its name: enough to tell its versions apart.
_HASH_DIGITS = 12


class StaticFile(NamedTuple):
    """A file in the folder `static`."""

    # The name of the file in the folder.
    name: str
    content_type: str
    # The content of the file.
    data: bytes


class Renderer:
    """Renders templates, and has the static files. now: returns the seconds since the epoch."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._environment = Environment(
            loader=FileSystemLoader(_ROOT / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=text_filters.finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= {
            "words": text_filters.words,
            "has_several_words": text_filters.has_several_words,
            "paragraph": text_filters.paragraph,
            "quote_statement": text_filters.quote_statement,
            "own_text": get_own_text,
            "cut": text_filters.cut,
            "marked": text_filters.marked,
            "when": text_filters.when,
            "ago": lambda at: text_filters.ago(at, self._now()),
            "clock": lambda at: text_filters.clock(at, self._now()),
            "size": text_filters.size,
            "count": text_filters.count,
            "plural": text_filters.plural,
            "score": text_filters.score,
            "ms": text_filters.milliseconds,
        }
        self._environment.globals["next_in"] = next_in

    def list_templates(self) -> list[str]:
        """Returns the names of all templates."""
        return self._environment.list_templates()

    def load(self, template: str) -> None:
        """Loads a template ahead of its first use, which compiles it."""
        self._environment.get_template(template)

    def render(self, template: str, path: str, query: Mapping[str, Any], **context: Any) -> str:
        """Renders a template.

        path: the path of the page below /ui/; links are relative to it.
        query: the query of the page, which `here` repeats.
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
            served_name = f"{path.stem}.{hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]}{path.suffix}"
            files[served_name] = StaticFile(path.name, _CONTENT_TYPES[path.suffix], data)
        return files


def next_in(loop: Any, kind: str = "", list: str = "forget") -> str | None:
    """Returns the id of the `forget_link` of the next item in a loop; at the last item, that of the item before it.

    Returns None if there is no other item, or if the other item is forgotten.

    loop: Jinja's loop.
    kind: the kind of all items; "": each item has its own.
    list: the list that begins the id, as in `forget_link`.
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
