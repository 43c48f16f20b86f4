"""What ranks follow from: the parameters and what they do among real processes."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from support.processes.nodes import Node, Run, check_agreement, join_all
from torchetcd._rendezvous.options import parse_options
from torchetcd._rendezvous.rank_source import RANK_VARIABLES as VARIABLES
from torchetcd.etcd_rendezvous import create_rdzv_handler
from torchetcd.etcd_server import EtcdServer


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def _nodes(run: Run, least: int, most: int, *configs: dict[str, Any]) -> list[Node]:
    common = {"last_call_timeout": 300, "keep_alive_ttl": 30}
    return [run.node(least, most, **(common | config)) for config in configs]


def _join_one_by_one(run: Run, nodes: list[Node], round_: int = 1) -> list[int]:
    """Let nodes join in this order, and return their ranks."""
    for count, node in enumerate(nodes, 1):
        node.start("join")
        if count < len(nodes):
            run.await_joined(count, round_)
    places = [node.finish(60) for node in nodes]
    check_agreement(places)
    return [place.rank for place in places]


class Coordinator:
    """A handler in this process, whose log can be seen; the first node of its run."""

    def __init__(self, endpoint: str, run: Run, **config: Any) -> None:
        given = {"last_call_timeout": 300, "keep_alive_ttl": 30} | config
        self.handler = create_rdzv_handler(
            RendezvousParameters(
                "etcd-v3", endpoint, run.run_id, 2, 2, local_addr="127.0.0.1", **given
            )
        )
        self._pool = ThreadPoolExecutor(1)
        self.joining = self._pool.submit(self.handler.next_rendezvous)
        run.await_joined(1)

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.handler._rdzv_impl.leave()
        self._pool.shutdown()


class TestParameters:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                {"rank_order": "random"},
                "'rank_order' must be join or stable or infra or topology, not 'random'",
            ),
            ({"rank_order": "topology"}, "needs the rendezvous parameter 'domain'"),
            ({"segment": "4"}, "'segment' needs rank_order=topology, not stable"),
            (
                {"rank_order": "topology", "domain": "a", "segment": "0"},
                "'segment' must be a whole number of nodes",
            ),
            (
                {"infra_rank": "-1"},
                "'infra_rank' must be a whole number from 0 to 2147483647, not '-1'",
            ),
            ({"infra_rank": "1.5"}, "'infra_rank' must be a whole number"),
            ({"infra_rank": True}, "'infra_rank' must be a whole number"),
            ({"domain": ""}, "'domain' must be text of 1 to 128 bytes"),
            (
                {"domain": "a\nb"},
                "'domain' must be text of 1 to 128 bytes without control characters",
            ),
            ({"node_id": "x" * 129}, "'node_id' must be text of 1 to 128 bytes"),
            ({"node_id": 1.5}, "'node_id' must be text"),
        ],
    )
    def test_what_cannot_be_is_refused(self, config: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match="The rendezvous parameter|rank_order=") as raised:
            parse_options(config)
        assert message in str(raised.value)

    def test_infra_needs_a_rank(self) -> None:
        with pytest.raises(
            ValueError, match="rank_order=infra needs the rank of this node"
        ) as raised:
            parse_options({"rank_order": "infra"})
        assert all(name in str(raised.value) for name in ["infra_rank", *VARIABLES])

    @pytest.mark.parametrize("name", VARIABLES)
    def test_infra_asks_the_scheduler(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setenv(name, "7")
        assert parse_options({"rank_order": "infra"}).infra_rank == 7
        assert parse_options({"rank_order": "infra", "infra_rank": "3"}).infra_rank == 3
        # Ranks do not follow from it then, but others see it.
        assert parse_options({}).infra_rank == 7
        assert parse_options({"infra_rank": 3}).infra_rank == 3
        monkeypatch.setenv(name, "seven")
        assert parse_options({}).infra_rank is None

    @pytest.mark.parametrize(
        ("argv", "rank"),
        [
            (["/bin/torchrun", "--node-rank", "2", "train.py"], 2),
            (["/bin/torchrun", "--node_rank=3", "train.py"], 3),
            (["/lib/torch/distributed/run.py", "--nnodes", "4", "--node-rank=1", "train.py"], 1),
            (["/bin/torchrun", "train.py"], None),
            (["/bin/torchrun", "train.py", "--node-rank"], None),
            (["/bin/torchrun", "train.py", "--node-rank", "2"], None),
            (["/bin/other", "--node-rank", "2"], None),
        ],
    )
    def test_infra_asks_torchrun(
        self, monkeypatch: pytest.MonkeyPatch, argv: list[str], rank: int | None
    ) -> None:
        monkeypatch.setattr("sys.argv", argv)
        assert parse_options({}).infra_rank == rank
        if rank is not None:
            assert parse_options({"rank_order": "infra"}).infra_rank == rank

    @pytest.mark.parametrize("name", VARIABLES)
    def test_what_was_typed_comes_first(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Slurm's variable of a batch step survives ssh and mpirun."""
        monkeypatch.setenv(name, "0")
        monkeypatch.setattr("sys.argv", ["/bin/torchrun", "--node-rank", "3", "train.py"])
        assert parse_options({}).infra_rank == 3
        assert parse_options({"rank_order": "infra"}).infra_rank == 3

    @pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"])
    def test_mpirun_within_a_batch_step(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """The step's own number is 0 for all that mpirun starts, and the cluster's image says NODE_RANK."""
        for step in ("SLURM_PROCID", "NODE_RANK"):
            monkeypatch.setenv(step, "0")
        monkeypatch.setenv(name, "3")
        assert parse_options({"rank_order": "infra"}).infra_rank == 3

    def test_the_variable_that_is_no_number_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_PROCID", "seven")
        monkeypatch.setenv("GROUP_RANK", "7")
        with pytest.raises(ValueError, match="environment variable SLURM_PROCID .* not 'seven'"):
            parse_options({"rank_order": "infra"})

    def test_segments_that_no_world_has(self) -> None:
        # Before anything is sent: nothing listens there.
        params = RendezvousParameters(
            "etcd-v3", "127.0.0.1:1", "x", 5, 7, rank_order="topology", domain="a", segment=4
        )
        with pytest.raises(ValueError, match="no world of 5 to 7 nodes .* whole segments of 4"):
            create_rdzv_handler(params)


class TestOrders:
    def test_join(self, run: Run) -> None:
        nodes = _nodes(run, 3, 3, *[{"rank_order": "join"}] * 3)
        assert _join_one_by_one(run, nodes) == [0, 1, 2]
        # The first one opens the round.
        assert _join_one_by_one(run, nodes[::-1], 2) == [0, 1, 2]

    def test_infra(self, run: Run) -> None:
        ranks = [5, 0, 9, 2]
        nodes = _nodes(run, 4, 4, *[{"rank_order": "infra", "infra_rank": rank} for rank in ranks])
        places = join_all(nodes)
        assert [place.rank for place in places] == [2, 0, 3, 1]

    def test_a_rank_that_two_have_is_told(
        self, etcd_server: EtcdServer, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The coordinator says it in its log, and who came first comes first."""
        config = {"rank_order": "infra", "infra_rank": 4}
        (other,) = _nodes(run, 2, 2, config)
        with (
            caplog.at_level(logging.WARNING, "torchetcd"),
            Coordinator(etcd_server.get_endpoint(), run, **config) as coordinator,
        ):
            place = other.call("join", timeout=60)
            assert (coordinator.joining.result(60).rank, place.rank) == (0, 1)
        (text,) = [text for text in caplog.messages if "infra_rank" in text]
        assert "several nodes have the infra_rank 4" in text
        assert f"(pid {other.pid})" in text

    def test_another_order_of_others_is_told(
        self, etcd_server: EtcdServer, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        (other,) = _nodes(run, 2, 2, {})
        with (
            caplog.at_level(logging.WARNING, "torchetcd"),
            Coordinator(etcd_server.get_endpoint(), run, rank_order="join") as coordinator,
        ):
            other.call("join", timeout=60)
            coordinator.joining.result(60)
        (text,) = [text for text in caplog.messages if "rank_order" in text]
        assert "ranks are by join, which is the rank_order of the coordinator" in text
        assert (
            f"1 of 2 nodes have another one, such as {os.uname().nodename} (pid {other.pid}) by stable"
            in text
        )


def _domains(*domains: str, segment: int = 2) -> list[dict[str, Any]]:
    return [{"rank_order": "topology", "domain": d, "segment": segment} for d in domains]


class TestTopology:
    def test_nodes_of_a_domain_are_neighbours(self, run: Run) -> None:
        nodes = _nodes(run, 5, 5, *_domains("a", "b", "a", "c", "b", segment=1))
        ranks = _join_one_by_one(run, nodes)
        assert ranks == [0, 2, 1, 4, 3]

    def test_who_fills_no_segment_waits_and_makes_nobody_restart(self, run: Run) -> None:
        configs = [c | {"last_call_timeout": 0} for c in _domains("a", "b", "a")]
        a, b, other = _nodes(run, 2, 4, *configs)
        for node in (a, b):
            node.start("join")
        # Enough nodes, but no segment.
        run.await_joined(2)
        other.start("join")
        check_agreement([a.finish(60), other.finish(60)])
        run.await_waiting(1)
        assert a.call("most_waiting", 0.5) == 0
        assert b.busy()

    def test_a_domain_that_is_incomplete_waits_until_it_is_not(self, run: Run) -> None:
        config = {"last_call_timeout": 5}
        a, other_a = _nodes(run, 2, 4, *[c | config for c in _domains("a", "a")])
        b, other_b = _nodes(run, 2, 4, *[c | config for c in _domains("b", "b")])
        assert [place.world for place in join_all([a, other_a])] == [2, 2]
        b.start("join")
        run.await_waiting(1)
        assert a.call("most_waiting", 0.5) == 0
        other_b.start("join")
        assert a.call("await_waiting", 30) == 2
        for node in (a, other_a):
            node.start("join")
        places = [node.finish(60) for node in (a, other_a, b, other_b)]
        check_agreement(places)
        # The domain that was there keeps its place.
        assert [{p.rank for p in places[:2]}, {p.rank for p in places[2:]}] == [{0, 1}, {2, 3}]
