#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A web server for files as the field has them: TLS, Basic credentials, ranges, redirects, and connections that break.

usage: fileserver.py HOST:PORT DIRECTORY [--cert FILE --key FILE] [--login USER:PASSWORD] [--break-after BYTES]
       [--rate BYTES]

`/moved/X` redirects to `/X`, `/loop` to itself. With --break-after every connection ends after so many bytes of a body.
With --rate a connection gets no more bytes in a second. Prints one line per request: status, path, Range, and how many bytes
of the body are sent.
"""

import argparse
import base64
import http.server
import os
import re
import ssl
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("listen")
parser.add_argument("directory")
parser.add_argument("--cert")
parser.add_argument("--key")
parser.add_argument("--login")
parser.add_argument("--break-after", type=int, default=0)
parser.add_argument("--rate", type=int, default=0)
args = parser.parse_args()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, headers=(), count=0):
        # in one piece: connections are answered side by side
        line = f"{status} {self.path} {self.headers.get('range', '-')} {count}\n"
        os.write(sys.stdout.fileno(), line.encode())
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)

    def empty(self, status, headers=()):
        self.answer(status, [*headers, ("content-length", "0")])
        self.end_headers()

    def do_GET(self):
        wanted = "Basic " + base64.b64encode((args.login or "").encode()).decode()
        if args.login and self.headers.get("authorization") != wanted:
            return self.empty(401, [("www-authenticate", 'Basic realm="files"')])
        if self.path.startswith("/moved/"):
            return self.empty(302, [("location", self.path.removeprefix("/moved"))])
        if self.path == "/loop":
            return self.empty(302, [("location", "/loop")])
        path = os.path.join(args.directory, os.path.basename(self.path))
        if not os.path.isfile(path):
            return self.empty(404)
        size = os.path.getsize(path)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        first = int(match[1]) if match else 0
        end = min(int(match[2]) + 1, size) if match and match[2] else size
        if match and first >= size:
            return self.empty(416, [("content-range", f"bytes */{size}")])
        if match:
            self.answer(206, [("content-range", f"bytes {first}-{end - 1}/{size}")], end - first)
        else:
            self.answer(200, count=end - first)
        self.send_header("content-length", str(end - first))
        self.end_headers()
        left = min(end - first, args.break_after or size)
        with open(path, "rb") as file:
            file.seek(first)
            while left > 0:
                chunk = file.read(min(left, 65536))
                self.wfile.write(chunk)
                left -= len(chunk)
                if args.rate:
                    time.sleep(len(chunk) / args.rate)
        if args.break_after and end - first > args.break_after:
            self.close_connection = True

    def log_message(self, *_):
        pass


host, port = args.listen.rsplit(":", 1)
server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
if args.cert:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.cert, args.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
