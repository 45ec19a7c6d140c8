"""A volume of several replicas, and what is done to it: replicas lost, stopped and rebuilt, engines killed."""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import time
import urllib.parse

from .common import Failed
from .nbd import Client

POLL_S = 0.01
# Far above what anything here takes; a rebuild's limit is what the caller says.
PATIENCE_S = 120

# `seconds` from its first sign to the replica's being in sync, `moved_bytes` as the engine counts.
Rebuild = collections.namedtuple("Rebuild", "seconds moved_bytes")


def wait_until(condition, what, patience_s=PATIENCE_S):
    """What `condition` gives, once it gives something."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {patience_s} s")
        time.sleep(POLL_S)
    return value


class Volume:
    """One that is attached. The engine is asked itself: what the manager shows is older."""

    def __init__(self, ankole, name):
        self.ankole, self.name = ankole, name
        self.endpoint = ankole.show(name)["endpoint"]
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.endpoint).query)
        self.admin = str(pathlib.Path(query["socket"][0]).with_suffix(".admin"))

    def status(self):
        """What the engine says, or None while there is none."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            try:
                connection.connect(self.admin)
                connection.sendall(b'{"request":"status"}\n')
                answer = connection.makefile("rb").readline()
            except OSError:
                return None
        return json.loads(answer) if answer.endswith(b"\n") else None

    def replica(self, replica):
        """What the engine says of it, or nothing."""
        status = self.status() or {"replicas": []}
        return next((it for it in status["replicas"] if it["replica"] == replica), {})

    def pid_of(self, replica):
        return self._shown(replica)["pid"]

    def directory_of(self, replica):
        return pathlib.Path(self._shown(replica)["directory"])

    def _shown(self, replica):
        return next(it for it in self.ankole.show(self.name)["replicas"] if it["replica"] == replica)

    def wait_healthy(self, patience_s=PATIENCE_S):
        def healthy():
            status = self.status()
            return status and all(it["mode"] == "RW" for it in status["replicas"])
        wait_until(healthy, f"volume {self.name} is healthy", patience_s)

    # ---- replicas --------------------------------------------------------------------------------

    def kill_replica(self, replica):
        """The manager starts it again."""
        os.kill(self.pid_of(replica), signal.SIGKILL)

    def lose_disk_of(self, replica):
        """A new, empty replica comes in its place."""
        directory = self.directory_of(replica)
        gone = directory.with_name(f"{directory.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)  # of the last time: not while the rebuild is measured
        pid = self.pid_of(replica)
        directory.rename(gone)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.replica(replica).get("mode") != "RW", f"{replica} is missed")

    @contextlib.contextmanager
    def without(self, replica):
        """Stopped, and out of the in-sync set, for a while."""
        pid = self.pid_of(replica)
        os.kill(pid, signal.SIGSTOP)
        try:
            with Client(self.endpoint) as client:
                block = client.read(0)
                client.write(0, block)  # until a write waits for it, nobody misses it
            wait_until(lambda: self.replica(replica).get("mode") != "RW", f"{replica} is missed")
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def wait_rebuilding(self, replica):
        wait_until(lambda: self.replica(replica).get("rebuild"), f"the rebuild of {replica} begins")

    def is_rebuilding(self, replica):
        return bool(self.replica(replica).get("rebuild"))

    def watch_rebuild(self, replica, patience_s):
        """Until `replica` is in sync. What was too short to be seen took as long as nobody looked."""
        looked = entered = time.monotonic()
        began, seen, deadline = None, {}, entered + patience_s
        while True:
            now, found = time.monotonic(), self.replica(replica)
            if found.get("mode") == "WO" or found.get("rebuild"):
                began = began or looked
                seen = found.get("rebuild") or seen
            elif found.get("mode") == "RW":
                seen = found.get("lastRebuild") or seen
                moved_bytes = seen.get("movedBytes") or seen.get("doneBytes") or 0
                return Rebuild(now - (began or entered), moved_bytes)
            if now > deadline:
                raise Failed(f"the rebuild of {replica} took longer than {patience_s} s: {found}")
            looked = now
            time.sleep(POLL_S)

    # ---- the engine ------------------------------------------------------------------------------

    def kill_engine(self):
        os.kill(self.ankole.show(self.name)["enginePid"], signal.SIGKILL)
        return time.monotonic()

    def kill_all(self, replicas):
        """The engine and its replicas, at once."""
        pids = [self.ankole.show(self.name)["enginePid"], *(self.pid_of(replica) for replica in replicas)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def wait_first_io(self, patience_s=PATIENCE_S):
        def answered():
            with contextlib.suppress(OSError), Client(self.endpoint) as client:
                client.write(0, client.read(0))
                return True
        wait_until(answered, f"volume {self.name} answers", patience_s)
