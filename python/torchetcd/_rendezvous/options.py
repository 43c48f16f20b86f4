"""The parameters of the rendezvous handler, from torch's handlers and our own.

One table: the names (torch's two etcd handlers differ), the default and the check. After a change
`python tools/parameters.py` rewrites the table of `docs/reference/parameters.md`.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torchetcd import _defaults, _environment
from torchetcd._credentials import Credentials, find_credentials
from torchetcd._environment import Variable, endpoint_or_default
from torchetcd._rendezvous import torchrun_arguments
from torchetcd._rendezvous.rank_source import (
    RANK_ORDERS,
    RANK_VARIABLES,
    check_ranks,
    label,
    rank_of_infra,
)
from torchetcd._rendezvous.value_checks import (
    LEASES,
    LONGEST_S,
    MOST_NODES,
    SHORTEST_TTL_S,
    file,
    fraction,
    one_of,
    ports,
    seconds,
    secret,
    text,
    whole,
)
from torchetcd.etcd import Client

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

_logger = logging.getLogger(__name__)

# How long torch's launcher waits for workers that it has told to stop, and then for those that it has killed.
_STOPPING_S, _AFTER_SIGKILL_S = 30, 30


class Parameter:
    """One option: its names, its default and what it means."""

    def __init__(
        self,
        names: tuple[str, ...],
        default: Any,
        parse: Callable[[str, Any], Any],
        meaning: str,
        variable: Variable | None = None,
    ) -> None:
        """Take what there is to say of it.

        Args:
            names: The first is the name in `Options`.
            default: Its value where nobody gives one.
            parse: Checks a value; it is told where that was given, as the subject of a sentence.
            meaning: For the documentation.
            variable: Where a site may give it for everybody.
        """
        self.names, self.default, self.parse, self.meaning = names, default, parse, meaning
        self.variable = variable


def _stopping_time() -> int:
    """Return how long the agents of this job may take to stop their workers.

    The launcher waits so long after the first signal, and as long as torch says after SIGKILL
    (torch `launcher/api.py` and `multiprocessing/api.py`).
    """
    for given in (
        torchrun_arguments.argument("shutdown_timeout"),
        os.environ.get("PET_SHUTDOWN_TIMEOUT"),
        os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT"),
    ):
        # What is no number ends the launcher itself.
        with contextlib.suppress(TypeError, ValueError):
            return min(max(0, int(given)), LONGEST_S) + _AFTER_SIGKILL_S  # type: ignore[arg-type]
    return _STOPPING_S + _AFTER_SIGKILL_S


def _any(_name: str, value: Any) -> Any:
    return value


PARAMETERS = (
    Parameter(
        ("join_timeout", "timeout"),
        _defaults.JOIN_TIMEOUT_S,
        seconds(1),
        "Seconds within which a call of `next_rendezvous()` must succeed. A new handler waits as long for an "
        "etcd that does not answer yet. torchrun itself sets `timeout` to 900; `join_timeout` comes first.",
    ),
    Parameter(
        ("last_call_timeout",),
        30,
        seconds(0),
        "Seconds to wait for more nodes once the minimum has joined.",
    ),
    Parameter(
        ("survivor_grace",),
        None,
        seconds(0),
        "Seconds, from the beginning of a round, for which it stays open for members of the last world that "
        "still stop their workers. By default torchrun's `--shutdown-timeout` or "
        "`TORCH_ELASTIC_SHUTDOWN_TIMEOUT` (30), and 30 more for SIGKILL.",
    ),
    Parameter(
        ("if_closed",),
        "fail",
        one_of("fail", "reopen"),
        "What an agent does when the run is closed: `fail` with `RendezvousClosedError`, or `reopen` the run "
        "as its next round, once all agents of its last world have gone.",
    ),
    Parameter(
        ("close_timeout",),
        30,
        seconds(1),
        "Seconds within which closing the run must succeed.",
    ),
    Parameter(
        ("keep_alive_ttl",),
        None,
        seconds(SHORTEST_TTL_S, LEASES),
        "TTL in seconds of the node's lease: a node that is silent for so long is lost. By default "
        "`keep_alive_interval` x `keep_alive_max_attempt`, and 10 without those.",
    ),
    Parameter(
        ("keep_alive_interval",),
        None,
        seconds(1),
        "As in torch's dynamic handler; see `keep_alive_ttl`.",
    ),
    Parameter(
        ("keep_alive_max_attempt",),
        None,
        whole("attempts", 1, LONGEST_S),
        "As in torch's dynamic handler; see `keep_alive_ttl`.",
    ),
    Parameter(
        ("on_member_loss",),
        "restart",
        one_of("restart", "ignore"),
        "Whether the other nodes rejoin when a member is lost (`restart`), or leave it to the workers to "
        "notice the loss (`ignore`).",
    ),
    Parameter(
        ("rank_order",),
        "stable",
        one_of(*RANK_ORDERS),
        "The order of ranks: `join` (arrival), `stable` (a node that stays keeps its rank), `infra` "
        "(`infra_rank`), `topology` (nodes of one `domain` are neighbours). The same for all nodes.",
    ),
    Parameter(
        ("infra_rank",),
        None,
        rank_of_infra,
        "This node's number from the infrastructure, for `rank_order=infra`, and for `torchetcd why` to name "
        "missing nodes. By default that of torchrun's `--node-rank`, or else of the first of these that is "
        f"set: {', '.join(f'`{name}`' for name in RANK_VARIABLES)}.",
    ),
    Parameter(
        ("domain",),
        None,
        label,
        "What this node shares with its neighbours, such as a rack or an NVLink domain, for "
        "`rank_order=topology`.",
    ),
    Parameter(
        ("segment",),
        1,
        whole("nodes", 1, MOST_NODES),
        "The world is made of whole segments of so many nodes of one `domain`. A node that fills none waits "
        "as a spare.",
    ),
    Parameter(
        ("node_id",),
        None,
        label,
        "The name of this node's place in the run. An agent that starts with the same name takes over the "
        "place and the rank at once, and the former agent ends. Different for each node.",
    ),
    Parameter(
        ("run_ttl",),
        _defaults.RUN_TTL_S,
        seconds(SHORTEST_TTL_S, LEASES),
        "Seconds after which nothing of the run is left in etcd once its last node has gone.",
    ),
    Parameter(
        ("etcd_prefix",),
        _defaults.PREFIX,
        text,
        "The prefix of all keys in etcd.",
        _environment.PREFIX,
    ),
    Parameter(
        ("protocol",),
        None,
        one_of("http", "https"),
        "For endpoints without a scheme. By default `http`, or `https` if `ca_cert` or `ssl_cert` is given.",
        _environment.PROTOCOL,
    ),
    Parameter(
        ("ca_cert", "cacert"),
        None,
        file,
        "PEM file of the CA; by default the system's roots.",
        _environment.CA_CERT,
    ),
    Parameter(
        ("ssl_cert", "cert"),
        None,
        file,
        "PEM file of the client certificate.",
        _environment.CERT,
    ),
    Parameter(
        ("ssl_cert_key", "key"),
        None,
        file,
        "PEM file of the client certificate's key; by default the file of the certificate.",
        _environment.KEY,
    ),
    Parameter(("user",), None, text, "User name in etcd.", _environment.USER),
    Parameter(
        ("password",),
        None,
        secret,
        "Password in etcd. Prefer a file, because torchrun logs the parameters.",
        _environment.PASSWORD,
    ),
    Parameter(
        ("password_file",),
        None,
        text,
        "A file with the password in one line, which is read for each log-in.",
        _environment.PASSWORD_FILE,
    ),
    Parameter(
        ("read_timeout",),
        _defaults.READ_TIMEOUT_S,
        fraction(0.1),
        "Seconds that a call to etcd outside of the barrier may take.",
        _environment.TIMEOUT,
    ),
    Parameter(
        ("worker_store",),
        "tcp",
        one_of("tcp", "etcd", "gateway"),
        "Where workers meet: `tcp` is torch's TCPStore at `MASTER_ADDR`, which a worker of rank 0 serves; "
        "`gateway` is a TCPStore that each agent serves to its own workers, with etcd behind it; `etcd` is a "
        "store in etcd (docs/how-to/no-tcpstore.md).",
    ),
    Parameter(
        ("gateway_admit",),
        "user",
        one_of("user", "any"),
        "Whose processes the port of `worker_store=gateway` answers: those of the agent's own `user`, or of "
        "`any` user of the host.",
    ),
    Parameter(
        ("master_port",),
        None,
        ports,
        "The port at which workers meet when this node is rank 0 (`MASTER_PORT`), or the first and the last "
        "of several, such as `29500-29599`: at least one for each agent on a host. By default any free port. "
        "With `worker_store=gateway` each agent listens there.",
    ),
    Parameter(
        ("quorum",),
        3,
        one_of("1", "3", "5"),
        "How many members the quorum of an endpoint `job://...` has: 1, 3 or 5 (docs/how-to/quorum.md).",
    ),
    Parameter(
        ("quorum_peer_port",),
        None,
        whole("port", 1, 65535),
        "The port at which the members of that quorum reach one another. By default the one after the port "
        "of the entry.",
    ),
    Parameter(
        ("quorum_replace_after",),
        30,
        seconds(1),
        "Seconds for which a member of that quorum must be gone before another host takes its place.",
    ),
    Parameter(
        ("quorum_dir",),
        None,
        text,
        "The folder in which a member of that quorum makes its private folder. By default the temporary "
        "directory. A file system in memory is enough.",
    ),
    Parameter(
        ("quorum_secret_file",),
        None,
        file,
        "A file with the secret of that quorum, the same on all hosts: at least 16 bytes. All its ports use "
        "mutual TLS then.",
        _environment.QUORUM_SECRET_FILE,
    ),
    Parameter(
        ("heartbeat_timeout",), None, _any, "Accepted without effect: heartbeats are leases."
    ),
    Parameter(
        ("cas_backoff_max_seconds",),
        None,
        _any,
        "Accepted without effect: there is no compare-and-swap loop.",
    ),
)

_DEFAULT_TTL_S = 10
# torch's defaults of the dynamic handler, for when only one of the two is given.
_DEFAULT_INTERVAL_S, _DEFAULT_ATTEMPTS = 5, 3


class Options:
    """The checked parameters; times in seconds."""

    join_timeout: int
    last_call_timeout: int
    survivor_grace: int
    if_closed: str
    close_timeout: int
    keep_alive_ttl: int
    on_member_loss: str
    rank_order: str
    infra_rank: int | None
    domain: str | None
    segment: int
    node_id: str | None
    run_ttl: int
    etcd_prefix: str
    protocol: str
    ca_cert: str | None
    ssl_cert: str | None
    ssl_cert_key: str | None
    user: str | None
    password: str | None
    password_file: str | None
    read_timeout: float
    worker_store: str
    gateway_admit: str
    master_port: range | None
    quorum: int
    quorum_peer_port: int | None
    quorum_replace_after: int
    quorum_dir: str | None
    quorum_secret_file: str | None

    def __init__(self, values: dict[str, Any]) -> None:
        # No NamedTuple: the class of one this long takes a millisecond to make, in every agent.
        vars(self).update(values)

    def __eq__(self, other: object) -> bool:
        """Be equal to options with the same values."""
        return isinstance(other, Options) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """Hash the values: groups are told apart by them."""
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        """Without the password: it may end up in a log."""
        shown = {name: value for name, value in vars(self).items() if name != "password"}
        return f"Options({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def parse_options(config: dict[str, Any]) -> Options:
    """Check the configuration of a rendezvous before anything is sent.

    Args:
        config: Names and values, as `--rdzv-conf` gives them: numbers may be strings.

    Raises:
        ValueError: in one sentence that names the parameter, its value and what is allowed.
    """
    _warn_of_unknown(config)
    values = _checked(config, given_by_site(config))
    check_ranks(values)
    found = find_credentials(values["user"], values["password"], values["password_file"])
    return Options(values | found._asdict())


def default_options() -> Options:
    """Return the parameters of a caller that gives none. The environment is not read."""
    return Options(_checked({}, {}) | Credentials(None, None, None)._asdict())


def _checked(config: dict[str, Any], by_site: dict[str, Any]) -> dict[str, Any]:
    values = {
        parameter.names[0]: _value(parameter, config, by_site.get(parameter.names[0]))
        for parameter in PARAMETERS
    }
    interval, attempts = values.pop("keep_alive_interval"), values.pop("keep_alive_max_attempt")
    if values["keep_alive_ttl"] is None:
        given = interval is not None or attempts is not None
        product = (interval or _DEFAULT_INTERVAL_S) * (attempts or _DEFAULT_ATTEMPTS)
        if product > LONGEST_S:
            message = (
                "The product of the rendezvous parameters 'keep_alive_interval' and "
                f"'keep_alive_max_attempt' must be at most {LONGEST_S}{LEASES}, not {product}."
            )
            raise ValueError(message)
        values["keep_alive_ttl"] = max(product, SHORTEST_TTL_S) if given else _DEFAULT_TTL_S
    if values["survivor_grace"] is None:
        values["survivor_grace"] = _stopping_time()
    values["quorum"] = int(values["quorum"])
    del values["heartbeat_timeout"], values["cas_backoff_max_seconds"]
    if values["ssl_cert_key"] is not None and values["ssl_cert"] is None:
        what, cert = "The rendezvous parameter 'ssl_cert_key'", "'ssl_cert'"
        if "ssl_cert_key" in by_site:
            what, cert = (
                str(_environment.KEY),
                f"{_environment.CERT.name} or the parameter 'ssl_cert'",
            )
        message = f"{what} needs {cert}, which is not given."
        raise ValueError(message)
    if values["protocol"] is None:
        values["protocol"] = "https" if values["ca_cert"] or values["ssl_cert"] else "http"
    return values


def _value(parameter: Parameter, config: dict[str, Any], by_site: Any) -> Any:
    given = [
        parameter.parse(f"The rendezvous parameter '{name}'", config[name])
        for name in parameter.names
        if config.get(name) is not None
    ]
    # The first name wins: torchrun adds timeout=900 to whatever it is given
    # (torch launcher/api.py, LaunchConfig).
    if given:
        return given[0]
    return parameter.default if by_site is None else by_site


def given_by_site(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the environment says of parameters that are not given.

    Of user and password this is nothing: `find_credentials` looks for them together.

    Raises:
        ValueError: if a variable's value cannot be.
    """
    given = {
        parameter.names[0]
        for parameter in PARAMETERS
        if any(config.get(name) is not None for name in parameter.names)
    }
    if "ssl_cert" in given:
        # The site's key is that of the site's certificate.
        given.add("ssl_cert_key")
    return {
        parameter.names[0]: parameter.parse(str(parameter.variable), value)
        for parameter in PARAMETERS
        if parameter.variable is not None
        and parameter.names[0] not in given.union(Credentials._fields)
        and (value := parameter.variable.get()) is not None
    }


def _warn_of_unknown(config: dict[str, Any]) -> None:
    known = [name for parameter in PARAMETERS for name in parameter.names]
    for name in config:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            _logger.warning("The rendezvous parameter '%s' is not known and ignored.%s", name, hint)


def make_client(params: RendezvousParameters, options: Options) -> Client:
    """Make the client for these parameters; it connects at its first call.

    Raises:
        ValueError: if the endpoint is not one.
    """
    cert = options.ssl_cert
    endpoints, source = endpoint_or_default(params.endpoint)
    if not source:
        _logger.warning(
            "No etcd endpoint is given by --rdzv-endpoint or %s: the default %s is used.",
            _environment.ENDPOINT.name,
            endpoints,
        )
    try:
        return Client(
            endpoints,
            protocol=options.protocol,
            read_timeout=options.read_timeout,
            cert=(cert, options.ssl_cert_key or cert) if cert else None,
            ca_cert=options.ca_cert,
            username=options.user,
            password=options.password,
            password_file=options.password_file,
        )
    except ValueError as exc:
        if source != _environment.ENDPOINT.name:
            raise
        message = f"{exc} It is given by {source}."
        raise ValueError(message) from None
