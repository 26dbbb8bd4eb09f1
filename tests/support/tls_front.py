"""A server on this machine behind TLS, whose certificate a root of its own signed, as a company's proxy has it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_PEM = serialization.Encoding.PEM


class Front(NamedTuple):
    """`https://127.0.0.1:PORT`, and the file of the root that its certificate rests on."""

    url: str
    root: Path


@contextmanager
def tls_front(port: int, folder: Path) -> Iterator[Front]:
    """TLS before whatever listens on `port`; its files are in `folder`."""
    chain, root = _certified(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(chain)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def serve() -> None:
            with suppress(OSError):  # it is closed
                while True:
                    threading.Thread(target=_answer, args=(listener.accept()[0], context, port), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield Front(f"https://127.0.0.1:{listener.getsockname()[1]}", root)


def _answer(raw: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Hand one request to `port`, and its answer back, until the server closes."""
    with (
        suppress(OSError),
        context.wrap_socket(raw, server_side=True) as client,
        socket.create_connection(("127.0.0.1", port)) as server,
    ):
        threading.Thread(target=_copy, args=(client, server), daemon=True).start()
        _copy(server, client)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _certified(folder: Path) -> tuple[Path, Path]:
    """A file with a certificate for 127.0.0.1 and its key, and the file of the root that signed it."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority, us = _named("A company's root"), _named("127.0.0.1")
    itself = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    root = (
        _builder(authority, authority, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(root_key, hashes.SHA256())
    )
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    leaf = _builder(us, authority, key).add_extension(hosts, critical=False).add_extension(itself, critical=False)
    chain, trusted = folder / "server.pem", folder / "root.pem"
    private = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain.write_bytes(leaf.sign(root_key, hashes.SHA256()).public_bytes(_PEM) + private)
    trusted.write_bytes(root.public_bytes(_PEM))
    return chain, trusted


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    return builder.add_extension(identifier, critical=False)
