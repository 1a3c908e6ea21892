"""Several hosts on one machine: namespaces with a network, a name and processes of their own, on one switch.

A host's first process ends when its standard input is closed, and the kernel then ends all processes of the host and
removes its devices. So nothing is left behind, even if the test session is killed. The switch is in a namespace of its
own: the machine's network has no part in this, and the names of devices cannot clash with those of other sessions.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.forkserver import ColdPopen

OWN = ("--net", "--uts", "--pid", "--mount")  # the namespaces of a host
DEVICE = "eth0"
HUB = "10.77.0.254"  # the address of the switch itself
NEEDED = "hosts of namespaces need root and the programs ip, tc, unshare and nsenter (iproute2, util-linux)"


def call(*words: str | int) -> str:
    """Runs a program; returns its output."""
    line = [str(word) for word in words]
    result = subprocess.run(line, capture_output=True, text=True, timeout=30)
    if result.returncode:
        raise OSError(f"{' '.join(line)}: {result.stderr.strip()}")
    return result.stdout


@dataclass(frozen=True)
class Host:
    """One of the hosts `host0`, `host1`, …, which know each other by name and see the same files."""

    number: int
    pid: int  # of its first process, as seen from outside
    switch: int  # a process in the switch's namespace

    @property
    def name(self) -> str:
        return f"host{self.number}"

    @property
    def address(self) -> str:
        return address(self.number)

    @property
    def port(self) -> str:
        """The switch's end of the host's cable."""
        return f"port{self.number}"

    def enter(self, *words: str | int) -> list[str]:
        """The command line that runs a program on the host."""
        return [str(word) for word in ("nsenter", "--target", self.pid, *OWN, "--", *words)]

    def cut_off(self) -> None:
        """Pulls the cable. The processes of the host live on."""
        call(*self.at_switch("ip", "link", "set", self.port, "down"))

    def plug_in(self) -> None:
        call(*self.at_switch("ip", "link", "set", self.port, "up"))

    def at_switch(self, *words: str | int) -> list[str]:
        """The command line that runs a program in the switch's network, which is not cut off with any host."""
        return [str(word) for word in ("nsenter", "--target", self.switch, "--net", "--", *words)]

    def shape(self, *discipline: str) -> None:
        """Slows down what the host sends and receives, by one of tc's queueing disciplines."""
        call(*self.enter("tc", "qdisc", "add", "dev", DEVICE, "root", *discipline))
        call(*self.at_switch("tc", "qdisc", "add", "dev", self.port, "root", *discipline))

    def counts(self) -> str:
        """What tc has counted of the packets that the host sends."""
        return call(*self.enter("tc", "-statistics", "qdisc", "show", "dev", DEVICE))


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Hosts for the length of the block. Raises OSError where they cannot be made."""
    with ExitStack() as stack:
        switch = stack.enter_context(_namespaces("--net"))
        link = ("nsenter", "--target", switch, "--net", "ip", "link")
        call(*link, "add", "bridge0", "type", "bridge")
        call(*link, "set", "bridge0", "up")
        call(*link, "set", "lo", "up")
        call(*link[:-1], "address", "add", f"{HUB}/24", "dev", "bridge0")
        names = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="gen1-hosts-"))
        names.write("127.0.0.1 localhost\n" + "".join(f"{address(n)} host{n}\n" for n in range(count)))
        names.flush()
        made = []
        for number in range(count):
            host = Host(number, stack.enter_context(_namespaces(*OWN, "--mount-proc")), switch)
            call(*link, "add", host.port, "type", "veth", "peer", "name", DEVICE, "netns", host.pid)
            call(*link, "set", host.port, "master", "bridge0", "up")
            call(*host.enter("hostname", host.name))
            call(*host.enter("mount", "--bind", names.name, "/etc/hosts"))
            call(*host.enter("ip", "address", "add", f"{address(number)}/24", "dev", DEVICE))
            for device in ("lo", DEVICE):
                call(*host.enter("ip", "link", "set", device, "up"))
            made.append(host)
        yield made


def address(number: int) -> str:
    return f"10.77.0.{number + 1}"


@contextmanager
def _namespaces(*kinds: str) -> Iterator[int]:
    """New namespaces, for the length of the block and not longer than this process lives; the id of their process."""
    line = ["unshare", *kinds, "--fork", "--kill-child", "cat"]
    process = ColdPopen(line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        pid = None
        try:
            pid = _child(process)
            if pid is None:
                raise OSError(process.stderr.read().strip() or "unshare has made no namespaces")
            yield pid
        finally:
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.kill()


def _child(process: "subprocess.Popen[str]") -> int | None:
    """Waits for the program in the new namespaces; returns its process id, or None if it does not come."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        with suppress(OSError, ValueError):
            pid = int(children.read_text())
            if Path(f"/proc/{pid}/comm").read_text() == "cat\n":  # before that, /proc may not be mounted yet
                return pid
        time.sleep(0.005)
    process.kill()
    return None


def missing() -> str | None:
    """The reason why this machine can have no hosts, or None."""
    try:
        with hosts(2) as (_, second):
            second.shape("tbf", "rate", "100mbit", "burst", "64kb", "latency", "50ms")
    except (OSError, subprocess.SubprocessError) as error:
        return f"{NEEDED}: {error}"
    return None


def missing_netem() -> str | None:
    """The reason why no link can delay and lose packets as it is told, or None."""
    try:
        with hosts(1) as (host,):
            host.shape("netem", "delay", "5ms", "loss", "1%")
    except OSError as error:
        return f"this kernel has no netem: {error}"
    return None
