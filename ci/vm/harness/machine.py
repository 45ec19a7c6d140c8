"""One run of one machine.

Owns the QEMU process and the folder of what lasts only as long as the run. Promises that both are
gone afterwards, however the run ends. The guest's ports are plain files here, which the host
follows as they grow: nothing has to be accepted, and nothing is lost when QEMU dies.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from . import cache, images

TIMED_OUT, BROKEN = 124, 125
BOOT_LIMIT_SECONDS = 180
# QEMU's emulated processors sometimes see the breakpoint that Linux puts into code which it changes while
# it boots ("Oops: int3"), about one boot in some dozens. That says nothing about what is to be proved.
BOOTS = 3
POLL_SECONDS = 0.05
PORTS = ("control", "output", "errors", "kernel-log")
KERNEL_PARAMETERS = """console=ttyS0 panic=-1 oops=panic loglevel=5 mitigations=off random.trust_cpu=on
    no_timer_check tsc=reliable nokaslr audit=0"""


@dataclass
class Job:
    """What to run, and in what surroundings."""

    command: str
    files: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    disks: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    limit_seconds: int = 120
    memory_mib: int = 1024
    cpus: int = 2


def run(job: Job, kernel: images.Kernel, root: images.Root) -> int:
    """Boots, runs the command, and returns its exit status, `TIMED_OUT` or `BROKEN`."""
    for boots_left in reversed(range(BOOTS)):
        with tempfile.TemporaryDirectory(prefix="ankole-vm-") as folder:
            machine = _Run(job, kernel, root, Path(folder))
            status = machine.to_the_end()
        if status != BROKEN or machine.ready_at is not None or not boots_left:
            return status
        print("vm: it didn't boot; once more", file=sys.stderr)


class _Run:
    def __init__(self, job: Job, kernel: images.Kernel, root: images.Root, folder: Path):
        self.job, self.kernel, self.root, self.folder = job, kernel, root, folder
        self.ready_at = self.status = None
        self.partial_line = b""
        for name in PORTS:
            (folder / name).touch()
        self.read = {name: open(folder / name, "rb") for name in PORTS}

    def to_the_end(self) -> int:
        serials = self._make_disks()
        self._make_payload(serials)
        complaints = open(self.folder / "qemu", "w+")
        started_at = time.monotonic()
        qemu = subprocess.Popen(self._qemu(serials), stdin=subprocess.DEVNULL, stdout=complaints,
                                stderr=complaints, preexec_fn=_die_with_parent)
        try:
            result = self._follow(qemu, started_at)
        finally:
            qemu.kill()
            qemu.wait()
        if result:
            self._explain(result, complaints)
        return result

    def _follow(self, qemu: subprocess.Popen, started_at: float) -> int:
        while True:
            ended = qemu.poll() is not None  # asked first: what it wrote last is read below
            self._pass_on()
            if ended:
                return BROKEN if self.status is None else self.status
            now = time.monotonic()
            if self.ready_at is None and now > started_at + BOOT_LIMIT_SECONDS:
                print(f"vm: not up after {BOOT_LIMIT_SECONDS} s", file=sys.stderr)
                return BROKEN
            if self.ready_at and self.status is None and now > self.ready_at + self.job.limit_seconds:
                print(f"vm: the time limit of {self.job.limit_seconds} s was reached", file=sys.stderr)
                return TIMED_OUT
            time.sleep(POLL_SECONDS)

    def _pass_on(self) -> None:
        for name, stream in (("output", sys.stdout), ("errors", sys.stderr)):
            stream.buffer.write(self.read[name].read())
            stream.flush()
        *lines, self.partial_line = (self.partial_line + self.read["control"].read()).split(b"\n")
        for line in lines:
            word, _, rest = line.decode(errors="replace").partition(" ")
            if word == "ready":
                self.ready_at = time.monotonic()
            elif word == "status":
                self.status = int(rest)
            else:
                print("vm:", rest, file=sys.stderr)

    def _explain(self, result: int, complaints) -> None:
        complaints.seek(0)
        text = complaints.read()
        if self.status is not None:
            log = self.read["kernel-log"].read().decode(errors="replace")
            text += log.partition("the command starts\n")[2]
        elif (self.folder / "console").exists():
            text += (self.folder / "console").read_text(errors="replace")
        print(f"vm: exit status {result}; Linux {self.kernel.version}", file=sys.stderr)
        print("\n".join(text.replace("\r", "").splitlines()[-100:]), file=sys.stderr)

    def _make_disks(self) -> list[str]:
        for number, size in enumerate(self.job.disks):
            cache.call("truncate", "-s", size, self.folder / f"disk{number}")
        return [f"disk{number}" for number in range(len(self.job.disks))]

    def _make_payload(self, serials: list[str]) -> None:
        """The archive that the guest unpacks over its root: the host's files and the job."""
        environment = {**self.job.environment, "DISK_SERIALS": " ".join(serials),
                       "TIME_LIMIT": str(self.job.limit_seconds)}
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
        with tarfile.open(self.folder / "payload", "w", format=tarfile.GNU_FORMAT) as archive:
            for file in self.job.files:
                self._add_file(archive, file)
            _add_text(archive, ".vm/init", (images.GUEST / "init").read_text(), 0o755)
            _add_text(archive, ".vm/command", self.job.command)
            _add_text(archive, ".vm/modules", "\n".join(self.job.modules) + "\n")
            _add_text(archive, ".vm/environment", exports)
        size = (self.folder / "payload").stat().st_size
        os.truncate(self.folder / "payload", (size + 4095) // 4096 * 4096)  # a disk has whole sectors

    def _add_file(self, archive: tarfile.TarFile, file: str) -> None:
        source = Path(file).resolve()
        if not source.is_file():
            raise cache.Missing(f"{file}: no such file")
        if not os.access(source, os.X_OK):
            archive.add(source, f"root/{source.name}", filter=_owned_by_root)
            return
        archive.add(source, f"usr/local/bin/{source.name}", filter=_owned_by_root)
        for name, library in images.libraries_of(source).items():
            if name not in self.root.libraries:
                archive.add(library.resolve(), f"usr/lib/x86_64-linux-gnu/{name}", filter=_owned_by_root)

    def _qemu(self, serials: list[str]) -> list[str]:
        # Emulation is the default: /dev/kvm within a virtual machine is there and yet may not work.
        accelerator = os.environ.get("ANKOLE_VM_ACCELERATOR", "tcg")
        if accelerator == "tcg":
            accelerator += ",thread=multi,tb-size=256"
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
                 "-machine", "q35,hpet=off,smbus=off,sata=off", "-accel", accelerator, "-cpu", "max",
                 "-m", str(self.job.memory_mib), "-smp", str(self.job.cpus),
                 "-kernel", str(self.kernel.folder / "vmlinuz"), "-initrd", str(self.kernel.folder / "initramfs"),
                 "-append", " ".join(KERNEL_PARAMETERS.split()),
                 "-serial", f"file:{self.folder / 'console'}",
                 "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        words += _disk("root", self.root.image, "snapshot=on,cache=unsafe")
        words += _disk("modules", self.kernel.folder / "modules.img", "readonly=on")
        words += _disk("payload", self.folder / "payload", "readonly=on")
        for serial in serials:
            words += _disk(serial, self.folder / serial, "cache=unsafe,discard=unmap")
        for name in PORTS:
            words += ["-chardev", f"file,id={name},path={self.folder / name}",
                      "-device", f"virtserialport,chardev={name},name={name}"]
        return words


def _disk(serial: str, file: Path, options: str) -> list[str]:
    return ["-drive", f"if=none,id={serial},format=raw,file={file},{options}",
            "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _add_text(archive: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    archive.addfile(entry, BytesIO(text.encode()))


def _die_with_parent() -> None:
    """QEMU must not outlive a harness that was killed."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
