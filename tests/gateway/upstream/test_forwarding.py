"""The endpoints other than chat: bytes both ways to the upstream of the model, nothing stored, nothing held back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from gateway.dialects.fields import MAX_MODEL_CHARS
from gateway.settings import ModelSettings, ProfileSettings, ProjectSettings, UpstreamSettings
from gateway.web.form import FieldSearch, read_boundary
from gateway.web.forwarding import FORWARDED_PATHS, name_route
from storage.sql.store import Store
from tests.doubles.upstream import Gate, StrictUpstream, raw
from tests.gateway.upstream.forms import FORM, JSON, form
from tests.patience import PATIENCE_S
from tests.rows import each_row
from tests.server import QUIET, RawReply, RunningGateway, serve, settings_for
from tests.stored import open_store


@pytest.fixture
def gateway(upstream: StrictUpstream) -> Iterator[RunningGateway]:
    with serve(settings_for(upstream)) as running:
        yield running


@pytest.fixture
def sdk(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{gateway.url}/v1", api_key="sk-app", max_retries=0, timeout=PATIENCE_S
    ) as made:
        yield made


# --- every endpoint, with the SDK ---------------------------------------------------------------------------------


def test_embeddings_pass_with_fields_that_nobody_knows(sdk: openai.OpenAI, upstream: StrictUpstream) -> None:
    made = sdk.embeddings.create(model="m", input=["a", "bb"], extra_body={"odd": 1})
    assert [each.embedding for each in made.data] == [[0.25, 1.0], [0.25, 2.0]]
    assert upstream.last.json is None
    assert json.loads(upstream.last.body)["odd"] == 1


def test_completions_whole_and_streamed(sdk: openai.OpenAI) -> None:
    assert sdk.completions.create(model="m", prompt="Hi").choices[0].text == "Ok."
    chunks = list(sdk.completions.create(model="m", prompt="Hi", stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["Ok", "."]


def test_moderations_without_a_model(sdk: openai.OpenAI) -> None:
    assert sdk.moderations.create(input="Hi").results[0].flagged is False


def test_images_made_and_edited(sdk: openai.OpenAI, upstream: StrictUpstream) -> None:
    made = sdk.images.generate(model="m", prompt="A cat")
    assert made.data is not None
    assert made.data[0].b64_json == "aW1hZ2U="
    edited = sdk.images.edit(model="m", image=("a.png", b"\x89PNG"), prompt="Blue")
    assert edited.data is not None
    assert edited.data[0].b64_json == "ZWRpdA=="


def test_speech_and_its_transcription(sdk: openai.OpenAI) -> None:
    with sdk.audio.speech.with_streaming_response.create(model="m", input="Hi", voice="alloy") as spoken:
        assert b"".join(spoken.iter_bytes()) == b"ID3\x00\xff\xfb\x90end"
        assert spoken.headers["content-type"] == "audio/mpeg"
    heard = sdk.audio.transcriptions.create(model="m", file=("a.mp3", b"\x00" * 1000))
    assert heard.text == "m heard 1000 bytes"


def test_files_from_upload_to_deletion(sdk: openai.OpenAI, upstream: StrictUpstream) -> None:
    content = bytes(range(256)) * 4096  # 1 MiB: more than any buffer on the way
    made = sdk.files.create(file=("a.bin", content), purpose="batch")
    assert made.bytes == len(content)
    assert [each.id for each in sdk.files.list(limit=5, after="file-0")] == [made.id]
    assert upstream.last.query == "after=file-0&limit=5"
    assert sdk.files.retrieve(made.id).bytes == len(content)
    assert sdk.files.content(made.id).content == content
    assert sdk.files.delete(made.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(made.id)


def test_a_misspelt_gateway_header_asks_no_upstream(sdk: openai.OpenAI, upstream: StrictUpstream) -> None:
    headers = {"x-mnemogate-memroy": "off"}
    with pytest.raises(openai.BadRequestError, match="did you mean x-mnemogate-memory"):
        sdk.embeddings.create(model="m", input="a", extra_headers=headers)
    with pytest.raises(openai.BadRequestError, match="did you mean x-mnemogate-memory"):
        sdk.files.create(file=("a.bin", bytes(1 << 20)), purpose="batch", extra_headers=headers)
    assert not upstream.requests


def test_uploads_and_batches(sdk: openai.OpenAI) -> None:
    upload = sdk.uploads.create(bytes=3, filename="f", mime_type="text/plain", purpose="batch")
    part = sdk.uploads.parts.create(upload.id, data=b"abc")
    assert sdk.uploads.complete(upload.id, part_ids=[part.id]).status == "completed"
    batch = sdk.batches.create(
        input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert batch.status == "validating"
    assert sdk.batches.retrieve(batch.id).status == "completed"
    assert sdk.batches.cancel(batch.id).status == "cancelling"
    assert list(sdk.batches.list()) == []


def test_rerank_passes_without_memory(gateway: RunningGateway) -> None:
    body = json.dumps({"model": "m", "query": "q", "documents": ["a", "b"]}).encode()
    reply = gateway.ask("POST", "/v1/rerank", body, JSON)
    assert [each["index"] for each in reply.json["results"]] == [0, 1]
    assert reply.headers["x-mnemogate-memory"] == "off"


def test_responses_whole_and_streamed(sdk: openai.OpenAI) -> None:
    assert sdk.responses.create(model="m", input="Hi").output_text == "Ok."
    events = list(sdk.responses.create(model="m", input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert sdk.responses.retrieve("resp_1").id == "resp_1"


# --- where to, and with what --------------------------------------------------------------------------------------


@pytest.fixture
def two(upstream: StrictUpstream) -> Iterator[tuple[RunningGateway, StrictUpstream, StrictUpstream]]:
    with StrictUpstream(key="sk-second") as second:
        settings = settings_for(
            upstream,
            upstreams=(
                UpstreamSettings("first", base_url=upstream.base_url, models=("ears",)),
                UpstreamSettings("second", base_url=second.base_url, api_key="sk-second", models=("any",)),
            ),
            models=(ModelSettings("ears", model="whisper-large", upstream="second"),),
            profiles=(ProfileSettings("bob", model="ears"),),
        )
        with serve(settings) as running:
            yield running, upstream, second


def test_other_paths_of_responses_and_accounts(sdk: openai.OpenAI, upstream: StrictUpstream) -> None:
    made = b'{"id": "x-1", "object": "thing", "data": [], "has_more": false}'
    calls = {
        "POST /v1/vector_stores": lambda: sdk.vector_stores.create(name="Recipes"),
        "GET /v1/vector_stores": lambda: list(sdk.vector_stores.list()),
        "POST /v1/vector_stores/vs-1": lambda: sdk.vector_stores.update("vs-1", name="Meals"),
        "POST /v1/vector_stores/vs-1/files": lambda: sdk.vector_stores.files.create("vs-1", file_id="f-1"),
        "POST /v1/vector_stores/vs-1/search": lambda: list(sdk.vector_stores.search("vs-1", query="soup")),
        "DELETE /v1/vector_stores/vs-1": lambda: sdk.vector_stores.delete("vs-1"),
        "POST /v1/containers": lambda: sdk.containers.create(name="c"),
        "POST /v1/containers/c-1/files": lambda: sdk.containers.files.create("c-1", file=b"x"),
        "GET /v1/containers/c-1/files/f-1/content": lambda: sdk.containers.files.content.retrieve(
            "f-1", container_id="c-1"
        ),
        "POST /v1/skills": lambda: sdk.skills.create(files=[("s/SKILL.md", b"x")]),
        "GET /v1/skills/s-1/versions": lambda: list(sdk.skills.versions.list("s-1")),
        "GET /v1/skills/s-1/content": lambda: sdk.skills.content.retrieve("s-1"),
        "POST /v1/decisions": lambda: sdk.decisions.create(
            model="m", input="Hi", questions=[{"type": "predicate", "question": "Is it polite?"}]
        ),
        "POST /v1/content_provenance_checks": lambda: sdk.content_provenance_checks.create(file=b"x"),
        "POST /v1/fine_tuning/jobs": lambda: sdk.fine_tuning.jobs.create(model="m", training_file="f-1"),
        "GET /v1/fine_tuning/jobs/j-1/events": lambda: list(sdk.fine_tuning.jobs.list_events("j-1")),
    }
    for path, call in calls.items():
        upstream.queue(raw(made, content_type="application/json"))
        call()
        assert f"{upstream.last.method} {upstream.last.path}" == path


@each_row(
    ("method", "path", "body"),
    [
        ("POST", "/v1/videos", b'{"model": "m", "prompt": "A cat"}'),
        ("GET", "/v1/videos", None),
        ("GET", "/v1/videos/v-1/content", None),
        ("POST", "/v1/videos/v-1/remix", b'{"prompt": "A dog"}'),
        ("DELETE", "/v1/videos/v-1", None),
    ],
)
def test_videos_pass(
    gateway: RunningGateway, upstream: StrictUpstream, method: str, path: str, body: bytes | None
) -> None:
    upstream.queue(raw(b"a video", content_type="video/mp4"))
    assert gateway.ask(method, path, body, JSON if body else None).body == b"a video"
    assert (upstream.last.method, upstream.last.path) == (method, path)
    assert body is None or upstream.last.body == body


def test_an_alias_leads_to_its_upstream_under_its_name_there(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream],
) -> None:
    gateway, first, second = two
    body = b'{ "input":"x" , "model" : "ears", "dimensions": 1.0 }'
    reply = gateway.ask("POST", "/v1/embeddings", body, {**JSON, "authorization": "Bearer sk-app"})
    assert reply.status == 200
    assert second.last.body == body.replace(b'"ears"', b'"whisper-large"')
    assert second.last.headers["authorization"] == "Bearer sk-second"
    assert first.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_form_with_an_alias_is_rewritten_on_its_way(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], chunked: bool
) -> None:
    gateway, _, second = two
    body = form(("model", b"ears"), ("*file", b"\r\n--X model" * 100_000))
    with gateway.connect() as client:
        if chunked:
            client.request("POST", "/v1/audio/transcriptions", None, {**FORM, "transfer-encoding": "chunked"})
            for at in range(0, len(body), 70_001):
                piece = body[at : at + 70_001]
                client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        else:
            client.request("POST", "/v1/audio/transcriptions", body, FORM)
        reply = client.read_reply()
    assert reply.json == {"text": "whisper-large heard 1100000 bytes"}
    assert second.last.body == body.replace(b"\r\n\r\nears\r\n", b"\r\n\r\nwhisper-large\r\n", 1)
    assert ("content-length" in second.last.headers) is not chunked


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("between", [b"x", b"x" * 3_000_000])
def test_a_form_that_names_two_models_is_refused(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], between: bytes, chunked: bool
) -> None:
    """Which of them counts is the upstream's to say, and a closed list would be open."""
    gateway, first, second = two
    body = form(("model", b"ears"), ("*file", between), ("model", b"dear"), ("*file", b"y" * 1_000_000))
    headers = {**FORM, "transfer-encoding": "chunked"} if chunked else FORM
    with gateway.connect() as client:
        sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        client.request("POST", "/v1/audio/transcriptions", None if chunked else sent, headers)
        if chunked:
            client.send(sent)
        reply = client.read_reply()
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert first.requests == []
    assert not any(b"dear" in request.body for request in second.requests)


ALLOWED = b'--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\nears\r\n'


@pytest.mark.parametrize("before", [b"", ALLOWED])
@each_row(
    "head",
    [
        b'content-disposition: form-data; name = "model"',
        b'content-disposition: form-data; name="model"; a="; name=x"',
        b'content-disposition: form-data; a="\\"; name="model"; b="; name=x"',
        b"content-disposition: form-data; name=x\r\ncontent-disposition: form-data; name=model",
        b"content-disposition: form-data; name*=utf-8''%6dodel",
        b"content-disposition: form-data; name*0=mo; name*1=del",
        b'content-disposition : form-data; NAME=" model "',
    ],
)
def test_a_closed_list_is_closed_to_forms_that_readers_may_take_in_two_ways(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], head: bytes, before: bytes
) -> None:
    gateway, first, second = two
    body = before + b"--XX\r\n" + head + b"\r\n\r\ndear\r\n--XX--\r\n"
    reply = gateway.ask("POST", "/v1/audio/transcriptions", body, FORM)
    assert (reply.status, reply.error["param"]) == (400 if before else 404, "model")
    assert first.requests == []
    assert not any(b"dear" in request.body for request in second.requests)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(("model", b"dear")).replace(b"\r\n", b"\n"), FORM["content-type"]),
        # Readers that take bare line feeds end with the first form, the others begin with the second one.
        (
            form(("model", b"dear")).replace(b"\r\n", b"\n") + b"\r\n" + form(("model", b"ears")),
            FORM["content-type"],
        ),
        (
            b"x\n" + form(("model", b"dear")).replace(b"\r\n", b"\n") + b"\r\n" + form(("model", b"ears")),
            FORM["content-type"],
        ),
        (form(("model", b"dear")), 'multipart/form-data; a="; boundary=YY"; boundary=XX'),
        (form(("model", b"dear"), end=False), FORM["content-type"]),
        (b"--XX\r\n" + b"h" * 20_000 + b"\r\n--XX--\r\n", FORM["content-type"]),
        (form(("*file", b"x" * 34_000_000), ("model", b"dear")), FORM["content-type"]),
    ],
    ids=["lines", "two forms", "behind a preamble", "boundary", "end", "head", "size"],
)
def test_a_closed_list_is_closed_to_forms_that_cannot_be_read(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], body: bytes, kind: str
) -> None:
    gateway, first, second = two
    reply = gateway.ask("POST", "/v1/audio/transcriptions", body, {"content-type": kind})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert first.requests == second.requests == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_model_after_its_file_is_found(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], chunked: bool
) -> None:
    """The order of OpenAI's own examples, which its SDK for JavaScript and curl keep."""
    gateway, first, second = two
    body = form(("*file", b"x" * 3_000_000), ("model", b"ears"))
    with gateway.connect() as client:
        if chunked:
            client.request("POST", "/v1/audio/transcriptions", None, {**FORM, "transfer-encoding": "chunked"})
            client.send(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        else:
            client.request("POST", "/v1/audio/transcriptions", body, FORM)
        assert client.read_reply().json == {"text": "whisper-large heard 3000000 bytes"}
    assert first.requests == []
    assert second.last.body == body.replace(b"ears", b"whisper-large")
    assert ("content-length" in second.last.headers) is not chunked


def test_a_file_before_its_model_is_buffered_within_the_limits_of_bodies(upstream: StrictUpstream) -> None:
    gate = Gate()
    body = form(("*file", b"x" * 1_500_000), ("model", b"m"))
    settings = settings_for(upstream, server={"max_body_bytes": 1_600_000})
    limits = replace(QUIET, bodies_in_flight_bytes=2_000_000)
    with serve(settings, limits=limits) as gateway, gateway.connect() as client:
        upstream.queue(raw(b"{}", content_type="application/json", hold_before_headers=gate))
        client.request("POST", "/v1/audio/transcriptions", body, FORM)
        upstream.request_gate(1).wait_sync()
        refused = gateway.ask("POST", "/v1/audio/transcriptions", body, FORM)
        assert (refused.status, refused.error["code"]) == (503, "overloaded")
        model_first = form(("model", b"m"), ("*file", b"x" * 5_000_000))  # is not stored
        assert gateway.ask("POST", "/v1/audio/transcriptions", model_first, FORM).status == 200
        gate.open()
        assert client.read_reply().status == 200
        gateway.flush_log()
        assert gateway.ask("POST", "/v1/audio/transcriptions", body, FORM).status == 200
        too_far = form(("*file", b"x" * 5_000_000), ("model", b"m"))  # passes, as one without a model does
        assert gateway.ask("POST", "/v1/audio/transcriptions", too_far, FORM).status == 200
        assert upstream.last.body == too_far


def test_a_request_without_a_model_goes_to_the_first_upstream_or_the_named_one(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream],
) -> None:
    gateway, first, second = two
    assert gateway.ask("GET", "/v1/files").status == 200
    assert (len(first.requests), len(second.requests)) == (1, 0)
    assert gateway.ask("GET", "/v1/files", headers={"x-mnemogate-upstream": "second"}).status == 200
    assert (len(first.requests), len(second.requests)) == (1, 1)
    assert "x-mnemogate-upstream" not in second.last.headers


@pytest.mark.parametrize("name", ["third", "http://127.0.0.1:1/v1", "First"])
def test_an_upstream_that_is_not_in_the_settings_cannot_be_named(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream], name: str
) -> None:
    reply = two[0].ask("GET", "/v1/files", headers={"x-mnemogate-upstream": name})
    assert (reply.status, reply.error["param"]) == (400, "x-mnemogate-upstream")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/models"])
def test_an_upstream_is_named_in_utf8_and_by_one_header(upstream: StrictUpstream, path: str) -> None:
    ups = tuple(UpstreamSettings(name, base_url=upstream.base_url) for name in ("first", "büro"))
    with serve(settings_for(upstream, upstreams=ups)) as gateway:

        def ask(*names: bytes) -> RawReply:
            lines = b"".join(b"x-mnemogate-upstream: %b\r\n" % name for name in names)
            with gateway.connect() as client:
                client.send(b"GET %b HTTP/1.1\r\nhost: 127.0.0.1\r\n%b\r\n" % (path.encode(), lines))
                return client.read_reply()

        assert ask("büro".encode()).status == 200
        assert "'nörd'" in ask("nörd".encode()).error["message"]
        for refused in (ask(b"first", "büro".encode()), ask(b"b\xfcro")):
            assert (refused.status, refused.error["param"]) == (400, "x-mnemogate-upstream")


def test_the_memory_of_a_request_is_said_once(gateway: RunningGateway) -> None:
    with gateway.connect() as client:
        lines = b"x-mnemogate-memory: strict\r\nx-mnemogate-memory: off\r\n"
        client.send(b"GET /v1/files HTTP/1.1\r\nhost: 127.0.0.1\r\n%b\r\n" % lines)
        refused = client.read_reply()
    assert (refused.status, refused.error["param"]) == (400, "x-mnemogate-memory")


def test_a_name_for_an_upstream_goes_with_a_model_of_its_own(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream],
) -> None:
    gateway, first, second = two
    for upstream, model, seen, expected in [
        ("second", "ears", second, b"whisper-large"),
        ("second", "any", second, b"any"),
        ("first", "ears", first, b"ears"),
    ]:
        body = json.dumps({"model": model, "input": "x"}).encode()
        gateway.ask("POST", "/v1/embeddings", body, {**JSON, "x-mnemogate-upstream": upstream})
        assert b'"' + expected + b'"' in seen.last.body


@pytest.mark.parametrize(
    ("headers", "status"), [({"x-mnemogate-upstream": "second"}, 404), ({"content-type": "text/plain"}, 400)]
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/audio/speech"])
def test_a_closed_list_is_closed_to_a_named_upstream_and_to_what_cannot_be_read(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream],
    path: str,
    headers: dict[str, str],
    status: int,
) -> None:
    gateway, first, second = two
    if path == "/v1/responses":
        status = 404  # it is read under any type
    reply = gateway.ask("POST", path, b'{"model":"dear","input":"x"}', {**JSON, **headers})
    assert (reply.status, reply.error["param"]) == (status, "model")
    assert first.requests == second.requests == []


@each_row(
    ("body", "headers", "status", "param"),
    [
        ({"model": "agent/bob", "input": "x"}, {}, 400, "model"),  # an agent without its memory is none
        ({"model": f"agent-{32 * '0'}", "input": "x"}, {}, 400, "model"),
        ({"model": "unknown", "input": "x"}, {}, 404, "model"),
        ({"input": "x"}, {"x-mnemogate-memory": "strict"}, 400, "x-mnemogate-memory"),
        ({"input": "x"}, {}, 400, "model"),  # the upstream's own words
        (b'{"model":"ears","model":"first/x"}', {}, 400, "model"),
        (b'{"\\u006dodel":"dear","model":"ears"}', {}, 400, "model"),  # a reader that takes the first
        (b"{", {}, 400, None),
        (b"[]", {}, 400, None),
    ],
)
def test_a_request_that_leads_to_no_upstream_is_refused(
    two: tuple[RunningGateway, StrictUpstream, StrictUpstream],
    body: Any,
    headers: dict[str, str],
    status: int,
    param: str | None,
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    reply = two[0].ask("POST", "/v1/embeddings", data, {**JSON, **headers})
    assert (reply.status, reply.error["param"]) == (status, param)


def test_headers_go_as_with_chat(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    sent = {
        **FORM,
        "authorization": "Bearer sk-callers",
        "cookie": "a=b",
        "x-mnemogate-user": "alice",
        "x-api-key": "mg-x",
        "openai-organization": "org-1",
    }
    gateway.ask("POST", "/v1/files", form(("purpose", b"batch"), ("*file", b"x")), sent)
    headers = upstream.last.headers
    assert (headers["content-type"], headers["authorization"], headers["openai-organization"]) == (
        FORM["content-type"],
        "Bearer sk-callers",
        "org-1",
    )
    assert {"cookie", "x-mnemogate-user", "x-api-key"}.isdisjoint(headers)


@pytest.mark.parametrize("kind", [None, "application/json"])
@pytest.mark.parametrize(
    ("method", "path", "length"),
    [
        ("GET", "/v1/files/f", None),
        ("HEAD", "/v1/files/f", None),
        ("DELETE", "/v1/files/f", "0"),  # as aiohttp has it
        ("POST", "/v1/batches/b/cancel", "0"),
    ],
)
def test_a_request_without_a_body_has_only_the_clients_headers_about_it(
    gateway: RunningGateway,
    upstream: StrictUpstream,
    method: str,
    path: str,
    length: str | None,
    kind: str | None,
) -> None:
    with gateway.connect() as client:
        client.request(method, path, headers={} if kind is None else {"content-type": kind})
        client.read_head()
    request = upstream.last
    assert (request.method, request.path) == (method, path)
    assert (request.headers.get("content-length"), request.headers.get("content-type")) == (length, kind)


@each_row(
    "path",
    [
        "/v1/files/../models",
        "/v1/files/%2e%2e/models",
        "/v1/files/a%2fb",
        "/v1/files/..",
        "/v1/files/a//b",
        "/v1/files/",
        "/v1/images/a b",
        "/v1/files/%00",
    ],
)
def test_a_path_that_could_lead_elsewhere_does_not_exist(
    gateway: RunningGateway, upstream: StrictUpstream, path: str
) -> None:
    with gateway.connect() as client:
        client.send(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        assert client.read_head().status in (400, 404, 405)
    assert upstream.requests == []


@each_row(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v2/embeddings", 404, "unknown_url"),
        ("GET", "/v1/embeddings", 405, "method_not_allowed"),
        ("PUT", "/v1/files", 405, "method_not_allowed"),
        ("DELETE", "/v1/files", 405, "method_not_allowed"),
        ("POST", "/v1/models/m", 405, "method_not_allowed"),
        ("GET", "/v1/models/agent/nobody", 404, "model_not_found"),
    ],
)
def test_a_route_or_method_that_is_not_there_is_an_openai_error(
    gateway: RunningGateway, method: str, path: str, status: int, code: str
) -> None:
    reply = gateway.ask(method, path)
    assert (reply.status, reply.error["code"]) == (status, code)
    assert set(reply.error) == {"message", "type", "param", "code"}


def test_every_family_is_counted_under_its_name(gateway: RunningGateway) -> None:
    gateway.ask("GET", "/v1/batches")
    counted = gateway.ask("GET", "/metrics").body.decode()
    assert 'route="batches",status="200"' in counted
    assert set(map(name_route, FORWARDED_PATHS)) >= {"batches", "files", "vector_stores"}


# --- streams, limits, and who leaves --------------------------------------------------------------------------------


def test_an_upload_leaves_while_it_comes(gateway: RunningGateway, upstream: StrictUpstream) -> None:
    body = form(("purpose", b"batch"), ("*file", b"x" * 300_000))
    with gateway.connect() as client:
        there = upstream.byte_gate(100_000)
        client.request("POST", "/v1/files", None, {**FORM, "content-length": str(len(body))})
        client.send(body[:200_000])
        there.wait_sync()  # the rest was never sent
        client.send(body[200_000:])
        assert client.read_reply().json["bytes"] == 300_000


SEARCHED = [
    (form(("model", b"ears"), ("*file", b"abc")), b"ears"),
    (form(("prompt", b"model"), ("model", b"")), b""),
    (form(("*model", b"f")), b"f"),
    (form(("*file", b'--XX\r\n\r\n--XY name="model"'), ("model", b"late")), b"late"),
    (b"preamble\r\n" + form(("model", b"m")), b"m"),
    (b"--XX\r\n\r\nno head\r\n" + form(("model", b"m")), b"m"),
    (b"--XX\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n--XX--", b"m"),
    (form(("modell", b"x")), None),
    (form(("model", b"x"), end=False)[:-2], None),  # its end has not come
    (b"--XX--\r\n", None),
    (b"no form at all", None),
    (b"--XX\r\n" + b"h" * 20_000, None),
]


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (form(("model", b"x")), True),
        (
            form(("*file", b"y" * 5_000 + b'\r\n--XY name="model"\r\n\r\n'), ("n", b"2"), ("model", b"x")),
            True,
        ),
        (form(("*file", b"y" * 5_000 + b'\r\n--XY name="model"\r\n\r\n'), ("models", b"2")), False),
        (form(("n", b"2")) + b'\r\n--XX\r\ncontent-disposition: form-data; name="model"\r\n\r\n', False),
        (b"--XX\r\n" + b"h" * 20_000, True),  # nobody knows what it names
        (b"--XX--\r\n" + b"h" * 20_000, False),
    ],
)
def test_another_field_is_found_however_the_form_is_cut(rest: bytes, expected: bool) -> None:
    for step in (len(rest), 1, 3, 1_000):
        search = FieldSearch(b"XX", "model")
        search.feed(form(("model", b"x"), end=False) + b"--XX")
        assert search.span is not None
        assert not search.is_ambiguous
        for at in range(0, len(rest), step):
            search.feed((b"\r\n\r\n\r\n" if not at else b"") + rest[at : at + step])
        assert search.is_ambiguous is expected


def test_the_search_in_a_form_of_very_many_parts_ends() -> None:
    """32 MB of empty ones took a quarter of a minute of processor time."""
    many = form(*[("a", b"")] * 999, end=False)
    search = FieldSearch(b"XX", "model")
    search.feed(many + form(("a", b""), ("model", b"x")))
    assert (search.is_over, search.is_whole, search.span) == (True, False, None)
    search = FieldSearch(b"XX", "model")
    search.feed(form(("model", b"x"), end=False) + many)
    assert not search.is_over
    search.feed(form(("a", b"")))
    assert search.is_ambiguous


@each_row(("body", "expected"), SEARCHED)
def test_a_field_is_found_however_the_form_is_cut(body: bytes, expected: bytes | None) -> None:
    for step in (len(body), 1, 3):
        search = FieldSearch(b"XX", "model")
        for at in range(0, len(body), step):
            search.feed(body[at : at + step])
        assert (body[slice(*search.span)] if search.span else None) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=x; BOUNDARY="a b"', b"a b"),
        ("multipart/form-data; boundary=----FormBoundaryabc", b"----FormBoundaryabc"),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=a; boundary =b", None),  # which of them counts is the reader's to say
        ("application/json; boundary=abc", None),
    ],
)
def test_a_boundary_is_read_where_one_is_named(kind: str, expected: bytes | None) -> None:
    assert read_boundary(kind) == expected


# --- an account that projects share -------------------------------------------------------------------------------


LISTS = (
    *("files", "batches", "vector_stores", "containers", "skills", "videos"),
    *("fine_tuning/jobs", "audio/voice_consents"),
)


@pytest.mark.parametrize(
    ("project", "lists", "keys", "status"),
    [
        ("default", None, {"api_key": "sk-ours"}, 200),
        ("blue", None, {"api_key": "sk-ours"}, 403),
        ("blue", True, {"api_key": "sk-ours"}, 200),
        ("default", False, {"api_key": "sk-ours"}, 403),
        ("blue", None, {}, 200),  # with a key of the caller's own, it is the caller's account
        ("blue", None, {"headers": {"OpenAI-Organization": "org-1"}}, 200),
        ("blue", None, {"headers": {"x-portkey-api-key": "k1"}}, 403),  # any other header may be a key
    ],
)
def test_a_list_of_what_all_projects_store_needs_the_setting(
    tmp_path: Path, project: str, lists: bool | None, keys: dict[str, Any], status: int
) -> None:
    async def open_here() -> Store:
        return await open_store(tmp_path / "m.db")

    with StrictUpstream(key="sk-ours") as upstream:
        settings = settings_for(
            upstream,
            upstreams=(UpstreamSettings("up", base_url=upstream.base_url, **keys),),
            projects={project: ProjectSettings(lists_account=lists)},
        )
        with serve(settings, open_here) as gateway:
            key = gateway.call(gateway.app.services.store.keys.create(project, "test"))[1]
            headers = {"x-mnemogate-key": key, "authorization": "Bearer sk-ours"}
            for what in LISTS:
                reply = gateway.ask("GET", f"/v1/{what}?limit=5", None, headers)
                assert (what, reply.status) == (what, status)
                if status == 403:
                    assert reply.error["type"] == "permission_error"
                    assert f"projects.{project}.lists_account" in reply.error["message"]
                    # An id shows that an object is one's own.
                    assert gateway.ask("GET", f"/v1/{what}/x-1", None, headers).status != 403, what


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/embeddings", b'{"model":"%b","input":"Hi"}', JSON),
        ("/v1/audio/transcriptions", form(("model", b"%b"), ("*file", b"x")), FORM),
        ("/v1/responses", b'{"model":"%b","input":"Hi"}', JSON),
        ("/v1/messages", b'{"model":"%b","max_tokens":1,"messages":[{"role":"user","content":"Hi"}]}', JSON),
    ],
)
def test_a_text_that_is_too_long_is_no_name(
    gateway: RunningGateway, upstream: StrictUpstream, path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Names are cached, and each is a caller's choice."""
    longest = b"m" * MAX_MODEL_CHARS
    assert gateway.ask("POST", path, body.replace(b"%b", longest), headers).status == 200
    reply = gateway.ask("POST", path, body.replace(b"%b", longest + b"m"), headers)
    assert (reply.status, "1,000 characters" in reply.error["message"]) == (400, True)
    assert len(upstream.requests) == 1
