"""Which rank ended the run, on which host, and why: known to every rank within seconds, under any launcher.

A launcher does not end the other hosts when a rank dies (deepspeed, torchrun over ssh), and a survivor that waits in a
collective says "connection closed by peer", or nothing for half an hour. So every rank holds one TCP connection to rank
0. A process that is killed closes it; a machine without power or network stops answering the kernel's keepalive probes,
even while Python is busy. Rank 0 finds the first cause, tells all, and every rank ends with that message.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import re
import secrets
import selectors
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from bigtrain.distributed import Ranks, broadcast_object, gather_objects
from bigtrain.errors import EXIT_FAILED, EXIT_USER, RunError, UserError

GATHER_S = 1.0
"""How long rank 0 waits for a better reason than a lost connection or a broken collective."""
GRACE_S = 3.0
"""How long a rank may take to end by itself once the cause is known."""
SILENT_S = 4, 2, 4
"""Keepalive: after 4 s without a word, a probe every 2 s; the machine counts as lost after 4 without an answer."""

_SECONDARY = re.compile(r"gloo|nccl|connection|broken pipe|timed? ?out|socket|store->|rank \d+ failed", re.IGNORECASE)

log = logging.getLogger("bigtrain.watch")


@dataclass(frozen=True, slots=True)
class Cause:
    """What ended the run."""

    rank: int
    host: str
    reason: str
    code: int = EXIT_FAILED
    """The exit code of every rank."""
    weight: int = 0
    """2: a rank's own fault; 1: a rank that is gone; 0: a collective that broke, most likely through another rank."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.reason}"


class Watch:
    """One rank's end of it; `start` is collective."""

    def __init__(self, ranks: Ranks) -> None:
        self._rank = ranks.rank
        self._hosts = gather_objects(socket.gethostname())
        self._server = _Server(self._hosts) if ranks.first else None
        port, token = broadcast_object((self._server.port, self._server.token) if self._server else None)
        self._socket = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=60)
        self._socket.settimeout(None)
        _keep_alive(self._socket)
        self._send({"token": token, "rank": ranks.rank})
        self._leaving = threading.Event()
        self._known = threading.Event()
        self.cause: Cause | None = None
        threading.Thread(target=self._listen, name="bigtrain-watch", daemon=True).start()

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others why this rank ends. Returns what to raise: `error`, or the cause where it lies elsewhere."""
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else EXIT_FAILED
        code = EXIT_USER if isinstance(error, UserError) else code
        reason = "stopped on request" if isinstance(error, SystemExit) else str(error) or type(error).__name__
        named = reason if isinstance(error, UserError | RunError | SystemExit) else f"{type(error).__name__}: {reason}"
        own = not (isinstance(error, RuntimeError | OSError) and _SECONDARY.search(named))
        with contextlib.suppress(OSError):
            self._send(asdict(Cause(self._rank, self._hosts[self._rank], named, code, 2 if own else 0)))
        self._known.wait(GATHER_S + GRACE_S)
        cause = self.cause
        self._leaving.set()
        if self._server:
            self._server.join(GATHER_S)
        if own or cause is None or cause.rank == self._rank:
            return error
        log.debug("this rank ended with", exc_info=error)
        if cause.code not in (EXIT_USER, EXIT_FAILED):
            print(f"bigtrain: {_told(cause)}", file=sys.stderr)
            return SystemExit(cause.code)
        return UserError(_told(cause)) if cause.code == EXIT_USER else RunError(_told(cause))

    def leave(self) -> None:
        """This rank has done its work."""
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._send({"bye": True})
        if self._server:
            self._server.done()
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        """Wait for the cause; when it is told, give the rank time to end by itself, else end it."""
        buffer = b""
        gone = "its process is gone: killed, or crashed"
        try:
            while b"\n" not in buffer and (received := self._socket.recv(65536)):
                buffer += received
        except OSError as error:
            gone = _lost(error)
        if self._leaving.is_set():
            return
        told = (
            json.loads(buffer.split(b"\n")[0])
            if b"\n" in buffer
            else {"rank": 0, "host": self._hosts[0], "reason": gone}
        )
        if told.get("done"):
            return
        self.cause = Cause(**told)
        self._known.set()
        if self._leaving.wait(GRACE_S):
            return
        print(f"bigtrain: {_told(self.cause)}", file=sys.stderr, flush=True)
        for stream in (
            sys.stdout,
            *(handler.stream for handler in logging.root.handlers if hasattr(handler, "stream")),
        ):
            with contextlib.suppress(Exception):
                if stream is not sys.stdout:
                    faulthandler.dump_traceback(stream)  # where this rank was waiting, into its log
                stream.flush()
        os._exit(self.cause.code)  # the main thread waits in a collective that nobody will answer


def _told(cause: Cause) -> str:
    return f"{cause}. The run was ended on every rank; what was saved before stands."


def _keep_alive(connection: socket.socket) -> None:
    idle, interval, count = SILENT_S
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", idle), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", count),
                        ("TCP_USER_TIMEOUT", 1000 * (idle + interval * count))):  # fmt: skip
        if hasattr(socket, name):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _lost(error: OSError) -> str:
    if isinstance(error, ConnectionResetError):
        return "its process is gone: killed, or crashed"
    return f"its machine or the network to it is gone ({error.strerror or error})"


class _Server(threading.Thread):
    """Rank 0's: hears who failed or vanished, decides on the cause, tells all."""

    def __init__(self, hosts: list[str]) -> None:
        super().__init__(name="bigtrain-watch-server", daemon=True)
        self._listener = socket.create_server(("", 0), backlog=len(hosts))
        self.port: int = self._listener.getsockname()[1]
        self.token = secrets.token_hex(16)
        self._hosts = hosts
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ranks: dict[socket.socket, int] = {}
        self._buffers: dict[socket.socket, bytes] = {}
        self._causes: list[Cause] = []
        self._decide_at: float | None = None
        self._over = False
        self.start()

    def done(self) -> None:
        """Rank 0 has done its work: from now on nobody is missed."""
        self._over = True
        self._tell({"done": True})

    def run(self) -> None:
        """Until a cause is found or all have left."""
        while not self._over:
            for key, _ in self._selector.select(timeout=0.2):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    _keep_alive(connection)
                    self._buffers[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)
            if self._causes and not self._over:
                first = max(self._causes, key=lambda cause: cause.weight)  # of equal weight, the first
                self._decide_at = self._decide_at or time.monotonic() + GATHER_S
                if first.weight == 2 or time.monotonic() > self._decide_at:
                    self._tell(asdict(first))
                    self._drain()
                    return

    def _hear(self, connection: socket.socket) -> None:
        try:
            received, reason = connection.recv(65536), "its process is gone: killed, or crashed"
        except OSError as error:
            received, reason = b"", _lost(error)
        if not received:
            self._drop(connection)
            rank = self._ranks.pop(connection, None)
            if rank is not None:
                self._causes.append(Cause(rank, self._hosts[rank], reason, weight=1))
            return
        *lines, self._buffers[connection] = (self._buffers[connection] + received).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if connection not in self._ranks:
                if message.get("token") != self.token:
                    self._drop(connection)
                    return
                self._ranks[connection] = message["rank"]
            elif message.get("bye"):
                del self._ranks[connection]
                self._drop(connection)
                return
            else:
                self._causes.append(Cause(**message))

    def _drain(self) -> None:
        """Read on for a moment: a socket that is closed with something unread takes back what was told through it."""
        until = time.monotonic() + GATHER_S
        while self._ranks and time.monotonic() < until:
            for key, _ in self._selector.select(timeout=0.1):
                if key.fileobj is not self._listener and isinstance(key.fileobj, socket.socket):
                    self._hear(key.fileobj)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._buffers.pop(connection, None)
        connection.close()

    def _tell(self, message: dict[str, Any]) -> None:
        for connection in list(self._ranks):
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")
