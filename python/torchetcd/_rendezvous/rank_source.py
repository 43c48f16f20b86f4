"""Where a node's rank comes from, as its parameters say: checks, and what the environment tells."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from torchetcd._rendezvous import torchrun_arguments

RANK_ORDERS = ("join", "stable", "infra", "topology")
#: Where a scheduler tells an agent its rank, in the order in which they are asked. A process of mpirun comes
#: first: within a batch step of Slurm it inherits that step's `SLURM_PROCID`, which is 0 for all.
RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",  # Open MPI: one agent is one process
    "PMIX_RANK",  # any launcher with PMIx, `srun --mpi=pmix` too
    "PMI_RANK",  # MPICH, Intel MPI, `srun --mpi=pmi2`
    "SLURM_PROCID",  # Slurm: one agent is one task
    "GROUP_RANK",  # the agent of an outer torchrun
    "JOB_COMPLETION_INDEX",  # a pod of an Indexed Job
    "LWS_WORKER_INDEX",  # a pod of a LeaderWorkerSet
    "PET_NODE_RANK",  # a pod of a Kubeflow job
    "NODE_RANK",  # Azure ML, SageMaker, Lightning
)
_LONGEST_LABEL = 128
_LARGEST_RANK = 2**31 - 1


def rank_of_infra(what: str, value: Any) -> int:
    """Check a rank that the infrastructure gave.

    Args:
        what: Where it was given, as the subject of a sentence.
        value: It.

    Raises:
        ValueError: if it is none.
    """
    try:
        number = None if isinstance(value, (bool, float)) else int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not 0 <= number <= _LARGEST_RANK:
        message = f"{what} must be a whole number from 0 to {_LARGEST_RANK}, not {value!r}."
        raise ValueError(message)
    return number


def find_infra_rank() -> int:
    """Return the rank that the scheduler gave this agent.

    Raises:
        ValueError: if it gave none, or what it gave is no rank.
    """
    given = _given_rank()
    if given is not None:
        return rank_of_infra(*given)
    message = (
        "rank_order=infra needs the rank of this node: the rendezvous parameter 'infra_rank', torchrun's "
        f"--node-rank, or one of the environment variables {', '.join(RANK_VARIABLES)}. None of them is set."
    )
    raise ValueError(message)


def _given_rank() -> tuple[str, str] | None:
    """Return where a rank was given, and it.

    What a user has typed comes first: Slurm's variable of a batch step survives ssh and mpirun.
    """
    given = torchrun_arguments.argument("node_rank")
    if given is not None:
        return "torchrun's argument --node-rank", given
    for variable in RANK_VARIABLES:
        value = os.environ.get(variable)
        if value:
            return f"The environment variable {variable}", value
    return None


def label(what: str, value: Any) -> str:
    """Check a name of a node that others see.

    Args:
        what: Where it was given, as the subject of a sentence.
        value: It.

    Raises:
        ValueError: if it is none that can be kept and shown.
    """
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    printable = not any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text)
    if not text or not printable or len(text.encode(errors="replace")) > _LONGEST_LABEL:
        message = (
            f"{what} must be text of 1 to {_LONGEST_LABEL} bytes without control "
            f"characters, not {value!r}."
        )
        raise ValueError(message)
    return text


def check_ranks(values: dict[str, Any]) -> None:
    """Check the parameters about ranks together, and find the rank of the infrastructure if it is needed.

    Raises:
        ValueError: if one needs another one that is not given.
    """
    order = values["rank_order"]
    if values["infra_rank"] is None:
        if order == "infra":
            values["infra_rank"] = find_infra_rank()
        elif given := _given_rank():
            # Ranks do not follow from it, but `torchetcd why` tells by it who has not come.
            with contextlib.suppress(ValueError):
                values["infra_rank"] = rank_of_infra(*given)
    if order == "topology" and values["domain"] is None:
        message = "rank_order=topology needs the rendezvous parameter 'domain', which is not given."
        raise ValueError(message)
    if order != "topology" and values["segment"] != 1:
        message = f"The rendezvous parameter 'segment' needs rank_order=topology, not {order}."
        raise ValueError(message)


def check_segments(segment: int, min_nodes: int, max_nodes: int) -> None:
    """Check that a world of whole segments is possible.

    Raises:
        ValueError: if none is.
    """
    if -(-min_nodes // segment) * segment > max_nodes:
        message = (
            f"There is no world of {min_nodes} to {max_nodes} nodes that is made of whole segments of "
            f"{segment}: change min_nodes, max_nodes or the rendezvous parameter 'segment'."
        )
        raise ValueError(message)
