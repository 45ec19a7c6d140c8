"""Block devices of the kernel's drivers, in a machine of ci/vm; and what an attach consists of.

In the machine everything serves the same file in memory, or is a volume with one replica there; fio
takes its turns around them. Its processors are emulated, so that only ratios mean anything, and even
those scatter; system calls don't. A figure is the median of the rounds, with the least and the most.
Attaching is measured on this machine itself, over the socket.
"""

import collections
import contextlib
import datetime
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from . import common
from .common import ROOT, Ankole, Failed, output_of, rows, spread
from .nbd import Client

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "depmod": "kmod"}
PLACE = "devices"
MODULES = ["ublk_drv", "nbd", "loop", "iscsi_tcp", "sd_mod"]

# What is measured, and what it is called. A driver that comes, comes in here and in devices.guest.
TARGETS = {
    "loop": "kernel loop", "ublk-file": "ublk", "nbd-file": "kernel NBD", "tgt-file": "tgt",
    "ublk-volume": "ublk, volume", "nbd-volume": "kernel NBD, volume", "tgt-volume": "tgt, volume",
}
PATTERNS = {"randread": "4 KiB random read, QD 32", "randwrite": "4 KiB random write, QD 32"}
TICK_US = 10_000  # of the guest's accounting
# (what, of what, at least): aims of "Figures" in README.md; they are ratios of one round.
AIMS = [("ublk-file", "loop", 1.0), ("ublk-file", "nbd-file", 1.3), ("tgt-file", "nbd-file", 0.6)]
ATTACH_AIM_MS = 150
STEPS = ["asked → its processes run", "→ the engine has opened it", "→ the socket is served", "→ `volume attach` has answered", "→ the first read has"]


def in_guest(options):
    """A list of what was measured, each a dictionary as devices.guest prints it."""
    release = "debug" if options.quick else "release"
    # The debug build is there already where tests were: the same crates with the same features.
    crates = ["--workspace"] if options.quick else ["-p", "ankole-tgt-plugin", "-p", "ankole-blockdev", "--release"]
    output_of("cargo", "build", "--quiet", *crates, "--lib", "--example", "device_file", cwd=ROOT)
    metadata = json.loads(output_of("cargo", "metadata", "--format-version=1", "--no-deps", cwd=ROOT))
    built = pathlib.Path(metadata["target_directory"]) / release
    words = [
        ROOT / "ci/vm/run", "-k", options.kernel, *(word for module in MODULES for word in ("-m", module)), "-p", "fio,jq,e2fsprogs,valgrind,tgt,open-iscsi",
        "-f", options.binary, "-f", built / "examples/device_file", "-f", built / "libbs_ankole.so", "--memory", "2048", "--cpus", str(options.cpus), "-t", str(options.limit_s),
        "-e", f"ROUNDS={options.rounds}", "-e", f"MS_EACH={round(1000 * options.seconds)}", "-e", f"SIZE_MIB={options.size_mib}",
        "-e", f"COUNT={0 if options.quick else 4000}", "-e", f"TARGETS={' '.join(TARGETS)}", "--", (ROOT / "ci/bench/devices.guest").read_text(),
    ]
    said = output_of(*words)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def when(log, pattern):
    """The time of the last line that has it, in seconds of Unix time."""
    lines = [line for line in log.read_text().splitlines() if re.search(pattern, line)]
    if not lines:
        raise Failed(f"{log} doesn't say {pattern!r}")
    return datetime.datetime.fromisoformat(lines[-1].split()[0].replace("Z", "+00:00")).timestamp()


def attach(ankole, volume, options):
    """Milliseconds of each step, from the wish to the first answer."""
    asked = time.time()
    output_of(*ankole.command, "volume", "attach", volume)
    answered = time.time()
    with Client(ankole.show(volume)["endpoint"]) as client:
        began = time.time()  # what it took to ask where the volume is isn't the volume's
        client.read(0)
        read_s = time.time() - began
    folder = pathlib.Path(ankole.command[-1])
    engine = folder / f"logs/{volume}.engine.log"
    # Its last is its only one: a volume is attached once.
    times = [asked, when(pathlib.Path(ankole.log.name), rf"started process={volume}\.engine"), when(engine, "volume open"),
             when(engine, " serving"), answered, answered + read_s]
    ankole.detach(volume)
    return [1000 * (after - before) for before, after in zip(times, times[1:])]


def attaches(options):
    samples = collections.defaultdict(list)  # how many replicas -> the steps of each attach
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work)
        ankole = Ankole(options.binary, work / "data")
        cleanup.callback(ankole.stop)
        for number in range(options.attaches):
            for replicas in (1, 3):
                volume = f"v{replicas}-{number}"
                ankole.create(volume, 64 << 20, "--replicas", str(replicas))
                samples[replicas].append(attach(ankole, volume, options))
    return samples


def ratios(samples, pattern, what, of):
    """Of the two measurements of one round each."""
    by_round = collections.defaultdict(dict)
    for sample in samples:
        if sample["pattern"] == pattern:
            by_round[sample["round"]][sample["target"]] = sample["iops"]
    return [one[what] / one[of] for one in by_round.values()]


def report(samples, attached, options, took_s):
    counts = {(one["pattern"], one["target"]): one["instructions"] for one in samples if "instructions" in one}
    samples = [one for one in samples if "iops" in one]
    measured = lambda pattern, target: [one for one in samples if (one["pattern"], one["target"]) == (pattern, target)]
    table = lambda value, targets: rows(["", *(TARGETS[target] for target in targets)], (
        [name, *(spread([value(one) for one in measured(pattern, target)]) for target in targets)] for pattern, name in PATTERNS.items()))
    served = [target for target in TARGETS if target != "loop"]
    yield common.made_by(took_s)
    yield f"Rounds: {options.rounds}; each measurement {options.seconds:g} s; {options.size_mib} MiB in the guest's memory; kernel {options.kernel}; emulated CPUs: {options.cpus}."
    yield ""
    yield from common.machine(options, "qemu-system-x86_64")
    yield ""
    yield "**Rate** in the emulator: thousands of requests a second."
    yield ""
    yield from table(lambda one: one["iops"] / 1000, TARGETS)
    yield ""
    yield "**System calls** of the server for one request, all its threads together. Serving the file itself is one."
    yield ""
    yield from table(lambda one: one["calls"] / one["counted"], served)
    yield ""
    if counts:
        files = [target for target in served if ("randread", target) in counts]
        yield "**Instructions** of the server's own code for one request, counted by valgrind."
        yield ""
        yield from rows(["", *(TARGETS[target] for target in files)], (
            [name, *(f"{counts[pattern, target]}" for target in files)] for pattern, name in PATTERNS.items()))
        yield ""
    yield "**CPU** of the server in the emulator: µs for one request, in its own code / in the kernel."
    yield ""
    cpu = lambda one, which: TICK_US * one[which] / one["ios"]
    middle = lambda pattern, target, which: statistics.median(cpu(one, which) for one in measured(pattern, target))
    yield from rows(["", *(TARGETS[target] for target in served)], (
        [name, *(f"{middle(pattern, target, 'user'):.0f} / {middle(pattern, target, 'system'):.0f}" for target in served)]
        for pattern, name in PATTERNS.items()))
    yield ""
    yield "**Attach to first read**, over the socket, on this machine: ms."
    yield ""
    steps = lambda index: [spread([one[index] for one in attached[replicas]]) for replicas in sorted(attached)]
    yield from rows(["", *(f"{replicas} replica{'s' * (replicas > 1)}" for replicas in sorted(attached))], [
        *([name, *steps(index)] for index, name in enumerate(STEPS)),
        ["all", *(spread([sum(one) for one in attached[replicas]]) for replicas in sorted(attached))],
    ])
    yield ""
    yield from common.aims_table(aims(samples, attached))


def aims(samples, attached):
    for what, of, least in AIMS:
        for pattern, name in PATTERNS.items():
            seen = ratios(samples, pattern, what, of)
            yield statistics.median(seen) >= least, f"{name}: {TARGETS[what]} at least {least:g} of {TARGETS[of]}, one file", spread(seen)
    for replicas, all_steps in sorted(attached.items()):
        middle = statistics.median(sum(one) for one in all_steps)
        yield middle <= ATTACH_AIM_MS, f"attach to first read, {replicas} replica(s): at most {ATTACH_AIM_MS} ms", f"{middle:.0f} ms"


def add_arguments(parser):
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--size-mib", type=int, default=128, help="of the file and of each volume, an even number")
    parser.add_argument("--kernel", default="6.12", help="of ci/vm; it must have ublk")
    parser.add_argument("--cpus", type=int, help="emulated processors")
    parser.add_argument("--attaches", type=int)
    parser.add_argument("--limit-s", type=int, default=900, help="of the machine")


def measure(options):
    """The table."""
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.3 if options.quick else 2)
    # On two a guest died once of an oops "int3": tracing patches the kernel's code while it runs, and
    # QEMU's other processor seems to have run what was there before.
    options.cpus = options.cpus or (1 if options.quick else 2)
    options.attaches = options.attaches or (1 if options.quick else 10)
    began = time.monotonic()
    attached = attaches(options)
    print(f"attached after {time.monotonic() - began:.0f} s", file=sys.stderr)
    samples = in_guest(options)
    return "\n".join(report(samples, attached, options, time.monotonic() - began)) + "\n"
