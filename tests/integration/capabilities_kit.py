"""Tiny models of every kind, published and put in production beside the served shapes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from flows.evaluating.pipeline import MODALITIES, abilities, ports_of
from infra.storage import seal
from models import describe
from models.autoregressive.nade import NADE
from models.autoregressive.pixelcnn import PixelCNN
from models.autoregressive.wavenet import WaveNet
from models.family import Family
from models.language.bert import BERT
from models.language.gpt import GPT
from tests.integration.serving_kit import House

DIGITS = ("zero", "one", "two")


def served() -> dict[str, Family]:
    """The models by the names of their endpoints, the same at every call."""
    torch.manual_seed(7)
    pixelcnn = dataclasses.replace(
        PixelCNN.presets["tiny"], vocabulary=DIGITS, max_words=1, channels=1
    )
    chat = dataclasses.replace(GPT.presets["tiny"], learns="dialogues", context=64)
    voice = dataclasses.replace(WaveNet.presets["tiny"], vocabulary=DIGITS, max_words=1)
    made: dict[str, Family] = {
        "able-digits": PixelCNN(pixelcnn),
        "able-bits": NADE(NADE.presets["tiny"]),
        "able-prose": GPT(dataclasses.replace(GPT.presets["tiny"], context=64)),
        "able-chat": GPT(chat),
        "able-words": BERT(BERT.presets["tiny"]),
        "able-voice": WaveNet(voice),
    }
    with torch.no_grad():
        for model in made.values():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return {name: model.eval() for name, model in made.items()}


def publish_all(house: House, folder: Path) -> dict[str, Family]:
    """Publish each as a pipeline of one stage and move the ledger; replicas load it when it is first asked for."""
    models = served()
    for name, model in models.items():
        _publish(house, folder, name, model)
    return models


def _publish(house: House, folder: Path, name: str, model: Family) -> None:
    from safetensors.torch import save_file

    making = folder / f"{name}-base"
    making.mkdir()
    config = describe(model)
    (making / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), making / "model.safetensors")
    seal(making, {"kind": "model", "name": f"{name}.base"})
    stage = house.registry.publish(f"{name}.base", making, key=f"{name}-base", tags={})
    [made] = model.outputs.values()
    pictures = made.kind == "pixels"
    document: dict[str, Any] = {
        "format": 2,
        "endpoint": name,
        "modality": MODALITIES[made.kind],
        "abilities": list(abilities(model)),
        "stages": [
            {
                "stage": "base",
                "name": stage.name,
                "version": stage.number,
                "sha256": stage.digest,
                "family": config["family"],
                **ports_of(model),
            }
        ],
        "vocabulary": list(getattr(model.config, "vocabulary", ())),
        "image_size": [made.shape[2], made.shape[1]] if pictures else None,
        "sample_rate": int(made.space.removesuffix(" Hz")) if made.kind == "sound" else None,
    }
    making = folder / name
    making.mkdir()
    (making / "pipeline.json").write_text(json.dumps(document))
    seal(making, {"kind": "pipeline", "name": name})
    version = house.registry.publish(name, making, key=f"{name}-pipeline", tags={})
    house.ledger.transition(
        name=name,
        stage="production",
        to_version=version.number,
        to_digest=version.digest,
        expected_epoch=0,
        key=f"{name}/0",
        actor="test",
    )
