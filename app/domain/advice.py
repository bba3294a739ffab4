"""Advice for the next request, from the rules of `guidance.toml`: never a refusal, never a word of the prompt.

Pure, called by a surface that writes a JSON reply. The same request gets the same advice.
"""

from __future__ import annotations

from app.domain import policy
from app.domain.catalog import Catalog
from app.domain.guidance import AdviceRule, Guidance
from app.domain.job import Job
from app.domain.prompts import read


def advise(job: Job, catalog: Catalog, guidance: Guidance) -> list[str]:
    """Sentences of the form `code: text`, the most useful first."""
    prompt = read(job.request.parameters.get("prompt"), guidance.changes)
    given, known = job.request.given, frozenset(job.type.parameters)
    found = (
        f"{rule.code}: {rule.say}"
        for rule in guidance.advice.rule
        if rule.hold(job.operation, given, known, prompt) and _holds(rule, job, catalog)
    )
    return [sentence for sentence, _ in zip(found, range(guidance.advice.most), strict=False)]


def _holds(rule: AdviceRule, job: Job, catalog: Catalog) -> bool:
    """The conditions that need more than the prompt."""
    if rule.min_applied is not None and (job.safety.applied is None or job.safety.applied < rule.min_applied):
        return False
    if rule.chosen_by_auto is not None and rule.chosen_by_auto != (job.request.chosen is not None):
        return False
    if rule.better is None:
        return True
    other = catalog.find(job.operation, rule.better)
    return other is not None and job.variant != rule.better and policy.usable(job.caller, other)
