"""The prices of the settings' models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from gateway.core.usage.price import Price
from gateway.settings import PriceSettings, Settings

# Returns the price of an upstream's model, given the names of both; None: the model has no price.
FindPrice = Callable[[str, str], Price | None]


def make_price_finder(settings: Settings) -> FindPrice:
    """Returns the function that finds a model's price in the settings.

    Several aliases may lead to one model: the first alias with a price has the model's price.
    """
    prices: dict[tuple[str, str], Price] = {}
    priced_aliases = [
        (alias, _make_price(alias.prices)) for alias in settings.models if alias.prices is not None
    ]
    for alias, price in priced_aliases:
        prices.setdefault((alias.upstream or settings.upstreams[0].name, alias.model), price)
        for deployment in alias.deployments:
            prices.setdefault((deployment.upstream, deployment.model or alias.model), price)
    # A caller may ask any upstream for the model of an alias that names no upstream.
    named_models = {(alias.upstream, alias.model) for alias in settings.models}
    for (alias, price), upstream in product(priced_aliases, settings.upstreams):
        model = upstream.name, alias.model
        if alias.upstream is None and model not in named_models:
            prices.setdefault(model, price)
    return lambda upstream, model: prices.get((upstream, model))


def _make_price(settings: PriceSettings) -> Price:
    cached_price = settings.input if settings.cached is None else settings.cached
    return Price(settings.input, settings.output, cached_price)
