"""The bytes between a client and a server, recorded by a relay."""

import socket
import threading
import time

import grpc
import pytest
from conftest import SIGINT, hashed, secrets
from test_contract import HARD

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, RST_STREAM, CANCEL = 0, 3, 8


class Proxy:
    """Relays one connection in both directions, and keeps its bytes."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._upstream = socket.create_connection((host, int(port)))
        self.from_client, self.from_server = bytearray(), bytearray()
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        client, _ = self._listener.accept()
        pump = threading.Thread(
            target=self._pump, args=(self._upstream, client, self.from_server), daemon=True
        )
        pump.start()
        self._pump(client, self._upstream, self.from_client)
        self.closed.set()

    @staticmethod
    def _pump(source, sink, record):
        try:
            while chunk := source.recv(65536):
                record += chunk
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def end(self):
        self._listener.close()
        self._upstream.close()


def frames(stream):
    """Yields (type, stream, payload) of each whole HTTP/2 frame (RFC 9113, section 4.1)."""
    stream = bytes(stream).removeprefix(PREFACE)
    while len(stream) >= 9:
        length = int.from_bytes(stream[:3], "big")
        yield stream[3], int.from_bytes(stream[5:9], "big"), stream[9 : 9 + length]
        stream = stream[9 + length :]


@pytest.fixture
def proxy():
    proxies = []

    def start(server):
        proxies.append(Proxy(server.address))
        return proxies[-1]

    yield start
    for started in proxies:
        started.end()


@pytest.mark.parametrize("arguments", [[], ["--show-inferior", "5"]])
def test_ctrl_c_cancels_the_call_and_does_not_just_close_the_connection(
    find, serve, proxy, arguments
):
    server = serve()
    between = proxy(server)
    process = find("hashfinder", "--server", between.address, *arguments)
    server.wait_until_busy()
    process.send(SIGINT)
    assert process.wait() == 130
    assert between.closed.wait(30)
    resets = [payload for kind, _, payload in frames(between.from_client) if kind == RST_STREAM]
    assert [int.from_bytes(payload, "big") for payload in resets] == [CANCEL]


def test_candidates_that_are_ready_share_frames(serve, proxy, stubs):
    between = proxy(serve())
    with grpc.insecure_channel(between.address) as channel:
        # Every secret is a candidate.
        request = stubs.Request(desired_name=HARD, interesting_hamming_distance=21)
        stream = stubs.Stub(channel).FindRange(request)
        for secret, _ in zip(secrets(), range(5000)):
            assert next(stream).hashed_name == hashed(secret)
        stream.cancel()
    sizes = [len(payload) for kind, _, payload in frames(between.from_server) if kind == DATA]
    # Five thousand messages of about 50 bytes. Small frames cost the reader more than large ones,
    # so the server sends almost none.
    small = [size for size in sizes if size < 256]
    assert len(small) < len(sizes) / 4 + 2 and len(sizes) < 1000, (len(small), len(sizes))


def test_the_rate_of_small_frames_is_limited(serve, proxy, stubs):
    between = proxy(serve())
    began = time.monotonic()
    with grpc.insecure_channel(between.address) as channel:
        # A few thousand candidates a second, each ready at another moment.
        request = stubs.Request(desired_name="hashfinder", interesting_hamming_distance=6)
        stream = stubs.Stub(channel).FindRange(request)
        received = sum(1 for _, _ in zip(stream, range(2000)))
        stream.cancel()
    took = time.monotonic() - began
    assert received == 2000
    sizes = [len(payload) for kind, _, payload in frames(between.from_server) if kind == DATA]
    # The server sends at most one small frame in 10 ms.
    small = [size for size in sizes if size < 256]
    assert len(small) <= took / 0.01 + 2, (len(small), took)
