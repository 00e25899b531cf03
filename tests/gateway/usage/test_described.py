"""What `/v1/manage/…` answers is what `/openapi.json` describes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from gateway.run.admin import manage_records as described
from tests.doubles.upstream import StrictUpstream, say
from tests.gateway.sdk import remember

OWNER = {"x-mnemogate-admin": "the-owner"}


def test_answers_are_as_described(upstream: StrictUpstream, tmp_path: Path) -> None:
    with remember(upstream, tmp_path, admin_token="the-owner") as world:
        operations = world.gateway.ask("GET", "/openapi.json").json["paths"]

        def ask(kind: Any, method: str, path: str, body: Any = None, headers: Any = OWNER) -> Any:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            reply = world.gateway.ask(method, f"/v1/manage/{path}", data, headers)
            template = re.sub(r"/(import-)?[0-9a-f]+\b", "/{id}", f"/v1/manage/{path.partition('?')[0]}")
            content = operations[template][method.lower()]["responses"][str(reply.status)]["content"]
            assert reply.headers["content-type"].partition(";")[0] in content
            if kind is None:
                return None
            # Unknown and missing fields are errors of it.
            return msgspec.convert(reply.json, kind)

        limits = [{"unit": "requests", "per": "day", "most": 50}, {"unit": "concurrent", "most": 5}]
        asked = {"name": "app", "models": ["m*"], "memory": "read", "expires_at": 4e9, "limits": limits}
        msgspec.convert(asked, described.KeyBody)
        made = ask(described.ManagedNewKey, "POST", "keys", asked)
        ask(described.ManagedNewKey, "POST", f"keys/{made.id}/rotate", {"overlap_s": 60})
        ask(described.ManagedKey, "PATCH", f"keys/{made.id}", {"models": None})
        ask(described.ManagedKey, "GET", f"keys/{made.id}")
        bearer = {"authorization": f"Bearer {made.secret}"}
        upstream.queue(say("Hello."))
        assert world.post([{"role": "user", "content": "Hi"}], bearer, user="alice").status == 200
        world.settle()
        held = ask(described.HeldKey, "GET", "me?user=alice", headers=bearer)
        assert [each.unit for each in held.limits] == ["requests", "concurrent"]
        assert held.usage.today.requests == 1
        limit = ask(described.ManagedLimit, "POST", "limits", {"unit": "cost", "per": "month", "most": 0.5})
        ask(described.ManagedLimit, "PATCH", f"limits/{limit.id}", {"most": 1})
        assert len(ask(described.LimitList, "GET", "limits").data) == 3
        ask(described.DeletedRecord, "DELETE", f"limits/{limit.id}")
        ask(described.DeletedRecord, "DELETE", f"keys/{made.id}")
        assert len(ask(described.KeyList, "GET", "keys?project=default").data) == 1
        for by in ("day,project,user,key,upstream,model", "user"):
            assert ask(described.UsagePage, "GET", f"usage?by={by}").data
        ask(None, "GET", "usage?format=csv")
        file = b"- Alice likes tea.\n"
        ask(described.ManagedImport, "POST", "imports?user=alice&format=list&preview=true", file)
        ask(described.ManagedImport, "POST", "imports?user=alice&format=list", file)
        (done,) = ask(described.ImportList, "GET", "imports").data
        ask(described.ManagedImport, "DELETE", f"imports/{done.id}")
