"""Ids: 26 characters of Crockford's alphabet that sort by time and do not repeat."""

from __future__ import annotations

import re
import time

import time_machine

from app.domain.ids import job_id, request_id, ulid

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
