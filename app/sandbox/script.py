"""Which fault, if any, meets the next job: a deterministic draw from the seed and the order of arrival.

Held by the server, consulted once per valid and authorised job, replaced as a whole with the faults or the seed.
"""

import random
from collections.abc import Sequence

from .faults import Fault
from .jobtypes import JobType


class Script:
    """The current faults with what each has seen and done so far."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self.faults = tuple(faults)
        self._seed = seed
        self._drawn = 0
        self._seen = [0] * len(self.faults)
        self._fired = [0] * len(self.faults)

    def choose(self, job: JobType) -> Fault | None:
        """The one fault that fires on this job, or None.

        One number is drawn per job. Every fault that may fire owns a span of it as wide as its probability, so their
        shares add up instead of hiding one another; what lies beyond 1 never fires.
        """
        if not self.faults:
            return None
        self._drawn += 1
        drawn = random.Random(f"{self._seed}:fault:{self._drawn}").random()
        chosen: int | None = None
        end = 0.0
        for place, fault in enumerate(self.faults):
            if not _concerns(fault, job):
                continue
            self._seen[place] += 1
            if self._seen[place] <= fault.after or (fault.count is not None and self._fired[place] >= fault.count):
                continue
            end += fault.probability
            if chosen is None and drawn < end:
                chosen = place
        if chosen is None:
            return None
        self._fired[chosen] += 1
        return self.faults[chosen]


def _concerns(fault: Fault, job: JobType) -> bool:
    if fault.kind == "moderated_input" and not job.takes_input:
        return False
    return fault.job_type in (None, job.name)
