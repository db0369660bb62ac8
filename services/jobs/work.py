"""What a job's row says, whatever it makes: what is drawn for it, and the file that comes of it, receipt inside.

Whoever runs the job reads the row alone: versions by digest, uploads by where they are kept.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from infra.jobs.table import Job
from infra.pipelines import Pipeline
from infra.receipts import provenance
from infra.receipts.receipts import attach
from infra.receipts.signing import Signing
from services.jobs.content import ENDINGS, Made
from services.jobs.runner import File
from services.pipelines.payload import GenerationSpec
from services.routing.endpoints import Endpoint
from services.routing.request_session import facts


class Input(BaseModel):
    """A file that was given, and where it is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    sha256: str


class Work(BaseModel):
    """The request of a job, as its row has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str  # as asked for
    version: str  # that answers: "moving:3"
    place: str | None  # of the ledger, and its row there, for the receipt
    epoch: int
    prompt: str
    entrance: str = "generate"
    options: dict[str, Any]
    inputs: dict[str, Input] = {}

    @classmethod
    def asked(cls, endpoint: Endpoint, prompt: str, options: dict[str, Any], **more: Any) -> Self:
        """Return what a version is to make of a prompt."""
        return cls(
            model=endpoint.model,
            version=endpoint.ref,
            place=endpoint.stage,
            epoch=endpoint.epoch,
            prompt=prompt,
            options=options,
            **more,
        )

    def spec(self, pipeline: Pipeline, seed: int) -> GenerationSpec:
        """Return what is to be drawn, without what is in the files that were given."""
        return GenerationSpec(
            seeds=(seed,),
            prompts=(self.prompt,) if pipeline.reads_text else (),
            entrance=self.entrance,
            options=self.options,
            uploads={name: one.sha256 for name, one in self.inputs.items()},
        )

    def stamped(
        self, signing: Signing, job: Job, endpoint: Endpoint, made: Made, **shown: Any
    ) -> File:
        """Return the file of a job with its receipt, which says besides what it has `shown` of what is made."""
        asked = replace(endpoint, stage=self.place, epoch=self.epoch)
        spec, created = (
            self.spec(endpoint.pipeline, job.seed),
            datetime.fromtimestamp(job.created, UTC),
        )
        receipt = facts(asked, spec, 0, created, job.id).model_copy(update=shown)
        stamped = attach(made.content, provenance.sign(receipt, made.content, signing))
        return File(stamped, made.media_type, ENDINGS[made.media_type.partition(";")[0]])
