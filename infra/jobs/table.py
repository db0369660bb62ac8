"""The tables of jobs, and what a row of them is to everybody else. Times are Unix seconds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from infra.database import METADATA
from infra.documents import parse_json

State: TypeAlias = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
FILE: Final = "file"  # the kind of what is only kept, by the same rules
BATCH: Final = "batch"
"""The kind whose finished stages count by themselves, also where it is called off."""
ENDS: Final = frozenset({"completed", "failed", "cancelled", "expired"})

JOBS: Final = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(60), primary_key=True),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("pipeline", sa.String(200), nullable=False),
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("body", sa.String(64), nullable=False),  # sha256 of what was asked under the key
    sa.Column("batch", sa.String(60)),  # that asked for it, or whose answers it holds
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("cancel", sa.Boolean, nullable=False),  # wanted, while somebody works on it
    sa.Column("deleted", sa.Boolean, nullable=False),  # gone for everybody but the sweep
    sa.Column("files", sa.Boolean, nullable=False),  # the artifact store may hold some
    sa.Column("progress", sa.Double, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),  # claims, all in all
    sa.Column("tries", sa.Integer, nullable=False),  # claims since a stage was last finished
    sa.Column("causes", sa.Text, nullable=False),  # how often an attempt ended why
    sa.Column("holder", sa.String(100)),
    sa.Column("fence", sa.Integer, nullable=False),
    # when it may be claimed: queued, from then on; in progress, when its lease is over; ended, never
    sa.Column("due", sa.Double),
    sa.Column("deadline", sa.Double),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    sa.Column("expires", sa.Double),
    sa.Column("error_code", sa.String(40)),
    sa.Column("error_message", sa.Text),
    sa.Column("result", sa.Text),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index(None, "due"),
    sa.Index(None, "batch"),
    sa.Index(None, "owner", "created"),
    sa.Index(None, "pipeline", "created"),
    sa.Index(None, "state", "expires"),
)
STAGES: Final = sa.Table(
    "job_stages",
    METADATA,
    sa.Column("job", sa.String(60), primary_key=True),
    sa.Column("node", sa.String(100), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),  # sha256 of the sealed output
    sa.Column("uri", sa.Text, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),  # whose work it is
    sa.Column("at", sa.Double, nullable=False),
)
ENDPOINTS: Final = sa.Table(
    "webhook_endpoints",
    METADATA,
    sa.Column("id", sa.String(60), primary_key=True),
    sa.Column("owner", sa.String(100), nullable=False, index=True),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.Text, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),  # of its secret, which is derived
    sa.Column("both_until", sa.Double),  # until when the secret before it signs, too
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("updated", sa.Double, nullable=False),
    # of the request that made it, and of that which last changed its secret
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("body", sa.String(64)),
    sa.Column("rotation_key", sa.String(200)),
    sa.Column("rotation_body", sa.String(64)),
    sa.Index(None, "owner", "idempotency_key", unique=True),
)
DELIVERIES: Final = sa.Table(
    "webhook_deliveries",
    METADATA,
    sa.Column("id", sa.String(60), primary_key=True),
    sa.Column("endpoint", sa.String(60), nullable=False, index=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due", sa.Double, index=True),  # None: delivered, or given up
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("error", sa.Text),  # of the last try
)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job, in the artifact store."""

    digest: str  # sha256
    uri: str
    media_type: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """A finished stage's sealed output, and what it cost to make."""

    digest: str  # sha256
    uri: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Error:
    """Why a job failed: a code for programs, a line for people."""

    code: str
    message: str


CANCELLED: Final = Error("cancelled", "it was cancelled before it was done")
"""Why there is nothing of a job that somebody called off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, as of the moment it was read."""

    id: str  # "video_01JE..."
    kind: str
    owner: str
    pipeline: str
    digests: Mapping[str, str]
    seed: int
    request: Mapping[str, Any]
    state: State
    cancel: bool  # wanted, but not yet obeyed
    progress: float  # 0..100, never less than it was
    attempt: int
    causes: Mapping[str, int]  # how often an attempt ended why: {"lost": 1}
    deadline: float | None
    created: float
    started: float | None
    ended: float | None
    expires: float | None
    error: Error | None
    result: Result | None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ENDS


def outputs(connection: Connection, id: str) -> dict[str, Output]:
    """Return the outputs of a job's finished stages, by node, in the order they were finished."""
    query = sa.select(STAGES).where(STAGES.c.job == id).order_by(STAGES.c.at)
    found = connection.execute(query)
    return {row.node: Output(row.digest, row.uri, row.seconds) for row in found}


def job(row: Mapping[str, Any]) -> Job:
    """Return what a row says."""
    plain = ("id", "kind", "owner", "pipeline", "seed", "state", "cancel", "progress", "attempt")
    times = ("deadline", "created", "started", "ended", "expires")
    result = None if row["result"] is None else Result(**parse_json(row["result"], "a result"))
    error = None
    if row["error_code"] is not None:
        error = Error(row["error_code"], row["error_message"] or "")
    return Job(
        **{name: row[name] for name in (*plain, *times)},
        digests=parse_json(row["digests"], "a job's digests"),
        request=parse_json(row["request"], "a job's request"),
        causes=parse_json(row["causes"], "a job's causes"),
        error=error,
        result=result,
    )
