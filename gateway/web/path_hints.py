"""Hints at the mistake in an unknown path."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Final

# Longer than any path that is served. The time of a comparison grows with the square of the length.
_MAX_CHARACTERS: Final = 200
# The least likeness of a path and a route: two letters of a short path may differ. At 0.75 `/v1/chat` is taken for
# `/v1/health`; 0.8 to 0.9 behave alike.
_MIN_RATIO: Final = 0.8
_BASE_URL_HINT: Final = (
    "; a base URL ends in /v1, and below it applications ask for POST /v1/chat/completions"
)


def make_path_hint(path: str, route_paths: Iterable[str]) -> str:
    """Returns the hint that is added to the error for an unknown path.

    route_paths: the paths of the routes, with parameters in braces.
    """
    if path in ("/v1", "/v1/"):
        return _BASE_URL_HINT
    if path == "/mcp":
        return "; it is served with `server.mcp = true` in the settings"
    if path.startswith("/v1/v1/"):
        return "; the client adds /v1 itself, as Letta's does, so the base URL has to end before it"
    if "/deployments/" in path:
        return "; Azure's client names the model in its paths: use OpenAI's, with a base URL that ends in /v1"
    if path.rstrip("/").startswith("/v1/chat/completions/"):
        return "; stored chat completions are not served"
    is_below = path.startswith("/v1/")
    hint = "" if is_below else "; the API lies under /v1, which ends a base URL"
    nearest = _find_nearest(path, route_paths)
    if nearest is None:
        return hint or _BASE_URL_HINT
    return f"{hint}; did you mean {nearest}?"


def _find_nearest(path: str, route_paths: Iterable[str]) -> str | None:
    """Returns the route that a path resembles most, else the first that begins with the path; None: neither exists."""
    if len(path) > _MAX_CHARACTERS:
        return None
    path = path.rstrip("/").lower()
    routes = dict.fromkeys(route.rstrip("/") for route in route_paths)
    nearest = None
    best_ratio = _MIN_RATIO
    for route in routes:
        matcher = SequenceMatcher(None, *_without_parameters(path, route))
        if matcher.real_quick_ratio() <= best_ratio or matcher.quick_ratio() <= best_ratio:
            continue  # bounds of the ratio, which are quicker to compute
        if (ratio := matcher.ratio()) > best_ratio:
            nearest = route
            best_ratio = ratio
    return nearest or next((route for route in routes if route.startswith(f"{path}/")), None)


def _without_parameters(path: str, route: str) -> tuple[str, str]:
    """Returns a path and a route to be compared, without the parts where the route has parameters."""
    path_parts = path.split("/")
    route_parts = route.split("/")
    if len(path_parts) != len(route_parts):
        return path, route
    fixed_indices = [index for index, part in enumerate(route_parts) if not part.startswith("{")]
    fixed_path = "/".join([path_parts[index] for index in fixed_indices])
    return fixed_path, "/".join([route_parts[index] for index in fixed_indices])
