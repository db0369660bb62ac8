"""The body of POST /v1/meshes, in SGLang's words; a mesh is made of text alone, so pictures are no parameters."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from services.api.requests import JobOrder

Steps: TypeAlias = Annotated[int, Field(ge=1, le=20_000)]
"""Of a volume that is bettered step by step: DreamFusion takes 15,000 (arXiv:2209.14988, section 3.2)."""


class MeshOrder(JobOrder):
    """A shape in space of what a prompt says."""

    steps: Steps | None = None
    num_inference_steps: Steps | None = None
    output_format: Literal["glb", "obj"] | None = "glb"
