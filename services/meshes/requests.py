"""The body of POST /v1/meshes, in SGLang's words; a mesh is made of text alone, so pictures are no parameters."""

from typing import Literal

from services.api.requests import JobOrder


class MeshOrder(JobOrder):
    """A shape in space of what a prompt says."""

    output_format: Literal["glb", "obj"] | None = "glb"
