"""Every environment variable of torchetcd, in one table: its name, what it means, who reads it.

What a site sets for everybody holds for the jobs and for the command line alike; what is given by a parameter
or an option comes first. After a change `python tools/parameters.py` rewrites the table of
`docs/reference/parameters.md`.

Nothing heavy is imported: `import torch` pays for this module.
"""

from __future__ import annotations

import logging
import os

from torchetcd import _defaults

_logger = logging.getLogger(__name__)

#: What turns a switch on, and what leaves it off.
ON = ("1", "true", "yes", "on")
OFF = ("0", "false", "no", "off")

#: Jobs: the handler, the backend of torch's dynamic handler, and `etcd-v3://`.
_BOTH = "jobs, command line"
_JOBS = "jobs"
_COMMANDS = "command line"


class Variable:
    """An environment variable. One that is empty is not set."""

    __slots__ = ("meaning", "name", "readers")

    def __init__(self, name: str, readers: str, meaning: str) -> None:
        self.name, self.readers, self.meaning = name, readers, meaning

    def get(self) -> str | None:
        """Return its value; `None` where it is not set."""
        return os.environ.get(self.name) or None

    def is_on(self) -> bool:
        """Return whether this switch is on. What says neither is logged, and leaves it off."""
        value = (self.get() or "").strip().lower()
        if value and value not in ON + OFF:
            _logger.warning(
                "The environment variable %s must be %s (on) or %s (off), not %r: it counts as off.",
                self.name,
                ", ".join(ON),
                ", ".join(OFF),
                self.get(),
            )
        return value in ON

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"The environment variable {self.name}"


ENDPOINT = Variable(
    "TORCHETCD_ENDPOINT",
    _BOTH,
    f"etcd's endpoints, without `--rdzv-endpoint` or `--endpoint`; by default `{_defaults.ENDPOINT}`.",
)
PROTOCOL = Variable("TORCHETCD_PROTOCOL", _BOTH, "`protocol`: for endpoints without a scheme.")
CA_CERT = Variable("TORCHETCD_CA_CERT", _BOTH, "`ca_cert`: the PEM file of the CA.")
CERT = Variable("TORCHETCD_CERT", _BOTH, "`ssl_cert`: the PEM file of the client certificate.")
KEY = Variable(
    "TORCHETCD_KEY",
    _BOTH,
    "`ssl_cert_key`: the PEM file of the key of TORCHETCD_CERT. It applies only to a certificate "
    "that is given by that variable.",
)
USER = Variable("TORCHETCD_USER", _BOTH, "`user`: the user name in etcd.")
PASSWORD = Variable("TORCHETCD_PASSWORD", _BOTH, "`password`: the password in etcd.")
PASSWORD_FILE = Variable(
    "TORCHETCD_PASSWORD_FILE",
    _BOTH,
    "`password_file`: a file with the password in one line, which is read for each log-in.",
)
PREFIX = Variable(
    "TORCHETCD_PREFIX",
    _BOTH,
    "`etcd_prefix`: the prefix of all keys in etcd. Groups by `etcd-v3://` have another one.",
)
TIMEOUT = Variable(
    "TORCHETCD_TIMEOUT",
    _BOTH,
    "`read_timeout`: the seconds that a call to etcd may take; by default 60, on the command line 10.",
)
QUORUM_SECRET_FILE = Variable(
    "TORCHETCD_QUORUM_SECRET_FILE",
    _BOTH,
    "`quorum_secret_file`: the file with the secret of the quorum of an endpoint `job://...`.",
)
OVERRIDE = Variable(
    "TORCHETCD_OVERRIDE",
    _JOBS,
    "A switch: take over torch's names `etcd` and `etcd-v2` although python-etcd is installed.",
)
METRICS_PORT = Variable(
    "TORCHETCD_METRICS_PORT",
    _JOBS,
    "The port, or a range of ports, at which an agent serves its metrics to Prometheus "
    "([metrics](metrics.md)).",
)
METRICS_ADDRESS = Variable(
    "TORCHETCD_METRICS_ADDRESS", _JOBS, "The address at which it does so; by default `127.0.0.1`."
)
WORKER_STORE = Variable(
    "TORCHETCD_WORKER_STORE",
    "workers",
    "Set by an agent with `worker_store=etcd` for its workers: the store that they use. Not for people.",
)
DEBUG = Variable("TORCHETCD_DEBUG", _COMMANDS, "A switch: show the traceback of an error.")
COMPLETE = Variable(
    "_TORCHETCD_COMPLETE", _COMMANDS, "Set by what `torchetcd completion` prints. Not for people."
)
ETCD_BINARY = Variable(
    "TORCHELASTIC_ETCD_BINARY_PATH",
    "`EtcdServer`, `torchetcd serve`",
    "torch's own: the etcd binary that is started.",
)
TORCH_LOGS = Variable(
    "TORCH_LOGS",
    "torch",
    "torch's own; with `torchetcd` in it, the log shows what a node waits for.",
)

VARIABLES = (
    ENDPOINT,
    PREFIX,
    PROTOCOL,
    CA_CERT,
    CERT,
    KEY,
    USER,
    PASSWORD,
    PASSWORD_FILE,
    TIMEOUT,
    QUORUM_SECRET_FILE,
    OVERRIDE,
    METRICS_PORT,
    METRICS_ADDRESS,
    DEBUG,
    WORKER_STORE,
    COMPLETE,
    ETCD_BINARY,
    TORCH_LOGS,
)


def endpoint_or_default(given: str | None) -> tuple[str, str]:
    """Return the endpoints to use, and where they were given (`""` where nobody gave any).

    Args:
        given: What a parameter or an option says. torchrun says `""` without `--rdzv-endpoint`.
    """
    if given and given.strip():
        return given, "--rdzv-endpoint"
    if named := ENDPOINT.get():
        return named, ENDPOINT.name
    return _defaults.ENDPOINT, ""
