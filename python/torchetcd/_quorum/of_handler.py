"""What the rendezvous handler does with an endpoint `job://...`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.distributed.elastic.rendezvous.api import (
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from torchetcd._endpoints import is_job
from torchetcd._environment import endpoint_or_default
from torchetcd._phrasing import listed
from torchetcd._quorum.quorum import Quorum

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    from torchetcd._rendezvous.options import Options


_logger = logging.getLogger("torchetcd.quorum")

_PARAMETERS = (
    "quorum",
    "quorum_peer_port",
    "quorum_replace_after",
    "quorum_dir",
    "quorum_secret_file",
)


def quorum_of(params: RendezvousParameters, options: Options) -> Quorum | None:
    """Return this agent's part in the quorum of its job; `None` where etcd is elsewhere.

    Raises:
        ValueError: if there can be no quorum of what is given.
    """
    endpoint, _ = endpoint_or_default(params.endpoint)
    if not is_job(endpoint):
        _warn_of_no_effect(params, endpoint)
        return None
    quorum = Quorum(endpoint, str(params.run_id), options)
    if quorum.material is not None:
        # Workers with `worker_store=etcd` use the same files.
        options.ca_cert = quorum.material.ca
        options.ssl_cert, options.ssl_cert_key = quorum.material.cert, quorum.material.key
    return quorum


def _warn_of_no_effect(params: RendezvousParameters, endpoint: str) -> None:
    """Say which parameters mean nothing here. A site may set the variable for all its jobs."""
    given = [name for name in _PARAMETERS if params.config.get(name) is not None]
    if given:
        _logger.warning(
            "The rendezvous parameter%s %s %s no effect, because the endpoint '%s' is not job://...",
            "" if len(given) == 1 else "s",
            listed(f"'{name}'" for name in given),
            "has" if len(given) == 1 else "have",
            endpoint,
        )


@contextlib.contextmanager
def naming_members(quorum: Quorum | None) -> Iterator[None]:
    """Let an error that etcd does not answer name the members that are gone."""
    try:
        yield
    except TimeoutError as exc:
        raise RendezvousConnectionError(str(exc)) from None
    except (RendezvousConnectionError, RendezvousTimeoutError) as exc:
        lacking = quorum.lacking() if quorum is not None else ""
        if not lacking:
            raise
        raise type(exc)(f"{exc} {lacking}") from (exc.__cause__ or exc)
