"""What the sandbox remembers of what it received, and who may ask."""

import hashlib

import httpx2
import pytest
from PIL import Image

from app.sandbox import SandboxConfig, create_sandbox

from .running import AUTHORISED, DEV, EDIT, GENERATE, MAX_GENERATE, Box, picture, running


def with_metadata(form: str, *, gps: bool) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    if gps:
        exif.get_ifd(0x8825)[1] = "N"
    return picture((300, 300), form, exif=exif.tobytes())


def test_a_row_is_exactly_what_was_received(box: Box) -> None:
    upload = picture((300, 256), "PNG")
    answer = box.job(EDIT, "multipart/form-data; image/png", True, upload, safety_tolerance=0, seed=7)
    (row,) = box.jobs()
    assert answer.status_code == row.pop("status") == 200
    assert row.pop("id") in answer.text
    assert row.pop("n") > 0
    assert row.pop("at") > 1_600_000_000
    prompt = {"sha256": hashlib.sha256(b"a red fox").hexdigest(), "length": 9}
    assert row == {
        "type": EDIT,
        "config": {"prompt": prompt, "seed": 7, "safety_tolerance": 0},
        "config_keys": ["prompt", "seed", "safety_tolerance"],
        "inputs": [
            {
                "name": "input",
                "filename": "image.jpg",
                "content_type": "image/jpeg",
                "sha256": hashlib.sha256(upload).hexdigest(),
                "size": len(upload),
                "format": "png",
                "width": 300,
                "height": 256,
                "metadata": [],
            }
        ],
        "accept": "multipart/form-data; image/png",
        "price_requested": True,
        "authorised": True,
        "unreadable": None,
        "outcome": "completed",
        "fault": None,
        "micro_usd": 40_000,
    }


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_metadata_of_inputs_is_noticed(box: Box, form: str) -> None:
    for gps, found in ((False, ["exif"]), (True, ["exif", "gps"])):
        box.job(EDIT, picture=with_metadata(form, gps=gps))
        assert box.jobs()[-1]["inputs"][0]["metadata"] == found


def test_comments_and_broken_exif_are_noticed(box: Box) -> None:
    box.job(EDIT, picture=picture((300, 300), "JPEG", comment=b"at home"))
    box.job(EDIT, picture=picture((300, 300), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x00"))
    assert [row["inputs"][0]["metadata"] for row in box.jobs()] == [["comment"], ["exif"]]
    assert box.stats()["completed"] == 2


def test_refused_jobs_are_logged_too(box: Box) -> None:
    box.faults({"kind": "busy", "count": 1})
    box.client.post("/v2/job", json={"type": GENERATE, "config": {"prompt": "a red fox"}})
    box.client.post("/v2/job", headers=AUTHORISED, json={"type": "odd"})
    box.client.post("/v2/job", headers=AUTHORISED, content=b"?")
    box.job(prompt="x")
    box.job()
    assert [(row["outcome"], row["authorised"]) for row in box.jobs()] == [
        ("unauthorised", False),
        ("unknown_type", True),
        ("invalid", True),
        ("invalid", True),
        ("busy", True),
    ]
    assert box.stats()["by_fault"] == {"busy": 1}
    assert box.stats()["unauthorised"] == 1


def test_long_values_are_kept_as_digests(box: Box) -> None:
    box.job(odd="x" * 10_000, other=[1] * 1_000)
    config = box.jobs()[0]["config"]
    assert config["odd"] == {"sha256": hashlib.sha256(b"x" * 10_000).hexdigest(), "length": 10_000}
    assert set(config["other"]) == {"sha256", "length"}


def test_the_counters_tell_a_safety_tolerance_that_was_absent_or_too_high(box: Box) -> None:
    box.job(safety_tolerance=2)
    box.job(safety_tolerance=6)
    box.job()
    box.job(EDIT, picture=picture(), safety_tolerance=5)
    box.job(DEV, picture=picture())
    box.job(MAX_GENERATE)
    stats = box.stats()
    assert stats["safety_tolerance_absent"] == 2
    by_type = stats["by_type"]
    assert (by_type[GENERATE]["safety_absent"], by_type[GENERATE]["safety_max"]) == (1, 6)
    assert (by_type[EDIT]["safety_absent"], by_type[EDIT]["safety_max"]) == (0, 5)
    assert (by_type[DEV]["safety_absent"], by_type[DEV]["safety_max"]) == (0, None)
    assert (stats["received"], stats["completed"], stats["billed"], stats["in_progress"]) == (6, 5, 5, 0)
    assert stats["by_outcome"] == {"completed": 5, "invalid": 1}
    assert stats["billed_micro_usd"] == sum(each["billed_micro_usd"] for each in by_type.values()) == 225_000


def test_the_log_keeps_the_last_and_counts_all() -> None:
    with running(SandboxConfig(time_scale=0, picture="small", log_limit=3)) as box:
        for seed in range(5):
            box.job(seed=seed)
        assert [row["config"]["seed"] for row in box.jobs()] == [2, 3, 4]
        assert len(box.bill()["rows"]) == 3
        assert (box.bill()["jobs"], box.stats()["received"]) == (5, 5)


def test_the_log_can_be_read_in_pages_and_the_bill_without_rows(box: Box) -> None:
    for seed in range(4):
        box.job(seed=seed)
    first = box.client.get("/sandbox/jobs?limit=3").json()["jobs"]
    rest = box.client.get(f"/sandbox/jobs?after={first[-1]['n']}").json()["jobs"]
    assert [row["config"]["seed"] for row in first + rest] == [0, 1, 2, 3]
    assert box.client.get("/sandbox/bill?rows=false").json() == {
        "jobs": 4,
        "micro_usd": 160_000,
        "dollars": 0.16,
        "rows": [],
    }


def test_reset_forgets_everything_but_the_faults(box: Box) -> None:
    box.job()
    box.faults({"kind": "slow", "options": {"after_seconds": 0.0}})
    assert box.client.post("/sandbox/reset").status_code == 204
    assert (box.jobs(), box.stats()["received"], box.bill()["micro_usd"]) == ([], 0, 0)
    assert len(box.client.get("/sandbox/faults").json()) == 1


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("127.0.0.1", 200),
        ("127.8.8.8", 200),
        ("::1", 200),
        ("::ffff:127.0.0.1", 200),
        ("10.0.0.1", 403),
        ("::ffff:10.0.0.1", 403),
        ("", 403),
        ("localhost.evil.example", 403),
    ],
)
async def test_control_is_for_loopback_peers_only(peer: str, status: int) -> None:
    transport = httpx2.ASGITransport(create_sandbox(SandboxConfig()), client=(peer, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://sandbox") as client:
        assert (await client.get("/sandbox/stats")).status_code == status
        assert (await client.put("/sandbox/faults", json=[])).status_code == status
        assert (await client.post("/v2/job", json={})).status_code == 401
