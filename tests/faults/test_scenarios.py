"""What users are promised about the faults that they meet, one by one."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from support.faults import rendezvous_history
from support.faults.bench import Bench
from support.faults.linearizability import linearizable
from support.faults.rendezvous_agents import Agents
from support.faults.schedules import Player, one_at_a_time
from support.faults.store_clients import Clients, model_of
from support.processes.agents import STEPS, Job
from support.processes.nodes import Run
from support.processes.zygote import Zygote
from support.waiting import eventually
from torchetcd.etcd import Client
from torchetcd.etcd_store import EtcdStore, StoreConnectionError, StoreOutcomeUnknownError

pytestmark = pytest.mark.needs_etcd

OUTAGE_S = 60.0
FAULTS: dict[str, Callable[[Bench, str], None]] = {
    "killed": lambda bench, member: bench.kill(member),
    "paused": lambda bench, member: bench.pause(member),
    "cut off": lambda bench, member: bench.isolate(member, "cut"),
    "silent": lambda bench, member: bench.isolate(member, "silence"),
    "partitioned": lambda bench, member: bench.partition(member, "silence"),
}


@pytest.fixture
def make_agents(tmp_path: Path) -> Iterator[Callable[..., Agents]]:
    made: list[Agents] = []

    def make(count: int, **config: object) -> Agents:
        folder = tmp_path / f"run{len(made)}"
        folder.mkdir()
        made.append(Agents(folder, uuid.uuid4().hex, count, **config))
        return made[-1]

    yield make
    for agents in made:
        agents.close()


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    folder = tmp_path / "clients"
    folder.mkdir()
    made = Clients(folder)
    yield made
    made.close()


@pytest.mark.slow(15)
@pytest.mark.parametrize("role", ["leader", "follower"])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_member_of_three(
    bench: Bench,
    make_agents: Callable[..., Agents],
    clients: Clients,
    prefix: str,
    fault: str,
    role: str,
) -> None:
    """No call that has 15 s fails, no world ends, and a round forms meanwhile."""
    steady, late = make_agents(2), make_agents(2)
    for name in ("agent-1", "agent-2"):
        steady.start(name, bench.connect(name))
    clients.start("agent-3", bench.connect("agent-3"), prefix, seed=1)
    eventually(steady.settled, 60)
    late.start("agent-4", bench.connect("agent-4"))
    member = bench.leader() if role == "leader" else bench.follower()
    FAULTS[fault](bench, member)
    # The second one connects for the first time now.
    late.start("agent-5", bench.connect("agent-5"))
    eventually(late.settled, 40)
    bench.mend()
    clients.stop()
    assert [seen.what for seen in steady.diary()] == ["joins"] * 2 + ["place"] * 2, steady.text()
    history = clients.history()
    assert history.errors == []
    for key, calls in history.by_key().items():
        assert linearizable(model_of(key), calls), key


@pytest.mark.slow(75)
@pytest.mark.timeout(240)
def test_all_of_etcd_is_gone_for_a_minute(
    bench: Bench, make_agents: Callable[..., Agents], prefix: str
) -> None:
    """A world trains on, calls wait or fail at their own deadlines, and nobody who lives is lost."""
    agents = make_agents(2, keep_alive_ttl=5)
    for name in ("agent-1", "agent-2"):
        agents.start(name, bench.connect(name))
    eventually(agents.settled, 60)
    endpoints = bench.connect("agent-3")
    got: list[bytes] = []
    with (
        Client(endpoints, read_timeout=5) as client,
        EtcdStore(client, prefix, timedelta(seconds=180)) as store,
    ):
        store.set("there", "yes")
        path = f"/torchelastic/p2p/run_{agents.run_id}"
        before = _members(bench, path)
        waiting = threading.Thread(target=lambda: got.append(store.get("late")))
        waiting.start()
        gone = time.monotonic()
        for name in bench.names:
            bench.kill(name)
        for call in (lambda: store.set("x", "y"), lambda: store.add("n", 1)):
            begun = time.monotonic()
            with pytest.raises((StoreConnectionError, StoreOutcomeUnknownError)) as caught:
                call()
            assert 4 < time.monotonic() - begun < 15
            for endpoint in endpoints.split(","):
                assert endpoint in str(caught.value)
        threading.Event().wait(max(0, gone + OUTAGE_S - time.monotonic()))
        for name in bench.names:
            bench.restart(name)
        bench.cluster.await_leader()
        # The blocked one goes on by itself.
        store.set("late", "value")
        waiting.join(30)
        assert got == [b"value"]
    # Longer than a lease that nobody renews: only who does not live is lost.
    time_is_up = time.monotonic() + 10
    while time.monotonic() < time_is_up:
        assert _members(bench, path) == before
        threading.Event().wait(0.5)
    assert [seen.what for seen in agents.diary()] == ["joins"] * 2 + ["place"] * 2, agents.text()


def _members(bench: Bench, path: str) -> list[tuple[str, str]]:
    """The member keys of a run, each with the revision that made it, as etcd itself tells."""
    range_ = {
        "key": rendezvous_history.b64(f"{path}/rdzv/round/1/member/"),
        "range_end": rendezvous_history.b64(f"{path}/rdzv/round/1/member0"),
    }
    found = bench.cluster.members[0].post("/v3/kv/range", range_)["kvs"]
    assert len(found) == 2
    return [(kv["key"], kv["create_revision"]) for kv in found]


@pytest.mark.slow(15)
@pytest.mark.parametrize("how", ["cut", "silence"])
def test_an_agent_is_cut_off_longer_than_its_lease(
    bench: Bench, make_agents: Callable[..., Agents], how: str
) -> None:
    """The others go on without it; it is told when it is back, and they form one world again."""
    names = ["agent-1", "agent-2", "agent-3"]
    agents = make_agents(3, keep_alive_ttl=3)
    for name in names:
        agents.start(name, bench.connect(name), least=2)
    eventually(agents.settled, 60)

    def at(name: str, what: str) -> list[int]:
        return [s.round for s in agents.diary() if s.agent == name and s.what == what]

    bench.isolate("agent-2", how)
    for name in ("agent-1", "agent-3"):
        eventually(lambda name=name: len(at(name, "place")) == 2, 40)
    assert (
        at("agent-2", "told") == []
    )  # nothing says that it is out: it may as well be etcd that is
    bench.rejoin("agent-2")
    eventually(agents.settled, 60)
    assert at("agent-2", "told") == [1]
    last = [seen for seen in agents.diary() if seen.what == "place"][-3:]
    assert {seen.agent for seen in last} == set(names)
    assert {seen.world for seen in last} == {3}
    rendezvous_history.check(agents.diary(), 2, 3)


@pytest.mark.slow(15)
def test_a_transient_error_never_ends_the_renewal(
    bench: Bench, make_agents: Callable[..., Agents]
) -> None:
    """Connections that break again and again for many times the TTL (pytorch issue 194870)."""
    agents = make_agents(2, keep_alive_ttl=3)
    for name in ("agent-1", "agent-2"):
        agents.start(name, bench.connect(name))
    eventually(agents.settled, 60)
    for turn in range(24):
        for name in ("agent-1", "agent-2"):
            for member in bench.names:
                bench.cut(name, member)
                bench.join(name, member)
                if turn % 3 == 0:
                    bench.break_message(name, member, turn)
        threading.Event().wait(0.5)
    assert [seen.what for seen in agents.diary()] == ["joins"] * 2 + ["place"] * 2, agents.text()


@pytest.mark.slow(12)
def test_a_full_disk(make_agents: Callable[..., Agents], prefix: str) -> None:
    """A world trains on while etcd takes no writes; a call says what to do; all goes on after that."""
    with Bench(["--quota-backend-bytes=20000000"]) as bench:
        agents = make_agents(2, keep_alive_ttl=3)
        for name in ("agent-1", "agent-2"):
            agents.start(name, bench.connect(name))
        eventually(agents.settled, 60)
        with (
            Client(bench.connect("agent-3"), read_timeout=10) as client,
            EtcdStore(client, prefix, timedelta(seconds=10)) as store,
        ):
            store.set("there", "yes")
            bench.fill()
            with pytest.raises(Exception, match="space exceeded") as caught:
                store.set("x", "y")
            assert "127.0.0.1" in str(caught.value)
            assert store.get("there") == b"yes"
            threading.Event().wait(6)  # two TTLs
            bench.relieve()
            store.set("x", "y")
        assert [s.what for s in agents.diary()] == ["joins"] * 2 + ["place"] * 2, agents.text()
        agents.close_by("agent-1")
        agents.await_end()


@pytest.mark.slow(15)
@pytest.mark.parametrize("seed", range(3))
def test_a_watch_sees_each_event_once(bench: Bench, prefix: str, seed: int) -> None:
    """Through members that change, connections that break and delays."""
    steps = [s for s in one_at_a_time(seed, 15, ["agent-1"]) if s.verb != "compact"]
    print(*steps, sep="\n")
    seen: list[tuple[int, str]] = []
    ended = threading.Event()
    key = f"{prefix}/n"
    with (
        Client(bench.connect("agent-1"), read_timeout=30) as watcher,
        Client(bench.connect("agent-2"), read_timeout=30) as writer,
    ):
        first = writer.write(key, "begin").modifiedIndex
        written = []

        def watch() -> None:
            for event in watcher.eternal_watch(key, index=first):
                seen.append((event.modifiedIndex or 0, event.value))
                if event.value == "end":
                    return

        def write() -> None:
            number = 0
            while not ended.wait(0.01):
                # An answer that is lost leaves it open whether the value is written.
                with contextlib.suppress(Exception):
                    writer.write(key, str(number))
                    written.append(str(number))
                number += 1

        threads = [threading.Thread(target=work) for work in (watch, write)]
        for thread in threads:
            thread.start()
        Player(bench).play(steps, 15)
        bench.mend()
        ended.set()
        threads[1].join()
        writer.write(key, "end")
        threads[0].join(30)
    indices = [index for index, _ in seen]
    assert indices == sorted(set(indices))
    history = bench.cluster[bench.leader()].events(
        rendezvous_history.b64(key), rendezvous_history.b64(f"{prefix}/o")
    )
    truth = [
        (int(event["kv"]["mod_revision"]), rendezvous_history.unb64(event["kv"]["value"]))
        for event in history
    ]
    assert seen == truth
    assert set(written) <= {value for _, value in seen}


@pytest.mark.slow(30)
@pytest.mark.timeout(400)
def test_a_training_under_torchrun(bench: Bench, agent_zygote: Zygote, tmp_path: Path) -> None:
    """Real agents and workers: the leader is lost, another member too, and no worker starts again."""
    endpoints = bench.connect("agent-1")
    with Client(endpoints) as client, Run(endpoints, client) as run:
        job = Job(run, tmp_path, agent_zygote)
        try:
            script, stop = job.script(STEPS), tmp_path / "stop"
            # On a busy machine an agent is late by a second or two.
            agents = [job.agent("2", script, stop, conf=",keep_alive_ttl=4") for _ in range(2)]
            eventually(lambda: any("world 2\n" in agent.text() for agent in agents), 60)
            for fault in ("killed", "silent"):
                FAULTS[fault](bench, bench.leader())
                threading.Event().wait(6)  # longer than a TTL
                bench.mend()
            stop.touch()
            texts = [agent.end() for agent in agents]
            assert sum(text.count("world 2\n") for text in texts) == 1, texts
            assert run.control()["round"] == 1
        finally:
            job.end()
