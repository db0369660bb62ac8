"""POST /v1/content_provenance_checks: whether an uploaded file carries a receipt, and whether its signature holds."""

import asyncio
import time
from typing import Any, BinaryIO, Final

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from infra.receipts.contents import MOST_BYTES
from infra.receipts.provenance import Check, check
from infra.receipts.receipts import NoReceipt, Receipt, ReceiptError
from infra.receipts.signing import Signing, fingerprint_of
from services.api.answers import Provenance
from services.api.edits import form_of
from services.api.requests import Strict
from services.api.served import parts_of
from services.gateway.openapi import ANYWHERE, Routes, answers

UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "additionalProperties": False,
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
ELSEWHERE: Final = (
    {"type": "c2pa", "outcome": "not_detected", "validation_state": "not_present"},
    {"type": "synthid", "outcome": "not_detected"},
)
"""OpenAI's own signals, which no file of ours carries and which are not looked for."""
UNKNOWN: Final = {"issuer": None, "model": None, "generated_at": None}
NOT_ASKED: Final = "registry and ledger were not asked: `atelier verify` does"


async def answer_provenance(request: Request, signing: Signing) -> Response:
    """Return what the file's receipt proves, in the words of OpenAI's results.

    `validation_state` is trusted (a known signer's signature holds fields and content), valid (an unknown signer's
    does), invalid (unsigned, altered, or of another file) or not_present.

    Raises:
        ApiError: 415, no form; 400, no file in it, or more than that.
    """
    async with form_of(request, Strict, {"file": True}, MOST_BYTES) as (_, sent):
        found = await asyncio.to_thread(_result, sent["file"].file, signing)
    return JSONResponse(
        {
            "object": "content_provenance_check",
            "created_at": int(time.time()),
            "results": [found, *({**UNKNOWN, **one} for one in ELSEWHERE)],
        }
    )


def _result(content: BinaryIO, signing: Signing) -> dict[str, Any]:
    try:
        receipt, checks = check(content, signing)
    except NoReceipt as error:
        return _said("not_present", UNKNOWN, str(error))
    except ReceiptError as error:
        return _said("invalid", UNKNOWN, str(error))
    state = _state(checks)
    facts = UNKNOWN if state == "invalid" else _facts(receipt)
    return _said(state, facts, *(one.says for one in checks), NOT_ASKED)


def _said(state: str, facts: dict[str, Any], *says: str) -> dict[str, Any]:
    outcome = "detected" if state in {"trusted", "valid"} else "not_detected"
    common = {"type": "atelier_receipt", "outcome": outcome, "validation_state": state}
    return {**common, **facts, "says": "; ".join(says)}


def _state(checks: tuple[Check, ...]) -> str:
    passed = {one.name: one.passed for one in checks}
    if not (passed["signature"] and passed["content"]):
        return "invalid"
    return "trusted" if passed["signer"] else "valid"


def _facts(receipt: Receipt) -> dict[str, Any]:
    """Return issuer, model and time under OpenAI's names."""
    assert receipt.signature is not None
    return {
        "issuer": fingerprint_of(receipt.signature.encode()),
        "model": receipt.version,
        "generated_at": receipt.created.isoformat(),
    }


routes = Routes()


@routes.post(
    "/v1/content_provenance_checks",
    openapi_extra=UPLOAD,
    response_model=None,
    responses=answers(Provenance, [*ANYWHERE, 415]),
)
async def check_provenance(request: Request) -> Response:
    """Check the receipt of a picture or sound."""
    return await answer_provenance(request, parts_of(request).signing)
