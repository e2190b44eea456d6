"""A web server on this machine that serves one file and misbehaves as it is told."""

import http.server
import io
import re
import threading
import time
import zipfile

import numpy as np


def archive(size: int, seed: int = 0) -> bytes:
    """A .zip of about `size` bytes that cannot be packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("images/a.bin", np.random.default_rng(seed).bytes(size))
    return buffer.getvalue()


class Server:
    """Serves one file at every path; `plan` holds one behaviour for each request, the last one for all that follow."""

    def __init__(self) -> None:
        self.content = archive(2_500_001)
        self.etag = '"first"'
        self.plan: list[dict] = [{}]
        self.requests: list[dict] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                outer.answer(self, outer.plan.pop(0) if len(outer.plan) > 1 else outer.plan[0])

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, handler, how: dict) -> None:
        """Answers as `how` says: status, headers, change, no_range, cut, pause, offset, chunked, lengthless, body."""
        if "change" in how:
            self.content, self.etag = how["change"]
        if "status" in how:
            handler.send_response(how["status"])
            for name, value in how.get("headers", {}).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = how.get("body", self.content)
        begin = self._begin(handler.headers, how, len(body))
        if begin is None:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, body, begin, how)

    def _begin(self, headers, how: dict, size: int) -> int | None:
        wanted = re.fullmatch(r"bytes=(\d+)-", headers.get("Range") or "")
        same = headers.get("If-Range") in (None, self.etag) or how.get("ignore_if_range")
        if not wanted or how.get("no_range") or not same:
            return 0
        return int(wanted[1]) if int(wanted[1]) < size else None

    def _send(self, handler, body: bytes, begin: int, how: dict) -> None:
        handler.send_response(206 if begin else 200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if begin:
            shown = begin + how.get("offset", 0)
            handler.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        for name, value in how.get("headers", {}).items():
            handler.send_header(name, value)
        rest = body[begin:]
        if how.get("chunked"):
            handler.send_header("Transfer-Encoding", "chunked")
        elif not how.get("lengthless"):
            handler.send_header("Content-Length", str(len(rest)))
        handler.close_connection = True
        handler.end_headers()
        rest = rest[: how.get("cut", len(rest))]
        try:
            for at in range(0, len(rest), 65536):
                piece = rest[at : at + 65536]
                handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if how.get("chunked") else piece)
                time.sleep(how.get("pause", 0))
            if how.get("chunked") and "cut" not in how:
                handler.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass
