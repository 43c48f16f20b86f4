"""The rendezvous among real processes: who gets a place, and what the others learn of those who go."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes.nodes import TTL, Node, NodeError, Run, check_agreement, join_all
from support.waiting import eventually
from torchetcd.etcd import Client, EtcdException
from torchetcd.etcd_server import EtcdServer

# By the design a loss is known a second after the lease could run out; a busy machine takes longer.
NOTICED_S = TTL + 1 + 2
# For what takes no longer than the messages need. The others' leases live much longer.
AT_ONCE_S = 5


class TestRound:
    @pytest.mark.parametrize("count", [1, 2, 8, 32])
    def test_all_get_a_place_in_one_world(self, run: Run, count: int) -> None:
        # Longer than the test may take: complete when all are there.
        nodes = run.nodes(count, last_call_timeout=300, keep_alive_ttl=30)
        join_all(nodes)
        assert len(run.keys("/rdzv/round/1/member")) == count
        assert run.control()["state"] == "final"
        assert [node.call("waiting") for node in nodes] == [0] * count

    def test_the_last_call_ends(self, run: Run) -> None:
        nodes = run.nodes(3, 2, 4, last_call_timeout=2)
        for node in nodes[:2]:
            node.start("join")
        run.await_joined(2)
        began = time.monotonic()
        nodes[2].start("join")
        places = [node.finish() for node in nodes]
        check_agreement(places)
        ended = max(node.finished_at for node in nodes)
        # It began a little before it was seen here.
        assert 1.5 < ended - began < 2 + 10 + 1

    def test_a_full_world_needs_no_last_call(self, run: Run) -> None:
        places = join_all(run.nodes(3, 2, 3, last_call_timeout=300))
        assert places[0].world == 3

    def test_a_late_node_is_in_the_next_world(self, run: Run) -> None:
        members = run.nodes(2, 2, 3)
        late = run.node(2, 3)
        join_all(members)
        late.start("join")
        assert [node.call("await_waiting", 10) for node in members] == [1, 1]
        assert late.busy()
        for node in members:
            node.start("join")
        places = [node.finish() for node in [*members, late]]
        check_agreement(places)
        assert places[2].rank == 2
        assert run.control()["round"] == 2

    def test_ranks_are_stable(self, run: Run) -> None:
        nodes = run.nodes(4)
        first = {node.pid: place.rank for node, place in zip(nodes, join_all(nodes), strict=True)}
        backwards = nodes[::-1]
        second = join_all(backwards)
        assert {n.pid: p.rank for n, p in zip(backwards, second, strict=True)} == first

    def test_twenty_rounds_in_a_row(self, run: Run) -> None:
        nodes = run.nodes(4)
        first = [place.rank for place in join_all(nodes)]
        for round_ in range(2, 21):
            assert [place.rank for place in join_all(nodes)] == first
            assert run.control()["round"] == round_
        # What belongs to rounds that are over is deleted, after the completion that all wait for.
        eventually(lambda: not run.keys("/rdzv/round/19") and not run.keys("/rdzv/v_19"))

    def test_every_round_has_an_address_of_its_own(self, run: Run) -> None:
        nodes = run.nodes(2)
        first, second = join_all(nodes)[0], join_all(nodes)[0]
        assert first.master_addr == second.master_addr == "127.0.0.1"
        assert 0 < first.master_port < 65536
        assert 0 < second.master_port < 65536

    def test_two_runs_on_one_etcd(self, etcd_server: EtcdServer, client: Client) -> None:
        with (
            Run(etcd_server.get_endpoint(), client) as one,
            Run(etcd_server.get_endpoint(), client) as other,
        ):
            ones, others = one.nodes(3), other.nodes(3)
            for node in [*ones, *others]:
                node.start("join")
            check_agreement([node.finish() for node in ones])
            check_agreement([node.finish() for node in others])
            ones[0].call("set_closed")
            eventually(lambda: ones[1].call("is_closed"))
            assert not others[0].call("is_closed")
            join_all(others)

    def test_the_error_of_a_timeout_names_who_is_there(self, run: Run) -> None:
        hasty = run.node(3, 3, join_timeout=3)
        patient = run.node(3, 3)
        patient.start("join")
        run.await_joined(1)
        with pytest.raises(NodeError, match="RendezvousTimeoutError") as raised:
            hasty.call("join")
        message = str(raised.value)
        assert "2 of at least 3 nodes joined, 1 missing" in message
        for node in (hasty, patient):
            assert f"{os.uname().nodename} (pid {node.pid})" in message
        # It does not count any more.
        run.await_joined(1, timeout=AT_ONCE_S)


class TestSpare:
    def test_a_spare_disturbs_nobody(self, run: Run) -> None:
        members = run.nodes(2, keep_alive_ttl=TTL)
        spare = run.node(2, 2, keep_alive_ttl=TTL)
        join_all(members)
        spare.start("join")
        run.await_waiting(1)
        for node in members:
            node.start("most_waiting", 3 * TTL)
        assert [node.finish() for node in members] == [0, 0]
        assert spare.busy()

    def test_a_spare_takes_the_rank_of_a_lost_member(self, run: Run) -> None:
        members = run.nodes(3, keep_alive_ttl=TTL)
        places = join_all(members)
        spare = run.node(3, 3, keep_alive_ttl=TTL)
        spare.start("join")
        run.await_waiting(1)
        lost, *left = members
        _await_loss(lost.kill(), left)
        for node in left:
            node.start("join")
        again = [node.finish() for node in [spare, *left]]
        check_agreement(again)
        assert [place.rank for place in again] == [place.rank for place in places]

    def test_survivors_come_before_spares(self, run: Run) -> None:
        members = run.nodes(2)
        places = join_all(members)
        spares = run.nodes(3, 2, 2)
        for spare in spares:
            spare.start("join")
        run.await_waiting(3)
        # A new round without a loss, as after a failed worker.
        assert [place.rank for place in join_all(members)] == [place.rank for place in places]
        assert all(spare.busy() for spare in spares)


class TestLoss:
    def test_a_member_that_is_killed(self, run: Run) -> None:
        members = run.nodes(3, 2, 3, keep_alive_ttl=TTL)
        join_all(members)
        lost, *left = members
        _await_loss(lost.kill(), left)
        assert join_all(left)[0].world == 2

    def test_killed_after_joining(self, run: Run) -> None:
        """It still counts while its lease lives; then the world learns, and the next one is right."""
        first, lost = run.nodes(2, 3, 3, keep_alive_ttl=TTL)
        first.start("join")
        run.await_joined(1)
        lost.start("join")
        run.await_joined(2)
        killed = lost.kill()
        third, fourth = run.nodes(2, 3, 3, keep_alive_ttl=TTL)
        third.start("join")
        if first.finish().world == 3:
            third.finish()
            _await_loss(killed, [first, third])
            first.start("join")
            third.start("join")
        fourth.start("join")
        check_agreement([node.finish() for node in (first, third, fourth)])

    def test_the_coordinator_is_killed(self, run: Run) -> None:
        first = run.node(3, 3, keep_alive_ttl=TTL)
        first.start("join")
        run.await_joined(1)
        second = run.node(3, 3, keep_alive_ttl=TTL)
        second.start("join")
        run.await_joined(2)
        first.kill()
        run.await_joined(1)
        others = run.nodes(2, 3, 3, keep_alive_ttl=TTL)
        for node in others:
            node.start("join")
        check_agreement([node.finish() for node in [second, *others]])

    def test_the_coordinator_is_killed_in_the_last_call(self, run: Run) -> None:
        last_call = 3
        config = {"keep_alive_ttl": TTL, "last_call_timeout": last_call}
        first = run.node(2, 4, **config)
        first.start("join")
        run.await_joined(1)
        others = run.nodes(2, 2, 4, **config)
        for node in others:
            node.start("join")
        run.await_joined(3)
        enough = time.monotonic()
        eventually(lambda: run.keys("/rdzv/round/1/last_call"))
        first.kill()
        places = [node.finish() for node in others]
        ended = max(node.finished_at for node in others)
        assert ended - enough < last_call + NOTICED_S
        # The dead node may have a place, as its lease was alive when the places were given.
        if places[0].world == 3:
            _await_loss(ended, others)
        else:
            check_agreement(places)

    def test_all_members_are_killed(self, run: Run) -> None:
        members = run.nodes(2, keep_alive_ttl=TTL)
        join_all(members)
        for node in members:
            node.kill()
        killed = time.monotonic()
        newcomers = run.nodes(2, keep_alive_ttl=TTL)
        join_all(newcomers)
        assert max(node.finished_at for node in newcomers) - killed < NOTICED_S + 1
        assert run.control()["round"] == 2

    def test_a_member_is_lost_before_the_ranks_are_exchanged(self, run: Run) -> None:
        lost, left = run.nodes(2, keep_alive_ttl=TTL)
        place = join_all([lost, left])[0]
        left.start("store_get", "never set")
        killed = lost.kill()
        with pytest.raises(NodeError) as raised:
            left.finish()
        assert left.finished_at - killed < NOTICED_S
        message = str(raised.value)
        assert f"rank {place.rank} on {os.uname().nodename} (pid {lost.pid})" in message
        assert "round 1 was lost" in message

    def test_losses_can_be_ignored(self, run: Run) -> None:
        members = run.nodes(3, 2, 3, keep_alive_ttl=TTL, on_member_loss="ignore")
        join_all(members)
        lost, *left = members
        lost.kill()
        for node in left:
            node.start("most_waiting", NOTICED_S + 1)
        assert [node.finish() for node in left] == [0, 0]
        # A newcomer for the free place is another matter.
        newcomer = run.node(2, 3, keep_alive_ttl=TTL)
        newcomer.start("join")
        assert [node.call("await_waiting", 10) for node in left] == [1, 1]

    def test_a_node_that_was_silent_learns_that_it_is_out(self, run: Run) -> None:
        silent, other = run.nodes(2, keep_alive_ttl=TTL)
        places = join_all([silent, other])
        _await_loss(silent.signal(signal.SIGSTOP), [other])
        other.start("join")
        run.await_joined(1, round_=2)
        silent.signal(signal.SIGCONT)
        assert silent.call("await_waiting", NOTICED_S) == 1
        silent.start("join")
        again = [node.finish() for node in (silent, other)]
        check_agreement(again)
        # As far as the world is concerned it is another node.
        assert again[1].rank == places[1].rank

    def test_a_silent_node_whose_place_is_taken_waits(self, run: Run) -> None:
        silent, other = run.nodes(2, keep_alive_ttl=TTL)
        join_all([silent, other])
        _await_loss(silent.signal(signal.SIGSTOP), [other])
        join_all([other, run.node(2, 2, keep_alive_ttl=TTL)])
        silent.signal(signal.SIGCONT)
        assert silent.call("await_waiting", NOTICED_S) == 1
        silent.start("join")
        run.await_waiting(1, round_=2)
        assert other.call("waiting") == 0

    def test_nothing_is_left_in_etcd(self, run: Run) -> None:
        run_ttl = 3
        nodes = run.nodes(2, keep_alive_ttl=TTL, run_ttl=run_ttl)
        join_all(nodes)
        nodes[0].call("store_set", "key", "value")
        # The run's keys live as long as one node does.
        assert nodes[1].call("most_waiting", run_ttl + 2) == 0
        assert run.keys()
        for node in nodes:
            node.kill()
        eventually(lambda: not run.keys(), run_ttl + TTL + 5)

    def test_a_closed_run_is_forgotten(self, run: Run) -> None:
        nodes = run.nodes(2, run_ttl=3)
        join_all(nodes)
        assert [node.call("shutdown") for node in nodes] == [True, True]
        assert run.control()["state"] == "closed"
        eventually(lambda: not run.keys(), 3 + 5)


class TestClose:
    def test_those_who_wait_and_those_who_come(self, run: Run) -> None:
        waiting = run.nodes(2, 3, 3)
        for node in waiting:
            node.start("join")
        run.await_joined(2)
        closer = run.node(3, 3)
        closer.call("set_closed")
        for node in waiting:
            with pytest.raises(NodeError, match="RendezvousClosedError") as raised:
                node.finish()
            assert node.finished_at - closer.finished_at < AT_ONCE_S
            assert f"(pid {closer.pid}): set_closed() was called" in str(raised.value)
        for node in [*waiting, closer, run.node(3, 3)]:
            assert node.call("is_closed")
            with pytest.raises(NodeError, match="RendezvousClosedError"):
                node.call("join")

    def test_a_spare_learns_of_it(self, run: Run) -> None:
        members = run.nodes(2)
        join_all(members)
        spare = run.node(2, 2)
        spare.start("join")
        run.await_waiting(1)
        assert members[0].call("shutdown")
        with pytest.raises(NodeError, match="RendezvousOverError: .*the job succeeded"):
            spare.finish()
        assert spare.finished_at - members[0].finished_at < AT_ONCE_S

    def test_members_of_a_closed_run_go_in_peace(self, run: Run) -> None:
        """Otherwise nodes that finish later would be torn down."""
        members = run.nodes(4, keep_alive_ttl=TTL)
        join_all(members)
        last = members.pop()
        last.start("most_waiting", TTL + 3)
        for node in members[:2]:
            assert node.call("shutdown")
        members[2].kill()
        assert last.finish() == 0
        assert last.call("is_closed")

    def test_closing_twice(self, run: Run) -> None:
        one, other = run.nodes(2)
        join_all([one, other])
        one.call("set_closed")
        assert other.call("shutdown")
        # Who was first counts.
        assert f"(pid {one.pid})" in run.control()["by"]


class TestSignals:
    @pytest.mark.parametrize(
        ("signum", "raised"),
        [(signal.SIGTERM, "SignalException"), (signal.SIGINT, "KeyboardInterrupt")],
    )
    def test_a_signal_ends_the_wait(self, run: Run, signum: signal.Signals, raised: str) -> None:
        leaving, staying = run.nodes(2, 3, 3, keep_alive_ttl=60)
        for node in (leaving, staying):
            node.start("join")
        run.await_joined(2)
        sent = leaving.signal(signum)
        with pytest.raises(NodeError, match=raised):
            leaving.finish()
        assert leaving.finished_at - sent < AT_ONCE_S
        # Its key does not wait for the lease to run out, and the run goes on without it.
        run.await_joined(1, timeout=AT_ONCE_S)
        assert not leaving.call("is_closed")
        others = run.nodes(2, 3, 3)
        for node in others:
            node.start("join")
        check_agreement([node.finish() for node in [staying, *others]])

    def test_who_was_interrupted_can_join_again(self, run: Run) -> None:
        one, other = run.nodes(2)
        one.start("join")
        run.await_joined(1)
        one.signal(signal.SIGINT)
        with pytest.raises(NodeError, match="KeyboardInterrupt"):
            one.finish()
        join_all([one, other])

    def test_a_spare_ends(self, run: Run) -> None:
        members = run.nodes(2)
        join_all(members)
        spare = run.node(2, 2, keep_alive_ttl=60)
        spare.start("join")
        run.await_waiting(1)
        sent = spare.signal(signal.SIGTERM)
        with pytest.raises(NodeError, match="SignalException"):
            spare.finish()
        assert spare.finished_at - sent < AT_ONCE_S
        run.await_waiting(0, timeout=AT_ONCE_S)

    def test_a_wait_in_the_store_ends(self, run: Run) -> None:
        nodes = run.nodes(2, keep_alive_ttl=60)
        join_all(nodes)
        nodes[0].start("store_get", "never set")
        nodes[1].call("store_get", "waits for never set")
        sent = nodes[0].signal(signal.SIGTERM)
        with pytest.raises(NodeError, match="SignalException"):
            nodes[0].finish()
        assert nodes[0].finished_at - sent < AT_ONCE_S


@pytest.mark.needs_etcd
class TestEtcdOutage:
    """An etcd of their own, which ends and comes back on the same port with its data."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[EtcdServer]:
        with EtcdServer(data_dir=str(tmp_path / "etcd")) as server:
            yield server

    @pytest.fixture
    def run(self, server: EtcdServer) -> Iterator[Run]:
        with server.get_client() as client, Run(server.get_endpoint(), client) as made:
            yield made

    def test_nobody_is_lost(self, server: EtcdServer, run: Run) -> None:
        members = run.nodes(3, 2, 3, keep_alive_ttl=TTL)
        places = join_all(members)
        for node in members:
            node.start("most_waiting", 4 * TTL)
        _restart(server, run.client, down=TTL + 1)
        assert [node.finish() for node in members] == [0, 0, 0]
        # A node that is lost after that is noticed all the same.
        (_, lost), *left = sorted(zip(places, members, strict=True), key=lambda p: p[0].rank)
        survivors = [node for _, node in left]
        _await_loss(lost.kill(), survivors)
        assert [place.rank for place in join_all(survivors)] == [0, 1]

    def test_a_round_goes_on(self, server: EtcdServer, run: Run) -> None:
        first, second = run.nodes(2, keep_alive_ttl=TTL)
        first.start("join")
        run.await_joined(1)
        _restart(server, run.client, down=TTL + 1)
        second.start("join")
        check_agreement([node.finish() for node in (first, second)])

    def test_a_signal_ends_a_wait_without_etcd(self, server: EtcdServer, run: Run) -> None:
        node = run.node(2, 2)
        node.start("join")
        run.await_joined(1)
        process = _process(server)
        process.send_signal(signal.SIGSTOP)
        try:
            sent = node.signal(signal.SIGTERM)
            with pytest.raises(NodeError, match="SignalException"):
                node.finish()
            assert node.finished_at - sent < AT_ONCE_S
        finally:
            process.send_signal(signal.SIGCONT)


def _await_loss(since: float, nodes: list[Node]) -> None:
    """Wait until all nodes know of a loss, and check that they knew in time."""
    for node in nodes:
        node.start("await_waiting", 30)
    for node in nodes:
        assert node.finish(40) >= 1
        assert node.finished_at - since < NOTICED_S


def _process(server: EtcdServer) -> subprocess.Popen[bytes]:
    process = server._process
    assert process is not None
    return process


def _restart(server: EtcdServer, client: Client, down: float) -> None:
    process = _process(server)
    process.kill()
    process.wait()
    time.sleep(down)
    # `EtcdServer` itself would take other ports.
    server._process = subprocess.Popen(
        process.args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        try:
            return bool(client.read("/", timeout=1))
        except EtcdException:
            return False

    eventually(answers, 20)
