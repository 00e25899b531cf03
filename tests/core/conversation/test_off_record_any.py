"""Random clients that send whole lists, now on the record and now off it, and leave, lose replies and edit.

Whatever happens, what was said off the record is never stored, and what was said on it stands once.
"""

from __future__ import annotations

from random import Random

from gateway.core.conversation.match_query import MemoryUse
from gateway.core.conversation.wire_message import WireMessage, read_text
from tests.core.conversation.keyed import both
from tests.core.conversations import World, assistant, user
from tests.rows import each_row


class Talker:
    """A client with its list. on: its texts that were said on the record; off: all that was said off it."""

    def __init__(self, seed: int, key: str | None) -> None:
        self.chance, self.key = Random(seed), key
        self.world = World()
        self.messages: list[WireMessage] = []
        self.on: set[str] = set()
        self.off: set[str] = set()
        self.count = 0

    def talk(self) -> None:
        for _ in range(self.chance.randint(2, 8)):
            was_answered = any(m["role"] == "assistant" for m in self.messages)
            if was_answered and self.messages[-1]["role"] == "user" and self.chance.random() < 0.3:
                self.messages.pop()  # an edit
            self.turn()

    def turn(self) -> None:
        mode = self.chance.choice([MemoryUse.ON, MemoryUse.ON, MemoryUse.ON, MemoryUse.OFF, MemoryUse.READ])
        self.count += 1
        asked, answer = f"message {self.count}.", f"It was answer {self.count}. And there is more."
        self.messages.append(user(asked))
        (self.on if mode is MemoryUse.ON else self.off).update((asked, answer))
        request = self.world.begin(self.messages, self.key, mode=mode)
        fate = self.chance.choice(["heard", "heard", "lost", "left"])
        if fate == "left":
            self.world.cancel(request)
        else:
            self.world.finish(request, answer)
        if fate == "heard":
            self.messages.append(assistant(answer))
        self.check(has_ended=mode is MemoryUse.ON and fate != "left")

    def check(self, *, has_ended: bool) -> None:
        memory = self.world.memory()
        stored = b"".join((e.input or b"") + (e.shown_reply or b"") for e in memory.records.values()).decode()
        assert not [text for text in self.off if text in stored]
        active = self.world.active()
        assert len(active) == len(set(active))
        if has_ended:
            assert not self.on.intersection(map(read_text, self.messages)).difference(active)


@both
@each_row("seed", range(100))
def test_messages_off_the_record_are_never_stored_and_others_once(key: str | None, seed: int) -> None:
    Talker(seed, key).talk()
