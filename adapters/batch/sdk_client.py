"""The base of batch adapters that use a provider's official SDK. Batches take the same proxy as live calls."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar, Final, TypeVar

from adapters.batch.sdk_errors import map_sdk_errors
from adapters.errors import ProviderRefused, ProviderUnreachable
from adapters.tool_calls import with_call_ids

_Answer = TypeVar("_Answer")
_Result = TypeVar("_Result")
# A provider's clock may be slow by this time. Not measured: clocks that are set by the network differ by less than a
# second.
CLOCK_SKEW_S: Final = 60.0
# The batches or files that are listed at once.
PAGE_SIZE: Final = 100
_NOT_INSTALLED_MESSAGE: Final = (
    "the package {sdk!r} is not installed on the gateway's machine: in the clone run "
    "pip install -e '.[batches]', or uv sync --extra batches"
)


def make_client_options(proxy: str | None) -> dict[str, Any]:
    """Returns the options of an SDK's client: the machine's certificates, and no proxy but the settings' own.

    Without them a client takes its proxy from the environment, and brings its own certificates.
    """
    return {"proxy": proxy, "trust_env": False, "verify": ssl.create_default_context()}


class SdkBatches:
    """The base of adapters to batch APIs that use the provider's SDK. Their batches outlive this process."""

    # The package of the SDK, one of the extra `batches`. A subclass imports it when `_client` is first needed.
    sdk: ClassVar[str]
    # The seconds between two polls; None: the setting decides.
    poll_interval_s: float | None = None
    is_durable = True

    def __init__(
        self,
        base_url: str,
        key: str | None,
        headers: Mapping[str, str],
        now: Callable[[], float],
        proxy: str | None = None,
        adapt_calls: Callable[[bytes], bytes] = with_call_ids,
    ) -> None:
        """Opens no connection.

        headers: the headers that are sent with every request.
        now: a function that returns the seconds since the epoch, for dates in Retry-After.
        proxy: the proxy of the settings; None: no proxy.
        adapt_calls: the function that gives calls the form that the upstream takes (`OpenAICompatible.adapt_calls`).
        """
        self._base_url = base_url
        self._key = key
        self._headers = dict(headers)
        self._now = now
        self._proxy = proxy
        self._adapt_calls = adapt_calls

    @property
    def missing_package(self) -> str | None:
        """The text that the SDK is missing, with the command that installs it; None: the SDK is installed."""
        return None if find_spec(self.sdk) else _NOT_INSTALLED_MESSAGE.format(sdk=self.sdk)

    @cached_property
    def _client(self) -> Any:
        """The SDK's client, which a subclass makes."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Closes the SDK's client, if one was made."""
        if "_client" in self.__dict__:
            await self._client.close()

    def _check_installed(self) -> None:
        """Checks that the SDK is installed. Raises: ProviderUnreachable: it is missing, and a batch waits for it."""
        if (missing_package := self.missing_package) is not None:
            raise ProviderUnreachable(missing_package, was_sent=False)

    def _map_errors(self) -> AbstractContextManager[None]:
        """Returns a context in which the SDK's errors are raised as provider errors.

        Raises: ProviderUnreachable: the SDK is not installed.
        """
        self._check_installed()
        return map_sdk_errors(import_module(self.sdk), self._now)

    async def _await_unless_missing(
        self, call: Awaitable[_Answer], read_answer: Callable[[_Answer], _Result]
    ) -> _Result | None:
        """Awaits a call about one object. Returns the result of `read_answer`; None: the object is missing (404)."""
        try:
            with self._map_errors():
                return read_answer(await call)
        except ProviderRefused as error:
            if error.status != 404:
                raise
            return None

    async def _await_ending(self, call: Coroutine[Any, Any, object]) -> None:
        """Awaits a call that cancels or deletes. A 400, 404 or 409 is no error: the object has ended or is missing."""
        try:
            with self._map_errors():
                await call
        except ProviderRefused as error:
            if error.status not in (400, 404, 409):
                raise
