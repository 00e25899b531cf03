"""The contents of a tree's exchanges, as far as they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.core.conversation.exchange import is_tombstone
from gateway.core.conversation.exchange_content import Content, parse_content, parse_json
from gateway.core.conversation.wire_message import WireMessage
from storage.commands import MissingContents, StoredContent
from storage.records import Exchange


class TreeContents:
    """The contents of exchanges. If a rule needs one that is not loaded, `MissingContents` names all it will need."""

    def __init__(
        self, exchanges: Mapping[int, Exchange], contents: Mapping[int, StoredContent] | None
    ) -> None:
        """Begins with the contents of exchanges that are loaded without content.

        exchanges: the tree's own map of its exchanges by their ids, which grows and shrinks with the tree.
        contents: the contents by the ids of the exchanges; None: all exchanges have their content.
        """
        self._exchanges = exchanges
        # The contents that are not decoded yet, by the ids of the exchanges; None: all exchanges have their content.
        self._contents = None if contents is None else dict(contents)
        # The ids of exchanges with contents that a rule needs together.
        self._groups: list[list[int]] = []
        # The decoded contents, by the ids of the exchanges.
        self._decoded: dict[int, Content] = {}

    def get(self, exchange: Exchange) -> Content:
        """Returns the content of an exchange. Raises: MissingContents: the store has it, and it was not loaded."""
        decoded = self._decoded.get(exchange.id)
        if decoded is not None:
            return decoded
        if is_tombstone(exchange):
            content = Content()
        else:
            stored_content = self._get_stored_content(exchange)
            content = parse_content(
                exchange.input or stored_content.input,
                exchange.shown_reply or stored_content.shown_reply,
                exchange.full_reply or stored_content.full_reply,
            )
        self._decoded[exchange.id] = content
        return content

    def find_shown_reply(self, exchange: Exchange) -> WireMessage | None:
        """Returns the reply as the client has it, also of an exchange that was just added. Raises: MissingContents."""
        reply: WireMessage | None = parse_json(
            exchange.shown_reply or self._get_stored_content(exchange).shown_reply
        )
        return reply

    def provide_messages(self, exchange_id: int, messages: list[WireMessage]) -> None:
        """Adds the messages of an exchange that is not stored yet, for comparisons."""
        self._decoded[exchange_id] = Content(messages)

    def drop(self, exchange_id: int) -> None:
        """Drops the decoded content of an exchange that has changed."""
        self._decoded.pop(exchange_id, None)

    def group(self, exchanges: Iterable[Exchange]) -> None:
        """Groups exchanges: if a rule needs the content of one, `MissingContents` names all of the group."""
        self._groups.append([exchange.id for exchange in exchanges])

    def add(self, contents: Mapping[int, StoredContent]) -> None:
        """Adds contents that were loaded because they were `MissingContents`."""
        self._contents = {**(self._contents or {}), **contents}

    @property
    def loaded(self) -> Mapping[int, StoredContent]:
        """Id of an exchange -> its content, for the exchanges that are loaded without content."""
        return self._contents or {}

    def _get_stored_content(self, exchange: Exchange) -> StoredContent | Exchange:
        """Returns the stored content of an exchange. Raises: MissingContents: the content is not loaded."""
        if exchange.input is not None or self._contents is None or not exchange.is_stored:
            return exchange
        if exchange.id not in self._contents:
            raise MissingContents(self._list_missing_ids(exchange))
        return self._contents[exchange.id]

    def _list_missing_ids(self, exchange: Exchange) -> list[int]:
        """Returns the ids of the exchange and of its groups, as far as the store has contents that were not loaded."""
        ids = dict.fromkeys(
            [exchange.id, *(i for group in self._groups if exchange.id in group for i in group)]
        )
        loaded_exchanges = (self._exchanges[i] for i in ids if i > 0 and i in self._exchanges)
        contents = self._contents or {}
        return [
            other.id
            for other in loaded_exchanges
            if other.input is None and other.id not in contents and not is_tombstone(other)
        ]
