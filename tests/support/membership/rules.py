"""What agents of the model act by: the decisions of the package, or those with one guard less."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchetcd._quorum import decisions
from torchetcd._quorum.decisions import Change, Own, Seen, Start, Told

#: `quorum_replace_after` of the model: a member is gone for 1 s or for as long as this.
REPLACE_AFTER_S = 30.0


@dataclass(frozen=True)
class Rules:
    """How agents and etcd act. What is not the default is a wrong variant, or one that was wrong."""

    start: Callable[[Told], Start] = decisions.start
    next_change: Callable[[Sequence[Seen], Own, int, float], Change] = decisions.next_change
    #: Which changes wait for the key.
    keyless: tuple[type, ...] = ()
    #: Whether etcd refuses to add and to remove where too few are connected (`--strict-reconfig-check`).
    strict: bool = True
    #: What `look_around` finds: data is what is on the disk, not what the agent has heard of.
    by_disk: bool = True
    #: A member is awaited by its first id, not by its URL.
    by_id: bool = True
    #: A majority says whether it is, not any member.
    by_majority: bool = True
    #: A first member that was started and has never seen another counts as fresh.
    counts_virgins: bool = True
    #: Whether data may be lost at so many first entries that a majority of them is blank.
    any_losses: bool = False
    #: Whether a member that forgets is a violation; otherwise only what comes of it is one.
    remembers: bool = True
    #: What an agent knows of a quorum outlives it, and it is never fresh again.
    keeps_knowledge: bool = True
    #: Agents at all entries are asked whether they have heard of a quorum, before one begins.
    asks_all: bool = True
    #: A member is asked once more before it is removed.
    confirms: bool = True
    #: A learner whose agent does not hold the key is removed even if it runs.
    removes_learners_that_run: bool = True


RIGHT = Rules()
