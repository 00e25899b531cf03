"""Finds the screen or action of a path. A request goes to the first route with a path that fits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from msgspec import Struct
from starlette.convertors import Convertor, IntegerConvertor
from starlette.routing import compile_path

from gateway.errors import MethodNotAllowed
from gateway.page.page_answers import make_unknown_page_error
from gateway.page.page_request import PageRequest
from gateway.page.screen import Action, Screen
from gateway.run.admin.page_paths import parse_part

# The twin of `/ui/` itself is `/ui/overview.json`.
_OVERVIEW = "overview"
# Digits of a number in a path. The databases hold no longer numbers, and Python refuses to parse thousands of digits.
_DIGITS = "[0-9]{1,18}"


class RouteTable:
    """All screens and actions, with the patterns of their paths."""

    def __init__(self, routes: Sequence[Screen | Action]) -> None:
        self._screens = [
            _CompiledRoute(_compile(each.path), each) for each in routes if isinstance(each, Screen)
        ]
        self._actions = [
            _CompiledRoute(_compile(each.path), each) for each in routes if isinstance(each, Action)
        ]
        self._max_slashes = max(each.path.count("/") for each in routes)

    def get(self, request: PageRequest) -> tuple[Screen | Action, dict[str, Any]]:
        """Returns the route of a request, and the parts of its path by their names.

        Raises: UnknownPath, MethodNotAllowed.
        """
        path = _make_route_path(request)
        if "\0" in path:  # over PostgreSQL this would find the name without U+0000
            raise make_unknown_page_error()
        methods: list[str] = []
        for routes, allowed in ((self._screens, ("GET", "HEAD")), (self._actions, ("POST",))):
            for each in routes:
                params, route = each.pattern.match(path), each.route
                if params is None or (request.is_twin and isinstance(route, Screen) and not route.has_twin):
                    continue
                if request.method in allowed:
                    return route, params
                methods += allowed
                break
        if methods:
            # Its path may have the token of a person's link, and people send the texts of errors to others.
            raise MethodNotAllowed(request.method, "this page", methods)
        raise make_unknown_page_error()

    def choose_screen(self, address: str) -> str:
        """Returns the address of the screen at an address, or of the next screen above: an action has no screen."""
        path = address.partition("?")[0]
        if path.count("/") > self._max_slashes:
            return ""
        while path not in ("", "login") and all(
            each.pattern.match(unquote(path)) is None for each in self._screens
        ):
            address = path = path.rpartition("/")[0]
        return address


class _Pattern(Struct, frozen=True):
    """The pattern of a path, as starlette compiles it."""

    regex: re.Pattern[str]
    convertors: Mapping[str, Convertor[Any]]

    def match(self, path: str) -> dict[str, Any] | None:
        """Returns the parts of a path by their names; None: the path does not match."""
        match = self.regex.match(f"/{path}")
        if match is None:
            return None
        parts = {name: self.convertors[name].convert(text) for name, text in match.groupdict().items()}
        return {name: parse_part(part) if isinstance(part, str) else part for name, part in parts.items()}


class _CompiledRoute(NamedTuple):
    """A screen or an action with the pattern of its path."""

    pattern: _Pattern
    route: Screen | Action


def _compile(path: str) -> _Pattern:
    regex, _, convertors = compile_path(f"/{path}")
    return _Pattern(re.compile(regex.pattern.replace(IntegerConvertor.regex, _DIGITS)), convertors)


def _make_route_path(request: PageRequest) -> str:
    """Returns the path that a route matches: a twin has the path of its screen. Raises: UnknownPath."""
    if not request.is_twin:
        return request.path
    path = request.path.removesuffix(".json")
    if not path:
        raise make_unknown_page_error()
    return "" if path == _OVERVIEW else path
