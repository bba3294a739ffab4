"""Does by hand what an engine would do with the Dockerfile: builds its stages in a root of their own, and starts
processes in the result with a read-only root, a new PID namespace and no privileges.

The base image is what cannot be had here: this machine's /usr, /etc and Python stand in for it. Mounts need root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .dockerfile import ROOT, Stage, stages

PYTHON = Path(sys.base_prefix)
_MOUNTS = """
set -eu
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
for name in usr etc dev; do mount --rbind "/$name" "$root/$name"; done
mount -o remount,bind,ro "$root/usr"
mount -o remount,bind,ro "$root/etc"
[ "$PYTHON" = /usr ] || mount --bind -o ro "$PYTHON" "$root$PYTHON"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
for pair in $BINDS; do mount --bind "${pair%%=*}" "$root${pair#*=}"; done
"""
_READ_ONLY = 'mount -o remount,bind,ro "$root"\n'
_GO = 'exec chroot "$root" "$@"\n'


def _enter(root: Path, binds: Mapping[Path, str], *, read_only: bool) -> tuple[list[str], dict[str, str]]:
    """The command to put before one that is to run in `root`, and its environment."""
    assert os.geteuid() == 0, "mounting a root directory needs root: run this test as root"
    script = _MOUNTS + (_READ_ONLY if read_only else "") + _GO
    environment = {
        "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
        "PYTHON": str(PYTHON),
        "BINDS": " ".join(f"{source}={target}" for source, target in binds.items()),
    }
    unshare = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script, "root", str(root)]
    return unshare, environment


def _empty_root(root: Path) -> Path:
    for name in ("usr", "etc", "dev", "proc", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if (target := Path("/", name)).is_symlink():
            (root / name).symlink_to(os.readlink(target))
    if str(PYTHON) != "/usr":
        (root / PYTHON.relative_to("/")).mkdir(parents=True)
    return root


@dataclass(frozen=True)
class Built:
    """The final stage: its root directory and what it declares. `wheel` is what the build stage made."""

    root: Path
    stage: Stage
    wheel: Path

    def _as_image(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """A command with the image's environment, as its user, who can never gain a privilege."""
        user, group = self.stage.user.split(":")
        drop = [
            "setpriv",
            "--reuid",
            user,
            "--regid",
            group,
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set",
            "-all",
        ]
        pairs = [f"{name}={value}" for name, value in (self.stage.environment | {"HOME": "/"} | environment).items()]
        return [*drop, "env", "-i", *pairs, *command]

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], binds: Mapping[Path, str], log: Path
    ) -> subprocess.Popen[bytes]:
        for target in binds.values():
            (self.root / target.lstrip("/")).mkdir(parents=True, exist_ok=True)
        enter, outside = _enter(self.root, {self.root / "data": "/data", **binds}, read_only=True)
        with log.open("ab") as out:
            words = self._as_image([*self.stage.command("ENTRYPOINT"), *command], environment)
            return subprocess.Popen([*enter, *words], env=outside, stdout=out, stderr=out)

    def run(self, command: Sequence[str], environment: Mapping[str, str], binds: Mapping[Path, str], log: Path) -> int:
        """The exit code of a container that ends by itself; `command` replaces the image's CMD."""
        with self.container(command, environment, binds, log) as running:
            return running.outer.wait(60)

    @contextmanager
    def container(
        self, command: Sequence[str], environment: Mapping[str, str], binds: Mapping[Path, str], log: Path
    ) -> Iterator[Container]:
        """A container that goes on."""
        running = Container(self, self._start(command, environment, binds, log), environment, log)
        try:
            yield running
        finally:
            if running.outer.poll() is None:
                os.kill(running.pid, signal.SIGKILL)  # not `outer`: who changes its user outlives its parent
            running.outer.wait()


@dataclass(frozen=True)
class Container:
    """One running container. `outer` ends with the exit code of its first process."""

    built: Built
    outer: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    log: Path

    @property
    def pid(self) -> int:
        """Its first process, as this machine numbers it."""
        children = Path(f"/proc/{self.outer.pid}/task/{self.outer.pid}/children")
        until = time.monotonic() + 10
        while not (found := children.read_text().split()):
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.01)
        return int(found[0])

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another process in it."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root", "--wd"]
        words = [*enter, "--", *self.built._as_image(command, self.environment)]
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def build(folder: Path) -> Built:
    """Do what the Dockerfile's instructions say, in order, with its RUN lines as they stand.

    Not done: the removal of the base image's pip, because the Python that stands in for it is this machine's. pip may
    use this machine's cache and settings.
    """
    first, final = stages()
    made = _empty_root(folder / "build")
    _follow(first, made, {})
    root = _empty_root(folder / "image")
    _follow(final, root, {"build": made})
    (wheel,) = (made / "dist").glob("*.whl")
    return Built(root, final, wheel)


def _follow(stage: Stage, root: Path, built: Mapping[str, Path]) -> None:
    where = "/"
    for word, rest in stage.instructions:
        if word == "WORKDIR":
            where = rest
            (root / where.lstrip("/")).mkdir(parents=True)
        elif word == "COPY":
            _copy(rest.split(), root / where.lstrip("/"), root, built)
        elif word == "RUN" and "pip uninstall" not in rest:
            _run(rest, root, where, stage.environment)


def _copy(words: list[str], into: Path, root: Path, built: Mapping[str, Path]) -> None:
    if words[0].startswith("--from="):
        stage, source, target = words[0].removeprefix("--from="), words[1].lstrip("/"), words[2].lstrip("/")
        (built[stage] / source).rename(root / target)
        return
    *sources, target = words
    for name in sources:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, into / target)


def _run(line: str, root: Path, where: str, environment: Mapping[str, str]) -> None:
    binds = {}
    inside = {"PATH": f"{PYTHON}/bin:/usr/bin:/bin", "HOME": "/root", **environment}
    inside.pop("PIP_NO_CACHE_DIR", None)
    cache = Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache" / "pip")
    cache.mkdir(parents=True, exist_ok=True)
    for source, target in ((cache, "/pip-cache"), (Path("/opt"), "/opt")):
        if source.is_dir():
            (root / target.lstrip("/")).mkdir(exist_ok=True)
            binds[source] = target
    inside |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    inside["PIP_CACHE_DIR"] = "/pip-cache"
    enter, outside = _enter(root, binds, read_only=False)
    pairs = [f"{name}={value}" for name, value in inside.items()]
    done = subprocess.run(
        [*enter, "env", "-i", *pairs, "sh", "-c", f"cd {where} && {line}"],
        env=outside, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (line, done.stdout[-2000:], done.stderr[-2000:])
