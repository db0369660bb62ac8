"""`atelier generate` against a gateway that answers what a test has put into it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from flows.cli.client import NoGateway, Unanswered, speak
from flows.cli.request_verbs import generate
from infra.receipts.receipts import read
from infra.settings import settings
from tests.services.clips_kit import publish_clips
from tests.services.conftest import Workshop, network
from tests.services.meshes_kit import publish_meshes
from tests.services.served_kit import listening, with_toys
from tests.services.text_kit import gpt
from tests.services.toys import Voice

ABLE: dict[str, dict[str, Any]] = {
    "prose": {"modality": "text", "abilities": ["completions"]},
    "chat": {"modality": "text", "abilities": ["completions", "chat"]},
    "voice": {"modality": "audio", "abilities": ["speech"]},
    "pairs": {"modality": "embedding", "abilities": ["embeddings"]},
}
PIECES = ("once", " upon", " a [time]\n")


def sse(*documents: Any) -> bytes:
    lines = [f"data: {json.dumps(one)}\n\n" for one in documents]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


@pytest.fixture
def asked(private_home: Path) -> Iterator[list[Any]]:
    """What a gateway was asked: (path, body)."""
    found: list[Any] = []

    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which keeps a connection until the client closes it

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            if name in ABLE:
                self.answer({"id": name, "object": "model", **ABLE[name]})
            else:
                error = {"message": "no such model", "type": "", "param": None, "code": None}
                self.answer({"error": error}, 404)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.append((self.path, body))
            if self.path.endswith("/chat/completions"):
                deltas = [{"role": "assistant", "content": ""}, *({"content": p} for p in PIECES)]
                chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
                self.answer(sse(*chunks))
            elif self.path.endswith("/completions"):
                self.answer(sse(*({"choices": [{"index": 0, "text": p}]} for p in PIECES)))
            else:
                self.answer({"data": [{"b64": base64.b64encode(b"RIFF").decode()}]})

        def answer(self, content: Any, status: int = 200) -> None:
            streams = isinstance(content, bytes)
            body = content if streams else json.dumps(content).encode()
            kind = "text/event-stream" if streams else "application/json"
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", settings().gateway_port), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["prose", "chat"])
def test_text_is_printed_as_it_is_and_written_where_asked(
    asked: list[Any], name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    generate(name, "tell me", tmp_path / "text.txt", seed=3)
    assert capsys.readouterr().out == "".join(PIECES) + "\n"
    assert (tmp_path / "text.txt").read_text() == "".join(PIECES)
    [(path, body)] = asked
    assert path.endswith("/chat/completions") == (name == "chat")
    assert (body["seed"], body["stream"]) == (3, True)


def test_a_sound_is_written_as_a_wav(asked: list[Any], tmp_path: Path) -> None:
    generate("voice", "two", tmp_path / "two.wav", seed=3, seconds=0.5)
    assert (tmp_path / "two.wav").read_bytes() == b"RIFF"
    body = {"model": "voice", "prompt": "two", "seed": 3, "seconds": 0.5}
    assert asked == [("/v1/samples", body)]
    generate("voice", "two", tmp_path / "two.wav", voice="nicolas")
    [_, (path, body)] = asked
    assert (path, body["voice"], body["input"]) == ("/v1/audio/speech", "nicolas", "two")
    with pytest.raises(typer.BadParameter, match="voice makes audio: say where"):
        generate("voice", "two")


@pytest.mark.parametrize(
    ("name", "file", "given", "message"),
    [
        ("prose", None, {"steps": 3}, "prose makes text: it takes no --steps"),
        ("chat", None, {"seconds": 3.0}, "chat makes text: it takes no --seconds"),
        ("voice", "a.wav", {"guidance": 2.0}, "voice makes audio: it takes no --guidance"),
        ("voice", "a.wav", {"size": "40x24"}, "voice makes audio: it takes no --size"),
        ("prose", None, {"size": "40x24"}, "prose makes text: it takes no --size"),
        ("prose", None, {"voice": "nicolas"}, "prose makes text: it takes no --voice"),
        ("voice", "a.mp3", {}, r"a\.mp3: this is written as \.wav"),
    ],
)
def test_what_a_model_has_no_use_for_is_refused(
    asked: list[Any],
    name: str,
    file: str | None,
    given: dict[str, Any],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        generate(name, "two", tmp_path / file if file else None, **given)
    assert not asked


def test_who_only_embeds_is_to_be_asked_for_embeddings(asked: list[Any], tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"pairs makes nothing .* ask /v1/embeddings"):
        generate("pairs", "two", tmp_path / "two.png")
    assert not asked


@pytest.mark.parametrize(
    ("name", "file"), [("prose", None), ("chat", None), ("voice", "made.wav"), ("no", None)]
)
@pytest.mark.usefixtures("asked")
def test_no_connection_is_left_to_the_garbage_collector(
    name: str, file: str | None, tmp_path: Path
) -> None:
    with nullcontext() if name in ABLE else pytest.raises(Unanswered):
        generate(name, "two", tmp_path / file if file else None)
    open_ones = psutil.Process().net_connections("tcp")
    port = settings().gateway_port
    assert not [one for one in open_ones if one.raddr and one.raddr.port == port]


@pytest.fixture
def reads_on(private_home: Path, tmp_path: Path) -> Iterator[None]:
    """A gateway at the settings' port that reads on where a word is unknown."""
    workshop = Workshop(tmp_path)
    workshop.cache.mkdir()
    workshop.promote(workshop.publish_pipeline("shapes", network("base"), network("upscaler")))
    with with_toys():
        workshop.publish_alone("signs", gpt(), max_tokens=4)
        workshop.publish_alone("talker", gpt("dialogues"), max_tokens=4)
        workshop.publish_alone("voice", Voice(Voice.presets["tiny"]), seconds=0.1)
        stage = workshop.stage(unknown_words="map")
        with listening(workshop.gateway(stage), settings().gateway_port):
            yield
    stage.close()


@pytest.mark.parametrize(
    ("name", "prompt", "file", "unread"),
    [
        ("shapes", "a smal red circle", "made.png", "smal"),
        ("voice", "low hum", "made.wav", "hum"),
        ("signs", "bad Z", None, "Z"),
        ("signs", "bad Z", "made.json", "Z"),
        ("talker", "bad Z", None, "Z"),
        ("talker", "bad Z", "made.json", "Z"),
    ],
)
@pytest.mark.usefixtures("reads_on")
def test_what_the_model_did_not_read_is_said_beside_what_it_made(
    name: str,
    prompt: str,
    file: str | None,
    unread: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generate(name, prompt, tmp_path / file if file else None, seed=1)
    told = capsys.readouterr()
    assert told.err == f"warning: never learned, and not read: '{unread}'\n"
    assert "warning" not in told.out
    if file == "made.wav":
        speak(name, prompt, seed=1, speed=2)
        assert capsys.readouterr().err == told.err
    again = tmp_path / (file or "again.txt")
    generate(name, prompt.replace(unread, "").strip(), again, seed=1)
    assert capsys.readouterr().err == ""


def test_clips_and_meshes_are_awaited_with_their_stages_and_written_as_their_names_say(
    private_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop = Workshop(tmp_path / "workshop")
    workshop.cache.mkdir(parents=True)
    with with_toys():
        publish_clips(workshop)
        publish_meshes(workshop)
        stage = workshop.stage()
        app = workshop.worked(workshop.gateway(stage), stage)
        with listening(app, settings().gateway_port):
            for model, name, kind in (
                ("moving", "clip.mp4", b"ftyp"),
                ("moving", "clip.gif", b"GIF8"),
                ("moving", "clip.webp", b"WEBP"),
                ("balls", "ball.glb", b"glTF"),
                ("balls", "ball.obj", b"# atelier"),
            ):
                generate(model, "a red", tmp_path / name, seed=1)
                assert kind in (tmp_path / name).read_bytes()[:12]
                assert read(tmp_path / name).seed == 1
                told = capsys.readouterr()
                assert "base is done, " in told.err
                assert "atelier verify" in told.out
            with pytest.raises(typer.BadParameter, match=r"clip.avi: this is written as .mp4"):
                generate("moving", "a red circle", tmp_path / "clip.avi")
            with pytest.raises(Unanswered, match=r"seconds: moving makes 6 frames"):
                generate("moving", "a red circle", tmp_path / "clip.mp4", seconds=4)
            with pytest.raises(
                Unanswered, match=r"what was drawn has no surface .* \(mesh_empty\)"
            ):
                generate("balls", "nothing", tmp_path / "ball.glb")
            with pytest.raises(typer.BadParameter, match="balls makes mesh: it takes no --seconds"):
                generate("balls", "a red", tmp_path / "ball.glb", seconds=4)
    stage.close()


def test_the_gateway_s_own_words_are_told(asked: list[Any]) -> None:
    with pytest.raises(Unanswered, match="no such model"):
        generate("nothing", "two")


def test_a_gateway_that_is_not_there_is_said_to_be(private_home: Path) -> None:
    with pytest.raises(NoGateway, match="atelier up"):
        generate("prose", "two")
