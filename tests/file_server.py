"""A server on this machine for the tests of downloads."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves one file from 127.0.0.1; can resume, break off, refuse and change its content between requests."""

    def __init__(self):
        self.content, self.etag, self.ranges, self.break_after, self.statuses = b"", '"1"', True, [], []
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.zip"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request):
        self.requests.append(request.headers.get("Range"))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
            return
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and self.ranges and request.headers.get("If-Range") == self.etag:
            first = int(asked[1])
            if first >= len(self.content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(self.content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        else:
            request.send_response(200)
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(self.content) - first))
        request.end_headers()
        limit = self.break_after.pop(0) if self.break_after else None
        request.wfile.write(self.content[first:] if limit is None else self.content[first : first + limit])
        if limit is not None:
            request.close_connection = True

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
