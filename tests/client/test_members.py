"""Members are listed, added, promoted and removed, and what etcd says against it is told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from support.etcd.cluster import Cluster, Member, take_port
from support.network.proxy import Proxy
from support.waiting import eventually
from torchetcd import _native
from torchetcd._torchetcd import Client
from torchetcd.etcd import EtcdAmbiguous, EtcdConnectionFailed, EtcdException

pytestmark = pytest.mark.needs_etcd


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Run a cluster that begins with one member."""
    with Cluster(1) as running:
        yield running


def native(endpoints: str, timeout_s: float = 20.0) -> Client:
    return _native.Client(endpoints, request_timeout_s=timeout_s)


def refusal(call: Callable[[], object]) -> str | None:
    """Return how etcd refuses; `None` where it does not."""
    try:
        call()
    except EtcdException as exc:
        if exc.refusal is None:
            raise
        return exc.refusal
    return None


def patiently(call: Callable[[], object], *reasons: str) -> None:
    """Repeat a call that etcd refuses for these reasons, until it does not."""

    def done() -> bool:
        said = refusal(call)
        assert said in {None, *reasons}
        return said is None

    eventually(done)


def joining(cluster: Cluster) -> Member:
    """Make a member that joins when it is started."""
    name = f"etcd-{len(cluster.members) + 1}"
    member = Member(name, cluster.members[0].data.parent, ["--initial-cluster-state=existing"])
    cluster.members.append(member)
    cluster.advertised[name] = f"http://127.0.0.1:{member.peer_port}"
    return member


def voters(client: Client) -> int:
    return sum(not is_learner for *_, is_learner in client.member_list())


@pytest.mark.slow(20)
def test_a_cluster_grows_and_shrinks(cluster: Cluster) -> None:
    client = native(cluster.members[0].url)
    second = joining(cluster)
    peer_urls = [cluster.advertised[second.name]]

    learner, listed = client.member_add(peer_urls, is_learner=True)
    assert (learner, "", peer_urls, [], True) in listed
    assert sorted(listed) == sorted(client.member_list())
    assert refusal(lambda: client.member_add(peer_urls, is_learner=False)) in {
        "peer_url_exists",
        "member_exists",  # an id is made of the URLs and of the present second
    }
    other = ["http://127.0.0.1:1"]
    assert refusal(lambda: client.member_add(other, is_learner=True)) in {
        "too_many_learners",
        "unhealthy_cluster",  # since 3.5.16, where the learner counts as a member that is away
    }
    assert refusal(lambda: client.member_add(["x"], is_learner=False)) == "invalid_member_urls"
    assert refusal(lambda: client.member_promote(learner)) == "learner_not_ready"

    cluster.restart(second)
    # What it says of itself, although it serves nobody.
    eventually(lambda: client.status(second.url)[0][-1])
    patiently(lambda: client.member_promote(learner), "learner_not_ready")
    assert voters(client) == 2
    assert sorted(client.member_promote(learner)) == sorted(client.member_list())
    assert refusal(lambda: client.member_promote(1)) == "member_not_found"

    third = joining(cluster)
    added: list[int] = []
    patiently(
        lambda: added.append(
            client.member_add([cluster.advertised[third.name]], is_learner=False)[0]
        ),
        "unhealthy_cluster",
    )
    (voter,) = added
    assert refusal(lambda: client.member_add(other, is_learner=False)) in {
        "not_enough_started_members",
        "unhealthy_cluster",
    }
    cluster.restart(third)
    eventually(lambda: all(name for _, name, *_ in client.member_list()))

    patiently(lambda: client.member_remove(voter), "unhealthy_cluster")
    assert sorted(client.member_remove(voter)) == sorted(client.member_list())
    assert voters(client) == 2
    client.close()


@pytest.mark.slow(15)
def test_a_member_without_a_leader_tells_what_it_knows() -> None:
    with Cluster(3) as cluster:
        left, *others = cluster.members
        client = native(left.url, 3)
        all_members = sorted(client.member_list())
        assert sorted(client.member_list(linearizable=False)) == all_members
        for member in others:
            member.kill()
        eventually(lambda: client.status(left.url)[0][4] == 0)
        assert sorted(client.member_list(linearizable=False)) == all_members
        assert sorted(client.member_list(None, False, left.url)) == all_members
        with pytest.raises(EtcdConnectionFailed, match="no leader"):
            client.member_list()
        with pytest.raises(EtcdConnectionFailed, match="no leader"):
            client.member_list(endpoint=left.url, timeout_s=2)
        # One of several that is there.
        some = native(",".join(member.url for member in cluster.members))
        assert sorted(some.member_list(linearizable=False)) == all_members


class TestTheAnswerIsLost:
    @pytest.fixture
    def proxy(self, cluster: Cluster) -> Iterator[Proxy]:
        with Proxy(cluster.members[0].port) as made:
            yield made

    def test_of_an_addition(self, cluster: Cluster, proxy: Proxy) -> None:
        """Whoever made the peer URL finds the member by it."""
        client = native(f"127.0.0.1:{proxy.port}")
        with take_port() as peer:
            peer_urls = [f"http://127.0.0.1:{peer.getsockname()[1]}"]
        proxy.break_at(peer_urls[0].encode(), forward=True)
        with pytest.raises(EtcdAmbiguous):
            client.member_add(peer_urls, is_learner=True)

        def found() -> list[int]:
            return [member for member, _, urls, *_ in client.member_list() if urls == peer_urls]

        # The request may be on its way yet.
        eventually(found)
        assert proxy.broken == 1

    def test_of_a_removal(self, cluster: Cluster, proxy: Proxy) -> None:
        """It is asked for again, and the missing member counts as removed."""
        client = native(f"127.0.0.1:{proxy.port}")
        with take_port() as peer:
            peer_urls = [f"http://127.0.0.1:{peer.getsockname()[1]}"]
        learner, _ = client.member_add(peer_urls, is_learner=True)
        proxy.break_at(_varint(learner), forward=True)
        assert len(client.member_remove(learner)) == 1
        assert proxy.broken == 1


def _varint(number: int) -> bytes:
    """Encode a number as messages of gRPC hold it."""
    groups = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
