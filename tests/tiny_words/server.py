"""A local server that speaks OpenAI's chat protocol, well or badly."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def event(values):
    return f"data: {json.dumps(values)}\n\n".encode()


def piece(text, finish=None):
    """One event of a stream."""
    return event({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


DONE = b"data: [DONE]\n\n"


class Server:
    """`.url`, and `.seen`: (path, headers, values) of each request.

    answer: a function of (handler, values, number of this chat request) that writes the answer.
    """

    def __init__(self, answer, models=("tiny",)):
        self.seen, self.release = [], threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                server.seen.append((self.path, dict(self.headers), None))
                listed = json.dumps({"data": [{"id": name} for name in models]})
                self.reply(200, listed.encode())

            def do_POST(self):
                values = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.seen.append((self.path, dict(self.headers), values))
                chats = sum(1 for _, _, given in server.seen if given is not None)
                with contextlib.suppress(OSError):  # who asked may be gone
                    answer(self, values, chats)

            def reply(self, status, body, kind="application/json"):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

            def stream(self, *events):
                self.reply(200, b"", "text/event-stream")
                for one in events:
                    self.wfile.write(one)
                    self.wfile.flush()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error):
        self.release.set()  # whoever waits in an answer
        self._server.shutdown()
        self._server.server_close()
