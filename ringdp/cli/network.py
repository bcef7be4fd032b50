"""Where gloo's ranks find each other: an address of rank 0 that the others can reach, and the interface to use."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

_SIOCGIFADDR = 0x8915


def interfaces() -> dict[str, str]:
    """The IPv4 address of each interface of this host that has one, but for the loopback."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(door.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # no address
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                found[name] = address
    return found


def _own_address() -> str:
    """What this host's name resolves to, or "" where that is nothing that another host could use."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
    return "" if address.startswith("127.") else address


def gloo_address(comm: MPI.Intracomm) -> str:
    """The address of rank 0 for the other ranks; sets GLOO_SOCKET_IFNAME where gloo would not find a network itself.

    gloo takes the interface of the host's own name. On one host that name need not resolve, nor need the traffic leave
    the host: there it is the loopback.
    """
    if len(set(comm.allgather(socket.gethostname()))) == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return "127.0.0.1"
    known, own = interfaces(), _own_address()
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if not named and not own and known:
        named = os.environ["GLOO_SOCKET_IFNAME"] = next(iter(known))
    anything = next(iter(known.values()), socket.gethostname())
    return str(comm.bcast(known.get(named) or own or anything))
