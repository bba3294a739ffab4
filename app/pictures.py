"""Finished pictures read again, by id with a key or by a signed link that a reply gave; and deleted.

Called by the surfaces. What is stored is shown only under the policy in force now; whatever may not be seen is a 404,
whoever asks. When the ledger is away, a link cannot be checked and `LedgerUnavailable` is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time

from app.cache.lineage import Chain, Lineage
from app.cache.results import Result, Results
from app.domain import policy, signing
from app.domain.catalog import Catalog
from app.domain.job import Caller
from app.domain.tenant import Tenant
from app.errors import Refused
from app.tenants import Keyring, Tenants


class Pictures:
    """Reads of one process. `link_ttl` is in seconds; links are signed with the first of the secrets, and those of any
    are accepted."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        tenants: Tenants,
        keyring: Keyring,
        results: Results,
        lineage: Lineage,
        secrets: Sequence[bytes],
        link_ttl: float,
    ) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._keyring = keyring
        self._results = results
        self._lineage = lineage
        self._secrets = tuple(secrets)
        self._link_ttl = link_ttl

    async def by_key(self, caller: Caller, wanted: str) -> Result:
        """A stored picture by id, if this caller may read it under the policy in force. Raises Refused: not_found."""
        return await self._readable(caller.tenant, wanted)

    async def by_link(self, wanted: str, tenant_id: str, key_id: str, expires: int, signature: str) -> Result:
        """A stored picture by a signed link, while the key it was made for is valid. Raises Refused: not_found."""
        if not signing.verify(self._secrets, wanted, tenant_id, key_id, expires, signature, now=time()):
            raise _no_picture()
        tenant = (await self._tenants.refresh()).tenants.get(tenant_id)
        if tenant is None or not await self._keyring.valid(tenant_id, key_id):
            raise _no_picture()
        return await self._readable(tenant, wanted)

    async def heads(self, caller: Caller, wanted: Sequence[str]) -> dict[str, tuple[Result, int]]:
        """By id, the pictures that this caller may read now, without their bytes, and how many these are."""
        found = await self._results.heads(_scopes(caller.tenant), wanted)
        return {name: head for name, head in found.items() if self._shown(caller.tenant, head[0])}

    async def lineage(self, caller: Caller, wanted: str) -> tuple[Chain, dict[str, tuple[Result, int]]]:
        """The chain of a picture back to its uploads, and by id those of its pictures that are there. Raises Refused:
        not_found."""
        chain = await self._lineage.chain(caller.tenant.id, wanted)
        if chain is None:
            raise _no_picture()
        return chain, await self.heads(caller, [step.image for step in chain.steps])

    async def delete(self, caller: Caller, wanted: str) -> None:
        """Delete a picture and how it came to be. In a pool that is the picture's own buyer's to do.

        Raises:
            Refused: not_found, where there is neither.
            LedgerUnavailable: one of the two Redis roles is away; what was deleted stays deleted.
        """
        tenant = caller.tenant.id
        step = await self._lineage.step(tenant, wanted)
        scopes = {f"t:{tenant}"} | ({step.scope} if step and step.made else set())
        gone = [await self._results.delete(scope, wanted) for scope in sorted(scopes)]
        if not (await self._lineage.forget(tenant, wanted) or any(gone)):
            raise _no_picture()

    def link(self, caller: Caller, result: Result) -> str:
        """A signed link to a picture, good for `link_ttl` seconds."""
        expires = int(time() + self._link_ttl)
        return signing.link(self._secrets[0], result.image_id, caller.tenant.id, caller.key_id, expires)

    async def _readable(self, tenant: Tenant, wanted: str) -> Result:
        found = await self._results.by_id(_scopes(tenant), wanted)
        if found is None or not self._shown(tenant, found):
            raise _no_picture()
        return found

    def _shown(self, tenant: Tenant, found: Result) -> bool:
        kind = next((job for job in self._catalog.jobs if job.type == found.job_type), None)
        knob = kind.role("safety") if kind else None
        default = int(knob[1].default or 0) if knob else None
        return policy.readable(tenant, found.operation, found.variant, found.safety_applied, default)


def _scopes(tenant: Tenant) -> tuple[str, ...]:
    """Where a tenant's pictures lie."""
    own = f"t:{tenant.id}"
    return (tenant.cache.scope, own) if tenant.cache.scope.startswith("pool:") else (own,)


def _no_picture() -> Refused:
    return Refused("not_found", "There is no such picture.")
