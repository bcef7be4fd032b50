"""Several hosts on one machine, with links that can be slowed or cut, to run an MPI job across.

A host is a process in namespaces of its own: network, host name, processes, mounts with a /dev/shm of its own. So
ranks of different hosts can neither map each other's memory nor see each other's processes. Each host has one link,
eth0, to a bridge, which lies in one more namespace, where mpirun runs; nothing is added to the machine's own network.
The hosts die with the process that made them, however it ends, and with a host everything in it.

    python tests/cluster/hosts.py limit --rate 1gbit                       what one TCP stream each way carries
    python tests/cluster/hosts.py run --hosts 2 --per-host 2 --rate 1gbit -- python train.py

Needs root, iproute2 (ip, tc) and util-linux (unshare, nsenter, setpriv). Addresses: 10.77.0.0/24.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from driver.environ import environment, mpirun

NETWORK = "10.77.0"
BRIDGE = "bridge0"
TOOLS = ("ip", "tc", "unshare", "nsenter", "setpriv")
PROBE = Path(__file__).with_name("stream.py")
_SPACES = ("--net", "--uts", "--ipc", "--mount", "--pid")
# The first process of a host. It also collects what the launchers leave to it.
_INIT = (
    "hostname $0 && mount -t tmpfs shm /dev/shm && ip link set lo up && echo ready &&"
    " while :; do sleep 3600 & wait; done"
)
# Nobody listens there, and that is an answer.
_ANSWERS = """
import errno, socket, sys
with socket.socket() as one:
    one.settimeout(2)
    sys.exit(one.connect_ex((sys.argv[1], 9)) not in (0, errno.ECONNREFUSED))
"""
_AGENT = """#!/bin/sh
# Called by the launcher of an MPI in place of ssh: [options] ADDRESS COMMAND
while :; do case $1 in -[lpoi]) shift 2 ;; -*) shift ;; *) break ;; esac; done
case $1 in
{cases}
*) echo "there is no host $1" >&2; exit 255 ;;
esac
export TMPDIR={folder}/$1  # hosts have equal process numbers, by which Open MPI names its files
mkdir -p "$TMPDIR"
shift
exec nsenter --target $pid {spaces} sh -c "$*"
"""


def missing() -> str | None:
    """Why this machine cannot make hosts, or None."""
    if os.geteuid() != 0:
        return "making hosts by network namespaces needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"making hosts needs {', '.join(lacking)} (Debian, Ubuntu: apt install iproute2 util-linux)"
    trial = "ip link add t0 type veth peer name t1 && tc qdisc add dev t0 root tbf rate 1gbit burst 512k latency 100ms"
    tried = subprocess.run(
        ["unshare", *_SPACES, "--fork", "sh", "-c", trial], capture_output=True, text=True, timeout=20
    )
    return f"making hosts is not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """`count` hosts, counted from 0, at `addresses`, named host1 and so on; links limited to `rate`, as tc writes it.

    Raises RuntimeError, with what the tool said, if they cannot be made.
    """

    def __init__(self, count: int, rate: str | None = None) -> None:
        self.addresses = [f"{NETWORK}.{i + 1}" for i in range(count)]
        self.names = [f"host{i + 1}" for i in range(count)]
        self._rate = rate
        self._processes: list[subprocess.Popen[str]] = []
        self._bridge, self._inits = 0, list[int]()

    def __enter__(self) -> "Hosts":
        self._folder = tempfile.TemporaryDirectory(prefix="ringdp-hosts-")
        try:
            self._make()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    # --- making and ending them ---

    def _make(self) -> None:
        self._bridge = self._start(["unshare", "--net", "sh", "-c", "echo ready && exec sleep infinity"])
        for words in (["add", BRIDGE, "type", "bridge"], ["set", BRIDGE, "up"], ["set", "lo", "up"]):
            self._at_bridge(["ip", "link", *words])
        self._at_bridge(["ip", "addr", "add", f"{NETWORK}.254/24", "dev", BRIDGE])
        for i, name in enumerate(self.names):
            flags = [*_SPACES, "--fork", "--kill-child", "--mount-proc"]
            outer = self._start(["unshare", *flags, "sh", "-c", _INIT, name])
            init = int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
            self._inits.append(init)
            self._at_bridge(
                ["ip", "link", "add", f"link{i}", "type", "veth", "peer", "name", "eth0", "netns", str(init)]
            )
            self._at_bridge(["ip", "link", "set", f"link{i}", "master", BRIDGE, "up"])
            self._check(self.on(i, ["ip", "addr", "add", f"{self.addresses[i]}/24", "dev", "eth0"]))
            self._check(self.on(i, ["ip", "link", "set", "eth0", "up"]))
        self.set_rate(self._rate)
        cases = "\n".join(f"{a}) pid={p} ;;" for a, p in zip(self.addresses, self._inits, strict=True))
        self._agent = Path(self._folder.name) / "agent"
        self._agent.write_text(_AGENT.format(cases=cases, folder=self._folder.name, spaces=" ".join(_SPACES)))
        self._agent.chmod(0o755)

    def _start(self, words: list[str]) -> int:
        """Starts what holds namespaces; it is killed when this process ends. Returns when it is ready."""
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._processes.append(process)
        assert process.stdout and process.stderr
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{shlex.join(words)}: {process.stderr.read().strip()}")
        return process.pid

    def _end(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.communicate()
        self._processes.clear()
        self._inits.clear()
        self._folder.cleanup()

    # --- the links ---

    def set_rate(self, rate: str | None) -> None:
        """Limits every link in both directions, as in "1gbit"; None: no limit."""
        limit = ["tbf", "rate", str(rate), "burst", "512k", "latency", "100ms"] if rate else ["noqueue"]
        for i in range(len(self.names)):
            for device, where in ((f"link{i}", self._bridge_words()), ("eth0", self._host_words(i))):
                self._check([*where, "tc", "qdisc", "replace", "dev", device, "root", *limit])

    def give_up_after(self, retries: int) -> None:
        """Of the hosts' TCP, when nothing comes back: 15 is what Linux has, for a quarter of an hour; 5 is 13 s."""
        for i in range(len(self.names)):
            self._check(self.on(i, ["sh", "-c", f"echo {retries} > /proc/sys/net/ipv4/tcp_retries2"]))

    def cut(self, host: int) -> None:
        """Takes the link of a host down."""
        self._at_bridge(["ip", "link", "set", f"link{host}", "down"])

    def heal(self, host: int) -> None:
        """Brings the link of a host up again; returns when it carries something. (Before, who connects may hear at once
        that the other is not there.)"""
        self._at_bridge(["ip", "link", "set", f"link{host}", "up"])
        answers = self.on(host, [sys.executable, "-c", _ANSWERS, f"{NETWORK}.254"])
        deadline = time.monotonic() + 60
        while subprocess.run(answers).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.names[host]} reaches nobody, a minute after its link has been mended"
                )

    def raw_limit(self, size: int = 64 << 20) -> float:
        """Gbit/s of one TCP stream each way between the first two hosts at once: the slower one."""
        a, b = self.addresses[:2]
        words = [sys.executable, str(PROBE)]
        other = subprocess.Popen(self.on(1, [*words, b, a, str(size)]), stdout=subprocess.PIPE, text=True)
        mine = subprocess.run(
            self.on(0, [*words, a, b, str(size)]), stdout=subprocess.PIPE, text=True, timeout=300
        )
        theirs, _ = other.communicate(timeout=60)
        return min(float(mine.stdout), float(theirs))

    # --- running something ---

    def on(self, host: int, words: Sequence[str]) -> list[str]:
        """The command line that runs `words` on a host."""
        return [*self._host_words(host), *words]

    def job(self, words: Sequence[str], per_host: int = 1) -> tuple[list[str], dict[str, str]]:
        """(command line, environment) of an MPI job on all hosts, over their links: `per_host` ranks on each, in order.

        The mpirun is that of this Python.
        """
        launcher, ranks, env = mpirun(), per_host * len(self.names), environment()
        version = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
        if "Open MPI" in version or "OpenRTE" in version:
            options = self._open_mpi(ranks, per_host, version)
        else:
            options = self._mpich(ranks, per_host, env)
        return [*self._bridge_words(), launcher, *options, *words], env

    def ringdp_run(self, words: Sequence[str], per_host: int = 1, options: Sequence[str] = ()) -> list[str]:
        """The command line of the same job, with Open MPI, by `ringdp run`."""
        command, _ = self.job([], per_host)
        at = command.index("--host")
        given = ["-n", str(per_host * len(self.names)), "-H", command[at + 1], *options]
        run = [sys.executable, "-m", "ringdp", "run", *given, "--mpi-args", shlex.join(command[at + 2 :])]
        return [*self._bridge_words(), *run, "--", *words]

    def _open_mpi(self, ranks: int, per_host: int, version: str) -> list[str]:
        old, net = "Open MPI) 4" in version, f"{NETWORK}.0/24"
        agent = "plm_rsh_agent" if old else "plm_ssh_agent"
        kind, interface = ("--mca", "oob_tcp_if_include") if old else ("--prtemca", "prte_if_include")
        # Each host believes that the machine's cores are its own, so Open MPI cannot see that its ranks must not spin.
        crowded = ["--mca", "mpi_yield_when_idle", "1"] if ranks > len(os.sched_getaffinity(0)) else []
        return [
            "-n", str(ranks), "--host", ",".join(f"{a}:{per_host}" for a in self.addresses),
            "--map-by", f"ppr:{per_host}:node", "--bind-to", "none",
            kind, agent, str(self._agent), kind, interface, net,
            "--mca", "pml", "ob1", "--mca", "btl", "tcp,self,sm", "--mca", "btl_tcp_if_include", net, *crowded,
        ]  # fmt: skip

    def _mpich(self, ranks: int, per_host: int, env: dict[str, str]) -> list[str]:
        env["UCX_NET_DEVICES"] = "eth0"
        if per_host == 1:  # UCX goes by the machine's id, and would take all hosts for one
            env["UCX_TLS"] = "tcp,self"
        return [
            "-launcher", "ssh", "-launcher-exec", str(self._agent), "-iface", BRIDGE,
            "-hosts", ",".join(self.addresses), "-n", str(ranks), "-ppn", str(per_host),
        ]  # fmt: skip

    def _bridge_words(self) -> list[str]:
        return ["nsenter", "--target", str(self._bridge), "--net"]

    def _host_words(self, host: int) -> list[str]:
        return ["nsenter", "--target", str(self._inits[host]), *_SPACES]

    def _at_bridge(self, words: list[str]) -> None:
        self._check([*self._bridge_words(), *words])

    @staticmethod
    def _check(words: list[str]) -> None:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("action", choices=["limit", "run"])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--per-host", type=int, default=1, help="ranks on each host")
    parser.add_argument(
        "--rate", help="limit of every link in both directions, as tc writes it: 1gbit, 100mbit"
    )
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    options, program = parser.parse_args(words[:end]), words[end + 1 :]
    if options.action == "run" and not program:
        parser.error("say what to run, after --")
    reason = missing()
    if reason:
        print(f"hosts.py: {reason}", file=sys.stderr)
        return 2
    with Hosts(options.hosts, options.rate) as hosts:
        if options.action == "limit":
            print(f"{hosts.raw_limit():.3f} Gbit/s each way at once")
            return 0
        command, env = hosts.job(program, options.per_host)
        return subprocess.run(command, env=env).returncode


if __name__ == "__main__":
    sys.exit(main())
