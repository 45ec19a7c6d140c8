"""Rebuild, write intent, and what a client notices of a crash.

Every comparison is made in the same run, in turns, several rounds; a ratio is that of the two
measurements of one round. A figure is the median, with the least and the most.
"""

import collections
import contextlib
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from . import common
from .cluster import Volume, wait_until
from .common import MIB, Ankole, Failed, fill, fio, for_seconds, nbd, rows, spread
from .nbd import write_latencies

TOOLS = {"fio": "fio", "cp": "coreutils"}
PLACE = "replication"

# What is measured, in MiB, and how often.
Sizes = collections.namedtuple("Sizes", "dense holes changed changed_in working_set fresh settled volumes")
FULL = Sizes(dense=4096, holes=2048, changed=100, changed_in=10240, working_set=64, fresh=32768, settled=1024, volumes=10)
QUICK = Sizes(dense=64, holes=16, changed=4, changed_in=32, working_set=4, fresh=16, settled=16, volumes=1)
REPLICAS = ("r1", "r2", "r3")
# Long enough for any rebuild on a slow machine; not a figure.
REBUILD_PATIENCE_S = 1800
# A client's wait for a replica that was killed is looked for in this time after it.
STALL_WINDOW_S = 1.0
# After its last write a region keeps its mark for three minutes; a volume that rests so long has none.
REST_S = 190
# What volumes keep in memory instead of on their disk, when marking is to cost nothing.
MARKS_FILE = "intent"
MEMORY = pathlib.Path("/dev/shm")

Aim = collections.namedtuple("Aim", "text measured is_met")


class Bench:
    """One run: its Ankole, and what was measured so far."""

    def __init__(self, options, ankole, work, cleanup):
        self.options, self.ankole, self.work, self.cleanup = options, ankole, work, cleanup
        self.sizes = QUICK if options.quick else Sizes._make(max(1, size // options.divide) for size in FULL)
        self.samples = collections.defaultdict(list)
        self.began = time.monotonic()

    def say(self, text):
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    def note(self, what, value):
        self.samples[what].append(value)

    @contextlib.contextmanager
    def volume(self, name, size_mib, replicas=3, prepare=lambda name: None, ankole=None):
        ankole = ankole or self.ankole
        ankole.create(name, size_mib * MIB, "--replicas", str(replicas))
        prepare(name)
        ankole.attach(name)
        yield Volume(ankole, name)
        if self.options.quick:
            ankole.detach(name)  # freeing space may take longer than all else; it is freed at the end
        else:
            ankole.remove(name)

    def rounds(self, what):
        for number in range(1, self.options.rounds + 1):
            yield number
            self.say(f"{what}: round {number} of {self.options.rounds} is done")


# ---- rebuild -------------------------------------------------------------------------------------

def measure_rebuild(bench):
    """A new replica, next to `cp` of the file that it gets; and clients meanwhile."""
    size_mib = bench.sizes.dense
    with bench.volume("dense", size_mib) as volume:
        fill(nbd(volume.endpoint), size_mib * MIB)
        for _ in bench.rounds("rebuild"):
            copied_s, synced_s = copy_file(data_file(volume.directory_of("r1")), bench.work / "copy")
            bench.note("cp", size_mib / copied_s)
            bench.note("cp and sync", size_mib / synced_s)

            volume.lose_disk_of("r3")
            rebuild = volume.watch_rebuild("r3", REBUILD_PATIENCE_S)
            bench.note("rebuild", size_mib / rebuild.seconds)
            bench.note("rebuild / cp", synced_s / rebuild.seconds)

            alone = foreground(volume, size_mib, bench.options.seconds)
            volume.lose_disk_of("r2")
            volume.wait_rebuilding("r2")
            beside = foreground(volume, size_mib, bench.options.seconds)
            if not volume.is_rebuilding("r2") and bench.sizes == FULL:
                raise Failed("the rebuild ended before fio did: fewer --seconds, or a larger volume")
            volume.watch_rebuild("r2", REBUILD_PATIENCE_S)
            bench.note("foreground alone", alone / 1000)
            bench.note("foreground while rebuilding", beside / 1000)
            bench.note("foreground ratio", beside / alone)


def measure_holes(bench):
    """The pattern that is worst for whoever copies hole by hole."""
    size_mib = bench.sizes.holes
    with bench.volume("holes", size_mib, replicas=2) as volume:
        fio(*nbd(volume.endpoint), "--rw=write:4k", "--bs=4k", "--iodepth=32", f"--size={size_mib}m", f"--io_size={size_mib // 2}m", "--end_fsync=1")
        for _ in bench.rounds("rebuild of data and holes"):
            volume.lose_disk_of("r2")
            rebuild = volume.watch_rebuild("r2", REBUILD_PATIENCE_S)
            bench.note("rebuild holes", size_mib / 2 / rebuild.seconds)


def measure_delta(bench):
    """A replica misses some writes, each in another region, and comes back: once to a volume that was
    at rest before, and once when as much was marked as the engine keeps marked."""
    size_mib, changed, rest_s = bench.sizes.changed_in, bench.sizes.changed, 0 if bench.options.quick else REST_S
    with bench.volume("delta", size_mib, replicas=2) as volume:
        fill(nbd(volume.endpoint), size_mib * MIB)
        for number in bench.rounds("delta"):
            time.sleep(rest_s)
            rebuild = rebuild_after_absence(volume, size_mib, changed, number)
            bench.note("delta", rebuild.seconds)
            bench.note("delta moved", rebuild.moved_bytes / (changed * MIB))

            fill(nbd(volume.endpoint), min(size_mib, bench.sizes.settled) * MIB)
            rebuild = rebuild_after_absence(volume, size_mib, changed, number)
            bench.note("delta marked", rebuild.seconds)
            bench.note("delta marked moved", rebuild.moved_bytes / (changed * MIB))


def rebuild_after_absence(volume, size_mib, changed_mib, seed):
    with volume.without("r2"):
        fio(*nbd(volume.endpoint), "--rw=randwrite", "--bs=1m", "--iodepth=4", f"--size={size_mib}m",
            f"--io_size={changed_mib}m", f"--randseed={seed}", "--end_fsync=1")
    return volume.watch_rebuild("r2", REBUILD_PATIENCE_S)


def data_file(directory):
    return max((path for path in directory.iterdir() if path.is_file()), key=lambda path: path.stat().st_blocks)


def copy_file(source, copy):
    """Seconds without and with the copy's fdatasync, which a rebuild has too. Both begin without the
    source in the page cache."""
    with open(source, "rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = time.monotonic()
    subprocess.run(["cp", "--sparse=never", source, copy], check=True)
    copied_s = time.monotonic() - began
    common.write_back([copy])
    synced_s = time.monotonic() - began
    copy.unlink()
    return copied_s, synced_s


def foreground(volume, size_mib, seconds):
    """Requests a second of a client that reads more than it writes."""
    job = fio(*nbd(volume.endpoint), "--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=32", f"--size={size_mib}m",
              *for_seconds(seconds), "--norandommap=1", "--randrepeat=0")
    return job["read"]["iops"] + job["write"]["iops"]


# ---- write intent --------------------------------------------------------------------------------

def measure_marks(bench):
    """Random writes with the map of marks on the disk, and in memory: marking costs nothing then but
    the look whether a region is marked."""
    seconds, rounds, sizes = bench.options.seconds, bench.options.rounds, bench.sizes
    with bench.volume("marks-on", sizes.fresh) as on, bench.volume("marks-off", sizes.fresh, prepare=lambda name: keep_marks_in_memory(bench, name)) as off:
        slice_mib = sizes.fresh // (rounds + 1)
        for volume in (on, off):  # a working set is one that is written again
            random_writes(volume, 0, sizes.working_set, seconds)
        for number in bench.rounds("write intent"):
            for what, offset_mib, size_mib in (("fits", 0, sizes.working_set), ("fresh", number * slice_mib, slice_mib)):
                turn = [("on", on), ("off", off)][:: 1 if number % 2 else -1]
                rates = {name: random_writes(volume, offset_mib, size_mib, seconds) for name, volume in turn}
                for name, rate in rates.items():
                    bench.note(f"marks {what} {name}", rate / 1000)
                bench.note(f"marks {what} ratio", rates["on"] / rates["off"])


def keep_marks_in_memory(bench, name):
    for replica in bench.ankole.show(name)["replicas"]:
        marks = pathlib.Path(replica["directory"]) / MARKS_FILE
        wait_until(marks.exists, f"{marks} is made")
        memory = pathlib.Path(tempfile.mkdtemp(prefix="ankole-bench.", dir=MEMORY))
        bench.cleanup.callback(shutil.rmtree, memory)
        shutil.copy(marks, memory / MARKS_FILE)
        marks.unlink()
        marks.symlink_to(memory / MARKS_FILE)


def random_writes(volume, offset_mib, size_mib, seconds):
    job = fio(*nbd(volume.endpoint), "--rw=randwrite", "--bs=4k", "--iodepth=32", f"--offset={offset_mib}m", f"--size={size_mib}m",
              *for_seconds(seconds), "--norandommap=1", "--randrepeat=0")
    return job["write"]["iops"]


# ---- crashes -------------------------------------------------------------------------------------

def measure_crashes(bench):
    """Each replica of each volume is killed once, then each volume's engine: a process that is killed
    again and again is started later and later, which isn't what is measured."""
    for number in range(1, bench.sizes.volumes + 1):
        with bench.volume(f"crash{number}", 64) as volume:
            fill(nbd(volume.endpoint), 64 * MIB)
            for replica in REPLICAS:
                bench.note("no kill", 1000 * longest_write(volume, lambda: None))
                bench.note("kill", 1000 * longest_write(volume, lambda: volume.kill_replica(replica)))
                volume.wait_healthy(REBUILD_PATIENCE_S)
            killed = volume.kill_engine()
            volume.wait_first_io()
            bench.note("engine", 1000 * (time.monotonic() - killed))
        bench.say(f"crashes: volume {number} of {bench.sizes.volumes} is done")


def longest_write(volume, event):
    """Of a client that writes one block after the other; from the event on, for a while."""
    latencies = []
    writer = threading.Thread(target=lambda: latencies.extend(write_latencies(volume.endpoint, 0.3 + STALL_WINDOW_S)))
    writer.start()
    time.sleep(0.3)
    happened = time.monotonic()
    event()
    writer.join()
    after = [took for began, took in latencies if began + took > happened]
    if not after:
        raise Failed("the client's writes failed; the engine's log says why")
    return max(after)


def measure_settling(bench):
    """Each region is marked, and all processes are killed before the marks can be cleared: what is
    left is files, and no checksum of a marked region is trusted. A volume for each round, as above.
    All replicas share one disk here, so it is measured in memory too: as if each had a fast one."""
    with contextlib.ExitStack() as cleanup:
        work = pathlib.Path(tempfile.mkdtemp(prefix="ankole-bench.", dir=MEMORY))
        cleanup.callback(shutil.rmtree, work)
        in_memory = Ankole(bench.options.binary, work / "data")
        cleanup.callback(in_memory.stop)
        for number in bench.rounds("settling"):
            settle(bench, bench.ankole, "settle", f"settle{number}")
            settle(bench, in_memory, "settle in memory", f"settle{number}")


def settle(bench, ankole, what, name):
    size_mib = bench.sizes.settled
    with bench.volume(name, size_mib, ankole=ankole) as volume:
        fill(nbd(volume.endpoint), size_mib * MIB)
        fio(*nbd(volume.endpoint), "--rw=write:1020k", "--bs=4k", "--iodepth=32", f"--size={size_mib}m", f"--io_size={size_mib * 4}k")
        before = volume.status()["instance"]
        killed = volume.kill_all(REPLICAS)
        new = wait_until(lambda: (now := volume.status()) and now["instance"] != before and now["endpoint"] and now,
                         "there is another engine")
        opened = time.monotonic()
        wait_until(lambda: (now := volume.status()) and not now["unsettledBytes"], "all is settled", REBUILD_PATIENCE_S)
        bench.note(what, time.monotonic() - killed)
        bench.note(f"{what} opened", opened - killed)
        bench.note(f"{what} MiB", new["unsettledBytes"] / MIB)
        if ankole is bench.ankole:
            bench.note("settle read", read_all(data_file(volume.directory_of(replica)) for replica in REPLICAS))


def read_all(files):
    """Seconds that the disk takes for it, with nothing else to do."""
    began = time.monotonic()
    for file in files:
        fio(f"--filename={file}", "--readonly", "--rw=read", "--bs=1m", "--direct=1", "--ioengine=io_uring", "--iodepth=8")
    return time.monotonic() - began


# ---- the table -----------------------------------------------------------------------------------

def percentile_99(values):
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def lines(bench):
    """What was measured, and its unit."""
    sizes, samples = bench.sizes, bench.samples
    yield f"rebuild of a new replica, {sizes.dense} MiB dense", "MiB/s", samples["rebuild"]
    yield "`cp --sparse=never` of its file, until it is synced", "MiB/s", samples["cp and sync"]
    yield "the same, until `cp` ends", "MiB/s", samples["cp"]
    yield "rebuild / `cp` until it is synced", "", samples["rebuild / cp"]
    yield f"rebuild, 4 KiB data and 4 KiB hole in turn, {sizes.holes // 2} MiB of data", "MiB/s of data", samples["rebuild holes"]
    yield f"rebuild of a replica that missed {sizes.changed} MiB in {sizes.changed_in} MiB", "s", samples["delta"]
    yield "bytes moved / bytes changed", "", samples["delta moved"]
    marked = min(sizes.changed_in, sizes.settled)
    yield f"the same, {marked} MiB were written just before: they are compared too", "s", samples["delta marked"]
    yield "bytes moved / bytes changed", "", samples["delta marked moved"]
    yield "4 KiB, 70 % reads, QD 32, three replicas", "k/s", samples["foreground alone"]
    yield "the same while one of them is rebuilt", "k/s", samples["foreground while rebuilding"]
    yield "while rebuilding / not", "", samples["foreground ratio"]
    for what, text in (("fits", f"within {sizes.working_set} MiB"), ("fresh", f"all over {sizes.fresh} MiB never written before")):
        yield f"4 KiB random writes, QD 32, {text}: marks on disk", "k/s", samples[f"marks {what} on"]
        yield "the same, marks in memory", "k/s", samples[f"marks {what} off"]
        yield "marks on disk / in memory", "", samples[f"marks {what} ratio"]
    yield "longest write of a client, QD 1, within a second of a replica's SIGKILL", "ms", samples["kill"]
    yield "the same, nothing killed", "ms", samples["no kill"]
    yield "engine's SIGKILL to the first request answered", "ms", samples["engine"]
    yield f"SIGKILL of all processes until {sizes.settled} MiB of marked regions are settled", "s", samples["settle"]
    yield "of it, until the volume is open", "s", samples["settle opened"]
    yield "left to settle then", "MiB", samples["settle MiB"]
    yield "for comparison: fio reads the same files from the disk, all three", "s", samples["settle read"]
    yield "settling of the same when the files lie in memory", "s", samples["settle in memory"]
    yield "of it, until the volume is open", "s", samples["settle in memory opened"]
    yield "left to settle then", "MiB", samples["settle in memory MiB"]


def aims(bench):
    """The figures of the replication's design."""
    samples = bench.samples
    median = lambda what: statistics.median(samples[what])
    ratio = median("rebuild / cp")
    yield Aim("rebuild, dense: at least 0.85 of `cp`", f"{ratio:.2f}", ratio >= 0.85)
    rate = median("rebuild holes")
    yield Aim("rebuild, 4 KiB data and holes: at least 150 MiB/s of data", f"{rate:.0f} MiB/s", rate >= 150)
    delta_s = median("delta")
    yield Aim("delta of 100 MiB in 10 GiB, at rest before: at most 2 s", f"{delta_s:.2f} s", delta_s <= 2)
    moved = max(samples["delta moved"] + samples["delta marked moved"])
    yield Aim("delta: moves at most 1.1 of what changed", f"{moved:.2f}", moved <= 1.1)
    ratio = median("foreground ratio")
    yield Aim("foreground while rebuilding: at least 0.6", f"{ratio:.2f}", ratio >= 0.6)
    ratio = median("marks fits ratio")
    yield Aim("write intent on / off, a working set that fits: at least 0.95", f"{ratio:.2f}", ratio >= 0.95)
    stall_ms = percentile_99(samples["kill"])
    yield Aim("stall at a replica's SIGKILL: p99 at most 50 ms", f"{stall_ms:.0f} ms of {len(samples['kill'])} kills", stall_ms <= 50)
    engine_ms = median("engine")
    yield Aim("engine restart to the first request: at most 1 s", f"{engine_ms / 1000:.2f} s", engine_ms <= 1000)
    settle_s = median("settle in memory")
    yield Aim("settling of 1 GiB marked, restarts included, where no disk is waited for: at most 2 s", f"{settle_s:.2f} s", settle_s <= 2)


def report(bench, took_s):
    options = bench.options
    yield common.made_by(took_s)
    yield f"Rounds: {options.rounds}; fio's measurements {options.seconds:g} s each; kills: {len(bench.samples['kill'])} of replicas, {len(bench.samples['engine'])} of engines."
    yield ""
    yield from common.machine(options, "fio")
    yield ""
    yield from rows(["", "median (least–most)", "unit"], ([text, spread(values), unit] for text, unit, values in lines(bench)))
    yield ""
    yield from common.aims_table((aim.is_met, aim.text, aim.measured) for aim in aims(bench))


PARTS = {
    "rebuild": measure_rebuild,
    "holes": measure_holes,
    "delta": measure_delta,
    "crashes": measure_crashes,
    "settling": measure_settling,
    "marks": measure_marks,  # last: freeing what was written at random keeps some disks busy for long
}


def add_arguments(parser):
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement by fio")
    parser.add_argument("--divide", type=int, default=1, metavar="N", help="volumes of an Nth of the size, for a try")


def measure(options):
    """The table."""
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (0.1 if options.quick else 2)
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, work)
        ankole = Ankole(options.binary, work / "data")
        cleanup.callback(ankole.stop)
        bench = Bench(options, ankole, work, cleanup)
        for name, part in PARTS.items():
            bench.say(f"{name} begins")
            part(bench)
        return "\n".join(report(bench, time.monotonic() - bench.began)) + "\n"
