"""What is made through the front door: the `openai` client against the gateway, as any user would."""

import base64
import io
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flows.cli.terminal import aside, console, printable
from infra.documents import parse_json
from infra.settings import settings
from infra.storage import atomic_write

if TYPE_CHECKING:
    from openai import APIError, OpenAI

POLL_S: Final = 0.5  # between two looks at a job
WARNINGS: Final = "x-atelier-warnings"  # the header of a sound's


class Unanswered(RuntimeError):
    """The gateway refused or did not answer; the message is its own."""


class NoGateway(Unanswered):
    """Nothing listens at the gateway's address."""


def paint(
    model: str,
    prompt: str,
    *,
    seed: int | None = None,
    **options: Any,
) -> bytes:
    """Return one picture as PNG, with its receipt; `options` are fields of the API: `steps`, `blend`.

    Raises:
        Unanswered: the gateway's refusal in its own words.
        NoGateway: it is not there.
    """
    body = {k: v for k, v in {"seed": seed, **options}.items() if v is not None}
    with _asking() as ours:
        answer = ours.images.generate(
            model=model, prompt=prompt, response_format="b64_json", extra_body=body
        )
    return _picture(model, answer.to_dict())


def edit(model: str, picture: Path, prompt: str, mask: Path | None = None, **options: Any) -> bytes:
    """Return a picture as PNG, drawn anew where the mask, or else the picture itself, is transparent.

    `options` are fields of the API: `seed`, `steps`, `guidance`, `strength`.

    Raises:
        OSError: a file cannot be read.
        Unanswered, NoGateway: as `paint`.
    """
    files = {"image": picture, **({} if mask is None else {"mask": mask})}
    return _drawn_from(files, "/images/edits", {"model": model, "prompt": prompt, **options})


def vary(model: str, picture: Path, **options: Any) -> bytes:
    """Return another picture, as PNG, of what a picture shows; `options` and errors as `edit`."""
    return _drawn_from({"image": picture}, "/images/variations", {"model": model, **options})


def _drawn_from(files: Mapping[str, Path], path: str, wishes: Mapping[str, Any]) -> bytes:
    """Send a form, as the client's own `edit` does; its `create_variation` warns that OpenAI has none any more."""
    body = {name: str(value) for name, value in wishes.items() if value is not None}
    sent = [(name, (file.name, file.read_bytes())) for name, file in files.items()]
    form: Any = {"headers": {"Content-Type": "multipart/form-data"}}
    with _asking() as ours:
        answer: Any = ours.post(path, cast_to=object, body=body, files=sent, options=form)
    return _picture(body["model"], answer)


def _picture(model: str, answer: Mapping[str, Any]) -> bytes:
    """Return the first picture of an answer, after saying what of the request was not read."""
    _warn(answer)
    data = answer.get("data") or [{}]
    if not data[0].get("b64_json"):
        raise Unanswered(f"{model} answered without a picture")
    return base64.b64decode(data[0]["b64_json"])


def card(model: str) -> dict[str, Any]:
    """Return what /v1/models says of a model.

    Raises:
        Unanswered, NoGateway: as `paint`.
    """
    with _asking() as ours:
        return ours.models.retrieve(model).model_dump()


def speak(model: str, text: str, *, seed: int | None = None, **more: Any) -> bytes:
    """Return one sound as WAV, with its receipt; `more` are `seconds`, `temperature`, `speed` and `voice`.

    Raises:
        Unanswered, NoGateway: as `paint`.
    """
    wishes = {"model": model, "prompt": text, "seed": seed, **more}
    body = {name: value for name, value in wishes.items() if value is not None}
    with _asking() as ours:
        if body.keys() & {"speed", "voice"}:
            more = {name: body[name] for name in body if name not in {"model", "prompt", "voice"}}
            voice = body.get("voice", "default")
            spoken = ours.audio.speech.create(
                model=model, input=text, voice=voice, response_format="wav", extra_body=more
            )
            said = spoken.response.headers.get(WARNINGS, "[]")
            _warn({"warnings": parse_json(said, WARNINGS)})
            return spoken.content
        answer: Any = ours.post("/samples", cast_to=object, body=body)
    _warn(answer)
    return base64.b64decode(answer["data"][0]["b64"])


def await_job(
    route: str, model: str, prompt: str, told: Callable[[Mapping[str, Any]], None], **wishes: Any
) -> bytes:
    """Return what a job makes as a file, with its receipt; `told` hears how far it is, again and again.

    `route` is "/videos" or "/meshes", `wishes` are fields of the API: `output_format`, `seed`, `steps`, `guidance`,
    `seconds`. Whoever does not wait for the end cancels it.

    Raises:
        Unanswered, NoGateway: as `paint`; the job failed.
    """
    from openai import HttpxBinaryResponseContent

    asked = {"model": model, "prompt": prompt, **wishes}
    body = {name: value for name, value in asked.items() if value is not None}
    once: Any = {"headers": {"idempotency-key": uuid.uuid4().hex}}  # the client asks again itself
    with _asking() as ours:
        job: Any = ours.post(route, cast_to=object, body=body, options=once)
        place = f"{route}/{job['id']}"
        try:
            while job["status"] in {"queued", "in_progress"}:
                told(job)
                time.sleep(POLL_S)
                job = ours.get(place, cast_to=object)
        except KeyboardInterrupt:
            ours.delete(place, cast_to=object)
            raise
        told(job)
        if job["status"] != "completed":
            error = job["error"] or {"code": "unknown", "message": "it failed"}
            raise Unanswered(f"{job['id']}: {error['message']} ({error['code']})")
        content: bytes = ours.get(f"{place}/content", cast_to=HttpxBinaryResponseContent).content
        return content


def write(model: str, prompt: str, *, chats: bool, seed: int | None = None) -> Iterator[str]:
    """Yield one text as it is written: an answer where the model chats, else what goes on from the prompt.

    Raises:
        Unanswered, NoGateway: as `paint`.
    """
    with _asking() as ours:
        if chats:
            turn: Any = {"role": "user", "content": prompt}
            for said in ours.chat.completions.create(
                model=model, messages=[turn], stream=True, seed=seed
            ):
                _warn(said)
                yield from (one.delta.content or "" for one in said.choices)
        else:
            for wrote in ours.completions.create(
                model=model, prompt=prompt, stream=True, seed=seed
            ):
                _warn(wrote)
                yield from (one.text for one in wrote.choices)


def answer(
    model: str,
    prompt: str | Sequence[int],
    messages: Sequence[tuple[str, str]] | None = None,
    **rules: Any,
) -> bytes:
    """Return the JSON of one text with its receipt: of a chat turn where there are messages (role, text).

    `rules` are the request's other fields, such as `seed` and `temperature`; None leaves one out.

    Raises:
        Unanswered, NoGateway: as `paint`.
    """
    wishes: dict[str, Any] = {"model": model, **rules}
    if messages is None:
        path, wishes["prompt"] = "/completions", prompt
    else:
        path = "/chat/completions"
        wishes["messages"] = [{"role": role, "content": said} for role, said in messages]
    body = {name: value for name, value in wishes.items() if value is not None}
    with _asking() as ours:
        made: Any = ours.post(path, cast_to=object, body=body)
    _warn(made)
    return json.dumps(made, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")


def _warn(answer: Any) -> None:
    """Say what of a request the gateway did not read, beside what was asked for."""
    found = answer if isinstance(answer, dict) else answer.model_extra or {}
    for one in found.get("warnings") or ():
        aside.print(f"warning: {printable(one)}", style="yellow", soft_wrap=True)


@contextmanager
def _asking() -> Iterator["OpenAI"]:
    """Give a client of the settings' gateway, with its errors turned into ours, and close it."""
    from openai import APIConnectionError, APIError, OpenAI

    here = settings()
    key = here.api_key.get_secret_value()
    try:
        with OpenAI(base_url=here.gateway_url, api_key=key, timeout=120, max_retries=2) as ours:
            yield ours
    except APIConnectionError:
        raise NoGateway(f"no gateway at {here.gateway_url}: start it with `atelier up`") from None
    except APIError as error:
        raise Unanswered(_words(error)) from None


def _words(error: "APIError") -> str:
    """Return the gateway's own message, without the client's "Error code: 400" before it."""
    body = error.body
    return str(body["message"]) if isinstance(body, dict) and "message" in body else error.message


def paint_sheet(model: str, prompts: Sequence[str], path: Path) -> None:
    """Paint every prompt through the API and write one sheet of all of them."""
    import numpy as np
    import torch
    from PIL import Image

    from models.judges.gallery import gallery

    pictures = []
    for index, prompt in enumerate(prompts):
        image = Image.open(io.BytesIO(paint(model, prompt, seed=index))).convert("RGB")
        pictures.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
        console.print(f"  painted: {prompt}", style="dim")
    with atomic_write(path) as file:
        gallery(torch.stack(pictures), columns=4, labels=list(prompts)).save(file, format="PNG")
