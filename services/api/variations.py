"""POST /v1/images/variations: what a picture shows, drawn anew; multipart, as OpenAI's clients send it."""

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import ConfigDict

from infra.media.pictures import PictureError, decode
from services.api.answers import Pictures as PictureList
from services.api.edits import FORM, Drawn, Uploads, as_large, digests, read_form, with_files
from services.api.images import PictureAnswer, plan_drawing
from services.api.requests import PictureOrder
from services.api.served import exchange_of, parts_of
from services.gateway.errors import invalid
from services.gateway.openapi import STREAM, Routes
from services.pipelines.payload import GenerationSpec, Pictures
from services.routing.endpoints import Endpoint

FILES: Final = {"image": True}


class VariationOrder(PictureOrder):
    """The fields of a form that asks for variations of a picture, beside the picture."""

    model_config = ConfigDict(json_schema_extra=partial(with_files, FILES))


def plan_variation(
    files: Uploads[Pictures], order: VariationOrder, seeds: tuple[int, ...], endpoint: Endpoint
) -> GenerationSpec:
    """Return what to draw with a version, after checking what depends on it.

    Raises:
        ApiError: 400 that names the parameter.
    """
    endpoint.must("variations")
    asked = plan_drawing(order, seeds, endpoint, "vary")
    image = files.opened(endpoint, order, "vary")
    return GenerationSpec(
        seeds=seeds,
        entrance="vary",
        options=as_large(asked.options, image, endpoint.pipeline),
        previews=asked.previews,
        given={"image": np.repeat(image[None], len(seeds), 0)},
        uploads=digests(files.contents),
    )


def _opened(files: Mapping[str, bytes], wanted: Drawn) -> Pictures:
    """Return a picture (C, H, W) in [0, 1].

    Raises:
        ApiError: 400, it cannot be read.
    """
    try:
        side, channels, sizes = wanted
        found = decode(files["image"], side, channels, sizes).pixels
    except PictureError as error:
        raise invalid(f"image: {error}", "image") from None
    image: Pictures = found.transpose(2, 0, 1).astype(np.float32) / 255
    return image


routes = Routes()


@routes.takes("/v1/images/variations", VariationOrder, PictureList, STREAM, FORM)
async def vary(request: Request) -> Response:
    """Draw pictures that show what a picture shows."""
    order, contents = await read_form(request, VariationOrder, FILES)
    files = Uploads(contents, _opened)
    exchange = await exchange_of(request, order, partial(plan_variation, files), opens=True)
    parts = parts_of(request)
    answer = PictureAnswer(exchange, order, parts.files, parts.samples, "image_variation")
    return await (answer.stream() if order.stream else answer.whole())
