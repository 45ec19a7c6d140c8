"""Where downloaded and built things stay between runs.

Owns one folder outside the checkout. An entry appears under its final name only when it is whole,
so that a run which was interrupted leaves nothing that a later one would trust.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


class Missing(Exception):
    """What the person at the keyboard has to do something about."""


def folder() -> Path:
    """`$ANKOLE_CACHE/vm`, by default `~/.cache/ankole/vm`."""
    root = os.environ.get("ANKOLE_CACHE") or os.path.expanduser("~/.cache/ankole")
    path = Path(root).absolute() / "vm"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key_of(*parts: object) -> str:
    """Names an entry after everything that went into it: another input is another entry."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def lock(name: str):
    """One process at a time, for whatever `name` stands for."""
    with open(folder() / f"{name.replace('/', '_')}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def entry(kind: str, key: str, build) -> Path:
    """The folder `kind/key`; `build(path)` fills it if it isn't there."""
    final = folder() / kind / key
    with lock(f"{kind}-{key}"):
        if not final.exists():
            final.parent.mkdir(exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=final.parent))
            try:
                build(scratch)
                scratch.rename(final)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return final


def call(*command: object, **options) -> str:
    """Runs a tool and returns what it prints; its complaints become the error."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        raise Missing(f"{words[0]} failed ({done.returncode}): {' '.join(words)}\n"
                      f"{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
