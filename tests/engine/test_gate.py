"""The gate before a SuperLink: the fleet's requests pass unchanged, everything else is refused before it gets there."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from edgeprune.engine.flower.gate import Gate, Limits
from edgeprune.engine.ports import free_port
from edgeprune.errors import EdgePruneError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ca.pem, server.pem and server.key for this machine."""
    where = tmp_path_factory.mktemp("certificates")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    make += ["-keyout", "server.key", "-out", "server.pem"]
    subprocess.run(make, cwd=where, check=True, capture_output=True)
    shutil.copy(where / "server.pem", where / "ca.pem")
    return where


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers with what it got, backwards."""

    protocol_version = "HTTP/1.1"
    seen: list[str] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])

    def log_message(self, *_):
        pass


@pytest.fixture
def upstream(folder):
    """The port of a TLS server on loopback."""
    Upstream.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def gate(folder, upstream):
    with Gate("127.0.0.1", free_port(), upstream, folder, Limits(connections=3, per_s=1, burst=20, body=1000)) as found:
        yield found


def ask(gate, folder, path="/v1/fleet/pull-messages", body=b"abc", method="POST", headers=None):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", gate._port, context=context, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_is_the_fleets_passes_unchanged(gate, folder):
    body = bytes(range(250)) * 4
    assert ask(gate, folder, body=body) == (200, body[::-1])
    assert ask(gate, folder, body=b"") == (200, b"")
    assert Upstream.seen == ["/v1/fleet/pull-messages"] * 2
    assert gate.counts["passed"] == 2


def test_a_connection_may_ask_again(gate, folder):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", gate._port, context=context, timeout=10)
    for body in (b"ab", b"cdef"):
        connection.request("POST", "/v1/fleet/x", body)
        assert connection.getresponse().read() == body[::-1]
    connection.close()


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ({"path": "/v1/control/start-run"}, 403),
        ({"path": "/v1/runtime/acquire-task"}, 403),
        ({"path": "/v1/fleet/../control/start-run"}, 403),
        ({"path": "/v1/fleet/%2e%2e/control/start-run"}, 403),
        ({"path": "//v1/fleet/x"}, 403),
        ({"path": "/v1/fleet//x"}, 403),
        ({"path": "https://127.0.0.1/v1/fleet/x"}, 403),
        ({"method": "GET", "body": None}, 405),
        ({"body": bytes(1001)}, 413),
        ({"headers": {"Transfer-Encoding": "chunked"}, "body": iter([b"abc"])}, 411),
    ],
)
def test_anything_else_is_refused_and_does_not_arrive(gate, folder, what, status):
    assert ask(gate, folder, **what)[0] == status
    assert Upstream.seen == []
    assert gate.counts[f"refused {status}"] == 1


def raw(gate, folder, data):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    with (
        socket.create_connection(("127.0.0.1", gate._port), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(data)
        return secure.recv(1000)


@pytest.mark.parametrize(
    "lengths",
    [b"Content-Length: 3\r\nContent-Length: 30\r\n", b"Content-Length: -3\r\n", b"Content-Length: 0x3\r\n", b""],
    ids=["two", "negative", "hexadecimal", "none"],
)
def test_a_length_that_two_could_read_differently_is_refused(gate, folder, lengths):
    answer = raw(gate, folder, b"POST /v1/fleet/x HTTP/1.1\r\nHost: a\r\n" + lengths + b"\r\nabc")
    assert answer.startswith(b"HTTP/1.1 411")
    assert Upstream.seen == []


def test_who_asks_too_often_is_refused(gate, folder):
    found = [ask(gate, folder)[0] for _ in range(24)]
    assert found[:20] == [200] * 20 and 429 in found[20:]


def test_who_has_too_many_connections_is_refused(gate, folder):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    held = [socket.create_connection(("127.0.0.1", gate._port), 10) for _ in range(3)]
    secure = [context.wrap_socket(one, server_hostname="127.0.0.1") for one in held]
    try:
        for one in secure:  # each has been let in
            one.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
            assert one.recv(1000).startswith(b"HTTP/1.1 200")
        assert ask(gate, folder)[0] == 503
    finally:
        for one in secure:
            one.close()


def test_without_tls_nothing_is_heard(gate):
    with socket.create_connection(("127.0.0.1", gate._port), 10) as plain:
        plain.sendall(b"POST /v1/fleet/x HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        try:
            answer = plain.recv(100)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    assert Upstream.seen == []


def test_a_port_that_is_taken_is_a_sentence(folder, upstream):
    with pytest.raises(EdgePruneError, match="cannot listen on 127.0.0.1"):
        Gate("127.0.0.1", upstream, upstream, folder).__enter__()
