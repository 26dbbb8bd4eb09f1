"""Providers' own hosts, as this machine sees them through a proxy: with their names, and a certificate for each."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOSTS = (
    "api.openai.com",
    "eu.api.openai.com",
    "api.anthropic.com",
    "prod.openai.azure.com",
    "generativelanguage.googleapis.com",
)


def certify(folder: Path) -> Path:
    """A file with a certificate for the hosts, which signs itself, and its private key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hosts")]), datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem, clear = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "hosts.pem"
    file.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, clear))
    return file


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except (OSError, ssl.SSLError):
        pass  # one side has gone
    target.close()


@contextmanager
def standing_in(port: int, folder: Path, environment: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The hosts, answered for by the server on `port`. Yields the names that clients connected to, as they come."""
    file, connected = certify(folder), list[str]()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition(":")[0]
        connected.append(host)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        await writer.start_tls(context)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(_copy(reader, to_server), _copy(from_server, writer))
        finally:  # also where the proxy ends before its clients do
            writer.transport.abort()
            to_server.transport.abort()

    ports, done, loop = Queue[int](), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as proxy:
            ports.put(proxy.sockets[0].getsockname()[1])
            await done.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    environment.setenv("HTTPS_PROXY", f"http://127.0.0.1:{ports.get(timeout=10)}")
    environment.setenv("SSL_CERT_FILE", str(file))
    environment.delenv("NO_PROXY", raising=False)
    environment.delenv("no_proxy", raising=False)
    try:
        yield connected
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
