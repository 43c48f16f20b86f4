"""Where the state of a run lies in etcd; `docs/protocol.md` has the table."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from torchetcd._defaults import PREFIX
from torchetcd._key_names import prefix_path, run_segment
from torchetcd.aio._raw_client import prefix_end

#: Longer names of nodes are nobody's (src/rendezvous/deny_list.rs).
_LONGEST_NAME = 1024


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The keys of one run."""

    run_id: str
    #: The prefix that it lies below, as the caller gave it.
    prefix: str
    #: The run's own prefix; it ends with a slash.
    base: str

    @classmethod
    def of(cls, run_id: str, prefix: str) -> RunKeys:
        """Make the keys of a run.

        Raises:
            ValueError: if the run id or the prefix cannot be one.
        """
        if not isinstance(run_id, str) or not run_id:
            message = f"The run id must be text that is not empty, not {run_id!r}."
            raise ValueError(message)
        return cls(run_id, prefix, f"{prefix_path(prefix)}run_{run_segment(run_id)}/")

    @property
    def rdzv(self) -> str:
        """What all below begins with."""
        return f"{self.base}rdzv/"

    @property
    def start(self) -> bytes:
        """The first key of what describes the run: everything but the stores of its rounds."""
        return f"{self.base}rdzv/head/".encode()

    @property
    def end(self) -> bytes:
        """The key after the last one of that."""
        return prefix_end(f"{self.base}rdzv/round/".encode())

    @property
    def control(self) -> bytes:
        """The record that says which round is current."""
        return f"{self.base}rdzv/head/control".encode()

    @property
    def denials(self) -> tuple[bytes, bytes]:
        """The first key of the deny list, and the one after its last."""
        first = f"{self.base}rdzv/head/denied/".encode()
        return first, prefix_end(first)

    def denied(self, name: str) -> bytes:
        """The record that keeps a host, node id or node out.

        Raises:
            ValueError: if the name cannot be one.
        """
        try:
            known = isinstance(name, str) and 0 < len(name.encode()) <= _LONGEST_NAME
        except UnicodeEncodeError:
            known = False
        if not known:
            message = (
                "The node must be a host, a node_id or the id of a node, a text of 1 to "
                f"{_LONGEST_NAME} bytes, not {name!r:.60}."
            )
            raise ValueError(message)
        return f"{self.base}rdzv/head/denied/{run_segment(name)}".encode()

    def history(self, number: int) -> bytes:
        """The record of a round that was completed."""
        return f"{self.base}rdzv/history/{number:016x}".encode()


def key_prefix(run_id: str | None = None, prefix: str = PREFIX) -> str:
    """Return what all keys of a run begin with; without a run id, those of all runs below the prefix.

    Raises:
        ValueError: if the run id or the prefix cannot be one.
    """
    return prefix_path(prefix) if run_id is None else RunKeys.of(run_id, prefix).base


def runs_start(prefix: str) -> bytes:
    """Return what the keys of all runs below the prefix begin with."""
    return f"{prefix_path(prefix)}run_".encode()


def run_of(key: bytes, start: bytes) -> tuple[str, bytes] | None:
    """Return the run id of a key that begins with `start`, and the first key after all of the run."""
    segment, slash, _ = key[len(start) :].partition(b"/")
    if not slash or not key.startswith(start):
        return None
    after = prefix_end(start + segment + b"/")
    try:
        run_id = unquote(segment.decode(), errors="strict")
    except UnicodeDecodeError:
        return None
    # Others may have written names there that no run id makes.
    return (run_id, after) if run_id and _is_own(run_id, segment) else None


def _is_own(run_id: str, segment: bytes) -> bool:
    try:
        return run_segment(run_id).encode() == segment
    except ValueError:
        return False
