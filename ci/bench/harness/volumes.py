"""Volumes against peers that serve a plain file: rate, CPU, memory.

All servers run side by side on one file system and serve an image of the same size, written in
full before. fio speaks NBD to each in turn, and the turn goes around for every round, so that what
the machine does meanwhile hits all of them alike. A figure is the median of the rounds, with the
least and the most.
"""

import collections
import contextlib
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from . import common
from .common import MIB, Ankole, Failed, fill, fio, for_seconds, nbd, rows, spread, write_back

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Workload = collections.namedtuple("Workload", "name pattern block depth unit")
WORKLOADS = [
    Workload("4 KiB random read, QD 1", "randread", "4k", 1, "k/s"),
    Workload("4 KiB random read, QD 32", "randread", "4k", 32, "k/s"),
    Workload("4 KiB random write, QD 1", "randwrite", "4k", 1, "k/s"),
    Workload("4 KiB random write, QD 32", "randwrite", "4k", 32, "k/s"),
    Workload("256 KiB sequential read, QD 4", "read", "256k", 4, "MiB/s"),
    Workload("256 KiB sequential write, QD 4", "write", "256k", 4, "MiB/s"),
]
# The names of the columns.
IN_PROCESS, ONE, THREE = "in-process", "1 × TCP", "3 × TCP"
QEMU, NBDKIT, RAW = "qemu-nbd", "nbdkit file", "raw file"
OURS = [IN_PROCESS, ONE, THREE]
# See "Figures" in README.md.
CPU_AIM_US = 18
RSS_AIM_BYTES = 8 << 20

# Rate in the workload's unit, CPU time of all the server's processes for one I/O.
Sample = collections.namedtuple("Sample", "rate cpu_us")


def cpu_seconds(pids):
    """Of all threads of all of them, those of io_uring included, since they began."""
    total = 0
    for pid in pids:
        # The name, in brackets, may hold anything; utime and stime are fields 14 and 15.
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def rss_bytes(pid):
    return int(re.search(r"^VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]) * 1024


class Server:
    """Something that serves an image; its processes by role."""

    def __init__(self, name, fio_target, pids):
        self.name = name
        self.fio_target = fio_target
        self.pids = pids
        self.idle_rss = {role: rss_bytes(pid) for role, pid in pids.items()}

    def measure(self, workload, size_bytes, seconds):
        before = cpu_seconds(self.pids.values())
        job = fio(*self.fio_target, f"--rw={workload.pattern}", f"--bs={workload.block}",
                  f"--iodepth={workload.depth}", f"--size={size_bytes}", *for_seconds(seconds),
                  "--norandommap=1", "--randrepeat=0")
        spent = cpu_seconds(self.pids.values()) - before
        side = job["read" if "read" in workload.pattern else "write"]
        rate = side["iops"] / 1000 if workload.unit == "k/s" else side["bw_bytes"] / MIB
        return Sample(rate, 1e6 * spent / max(1, side["total_ios"]) if self.pids else None)


def serve(ankole, name, volume, size_bytes, *options):
    ankole.create(volume, size_bytes, *options)
    shown = ankole.attach(volume)
    pids = {"engine": shown["enginePid"]}
    # A replica inside the engine's process has that one's pid, or none.
    for replica in shown["replicas"]:
        if replica["pid"] not in (None, shown["enginePid"]):
            pids[f"replica {replica['replica']}"] = replica["pid"]
    return Server(name, nbd(shown["endpoint"]), pids)


def start_peer(cleanup, words, socket):
    """Starts an NBD server in the foreground, and waits for its socket."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    cleanup.callback(process.wait)
    cleanup.callback(process.terminate)
    deadline = time.monotonic() + 10
    while not socket.exists():
        if process.poll() is not None:
            raise Failed(f"{words[0]} ended: {process.stderr.read().strip()}")
        if time.monotonic() > deadline:
            raise Failed(f"{words[0]} didn't make its socket within 10 s")
        time.sleep(0.02)
    return Server(words[0], nbd(f"nbd+unix:///?socket={socket}"), {words[0]: process.pid})


def start_all(cleanup, binary, work, size_bytes):
    ankole = Ankole(binary, work / "data")
    cleanup.callback(ankole.stop)
    servers = [
        serve(ankole, IN_PROCESS, "b1", size_bytes, "--replicas", "1", "--in-engine"),
        serve(ankole, ONE, "b2", size_bytes, "--replicas", "1", "--transport", "tcp"),
        serve(ankole, THREE, "b3", size_bytes, "--replicas", "3", "--transport", "tcp"),
    ]
    for name, command in [
        (QEMU, ["qemu-nbd", "--format=raw", "--cache=none", "--aio=io_uring", "--persistent", "--shared=16", "--socket={socket}", "{image}"]),
        (NBDKIT, ["nbdkit", "--foreground", "--unix={socket}", "file", "file={image}"]),
    ]:
        image, socket = work / f"{name.split()[0]}.img", work / f"{name.split()[0]}.sock"
        with open(image, "wb") as file:
            file.truncate(size_bytes)
        words = [word.format(image=image, socket=socket) for word in command]
        server = start_peer(cleanup, words, socket)
        server.name = name
        servers.append(server)
    raw = ("--ioengine=io_uring", "--direct=1", f"--filename={work / 'raw.img'}")
    servers.append(Server(RAW, raw, {}))
    for server in servers:
        fill(server.fio_target, size_bytes)
    return servers


def measure_all(servers, options, images, began):
    samples = collections.defaultdict(list)  # (workload, server) -> samples
    for number in range(1, options.rounds + 1):
        for workload in WORKLOADS:
            turn = number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                write_back(images)
                sample = server.measure(workload, options.size_mib * MIB, options.seconds)
                samples[workload.name, server.name].append(sample)
        took_s = time.monotonic() - began
        print(f"round {number} of {options.rounds} is done after {took_s:.0f} s", file=sys.stderr)
        if took_s * (number + 1) / number > options.limit_s:
            options.rounds = number  # one more would take too long; the table says how many there were
            break
    return samples


def aims(samples, servers):
    """Each aim, and whether it is met."""
    median = lambda workload, name, what: statistics.median(getattr(one, what) for one in samples[workload.name, name])
    for workload in WORKLOADS:
        ratio = median(workload, IN_PROCESS, "rate") / median(workload, QEMU, "rate")
        yield ratio >= 1, f"{workload.name}: one in-process replica is not slower than qemu-nbd", f"{ratio:.2f} of it"
    for workload in WORKLOADS:
        if workload.block == "4k":
            cpu_us = median(workload, IN_PROCESS, "cpu_us")
            yield cpu_us <= CPU_AIM_US, f"{workload.name}: at most {CPU_AIM_US} µs of CPU", f"{cpu_us:.1f} µs"
    largest = max(rss for server in servers if server.name in OURS for rss in server.idle_rss.values())
    yield largest <= RSS_AIM_BYTES, f"an idle engine or replica has at most {RSS_AIM_BYTES // MIB} MiB", f"{largest / MIB:.1f} MiB at most"


def report(samples, servers, options, size_bytes, took_s):
    names = [server.name for server in servers]
    yield common.made_by(took_s)
    yield f"Rounds: {options.rounds}; each measurement {options.seconds:g} s; images of {size_bytes // MIB} MiB, written in full before."
    yield ""
    yield from common.machine(options, "fio", "qemu-nbd", "nbdkit")
    yield ""
    yield "**Rate**: median (least–most). 4 KiB: thousands of requests a second; 256 KiB: MiB/s."
    yield ""
    yield from rows(["", *names], ([workload.name, *(spread([one.rate for one in samples[workload.name, name]]) for name in names)] for workload in WORKLOADS))
    yield ""
    yield "**CPU**: µs for one request, of all the server's processes together (user and system; what the kernel writes back later from its page cache isn't in it)."
    yield ""
    served = [server.name for server in servers if server.pids]
    yield from rows(["", *served], ([workload.name, *(spread([one.cpu_us for one in samples[workload.name, name]]) for name in served)] for workload in WORKLOADS))
    yield ""
    yield "**Memory**: resident set of each process, before its first request and at the end."
    yield ""
    yield from rows(["process", "idle, MiB", "at the end, MiB"], (
        [f"{server.name}: {role}", f"{server.idle_rss[role] / MIB:.1f}", f"{rss_bytes(pid) / MIB:.1f}"]
        for server in servers for role, pid in server.pids.items()))
    yield ""
    yield from common.aims_table(aims(samples, servers))


TOOLS = {"fio": "fio", "qemu-nbd": "qemu-utils", "nbdkit": "nbdkit"}
PLACE = "figures"


def add_arguments(parser):
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--limit-s", type=float, default=300, help="no round begins that would end later")
    parser.add_argument("--size-mib", type=int, help="of each image, an even number")


def measure(options):
    """The table."""
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.1 if options.quick else 1.5)
    options.size_mib = options.size_mib or (16 if options.quick else 1024)
    began, size_bytes = time.monotonic(), options.size_mib * MIB
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work)
        servers = start_all(cleanup, options.binary, work, size_bytes)
        samples = measure_all(servers, options, sorted(work.glob("*.img")), began)
        return "\n".join(report(samples, servers, options, size_bytes, time.monotonic() - began)) + "\n"
