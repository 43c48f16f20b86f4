"""The part that one agent has in the quorum of its job."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from torchetcd._at_exit import after_leaving
from torchetcd._etcd_process import find_binary
from torchetcd._quorum.asking import Who, ask
from torchetcd._quorum.clients import connect, members_at
from torchetcd._quorum.counts import Counts
from torchetcd._quorum.entries import Entries, Entry, parse_entries
from torchetcd._quorum.folder import FolderError, delete_stale, open_folder, private_folder
from torchetcd._quorum.keeper import Keeper
from torchetcd._quorum.material import Material, make_material, read_secret
from torchetcd._quorum.places import (
    PortTakenError,
    is_loopback,
    is_served,
    is_unknown,
    looked_up,
    own_entries,
)
from torchetcd._quorum.seat import Seat
from torchetcd._quorum.seen import gone_of, without_majority
from torchetcd._quorum.surroundings import judged

if TYPE_CHECKING:
    from torchetcd._rendezvous.node import EtcdRendezvous
    from torchetcd._rendezvous.options import Options
    from torchetcd.etcd import Client

_logger = logging.getLogger("torchetcd.quorum")

#: How long the member of an agent whose job has ended serves the other agents at most.
_LINGER_S = 60.0
#: How long a port that something else serves is waited for: an earlier job may be about to end.
_PORTS_S = 15.0
#: The kernel keeps the port of a connection for a minute after its end.
_PORT_IN_USE_S = 65.0
#: How long names that are not known yet are looked up again, and how often: as of pods that start together.
_NAMES_S, _LOOK_UP_S = 300.0, 5.0
#: How often it is said that there is no quorum.
_WARN_S = 30.0
#: How long a call of a keeper may take: its member may need it.
_KEEPER_S = 5.0


class _InUse(NamedTuple):
    """Why an entry cannot be taken."""

    text: str
    #: Whether that will pass.
    passing: bool


class Quorum:
    """What the handler of an agent uses: a client, and the member that may run here."""

    def __init__(self, endpoint: str, run_id: str, options: Options) -> None:
        """Read what is given; `start` begins.

        Raises:
            ValueError: if there can be no quorum of it.
        """
        secret_file = options.quorum_secret_file
        secret = (
            read_secret("The rendezvous parameter 'quorum_secret_file'", secret_file)
            if secret_file
            else None
        )
        self.entries = parse_entries(
            endpoint,
            options.quorum,
            options.quorum_peer_port,
            secure=secret is not None,
        )
        self._run_id, self._options = run_id, options
        self.token = self.entries.token(run_id)
        own = own_entries(self.entries.all)
        self.material: Material | None = None
        if secret is not None:
            # Those that may turn out to be this host's, too: whoever has the secret can make any certificate.
            self.material = make_material(secret, [*own, *looked_up(self.entries.all)])
        elif not all(is_loopback(entry.host) for entry in self.entries.all):
            _logger.warning(
                "The quorum of %s has no secret: whoever reaches its ports %s can read and change all of it. "
                "Give the rendezvous parameter 'quorum_secret_file'.",
                self.entries.endpoint,
                _ports(self.entries),
            )
        self._own = own
        self.client = self._make_client(options.read_timeout)
        self._tls = self.material.of_client() if self.material else None
        self._owner = os.getpid()
        self._has_left = threading.Event()
        self._counts = Counts(run_id, self.entries.size)
        self._place: Keeper | None = None
        #: The members as last seen, if this agent has seen them.
        self._members: list[Entry] = []

    def _make_client(self, timeout_s: float) -> Client:
        return connect(
            self.entries,
            self.material,
            timeout_s,
            self.entries.cluster_id(self.token),
            secret_file=self._options.quorum_secret_file,
        )

    def start(self, timeout_s: float) -> None:
        """Begin to run a member if this host has an entry, and wait until there is a quorum.

        Args:
            timeout_s: How long it is waited for.

        Raises:
            ValueError: if there can be none with this agent.
            TimeoutError: if there was none in time.
        """
        self._take_place(min(timeout_s, _PORTS_S))
        if self._place is None:
            return
        after_leaving(self._stop)
        keeper = self._place
        began = warned = time.monotonic()
        while not keeper.settled.wait(0.5):
            now = time.monotonic()
            if now - began >= timeout_s:
                message = f"There was no quorum within {timeout_s:.0f} s. {self.lacking()}"
                self._stop()
                raise TimeoutError(message)
            if now - warned >= _WARN_S:
                warned = now
                _logger.warning(
                    "Run '%s': there has been no quorum for %.0f s. %s",
                    self._run_id,
                    now - began,
                    self.lacking(),
                )
        if keeper.failure:
            self._stop()
            raise ValueError(keeper.failure)

    def _take_place(self, patience_s: float) -> None:
        """Take the first entry of this host that is free, now or, where a port is in use for now, later.

        Raises:
            ValueError: if something else serves the port of a member, and goes on to.
        """
        deadline = time.monotonic() + patience_s
        if self._own:
            try:
                find_binary()
                delete_stale(private_folder(self._options.quorum_dir))
            except FileNotFoundError as exc:
                message = f"{self.entries.endpoint} has a member of its quorum on this host. {exc}"
                raise ValueError(message) from None
            except FolderError as exc:
                raise ValueError(str(exc)) from None
        while True:
            try:
                foreign = self._try_places()
            except FolderError as exc:
                raise ValueError(str(exc)) from None
            if self._place is not None:
                return
            if foreign is None:
                break
            name = self.entries.endpoint
            message = f"A member of the quorum of {name} cannot run on this host: {foreign.text}."
            if foreign.passing:
                _logger.info("%s It is tried again.", message)
                threading.Thread(
                    target=self._try_later, name="torchetcd-place", daemon=True
                ).start()
                return
            if time.monotonic() >= deadline:
                raise ValueError(f"{message} End what uses it, or give other ports.")
            time.sleep(0.5)
        if self._own:
            _logger.info(
                "All entries of this host have agents: this one is a client of the quorum."
            )
        else:
            _logger.info("No entry of the quorum is this host: this agent is a client of it.")
            if any(map(is_unknown, looked_up(self.entries.first))):
                threading.Thread(
                    target=self._own_later, name="torchetcd-place", daemon=True
                ).start()

    def _own_later(self) -> None:
        """Look again whether an entry is this host, until all names of the first entries are known."""
        deadline = time.monotonic() + _NAMES_S
        while not self._has_left.wait(_LOOK_UP_S) and time.monotonic() < deadline:
            known = not any(map(is_unknown, looked_up(self.entries.first)))
            self._own = own_entries(self.entries.all)
            if self._own:
                self._try_later()
            if self._own or known:
                return

    def _try_later(self) -> None:
        after_leaving(self._stop)
        began = time.monotonic()
        while self._place is None and not self._has_left.wait(1.0):
            try:
                # Another entry of this host is only second best: nobody else can have this one.
                if self._try_places(any_entry=time.monotonic() - began > _PORT_IN_USE_S) is None:
                    return
            except FolderError as exc:
                _logger.warning("%s", exc)
                return

    def _try_places(self, *, any_entry: bool = False) -> _InUse | None:
        """Take an entry; return what stands against it, if something else has its ports.

        Args:
            any_entry: Take the next one where a port is in use for the moment.

        Raises:
            FolderError: if there is no folder for a member.
        """
        taken = None
        for entry in self._own:
            folder = open_folder(
                private_folder(self._options.quorum_dir), f"{self.token}-{entry.port}"
            )
            if folder is None:
                continue  # another agent of this host has it
            client = self._make_client(_KEEPER_S)
            keeper = Keeper(
                Seat(self.entries, entry, self.token, folder, self.material, self._counts),
                client,
                self.material,
                self._options.quorum_replace_after,
                functools.partial(self._members_are, client),
            )
            try:
                keeper.start()
            except PortTakenError as exc:
                keeper.stop()
                ours = self._is_of_this_job(entry)
                if not any_entry and (ours or not is_served(exc.host, exc.port)):
                    return _InUse(str(exc), passing=True)
                if not ours:
                    taken = taken or _InUse(str(exc), passing=False)
                continue
            except BaseException:
                keeper.stop()
                raise
            self._place = keeper
            if taken is not None:
                _logger.warning(
                    "The entry %s is used instead of another one: %s.", entry.name, taken.text
                )
            return None
        return taken

    def _is_of_this_job(self, entry: Entry) -> bool:
        """Return whether an agent of this job, or its member, is at an entry.

        It may be the member of an agent that was killed, and ends now. In containers that share the network
        of their host, it may be another agent, whose folder is not seen here.
        """
        answer = ask(entry, self._tls)
        if answer.who is Who.ETCD:
            return answer.cluster == self.entries.cluster_id(self.token)
        return answer.says.get("token") == self.token

    def _members_are(self, keepers: Client, urls: list[str]) -> None:
        self._members = [
            entry for entry in self.entries.all if entry.client_url(self.entries.scheme) in urls
        ]
        for client in (keepers, self.client):
            members_at(client, self.entries, urls)

    def lacking(self) -> str:
        """Say which members are gone, for an error; empty where a majority is there."""
        asked = self._members or self.entries.first
        cluster = self.entries.cluster_id(self.token)
        judge = functools.partial(judged, token=self.token, cluster=cluster)
        seen = without_majority(self.client._native, self.entries, self._tls, asked, judge)
        if seen is None:
            return ""
        place = self._place
        here = f" At this agent: {place.trouble}" if place and place.trouble else ""
        return (
            f"The quorum of {self.entries.endpoint} has no majority, {self.entries.majority} of "
            f"{self.entries.size} members. Gone: {'; '.join(gone_of(seen)) or 'none of those asked'}.{here}"
        )

    def left(self, node: EtcdRendezvous, *, ended: bool) -> None:
        """End after a node has left its run.

        Args:
            node: The node.
            ended: Whether the run is closed. Then the member serves until the other agents have ended, and
                its data is deleted. Otherwise the data stays, for the agent that comes next.
        """
        if not ended:
            self._stop()
            return
        place = self._give_up_place()
        if place is not None:
            place.end(lambda: node.nodes_left() == 0, _LINGER_S)

    def _stop(self) -> None:
        """End without the job: the data stays, and whoever comes next resumes it."""
        place = self._give_up_place()
        if place is not None:
            place.stop()

    def _give_up_place(self) -> Keeper | None:
        if self._owner != os.getpid():
            # A forked child has this object, but not the member.
            return None
        self._has_left.set()
        place, self._place = self._place, None
        return place


def _ports(entries: Entries) -> str:
    ports = sorted({port for entry in entries.all for port in (entry.port, entry.peer_port)})
    return ", ".join(map(str, ports[:6])) + (" and more" if len(ports) > 6 else "")
