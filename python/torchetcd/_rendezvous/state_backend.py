"""The state of torch's dynamic handler in one key of etcd: `EtcdRendezvousBackend`."""

from __future__ import annotations

import binascii
import os
import random
import time
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from torch.distributed.elastic.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousBackend, Token
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from torchetcd import _defaults
from torchetcd._credentials import find_credentials
from torchetcd._endpoints import refuse_job
from torchetcd._environment import endpoint_or_default
from torchetcd._key_names import run_segment
from torchetcd._rendezvous.options import given_by_site
from torchetcd.etcd import (
    Client,
    EtcdAlreadyExist,
    EtcdAmbiguous,
    EtcdCompareFailed,
    EtcdException,
    EtcdKeyNotFound,
    EtcdResult,
    as_client,
)
from torchetcd.etcd_store import EtcdStore

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# So much of the TTL may be gone when the lease is renewed; it counts in seconds. A renewal is a call
# between the state's being read and its being written, in which another node can be first.
_RENEW_AFTER = 0.01
_RENEW_AFTER_S = 1.0
# The pause after several lost writes in a row: at most so many times doubled, from so much on.
_MOST_DOUBLINGS = 5
_LONGEST_ATTEMPT_S = 0.25
# Well below the 15 s without a heartbeat after which PyTorch's handler considers a node dead.
_LONGEST_PAUSE_S = 4.0
# Not the generator that users seed, with the same number on each node.
_RANDOM = random.SystemRandom()
# How often a write is sent whose answer is lost every time.
_ATTEMPTS = 10
_CONNECTION_FAILED = "The connection to etcd has failed. See inner exception for details."


class EtcdRendezvousBackend(RendezvousBackend):
    """Holds the state of a rendezvous in one key of etcd.

    `set_state` pauses for up to 4 seconds when it loses against other writes several times in a row.

    Args:
        client: The client of etcd: a `torchetcd.etcd.Client`, or a client of python-etcd.
        run_id: The run id of the rendezvous.
        key_prefix: The path under which the state is kept.
        ttl: How many seconds the state lives after it was last set, or up to a hundredth of that (but at
            least a second) less; two hours unless given.
    """

    _DEFAULT_TTL = _defaults.RUN_TTL_S

    def __init__(
        self, client: Client, run_id: str, key_prefix: str | None = None, ttl: int | None = None
    ) -> None:
        """Do no I/O yet."""
        if not run_id:
            message = "The run id must be a non-empty string."
            raise ValueError(message)
        self._client = as_client(client)
        name = run_segment(str(run_id))
        self._key = f"{key_prefix}/{name}" if key_prefix else name
        self._ttl = ttl if ttl and ttl > 0 else self._DEFAULT_TTL
        # When a state was last handed out, and how many writes were lost since one was not.
        self._told = time.monotonic()
        self._losses = 0
        self._lease = 0
        self._lease_renewed = 0.0
        self._lease_process = -1

    @property
    def name(self) -> str:
        """See base class."""
        return "etcd-v2"

    def get_state(self) -> tuple[bytes, Token] | None:
        """See base class."""
        result = self._read()
        return None if result is None else self._handed_out(result)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """See base class.

        Returns `None` if a token was given and there is no state any more. What another write was
        faster than comes back after a pause, so that those who lost do not all try again at once.
        """
        if token:
            try:
                token = int(token)
            except (TypeError, ValueError):
                # No token that was ever given out: the same as one that is old.
                return self._current()
        try:
            result = self._write(b64encode(state).decode(), token or None)
        except EtcdException as exc:
            raise RendezvousConnectionError(_CONNECTION_FAILED) from exc
        if result is None:
            self._give_way()
            # Read after the pause: what was current before it is old by now.
            return self._current()
        self._losses = 0
        return *self._handed_out(result), True

    def _give_way(self) -> None:
        """Pause after a lost write, unless it is the first in a row.

        All nodes that lost against the same write would read the same state and write at the same time,
        and all except for one would lose again: N nodes would need about N * N / 2 attempts. An attempt
        succeeds when no other write falls between its read and its write, so that time is the unit of the
        pauses.
        The first loss says little: PyTorch's handler may have kept its state for a second.
        """
        self._losses += 1
        if self._losses == 1:
            return
        attempt = min(time.monotonic() - self._told, _LONGEST_ATTEMPT_S)
        longest = attempt * 2 ** min(self._losses - 1, _MOST_DOUBLINGS)
        time.sleep(_RANDOM.uniform(0, min(longest, _LONGEST_PAUSE_S)))

    def _current(self) -> tuple[bytes, Token, bool] | None:
        found = self.get_state()
        return None if found is None else (*found, False)

    def _read(self) -> EtcdResult | None:
        try:
            return self._client.read(self._key)
        except EtcdKeyNotFound:
            return None
        except EtcdException as exc:
            raise RendezvousConnectionError(_CONNECTION_FAILED) from exc

    def _write(self, value: str, token: int | None) -> EtcdResult | None:
        """Write the state if its token still is `token`; `None` if it is not."""
        conditions = {"prevExist": False} if token is None else {"prevIndex": token}
        renew = False
        lost: EtcdException
        for attempt in range(_ATTEMPTS):
            lease = self._renewed_lease(renew)
            try:
                return self._client.write(self._key, value, lease=lease, **conditions)
            except (EtcdAlreadyExist, EtcdCompareFailed, EtcdKeyNotFound):
                # With an answer lost before this may be the effect of our own write. The lease is
                # ours alone, and so is what hangs on it.
                return self._mine(value, lease, token) if attempt else None
            except EtcdAmbiguous as exc:
                lost = exc
                # Sent again under the same condition it cannot take effect twice, and when it is
                # refused, it is certain that the first one is not on its way any more.
                if (mine := self._mine(value, lease, token)) is not None:
                    return mine
            except EtcdException as exc:
                if exc.refusal != "lease_not_found":
                    raise
                # This process was stopped for longer than the lease lives.
                renew = True
                lost = exc
        raise lost

    def _mine(self, value: str, lease: int, token: int | None) -> EtcdResult | None:
        """Read the state back, if it is what was just written here after `token`."""
        result = self._read()
        if result is None or result.value != value or result.lease != lease:
            return None
        return result if (result.modifiedIndex or 0) > (token or 0) else None

    def _renewed_lease(self, anew: bool) -> int:
        """Give the lease of this backend with its whole TTL before it.

        One lease for all writes: each under its own would leave thousands to expire.
        """
        native = self._client._native
        now = time.monotonic()
        # A forked child must not keep its parent's lease alive.
        anew = anew or not self._lease or self._lease_process != os.getpid()
        if not anew:
            if now - self._lease_renewed < max(_RENEW_AFTER_S, self._ttl * _RENEW_AFTER):
                return self._lease
            anew = not native.lease_keep_alive_once(self._lease)
        if anew:
            self._lease = native.lease_grant(self._ttl)
            self._lease_process = os.getpid()
        self._lease_renewed = now
        return self._lease

    def _handed_out(self, result: EtcdResult) -> tuple[bytes, Token]:
        found = self._decode_state(result)
        self._told = time.monotonic()
        return found

    def _decode_state(self, result: EtcdResult) -> tuple[bytes, Token]:
        if result.dir:
            message = f"There is a directory at '{self._key}' and no state."
            raise RendezvousStateError(message)
        try:
            # What is not ASCII is not base64 either.
            state = b64decode(result.value.encode("ascii", "replace"), validate=True)
        except binascii.Error as exc:
            message = (
                f"The state object in the etcd key '{self._key}' is corrupt. See inner exception for "
                "details."
            )
            raise RendezvousStateError(message) from exc
        return state, result.modifiedIndex


def _create_etcd_client(params: RendezvousParameters) -> Client:
    endpoint, _ = endpoint_or_default(params.endpoint)
    refuse_job(endpoint)
    hosts = [_parse_endpoint(part) for part in endpoint.split(",")]
    by_site = given_by_site(params.config)

    read_timeout = by_site.get("read_timeout") or params.get_as_int(
        "read_timeout", _defaults.READ_TIMEOUT_S
    )
    if read_timeout is None or read_timeout <= 0:
        message = "The read timeout must be a positive integer."
        raise ValueError(message)

    cert = params.get("ssl_cert") or by_site.get("ssl_cert")
    key = params.get("ssl_cert_key") or by_site.get("ssl_cert_key")
    if key and not cert:
        message = "The option 'ssl_cert_key' needs the option 'ssl_cert'."
        raise ValueError(message)
    ca_cert = params.get("ca_cert") or by_site.get("ca_cert")

    usual = by_site.get("protocol") or ("https" if ca_cert or cert else "http")
    protocol = params.get("protocol", usual).strip().lower()
    if protocol not in ("http", "https"):
        message = "The protocol must be HTTP or HTTPS."
        raise ValueError(message)
    found = find_credentials(
        params.get("user"), params.get("password"), params.get("password_file")
    )

    endpoints = [
        f"{scheme or protocol}://{f'[{host}]' if ':' in host else host}:{port}"
        for scheme, host, port in hosts
    ]
    try:
        return Client(
            ",".join(endpoints),
            read_timeout=read_timeout,
            protocol=protocol,
            cert=(cert, key) if cert and key else cert or None,
            ca_cert=ca_cert,
            username=found.user,
            password=found.password,
            password_file=found.password_file,
            allow_reconnect=True,
        )
    except EtcdException as exc:
        raise RendezvousConnectionError(_CONNECTION_FAILED) from exc


def _parse_endpoint(endpoint: str) -> tuple[str, str, int]:
    """Split an endpoint into scheme, host and port, with the messages of PyTorch."""
    scheme, separator, rest = endpoint.strip().rpartition("://")
    scheme = scheme.lower()
    if not endpoint.strip():
        message = "There is nothing before or after a comma of the rendezvous endpoint."
        raise ValueError(message)
    if separator and scheme not in ("http", "https"):
        message = f"The protocol of the rendezvous endpoint '{endpoint}' must be http or https."
        raise ValueError(message)
    return scheme, *parse_rendezvous_endpoint(rest.removesuffix("/"), _defaults.PORT)


def create_backend(params: RendezvousParameters) -> tuple[EtcdRendezvousBackend, Store]:
    """Create a backend, and the store for its rendezvous, from the parameters of a rendezvous.

    >>> from torch.distributed.elastic.rendezvous import RendezvousParameters
    >>> from torchetcd.etcd_rendezvous_backend import create_backend
    >>> backend, store = create_backend(RendezvousParameters("etcd-v2", endpoint, "docs-state", 1, 4))
    >>> state, token, written = backend.set_state(b"state")
    >>> state, written
    (b'state', True)

    The endpoint may be a list such as "h1:2379,h2:2379". The parameters are:

    =============  =====================================================================
    read_timeout   Seconds that an operation of etcd may take. Default: 60.
    protocol       "http" or "https". Default: "http", or "https" with a certificate.
    ssl_cert       The file with the client certificate.
    ssl_cert_key   The file with its key; default: it is in the file of the certificate.
    ca_cert        The file with the CA certificate. Default: the system's.
    user           The user of etcd; needs a password.
    password       The user's password.
    password_file  A file with it in one line instead, which is read for each log-in.
    =============  =====================================================================

    What is not given is taken from the environment, as for the handler (`torchetcd._environment`).

    Raises:
        ValueError: if a parameter cannot work.
        RendezvousConnectionError: if no endpoint answers.
    """
    client = _create_etcd_client(params)
    backend = EtcdRendezvousBackend(client, params.run_id, key_prefix="/torch/elastic/rendezvous")
    return backend, EtcdStore(client, "/torch/elastic/store")
