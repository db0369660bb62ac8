"""POST /v1/images/edits: a picture that is drawn anew where a mask says so.

Multipart, as OpenAI's clients send it, or JSON with data URLs, as the lines of a batch have it.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from infra.media.pictures import PictureError, Size, decode, size_of, transparency
from infra.pipelines import Pipeline
from models.ports import Port
from services.api.answers import Pictures as PictureList
from services.api.data_urls import LARGEST, DataUrl, content_of
from services.api.images import PictureAnswer, plan_drawing, size_named
from services.api.requests import TOGETHER, ImageOrder, PictureOrder, Strict
from services.api.served import exchange_of, parts_of, read_order
from services.gateway.errors import ApiError, from_validation, invalid
from services.gateway.openapi import STREAM, Routes
from services.pipelines.payload import GenerationSpec, Pictures
from services.routing.endpoints import Endpoint

FORM: Final = "multipart/form-data"
JSON: Final = "application/json"
MOST_FIELDS: Final = 32
CHARSET: Final = re.compile(r"charset\s*=\s*\"?([^\s;\"]*)")
NESTED: Final = re.compile(r"([a-z_]{1,40})\[([a-z_]{1,40})\]")
FILES: Final = {"image": True, "mask": False}
"""The files of the form, and whether they must be there."""
Drawn: TypeAlias = tuple[int, int, tuple[Size, ...]]
"""What pictures are like: pixels a side, channels and, where they are no squares, the sizes that there are."""
TOpened = TypeVar("TOpened")


def with_files(wanted: Mapping[str, bool], schema: dict[str, Any]) -> None:
    """Add a form's files to its JSON schema."""
    schema.update(TOGETHER)
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in wanted}
    needed = [name for name, must in wanted.items() if must]
    schema["required"] = [*schema.get("required", ()), *needed]


class EditOrder(ImageOrder):
    """The fields of a form that asks for a changed picture, beside its files."""

    model_config = ConfigDict(json_schema_extra=partial(with_files, FILES))

    strength: Annotated[float, Field(ge=0, le=1)] | None = None  # ours; 1: from noise alone
    input_fidelity: Literal["high", "low"] | None = None  # what is kept is kept bit by bit

    @property
    def options(self) -> dict[str, Any]:
        """As of any request for pictures, and how far what is open may go from the picture."""
        return super().options | ({} if self.strength is None else {"strength": self.strength})


class Reference(Strict):
    """A picture inside JSON."""

    image_url: DataUrl


class EditDocument(EditOrder):
    """The same as JSON: its files are data URLs."""

    model_config = ConfigDict(json_schema_extra=TOGETHER)

    images: Annotated[list[Reference], Field(min_length=1, max_length=1)]
    mask: Reference | None = None

    @property
    def contents(self) -> dict[str, bytes]:
        """The files by their names in a form."""
        named = {"image": self.images[0], **({"mask": self.mask} if self.mask else {})}
        return {name: content_of(one.image_url, name) for name, one in named.items()}


@dataclass(eq=False, slots=True)
class Uploads(Generic[TOpened]):
    """The files of a form by name, opened once for a size, whoever plans with them; not in the event loop."""

    contents: Mapping[str, bytes]
    opening: Callable[[Mapping[str, bytes], Drawn], TOpened]
    _opened: dict[Drawn, TOpened] = field(default_factory=dict)

    def opened(self, endpoint: Endpoint, order: PictureOrder, entrance: str) -> TOpened:
        """Return what is in them as a version takes it; where no size is asked for, of which least is cropped.

        Raises:
            ApiError: 400, one cannot be read.
        """
        key = drawn_by(endpoint.pipeline, entrance, size_named(order, endpoint))
        if key not in self._opened:
            self._opened[key] = self.opening(self.contents, key)
        return self._opened[key]


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the sha256 of each file, by which a receipt names it."""
    return {name: hashlib.sha256(one).hexdigest() for name, one in files.items()}


def drawn_by(pipeline: Pipeline, entrance: str, size: str | None) -> Drawn:
    """Return what the pictures are like that come out of an entrance, of a size or, at None, of any of its sizes."""
    node, _, port = pipeline.entrances[entrance].output.partition(".")
    made = Port.parse(pipeline.ports(entrance, node).outputs[port])  # (C, H, W)
    sizes = tuple(size_of(one) for one in ((size,) if size else pipeline.sizes))
    return int(made.shape[2] or 0), int(made.shape[0] or 0), sizes if pipeline.sizes else ()


TOrder = TypeVar("TOrder", bound=BaseModel)


@asynccontextmanager
async def form_of(
    request: Request, kind: type[TOrder], wanted: Mapping[str, bool], largest: int = LARGEST
) -> AsyncIterator[tuple[TOrder, dict[str, UploadFile]]]:
    """Yield what a form asks for, and its files by name; `wanted` says which may and which must be there.

    A field `video[id]` is the field `id` of `video`, as OpenAI's clients write it.

    Raises:
        ApiError: 415, no form, or not in UTF-8; 400 that names its first wrong field.
    """
    sent = request.headers.get("content-type", "").lower()
    if not sent.startswith(FORM):
        name = next(iter(wanted))
        message = f"send the file as multipart/form-data, in the field `{name}`"
        raise ApiError(415, message, code="unsupported_media_type", param=name)
    if odd := {*CHARSET.findall(sent)} - {"utf-8"}:  # Python has some that break, or take for ever
        message = f"send the form in UTF-8, got charset {min(odd)[:40]!r}"
        raise ApiError(415, message, code="unsupported_media_type")
    try:
        form = await request.form(max_files=4, max_fields=MOST_FIELDS)
    except HTTPException as error:  # starlette's, of a broken form
        raise invalid(f"no form: {error.detail}", "body") from None
    try:
        texts, files = _fields(form)
        _check_files(files, wanted, largest)
        yield kind.model_validate_strings(texts), files
    except ValidationError as error:
        raise from_validation(error) from None
    finally:
        await form.close()


async def read_form(
    request: Request, kind: type[TOrder], wanted: Mapping[str, bool], largest: int = LARGEST
) -> tuple[TOrder, dict[str, bytes]]:
    """Return what a form asks for, and what is in its files by name, as `form_of`."""
    async with form_of(request, kind, wanted, largest) as (order, files):
        return order, {name: await file.read() for name, file in files.items()}


async def read_sent(
    request: Request, kind: type[TOrder], file: str = "", largest: int = LARGEST
) -> tuple[TOrder, dict[str, bytes]]:
    """Return the body, a form or JSON, and the file that may be in a form under this name.

    Raises:
        ApiError: 415, another type; 400 that names its first wrong field.
    """
    if request.headers.get("content-type", "").lower().startswith(FORM):
        return await read_form(request, kind, {file: False} if file else {}, largest)
    return await read_order(request, kind), {}


def _fields(form: FormData) -> tuple[dict[str, Any], dict[str, UploadFile]]:
    """Return the texts of a form and its files, each by its name."""
    texts: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    seen: dict[str, set[str]] = {}  # the parts of each name, "" where it is no part
    for name, value in form.multi_items():
        name = name.removesuffix("[]")
        nested = NESTED.fullmatch(name) if isinstance(value, str) else None
        whole, part = (nested[1], nested[2]) if nested else (name, "")
        others = seen.setdefault(whole, set())
        if others & {part, ""} or (others and not part):
            raise invalid(f"{whole}: one is taken, got several", whole)
        others.add(part)
        if isinstance(value, UploadFile):
            files[name] = value
        elif nested:
            texts.setdefault(whole, {})[part] = value
        else:
            texts[name] = value
    return texts, files


def _check_files(files: Mapping[str, UploadFile], wanted: Mapping[str, bool], largest: int) -> None:
    if odd := files.keys() - wanted.keys():
        raise invalid(f"unknown parameter {min(odd)!r}", min(odd), "unknown_parameter")
    for name, must in wanted.items():
        if must and name not in files:
            message = f"{name}: send it as a file"
            raise invalid(message, name, "missing_required_parameter")
    for name, file in files.items():
        if (file.size or 0) > largest:
            raise invalid(f"{name}: at most {largest} bytes are taken", name)


def plan_edit(
    files: Uploads[tuple[Pictures, Pictures]],
    order: EditOrder,
    seeds: tuple[int, ...],
    endpoint: Endpoint,
) -> GenerationSpec:
    """Return what to change with a version, after checking what depends on it.

    Raises:
        ApiError: 400 that names the parameter.
    """
    endpoint.must("edits")
    image, mask = files.opened(endpoint, order, "edit")
    asked, count = plan_drawing(order, seeds, endpoint, "edit"), len(seeds)
    return GenerationSpec(
        seeds=seeds,
        entrance="edit",
        prompts=asked.prompts,
        options=as_large(asked.options, image, endpoint.pipeline),
        best_of=asked.best_of,
        previews=asked.previews,
        given={"image": np.repeat(image[None], count, 0), "mask": np.repeat(mask[None], count, 0)},
        uploads=digests(files.contents),
    )


def as_large(options: Mapping[str, Any], image: Pictures, pipeline: Pipeline) -> Mapping[str, Any]:
    """Return a request's options, of which the size is that of the picture that it begins from."""
    size = f"{image.shape[2]}x{image.shape[1]}"
    same = not pipeline.sizes or size == pipeline.size_of(options)
    return options if same else {**options, "size": size}


def _opened(files: Mapping[str, bytes], wanted: Drawn) -> tuple[Pictures, Pictures]:
    """Return the picture (C, H, W) in [0, 1] and the mask (1, H, W), 1 where it is to be drawn anew.

    The mask is what is transparent: of the file `mask`, else of the picture itself.

    Raises:
        ApiError: 400, one cannot be read, they are not equally large, or nothing is transparent.
    """
    name = "image"
    side, channels, sizes = wanted
    try:
        picture = decode(files["image"], side, channels, sizes)
        name = "mask" if "mask" in files else "image"
        clear = transparency(files[name], side, sizes)
    except PictureError as error:
        raise invalid(f"{name}: {error}", name) from None
    found = [(one.width, one.height) for one in (picture, clear)]
    if found[0] != found[1]:
        says = " and ".join(f"{width}x{height}" for width, height in found)
        raise invalid(f"mask: it must be as large as the picture, got {says}", "mask")
    if not clear.pixels.any():
        message = "mask: nothing in it is transparent, which is where the picture would be changed"
        raise invalid(f"{message}; send a PNG with an alpha channel", "mask")
    image, mask = (
        one.pixels.transpose(2, 0, 1).astype(np.float32) / 255 for one in (picture, clear)
    )
    return image, (mask >= 0.5).astype(np.float32)


routes = Routes()


@routes.takes(
    "/v1/images/edits", EditOrder, PictureList, STREAM, FORM, besides={JSON: EditDocument}
)
async def edit(request: Request) -> Response:
    """Change pictures where a mask says so."""
    if request.headers.get("content-type", "").lower().startswith(JSON):
        document = await read_order(request, EditDocument)
        order: EditOrder = document
        contents: Mapping[str, bytes] = await asyncio.to_thread(lambda: document.contents)
    else:
        order, contents = await read_form(request, EditOrder, FILES)
    files = Uploads(contents, _opened)
    exchange = await exchange_of(request, order, partial(plan_edit, files), opens=True)
    parts = parts_of(request)
    answer = PictureAnswer(exchange, order, parts.files, parts.samples, "image_edit")
    return await (answer.stream() if order.stream else answer.whole())
