"""What a machine boots from: a kernel with its modules, and a root file system.

Owns the images in the cache. They are made with `mkfs.ext4 -d`, so no loop device, no mount and
no root is needed; a machine never writes to them.
"""

import io
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .debian import Suite

GUEST = Path(__file__).parent.parent / "guest"
# Kernel to suite. The versions are what the suites have had since trixie became stable;
# `newest` moves on.
KERNELS = {"6.1": "bookworm", "6.12": "trixie", "newest": "trixie-backports"}
KERNEL_PACKAGE = "linux-image-cloud-amd64"
# The guest's user space must not be older than the host's: its C library runs the host's programs.
ROOT_SUITE = "trixie"
ROOT_PACKAGES = """bash busybox-static coreutils e2fsprogs findutils grep kmod libc-bin mount procps
    sed util-linux""".split()
ROOT_MIB = 4096
# What it takes to find the root disk and the harness's ports.
EARLY_MODULES = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"]


@dataclass
class Kernel:
    """A bootable kernel: `vmlinuz`, `initramfs`, `modules.img`, and `version` as `uname -r` says."""

    folder: Path

    @property
    def version(self) -> str:
        return (self.folder / "version").read_text()


@dataclass
class Root:
    """A root file system, and the names of the libraries that are in it."""

    image: Path
    libraries: set[str]


def kernel(name: str, refresh: bool) -> Kernel:
    if name not in KERNELS:
        raise cache.Missing(f"no kernel {name!r}: there are {', '.join(KERNELS)}")
    suite = Suite(KERNELS[name], refresh)
    real = next(iter(re.findall(r"linux-image-\d[^\s,()|]+", suite.depends(KERNEL_PACKAGE))), None)
    if not real:
        raise cache.Missing(f"{suite.name} has no {KERNEL_PACKAGE}")
    # Newer suites keep the modules, or the kernel itself, in packages of their own.
    parts = re.findall(r"linux-(?:binary|modules)-\d[^\s,()|]+", suite.depends(real))
    busybox = Suite(ROOT_SUITE)
    key = cache.key_of(real, parts, EARLY_MODULES, (GUEST / "initramfs").read_text())
    return Kernel(cache.entry("kernels", key, lambda to: _build_kernel(suite, [real, *parts], busybox, to)))


def _build_kernel(suite: Suite, packages: list[str], busybox: Suite, to: Path) -> None:
    print(f"vm: preparing the kernel {packages[0]}", flush=True)
    with tempfile.TemporaryDirectory(dir=cache.folder()) as scratch:
        tree = _tree(Path(scratch))
        suite.unpack(packages, tree)
        busybox.unpack(["busybox-static"], tree)
        shutil.copy(next(tree.rglob("vmlinuz*")), to / "vmlinuz")
        (modules,) = (tree / "usr/lib/modules").iterdir()
        for packed in modules.rglob("*.ko.xz"):
            packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
            packed.unlink()
        cache.call("depmod", "-b", tree, modules.name, env=_with_sbin())
        (to / "version").write_text(modules.name)
        (to / "initramfs").write_bytes(_initramfs(tree / "usr/bin/busybox", modules))
        size = sum(file.lstat().st_size + 4096 for file in modules.rglob("*"))
        _make_filesystem(to / "modules.img", modules, size // (1 << 20) * 115 // 100 + 24)


def root(packages: list[str], refresh: bool) -> Root:
    """A root file system with `packages` and what they need."""
    suite = Suite(ROOT_SUITE, refresh)
    names = suite.closure(sorted({*ROOT_PACKAGES, *packages}))
    key = cache.key_of(suite.name, names, ROOT_MIB)
    folder = cache.entry("roots", key, lambda to: _build_root(suite, names, to))
    return Root(folder / "root.img", set((folder / "libraries").read_text().split()))


def _build_root(suite: Suite, packages: list[str], to: Path) -> None:
    print(f"vm: preparing a root file system of {len(packages)} packages", flush=True)
    with tempfile.TemporaryDirectory(dir=cache.folder()) as scratch:
        tree = _tree(Path(scratch))
        suite.unpack(packages, tree)
        for name in ("doc", "man", "locale", "info"):
            shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
        for name in "proc sys dev run tmp mnt root etc var/lib var/log opt usr/local/bin .vm".split():
            (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / "tmp").chmod(0o1777)
        (tree / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n")
        (tree / "etc/group").write_text("root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost guest\n")
        (tree / "etc/fstab").touch()
        _link(tree / "etc/mtab", "/proc/self/mounts")
        # busybox stands in for every command that no package brings.
        for applet in cache.call(tree / "usr/bin/busybox", "--list").split():
            if not (tree / "usr/sbin" / applet).exists():
                _link(tree / "usr/bin" / applet, "busybox")
        names = {file.name for place in ("usr/lib", "usr/lib64") for file in (tree / place).rglob("*.so*")}
        (to / "libraries").write_text("\n".join(sorted(names)))
        _make_filesystem(to / "root.img", tree, ROOT_MIB)


def _tree(root: Path) -> Path:
    """The links of a merged /usr, which packages expect and don't bring."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        _link(root / name, f"usr/{name}")
    return root


def _link(path: Path, target: str) -> None:
    if not os.path.lexists(path):
        path.symlink_to(target)


def search_path() -> str:
    """An ordinary user's PATH lacks where mkfs and depmod are."""
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _with_sbin() -> dict[str, str]:
    return dict(os.environ, PATH=search_path())


def _make_filesystem(image: Path, tree: Path, size_mib: int) -> None:
    with open(image, "wb") as file:
        file.truncate(size_mib << 20)
    cache.call("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal",
               "-E", "root_owner=0:0,lazy_itable_init=1", "-d", tree, image, env=_with_sbin())


def _initramfs(busybox: Path, modules: Path) -> bytes:
    """An archive in the kernel's format: busybox, the early modules, and the first program."""
    files = _in_order(modules, EARLY_MODULES)
    folder, program, text = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    entries = [(name, folder, b"") for name in ("bin", "dev", "modules", "root")]
    entries += [("bin/busybox", program, busybox.read_bytes()),
                ("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
                ("init", program, (GUEST / "initramfs").read_bytes()),
                ("order", text, "\n".join(file.name for file in files).encode())]
    entries += [(f"modules/{file.name}", text, file.read_bytes()) for file in files]
    return _cpio(entries)


def _in_order(modules: Path, names: list[str]) -> list[Path]:
    """Files of the modules and of what they need, in the order in which they can be inserted."""
    needs = dict(line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
    path_of = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []
    for name in filter(path_of.get, names):  # what is built in has no file
        path = path_of[name]
        order += [step for step in [*reversed(needs[path].split()), path] if step not in order]
    return [modules / path for path in order]


def _cpio(entries: list[tuple[str, int, bytes]]) -> bytes:
    """The "newc" form of cpio: a header of 13 numbers in hexadecimal, the name, the data."""
    archive = io.BytesIO()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        label = name.encode() + b"\0"
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
        for part in (b"070701" + b"".join(b"%08X" % number for number in numbers) + label, data):
            archive.write(part)
            archive.write(b"\0" * (-archive.tell() % 4))
    return archive.getvalue()


def libraries_of(program: Path) -> dict[str, Path]:
    """Shared libraries that a program is linked with, by name."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return {name: Path(path) for name, path in re.findall(r"^\s*(\S+) => (/\S+)", listed, re.M)}
