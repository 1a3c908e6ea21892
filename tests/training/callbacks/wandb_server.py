"""A minimal W&B server: a run can start, resume, and send its history."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lines: list[str] = []  # the history of the only run, as JSON
        self.started = False
        self.silent = False  # accepts requests and never answers
        self.over = threading.Event()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The logged columns, without those of W&B except the step."""
        parsed = [json.loads(line) for line in self.lines]
        return [{name: value for name, value in row.items() if name == "_step" or name[0] != "_"} for row in parsed]

    def answer(self, query: str, given: dict[str, Any], host: str) -> dict[str, Any]:
        """Answers a GraphQL query."""
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if "RunResumeStatus" in query:
            return {"model": {"id": "p", "name": "p", "bucket": self._saved(given["name"]) if self.started else None}}
        if "UpsertBucket" in query:
            fresh, self.started = not self.started, True
            bucket = {"id": "r", "name": given["name"], "displayName": "d", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(self.lines)}, "inserted": fresh}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"http://{host}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def handle_error(self, *arguments: Any) -> None:
        """Ignores clients that are gone, because some are killed."""

    def _saved(self, name: str) -> dict[str, Any]:
        counts = {"historyLineCount": len(self.lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps(self.lines[-1:]), "eventsTail": "[]"}
        # a run without "t", its telemetry, counts as never started
        configs = {"summaryMetrics": "{}", "config": "{}", "wandbConfig": '{"t": 1}'}
        return {"id": "r", "name": name, **counts, **tails, **configs}

    def take(self, body: dict[str, Any]) -> None:
        """Stores a part of the run's files; a line that is sent again replaces the old one, as on the real server."""
        if part := (body.get("files") or {}).get("wandb-history.jsonl"):
            self.lines[part["offset"] :] = part["content"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/graphql":
            asked = json.loads(body)
            self._reply(
                {"data": self.server.answer(asked["query"], asked.get("variables") or {}, self.headers["Host"])}
            )
            return
        if self.server.silent:
            self.server.over.wait()
            return
        if self.path.endswith("/file_stream"):
            self.server.take(json.loads(body))
        self._reply({})

    do_PUT = do_GET = do_POST

    def _reply(self, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
