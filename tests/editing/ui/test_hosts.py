"""The page answers to its own host names and origins only."""

import socket

import pytest

from gen1_train.editing.ui.hosts import Hosts
from gen1_train.errors import UserError

HERE = {"host": "localhost:7860"}


def refused(hosts: Hosts, headers: dict[str, str], method: str = "GET", path: str = "/config") -> bool:
    return hosts.refusal(method, path, headers) is not None


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST:1"])
def test_it_answers_to_its_own_names(host: str) -> None:
    assert not refused(Hosts.of("127.0.0.1", None), {"host": host})


@pytest.mark.parametrize(
    "host", ["evil.example:7860", "127.0.0.1.evil.example", "", "localhost@evil.example", "a/b", "[::"]
)
def test_a_rebound_name_is_refused(host: str) -> None:
    for listening in ("127.0.0.1", "0.0.0.0", "::"):
        assert refused(Hosts.of(listening, None), {"host": host})


def test_on_every_address_the_names_are_the_machine_s_and_addresses() -> None:
    everywhere = Hosts.of("0.0.0.0", None)
    for host in (f"{socket.gethostname()}:7860", "192.0.2.7:7860", "[2001:db8::1]:7860"):
        assert not refused(everywhere, {"host": host})
    assert refused(Hosts.of("127.0.0.1", None), {"host": "192.0.2.7:7860"})
    assert not refused(Hosts.of("192.0.2.7", None), {"host": "192.0.2.7:7860"})


def test_further_names_are_those_of_a_proxy() -> None:
    hosts = Hosts.of("127.0.0.1", "Edit.example.org, other.example.org")
    assert not refused(hosts, {"host": "edit.example.org"})
    assert not refused(hosts, {"host": "localhost:7860", "origin": "https://edit.example.org"})  # it kept its own name
    assert refused(hosts, {"host": "third.example.org"})
    for names in ("a.example:80", "https://a.example", "a@b"):
        with pytest.raises(UserError, match="is not a host name"):
            Hosts.of("127.0.0.1", names)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},  # another server on this machine
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
        {"origin": "http://localhost:7860", "sec-fetch-site": "cross-site"},
    ],
)
def test_requests_from_other_pages_are_refused(headers: dict[str, str]) -> None:
    hosts = Hosts.of("127.0.0.1", None)
    for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/file=/files/a"), ("POST", "/")):
        assert refused(hosts, HERE | headers, method, path)


def test_the_page_itself_and_a_link_to_it_are_answered() -> None:
    hosts = Hosts.of("127.0.0.1", None)
    assert not refused(hosts, HERE | {"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"}, "POST")
    assert not refused(hosts, HERE | {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, path="/")
    assert not refused(hosts, HERE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, path="/")
