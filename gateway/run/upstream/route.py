"""Routes: the upstream that has the model of a name, and the fallbacks after it. Knows settings; opens nothing."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from gateway.core.agent import AgentSpec
from gateway.core.request.requested_agent import AGENT_PREFIX
from gateway.core.upstream.policy import Target
from gateway.errors import BadRequest, SettingsError, UnknownModel
from gateway.settings import ModelSettings, ProfileSettings, Settings
from gateway.settings.mistakes import Mistakes, describe_unknown_name

# The header with which a caller names the upstream.
UPSTREAM_HEADER: Final = "x-mnemogate-upstream"
# The kinds of providers by the other names that Letta's server has for them.
_KINDS_OF_LETTA: Final = {"google_ai": "gemini", "lmstudio_openai": "lmstudio"}


class Route(Struct, frozen=True):
    """The upstream and the model that answer a request, with the targets after them."""

    # The name of the upstream in the settings.
    upstream: str
    # The upstream's name for the model.
    model: str
    # The context window in tokens; None: not known.
    context_window: int | None = None
    # The targets after `first`: further deployments of the same model (rank 0), then the fallbacks.
    others: tuple[Target, ...] = ()
    # The route of the request's own model, if a limit has this route answer in its place; None: this is the own route.
    replaced_route: Route | None = None

    @property
    def original(self) -> Route:
        """The route of the request's own model. The caller's credential and earlier thoughts are for its upstream."""
        return self.replaced_route or self

    @property
    def first(self) -> Target:
        return Target(self.upstream, self.model, self.context_window, int(self.replaced_route is not None))

    @property
    def targets(self) -> tuple[Target, ...]:
        return (self.first, *self.others)

    def in_place_of(self, replaced_route: Route) -> Route:
        """Returns a copy that answers in place of another route: all of its targets are fallbacks."""
        others = tuple(target._replace(rank=target.rank + 1) for target in self.others)
        return replace(self, others=others, replaced_route=replaced_route)

    def with_window(self, tokens: int | None) -> Route:
        """Returns a copy in which no window is larger than `tokens`; None: the windows stay."""
        others = tuple(
            target._replace(context_window=_choose_smaller(tokens, target.context_window))
            for target in self.others
        )
        return replace(self, context_window=_choose_smaller(tokens, self.context_window), others=others)


def resolve_route(settings: Settings, model: str, *, is_named_by_operator: bool = False) -> Route:
    """Returns the route for a model's name.

    The name is a profile's (`agent/<name>`), an alias, `<upstream>/<model>`, a name that a pattern takes, or any name
    if there is only one upstream. Where there are aliases, other names are unknown unless a pattern takes them.

    is_named_by_operator: True: the settings name the model. They may name it as `<upstream>/<model>` next to such a
        list.

    Raises: UnknownModel.
    """
    if model.startswith(AGENT_PREFIX):
        profile = settings.find_profile(model.removeprefix(AGENT_PREFIX))
        if profile is None:
            raise UnknownModel.for_name(model)
        return make_agent_route(settings, profile)
    return _resolve(settings, model, upstream=None, is_named_by_operator=is_named_by_operator)


def make_agent_route(settings: Settings, agent: AgentSpec | ProfileSettings) -> Route:
    """Returns the route for `agent/<name>`. Raises: UnknownModel: the agent has no model of its own."""
    if agent.model is None:
        raise UnknownModel(
            f"{AGENT_PREFIX + agent.name!r} names no model: give it one, or send a model's name and "
            f"`x-mnemogate-agent: {agent.name}`.",
            param="model",
        )
    is_named_by_operator = isinstance(agent, ProfileSettings) or not agent.has_callers_model
    route = _resolve(settings, agent.model, agent.upstream, is_named_by_operator=is_named_by_operator)
    return route.with_window(agent.context_window)


class SplitModel(NamedTuple):
    """The parts of an agent's model name."""

    # The name of the upstream; None: the name has no upstream.
    upstream: str | None
    # The name of the model; None: the agent has no model of its own.
    model: str | None


def split_model(settings: Settings, name: str | None) -> SplitModel:
    """Returns the upstream and the model that an agent's model name means.

    The upstream is the part before the first slash, if that is its name or its kind, as here or as Letta's server calls
    it.
    """
    if name is None or any(alias.alias == name for alias in settings.models):
        return SplitModel(None, name)
    prefix, _, model = name.partition("/")
    if model:
        for upstream in settings.upstreams:
            if upstream.name == prefix:
                return SplitModel(upstream.name, model)
        kind = _KINDS_OF_LETTA.get(prefix, prefix)
        for upstream in settings.upstreams:
            if upstream.kind == kind:
                return SplitModel(upstream.name, model)
    return SplitModel(None, name)


def resolve_agent_model(settings: Settings, model: str) -> Route:
    """Returns the route for a model as a caller names it for an agent. Raises: UnknownModel."""
    upstream, name = split_model(settings, model)
    assert name is not None  # `split_model` returns None for the model None alone
    return _resolve(settings, name, upstream)


def _choose_smaller(own_window: int | None, known_window: int | None) -> int | None:
    """Returns the smaller window, of an agent and of its model, or None if neither is known."""
    windows = [window for window in (own_window, known_window) if window is not None]
    return min(windows, default=None)


def check_models(settings: Settings) -> None:
    """Checks the model names. Raises: SettingsError: no upstream has a fallback or a profile's model."""
    named_models = [
        (f"profiles {each.name!r}: model", each.model, each.upstream)
        for each in settings.profiles
        if each.model is not None
    ]
    named_models += [
        (f"models {alias.alias!r}: fallbacks", name, None)
        for alias in settings.models
        for name in alias.fallbacks
    ]
    mistakes = Mistakes()
    for path, model, upstream in named_models:
        try:
            # Without the fallbacks of an alias, which are among the names themselves.
            _resolve(settings, model, upstream, is_named_by_operator=True, is_fallback=True)
        except UnknownModel as error:
            mistakes.add(make_unknown_model_error(settings, path, error))
    mistakes.raise_if_any()


def make_unknown_model_error(settings: Settings, path: str, error: UnknownModel) -> SettingsError:
    """Returns the mistake of a setting that names a model of no upstream. path: the path of the setting."""
    if error.model is None:
        return SettingsError(f"{path}: {error.message}")
    names = [alias.alias for alias in settings.models]
    for upstream in settings.upstreams:
        names += upstream.models
        if len(settings.upstreams) > 1:
            names.append(f"{upstream.name}/MODEL")
    return SettingsError(describe_unknown_name(path, error.model, names))


def make_unknown_upstream_error(name: str) -> BadRequest:
    """Returns the error for an upstream that a caller names and the settings do not."""
    return BadRequest(
        f"There is no upstream {name!r}. Send the name of one in the settings.", param=UPSTREAM_HEADER
    )


def is_listed(settings: Settings, upstream: str, model: str) -> bool:
    """Returns whether callers may ask for this model of this upstream. Without aliases they may ask for all."""
    patterns = settings.get_upstream(upstream).models
    return not settings.models or any(fnmatchcase(model, pattern) for pattern in patterns)


def find_aliased_route(settings: Settings, upstream: str, name: str) -> Route | None:
    """Returns the route for an alias at the upstream that a caller names, without fallbacks and deployments.

    An alias with an upstream is known at this upstream alone, an alias without one at each. Returns None if there is no
    such alias.
    """
    for alias in settings.models:
        if alias.alias == name and alias.upstream in (upstream, None):
            window = alias.context_window or settings.get_upstream(upstream).context_window
            return Route(upstream, alias.model, window)
    return None


def _resolve(
    settings: Settings,
    model: str,
    upstream: str | None,
    *,
    is_named_by_operator: bool = False,
    is_fallback: bool = False,
) -> Route:
    """Returns the route for a model, as `resolve_route` documents it.

    upstream: the upstream that has to answer; None: any upstream.
    is_fallback: True: the route is a fallback of another route, and has no fallbacks of its own.

    Raises: UnknownModel.
    """
    if upstream is not None:
        return _resolve_at_upstream(
            settings, model, upstream, is_named_by_operator=is_named_by_operator, is_fallback=is_fallback
        )
    for alias in settings.models:
        if alias.alias == model:
            return _make_alias_route(settings, alias, is_fallback=is_fallback)
    return _resolve_without_alias(settings, model, is_named_by_operator=is_named_by_operator)


def _resolve_at_upstream(
    settings: Settings, model: str, upstream: str, *, is_named_by_operator: bool, is_fallback: bool
) -> Route:
    """Returns the route for a model, or an alias, at one upstream. Raises: UnknownModel."""
    if is_named_by_operator or is_listed(settings, upstream, model):
        return _make_route(settings, upstream, model)
    for alias in settings.models:
        if (_get_upstream_name(settings, alias), alias.model) == (upstream, model):
            return _make_alias_route(settings, alias, is_fallback=is_fallback)
    if (aliased_route := find_aliased_route(settings, upstream, model)) is None:
        raise UnknownModel.for_name(f"{upstream}/{model}")
    return aliased_route


def _resolve_without_alias(settings: Settings, name: str, *, is_named_by_operator: bool) -> Route:
    """Returns the route for `<upstream>/<model>`, or for the name of a model. Raises: UnknownModel."""
    if len(settings.upstreams) > 1:
        upstream, _, model = name.partition("/")
        is_upstream = any(each.name == upstream for each in settings.upstreams)
        if model and is_upstream and (is_named_by_operator or is_listed(settings, upstream, model)):
            return _make_route(settings, upstream, model)
    for each in settings.upstreams:
        if any(fnmatchcase(name, pattern) for pattern in each.models):
            return Route(each.name, name, each.context_window)
    # Upstreams with patterns take only the names that match. Any other name needs a single upstream without patterns.
    open_upstreams = [] if settings.models else [each for each in settings.upstreams if not each.models]
    if len(open_upstreams) == 1:
        return Route(open_upstreams[0].name, name, open_upstreams[0].context_window)
    raise UnknownModel.for_name(name)


def _make_route(settings: Settings, upstream: str, model: str) -> Route:
    """Returns the route for a model at an upstream, with the upstream's window and without other targets."""
    return Route(upstream, model, settings.get_upstream(upstream).context_window)


def _make_alias_route(settings: Settings, alias: ModelSettings, *, is_fallback: bool) -> Route:
    """Returns the route for an alias. is_fallback: True: without the alias's own fallbacks."""
    upstream = _get_upstream_name(settings, alias)
    window = alias.context_window or settings.get_upstream(upstream).context_window
    others = _list_further_targets(settings, alias, () if is_fallback else alias.fallbacks)
    return Route(upstream, alias.model, window, others)


def _get_upstream_name(settings: Settings, alias: ModelSettings) -> str:
    """Returns the name of the upstream that an alias is for: by default, the first one."""
    return alias.upstream or settings.upstreams[0].name


def _list_further_targets(
    settings: Settings,
    alias: ModelSettings,
    fallbacks: tuple[str, ...],
) -> tuple[Target, ...]:
    """Returns the targets after the first one: deployments, then fallbacks with their own deployments.

    Fallbacks of a fallback are left out: the chain is the list of one alias.
    """
    targets = [
        Target(
            each.upstream,
            each.model or alias.model,
            each.context_window
            or alias.context_window
            or settings.get_upstream(each.upstream).context_window,
        )
        for each in alias.deployments
    ]
    for rank, name in enumerate(fallbacks, 1):
        route = _resolve(settings, name, upstream=None, is_named_by_operator=True, is_fallback=True)
        targets += [each._replace(rank=rank) for each in route.targets]
    return tuple(targets)
