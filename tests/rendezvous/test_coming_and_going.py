"""Nodes that come and go: what users of other rendezvous met, and what holds here."""

from __future__ import annotations

from support.processes.nodes import TTL, Run, check_agreement, join_all
from support.waiting import eventually


def test_more_come_than_were_lost(run: Run) -> None:
    """Of three to four nodes two are lost, one comes, and then three more: one of these has a place."""
    members = run.nodes(4, 3, 4, keep_alive_ttl=TTL)
    join_all(members)
    lost, left = members[:2], members[2:]
    for node in lost:
        node.kill()
    for node in left:
        node.call("await_waiting", 30, timeout=40)
        node.start("join")
    # Both have come anew, and are too few.
    run.await_joined(2, round_=2, timeout=40)
    assert all(node.busy() for node in left)
    three = [*left, run.node(3, 4, keep_alive_ttl=TTL)]
    three[2].start("join")
    places = [node.finish() for node in three]
    check_agreement(places)
    more = run.nodes(3, 3, 4, keep_alive_ttl=TTL)
    for node in more:
        node.start("join")
    run.await_waiting(3, round_=2, timeout=40)
    for node in three:
        assert node.call("await_waiting", 30, timeout=40) > 0
        node.start("join")
    again = [node.finish() for node in three]
    assert [place.rank for place in again] == [place.rank for place in places]
    eventually(lambda: not all(node.busy() for node in more))
    placed = [node for node in more if not node.busy()]
    check_agreement([*again, *(node.finish() for node in placed)])
    run.await_waiting(2, round_=3, timeout=40)
