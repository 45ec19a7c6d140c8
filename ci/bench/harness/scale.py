"""What size, snapshots and a slow replica cost, each next to the same with next to none in the same run.

The volumes are as large as they can be, and nearly empty. They lie on XFS in a sparse image, since other
file systems end at files of 16 TiB; so it needs root. What doesn't end in its time is a line that says so.
"""

import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time

from . import common
from .cluster import Volume
from .common import MIB, Ankole, Failed, fill, fio, for_seconds, nbd, output_of, rows, spread
from .nbd import BLOCK, Client, write_latencies

TOOLS = {"fio": "fio", "mkfs.xfs": "xfsprogs", "mount": "mount"}
PLACE = "scale"

GIB, TIB = 1 << 30, 1 << 40
Sizes = collections.namedtuple("Sizes", "large written_mib plan plan_snapshots full_mib read_snapshots meta meta_mib meta_snapshots pressed_mib pressed_s rounds")
FULL = Sizes(large=64 * TIB, written_mib=10240, plan=64 * GIB, plan_snapshots=400, full_mib=1024, read_snapshots=500, meta=TIB, meta_mib=1000,
             meta_snapshots=1000, pressed_mib=1024, pressed_s=10, rounds=3)
QUICK = Sizes(large=64 * GIB, written_mib=8, plan=GIB, plan_snapshots=4, full_mib=32, read_snapshots=20, meta=GIB, meta_mib=8,
              meta_snapshots=4, pressed_mib=64, pressed_s=2, rounds=1)
SMALL = GIB  # what a large volume is compared with
IMAGE = 4 * TIB  # of which what is written takes space
# No figure: what takes longer is said to have taken longer.
PATIENCE_S = 90
# A process that ends within 3 s of its start counts as one that fails, and is started later.
SETTLED_S = 4
# A target that is let run so long in each second has 3 % of its speed.
RUNS_S = 0.03
NEARLY_EMPTY = 64  # blocks

Line = collections.namedtuple("Line", "text unit name")
Aim = collections.namedtuple("Aim", "text is_met measured")


class Bench:
    def __init__(self, options, ankole):
        self.options, self.ankole = options, ankole
        self.sizes = QUICK if options.quick else FULL
        self.samples = collections.defaultdict(list)
        self.failures = {}
        self.began = time.monotonic()

    def say(self, text):
        print(f"{time.monotonic() - self.began:6.0f} s  {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def volume(self, name, size_bytes, replicas=1):
        self.ankole.create(name, size_bytes, "--replicas", str(replicas))
        self.ankole.attach(name)
        try:
            yield Volume(self.ankole, name)
        except (Failed, OSError):
            with contextlib.suppress(Failed):  # one that didn't do what it should may not do this either
                output_of(*self.ankole.command, "volume", "detach", name, "--timeout", "20")
            raise
        self.ankole.remove(name)

    def snapshot(self, volume, name):
        """Seconds of the command."""
        began = time.monotonic()
        output_of(*self.ankole.command, "snapshot", "create", volume.name, name)
        return time.monotonic() - began


def write_scattered(volume, count, piece_bytes):
    """Pieces that are as far apart as they can be."""
    with Client(volume.endpoint) as client:
        data, step = os.urandom(piece_bytes), client.size_bytes // count // MIB * MIB
        for number in range(count):
            client.write(number * step, data)


# ---- a large volume ------------------------------------------------------------------------------

def measure_open(bench):
    """After a clean stop, and after the SIGKILL of all its processes."""
    for what, size_bytes, pieces in (("small", SMALL, 0), ("large", bench.sizes.large, bench.sizes.written_mib)):
        with bench.volume(f"open-{what}", size_bytes) as volume:
            if pieces:
                write_scattered(volume, pieces, MIB)
                bench.say(f"{pieces} MiB are written")
            for _ in range(bench.sizes.rounds):
                bench.ankole.detach(volume.name)
                began = time.monotonic()
                endpoint = bench.ankole.attach(volume.name)["endpoint"]
                with Client(endpoint) as client:
                    client.read(0)
                bench.samples["open", what].append(time.monotonic() - began)
            volume = Volume(bench.ankole, volume.name)
            for _ in range(bench.sizes.rounds):
                volume.wait_first_io(PATIENCE_S)
                time.sleep(SETTLED_S)
                killed = volume.kill_all(["r1"])
                volume.wait_first_io(PATIENCE_S)
                bench.samples["open after kill", what].append(time.monotonic() - killed)


def measure_rebuild(bench):
    """Of a volume that has next to nothing in it, and what a client waits meanwhile."""
    for what, size_bytes in (("small", SMALL), ("large", bench.sizes.large)):
        with bench.volume(f"rebuild-{what}", size_bytes, replicas=2) as volume:
            write_scattered(volume, NEARLY_EMPTY, BLOCK)
            time.sleep(SETTLED_S)
            latencies, end = [], threading.Event()
            writer = threading.Thread(target=write_until, args=(volume, end, latencies))
            writer.start()
            try:
                volume.lose_disk_of("r2")
                began = time.monotonic()
                bench.samples["rebuild", what].append(volume.watch_rebuild("r2", PATIENCE_S).seconds)
            finally:
                end.set()
                writer.join()
            bench.samples["rebuild stall", what].append(1000 * max(took for at, took in latencies if at + took > began))


def write_until(volume, end, latencies):
    """One block after the other, near the beginning: a client that says what it waits."""
    with Client(volume.endpoint, timeout_s=2 * PATIENCE_S) as client:
        data = os.urandom(BLOCK)
        while not end.is_set():
            began = time.monotonic()
            client.write(int.from_bytes(os.urandom(1), "little") * BLOCK, data)
            latencies.append((began, time.monotonic() - began))


# ---- many snapshots ------------------------------------------------------------------------------

def measure_plan(bench):
    """A backup after one block has changed, with few and with many snapshots: what is more is planning.
    Both have the two seconds that a backup waits for its lock."""
    target = bench.options.work / "backups"
    target.mkdir()
    for what, snapshots in (("small", 1), ("large", bench.sizes.plan_snapshots)):
        with bench.volume(f"plan-{what}", bench.sizes.plan, replicas=3) as volume:
            back_up(bench, volume, target, "first")
            with Client(volume.endpoint) as client:
                for number in range(snapshots):
                    client.write(number * (client.size_bytes // snapshots // MIB * MIB), os.urandom(BLOCK))
                    if number + 1 < snapshots:
                        bench.snapshot(volume, f"s{number}")
                back_up(bench, volume, target, "all")
                for number in range(bench.sizes.rounds):
                    client.write(0, os.urandom(BLOCK))
                    bench.samples["plan", what].append(back_up(bench, volume, target, f"again{number}"))
            bench.samples["plan in sync", what].append(sum(it["mode"] == "RW" for it in volume.status()["replicas"]))


def back_up(bench, volume, target, snapshot):
    bench.snapshot(volume, snapshot)
    began = time.monotonic()
    output_of(*bench.ankole.command, "backup", "create", volume.name, "--snapshot", snapshot, "--target", f"file://{target}", timeout=PATIENCE_S)
    return time.monotonic() - began


def measure_reads(bench):
    """Of a volume that is full; each snapshot owns some blocks of it."""
    sizes = bench.sizes
    with bench.volume("one", sizes.full_mib * MIB) as one, bench.volume("many", sizes.full_mib * MIB) as many:
        for volume in (one, many):
            fill(nbd(volume.endpoint), sizes.full_mib * MIB)
        bench.snapshot(one, "s1")
        with Client(many.endpoint) as client:
            for number in range(1, sizes.read_snapshots + 1):
                took_s = bench.snapshot(many, f"s{number}")
                if number < 10:
                    bench.samples["snapshot", "small"].append(1000 * took_s)
                if number > sizes.read_snapshots - 10:
                    bench.samples["snapshot", "large"].append(1000 * took_s)
                for _ in range(16):
                    client.write(int.from_bytes(os.urandom(4), "little") % (sizes.full_mib * 256) * BLOCK, os.urandom(BLOCK))
        bench.say(f"{sizes.read_snapshots} snapshots are made")
        for _ in range(sizes.rounds):
            for what, block, depth in (("randread", "4k", 16), ("read", "256k", 4)):
                for name, volume in (("small", one), ("large", many)):
                    job = fio(*nbd(volume.endpoint), f"--rw={what}", f"--bs={block}", f"--iodepth={depth}", f"--size={sizes.full_mib}m",
                              *for_seconds(bench.options.seconds), "--norandommap=1", "--randrepeat=0")
                    bench.samples[what, name].append(job["read"]["iops"] / 1000 if what == "randread" else job["read"]["bw_bytes"] / MIB)


def measure_metadata(bench):
    """What a replica's directory takes besides the data: MB."""
    sizes = bench.sizes
    for what, snapshots in (("small", 1), ("large", sizes.meta_snapshots)):
        with bench.volume(f"meta-{what}", sizes.meta) as volume:
            with Client(volume.endpoint) as client:
                step, each = sizes.meta // sizes.meta_mib // MIB * MIB, sizes.meta_mib // snapshots
                for number in range(snapshots):
                    for piece in range(number * each, (number + 1) * each):
                        client.write(piece * step, os.urandom(MIB))
                    bench.snapshot(volume, f"s{number}")
            written = each * snapshots * MIB
            directory = volume.directory_of("r1")
            bench.ankole.detach(volume.name)  # what is made ahead, or written late, is there or gone then
            taken = 512 * sum(file.stat().st_blocks for file in directory.rglob("*") if file.is_file())
            bench.samples["metadata", what].append((taken - written) / 1e6)
            bench.ankole.attach(volume.name)


# ---- a slow target -------------------------------------------------------------------------------

def private_bytes(pid):
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) << 10 for kib in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M))


def measure_slow_target(bench):
    """A client writes as fast as it can while a rebuild's target runs 30 ms of each second."""
    size_mib = bench.sizes.pressed_mib
    with bench.volume("pressed", size_mib * MIB, replicas=2) as volume:
        engine, source = bench.ankole.show(volume.name)["enginePid"], volume.pid_of("r1")
        time.sleep(1)
        idle = {"engine": private_bytes(engine), "replica": private_bytes(source)}
        fill(nbd(volume.endpoint), size_mib * MIB)
        time.sleep(SETTLED_S)
        before = most_private(volume, bench.sizes.pressed_s, engine, source)
        volume.lose_disk_of("r2")
        volume.wait_rebuilding("r2")
        target = volume.pid_of("r2")
        during = most_private(volume, bench.sizes.pressed_s, engine, source, target)
        for process in ("engine", "replica"):
            bench.samples[f"private {process}", "small"].append((before[process] - idle[process]) / 1e6)
            bench.samples[f"private {process}", "large"].append((during[process] - idle[process]) / 1e6)
        bench.samples["private idle", "large"].append(idle["engine"] / 1e6)
        bench.samples["private most", "large"].append(during["replica"] / 1e6)
        bench.samples["pressed write", "small"].append(1000 * before["wait"])
        bench.samples["pressed write", "large"].append(1000 * during["wait"])


def most_private(volume, seconds, engine, source, target=None):
    """The most private bytes of each process while a client writes, and the client's longest wait."""
    end, most, waits = threading.Event(), {"engine": 0, "replica": 0}, []

    def press():
        with Client(volume.endpoint, timeout_s=2 * PATIENCE_S) as client:
            data = os.urandom(MIB)
            while not end.is_set():
                began = time.monotonic()
                client.write(int.from_bytes(os.urandom(4), "little") % (client.size_bytes // MIB) * MIB, data)
                waits.append(time.monotonic() - began)

    def throttle():
        with contextlib.suppress(ProcessLookupError):
            while not end.is_set():
                os.kill(target, signal.SIGSTOP)
                time.sleep(1 - RUNS_S)
                os.kill(target, signal.SIGCONT)
                time.sleep(RUNS_S)

    threads = [threading.Thread(target=press), *([threading.Thread(target=throttle)] if target else [])]
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pids = {"engine": [engine], "replica": [source, *([target] if target else [])]}
            for role, ones in pids.items():
                most[role] = max(most[role], *map(private_bytes, ones))
            time.sleep(0.05)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return {**most, "wait": max(waits)}


# ---- the table -----------------------------------------------------------------------------------

def lines(sizes):
    large, tib = size_text(sizes.large), size_text(sizes.meta)
    yield Line(f"open to the first read, {large} with {sizes.written_mib} MiB written; next to {size_text(SMALL)}, empty", "s", "open")
    yield Line("the same after SIGKILL of all its processes", "s", "open after kill")
    yield Line(f"rebuild of {large} with {NEARLY_EMPTY} blocks written; next to {size_text(SMALL)}", "s", "rebuild")
    yield Line("longest write of a client meanwhile", "ms", "rebuild stall")
    yield Line(f"backup of one changed block, {size_text(sizes.plan)} with {sizes.plan_snapshots} snapshots; next to one", "s", "plan")
    yield Line("replicas in sync after it, of three", "", "plan in sync")
    yield Line(f"4 KiB random read, QD 16, {sizes.read_snapshots} snapshots; next to one", "k/s", "randread")
    yield Line(f"256 KiB sequential read, QD 4, {sizes.read_snapshots} snapshots; next to one", "MiB/s", "read")
    yield Line(f"creating one of the last of {sizes.read_snapshots} snapshots; next to one of the first", "ms", "snapshot")
    yield Line(f"metadata of {tib}, {sizes.meta_mib} MiB written, {sizes.meta_snapshots} snapshots; next to one", "MB", "metadata")
    yield Line("engine's private memory beyond idle, a target at 3 %; next to no target", "MB", "private engine")
    yield Line("replica's private memory beyond idle, the same", "MB", "private replica")
    yield Line("longest 1 MiB write of a client, the same", "ms", "pressed write")


def size_text(size_bytes):
    return f"{size_bytes // TIB} TiB" if size_bytes >= TIB else f"{size_bytes // GIB} GiB"


def aims(bench):
    sizes, samples = bench.sizes, bench.samples
    middle = lambda name, what="large": statistics.median(samples[name, what])

    def aim(names, text, judge):
        if all(samples[name] for name in names):
            met, measured = judge()
            yield Aim(text, met, measured)
        else:
            yield Aim(text, False, "no figure")

    def at_most(name, text, limit, unit, value=None):
        def judge():
            seen = value() if value else max(samples[name, "large"])
            return seen <= limit, f"{common.figure(seen)} {unit}"
        yield from aim([(name, "large"), (name, "small")], text, judge)

    def share(name, text, least):
        def judge():
            seen = middle(name) / middle(name, "small")
            return seen >= least, f"{seen:.2f}"
        yield from aim([(name, "large"), (name, "small")], text, judge)

    large = size_text(sizes.large)
    yield from at_most("open", f"open of {large} after a clean stop: at most 1 s", 1, "s", lambda: middle("open"))
    yield from at_most("open after kill", "open after a kill: at most 2 s", 2, "s", lambda: middle("open after kill"))
    yield from at_most("rebuild", f"rebuild of nearly empty {large}: at most 10 s", 10, "s")
    yield from at_most("rebuild stall", "longest stall of a client meanwhile: at most 100 ms", 100, "ms")
    yield from at_most("plan", f"a backup's plan with {sizes.plan_snapshots} snapshots: at most 1 s more than with one", 1, "s", lambda: middle("plan") - middle("plan", "small"))
    yield from share("randread", f"random reads with {sizes.read_snapshots} snapshots: at least 0.8 of those with one", 0.8)
    yield from share("read", "sequential reads: at least 0.9", 0.9)
    yield from at_most("snapshot", f"creating snapshot {sizes.read_snapshots}: at most 1.25 of the 5th", 1.25, "of it", lambda: middle("snapshot") / middle("snapshot", "small"))
    yield from at_most("metadata", f"metadata of {sizes.meta_snapshots} snapshots: at most 200 MB", 200, "MB")
    yield from at_most("private engine", "engine with a target at 3 %: at most 64 MB beyond idle", 64, "MB")
    yield from aim([("private most", "large")], "replica: at most 64 MB, always", lambda: ((most := max(samples["private most", "large"])) <= 64, f"{most:.1f} MB"))


def report(bench, took_s):
    def row(line):
        large, small = bench.samples[line.name, "large"], bench.samples[line.name, "small"]
        if not large or not small:
            why = next((why for part, why in bench.failures.items() if line.name in PARTS[part][1]), "not measured")
            return [line.text, spread(small) if small else "–", f"none: {why}", "", line.unit]
        ratio = statistics.median(large) / statistics.median(small) if statistics.median(small) else float("nan")
        return [line.text, spread(small), spread(large), f"{ratio:.2f}", line.unit]

    yield common.made_by(took_s)
    yield f"Rounds: {bench.sizes.rounds}; fio's measurements {bench.options.seconds:g} s each; disk: XFS in a sparse image."
    yield ""
    yield from common.machine(bench.options, "fio")
    yield ""
    yield "Median (least–most); the ratio is that of the medians."
    yield ""
    yield from rows(["", "small", "large", "ratio", "unit"], map(row, lines(bench.sizes)))
    yield ""
    yield from common.aims_table((aim.is_met, aim.text, aim.measured) for aim in aims(bench))


# What measures, and the names of what it measures.
PARTS = {
    "rebuild": (measure_rebuild, ("rebuild", "rebuild stall")),
    "plan": (measure_plan, ("plan", "plan in sync")),
    "reads": (measure_reads, ("randread", "read", "snapshot")),
    "slow target": (measure_slow_target, ("private engine", "private replica", "pressed write", "private most")),
    "metadata": (measure_metadata, ("metadata",)),
    "open": (measure_open, ("open", "open after kill")),
}


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, help="of each measurement by fio")
    parser.add_argument("--limit-s", type=float, default=600, help="no part begins later")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; repeatable")


@contextlib.contextmanager
def xfs(work):
    """A folder on XFS, whose image takes what is written."""
    image, folder = work / "image", work / "m"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(IMAGE)
    output_of("mkfs.xfs", "-q", "-K", "-l", "size=64m", image)
    output_of("mount", "-o", "loop,discard", image, folder)
    try:
        yield folder
    finally:
        output_of("umount", "--lazy", folder)


def stop(bench):
    """The figures are kept when the end takes too long."""
    try:
        bench.ankole.stop()
    except Failed as failed:
        bench.say(f"{failed}")


def measure(options):
    """The table."""
    if os.geteuid() != 0:
        raise Failed("needs root, to mount an image with XFS")
    options.seconds = options.seconds or (0.1 if options.quick else 2)
    options.work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=options.dir))
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, options.work)
        folder = cleanup.enter_context(xfs(options.work))
        ankole = Ankole(options.binary, folder / "data")
        bench = Bench(options, ankole)
        cleanup.callback(stop, bench)
        for name, (part, _) in PARTS.items():
            if options.part and name not in options.part:
                continue
            if time.monotonic() - bench.began > options.limit_s:
                bench.failures[name] = "there was no time left"
                continue
            bench.say(f"{name} begins")
            try:
                part(bench)
            except Exception as failed:  # the other parts have figures
                bench.failures[name] = str(failed).split("\n")[0][:120]
                bench.say(f"{name}: {failed}")
        return "\n".join(report(bench, time.monotonic() - bench.began)) + "\n"
