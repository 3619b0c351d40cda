"""URLs, against a server of the test's own on 127.0.0.1, which has to be allowed by name."""

import gzip
import hashlib
import io
import os
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from reading import fetch, images, media
from reading.options import MediaOptions


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(file, "PNG")
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """`server.answers[path]` is (status, headers, pieces of the body), or a list of such, one for each request."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        answer = self.server.answers[self.path]
        status, headers, body = answer.pop(0) if isinstance(answer, list) else answer
        if status is None:
            return self.connection.close()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in body:
            try:
                self.wfile.write(piece)
                self.wfile.flush()
            except OSError:  # the client has had enough
                return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.seen = {}, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def options(tmp_path):
    def make(**flags) -> MediaOptions:
        flags = {"allow_urls": True, "allowed_networks": ("127.0.0.1/32",)} | flags
        return MediaOptions(cache_folder=str(tmp_path / "cache"), **flags)

    return make


def answer(body: bytes = b"content", status: int = 200, **headers):
    return status, {"Content-Length": str(len(body))} | headers, [body]


def files(options: MediaOptions) -> list[str]:
    return os.listdir(os.path.join(options.cache_folder, "media"))


def test_content_is_fetched_once_and_kept_under_the_hash_of_its_url(server, options):
    server.answers["/a/../b%20c.png?q=1&d=%C3%A9"] = answer()
    url = server.url + "/a/../b%20c.png?q=1&d=%C3%A9"
    path = fetch.fetch(url, options())
    assert open(path, "rb").read() == b"content"
    assert files(options()) == [hashlib.sha256(url.encode()).hexdigest()]
    assert fetch.fetch(url, options()) == path and len(server.seen) == 1
    headers = server.seen[0][1]
    assert headers["Host"] == f"127.0.0.1:{server.server_port}" and headers["Accept-Encoding"] == "identity"


def test_an_image_and_a_frame_by_url(server, options):
    server.answers["/a"] = answer(png())
    url = server.url + "/a"
    assert images.open_image(url, options()).size == (6, 4)
    assert media.read_header("image", url, options()) == (4, 6)
    assert media.read_header("video", [url], options(num_frames=2)) == (2, 4, 6)
    server.answers["/b"] = answer(b"no image")
    with pytest.raises(ValueError, match="image http://127.0.0.1:[0-9]*/b cannot be decoded"):
        images.open_image(server.url + "/b", options())


def test_several_at_once_get_whole_files(server, options):
    body = os.urandom(300_000)
    server.answers["/a"] = (200, {}, [body[:100_000], body[100_000:]])
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch.fetch(server.url + "/a", options()), range(16)))
    assert len(set(paths)) == 1 and open(paths[0], "rb").read() == body
    assert len(files(options())) == 1


def test_redirects_are_followed(server, options):
    server.answers["/a"] = (302, {"Location": "/b?c=d", "Content-Length": "0"}, [])
    server.answers["/b?c=d"] = (308, {"Location": server.url + "/e", "Content-Length": "0"}, [])
    server.answers["/e"] = answer()
    assert open(fetch.fetch(server.url + "/a", options()), "rb").read() == b"content"


def test_chunked_bodies_are_joined(server, options):
    server.answers["/a"] = (200, {"Transfer-Encoding": "chunked"}, [b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"])
    assert open(fetch.fetch(server.url + "/a", options()), "rb").read() == b"abcde"


@pytest.mark.parametrize("first", [answer(status=503), answer(status=429), (None, {}, [])])
def test_what_may_be_gone_at_the_next_try_is_tried_again(server, options, first):
    server.answers["/a"] = [first, first, answer()]
    assert open(fetch.fetch(server.url + "/a", options()), "rb").read() == b"content"


def endless():
    while True:
        yield b"x" * 100_000


def slow():
    for _ in range(100):
        time.sleep(0.05)
        yield b"x"


ZEROS = gzip.compress(bytes(10_000_000))
FAULTS = {
    "missing": (answer(status=404), "the server answered with status 404"),
    "error page": (answer(b"\n<!DOCTYPE html><p>Sign in"), "the content is an HTML page"),
    "nothing": (answer(b""), "the content is empty"),
    "partial": (answer(status=206), "the server answered with status 206"),
    "down": (answer(status=500), "the server answered with status 500 .tried 3 times"),
    "too large": (answer(bytes(1_000_001)), "larger than --media_megabytes_limit"),
    "promised too large": ((200, {"Content-Length": "9" * 15}, [b"x"]), "larger than --media_megabytes_limit"),
    "endless": ((200, {}, endless()), "larger than --media_megabytes_limit"),
    "cut": ((200, {"Content-Length": "10"}, [b"x"]), "only 1 of its 10 bytes arrived .tried 3 times"),
    "cut chunk": ((200, {"Transfer-Encoding": "chunked"}, [b"ff\r\nabc"]), "IncompleteRead"),
    "compressed": (answer(ZEROS, **{"Content-Encoding": "gzip"}), "sends compressed content"),
    "loop": ((302, {"Location": "/a", "Content-Length": "0"}, []), "redirects more than 5 times"),
    "nowhere": (answer(status=302), "without an address to redirect to"),
    "file": (answer(status=302, Location="file:///etc/passwd"), "only http:// and https:// URLs are fetched"),
    "inside": (answer(status=302, Location="http://169.254.169.254/"), "169.254.169.254 is not a public address"),
    "other loopback": (answer(status=302, Location="http://127.0.0.2/"), "127.0.0.2 is not a public address"),
    "many headers": ((200, {f"x{i}": "y" for i in range(200)}, [b"x"]), "more than 100 headers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_answer_is_named_and_nothing_is_kept(server, options, fault):
    server.answers["/a"], message = FAULTS[fault]
    url = f"{server.url}/a"
    with pytest.raises(ValueError, match=f"URL {url} cannot be fetched: .*{message}"):
        fetch.fetch(url, options(media_megabytes_limit=1))
    assert files(options()) == []


@pytest.mark.parametrize(
    "limit, message", [("READ_SECONDS", "timed out"), ("TOTAL_SECONDS", "longer than 0.2 seconds")]
)
def test_a_server_that_dawdles_is_left(server, options, monkeypatch, limit, message):
    """Silent for longer than a read may take; or a byte now and then, for longer than the whole may take."""
    monkeypatch.setattr(fetch, limit, 0.2 if limit == "TOTAL_SECONDS" else 0.02)
    server.answers["/a"] = [(200, {"Content-Length": "100"}, slow()) for _ in range(3)]
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        fetch.fetch(server.url + "/a", options())
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("first", [(302, {"Location": "/a", "Content-Length": "0"}), (503, {"Content-Length": "100"})])
def test_redirects_and_tries_share_one_time(server, options, monkeypatch, first):
    """Each answer is within the time, all of them together are not."""
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.3)
    status, headers = first

    def late(answer):
        time.sleep(0.2)
        return answer

    class Answers(list):
        def pop(self, _):
            return late((status, headers, []))

    server.answers["/a"] = Answers()
    with pytest.raises(ValueError, match="the download takes longer than 0.3 seconds"):
        fetch.fetch(server.url + "/a", options())
    assert len(server.seen) == 2


def test_a_shared_cache_is_readable_as_the_umask_says(server, options):
    server.answers["/a"] = answer()
    before = os.umask(0o027)
    try:
        path = fetch.fetch(server.url + "/a", options())
    finally:
        os.umask(before)
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_headers_that_never_end_are_left(options, monkeypatch):
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip():
            connection, _ = listener.accept()
            try:
                for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100:
                    connection.send(bytes([byte]))
                    time.sleep(0.05)
            except OSError:  # the client has had enough
                connection.close()

        threading.Thread(target=drip, daemon=True).start()
        with pytest.raises(ValueError, match="longer than 0.3 seconds"):
            fetch.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", options())


def test_a_closed_port_is_named_after_three_tries(options, monkeypatch):
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ValueError, match="Connection refused .tried 3 times"):
        fetch.fetch(f"http://127.0.0.1:{port}/", options())


@pytest.fixture
def encrypted(server, tmp_path, monkeypatch):
    """The server speaks TLS with a certificate for localhost, which nobody trusts yet; returns its path."""
    certificate, key = str(tmp_path / "certificate.pem"), str(tmp_path / "key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    request += ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*request, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answers["/a"] = answer()
    return certificate


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, trusted, message",
    [
        ("localhost", True, None),
        ("localhost", False, "certificate verify failed"),
        ("127.0.0.1", True, "certificate is not valid for '127.0.0.1'"),
    ],
)
def test_a_certificate_must_be_trusted_and_of_the_host(server, encrypted, options, monkeypatch, host, trusted, message):
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", encrypted)
    url = f"https://{host}:{server.server_port}/a"
    if message is None:
        assert open(fetch.fetch(url, options(allowed_networks=("127.0.0.1/32", "::1/128"))), "rb").read() == b"content"
    else:
        with pytest.raises(ValueError, match=message):
            fetch.fetch(url, options(allowed_networks=("127.0.0.1/32", "::1/128")))


PRIVATE = """
http://127.0.0.1/ http://127.1/ http://2130706433/ http://0x7f000001/ http://0177.0.0.1/ http://localhost/
http://0.0.0.0/ http://0/ http://10.1.2.3/ http://172.16.0.1/ http://192.168.1.1/ http://100.64.0.1/
http://169.254.169.254/latest/meta-data http://224.0.0.1/ http://240.0.0.1/ http://255.255.255.255/
http://[::1]/ http://[::]/ http://[fe80::1]/ http://[fc00::1]/ http://[fec0::1]/ http://[ff02::1]/
http://[::ffff:127.0.0.1]/ http://[::ffff:a00:1]/ http://[::127.0.0.1]/ http://[64:ff9b::10.0.0.1]/
http://[2002:7f00:1::]/ http://[2001:0:7f00:1::]/ https://127.0.0.1/ http://%31%32%37.0.0.1/
""".split()
NOT_FETCHED = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/a",
    "gopher://127.0.0.1/",
    "http://",
    "http:///a",
    "//127.0.0.1/a",
]


@pytest.mark.parametrize("url", PRIVATE + NOT_FETCHED + ["http://[::1", "http://127.0.0.1:99999/", "http://a..b/"])
def test_addresses_of_this_machine_and_its_network_are_refused(url, options, monkeypatch):
    def connect(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(fetch, "TRIES", 1)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ValueError, match="cannot be fetched: ") as error:
        fetch.fetch(url, options(allowed_networks=()))
    if url in PRIVATE and "%" not in url:
        assert "is not a public address" in str(error.value)


def test_the_address_that_was_checked_is_the_one_connected_to(server, options, monkeypatch):
    """A name that turns to another address after the check, as in DNS rebinding, is not asked again."""
    answers = iter(["127.0.0.1", "127.0.0.9"])
    resolve = socket.getaddrinfo

    def rebinding(host, port, *rest, **named):
        return resolve(next(answers) if host == "turning.example" else host, port, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    server.answers["/a"] = answer()
    assert fetch.fetch(f"http://turning.example:{server.server_port}/a", options())
    assert server.seen[0][1]["Host"] == f"turning.example:{server.server_port}"


def test_one_private_address_among_public_ones_is_enough_to_refuse(options, monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    with pytest.raises(ValueError, match="the host x.example is refused: 10.0.0.1 is not a public address"):
        fetch.fetch("http://x.example/", options())


def test_credentials_are_neither_sent_nor_shown(server, options):
    url = server.url.replace("//", "//me:secret@") + "/a?token=secret"
    with pytest.raises(ValueError, match="it contains a user name") as error:
        fetch.fetch(url, options())
    assert "secret" not in str(error.value) and server.seen == []
