"""The address that a node offers, on hosts of all kinds: each is a network namespace with its own links."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from torchetcd._rendezvous import local_address as addresses
from torchetcd._rendezvous.local_address import local_address

PACKAGE = Path(addresses.__file__).parent
#: Loads the one module, so that it is quick.
PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("address", {str(PACKAGE / "local_address.py")!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.local_address(sys.argv[1:]))
"""
#: Kinds of links that kernels have, one of which is there.
LINK = "ip link add {0} type dummy 2>/dev/null || ip link add {0} type ifb\nip link set {0} up\n"
LOCALHOST = "http://localhost:2379"


def _link(name: str, *addresses: str) -> str:
    lines = [f"ip addr add {address} dev {name}" for address in addresses]
    # An address of IPv6 is used only once nobody else has it.
    return LINK.format(name) + "".join(f"{it}{' nodad' * (':' in it)}\n" for it in lines)


def _chosen(setup: str, endpoints: Sequence[str]) -> str:
    """Return the address that is chosen on a host of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("needs unshare (util-linux) and ip (iproute2)")
    script = f'set -e\nip link set lo up\n{setup}exec "$@"\n'
    command = ["unshare", "-rn", "sh", "-c", script, "sh", sys.executable, "-I", "-c", PROGRAM]
    done = subprocess.run(
        [*command, *endpoints], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode and ("unshare" in done.stderr or "RTNETLINK" in done.stderr):
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HOSTS = {
    "nothing but loopback": ("", "127.0.0.1"),
    "IPv6 alone": (
        _link("d0", "fd00:1::5/64") + "ip -6 route add default via fd00:1::1 dev d0 onlink\n",
        "fd00:1::5",
    ),
    "IPv4 alone": (
        _link("d0", "10.1.0.5/24") + "ip route add default via 10.1.0.1 dev d0\n",
        "10.1.0.5",
    ),
    "both": (
        _link("d0", "10.1.0.5/24", "fd00:1::5/64")
        + "ip route add default via 10.1.0.1 dev d0\nip -6 route add default dev d0\n",
        "10.1.0.5",
    ),
    "IPv6, with an IPv4 network of containers": (
        _link("c0", "172.17.0.1/16")
        + _link("d0", "fd00:1::5/64")
        + "ip -6 route add default dev d0\n",
        "fd00:1::5",
    ),
    "the default route is the second interface": (
        _link("d0", "10.1.0.5/24")
        + _link("d1", "10.2.0.5/24")
        + "ip route add default via 10.2.0.1 dev d1\n",
        "10.2.0.5",
    ),
    "no default route": (_link("d0", "10.1.0.5/24"), "10.1.0.5"),
    "no default route, IPv6": (_link("d0", "fd00:1::5/64"), "fd00:1::5"),
    "no default route, a bridge first": (
        "ip link add b0 type bridge 2>/dev/null || true\n"
        + "ip addr add 172.17.0.1/16 dev b0 2>/dev/null || true\n"
        + _link("d0", "10.1.0.5/24"),
        "10.1.0.5",
    ),
    "a default route that goes nowhere": (
        _link("d0", "10.1.0.5/24") + "ip route add unreachable default\n",
        "10.1.0.5",
    ),
    "an address on loopback": ("ip addr add 10.9.8.7/32 dev lo\n", "10.9.8.7"),
    "an interface that is down": (
        _link("d0", "10.1.0.5/24") + "ip link set d0 down\n" + _link("d1", "10.2.0.5/24"),
        "10.2.0.5",
    ),
    "addresses of a link alone": (
        _link("d0") + "ip addr add 169.254.3.4/16 dev d0 scope link\nip route add default dev d0\n",
        "169.254.3.4",
    ),
    "IPv4 by translation": (
        _link("clat", "192.0.0.4/29")
        + "ip route add default dev clat\n"
        + _link("d0", "2001:db8:7::5/64")
        + "ip -6 route add default dev d0\n",
        "2001:db8:7::5",
    ),
}


@pytest.mark.parametrize("host", HOSTS)
def test_etcd_on_the_host_itself(host: str) -> None:
    setup, address = HOSTS[host]
    assert _chosen(setup, [LOCALHOST]) == address


@pytest.mark.parametrize("endpoint", ["http://[::1]:2379", "http://127.0.1.1:2379"])
def test_loopback_by_its_number(endpoint: str) -> None:
    setup, address = HOSTS["IPv6 alone"]
    assert _chosen(setup, [endpoint]) == address


@pytest.mark.parametrize(
    ("endpoints", "address"),
    [
        # The way to etcd, which is not the default route.
        (["http://10.2.0.9:2379"], "10.2.0.5"),
        (["http://[fd00:2::9]:2379"], "fd00:2::5"),
        # The first one that has a way; a host's own address is one.
        (["http://[fd00:9::9]:2379", "http://10.2.0.9:2379"], "10.2.0.5"),
        (["http://10.1.0.5:2379"], "10.1.0.5"),
        ([LOCALHOST, "http://10.2.0.9:2379"], "10.2.0.5"),
        ([LOCALHOST], "10.1.0.5"),
        # Not resolved in vain.
        (["http://no-such-host.invalid:2379", "http://10.2.0.9:2379"], "10.2.0.5"),
    ],
)
def test_the_way_to_etcd_comes_first(endpoints: list[str], address: str) -> None:
    setup = _link("d0", "10.1.0.5/24") + _link("d1", "10.2.0.5/24", "fd00:2::5/64")
    setup += "ip route add default via 10.1.0.1 dev d0\n"
    assert _chosen(setup, endpoints) == address


class TestNames:
    def test_they_are_asked_only_as_far_as_needed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[object] = []

        def resolve(host: bytes, port: int, **_: object) -> list[object]:
            asked.append(host)
            if host == b"dead":
                raise OSError("no name server")
            return [(socket.AF_INET, 0, 0, "", (host.decode(), port))]

        sources = {"lives": "10.0.0.1", "later": "10.0.0.2", "10.0.0.9": "127.0.0.1"}
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        monkeypatch.setattr(
            addresses, "_source_of_route", lambda _family, target: iter([sources[target[0]]])
        )
        endpoints = [f"http://{host}:1" for host in ("dead", "lives", "later", "10.0.0.9")]
        assert local_address(endpoints) == "10.0.0.1"
        # What is an address needs no name server, and comes first.
        assert asked == [b"10.0.0.9", b"dead", b"lives"]


def test_what_the_kernel_says_of_this_host() -> None:
    """Each of its addresses can be bound to, and the loopback ones are not among them."""
    for address in addresses.interface_addresses():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family) as sock:
            sock.bind((address, 0))
        assert not address.startswith("127.")
