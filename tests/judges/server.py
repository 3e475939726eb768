"""An OpenAI-compatible server that answers by a script, with every fault that endpoints have."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(content: str) -> str:
    """The body of a response."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})


class Server(ThreadingHTTPServer):
    """Answers by a script: for each request whose prompt holds a word, the next of that word's replies."""

    def __init__(self) -> None:
        self.scripts: dict[str, Any] = {}  # lists, or functions of the prompt
        self.asked: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self.key = ""
        self.before_reply: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """A client that was killed is none."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.key = self.headers["Authorization"]
        text = body["messages"][0]["content"]
        word = next(word for word in self.server.scripts if word in text)
        with self.server.lock:
            self.server.seen.append(body)
            script = self.server.scripts[word]
            reply = script(text) if callable(script) else script[min(self.server.asked[word], len(script) - 1)]
            self.server.asked[word] += 1
        self.server.before_reply()
        if reply == "hang":
            threading.Event().wait(1.0)
            reply = "easy"
        if reply == "hang up":
            self.connection.close()
            return
        status, data = reply if isinstance(reply, tuple) else (200, None)
        if data is None:
            content = reply if not reply.isalpha() or reply == "nonsense" else json.dumps({"label": reply})
            data = completion(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
