"""As much of the Hugging Face hub's HTTP interface as `datasets` and `transformers` need to read one folder of it.

A real server for the real clients: the code under test is the code that users run, to the last request.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves `root/datasets/<owner>/<name>` and `root/models/<name>`; gives the address, and the requests so far."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            url = urlparse(self.path)
            path = unquote(url.path)
            seen.append(f"{self.command} {path}")
            body = parse_qs(self.rfile.read(int(self.headers.get("content-length", 0))).decode())
            if path.startswith("/api/"):
                self.api(path.removeprefix("/api/"), {**parse_qs(url.query), **body})
            elif "/resolve/" in path:
                repository, _, rest = path.strip("/").partition("/resolve/")
                kind = "" if repository.startswith("datasets/") else "models/"
                self.file(root / f"{kind}{repository}" / rest.partition("/")[2])
            else:
                self.missing("EntryNotFound")

        def api(self, path: str, query: dict[str, list[str]]) -> None:
            """<kind>/<repository>, then nothing or /revision/<r>, /tree/<r>/<folder> or /paths-info/<r>."""
            for mark in ("/revision/", "/tree/", "/paths-info/"):
                path, found, inside = path.partition(mark)
                if found:
                    break
            folder, at = root / path, root / path / inside.partition("/")[2]
            if not folder.is_dir():
                self.missing("RepoNotFound")
            elif mark == "/paths-info/" and found:
                self.json([self.entry(folder, name) for name in query["paths"] if (folder / name).exists()])
            elif mark == "/tree/" and found:
                inner = sorted(at.rglob("*") if query.get("recursive", [""])[0].lower() == "true" else at.glob("*"))
                self.json([self.entry(folder, str(one.relative_to(folder))) for one in inner])
            else:
                names = [str(one.relative_to(folder)) for one in sorted(folder.rglob("*")) if one.is_file()]
                siblings = [{"rfilename": name} for name in names]
                self.json({"id": path.partition("/")[2], "sha": SHA, "siblings": siblings, "tags": []})

        def entry(self, folder: Path, name: str) -> dict[str, Any]:
            path = folder / name
            if path.is_dir():
                return {"type": "directory", "path": name, "oid": SHA}
            return {"type": "file", "path": name, "oid": SHA, "size": path.stat().st_size}

        def file(self, path: Path) -> None:
            if not path.is_file():
                self.missing("EntryNotFound")
                return
            data = path.read_bytes()
            status, headers = 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
            if wanted := self.headers.get("Range"):
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                stop = int(last) + 1 if last else len(data)
                headers["Content-Range"] = f"bytes {first}-{min(stop, len(data)) - 1}/{len(data)}"
                status, data = 206, data[int(first) : stop]
            self.reply(status, data, {"Accept-Ranges": "bytes", **headers})

        def json(self, answer: Any) -> None:
            self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

        def missing(self, code: str) -> None:
            self.reply(404, b"", {"X-Error-Code": code, "X-Error-Message": code})

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
