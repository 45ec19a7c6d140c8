"""A client of NBD for what fio can't measure: one request at a time, each with its time."""

import os
import socket
import struct
import time
import urllib.parse

from .common import Failed

READ, WRITE = 0, 1
BLOCK = 4096


class Client:
    """Connected to the export that a URI names. Raises OSError when the connection is lost."""

    def __init__(self, uri, timeout_s=60):
        path = urllib.parse.parse_qs(urllib.parse.urlsplit(uri).query)["socket"][0]
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(timeout_s)
            self.socket.connect(path)
            self._negotiate()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _negotiate(self):
        self._receive(16)  # NBDMAGIC, IHAVEOPT
        (flags,) = struct.unpack(">H", self._receive(2))
        no_zeroes = flags & 2
        # NBD_OPT_EXPORT_NAME with the empty name: the answer is the size at once.
        self.socket.sendall(struct.pack(">I", 1 | no_zeroes) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        self.size_bytes, _ = struct.unpack(">QH", self._receive(10))
        if not no_zeroes:
            self._receive(124)

    def _receive(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionResetError("the server closed the connection")
            data += more
        return data

    def _request(self, kind, offset, length, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length) + data)
        _, error, _ = struct.unpack(">IIQ", self._receive(16))
        if error:
            raise Failed(f"the volume answered a request with error {error}")

    def read(self, offset, length=BLOCK):
        self._request(READ, offset, length)
        return self._receive(length)

    def write(self, offset, data):
        self._request(WRITE, offset, len(data), data)


def write_latencies(uri, seconds):
    """Writes one random block after the other; when each began and how long it took, in s."""
    latencies = []
    with Client(uri) as client:
        blocks = client.size_bytes // BLOCK
        data, end = os.urandom(BLOCK), time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            client.write(int.from_bytes(os.urandom(4), "little") % blocks * BLOCK, data)
            latencies.append((began, time.monotonic() - began))
    return latencies
