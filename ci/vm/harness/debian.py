"""Debian packages of any suite, fetched without root and without touching the host's apt.

Owns a private apt configuration for each suite. The archive is the one that the host's own apt
uses, with the host's proxy settings; packages are checked against Debian's keyring as usual.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from . import cache

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Pulled in by dependencies, of no use where no maintainer script and no init system runs.
UNWANTED = set("""adduser debconf dpkg init-system-helpers initramfs-tools libpam-modules-bin
    lsb-base media-types passwd perl perl-base perl-modules python3 python3-minimal systemd
    sysvinit-utils ucf""".split())

CONFIGURATION = """
Dir::State "{0}/state"; Dir::State::status "{0}/status"; Dir::Cache "{0}/cache"; Dir::Log "{0}/log";
Dir::Etc "{0}/etc"; Dir::Etc::Main "none"; Dir::Etc::Parts "{0}/etc/parts";
Dir::Etc::SourceList "{0}/sources.list"; Dir::Etc::SourceParts "{0}/etc/parts";
Dir::Etc::PreferencesParts "{0}/etc/parts";
APT::Architecture "amd64"; APT::Architectures {{ "amd64"; }}; APT::Install-Recommends "false";
APT::Sandbox::User ""; Debug::NoLocking "true"; Acquire::Languages "none"; Acquire::Retries "3";
"""


def archives() -> tuple[str, str]:
    """Debian's archive and its security archive, as the host's apt has them."""
    uris = cache.call("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages")
    hosts = [uri.rstrip("/") for uri in uris.split()]
    main = os.environ.get("ANKOLE_DEBIAN_ARCHIVE") or next(
        (uri for uri in hosts if uri.endswith("/debian")), None)
    if not main:
        raise cache.Missing("this machine's apt has no Debian archive: set ANKOLE_DEBIAN_ARCHIVE to the URL "
                            "of one (ending in /debian)")
    security = next((uri for uri in hosts if uri.endswith("/debian-security")), main + "-security")
    return main, security


class Suite:
    """The packages of one release, e.g. `trixie` or `trixie-backports`."""

    def __init__(self, name: str, refresh: bool = False):
        self.name = name
        self.folder = cache.folder() / "apt" / name
        self.environment = dict(os.environ, APT_CONFIG=str(self.folder / "apt.conf"), LC_ALL="C.UTF-8")
        self.downloads = cache.folder() / "packages"
        self.downloads.mkdir(exist_ok=True)
        with cache.lock(f"apt-{name}"):
            updated = self.folder / "updated"
            if refresh or not updated.exists():
                self._update()
                updated.touch()

    def _update(self) -> None:
        if not KEYRING.exists():
            raise cache.Missing(f"{KEYRING} is missing (package debian-archive-keyring)")
        for part in ("state/lists/partial", "cache/archives/partial", "etc/parts", "log"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        main, security = archives()
        source = f"deb [arch=amd64 signed-by={KEYRING}]"
        lines = [f"{source} {main} {self.name} main"]
        if not self.name.endswith("-backports"):
            lines += [f"{source} {main} {self.name}-updates main",
                      f"{source} {security} {self.name}-security main"]
        (self.folder / "sources.list").write_text("\n".join(lines) + "\n")
        settings = cache.call("apt-config", "dump", "Acquire").splitlines()
        proxies = [line for line in settings if re.match(r"Acquire::(http|https|socks)", line, re.I)]
        (self.folder / "apt.conf").write_text(
            CONFIGURATION.format(self.folder) + "\n".join(proxies) + "\n")
        print(f"vm: reading the package lists of {self.name}", flush=True)
        self._apt("apt-get", "update", "-q")

    def _apt(self, *command: str, **options) -> str:
        return cache.call(*command, env=self.environment, **options)

    def depends(self, package: str) -> str:
        """The field `Depends` of a package."""
        shown = self._apt("apt-cache", "show", "--no-all-versions", package)
        found = re.search(r"^Depends: (.*)$", shown, re.M)
        return found.group(1) if found else ""

    def closure(self, packages: list[str]) -> list[str]:
        """Names of the packages and of what they need, without what is unwanted here."""
        plan = self._apt("apt-get", "-q", "-y", "--print-uris", "--no-install-recommends", "install", *packages)
        names = re.findall(r"^'\S+' (\S+?)_\S+\.deb ", plan, re.M)
        return sorted(name for name in names if name in packages or name not in UNWANTED)

    def unpack(self, packages: list[str], root: Path) -> None:
        """Unpacks the packages (not what they need) into `root`; maintainer scripts don't run."""
        for package in self._download(packages):
            archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
            cache.call("tar", "-x", "-C", root, "--keep-directory-symlink", "--no-same-owner",
                       "--warning=no-timestamp", stdin=archive.stdout)
            archive.stdout.close()
            if archive.wait():
                raise cache.Missing(f"{package} can't be unpacked; delete it and try again")

    def _download(self, packages: list[str]) -> list[Path]:
        with cache.lock(f"apt-{self.name}"), tempfile.TemporaryDirectory(dir=self.downloads) as scratch:
            listed = self._apt("apt-get", "-q", "--print-uris", "download", *packages, cwd=scratch)
            files = re.findall(r"^'\S+' (\S+\.deb) \d+", listed, re.M)
            absent = [file.split("_")[0] for file in files if not (self.downloads / file).exists()]
            if absent:
                print(f"vm: fetching {len(absent)} packages of {self.name}", flush=True)
                self._apt("apt-get", "-q", "download", *absent, cwd=scratch)
                for file in Path(scratch).iterdir():
                    file.rename(self.downloads / file.name)
        return [self.downloads / file for file in files]
