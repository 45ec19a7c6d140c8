"""What the measurements share: Ankole, fio, and the tables of README.md."""

import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
README = ROOT / "ci/bench/README.md"
MIB = 1 << 20


class Failed(Exception):
    """Something that the person who called must know; no trace helps."""


def output_of(*words, **options):
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def fio(*words):
    report = output_of("fio", "--name=bench", "--output-format=json", *words)
    job = json.loads(report[report.index("{"):])["jobs"][0]
    if job["error"]:
        raise Failed(f"fio {' '.join(words)}: errno {job['error']}")
    return job


def for_seconds(seconds):
    """So long, whatever the size. In milliseconds: fio takes whole numbers only, and 0 for all of the file."""
    return ("--time_based=1", f"--runtime={round(1000 * seconds)}ms")


def nbd(uri):
    return ("--ioengine=nbd", f"--uri={uri}")


def fill(fio_target, size_bytes):
    fio(*fio_target, "--rw=write", "--bs=1M", "--iodepth=4", f"--size={size_bytes}", "--end_fsync=1")


class Ankole:
    """`ankole standalone`, and its command line."""

    def __init__(self, binary, folder):
        self.command = [binary, "--data", folder]
        self.log = open(folder.parent / "standalone.log", "w")
        words = [binary, "standalone", "--data", folder, "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=self.log, text=True)
        if not self.process.stdout.readline().startswith("ankole standalone: "):
            self.stop()
            raise Failed(f"ankole standalone didn't start: {pathlib.Path(self.log.name).read_text()[-2000:]}")

    def create(self, volume, size_bytes, *options):
        words = ("volume", "create", volume, "--size", f"{size_bytes >> 20}MiB", "--frontend", "socket")
        output_of(*self.command, *words, *options)

    def attach(self, volume):
        output_of(*self.command, "volume", "attach", volume, "--wait")
        return self.show(volume)

    def show(self, volume):
        return json.loads(output_of(*self.command, "volume", "show", volume, "-o", "json"))

    def detach(self, volume):
        output_of(*self.command, "volume", "detach", volume, "--timeout", "900")

    def remove(self, volume):
        self.detach(volume)
        output_of(*self.command, "volume", "rm", volume, "--yes", "--timeout", "900")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the next start on the folder would end what is left
            raise Failed("ankole standalone didn't end within a minute") from None
        finally:
            self.log.close()


def write_back(images):
    """What one measurement left in the page cache isn't the next one's to write."""
    for image in images:
        descriptor = os.open(image, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.close(descriptor)


# ---- tables --------------------------------------------------------------------------------------

def figure(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values):
    """Median, and the least and the most."""
    if not values:
        raise Failed("the table isn't whole: something wasn't measured")
    return f"**{figure(statistics.median(values))}** ({figure(min(values))}–{figure(max(values))})"


def rows(header, lines):
    yield "| " + " | ".join(header) + " |"
    yield "| --- |" + " ---: |" * (len(header) - 1)
    for line in lines:
        yield "| " + " | ".join(line) + " |"


def aims_table(aims):
    yield "**Aims**"
    yield ""
    yield from rows(["aim", "", "measured"], ([text, "met" if met else "**missed**", measured] for met, text, measured in aims))


def made_by(took_s):
    return f"Made by `{' '.join(['ci/bench/run', *sys.argv[1:]])}` on {datetime.date.today()}, commit {commit()}, in {took_s:.0f} s."


def machine(options, *tools):
    cpu = re.search(r"^model name\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    memory = int(re.search(r"^MemTotal:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M)[1])
    kind = output_of("stat", "--file-system", "--format=%T", options.dir).strip()
    versions = [output_of(tool, "--version").splitlines()[0] for tool in tools]
    yield f"- {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} CPUs, {memory / MIB:.1f} GiB of memory, Linux {platform.release()}"
    yield f"- file system: {kind}; load before it began: {options.load:.2f}"
    yield f"- {'; '.join(versions)}"


def commit():
    try:
        return output_of("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=10").strip()
    except (Failed, FileNotFoundError):
        return "unknown"


def write(text, path, name):
    """Into the place of that name, if the file has one; else as the whole file."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    if path.exists() and begin in (old := path.read_text()):
        text = old[:old.index(begin)] + f"{begin}\n{text}{old[old.index(end):]}"
    path.write_text(text)
