"""The user that Open WebUI signs, through the whole gateway."""

from __future__ import annotations

import time
from pathlib import Path

from tests.core.request.test_signed_user import CLAIMS, SECRET, token
from tests.doubles.upstream import StrictUpstream
from tests.gateway.sdk import remember


def signed(seconds: float, secret: str = SECRET) -> dict[str, str]:
    return {"x-openwebui-user-jwt": token({**CLAIMS, "exp": time.time() + seconds}, secret=secret).decode()}


def test_a_signed_user_has_the_memory_of_the_plain_one(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, memory={"openwebui_jwt_secret": SECRET}) as world:
        world.chat(headers={"x-openwebui-user-id": "u-1"}).say("My cat is called Miso.")
        world.chat(headers=signed(300)).say("What is my cat called?")
        assert "Miso" in world.upstream.last.body.decode()
        assert "jwt" not in str(world.upstream.last.headers).lower()


def test_a_bad_token_is_a_401_in_openais_form(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, memory={"openwebui_jwt_secret": SECRET}) as world:
        for headers in (signed(-60), signed(300, "another")):
            reply = world.post([{"role": "user", "content": "Hi"}], headers, user="alice")
            assert (reply.status, reply.error["code"]) == (401, "invalid_user_token")
            assert reply.error["param"] == "x-openwebui-user-jwt"
        assert world.upstream.requests == []


def test_a_user_has_one_memory_with_either_signature(upstream: StrictUpstream, tmp_path: Path) -> None:
    memory = {"openwebui_jwt_secret": SECRET, "single_user": True}
    with remember(upstream, tmp_path, memory=memory) as world:
        world.chat().say("My cat is called Miso.")
        world.chat(headers=signed(300)).say("What is my cat called?")
        assert "Miso" in world.upstream.last.body.decode()
