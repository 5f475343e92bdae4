"""What are Redis' keys called? All keys of a pool share the hash tag {pool}, so that a pool lives on one cluster node."""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """The keys of one pool; docs/protocol.md says what each holds."""

    pool: str

    @property
    def prefix(self) -> str:
        """The hash tag, from which the scripts build the keys of streams and tenants."""
        return f"{{{self.pool}}}"

    @property
    def idx(self) -> str:
        """Hash: job -> gen:tier:tenant:cost:entry. Makes enqueue idempotent and cancel cheap."""
        return f"idx:{self.prefix}"

    @property
    def depth(self) -> str:
        """Hash: `<place>:jobs` and `<place>:tokens` that wait."""
        return f"depth:{self.prefix}"

    @property
    def tiers(self) -> str:
        """Hash: tier -> work charged / the tier's weight; `<tier>:at`: its last turn; `:now`: where the last claim stood."""
        return f"tiers:{self.prefix}"

    @property
    def terms(self) -> str:
        """Hash: tenant -> `weight:cap`, of those that have either; `:version` says which state of Postgres it is."""
        return f"ten:{self.prefix}"

    @property
    def running(self) -> str:
        """Hash: job that was claimed or runs -> tenant:tier:tier's weight:tenant's weight:charged:cost."""
        return f"run:{self.prefix}"

    @property
    def busy(self) -> str:
        """Hash: tenant -> how many of its jobs stand in `running`."""
        return f"busy:{self.prefix}"

    @property
    def parked(self) -> str:
        """Hash: tenant at its cap -> the places in which claims pass it over."""
        return f"full:{self.prefix}"

    def ahead(self, place: str) -> str:
        """Hash: tenant that returned from idle -> where the claims stood then, and its own counter: `stand:counter`."""
        return f"ahead:{self.prefix}:{place}"

    @property
    def mean(self) -> str:
        """Hash: tenant (`:all`: everyone) -> real work / cost, a moving mean: what a claim expects."""
        return f"mean:{self.prefix}"

    def bell(self, name: str) -> str:
        """List: wakes blocked workers that have room for the tier `name`, `<tier>:full` those that have none, `any` all; short, capped."""
        return f"bell:{self.prefix}:{name}"

    @property
    def epoch(self) -> str:
        """String: missing = this Redis lost its memory, rebuild from Postgres."""
        return f"epoch:{self.prefix}"

    @property
    def pend(self) -> str:
        """Sorted set: streams with claimed entries -> when one was first claimed since the last look at them."""
        return f"pend:{self.prefix}"

    @property
    def dlq(self) -> str:
        """Stream: dead letters as they are written, for those who watch; capped."""
        return f"dlq:{self.prefix}"

    def stream(self, place: str, tenant: str) -> str:
        """Stream of one tenant's waiting jobs in one place (app.queue.places)."""
        return f"q:{self.prefix}:{place}:{tenant}"

    def active(self, place: str) -> str:
        """Sorted set: tenants with work -> virtual token counter."""
        return f"act:{self.prefix}:{place}"

    def remembered(self, place: str) -> str:
        """Hash: idle and parked tenants -> the counter that they had; `:now`: where the last claim stood."""
        return f"vtc:{self.prefix}:{place}"


def events_key(job_id: UUID) -> str:
    """Stream of one job's token events."""
    return f"ev:{job_id.hex}"


def read_key(job_id: UUID) -> str:
    """Set while somebody reads the job's events as they come."""
    return f"ev:read:{job_id.hex}"


def wake_key(hub: str) -> str:
    """Stream by which a process wakes its own connection that waits for events; one empty entry, for a minute."""
    return f"ev:wake:{hub}"


ENDED_CHANNEL = (
    "jobs:ended"  # job:status, when a job reached its end; those that ended together with spaces between them
)
READ_CHANNEL = "jobs:read"  # job ids with spaces between them, when somebody begins to read their events
CANCEL_CHANNEL = "jobs:cancel"  # job id, when somebody wants a running job to stop
