"""Leases: no passing error ends their renewal, and one that is really lost is noticed at once."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.etcd.cluster import Cluster
from support.etcd.metrics import metric
from support.network.http2 import StreamEnder
from support.network.proxy import Proxy
from support.processes.nodes import TTL, Run, check_agreement, join_all
from support.waiting import eventually
from torchetcd.etcd import Client
from torchetcd.etcd_rendezvous import EtcdRendezvousHandler, create_rdzv_handler
from torchetcd.etcd_server import EtcdServer

pytestmark = pytest.mark.needs_etcd


def _handler(port: int, run: Run, ttl: int) -> EtcdRendezvousHandler:
    endpoint = f"127.0.0.1:{port}"
    return create_rdzv_handler(
        RendezvousParameters(
            "etcd-v3", endpoint, run.run_id, 1, 1, local_addr="127.0.0.1", keep_alive_ttl=ttl
        )
    )


def _identity(run: Run) -> list[tuple[str, int]]:
    """The run's keys and when they were made: a node that lost its lease has others."""
    leaves = run.client.read(run.path, recursive=True).leaves
    return sorted((leaf.key, leaf.createdIndex) for leaf in leaves)


def _await_stream(run: Run) -> int:
    """Wait until the member's lease was renewed, so that the stream for it is open; return the lease."""
    (member,) = run.keys("/rdzv/round/1/member")
    lease: int = run.client.read(member).lease
    _, granted = run.client._native.lease_time_to_live(lease)
    eventually(lambda: run.client._native.lease_time_to_live(lease)[0] < granted - 1, 10)
    eventually(lambda: run.client._native.lease_time_to_live(lease)[0] >= granted - 1, 10)
    return lease


def _lasts(run: Run, before: list[tuple[str, int]], seconds: float) -> None:
    ended = threading.Event()
    for _ in range(int(seconds / 0.25)):
        assert _identity(run) == before
        ended.wait(0.25)


class TestRenewal:
    """pytorch issue 194870: one passing error ended the renewal, and the node was lost a TTL later."""

    ttl = 4

    @pytest.mark.slow(20)
    def test_after_errors(self, client: Client, run: Run) -> None:
        with Proxy(client.port) as proxy:
            handler = _handler(proxy.port, run, self.ttl)
            with handler.next_rendezvous().store:
                before = _identity(run)
                # Each renewal that is under way, or comes meanwhile, fails.
                for _ in range(4):
                    proxy.cut()
                    _lasts(run, before, self.ttl / 4)
                    proxy.mend()
                    _lasts(run, before, self.ttl / 2)
                _lasts(run, before, 2 * self.ttl)
                assert handler.num_nodes_waiting() == 0
            assert handler.shutdown()

    @pytest.mark.slow(11)
    def test_after_a_stream_that_ends_without_an_error(self, client: Client, run: Run) -> None:
        with StreamEnder(client.port) as ender:
            handler = _handler(ender.port, run, self.ttl)
            with handler.next_rendezvous().store:
                before = _identity(run)
                for _ in range(3):
                    # The renewal's, and that of the watches.
                    eventually(lambda: ender.streams() == 2)
                    assert ender.end_streams() == 2
                _lasts(run, before, 2 * self.ttl)
                assert handler.num_nodes_waiting() == 0
            assert handler.shutdown()

    @pytest.mark.slow(11)
    def test_after_a_stream_that_is_stuck(self, client: Client, run: Run) -> None:
        """While its member answers what else it is asked.

        A follower does that for 7 s when the leader, to which it hands renewals on, has fallen silent.
        """
        with StreamEnder(client.port) as ender:
            handler = _handler(ender.port, run, self.ttl)
            with handler.next_rendezvous().store:
                before = _identity(run)
                _await_stream(run)
                assert ender.silence_streams() >= 2
                _lasts(run, before, 2 * self.ttl)
            assert handler.shutdown()

    def test_reopening_is_no_storm(self, client: Client, run: Run) -> None:
        """A renewal that fails again and again asks a few times in a TTL, not all the time."""
        with Proxy(client.port) as proxy:
            handler = _handler(proxy.port, run, self.ttl)
            with handler.next_rendezvous().store:
                before = _identity(run)
                proxy.cut()
                refused = proxy.connections
                _lasts(run, before, self.ttl / 2)
                assert proxy.connections - refused <= 20
                proxy.mend()
                _lasts(run, before, 2 * self.ttl)
            assert handler.shutdown()

    def test_streams_are_few(self, client: Client, etcd_server: EtcdServer, run: Run) -> None:
        """All renewals of a lease share a stream: etcd opens none for each of them."""
        pattern = r'grpc_server_started_total{grpc_method="LeaseKeepAlive",.*}'
        handler = _handler(client.port, run, TTL)
        opened = metric(etcd_server, pattern)
        renewed = r'grpc_server_msg_received_total{grpc_method="LeaseKeepAlive",.*}'
        received = metric(etcd_server, renewed)
        with handler.next_rendezvous().store:
            eventually(lambda: metric(etcd_server, renewed) >= received + 9, 30)
            # The run's lease, which is long, is renewed by short calls.
            assert metric(etcd_server, pattern) <= opened + 3
        assert handler.shutdown()


class TestLost:
    def test_nobody_else_is_there_to_tell(self, client: Client, run: Run) -> None:
        handler = _handler(client.port, run, 6)
        with handler.next_rendezvous().store:
            # The next answer on the stream says it.
            lease = _await_stream(run)
            client._native.lease_revoke(lease)
            eventually(lambda: handler.num_nodes_waiting() == 1, 10)
        with handler.next_rendezvous().store:
            (member,) = run.keys("/rdzv/round/2/member")
            assert client.read(member).lease != lease
            assert handler.num_nodes_waiting() == 0
        assert handler.shutdown()

    def test_a_member_learns_it_and_comes_back_as_another(self, client: Client, run: Run) -> None:
        first, second = run.nodes(2, keep_alive_ttl=6)
        places = join_all([first, second])
        keys = run.keys("/rdzv/round/1/member")
        lost = next(key for key in keys if _rank(client, key) == places[0].rank)
        lease = client.read(lost).lease
        first.start("store_get", "never")
        # etcd takes it away; the next renewal is told so.
        client._native.lease_revoke(lease)
        with pytest.raises(Exception, match="MemberLostError"):
            first.finish()
        for node in (first, second):
            assert node.call("await_waiting", 10) == 1
        check_agreement(join_all([first, second]))
        again = {key.rsplit("/", 1)[1] for key in run.keys("/rdzv/round/2/member")}
        assert len(again) == 2
        assert lost.rsplit("/", 1)[1] not in again

    def test_in_the_barrier(self, client: Client, run: Run) -> None:
        first, second = run.nodes(2, keep_alive_ttl=3)
        first.start("join")
        run.await_joined(1)
        (join,) = run.keys("/rdzv/round/1/join")
        client._native.lease_revoke(client.read(join).lease)
        # It joins again by itself, as another node.
        eventually(lambda: run.keys("/rdzv/round/1/join") not in ([], [join]), 15)
        second.start("join")
        check_agreement([node.finish() for node in (first, second)])


class TestTtl:
    def test_etcds_least(self, client: Client) -> None:
        """etcd gives 2 s to who asks for 1 s: the TTL that a node may have begins there."""
        lease = client._native.lease_grant(1)
        assert client._native.lease_time_to_live(lease)[1] == 2
        client._native.lease_revoke(lease)

    @pytest.mark.parametrize("ttl", [1, "1", 0])
    def test_less_is_refused(self, run: Run, ttl: Any) -> None:
        with pytest.raises(ValueError, match=r"keep_alive_ttl.*2"):
            _handler(1, run, ttl)

    def test_the_least_lasts(self, client: Client, run: Run) -> None:
        handler = _handler(client.port, run, TTL)
        with handler.next_rendezvous().store:
            _lasts(run, _identity(run), 3 * TTL)
        assert handler.shutdown()

    def test_a_loss_together_with_the_leader(self) -> None:
        """A new leader gives all leases their whole time again, so it takes two TTLs at most."""
        ttl, election_s, slack_s = 5, 2, 3
        with (
            Cluster() as cluster,
            cluster.client() as client,
            Run(cluster.endpoints, client) as run,
        ):
            lost, left = run.nodes(2, keep_alive_ttl=ttl)
            join_all([lost, left])
            leader = cluster.leader()
            assert leader is not None
            leader.kill()
            killed = lost.kill()
            assert left.call("await_waiting", 30, timeout=40) == 1
            assert left.finished_at - killed < 2 * ttl + election_s + slack_s


def _rank(client: Client, key: str) -> int:
    return int(json.loads(client.read(key).value)["rank"])
