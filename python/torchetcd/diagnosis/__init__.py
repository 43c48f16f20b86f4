"""Why a run does not go on and which nodes are missing, from what `torchetcd.aio` reports.

Nothing is asked and nothing is printed: values go in, and sentences or values come out.

    run = await client.describe("job")
    print(explain(run))
    print(missing(run).members)
"""

from torchetcd._closed_run import how_it_ended
from torchetcd.diagnosis._absence import Missing, missing, still_needed
from torchetcd.diagnosis._explanation import explain
from torchetcd.diagnosis._host_lists import compact_names, expand_names
from torchetcd.diagnosis._node_names import (
    close_names,
    denials_called,
    denied_as,
    nodes_called,
    present_nodes,
    share_a_host,
)
from torchetcd.diagnosis._split_jobs import apart_from, said_of_all

__all__ = [
    "Missing",
    "apart_from",
    "close_names",
    "compact_names",
    "denials_called",
    "denied_as",
    "expand_names",
    "explain",
    "how_it_ended",
    "missing",
    "nodes_called",
    "present_nodes",
    "said_of_all",
    "share_a_host",
    "still_needed",
]
