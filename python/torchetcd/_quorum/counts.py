"""What an agent counts of its quorum, for `torchetcd.metrics`."""

from __future__ import annotations

from torchetcd import _run_counts


class Counts:
    """Of one run. Nothing of this fails: it only changes numbers of this process."""

    def __init__(self, run_id: str, size: int) -> None:
        """Begin to count; the numbers are there from now on."""
        self._run_id, self._size = run_id, size
        self.member_runs(False)

    def member_runs(self, runs: bool) -> None:
        """Note whether a member runs here."""
        with _run_counts.quorum(self._run_id, self._size) as quorum:
            quorum.runs_member = runs

    def members_seen(self, number: int) -> None:
        """Note how many members run."""
        with _run_counts.quorum(self._run_id, self._size) as quorum:
            quorum.members = number

    def replaced(self) -> None:
        """Count that the member here has taken the place of another one."""
        with _run_counts.quorum(self._run_id, self._size) as quorum:
            quorum.replacements += 1

    def restarted(self) -> None:
        """Count that the member here is started again."""
        with _run_counts.quorum(self._run_id, self._size) as quorum:
            quorum.restarts += 1
