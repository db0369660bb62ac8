"""Pictures of whole pipelines: one of a version by its stages, and one of every family that draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infra.pipelines import Pipeline
from models.judges.gallery import EDGE, GAP_PX, INK, PAPER, TILE_PX, to_image, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

HEAD_PX: Final = 52  # above the columns
LABEL_PX: Final = 150  # before the rows
SIDE_PX: Final = 132  # of a picture with a head
FONT_PX: Final = 11
LINE_PX: Final = 14
TURN: Final = 24  # frames once around a volume
MOVING: Final = 5  # dimensions of what has frames


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures side by side, behind a label."""

    label: str
    pictures: "Sequence[Tensor]"  # (C, H, W) in [0, 1], of any size


def table(rows: Sequence[Row], heads: Sequence[str] = ()) -> Image.Image:
    """Return rows of pictures, each enlarged or shrunk to one size, with a label a row and, perhaps, a head a column.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a sheet needs a row at least")
    side, columns = SIDE_PX if heads else TILE_PX, max(len(row.pictures) for row in rows)
    step, top = side + GAP_PX, HEAD_PX if heads else GAP_PX
    sheet = Image.new("RGB", (LABEL_PX + columns * step + GAP_PX, top + len(rows) * step), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)

    def write(left: int, middle: int, text: str, width: int) -> None:
        lines = [line for part in text.splitlines() for line in wrap(part, width, font)]
        first = middle - LINE_PX * len(lines) // 2
        for number, line in enumerate(lines):
            pen.text((left, first + number * LINE_PX), line, fill=INK, font=font)

    for column, head in enumerate(heads):
        write(LABEL_PX + column * step, HEAD_PX // 2, head, side)
    for number, row in enumerate(rows):
        y = top + number * step
        write(GAP_PX, y + side // 2, row.label, LABEL_PX - 2 * GAP_PX)
        for column, picture in enumerate(row.pictures):
            x = LABEL_PX + column * step
            pen.rectangle((x - 1, y - 1, x + side, y + side), outline=EDGE)
            tile = to_image(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (x, y))
    return sheet


def by_stages(
    pipeline: Pipeline, prompts: Sequence[str], made: "Mapping[str, Tensor]"
) -> Image.Image:
    """Return a column a prompt, a row a node that makes what can be seen: what each adds.

    Args:
        pipeline: whose nodes they are.
        prompts: what the columns were asked for.
        made: by node, one a prompt: pictures, clips, codes, latents or volumes; embeddings are left out.
    """
    return table(_rows(pipeline, _looks(pipeline, made), 0.5), prompts)


def moving(
    pipeline: Pipeline, prompts: Sequence[str], made: "Mapping[str, Tensor]"
) -> "NDArray[np.uint8]":
    """Return the sheet of a pipeline that draws clips or volumes, at each frame of what moves longest, (F, H, W, 3)."""
    looks = _looks(pipeline, made)
    count = max(look.shape[1] for look in looks.values() if look.ndim == MOVING)
    moments = (place / max(1, count - 1) for place in range(count))
    return np.stack(
        [np.asarray(table(_rows(pipeline, looks, moment), prompts)) for moment in moments]
    )


def _looks(pipeline: Pipeline, made: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return what is seen of each node that makes what can be seen, pictures (N, C, H, W) or frames (N, F, C, H, W)."""
    found = {}
    for name, tensor in made.items():
        output = next(iter(pipeline.ports("generate", name).outputs.values()))
        if look := LOOKS.get(output.partition(" ")[0]):
            found[name] = look(tensor)
    return found


def _rows(pipeline: Pipeline, looks: "Mapping[str, Tensor]", moment: float) -> list[Row]:
    """Return a row a node, as it looks at a moment from 0, the begin, to 1, the end."""
    nodes = pipeline.entrances["generate"].nodes
    return [
        Row(
            f"{name}\n{pipeline.stage(nodes[name].stage).pin.ref}",
            list(look[:, round(moment * (look.shape[1] - 1))] if look.ndim == MOVING else look),
        )
        for name, look in looks.items()
    ]


def _of_codes(codes_NP: "Tensor") -> "Tensor":
    """Return a grid of codes as greys: equal codes are equally grey."""
    side = round(codes_NP.shape[1] ** 0.5)
    grid = codes_NP[:, : side**2].reshape(-1, 1, side, side).float()
    return grid / grid.max().clamp(min=1)


def _of_latents(latents: "Tensor") -> "Tensor":
    """Return the first channels of latents (..., C, H, W) as colours, two deviations from the middle to the ends."""
    first = latents.narrow(-3, 0, 3 if latents.shape[-3] >= 3 else 1).float()
    return (first / (4 * first.std().clamp(min=1e-6)) + 0.5).clamp(0, 1)


def turning(volumes_N4RRR: "Tensor", frames: int = TURN) -> "Tensor":
    """Return the meshes of volumes from so many sides once around them, the front first, (N, F, 3, H, W) on white."""
    import torch

    from infra.media.mesh_views import ELEVATION, view
    from infra.media.meshes import EmptyMeshError, mesh_of

    found = np.full((len(volumes_N4RRR), frames, SIDE_PX, SIDE_PX, 3), 255, np.uint8)
    for row, volume in zip(found, volumes_N4RRR.numpy(), strict=True):
        try:
            mesh = mesh_of(volume)
        except EmptyMeshError:
            continue
        for number, picture in enumerate(row):
            seen = view(mesh, 2 * math.pi * number / frames, ELEVATION, SIDE_PX)
            picture[:] = np.where(seen[..., 3:], seen[..., :3], 255)
    return torch.from_numpy(found).permute(0, 1, 4, 2, 3).float() / 255


LOOKS: Final[Mapping[str, "Callable[[Tensor], Tensor]"]] = {
    "pixels": lambda pixels: pixels,
    "clip": lambda frames: frames,
    "codes": _of_codes,
    "latent": _of_latents,
    "volume": turning,
}
"""How what a node gives is looked at, by its kind."""
