"""
A stand-in for Carillon's API on loopback: keeps what it is sent, and can be slow, failing or away on command.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "stub-token-1f2e3d"


class StubApi:
    """
    Use as a context manager. `answer` (status, seconds to wait first) holds for every request while it is
    set, with `later` as its Retry-After; `die_after` events it closes its port for good.
    """

    def __init__(self, *, answer=None, die_after=None):
        self.answer = answer
        self.die_after = die_after
        self.later = None
        self.times = []  # of requests
        self.jobs = {}  # id -> {"name", "kind", "statuses": [...], "eof": final_counter | None}
        self.events = []
        self.batches = []  # sizes
        self.bodies = []  # every byte that came
        self.requests = 0
        self.changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.stop()

    def stop(self):
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()

    def wait_for(self, predicate, seconds=20):
        with self.changed:
            assert self.changed.wait_for(lambda: predicate(self), seconds), "the stub API waited in vain"

    def sent(self):
        return b"\n".join(self.bodies).decode()

    def stdout(self):
        """What a reader of the job's output sees."""
        return "".join(
            event["stdout"] + "\n" if event["end_line"] > event["start_line"] else event["stdout"]
            for event in self.events
        )

    def _respond(self, method, path, token, body):
        self.requests += 1
        self.last_request = time.time()
        self.times.append(time.monotonic())
        if self.answer is not None:
            status, seconds = self.answer
            time.sleep(seconds)
            if status != 200:
                return status, {"detail": "as the test wants it"}
        if token != f"Bearer {TOKEN}":
            return 401, {"detail": "no such token"}
        parts = path.strip("/").split("/")[2:]
        if parts == ["jobs"] and method == "POST":
            job = {"id": 40 + len(self.jobs) + 1, "eof": None, "statuses": [body.pop("status")], **body}
            self.jobs[job["id"]] = job
            return 201, {"id": job["id"]}
        job = self.jobs.get(int(parts[1]))
        if job is None:
            return 404, {"detail": "no such job"}
        if method == "PATCH":
            if job["statuses"][-1] in ("canceled", "successful", "failed", "error"):
                return 409, {"detail": "the job has ended"}
            job["statuses"].append(body["status"])
            return 200, {}
        if method == "GET":
            return 200, {"status": job["statuses"][-1]}
        known = {event["counter"] for event in self.events}
        for event in body:
            if event["event"] == "EOF":
                job["eof"] = event["final_counter"]
            elif event["counter"] not in known:
                self.events.append(event)
        self.batches.append(len(body))
        return 201, {"created": len(body), "duplicates": 0}

    def _handler(stub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with stub.changed:
                    stub.bodies.append(body)
                    status, answer = stub._respond(
                        self.command,
                        self.path,
                        self.headers.get("Authorization"),
                        json.loads(body) if body else None,
                    )
                    stub.changed.notify_all()
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                if stub.answer is not None and stub.later is not None:
                    self.send_header("Retry-After", stub.later)
                dying = stub.die_after is not None and len(stub.events) >= stub.die_after
                if dying:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(text)
                if dying:
                    threading.Thread(target=stub.stop, daemon=True).start()

            do_GET = do_POST = do_PATCH = _serve

            def log_message(self, *args):
                pass

        return Handler
