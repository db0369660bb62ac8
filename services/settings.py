"""What the application is built with."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.placement import Placement, Pool
from services.stages.deployment import StageArguments


class Arguments(BaseModel):
    """What the application is built with: JSON in the declarative config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    database: str
    tracking_uri: str
    cache: Path  # verified copies of versions
    files: Path  # pictures answered by url
    artifacts: str | None = (
        None  # what jobs make: a folder, or an address of fsspec; None: in files
    )
    samples: Path  # answers kept for the drift check
    public_url: str | None = None  # of links; None: as the request came
    signing: Path  # the key that signs receipts and exports
    timeout_s: float = Field(default=120.0, gt=0)  # of a request, all attempts together
    max_body: int = Field(default=2**20, ge=1)  # bytes
    max_under_way: int = Field(default=512, ge=1)  # requests in the gateway
    unknown_words: Literal["refuse", "map"] = "refuse"  # see services.stages.unknown_words
    private_webhooks: bool = False  # may go to private networks, and without TLS
    placement: Placement = Placement()

    @property
    def made(self) -> str:
        """Where jobs keep what they make: a place that every gateway reaches."""
        return self.artifacts or str(self.files / "jobs")

    def for_pool(self, pool: Pool) -> dict[str, Any]:
        """Return what the stage of a pool is built with."""
        given = StageArguments.model_validate(
            {
                "tracking_uri": self.tracking_uri,
                "cache": self.cache,
                "device": self.placement.device(pool),
                "threads": max(1, int(pool.cpus)),
                "buckets": pool.batch,
                "max_waiting": pool.max_waiting,
                "apart": self.placement.layout == "staged",
                "gpu_share": self.placement.gpu_share(pool),
                "unknown_words": self.unknown_words,
            }
        )
        return given.model_dump(mode="json")
