"""When certificates end, seen with nothing but Python's own `ssl`."""

from __future__ import annotations

import re
import socket
import ssl
from datetime import datetime, timezone
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL | re.ASCII)
_SEQUENCE, _VERSION, _UTC_TIME, _TIME = 0x30, 0xA0, 0x17, 0x18


def end_of_file(path: str) -> float:
    """Give the Unix time at which the first certificate of a PEM file ends.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if there is no certificate in it.
    """
    found = _PEM.search(Path(path).read_text(encoding="ascii", errors="replace"))
    if found is None:
        message = f"There is no certificate in {path}."
        raise ValueError(message)
    return end_of(ssl.PEM_cert_to_DER_cert(found.group()))


def end_of_server(
    host: str, port: int, timeout: float, pair: tuple[str, str] | None = None
) -> float:
    """Give the Unix time at which the certificate of a server ends.

    Nothing is believed here: the certificate is only looked at, also when it has ended. Whether it is
    good is what the client itself checks with each connection.

    Raises:
        OSError: if there is no connection, or no TLS.
        ValueError: if the certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(*pair)
    with (
        socket.create_connection((host, port), timeout) as connection,
        context.wrap_socket(connection, server_hostname=host) as shaken,
    ):
        certificate = shaken.getpeercert(binary_form=True)
    if not certificate:
        message = "The server showed no certificate."
        raise ValueError(message)
    return end_of(certificate)


def end_of(der: bytes) -> float:
    """Give the Unix time at which a certificate ends.

    Raises:
        ValueError: if this is not a certificate.
    """
    _, certificate, _ = _element(der)
    _, body, _ = _element(certificate)
    tag, _, rest = _element(body)
    if tag == _VERSION:
        _, _, rest = _element(rest)  # the serial number, which a version comes before
    for _ in range(2):  # algorithm, issuer
        _, _, rest = _element(rest)
    tag, validity, _ = _element(rest)
    _, _, rest = _element(validity)
    kind, text, _ = _element(rest)
    if tag != _SEQUENCE or kind not in (_UTC_TIME, _TIME):
        message = "This certificate does not say when it ends where it should."
        raise ValueError(message)
    told = text.decode("ascii")
    if kind == _UTC_TIME:  # two digits of the year: RFC 5280 says of which century
        told = f"{'19' if told[:2] >= '50' else '20'}{told}"
    return datetime.strptime(told, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Split DER into the tag and the content of its first element, and what follows."""
    if len(data) < 2:
        message = "This certificate ends too early."
        raise ValueError(message)
    length, start = data[1], 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    if len(data) < start + length:
        message = "This certificate ends too early."
        raise ValueError(message)
    return data[0], data[start : start + length], data[start + length :]
