"""Which requests the page answers: those for its own host names, from its own origin."""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gen1_train.errors import UserError

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
EVERY_ADDRESS = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True)
class Hosts:
    """The host names of the page.

    A page of a stranger reaches this server under a name of the stranger if that name resolves to an address here (DNS
    rebinding), and a browser then takes both for one origin. An address cannot be rebound, only a name can.
    """

    names: frozenset[str]  # in lower case, without ports
    further: frozenset[str]  # those of ui_names, as of a proxy, whose port may be another one than the page's
    addresses: bool  # whether every address is a name of the page, since it listens on all of them

    @classmethod
    def of(cls, ui_host: str, ui_names: str | None) -> "Hosts":
        """The names for the address that the page listens on and for further names, separated by commas.

        Raises UserError for a further name that is not a plain host name.
        """
        further = frozenset(name.strip().lower() for name in (ui_names or "").split(",") if name.strip())
        for name in further:
            if _hostname(name) != name:
                raise UserError(
                    f"ui_names={ui_names}: {name} is not a host name: give names without a port, as in a.org"
                )
        listens_everywhere = ui_host in EVERY_ADDRESS
        machine = {socket.gethostname(), socket.getfqdn()} if listens_everywhere else {ui_host.strip("[]")}
        return cls(LOCAL | {name.lower() for name in machine} | further, further, listens_everywhere)

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> str | None:
        """The reason to refuse a request, in one line; None to answer it.

        Args:
            headers: by name in lower case.
        """
        host = headers.get("host", "")
        if not self._is_own(_hostname(host)):
            return "this page does not answer to this host name: open it by its own, or add the name to ui_names="
        origin = headers.get("origin")
        if origin is not None and not self._is_same(origin, host):
            return "requests from other pages are refused"
        if headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
            return None
        if method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate":
            return None  # a link to the page
        return "requests from other pages are refused"

    def _is_own(self, name: str | None) -> bool:
        return name is not None and (name in self.names or (self.addresses and _is_address(name)))

    def _is_same(self, origin: str, host: str) -> bool:
        """Whether an origin is the page: another port of this machine is another page."""
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        return place.lower() == host.lower() or _hostname(place) in self.further


def _hostname(place: str) -> str | None:
    """The name or address in NAME:PORT, in lower case."""
    if "/" in place or "@" in place:
        return None
    try:
        return urlsplit(f"//{place}").hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
