"""Stands for a command in a job, and has it forked in a fraction of a second: `python -I -S warm.py SOCKET COMMAND …`.

Slurm sees this process: it has the command's exit code, or dies of the same signal; signals that it receives reach the
command. The other end is tests/slurm/station.py. Nothing is imported here that takes time.
"""

import json
import os
import select
import signal
import socket
import sys

FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    address, name, *words = sys.argv[1:]
    request = {
        "name": name,
        "words": words,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "ignored": [number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN],
    }
    content = json.dumps(request).encode()
    station = socket.socket(socket.AF_UNIX)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    station.connect(address)
    socket.send_fds(station, [len(content).to_bytes(8, "big")], [0, 1, 2])
    station.sendall(content)
    station.setblocking(False)
    signal.set_wakeup_fd(station.fileno())  # Python writes there the number of each signal
    for number in FORWARDED:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    select.select([station], [], [])
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    code = int(station.recv(16) or 1)
    if code < 0:
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    sys.exit(code)


if __name__ == "__main__":
    main()
