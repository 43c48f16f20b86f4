"""The client itself: its constructor, its properties, and the calls made of those of `_key_operations`."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from torchetcd import _defaults, _native
from torchetcd._credentials import Secret
from torchetcd._endpoints import Host, parse_addresses
from torchetcd.etcd._exceptions import (
    EtcdException,
    EtcdInsufficientPermissions,
    EtcdKeyNotFound,
    EtcdValueError,
)
from torchetcd.etcd._key_operations import KeyOperations
from torchetcd.etcd._results import EtcdResult

if TYPE_CHECKING:
    from torchetcd._torchetcd import Client as NativeClient

_logger = logging.getLogger("torchetcd.etcd")

# How long a client that is to connect at once may try. A wrong address should be known soon.
_FIRST_CONTACT_S = 5.0


def _gone(sentence: str) -> property:
    """Make a property that python-etcd has and says why it is not here."""

    def fail(_self: Client) -> NoReturn:
        raise EtcdException(sentence)

    return property(fail, doc=sentence)


def _cluster_id(text: str) -> int:
    try:
        number = int(text, 16)
    except (TypeError, ValueError):
        number = -1
    if not 0 < number < 1 << 64:
        message = f"expected_cluster_id must be up to 16 hexadecimal digits, not {text!r}."
        raise ValueError(message)
    return number


class Client(KeyOperations):
    """A client of an etcd cluster.

    It connects at the first call, can be used by several threads, and in forked children.

    >>> from torchetcd.etcd import Client
    >>> client = Client(endpoint)  # such as "h1:2379,h2:2379,h3:2379"
    >>> client.write("/docs/key", "value", ttl=60).action
    'set'
    >>> client.read("/docs/key").value
    'value'
    >>> client.delete("/docs/key").action
    'delete'
    """

    def __init__(  # noqa: PLR0913, PLR0917 - python-etcd's signature
        self,
        host: Host = "127.0.0.1",
        port: int = _defaults.PORT,
        srv_domain: str | None = None,
        version_prefix: str = "/v3",
        read_timeout: float = _defaults.READ_TIMEOUT_S,
        allow_redirect: bool = True,
        protocol: str = "http",
        cert: str | tuple[str, str] | None = None,
        ca_cert: str | None = None,
        username: str | None = None,
        password: str | None = None,
        allow_reconnect: bool = False,
        use_proxies: bool = False,
        expected_cluster_id: str | None = None,
        per_host_pool_size: int = 10,
        lock_prefix: str = "/_locks",
        *,
        password_file: str | None = None,
    ) -> None:
        """Take the arguments of python-etcd's client.

        Args:
            host: A host name or address, endpoints in a string such as "h1:2379,https://h2", or
                python-etcd's pairs of host and port.
            port: The port of endpoints that name none; 2379 unless given.
            srv_domain: Refused: etcd v3 members are not looked up in DNS here.
            version_prefix: Only kept.
            read_timeout: Seconds that a call may take; 0 for no limit.
            allow_redirect: Only kept.
            protocol: "http" or "https", for endpoints that do not say.
            cert: A file with the client certificate and its key, or the two files.
            ca_cert: The file with the CA certificate. Without it the system's are trusted: with
                https the server is always verified.
            username: The user of etcd; it needs a password.
            password: The user's password.
            password_file: A file with the password instead, which is read for each log-in.
            allow_reconnect: Ask the cluster for its members now, so that an address where no etcd
                answers fails here and not at the first use.
            use_proxies: Do not ask for the members.
            expected_cluster_id: The id of the cluster, in hexadecimal digits. A member of another one counts
                as one that is not reached.
            per_host_pool_size: Only kept: all calls share one HTTP/2 connection.
            lock_prefix: Only kept.

        Raises:
            ValueError: if an argument cannot work.
            EtcdConnectionFailed: if `allow_reconnect` was given and no endpoint answers.
        """
        super().__init__()
        if srv_domain is not None:
            message = "SRV discovery is not supported: give the endpoints themselves."
            raise EtcdException(message)
        self._cluster_id = None
        if expected_cluster_id is not None:
            self._cluster_id = _cluster_id(expected_cluster_id)
        if (username is None) != (password is None and password_file is None):
            _logger.warning("A user needs a password and a password a user: both are ignored.")
            username = password = password_file = None
        if password is not None and password_file is not None:
            message = "A password and a file with a password were given: only one of them can be."
            raise ValueError(message)
        self._addresses = parse_addresses(host, port, protocol)
        # One file can hold both.
        files = (cert, cert) if cert is None or isinstance(cert, str) else cert
        self._cert, self._key = files
        self._ca_cert = ca_cert
        self._read_timeout = read_timeout
        self.username = username
        self._password = None if password is None else Secret(password)
        self._password_file = password_file
        self.version_prefix = version_prefix
        self.allow_redirect = allow_redirect
        self.expected_cluster_id = expected_cluster_id
        self.lock_prefix = lock_prefix
        self.per_host_pool_size = per_host_pool_size
        #: The endpoint of a quorum as it was typed, and the file with its secret.
        self._typed: tuple[str, str | None] | None = None
        if allow_reconnect and not use_proxies:
            self._members(min(self._seconds(), _FIRST_CONTACT_S))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out this client's connection: a copy connects at its first call."""
        kept = super().__getstate__()
        kept.pop("_native_client", None)
        return kept

    @property
    def _native(self) -> NativeClient:
        """The client of the native module, for stores and handlers that share the connection."""
        found: NativeClient | None = self.__dict__.get("_native_client")
        if found is None:
            made = _native.Client(
                ",".join(address.uri for address in self._addresses),
                ca_cert=self._ca_cert,
                cert=self._cert,
                key=self._key,
                user=self.username,
                password=self.password,
                password_file=self._password_file,
                connect_timeout_s=min(5.0, self._seconds()),
                request_timeout_s=self._seconds(),
                cluster_id=self._cluster_id,
            )
            # Atomic: threads that come here together get the same one. No lock that a fork could
            # leave locked.
            found = self.__dict__.setdefault("_native_client", made)
        return found

    @property
    def password(self) -> str | None:
        """The user's password, if it was not given by a file."""
        return None if self._password is None else self._password.reveal()

    @property
    def base_uri(self) -> str:
        """The URL of the first endpoint."""
        return self._addresses[0].uri

    @property
    def protocol(self) -> str:
        """The protocol of the first endpoint."""
        return self._addresses[0].protocol

    @property
    def host(self) -> str:
        """The host of the first endpoint."""
        return self._addresses[0].host

    @property
    def port(self) -> int:
        """The port of the first endpoint."""
        return self._addresses[0].port

    @property
    def endpoints(self) -> list[str]:
        """The URLs of all endpoints given."""
        return [address.uri for address in self._addresses]

    @property
    def read_timeout(self) -> float:
        """Seconds that a call may take; 0 for no limit. It can be changed at any time."""
        return self._read_timeout

    @read_timeout.setter
    def read_timeout(self, seconds: float) -> None:
        self._read_timeout = seconds

    @property
    def key_endpoint(self) -> str:
        """The part of v2 URLs before a key. Nothing uses it."""
        return f"{self.version_prefix}/keys"

    @property
    def version(self) -> str:
        """The version of the server that answers."""
        return self._native.version(self._seconds())

    @property
    def machines(self) -> list[str]:
        """The client URLs of the cluster's members; the endpoints given, if that is forbidden."""
        return self._members(self._seconds())

    def _members(self, timeout: float) -> list[str]:
        try:
            return self._native.members(timeout)
        except EtcdInsufficientPermissions as exc:
            # Only the root user may list members. A wrong password is another matter.
            if exc.refusal != "permission_denied":
                raise
            return self.endpoints

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """The cluster's members by client URL (python-etcd: by id, which is not asked for here)."""
        return {url: {"clientURLs": [url]} for url in self.machines}

    leader = _gone("The leader of the cluster is not asked for here: use etcdctl.")
    cluster_version = _gone("etcd v3 tells clients the version of a server, not of the cluster.")
    stats = _gone("etcd v3 has no statistics for clients: see the metrics of the server.")
    leader_stats = stats
    store_stats = stats
    election = _gone("python-etcd's election went with etcd 2.0.")

    def get_lock(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Fail as python-etcd does."""
        message = "python-etcd's locks went with etcd 2.0."
        raise NotImplementedError(message)

    def api_execute(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Fail: there is no HTTP request to make."""
        message = "etcd v3 is called by gRPC: there are no v2 URLs to request."
        raise EtcdException(message)

    api_execute_json = api_execute

    def __contains__(self, key: str) -> bool:
        """Whether there is this key or directory."""
        try:
            self.read(key)
        except EtcdKeyNotFound:
            return False
        return True

    def get(self, key: str) -> EtcdResult:
        """Read a key, or list a directory."""
        return self.read(key)

    def set(self, key: str, value: object, ttl: float | None = None) -> EtcdResult:
        """Write a key."""
        return self.write(key, value, ttl=ttl)

    def test_and_set(
        self, key: str, value: object, prev_value: object, ttl: float | None = None
    ) -> EtcdResult:
        """Write a key if it has the value `prev_value`.

        Raises:
            EtcdCompareFailed: if it has another value.
            EtcdKeyNotFound: if it does not exist.
        """
        if prev_value is None:
            message = "test_and_set needs the value to compare with."
            raise EtcdValueError(message)
        return self.write(key, value, ttl=ttl, prevValue=prev_value)

    def update(self, obj: EtcdResult) -> EtcdResult:
        """Write back a result whose `value` or `ttl` was changed, if the key did not change."""
        if obj.key is None:
            message = "A result without a key cannot be written back."
            raise EtcdValueError(message)
        index = None if obj.dir else obj.modifiedIndex
        return self.write(
            obj.key, obj.value, ttl=obj.ttl, dir=obj.dir, prevExist=True, prevIndex=index
        )

    def pop(
        self, key: str, recursive: bool | None = None, dir: bool | None = None, **conditions: Any
    ) -> EtcdResult | None:
        """Delete a key and return what was there."""
        return self.delete(key, recursive, dir, **conditions).prev_node

    def close(self) -> None:
        """End the connection. Calls under way and later ones raise `RuntimeError`."""
        self._native.close()

    def __enter__(self) -> Client:
        """Close the client at the end of a `with` block."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show where it connects to, but no password."""
        user = f", username={self.username!r}" if self.username else ""
        return f"Client({','.join(self.endpoints)!r}{user})"


class Lock:
    """python-etcd's lock, which is not provided."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Fail."""
        message = "Locks are not provided: use the lock service of etcd v3."
        raise EtcdException(message)


def as_client(obj: object) -> Client:
    """Return a `Client` for a client object of this module or of python-etcd.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(obj, Client):
        return obj
    host, port = getattr(obj, "host", None), getattr(obj, "port", None)
    protocol = getattr(obj, "protocol", None)
    if not isinstance(host, str) or not isinstance(port, int) or not isinstance(protocol, str):
        kind = type(obj)
        message = (
            "The etcd client must be a torchetcd.etcd.Client or a client of python-etcd, not "
            f"{kind.__module__}.{kind.__qualname__}."
        )
        raise TypeError(message)
    # python-etcd keeps its TLS files only where it hands them to urllib3.
    tls = getattr(getattr(obj, "http", None), "connection_pool_kw", None) or {}
    cert, key = tls.get("cert_file"), tls.get("key_file")
    # And the other endpoints it knows only here.
    others = [uri for uri in getattr(obj, "_machines_cache", ()) if isinstance(uri, str)]
    return Client(
        ",".join([f"{protocol}://{f'[{host}]' if ':' in host else host}:{port}", *others]),
        read_timeout=getattr(obj, "read_timeout", _defaults.READ_TIMEOUT_S),
        protocol=protocol,
        cert=(cert, key or cert) if cert else None,
        ca_cert=tls.get("ca_certs"),
        username=getattr(obj, "username", None),
        password=getattr(obj, "password", None),
    )
