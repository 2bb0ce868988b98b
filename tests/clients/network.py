"""The far side of network.sh. `network.py registry PORT close|keep`: any manifest of any repository. `network.py dns ADDRESS ZONE`:
answers from the file ZONE, read anew for each question: `NAME ADDRESS…` a line, and `mode MODE` (good, late, servfail, nxdomain).
"""

import hashlib
import http.server
import ipaddress
import socket
import struct
import sys
import threading
import time

LATE_SECONDS = 4
RCODES = {"servfail": 2, "nxdomain": 3}
TYPES = {1: 4, 28: 6}  # A, AAAA: the IP version.


class Registry(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        repository = self.path.split("/manifests/")[0]
        body = b'{"schemaVersion":2,"config":{},"layers":[],"annotations":{"repository":"%s"}}' % repository.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        self.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
        self.send_header("Content-Length", str(len(body)))
        if not self.server.keep:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True


def registry(port, mode):
    server = Server(("::", int(port)), Registry)
    server.keep = mode == "keep"
    server.serve_forever()


def dns(address, zone):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, 53))
    while True:
        query, client = sock.recvfrom(4096)
        # Of its own: a late answer must not make the next one late, too.
        threading.Thread(target=answer, args=(sock, query, client, zone), daemon=True).start()


def answer(sock, query, client, zone):
    mode, names = read(zone)
    end = query.index(b"\0", 12) + 5
    name = labels(query)
    (kind,) = struct.unpack(">H", query[end - 4 : end - 2])
    if mode == "late":
        time.sleep(LATE_SECONDS)
    code = RCODES.get(mode, 0 if name in names else 3)
    found = [ipaddress.ip_address(text) for text in names.get(name, [])] if code == 0 else []
    found = [address for address in found if address.version == TYPES.get(kind)]
    head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(found), 0, 0)
    records = [struct.pack(">HHHIH", 0xC00C, kind, 1, 1, len(address.packed)) + address.packed for address in found]
    sock.sendto(head + query[12:end] + b"".join(records), client)


def labels(query):
    at, found = 12, []
    while query[at]:
        found.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(found).lower()


def read(zone):
    lines = [line.split() for line in open(zone, encoding="ascii")]
    return next(line[1] for line in lines if line[0] == "mode"), {line[0]: line[1:] for line in lines}


if __name__ == "__main__":
    {"registry": registry, "dns": dns}[sys.argv[1]](*sys.argv[2:])
