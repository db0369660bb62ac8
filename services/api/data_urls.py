"""Pictures inside JSON: data URLs. No other URL is fetched, so that nobody sends the gateway anywhere."""

import base64
import re
from typing import Annotated, Final, TypeAlias

from pydantic import AfterValidator, WithJsonSchema
from pydantic.json_schema import JsonSchemaValue

from services.gateway.errors import invalid

LARGEST: Final = 4 * 2**20  # bytes of a picture or mask, as OpenAI has it of masks
DATA_URL: Final = re.compile(r"^data:image/[a-z0-9.+-]+;base64,")
URL_SCHEMA: Final[JsonSchemaValue] = {"type": "string", "pattern": DATA_URL.pattern}


def checked(url: str) -> str:
    """Return a data URL of a picture, as it is.

    Raises:
        ValueError: it is another one.
    """
    if not DATA_URL.match(url):
        raise ValueError("send data URLs, data:image/png;base64,...; no other is fetched")
    return url


DataUrl: TypeAlias = Annotated[str, AfterValidator(checked), WithJsonSchema(URL_SCHEMA)]


def content_of(url: str, param: str) -> bytes:
    """Return what is in a data URL.

    Raises:
        ApiError: 400 that names the parameter: it is no base64, or too large.
    """
    try:
        content = base64.b64decode(url.partition(",")[2], validate=True)
    except ValueError:  # binascii's own, or what is no ASCII
        raise invalid(f"{param}: it is no base64", param) from None
    if len(content) > LARGEST:
        raise invalid(f"{param}: {len(content)} bytes, at most {LARGEST} are taken", param)
    return content
