"""The URL of a process group, `etcd-v3://[user@]host[:port][,host[:port]...]/job[?option=value&...]`."""

from __future__ import annotations

import os
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from torchetcd._defaults import GROUP_PREFIX
from torchetcd._rendezvous.options import Options, parse_options
from torchetcd_entry import SCHEME

#: Those of the handler's parameters that mean something here. What is secret stays out of URLs.
_OPTIONS = (
    "protocol",
    "ca_cert",
    "cacert",
    "ssl_cert",
    "cert",
    "ssl_cert_key",
    "key",
    "password_file",
    "etcd_prefix",
    "keep_alive_ttl",
    "read_timeout",
    "run_ttl",
)
_SECRETS = ("user", "username", "password", "passwd", "token")


class GroupUrl(NamedTuple):
    """What a URL says, checked; `rank` of `None` leaves it to the order in which processes come."""

    endpoints: str
    job: str
    rank: int | None
    world_size: int
    timeout_s: float | None
    options: Options

    def of_all_ranks(self) -> GroupUrl:
        """Return what two groups of one process have in common."""
        return self._replace(rank=None, timeout_s=None)


def parse_url(url: str) -> GroupUrl:
    """Read the URL of a process group; rank and world size may come from the environment.

    Raises:
        ValueError: in one sentence that says what is wrong, without what might be a password.
    """
    parts = urlsplit(url)
    user, at, endpoints = parts.netloc.rpartition("@")
    if parts.scheme != SCHEME:
        raise _error(f"'{parts.scheme}' is not the scheme '{SCHEME}'")
    if ":" in user:
        raise _error(
            "a password must not stand in it: give it by TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD"
        )
    if not endpoints or (at and not user):
        raise _error(f"hosts of etcd are missing; expected {SCHEME}://host:2379/job")
    job = unquote(parts.path.strip("/"))
    if not job:
        raise _error(f"the name of the job is missing; expected {SCHEME}://{endpoints}/job")
    query = _query(parts.query)
    config: dict[str, str] = {name: query.pop(name) for name in _OPTIONS if name in query}
    config.setdefault("etcd_prefix", GROUP_PREFIX)
    if user:
        config["user"] = unquote(user)
    world_size = _whole("world_size", query.pop("world_size", None), least=1)
    rank = _whole("rank", query.pop("rank", None), least=0, needed=False)
    timeout = _whole("timeout", query.pop("timeout", None), least=1, needed=False, inherited=False)
    if query:
        known = ", ".join(("rank", "world_size", "timeout", *_OPTIONS))
        raise _error(f"'{next(iter(query))}' is not one of its options: {known}")
    if world_size is None or (rank is not None and rank >= world_size):
        raise _error(f"the rank must be 0 to {(world_size or 0) - 1}, not {rank}")
    try:
        options = parse_options(config)
    except ValueError as exc:
        raise _error(str(exc).rstrip(".")) from exc
    return GroupUrl(endpoints, job, rank, world_size, timeout, options)


def _query(text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
    except ValueError:
        raise _error("what follows the '?' must be option=value, joined by '&'") from None
    query: dict[str, str] = {}
    for name, value in pairs:
        if name.lower() in _SECRETS:
            raise _error(
                f"'{name}' must not stand in what follows the '?': the user stands before the '@' or in "
                "TORCHETCD_USER, the password in TORCHETCD_PASSWORD_FILE or TORCHETCD_PASSWORD"
            )
        if name in query:
            raise _error(f"'{name}' is given twice")
        query[name] = value
    return query


def _whole(
    name: str, text: str | None, *, least: int, needed: bool = True, inherited: bool = True
) -> int | None:
    variable = name.upper()
    where = f"'{name}'"
    if text is None and inherited and os.environ.get(variable):
        text, where = os.environ[variable], f"{variable} in the environment"
    if text is None:
        if needed:
            raise _error(f"'{name}' is missing, and {variable} is not set in the environment")
        return None
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise _error(f"{where} must be a whole number, at least {least}, not {text!r}")
    return int(text)


def _error(reason: str) -> ValueError:
    return ValueError(f"Error initializing torch.distributed using {SCHEME}://: {reason}.")
