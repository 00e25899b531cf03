"""What a caller's headers say of its trace, which traces are sampled, and what the OTEL variables mean."""

from __future__ import annotations

import pytest

from adapters.types import Event
from gateway.core.trace_context import TraceContext, find_caller_trace
from gateway.core.usage.reply_facts import NO_FACTS, ReplyFacts, read_facts
from gateway.errors import SettingsError
from gateway.run.upstream.propagation import is_private
from gateway.traces.otlp import OtlpSettings, read_otlp
from gateway.traces.sampling import SAMPLERS, make_sampler

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"
RIGHT = b"00-" + TRACE + b"-" + SPAN + b"-01"


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        (RIGHT, True),
        (b" " + RIGHT + b" ", True),
        (b"cc-" + TRACE + b"-" + SPAN + b"-01-what-follows", True),  # a higher version may have more fields
        (b"cc-" + TRACE + b"-" + SPAN + b"-01.x", False),
        (RIGHT + b"-x", False),  # version 00 has four
        (b"ff-" + TRACE + b"-" + SPAN + b"-01", False),
        (b"00-" + b"0" * 32 + b"-" + SPAN + b"-01", False),
        (b"00-" + TRACE + b"-" + b"0" * 16 + b"-01", False),
        (RIGHT.upper(), False),
        (RIGHT[:-1], False),
        (b"00-" + TRACE[:-1] + b"-" + SPAN + b"-01", False),
        (b"", False),
    ],
)
def test_a_traceparent_is_taken_or_ignored(value: bytes, is_taken: bool) -> None:
    found = find_caller_trace([(b"traceparent", value)])
    assert (found is not None) is is_taken
    if found is not None:
        assert (found.trace_id, found.span_id, found.is_sampled) == (int(TRACE, 16), int(SPAN, 16), True)


def test_flags_state_and_repeated_headers() -> None:
    other = b"00-" + TRACE + b"-" + SPAN + b"-02"
    headers = [(b"traceparent", other), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    found = find_caller_trace(headers)
    assert found is not None
    assert (found.is_sampled, found.state) == (False, "a=1,b=2")
    long = find_caller_trace([(b"traceparent", RIGHT), (b"tracestate", b"a" * 513)])
    assert long is not None
    assert long.state == ""
    assert find_caller_trace([(b"traceparent", RIGHT), (b"traceparent", RIGHT)]) is None
    assert find_caller_trace([(b"tracestate", b"a=1")]) is None


def test_an_upstream_gets_the_id_of_its_call() -> None:
    context = TraceContext(int(TRACE, 16), 1 << 61, 7, "a=1")
    assert context.make_headers(2) == (
        ("traceparent", f"00-{TRACE.decode()}-2000000000000002-01"),
        ("tracestate", "a=1"),
    )
    ids = {
        context.span_id,
        *map(context.make_call_id, range(1, 50)),
        *map(context.make_step_id, range(1, 50)),
    }
    assert len(ids) == 99


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str) -> None:
    samples = make_sampler(name, 0.25)
    share = {"on": 1.0, "off": 0.0, "traceidratio": 0.25}[name.rpartition("_")[2]]
    # The lower 64 bits decide, whatever stands above them.
    ids = [(1 << 127) + (n << 54) for n in range(1024)]
    assert sum(samples(None, each) for each in ids) == share * 1024
    sampled, other = (find_caller_trace([(b"traceparent", RIGHT[:-1] + flag)]) for flag in (b"1", b"0"))
    if name.startswith("parentbased"):
        assert (samples(sampled, ids[-1]), samples(other, ids[0])) == (True, False)
    else:
        assert samples(sampled, ids[-1]) == samples(other, ids[-1]) == (share == 1.0)


def test_the_settings_that_the_otlp_variables_make() -> None:
    assert read_otlp({}) is None
    base = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
    assert read_otlp(base) == OtlpSettings("http://collector:4318/v1/traces")
    assert read_otlp({**base, "OTEL_SDK_DISABLED": "true"}) is None
    for value in ("none", "None"):
        assert read_otlp({**base, "OTEL_TRACES_EXPORTER": value}) is None
    for value in ("otlp", "OTLP", "console, otlp", ""):
        assert read_otlp({**base, "OTEL_TRACES_EXPORTER": value}) == read_otlp(base)
    found = read_otlp(
        {
            **base,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://other/path",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Basic%20a2V5,x-b=c=",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
            "OTEL_SERVICE_NAME": "prod",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=x,deployment.environment.name=a%2Cb",
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BSP_MAX_QUEUE_SIZE": "300",
        }
    )
    assert found is not None
    assert found.tls is not None
    assert found == OtlpSettings(
        endpoint="https://other/path",
        tls=found.tls,
        headers=(("authorization", "Basic a2V5"), ("x-b", "c=")),
        timeout_s=2.5,
        is_compressed=True,
        resource={"service.name": "prod", "deployment.environment.name": "a,b"},
        sampler="traceidratio",
        ratio=0.01,
        delay_s=0.1,
        queue_spans=300,
        batch_spans=300,
    )
    assert "a2V5" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "words"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "words"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "soon"),
        ("OTEL_RESOURCE_ATTRIBUTES", "words"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
    ],
)
def test_a_variable_that_is_none_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_otlp({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", name: value})


def test_private_addresses() -> None:
    private = [
        "http://127.0.0.1:8000/v1",
        "http://vllm:8000/v1",
        "http://[::1]/v1",
        "http://10.1.2.3",
        "http://a.internal",
    ]
    public = ["https://api.openai.com/v1", "http://8.8.8.8/v1", ""]
    assert [*map(is_private, private), *map(is_private, public)] == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("pieces", "facts"),
    [
        (
            [b'{"id":"a","model":"m","choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}'],
            ReplyFacts("a", "m", ("stop", "length")),
        ),
        (
            [
                [Event(b"", b'{"id":"a","model":"m","choices":[{"delta":{}}]}')],
                [Event(b"", b'{"choices":[{"finish_reason":"tool_calls"}]}'), Event(b"", b"[DONE]")],
            ],
            ReplyFacts("a", "m", ("tool_calls",)),
        ),
        (
            [
                b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"c"}}\n\n',
                b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"}}\n\n',
            ],
            ReplyFacts("msg_1", "c", ("end_turn",)),
        ),
        (
            [
                b'data: {"type":"response.created","response":{"id":"resp_1","model":"m","status":"in_progress"}}\n\n',
                b'data: {"delta":"some words"}\n\n',
                b'data: {"response":{"id":"resp_1","status":"completed"}}\n\n',
            ],
            ReplyFacts("resp_1", "m", ("completed",)),
        ),
        (
            [b'{"id":"resp_2","object":"response","status":"incomplete"}'],
            ReplyFacts("resp_2", "", ("incomplete",)),
        ),
        # Blank lines that keep the connection open while a model works (DeepSeek, OpenRouter).
        ([b'\n\n   \n{"id":"a","model":"m"}'], ReplyFacts("a", "m")),
        # Words where there should be a name are none.
        ([b'{"id":"said in words","choices":[{"finish_reason":"said"}]}'], ReplyFacts("", "", ("other",))),
        ([b"RIFF", b"", b"data: x", b'{"id":['], NO_FACTS),
        (
            [b'{"choices":[{"finish_reason":{"type":"stop"}},{"finish_reason":["stop"]}]}'],
            ReplyFacts("", "", ("other", "other")),
        ),
    ],
)
def test_facts_of_replies(pieces: list[bytes], facts: ReplyFacts) -> None:
    assert read_facts(pieces) == facts
