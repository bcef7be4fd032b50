"""Where gloo's ranks find each other: the address and the interface that `ringdp bench` gives it."""

import os

import pytest

from ringdp.cli import network


class Comm:
    """Rank 0 of as many ranks as there are names of hosts."""

    def __init__(self, *hosts):
        self.hosts = hosts

    def allgather(self, _):
        return list(self.hosts)

    def bcast(self, value):
        return value


@pytest.fixture
def surroundings(monkeypatch):
    def make(known, own, named=None):
        monkeypatch.setattr(network, "interfaces", lambda: known)
        monkeypatch.setattr(network, "_own_address", lambda: own)
        monkeypatch.setattr(os, "environ", {"GLOO_SOCKET_IFNAME": named} if named else {})

    return make


def test_one_host_uses_the_loopback(surroundings):
    surroundings({"eth0": "10.0.0.1"}, "10.0.0.1")
    assert network.gloo_address(Comm("a", "a")) == "127.0.0.1"
    assert os.environ == {"GLOO_SOCKET_IFNAME": "lo"}


@pytest.mark.parametrize(
    ("known", "own", "named", "address", "chosen"),
    [
        ({"eth0": "10.0.0.1", "ib0": "10.1.0.1"}, "10.0.0.1", None, "10.0.0.1", None),
        ({"eth0": "10.0.0.1", "ib0": "10.1.0.1"}, "10.0.0.1", "ib0,eth0", "10.1.0.1", "ib0,eth0"),
        ({"eth0": "10.0.0.1"}, "", None, "10.0.0.1", "eth0"),  # the host's name resolves to nothing of use
        ({"eth0": "10.0.0.1"}, "", "none", "10.0.0.1", "none"),
    ],
)
def test_several_hosts_use_what_the_others_reach(surroundings, known, own, named, address, chosen):
    surroundings(known, own, named)
    assert network.gloo_address(Comm("a", "b")) == address
    assert os.environ.get("GLOO_SOCKET_IFNAME") == chosen


def test_interfaces_are_those_with_an_address_but_the_loopback():
    found = network.interfaces()
    assert "lo" not in found
    for address in found.values():
        assert len(address.split(".")) == 4 and not address.startswith("127.")
