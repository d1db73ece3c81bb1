"""Stand-ins for uwsgi, daphne and Docker's DNS that say what reached them."""

import contextlib
import json
import re
import socket
import socketserver
import struct
import threading
import time


class Uwsgi(socketserver.StreamRequestHandler):
    """Answers with the variables of the uwsgi protocol as JSON; `?status=` and `?sleep=` say how."""

    def handle(self):
        head = self.rfile.read(4)
        if len(head) < 4:
            return
        packet = self.rfile.read(struct.unpack("<BHB", head)[1])
        variables, at = {}, 0
        while at < len(packet):
            pair = []
            for _ in range(2):
                size = struct.unpack_from("<H", packet, at)[0]
                pair.append(packet[at + 2 : at + 2 + size].decode("latin-1"))
                at += 2 + size
            variables[pair[0]] = pair[1]
        body = self.rfile.read(int(variables.get("CONTENT_LENGTH") or 0))
        asked = dict(re.findall(r"(\w+)=(\w+)", variables["QUERY_STRING"]))
        if "sleep" in asked:
            time.sleep(float(asked["sleep"]))
        content = json.dumps(
            {"variables": variables, "body": len(body), "address": self.server.server_address[0]}
        ).encode()
        policy = "Content-Security-Policy: default-src *\r\n" if "policy" in asked else ""
        self.wfile.write(
            f"HTTP/1.1 {asked.get('status', 200)} Stub\r\nContent-Type: application/json\r\n"
            f"X-Frame-Options: ALLOWALL\r\n{policy}"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )


class Daphne(socketserver.StreamRequestHandler):
    """Accepts every websocket handshake, then sends the request's head as JSON; likewise without one."""

    def handle(self):
        lines = []
        while line := self.rfile.readline().decode("latin-1").rstrip("\r\n"):
            lines.append(line)
        if not lines:
            return
        headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
        content = json.dumps({"request": lines[0], "headers": headers}).encode()
        if any(name.lower() == "upgrade" for name, _ in headers):
            self.wfile.write(
                b"HTTP/1.1 101 Stub\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + content + b"\n"
            )
        elif " /events/" in lines[0]:
            self.wfile.write(b"HTTP/1.1 500 Stub\r\nContent-Length: 0\r\n\r\n")
        else:
            self.wfile.write(
                b"HTTP/1.1 200 Stub\r\nContent-Type: application/json\r\nX-Frame-Options: ALLOWALL\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
            )


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def serving(handler, address: str = "127.0.0.1", port: int = 0):
    """The port of a stub that runs until the end of the block."""
    with Server((address, port), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def naming(address: str):
    """A DNS server that gives one address for every name: (its port, a function that changes the address)."""
    current = [address]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        stopped = threading.Event()

        def answer():
            while not stopped.is_set():
                try:
                    query, client = server.recvfrom(512)
                except TimeoutError:
                    continue
                record = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 600, 4) + socket.inet_aton(current[0])
                server.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + record, client)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server.getsockname()[1], lambda new: current.__setitem__(0, new)
        finally:
            stopped.set()
            thread.join()
