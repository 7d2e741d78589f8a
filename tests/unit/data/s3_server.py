"""An S3 server of this machine (moto's): over HTTP, for the real clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import pytest

ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def serve() -> Iterator[tuple[str, Any]]:
    """The address of a server, and a file system with the empty bucket `whales` in it; the environment names both."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ACCOUNT, "AWS_ENDPOINT_URL": address}.items():
            patch.setenv(name, value)
        import s3fs

        urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # all servers of a process have one memory
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("whales")
        try:
            yield address, store
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()


@contextmanager
def refusing(address: str) -> Iterator[None]:
    """From now on this server checks keys, and knows none."""
    requests_without_check(address, 0)
    try:
        yield
    finally:
        requests_without_check(address, 1 << 30)


def requests_without_check(address: str, number: int) -> None:
    body, kind = str(number).encode(), {"Content-Type": "text/plain"}
    urlopen(Request(f"{address}/moto-api/reset-auth", body, kind, method="POST")).close()
