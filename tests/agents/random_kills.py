"""Kills a gateway at random moments while clients send to its agents, and checks that nothing was lost.

`python -m tests.agents.random_kills 200` kills it 200 times (scripts/torture).
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agents.agent_deployment import AgentDeployment, AgentGateway
from tests.agents.letta import spoken


@dataclass
class SentMessages:
    """The messages that were sent to one agent, in the order of the sends."""

    agent_id: str
    # The messages that were answered.
    confirmed: list[str] = field(default_factory=list)
    # The ids of the runs that messages have in the background.
    run_ids: list[str] = field(default_factory=list)
    # The last message, if its reply was lost: it may be stored or not. None: it was answered.
    unconfirmed: str | None = None


def kill_at_random(
    folder: Path, kills: int, seed: int, *, max_interval_s: float = 1.2, is_verbose: bool = False
) -> None:
    """Kills a gateway while clients send, and checks that no message and no call is lost, doubled or out of order.

    A run that was killed in three attempts may have failed; its message is stored all the same.

    folder: an empty folder for the deployment.
    kills: the number of kills.
    seed: the seed of the times between kills.
    max_interval_s: the longest time that a gateway serves before it is killed.
    is_verbose: whether it prints its progress.
    """
    dice = random.Random(seed)
    with AgentDeployment(folder) as deployment:
        with deployment.serve() as gateway:
            sent = [SentMessages(deployment.create_agent(gateway)) for _ in range(3)]
        for round_number in range(kills):
            with deployment.serve() as gateway:
                _send_until_killed(gateway, sent, round_number, dice.random() * max_interval_s)
            if is_verbose and not round_number % 10:
                count = sum(len(messages.confirmed) for messages in sent)
                print(f"{round_number + 1} kills, {count} messages", flush=True)
        with deployment.serve() as gateway:
            for messages in sent:
                _check_messages(gateway, messages)
            _check_resend(gateway, sent[0])
        repeated = {key: times for key, times in deployment.webhook.calls.items() if times > 1}
        assert not repeated, f"the webhook was called twice: {repeated}"
        assert deployment.query("SELECT count(*) FROM jobs WHERE state <> 'dead'") == [(0,)]


def _send_until_killed(
    gateway: AgentGateway, sent: list[SentMessages], round_number: int, seconds: float
) -> None:
    """Sends to each agent from a thread of its own, and kills the gateway after `seconds`."""
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_send, args=(gateway, messages, round_number, until)) for messages in sent
    ]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, until - time.monotonic()))
    gateway.kill()
    for thread in threads:
        thread.join()


def _send(gateway: AgentGateway, sent: SentMessages, round_number: int, until: float) -> None:
    """Sends messages to an agent until a time of the monotonic clock, or until one fails."""
    number = 0
    while time.monotonic() < until:
        number += 1
        text = f"m{round_number}.{number}"
        if number % 2:
            text = f"{text} ring {text}a {text}b"
        message: Any = {"role": "user", "content": text, "otid": text}
        try:
            if number % 3:
                run = gateway.letta.agents.messages.create_async(sent.agent_id, messages=[message])
                sent.run_ids.append(run.id)
            else:
                gateway.letta.agents.messages.create(sent.agent_id, messages=[message])
        except Exception:
            # The gateway was killed meanwhile.
            sent.unconfirmed = text
            return
        sent.confirmed.append(text)
        sent.unconfirmed = None


def _check_messages(gateway: AgentGateway, sent: SentMessages) -> None:
    """Checks that all runs of an agent have ended, and that its confirmed messages are stored once, in order."""
    for run_id in sent.run_ids:
        run = gateway.wait_for_run(run_id)
        assert run.status in ("completed", "failed"), f"{run_id}: {run.status}"
    listed = [
        str(message.content)
        for message in spoken(gateway.letta.agents.messages.list(sent.agent_id, order="asc", limit=1000))
        if message.message_type == "user_message"
    ]
    counts = Counter(listed)
    assert max(counts.values(), default=1) == 1, f"a message is listed twice: {counts.most_common(3)}"
    lost = set(sent.confirmed) - set(listed)
    assert not lost, f"messages are lost: {lost}"
    listed_confirmed = [text for text in listed if text in set(sent.confirmed)]
    assert listed_confirmed == sent.confirmed, f"the order is {listed_confirmed}, not {sent.confirmed}"


def _check_resend(gateway: AgentGateway, sent: SentMessages) -> None:
    """Sends the unconfirmed message again if there is one, and checks that it is stored once.

    Only the last message of a conversation is always recognised: an earlier one that was not answered is stored again
    if answered messages follow it (`needs_messages` in resend.py).
    """
    text = sent.unconfirmed
    if text is None:
        return
    message: Any = {"role": "user", "content": text, "otid": text}
    gateway.letta.agents.messages.create(sent.agent_id, messages=[message])
    page = spoken(gateway.letta.agents.messages.list(sent.agent_id, order="desc", limit=100))
    count = len([m for m in page if m.message_type == "user_message" and m.content == text])
    assert count == 1, f"{text} is listed {count} times"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=200)
    parser.add_argument("seed", nargs="?", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kill_at_random(Path(folder), options.kills, options.seed, is_verbose=True)
    print(f"{options.kills} kills: nothing was lost, doubled or out of order")


if __name__ == "__main__":
    main()
