"""Random writes over more than a working set, and after a rest: what marking regions costs.

Sparse images of 8 GiB, so each server makes its file as it is written. The servers take turns in every round, and the turn
goes around; a ratio is that of two measurements of one round.
"""

import collections
import contextlib
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

from . import common
from .common import MIB, Ankole, rows, spread, write_back
from .volumes import IN_PROCESS, QEMU, RAW, THREE, Server, Workload, serve, start_peer

TOOLS = {"fio": "fio", "qemu-nbd": "qemu-utils"}
PLACE = "wide"
WRITES = Workload("4 KiB random write, QD 1", "randwrite", "4k", 1, "k/s")
AIM = 0.9


def add_arguments(parser):
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--size-mib", type=int, help="of each image, an even number")
    parser.add_argument("--rest-s", type=float, help="without a request, before the second measurement of a round")


def start_all(cleanup, binary, work, size_bytes):
    ankole = Ankole(binary, work / "data")
    cleanup.callback(ankole.stop)
    for name in ("qemu.img", "raw.img"):
        with open(work / name, "wb") as file:
            file.truncate(size_bytes)
    words = ["qemu-nbd", "--format=raw", "--cache=none", "--aio=io_uring", "--persistent", f"--socket={work / 'qemu.sock'}", str(work / "qemu.img")]
    return [
        serve(ankole, IN_PROCESS, "w1", size_bytes, "--replicas", "1", "--in-engine"),
        serve(ankole, THREE, "w3", size_bytes, "--replicas", "3", "--transport", "tcp"),
        start_peer(cleanup, words, work / "qemu.sock"),
        Server(RAW, ("--ioengine=io_uring", "--direct=1", f"--filename={work / 'raw.img'}"), {}),
    ]


def measure_all(servers, options, images):
    samples = collections.defaultdict(list)  # (when, server) -> rates
    for number in range(1, options.rounds + 1):
        for when, rest_s in (("at once", 0), ("after a rest", options.rest_s)):
            time.sleep(rest_s)
            turn = number % len(servers)
            for server in servers[turn:] + servers[:turn]:
                write_back(images)
                sample = server.measure(WRITES, options.size_mib * MIB, options.seconds)
                samples[when, server.name].append(sample.rate)
        print(f"round {number} of {options.rounds} is done", file=sys.stderr, flush=True)
    return samples


def ratios(samples, when, name, peer):
    return [one / other for one, other in zip(samples[when, name], samples[when, peer], strict=True)]


def report(samples, options, took_s):
    names, whens = [IN_PROCESS, THREE, QEMU, RAW], ["at once", "after a rest"]
    yield common.made_by(took_s)
    yield f"Rounds: {options.rounds}; each measurement {options.seconds:g} s over {options.size_mib} MiB; a rest is {options.rest_s:g} s."
    yield ""
    yield from common.machine(options, "fio", "qemu-nbd")
    yield ""
    yield f"**{WRITES.name}**: thousands of requests a second, median (least–most)."
    yield ""
    yield from rows(["", *names], ([when, *(spread(samples[when, name]) for name in names)] for when in whens))
    yield ""
    yield "**Of qemu-nbd's rate**, round by round."
    yield ""
    yield from rows(["", *names[:2]], ([when, *(spread(ratios(samples, when, name, QEMU)) for name in names[:2])] for when in whens))
    yield ""
    median = lambda when: statistics.median(ratios(samples, when, IN_PROCESS, QEMU))
    yield from common.aims_table((median(when) >= AIM, f"{when}: one in-process replica has {AIM} of qemu-nbd's rate", f"{median(when):.2f} of it") for when in whens)


def measure(options):
    """The table."""
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.1 if options.quick else 2)
    options.size_mib = options.size_mib or (64 if options.quick else 8192)
    options.rest_s = (1 if options.quick else 15) if options.rest_s is None else options.rest_s
    began, size_bytes = time.monotonic(), options.size_mib * MIB
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work)
        servers = start_all(cleanup, options.binary, work, size_bytes)
        samples = measure_all(servers, options, sorted(work.glob("*.img")))
        return "\n".join(report(samples, options, time.monotonic() - began)) + "\n"
