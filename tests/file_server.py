"""Archives and a server on this machine for the tests of downloads."""

import io
import re
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def packed(file, content):
    """An archive of names and contents in the form that the file's name says; what has no content is a link."""
    if file.name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as out:
            for name, data in content.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = (0o644 if data is not None else stat.S_IFLNK | 0o777) << 16
                out.writestr(info, "/etc/passwd" if data is None else data, zipfile.ZIP_DEFLATED)
        return file
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as out:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            info.type, info.linkname = (tarfile.SYMTYPE, "/etc/passwd") if data is None else (tarfile.REGTYPE, "")
            out.addfile(info, io.BytesIO(data or b""))
    return file


class Server:
    """Serves one file from 127.0.0.1; can resume, break off, refuse and change its content between requests."""

    def __init__(self):
        self.content, self.etag, self.ranges, self.break_after, self.statuses = b"", '"1"', True, [], []
        self.requests = []
        handler = type("Handler", (BaseHTTPRequestHandler,), dict(protocol_version="HTTP/1.1"))
        handler.do_GET, handler.log_message = lambda request: self.answer(request), lambda *_: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/archive.zip"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def answer(self, request):
        self.requests.append(request.headers.get("Range"))
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            request.send_error(status)
            return
        asked, size = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", "")), len(self.content)
        resumed = asked and self.ranges and request.headers.get("If-Range") == self.etag
        first = int(asked[1]) if resumed else 0
        past_the_end = resumed and first >= size
        request.send_response(416 if past_the_end else 206 if resumed else 200)
        if resumed:
            place = "*" if past_the_end else f"{first}-{size - 1}"
            request.send_header("Content-Range", f"bytes {place}/{size}")
        if self.etag and not past_the_end:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(max(size - first, 0)))
        request.end_headers()
        limit = self.break_after.pop(0) if self.break_after and not past_the_end else None
        request.wfile.write(self.content[first:][:limit])
        request.close_connection = limit is not None

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
