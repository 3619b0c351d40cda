"""Download each URL once into a cache, and refuse URLs that lead into the run's own network.

The run connects to the same address that it checked, since the host name could resolve to another address the second
time. Proxies from the environment are not used, because a proxy would resolve the host name again.
"""

import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
import uuid
from contextlib import closing, suppress
from urllib.parse import quote, urljoin, urlsplit

from reading.options import MediaOptions
from reading.references import describe, what_it_is

CONNECT_SECONDS = 10
READ_SECONDS = 20  # longest wait for more data
TOTAL_SECONDS = 600  # for one download, including redirects and retries
TRIES = 3
BACKOFF_SECONDS = 1.0  # before the second try; twice as long before the third
REDIRECTS = 5
# Refused, although `ipaddress` calls some of these global: site-local addresses, and addresses that embed an IPv4
# address, namely mapped (RFC 4291), NAT64 (RFC 6052), Teredo (RFC 4380) and 6to4 (RFC 3056).
CLOSED = [ipaddress.ip_network(n) for n in ("fec0::/10", "::ffff:0:0/96", "64:ff9b::/96", "2001::/32", "2002::/16")]


class _Temporary(Exception):
    """An error that may not occur again at the next try."""


def fetch(url: str, options: MediaOptions) -> str:
    """Download an http(s) URL if it is not cached. Return `<cache_folder>/media/<SHA-256 of the URL>`.

    Several processes may fetch a URL at the same time, since each writes a separate file and then renames this file.

    Raises:
        ValueError: The URL is refused, cannot be reached, or does not return a complete file within the limits. The
            message contains the URL without credentials and query.
    """
    folder = os.path.join(os.path.expanduser(options.cache_folder), "media")
    path = os.path.join(folder, hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest())
    if os.path.exists(path):
        return path
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        for attempt in range(TRIES):
            try:
                return _into_cache(url, path, deadline, options)
            except (_Temporary, OSError, http.client.HTTPException) as error:
                if attempt == TRIES - 1:
                    raise ValueError(f"{error or type(error).__name__} (tried {TRIES} times)") from error
                time.sleep(BACKOFF_SECONDS * 2**attempt)
    except ValueError as error:
        raise ValueError(f"URL {describe(url)} cannot be fetched: {error}") from error


def _into_cache(url: str, path: str, deadline: float, options: MediaOptions) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "xb") as file:  # unlike `tempfile`, `open` follows the umask, so a cache can be shared
            for _ in range(REDIRECTS + 1):
                location = _request(url, file, deadline, options)
                if location is None:
                    break
                url = urljoin(url, location)
            else:
                raise ValueError(f"it redirects more than {REDIRECTS} times")
        if what := what_it_is(part):  # a bad file in the cache would never be fetched again
            raise ValueError(f"the content is {what}")
        os.replace(part, path)
        return path
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)


def _request(url: str, file, deadline: float, options: MediaOptions) -> str | None:
    """Send one request. Write the body to `file`, or return the address of a redirect."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{describe(url)} is refused: only http:// and https:// URLs are fetched")
    if parts.username is not None:
        raise ValueError("it contains a user name, which is never sent; remove the user name")
    try:
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    except UnicodeError as error:
        raise ValueError(f"its host name is malformed: {error}") from error
    is_encrypted = parts.scheme == "https"
    kind = http.client.HTTPSConnection if is_encrypted else http.client.HTTPConnection
    connection = kind(host, parts.port or kind.default_port)
    safe = "/%:=&?~+!$,;'@()*[]"
    target = quote(parts.path or "/", safe) + (f"?{quote(parts.query, safe)}" if parts.query else "")
    sock = connection.sock = _connect(host, connection.port, is_encrypted, options)
    timer = threading.Timer(max(0, deadline - time.monotonic()), _end, (sock,))
    timer.daemon = True
    timer.start()
    try:
        with closing(connection):
            if is_encrypted:
                sock.do_handshake()
            # Compression is not accepted, since a small body could decompress to an endless one.
            connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "finelmm"})
            with connection.getresponse() as response:
                location = _read_response(response, file, options)
    except (OSError, http.client.HTTPException, _Temporary):
        if time.monotonic() < deadline:
            raise
    finally:
        timer.cancel()
    if time.monotonic() >= deadline:
        raise ValueError(f"the download takes longer than {TOTAL_SECONDS} seconds")
    return location


def _read_response(response: http.client.HTTPResponse, file, options: MediaOptions) -> str | None:
    status = f"the server answered with status {response.status}"
    if response.status in (301, 302, 303, 307, 308):
        if not response.headers.get("Location"):
            raise ValueError(f"{status} without an address to redirect to")
        return response.headers["Location"]
    if response.status >= 500 or response.status == 429:
        raise _Temporary(status)
    if response.status != 200:
        raise ValueError(status)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ValueError("the server sends compressed content, although the request forbids it")
    limit, size, promised = options.media_megabytes_limit * 1_000_000, 0, response.length
    while size <= limit and (promised or 0) <= limit and (piece := response.read1(1 << 16)):
        size += len(piece)
        file.write(piece)
    if max(size, promised or 0) > limit:
        raise ValueError("the file is larger than --media_megabytes_limit")
    if promised is not None and size < promised:
        raise _Temporary(f"only {size:,} of its {promised:,} bytes arrived")


def _connect(host: str, port: int, is_encrypted: bool, options: MediaOptions) -> socket.socket:
    """Connect to one of the host's checked addresses. The caller must do the TLS handshake."""
    addresses = _public_addresses(host, port, options)
    for number, address in enumerate(addresses, 1):
        try:
            sock = socket.create_connection((address, port), CONNECT_SECONDS)
            break
        except OSError:
            if number == len(addresses):
                raise
    sock.settimeout(READ_SECONDS)
    if not is_encrypted:
        return sock
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)


def _end(sock: socket.socket) -> None:
    """Shut down a socket from another thread, which ends all waiting for data of this socket."""
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _public_addresses(host: str, port: int, options: MediaOptions) -> list[str]:
    """Return up to three addresses of a host. Raise a ValueError if any address is neither public nor allowed."""
    allowed = [ipaddress.ip_network(network) for network in options.allowed_networks]
    addresses = list(dict.fromkeys(i[4][0] for i in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for text in addresses:
        address = ipaddress.ip_address(text)
        public = address.is_global and not address.is_multicast and not address.is_reserved
        closed = not public or any(address in network for network in CLOSED)
        if closed and not any(address in network for network in allowed):
            raise ValueError(f"the host {host} is refused: {text} is not a public address")
    return addresses[:3]
