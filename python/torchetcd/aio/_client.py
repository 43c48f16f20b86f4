"""The client: runs, as they are and as they change, and what an operator does to them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType

from torchetcd import _native
from torchetcd._defaults import PREFIX, READ_TIMEOUT_S
from torchetcd._endpoints import Host, is_job
from torchetcd._quorum.clients import Access, access
from torchetcd._run_model import Event, Node, Run, Timeline
from torchetcd.aio import _circumstances, _history, _operations, _reading, _watching
from torchetcd.aio._circumstances import Circumstances
from torchetcd.aio._raw_client import LeaseTime, RawClient
from torchetcd.aio._records import one_line
from torchetcd.aio._run_keys import RunKeys
from torchetcd.diagnosis import explain
from torchetcd.etcd import Client as EtcdClient


class Client:
    """A client of an etcd cluster, for asyncio.

    It connects at the first call and blocks no thread, however many calls are under way. It can be
    used in one event loop after the other, and in several.

    >>> import asyncio
    >>> from torchetcd.aio import Client
    >>> async def show(endpoints: str) -> None:
    ...     async with Client(endpoints) as client:
    ...         for run in await client.list_runs(prefix="/no/such/prefix"):
    ...             print(run.id, run.state, run.round)
    >>> asyncio.run(show(endpoint))  # such as "h1:2379,h2:2379"

    Cancelling a call ends it; one that writes may have taken effect then. All calls raise the errors
    of `torchetcd.etcd`: `EtcdConnectionFailed` if etcd cannot be reached, `EtcdInsufficientPermissions`
    if it refuses. `prefix` is the handler's parameter `etcd_prefix` everywhere.

    Args:
        endpoint: Endpoints, separated by commas: "h1:2379,https://h2". Or the quorum inside a job:
            "job://h1,h2,h3", as its agents have it.
        protocol: "http" or "https", for endpoints that do not say.
        cert: A file with the client certificate and its key, or the two files.
        ca_cert: The file with the CA certificate; the system's are trusted without it.
        username: The user of etcd.
        password: The user's password.
        password_file: A file with the password instead, which is read for each log-in.
        read_timeout: Seconds that a call to etcd may take.
        quorum_secret_file: The file with the secret of that quorum. Certificates are made of it, and users
            and other certificates are not used there.

    Raises:
        ValueError: if an argument cannot work.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what there is to say of an etcd
        self,
        endpoint: Host,
        protocol: str = "http",
        cert: str | tuple[str, str] | None = None,
        ca_cert: str | None = None,
        username: str | None = None,
        password: str | None = None,
        password_file: str | None = None,
        read_timeout: float = READ_TIMEOUT_S,
        *,
        quorum_secret_file: str | None = None,
    ) -> None:  # fmt: skip
        """Make a client; nothing is sent to etcd yet."""
        if username and password is None and password_file is None:
            message = f"The etcd user {username!r} was given without a password."
            raise ValueError(message)
        if not username and (password is not None or password_file is not None):
            message = "A password for etcd was given without a user (parameter 'username')."
            raise ValueError(message)
        #: Its certificates are deleted with this object.
        self._access: Access | None = None
        if isinstance(endpoint, str) and is_job(endpoint):
            what = "The argument 'quorum_secret_file'"
            self._access = access(endpoint, quorum_secret_file, what)
            self._etcd = self._access.client(read_timeout)
        else:
            self._etcd = EtcdClient(
                endpoint,
                protocol=protocol,
                cert=cert,
                ca_cert=ca_cert,
                username=username,
                password=password,
                password_file=password_file,
                read_timeout=read_timeout,
            )
        # Loads the native module here, and not in a thread later: a fork while it is loaded there
        # would leave its import locked in the child.
        _ = self._etcd._native
        #: etcd's own calls.
        self.raw = RawClient(self._etcd)

    async def __aenter__(self) -> Client:
        """Close the client at the end of an `async with` block."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Show where it connects to, but no password."""
        return f"torchetcd.aio.{self._etcd!r}"

    @property
    def endpoints(self) -> list[str]:
        """The URLs of all endpoints given."""
        return self._etcd.endpoints

    def close(self) -> None:
        """End the connection. Calls under way and later ones raise `RuntimeError`."""
        self._etcd.close()

    async def list_runs(self, prefix: str = PREFIX) -> list[Run]:
        """Return all runs below a prefix, as they were at one revision of etcd.

        It takes one call for some hundred keys while it looks for names, and one for each 32 runs.
        """
        return await _reading.list_runs(self.raw, prefix)

    async def describe(self, run_id: str, prefix: str = PREFIX, *, leases: bool = False) -> Run:
        """Return a run as it is, all of it at one revision of etcd.

        Args:
            run_id: The run.
            prefix: Where it is.
            leases: Ask for the time that each node's lease has left: one call for each node.

        Raises:
            RunNotFoundError: if nothing of it is in etcd.
        """
        return await _reading.describe(self.raw, RunKeys.of(run_id, prefix), leases=leases)

    async def why(self, run_id: str, prefix: str = PREFIX, *, expected: Sequence[str] = ()) -> str:
        """Say in one paragraph what a run waits for and who is missing, or what else its state is.

        >>> import asyncio
        >>> from torchetcd.aio import Client
        >>> async def why(endpoints: str) -> str:
        ...     async with Client(endpoints) as client:
        ...         return await client.why("no-such-job")
        >>> asyncio.run(why(endpoint)).partition(":")[0]
        "There is nothing of run 'no-such-job' below /torchelastic/p2p"

        It asks for the run, and where nodes lack for its history and for other runs that may have them,
        no longer than a few seconds.

        Args:
            run_id: The run; that there is none is said, too.
            prefix: Where it is.
            expected: The nodes that should join, by host, `node_id` or infra rank, where known.
        """
        known = await self.circumstances(run_id, prefix)
        run = known.run or Run.nothing(run_id, prefix)
        return explain(run, known.others, known.timeline, expected)

    async def circumstances(self, run_id: str, prefix: str = PREFIX) -> Circumstances:
        """Return a run with what `torchetcd.diagnosis` needs besides to explain it.

        It asks for the run, and where nodes lack for its history and for other runs that may have them,
        no longer than a few seconds.

        Args:
            run_id: The run; there may be none.
            prefix: Where it is.
        """
        keys = RunKeys.of(run_id, prefix)
        return await _circumstances.ask(self.raw, keys, self._etcd.read_timeout or READ_TIMEOUT_S)

    async def run_lease(self, run_id: str, prefix: str = PREFIX) -> LeaseTime | None:
        """Return the time that is left to the run's own lease, which ends its keys; `None` without one."""
        lease = _native.run_lease(RunKeys.of(run_id, prefix).base)
        return await self.raw.lease_time_to_live(lease)

    def watch_run(self, run_id: str, prefix: str = PREFIX) -> AsyncGenerator[Event, None]:
        """Tell what a run is, by a `Snapshot`, and then what happens in it, for ever.

        Nothing is polled, and nothing is missed: where events may be missing, because etcd compacted
        them while it was out of reach, another `Snapshot` comes. If the run does not exist yet, the
        call waits for it. It ends at etcd when its iteration is cancelled, or with `aclose`.
        """
        return _watching.watch_run(self.raw, RunKeys.of(run_id, prefix))

    async def timeline(self, run_id: str, prefix: str = PREFIX) -> Timeline:
        """Return what happened in a run, as far back as etcd's history goes.

        etcd keeps no times: they are from the clocks of those who wrote the records, and what nobody
        wrote a time for lies between its neighbours.

        Raises:
            RunNotFoundError: if neither etcd nor its history has anything of it.
        """
        keys = RunKeys.of(run_id, prefix)
        return await _history.timeline(self.raw, keys, self._etcd.read_timeout or READ_TIMEOUT_S)

    async def close_run(
        self,
        run_id: str,
        reason: str,
        by: str | None = None,
        prefix: str = PREFIX,
    ) -> bool:
        """Close a run: its nodes end with `RendezvousClosedError` when they would join again.

        Args:
            run_id: The run.
            reason: Why, in one clause for people.
            by: The person or program that does it; by default the user and host of this process.
            prefix: Where it is.

        Returns:
            Whether this call did it; false if the run was closed already.

        Raises:
            RunNotFoundError: if there is no such run.
            RunRecordError: if its control record cannot be understood.
        """
        keys = RunKeys.of(run_id, prefix)
        return await _operations.close_run(self.raw, keys, _reason(reason), _by(by))

    async def reopen_run(
        self,
        run_id: str,
        reason: str,
        by: str | None = None,
        prefix: str = PREFIX,
    ) -> bool:
        """Open the next round of a run that was closed, so that nodes can join again.

        Nodes that saw the close have ended: somebody has to start them.

        Returns:
            Whether this call did it; false if the run was not closed.

        Raises:
            RunNotFoundError: if there is no such run.
            RunRecordError: if its control record cannot be understood.
        """
        keys = RunKeys.of(run_id, prefix)
        return await _operations.reopen_run(self.raw, keys, _reason(reason), _by(by))

    async def evict(  # noqa: PLR0913 - as the others, and one more
        self,
        run_id: str,
        node: str,
        reason: str,
        by: str | None = None,
        prefix: str = PREFIX,
        *,
        deny: bool = True,
    ) -> tuple[Node, ...]:
        """Take a node out of a run: its lease is revoked, and its world begins a new round.

        Args:
            run_id: The run.
            node: A host, with or without its domain, or a `node_id`: then all nodes of that name, and
                whatever is started there; or HOST:PID or the id of a node: that one alone.
            reason: Why, in one clause for people.
            by: The person or program that does it; by default the user and host of this process.
            prefix: Where it is.
            deny: Keep those that were found out from now on, by the whole name that they have, until
                `allow`; the name as it is given where nobody was found. Without it an agent that is
                still there joins again.

        Returns:
            The nodes that were found and taken out.

        Raises:
            RunNotFoundError: if there is no such run.
            RunRecordError: if its control record cannot be understood.
        """
        keys = RunKeys.of(run_id, prefix)
        return await _operations.evict(self.raw, keys, node, _reason(reason), _by(by), deny=deny)

    async def allow(self, run_id: str, name: str, prefix: str = PREFIX) -> tuple[str, ...]:
        """Admit the nodes again that `evict` of the same name keeps out.

        Returns:
            What the deny list called them; nothing if it had nobody of that name.
        """
        return await _operations.allow(self.raw, RunKeys.of(run_id, prefix), name)

    async def purge(self, run_id: str, prefix: str = PREFIX, *, force: bool = False) -> int:
        """Delete all of a run, its stores included, and return how many keys there were.

        Args:
            run_id: The run.
            prefix: Where it is.
            force: Also while nodes are there. Their leases are revoked. Agents that go on would begin
                the run again, so close it first.

        Raises:
            RunNotFoundError: if there is no such run.
            RunInUseError: if nodes are there, and it is not forced.
        """
        return await _operations.purge(self.raw, RunKeys.of(run_id, prefix), force=force)


def _reason(reason: str) -> str:
    if not isinstance(reason, str) or not reason.strip():
        message = f"The reason must be a text that is not empty, not {reason!r}."
        raise ValueError(message)
    return one_line(reason)


def _by(by: str | None) -> str:
    return one_line(by or _operations.operator())
