"""A Hugging Face hub of one repository, on this machine: the few endpoints that downloading needs."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves `files` as the repository org/toy. Its attributes say what goes wrong and what was asked."""

    files: dict[str, bytes]
    gated: bool = False  # files may be listed, but not fetched without a token
    cut: dict[str, int]  # file -> bytes after which the connection breaks
    requests: list[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if path == "/api/models/org/toy/revision/main":
            siblings = [{"rfilename": name} for name in hub.files]
            self.answer(200, json.dumps({"id": "org/toy", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/org/toy/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"/api/models/org/toy/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif (name := path.removeprefix(f"/org/toy/resolve/{COMMIT}/")) in hub.files:
            if hub.gated and "Authorization" not in self.headers:
                self.answer(401, b"{}", {"X-Error-Code": "GatedRepo"})
            else:
                self.send_file(name)
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def send_file(self, name: str) -> None:
        content = self.server.files[name]
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if wanted else 200, content[start:], headers, self.server.cut.get(name))

    def answer(
        self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """A running hub."""
    hub = Hub(("127.0.0.1", 0), Handler)
    hub.files, hub.cut, hub.requests = files, {}, []
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
