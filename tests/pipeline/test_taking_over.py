"""An edit that another replica leads, and whose turn to lead comes all the same, is made from its own upload."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from tests.fleet import fleet
from tests.pipeline.calls import Answer, edit, generate, picture
from tests.processes import wait_until

FORM = "multipart/form-data; boundary=x"
TENANTS = "version: 1\ntenants:\n  acme: {}\n"


def test_a_follower_of_another_replica_leads_with_its_own_upload(tmp_path: Path) -> None:
    with fleet(tmp_path, TENANTS, replicas=2, GATEWAY_UPSTREAM_CONCURRENCY="1") as running:
        token, upload = running.token("acme"), picture()
        first, second = (replica.url for replica in running.replicas)
        running.faults([{"kind": "slow", "count": 1, "options": {"after_seconds": 3}}])
        answers: list[Answer] = []
        busy = threading.Thread(target=lambda: generate(first, token, seed=1))
        busy.start()
        wait_until(lambda: running.stats()["in_progress"] == 1, 10)
        leader = _half(first, token, upload)
        wait_until(lambda: len(running.redis.keys("kg:{t:acme}:flight:*")) == 2, 10)
        follower = threading.Thread(target=lambda: answers.append(edit(second, token, {"image": upload}, seed=5)))
        follower.start()
        wait_until(lambda: running.replicas[1].total("kontext_gateway_redis_operation_duration_seconds_count",
                                                     operation="hmget") > 2, 10)  # fmt: skip
        leader.close()
        busy.join()
        follower.join()
        assert [answer.status for answer in answers] == [200]
        assert running.stats()["received"] == 2


def _half(url: str, token: str, upload: bytes) -> socket.socket:
    """An edit whose caller will leave before it is answered."""
    at = urlsplit(url)
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in (("prompt", "make the sky stormy"), ("seed", "5"))
    )
    head = '--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\nContent-Type: image/png\r\n\r\n'
    body = parts.encode() + head.encode() + upload + b"\r\n--x--\r\n"
    opened = socket.create_connection((at.hostname or "", at.port or 0))
    opened.sendall(
        f"POST /v1/edit HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {token}\r\nContent-Type: {FORM}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return opened
