"""U-12: an upstream whose certificate is not good is never sent a job, and no switch would allow it."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.checker import books
from tests.faults.clients import History
from tests.faults.nemesis import skewed
from tests.faults.row import Run, row
from tests.faults.rows.hostile import completed
from tests.faults.storm import PATIENT, tenants, token
from tests.fleet import fleet
from tests.prodia.answers import MULTIPART
from tests.prodia.upstream import http

YEAR = 365 * 86_400


def _openssl(folder: Path, *words: str, when: float = 0) -> None:
    done = subprocess.run(
        ["openssl", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", **skewed(when)} if when else None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _certificates(folder: Path) -> dict[str, Path]:
    """An authority, and certificates: good, for another host, expired, from nobody. Each file has its key."""
    key = ("-newkey", "rsa:2048", "-nodes", "-days", "30")
    authority = ("-days", "3650", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    _openssl(folder, "req", "-x509", *key[:3], *authority, when=-2 * YEAR)
    made = {}
    for name, host, when in (("good", "127.0.0.1", 0), ("wrong host", "127.0.0.2", 0), ("expired", "127.0.0.1", -YEAR)):
        stem = name.replace(" ", "-")
        _openssl(folder, "req", *key[:3], "-keyout", f"{stem}.key", "-out", f"{stem}.csr", "-subj", "/CN=upstream")
        (folder / f"{stem}.ext").write_text(f"subjectAltName=IP:{host}\n")
        _openssl(
            folder, "x509", "-req", "-in", f"{stem}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "30",
            "-extfile", f"{stem}.ext", "-out", f"{stem}.crt", when=when,
        )  # fmt: skip
        made[name] = folder / f"{stem}.pem"
        made[name].write_text((folder / f"{stem}.crt").read_text() + (folder / f"{stem}.key").read_text())
    _openssl(
        folder, "req", "-x509", *key, "-keyout", "self.key", "-out", "self.crt", "-subj", "/CN=127.0.0.1",
        "-addext", "subjectAltName=IP:127.0.0.1",
    )  # fmt: skip
    made["self-signed"] = folder / "self.pem"
    made["self-signed"].write_text((folder / "self.crt").read_text() + (folder / "self.key").read_text())
    return made


class _Served:
    """How many requests came through."""

    jobs = 0


@contextmanager
def _upstream(certificate: Path) -> Iterator[tuple[str, _Served]]:
    """An upstream over TLS that completes every job; its address."""
    context, served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), _Served()
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
                    wrapped.settimeout(5)
                    if wrapped.recv(65_536):
                        served.jobs += 1
                        wrapped.sendall(http(200, completed(), MULTIPART, "Connection: close"))

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/v2", served
    finally:
        listener.close()


@row(
    "U-12",
    "0 jobs sent to an upstream whose certificate is expired, self-signed or another's; refused and not charged",
    ci={},
    nightly={},
)
def bad_certificates(run: Run) -> None:
    (folder := run.folder / "certificates").mkdir()
    made, told = _certificates(folder), {}
    with fleet(run.folder, tenants(None), replicas=0, **PATIENT, SSL_CERT_FILE=str(folder / "ca.pem")) as running:
        key = token(running)
        for number, (name, certificate) in enumerate(made.items()):
            with _upstream(certificate) as (url, served):
                replica, asked = running.start(PRODIA_BASE_URL=url, GATEWAY_UPSTREAM_DEADLINE="4s"), History()
                asked.send([replica.url], key, [number])
                told[name] = (next(iter(asked.statuses())), served.jobs)
                replica.stop()
        run.reached = ", ".join(f"{name}: {status}, {jobs} sent" for name, (status, jobs) in told.items())
        assert told.pop("good") == ("200 ok", 1)
        assert {jobs for _, jobs in told.values()} == {0}
        assert not any(status.startswith("200") for status, _ in told.values())
        found = books(running)
        assert (found.sum("SETTLED"), found.ambiguous, found.outstanding) == (40_000, set(), set())
