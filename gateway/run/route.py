"""Which upstream answers to which model name. Knows settings; opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from gateway.errors import UnknownModel
from gateway.settings import ProfileSettings, Settings

__all__ = ["AGENT_PREFIX", "Route", "resolve_route"]

AGENT_PREFIX = "agent/"


@dataclass(frozen=True, slots=True)
class Route:
    """upstream: a name of the settings. model: what that upstream calls it. context_window: tokens, None if unknown."""

    upstream: str
    model: str
    profile: ProfileSettings | None = None
    context_window: int | None = None


def resolve_route(settings: Settings, model: str) -> Route:
    """Find who answers to `model`: a profile (`agent/<name>`), an alias, `<upstream>/<model>`, a pattern, the only one.

    A list of aliases is closed: with one, other names are unknown unless an upstream's patterns take them.
    Raises: UnknownModel.
    """
    if model.startswith(AGENT_PREFIX):
        profile = settings.profile(model.removeprefix(AGENT_PREFIX))
        if profile is None or profile.model is None:
            why = "has no model of its own" if profile else "does not exist"
            raise UnknownModel(f"The model {model!r} {why}.", param="model")
        base = _resolve(settings, profile.model, profile.upstream)
        return Route(base.upstream, base.model, profile, profile.context_window or base.context_window)
    return _resolve(settings, model, None)


def _resolve(settings: Settings, model: str, upstream: str | None) -> Route:
    windows = {each.name: each.context_window for each in settings.upstreams}
    if upstream is not None:
        return Route(upstream, model, None, windows[upstream])
    for alias in settings.models:
        if alias.alias == model:
            name = alias.upstream or settings.upstreams[0].name
            return Route(name, alias.model, None, alias.context_window or windows[name])
    if len(settings.upstreams) > 1:
        name, slash, rest = model.partition("/")
        if slash and rest and name in windows:
            return Route(name, rest, None, windows[name])
    for each in settings.upstreams:
        if any(fnmatchcase(model, pattern) for pattern in each.models):
            return Route(each.name, model, None, each.context_window)
    if not settings.models:
        # Upstreams with patterns take only those; what is left must leave no choice.
        open_ones = [each for each in settings.upstreams if not each.models]
        if len(open_ones) == 1:
            return Route(open_ones[0].name, model, None, open_ones[0].context_window)
    raise UnknownModel(
        f"The model {model!r} does not exist here. GET /v1/models lists what does.", param="model"
    )
