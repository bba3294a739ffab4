"""Ids: 26 characters of Crockford's alphabet that sort by time and do not repeat."""

from __future__ import annotations

import re
import time
import uuid

import pytest
import time_machine

from app.domain.ids import as_uuid, job_id, job_of, request_id, ulid

UUID = "01a21076-74a9-4c87-8d6a-0f729b7c3803"
FORM = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def test_ids_have_the_published_form() -> None:
    assert FORM.fullmatch(ulid())
    assert job_id().startswith("job_")
    assert FORM.fullmatch(job_id().removeprefix("job_"))
    assert request_id().startswith("req_")
    assert FORM.fullmatch(request_id().removeprefix("req_"))


def test_ids_do_not_repeat_within_a_millisecond() -> None:
    with time_machine.travel(1_800_000_000, tick=False):
        made = {ulid() for _ in range(10_000)}
    assert len(made) == 10_000
    assert len({name[:10] for name in made}) == 1
    assert len({name[10:14] for name in made}) > 1_000


def test_ids_sort_by_the_time_they_were_made_and_tell_it() -> None:
    alphabet, names = "0123456789ABCDEFGHJKMNPQRSTVWXYZ", []
    for second in range(1_000_000_000, 4_000_000_000, 100_000_000):
        with time_machine.travel(second, tick=False):
            names.append(ulid())
            number = 0
            for character in names[-1][:10]:
                number = number * 32 + alphabet.index(character)
            assert number == int(time.time() * 1000)
    assert names == sorted(names)


def test_a_job_has_one_id_in_two_spellings() -> None:
    made = [job_id() for _ in range(1_000)]
    assert [job_of(as_uuid(name)) for name in made] == made
    found = [uuid.UUID(as_uuid(name)) for name in made]
    assert {(one.version, one.variant) for one in found} == {(4, uuid.RFC_4122)}
    assert len({as_uuid(name) for name in made}) == 1_000
    assert as_uuid("job_01M887CX59HJ3RTTGFEADQRE03") == UUID
    assert job_of(UUID) == "job_01M887CX599J3RTTGFEADQRE03"


NOT_ONES = (
    "", "job_01M887CX59HJ3RTTGFEADQRE03", UUID.replace("-4", "-7"), UUID.replace("-8d", "-cd"), UUID.upper(),
    UUID.replace("-", ""), UUID + "\n", f"{{{UUID}}}", "../../etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("text", NOT_ONES)
def test_what_is_no_version_4_uuid_is_no_job(text: str) -> None:
    assert job_of(text) == ""
