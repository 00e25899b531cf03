"""Tools speak to the hosts that the settings name, at public addresses, and to the address that was judged."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.agents.tools.hosts import HostError, ReplyFault, ToolHosts, is_public
from gateway.settings import HostRule, ToolSettings
from tests.doubles.certificate import make_certificate
from tests.doubles.tool_server import OK, serving
from tests.rows import each_row

# RFC 6890's special addresses, forms that hide one, and a few that are public.
ADDRESSES = {
    "8.8.8.8": True,
    "1.1.1.1": True,
    "100.63.255.255": True,
    "100.128.0.1": True,
    "172.32.0.1": True,
    "193.0.0.1": True,
    "2606:4700::1111": True,
    "2a00:1450:4001:81b::200e": True,
    "::ffff:8.8.8.8": True,
    "64:ff9b::808:808": True,
    "2002:808:808::1": True,
    "0.0.0.0": False,
    "0.1.2.3": False,
    "10.0.0.1": False,
    "100.64.0.1": False,
    "100.100.100.200": False,
    "127.0.0.1": False,
    "127.255.255.254": False,
    "168.63.129.16": False,
    "169.254.169.254": False,
    "172.16.0.1": False,
    "172.31.255.255": False,
    "192.0.0.192": False,
    "192.0.2.1": False,
    "192.88.99.1": False,
    "192.168.0.1": False,
    "198.18.0.1": False,
    "198.51.100.1": False,
    "203.0.113.1": False,
    "224.0.0.1": False,
    "239.255.255.255": False,
    "240.0.0.1": False,
    "255.255.255.255": False,
    "::": False,
    "::1": False,
    "::127.0.0.1": False,
    "::ffff:127.0.0.1": False,
    "::ffff:a9fe:a9fe": False,
    "::ffff:0:127.0.0.1": False,
    "64:ff9b::7f00:1": False,
    "64:ff9b::a9fe:a9fe": False,
    "64:ff9b::10.0.0.1": False,
    "64:ff9b:1::808:808": False,
    "100::1": False,
    "2001::1": False,
    "2001:0:808:808::1": False,
    "2001:db8::1": False,
    "2002:7f00:1::1": False,
    "2002:a00:1::1": False,
    "3fff::1": False,
    "5f00::1": False,
    "fc00::1": False,
    "fd00:ec2::254": False,
    "fe80::1": False,
    "fe80::1%eth0": False,
    "fec0::1": False,
    "ff02::1": False,
    "": False,
    "example.org": False,
    "2130706433": False,
}


@each_row("address", ADDRESSES)
def test_an_address_is_public_or_not(address: str) -> None:
    assert is_public(address) is ADDRESSES[address]


HOSTS = (
    "api.example.org",
    "*.example.com",
    "http://plain.example.org",
    "odd.example.org:8443",
    "[2606:4700::1]",
)
URLS: dict[str, str | None] = {
    "https://api.example.org/hook?x=1": None,
    "https://API.Example.org./hook": None,
    "https://a.example.com": None,
    "https://a.b.example.com:443/": None,
    "http://plain.example.org/": None,
    "https://odd.example.org:8443/": None,
    "https://[2606:4700::1]/": None,
    "https://example.com/": "does not name https://example.com:443",
    "https://badexample.com/": "does not name",
    "https://api.example.org.evil.net/": "does not name",
    "https://api.example.org:8443/": "does not name https://api.example.org:8443",
    "http://api.example.org/": "does not name http://api.example.org:80",
    "https://plain.example.org/": "does not name",
    "https://odd.example.org/": "does not name",
    "https://user@api.example.org/": "would be a secret",
    "https://:x@api.example.org/": "would be a secret",
    "ftp://api.example.org/": "must be https://",
    "file:///etc/passwd": "must be https://",
    "//api.example.org/": "must be https://",
    "https:///hook": "must be https://",
    "api.example.org": "must be https://",
    "": "must be https://",
    "https://api.example.org/ x": "a space or a control character",
    "https://api.example.org/\r\nx: y": "a space or a control character",
    "https://api.example.org\\@a.example.com/": "cannot be read",
    "https://api.example.org:99999/": "cannot be read",
    "https://api.example.org%2f.example.com/": "names no host",
    "https://127.0.0.1.example.com/": None,
    "https://[::1/": "cannot be read",
}


@each_row("url", URLS)
def test_the_settings_name_the_hosts(url: str) -> None:
    hosts, wrong = ToolHosts(ToolSettings(hosts=HOSTS)), URLS[url]
    if wrong is None:
        hosts.check(url)
    else:
        with pytest.raises(HostError, match=wrong):
            hosts.check(url)


@pytest.mark.parametrize(
    "host", ["2130706433", "127.1", "0x7f.1", "0x7f000001", "a.1", "0177.0.0.1", "127.0.0.0x1"]
)
def test_a_number_is_no_name(host: str) -> None:
    with pytest.raises(HostError, match="names no host"):
        ToolHosts(ToolSettings(hosts=("*", "http://*"))).check(f"http://{host}/")


def test_without_the_setting_no_host_may_be_spoken_to() -> None:
    with pytest.raises(HostError, match=r"tools\.hosts names none"):
        ToolHosts(ToolSettings()).check("https://api.example.org/")


@pytest.mark.parametrize(
    "text", ["", "https://", "a b", "ftp://a", "a:99999", "a/path", "**", "*.", "a.*.b", "u@a"]
)
def test_a_text_that_is_no_rule_for_hosts_is_none(text: str) -> None:
    assert HostRule.parse(text) is None


# -- real servers


class Names:
    """A resolver whose answers are given. Each is given once, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


async def get(hosts: ToolHosts, url: str, limit: int = 1000) -> tuple[int, bytes]:
    async with hosts.open("POST", url, {"x-own": "1"}, b"{}") as reply:
        return reply.status, await reply.read(limit)


async def test_the_judged_address_is_spoken_to_under_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(OK, host="127.0.0.2") as judged, serving(OK, port=judged.port) as other:
        # The second answer is what a rebinding attacker would say.
        names = Names(["127.0.0.2"], ["127.0.0.1"])
        hosts = ToolHosts(ToolSettings(private_hosts=(f"http://hook.example.org:{judged.port}",)), names)
        assert await get(hosts, f"http://hook.example.org:{judged.port}/path?a=b") == (200, b"ok")
    assert names.asked == [("hook.example.org", judged.port)]
    assert other.heads == []
    head = judged.heads[0].splitlines()
    assert head[0] == "POST /path?a=b HTTP/1.1"
    assert sorted(line.split(":")[0].lower() for line in head[1:] if line) == [
        "accept-encoding",
        "connection",
        "content-length",
        "host",
        "user-agent",
        "x-own",
    ]
    assert f"Host: hook.example.org:{judged.port}" in head
    assert "User-Agent: mnemogate" in head


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["100.64.0.1"],
        ["::1"],
    ],
)
async def test_a_name_with_one_address_that_is_not_public_is_refused(addresses: list[str]) -> None:
    async with serving(OK) as server:
        hosts = ToolHosts(ToolSettings(hosts=(f"http://*:{server.port}",)), Names(addresses))
        with pytest.raises(HostError, match="not a public one"):
            await get(hosts, f"http://hook.example.org:{server.port}/")
    assert server.heads == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"])
async def test_loopback_is_refused_by_address_and_by_the_systems_resolver(host: str) -> None:
    async with serving(OK) as server:
        hosts = ToolHosts(ToolSettings(hosts=(f"http://*:{server.port}",)))
        with pytest.raises(HostError, match="not a public one"):
            await get(hosts, f"http://{host}:{server.port}/")
        private = ToolHosts(ToolSettings(private_hosts=(f"http://127.0.0.1:{server.port}",)))
        assert await get(private, f"http://127.0.0.1:{server.port}/") == (200, b"ok")
    assert len(server.heads) == 1


async def test_a_redirect_is_a_reply_and_is_not_followed() -> None:
    async with serving(OK) as inner:
        moved = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{inner.port}/\r\nContent-Length: 0\r\n\r\n"
        async with serving(moved.encode()) as outer:
            hosts = ToolHosts(
                ToolSettings(
                    private_hosts=(f"http://127.0.0.1:{outer.port}", f"http://127.0.0.1:{inner.port}")
                )
            )
            assert await get(hosts, f"http://127.0.0.1:{outer.port}/") == (307, b"")
    assert inner.heads == []


@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, "more than 1,000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nok", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nxx", "compressed"),
        (b"what?\r\n\r\n", "broke off before its reply"),
        (b"", "broke off before its reply"),
    ],
)
async def test_replies_that_cannot_be_used(reply: bytes, wrong: str) -> None:
    async with serving(reply) as server:
        url = f"http://127.0.0.1:{server.port}/"
        with pytest.raises(ReplyFault, match=wrong):
            await get(ToolHosts(ToolSettings(private_hosts=(url,))), url)


async def test_a_host_whose_name_is_unknown_is_an_error() -> None:
    async def fails(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    settings = ToolSettings(hosts=("https://*",), private_hosts=("http://127.0.0.1:9",))
    with pytest.raises(HostError, match="cannot be resolved"):
        await get(ToolHosts(settings, fails), "https://hook.example.org/")
    with pytest.raises(HostError, match="cannot be resolved"):
        await get(ToolHosts(settings, Names([])), "https://hook.example.org/")
    with pytest.raises(HostError, match="could not be reached"):
        await get(ToolHosts(settings), "http://127.0.0.1:9/")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path, "hook.example.org")


async def test_tls_asks_for_the_name_and_checks_it(certificate: tuple[Path, Path]) -> None:
    asked: list[str | None] = []
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(*certificate)
    ours.sni_callback = lambda _, name, __: asked.append(name)
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.load_verify_locations(certificate[0])
    async with serving(OK, tls=ours) as server:
        settings = ToolSettings(private_hosts=(f"https://*.example.org:{server.port}",))
        hosts = ToolHosts(settings, Names(["127.0.0.1"]), theirs)
        assert await get(hosts, f"https://hook.example.org:{server.port}/") == (200, b"ok")
        with pytest.raises(HostError, match="certificate is not accepted"):
            await get(hosts, f"https://other.example.org:{server.port}/")
    assert asked == ["hook.example.org", "other.example.org"]
