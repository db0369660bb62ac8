"""What is told of a recipe before anything is started."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.catalog import known
from flows.checking import check, check_for
from flows.evaluating.measured import Able, measured, refusals, unmeasured
from flows.recipe import Evaluation, Gate
from flows.recipes.loader import RecipeError, load
from infra.documents import read_yaml
from infra.settings import settings

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "flows/recipes"
AT_HAND = (
    "shapes",
    "digits",
    "scenes",
    "numbers",
    "chat",
    "vowels",
    "moving-64",
)  # data that are made up


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RECIPES.glob("*.yaml")) if load(path).data.name in AT_HAND],
    ids=lambda path: path.stem,
)
def test_every_recipe_in_the_box_measures_what_its_gate_asks_for(path: Path) -> None:
    recipe = load(path)
    found = check(recipe, ROOT)
    assert not [name for name in recipe.gate.metrics if found[name]]


def test_a_recipe_may_wire_its_stages_itself() -> None:
    """An upsampler that reads the text, too, is no chain; the plain chain is what a recipe has that says nothing."""
    wires = "{base: {text: request.text}, upsampler: {low: base.pixels, text: request.text}}"
    asked = ["stages.upsampler.config.text=caption", f"pipeline={{generate: {wires}}}"]
    check(load(RECIPES / "shapes.yaml", asked), ROOT)


def test_clip_may_stand_beside_what_draws_and_says_how_well_prompts_are_met() -> None:
    wires = "{base: {text: request.text}, upsampler: {low: base.pixels}}"
    clip = [
        "stages.clip.family=clip",
        "stages.clip.image_size=16",
        "stages.clip.training.steps=300",
    ]
    found = check(load(RECIPES / "shapes.yaml", [*clip, f"pipeline={{generate: {wires}}}"]), ROOT)
    assert not [found[f"clip_{name}"] for name in ("score", "caption_r1") if found[f"clip_{name}"]]
    assert "base_score" not in found


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (
            "shapes",
            "gate.metrics.memorized.at_most=0.2",
            "gate.metrics: nobody measures 'memorized'; did you mean 'memorised'?",
        ),
        ("shapes", "gate.metrics.base_gain_db.at_least=1", "measures 'base_gain_db'; did you mean"),
        (
            "shapes-clip",
            "gate.metrics.memorised.at_most=0.2",
            "memorised will not be measured: embeddings come out of the recipe, and nothing is",
        ),
        (
            "shapes-clip",
            "judge={family: attribute-judge, training: {steps: 9}}",
            "judge: it sees pictures, clips or meshes, and embedding comes out: leave the judge out",
        ),
        ("shapes", "judge=null", "alignment_trained will not be measured: the recipe has no judge"),
        (
            "shapes",
            "stages.base.training.optimizers.modle.learning_rate=1",
            "stages.base.training.optimizers: ddpm has no player 'modle'; did you mean 'model'?",
        ),
        ("shapes", "stages.base.family=dpm", "stages.base.family: unknown family 'dpm'; did you"),
        (
            "shapes",
            "stages.base.family=attribute-judge",
            "unknown family 'attribute-judge'; choose",
        ),
        ("shapes", "stages.base.preset=bas", "no preset 'bas'; did you mean 'base'?"),
        ("shapes", "stages.base.config.widht=8", "no setting 'widht'; did you mean 'widths'?"),
        ("shapes", "stages.base.config.widths=[7]", "stages.base: widths must be multiples of 8"),
        ("shapes", "stages.base.image_size=12", "image_size 12 does not divide the dataset's 32"),
        (
            "shapes",
            "stages.base.image_size=8",
            "stages: upsampler takes pixels 3x16x16 as low, but base.pixels is pixels 3x8x8",
        ),
        (
            "shapes",
            "stages.upsampler.training.accumulate=3",
            "stages.upsampler: batch_size 16 must be a multiple of",
        ),
        (
            "digits-gan",
            "control={set: {stages.gan.training.accumulate: 3}, refused_by: [memorised]}",
            "control: stages.gan: batch_size 64 must be a multiple of 3",
        ),
        (
            "shapes",
            "judge.image_size=16",
            "judge.image_size must be 32, the size that comes out of upsampler, got 16",
        ),
        (
            "shapes-dalle",
            "judge.image_size=null",
            "judge.image_size must be 16, the size that comes out of vqvae, got 32",
        ),
        (
            "moving-shapes",
            "judge.image_size=16",
            "judge.image_size must be 64, the size that comes out of frames, got 16",
        ),
        (
            "shapes",
            "pipeline={edit: {base: {text: request.text}}}",
            "pipeline: it needs the entrance generate, got ['edit']",
        ),
        (
            "shapes",
            "pipeline={generate: {bas: {}}}",
            "pipeline.generate: there is no stage 'bas'; did you mean 'base'?",
        ),
        (
            "shapes",
            "pipeline={generate: {base: {}}}",
            "pipeline: the stage upsampler is trained and in no entrance",
        ),
        (
            "shapes",
            "pipeline={generate: {upsampler: {low: base.pixels}, base: {}}}",
            "upsampler takes pixels 3x16x16 as low from base.pixels, but there is nothing yet",
        ),
        (
            "shapes",
            "pipeline={generate: {base: {}, upsampler: {low: request.low, image: base.pixels}}}",
            "upsampler takes pixels? 3x32x32 as image, but base.pixels is pixels 3x16x16",
        ),
        (
            "shapes",
            "pipeline={generate: {base: {}, upsampler: {low: request.low}}}",
            "stages: what base gives goes nowhere",
        ),
        ("shapes", "pipeline={varied: {base: {}}}", "pipeline.varied"),
        (
            "shapes-unclip",
            "pipeline.vary={clip/text: {text: request.text}, decoder: {embedding: clip/text.embedding},"
            " upsampler: {low: decoder.pixels}}",
            "vary: no stage takes request.image, which is asked there",
        ),
        (
            "shapes-unclip",
            "pipeline.vary.decoder={embedding: clip/pixels.embedding, mask: request.mask}",
            "vary: there is no request.mask, only request.text, request.image",
        ),
        (
            "shapes-unclip",
            "pipeline.generate.decoder={embedding: clip/text.embedding, image: prior.embedding}",
            "decoder takes pixels? 3x16x16 as image, but prior.embedding is embedding 64 of",
        ),
        ("shapes", "data.name=shape", "data.name: unknown dataset 'shape'; choose one of shapes"),
        ("shapes", "stages.base.family=gpt", "stages.base: gpt learns no image, and shapes is"),
        (
            "shapes",
            "control.set={stages.base.config.x: 1}",
            "control: stages.base.config: ddpm has",
        ),
        ("digits-lda", "stages.lda.training.steps=3", "set it to 1"),
        ("digits-gan", "stages.gan.training.cuda_graph=true", "gan has 2 players"),
        ("digits-gan", "stages.gan.steps=4", "stages.gan.steps: this model draws in one go"),
        ("shapes", "stages.upsampler.guidance=2", "stages.upsampler.guidance: this model has none"),
        ("shapes", "stages.base.steps=5000", "stages.base.steps must be between 1 and 1000, got"),
        (
            "shapes",
            "stages.base.options={negative_prompt: 3}",
            "stages.base.negative_prompt must be a text, got '3'",
        ),
        (
            "shapes",
            "stages.upsampler.options={negative_prompt: red}",
            "stages.upsampler.negative_prompt: this model has none",
        ),
        (
            "shapes-captioned",
            "stages.upsampler.options={negative_prompt: red}",
            "stages.upsampler.negative_prompt: guidance leads away from it, and there is none",
        ),
        (
            "shapes",
            "stages.base.options={strength: 0.5}",
            "stages.base.strength: it is of a change to a picture",
        ),
        (
            "moving-shapes",
            "stages.decoder.options={frame_rate: 4.0}",
            "stages.decoder.frame_rate: this model learned clips of 8 to 16 frames a second, got 4",
        ),
        (
            "spoken-units",
            "stages.speech.options={speed: fast}",
            "stages.speech.speed must be a number, got 'fast'",
        ),
        ("spoken-units", "stages.speech.options={speed: 9}", "speech.speed must be between 0.25"),
        (
            "vowels-wavenet",
            "stages.wavenet.top_k=3",
            "stages.wavenet.top_k: this model draws every",
        ),
        ("chat-gpt", "stages.gpt.seconds=1", "stages.gpt.seconds: this model makes no sound"),
        ("digits-vae", "stages.vae.config.binarize=none", "measures 'vae_nats'"),
        ("vowels-wavenet", "stages.wavenet.config.stacks=0", "stages.wavenet: stacks must be at"),
        ("chat-gpt", "stages.gpt.config.learns=documents", "nobody measures 'gpt_exact_match'"),
        (
            "shapes",
            "stages.base.training.augment.flip=0.5",
            "stages.base: training.augment.flip: captions of shapes say 'left', which mirrored is the"
            " other side; set config.text: none, which learns no captions, or leave it out",
        ),
        (
            "digits-pixelcnn",
            "stages.digits.training.augment.flip=0.5",
            "training.augment.flip: a mirrored 'eight' of digits is another sign, or none; leave it",
        ),
        (
            "chat-gpt",
            "stages.gpt.training.augment.flip=0.5",
            "training.augment: only pictures are changed, and chat is text; leave it out",
        ),
        (
            "fsdd-speech",
            "data.name=vowels",
            "stages.acoustic: matcha learns speech, texts and who says them, and vowels is audio: prepare",
        ),
        ("digits-lda", "stages.lda.training.augment.flip=0.5", "lda counts every picture as it is"),
        (
            "digits-ddpm",
            "stages.ddpm.training.augment.edm=0.1",
            "training.augment.edm: ddpm cannot be told how a picture was changed",
        ),
        (
            "shapes-vqvae",
            "try_prompts=[a red circle]",
            "try_prompts: no stage of this recipe reads text; leave them out",
        ),
        (
            "digits-edm",
            "stages.edm.config.augmented=true",
            "training.augment.edm: config.augmented follows from it; leave that out",
        ),
    ],
)
def test_what_would_fail_later_is_told_in_a_line_that_names_the_field(
    recipe: str, override: str, message: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        check(load(RECIPES / f"{recipe}.yaml", [override]), ROOT)
    assert message in str(refused.value)


def test_embeddings_that_another_stage_makes_of_captions_are_judged_by_nobody() -> None:
    wires = "{clip/text: {text: request.text}, prior: {text: request.text, text_embedding: clip/text.embedding}}"
    prior = load(RECIPES / "shapes-unclip.yaml").model_copy(
        update={"pipeline": {"generate": yaml.safe_load(wires)}, "judge": None, "control": ()}
    )
    stages = {name: stage for name, stage in prior.stages.items() if name in {"clip", "prior"}}
    alone = prior.model_copy(update={"stages": stages, "gate": Gate()})
    with pytest.raises(RecipeError, match="embeddings come out of prior, and can be judged of one"):
        check(alone, ROOT)


def test_a_step_of_speech_has_no_one_shape_for_a_graph() -> None:
    changes = ["data.name=spoken", "stages.acoustic.training.cuda_graph=true"]
    with pytest.raises(RecipeError, match="cuda_graph holds a step of one shape, and rows of spee"):
        check(load(RECIPES / "fsdd-speech.yaml", changes), ROOT)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("digits-edm", ["stages.edm.training.augment.edm=0.12"]),
        (
            "shapes",
            ["stages.upsampler.training.augment.flip=0.5", "stages.upsampler.config.text=none"],
        ),
    ],
)
def test_pictures_are_changed_where_nothing_said_of_them_becomes_untrue(
    recipe: str, changes: list[str]
) -> None:
    assert check(load(RECIPES / f"{recipe}.yaml", changes), ROOT)


def test_every_reason_is_told_at_once() -> None:
    changes = ["data.name=nothing", "stages.base.preset=bas", "stages.upsampler.family=gann"]
    with pytest.raises(RecipeError) as refused:
        check(load(RECIPES / "shapes.yaml", changes), ROOT)
    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
        "data.name",
        "stages.base.preset",
        "stages.upsampler.family",
    ]


def test_what_families_and_data_declare_is_checked_without_torch() -> None:
    """Importing torch costs more than two seconds on a slow machine."""
    code = f"""
import sys
from pathlib import Path
from flows.checking import check
from flows.recipes.loader import RecipeError, load
try:
    check(load(Path({str(RECIPES / "shapes.yaml")!r}), ["gate.metrics.a.at_most=1"]), Path({str(ROOT)!r}))
except RecipeError as error:
    print(error, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("gate.metrics: nobody measures 'a'; choose one of alignment,")
    assert done.stdout.endswith(" False\n")


def test_a_recipe_that_passed_is_known_again_without_torch(tmp_path: Path) -> None:
    """The first check reaches torch for the networks' sizes, and no other heavy tool; the next one not even that."""
    code = """
import sys
from flows.__main__ import app
app(["check", "flows/recipes/shapes.yaml", *sys.argv[1:]], standalone_mode=False)
heavy = {"torch", "ray", "mlflow", "prefect", "sqlalchemy", "great_expectations", "dvc"}
print(sorted(heavy & set(sys.modules)))
"""

    def reached(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "ATELIER_HOME": str(tmp_path)},
        )  # fmt: skip
        assert not done.returncode, done.stderr
        return done.stdout.splitlines()[-1]

    assert reached() == "['torch']"
    assert reached() == "[]"


def test_a_check_is_not_remembered_once_its_recipe_has_changed() -> None:
    first = load(RECIPES / "digits-vae.yaml")
    found = check(first, ROOT)
    assert check(first, ROOT) == found
    changed = load(RECIPES / "digits-vae.yaml", ["stages.vae.config.binarize=none"])
    with pytest.raises(RecipeError):
        check(changed, ROOT)


def test_a_check_is_not_remembered_once_the_judges_own_data_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "state"))
    settings.cache_clear()
    document = read_yaml(ROOT / "params.yaml")
    wanted = load(RECIPES / "shapes.yaml", ["judge.data={name: shapes-seven}"])

    def told() -> None:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
        check(wanted, tmp_path)

    try:
        told()
        del document["datasets"]["shapes-seven"]
        with pytest.raises(RecipeError, match=r"judge\.data\.name: unknown dataset 'shapes-seven'"):
            told()
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def test_a_recipe_is_checked_where_nothing_may_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "file" / "state"))
    settings.cache_clear()
    try:
        assert check(load(RECIPES / "digits-vae.yaml"), ROOT)["vae_nats"] == ""
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def pictures(rows: int, **attributes: list[str]) -> dict[str, Any]:
    return {
        "name": "flowers",
        "modality": "image",
        "attributes": attributes,
        "held_out": [],
        "splits": {"test": {"rows": rows}},
    }


def test_a_small_test_split_says_little() -> None:
    stages = {"edm": Able(measures=("bits_per_dim",), upscales=False, tokenizes=False)}
    few = measured(pictures(7), stages, judged=False, prompted=True, seeds=1)
    [line] = refusals(["memorised", "edm_nats"], few)
    assert line.endswith("the test split of flowers has 7 pictures, and it needs 20")
    enough = measured(pictures(20), stages, judged=False, prompted=True, seeds=1)
    assert refusals(["memorised", "edm_nats", "edm_bits_per_dim"], enough) == []


def test_few_drawn_pictures_say_little_too() -> None:
    captions = ["rose", "tulip", "daisy"]
    data = {**pictures(40, caption=captions), "captions": captions, "held_out": ["daisy"]}
    few = unmeasured(data, Evaluation(), prompted=True)
    assert few["coverage"].startswith("2 samples are drawn, and it needs 20")
    assert (few["alignment_trained"], few["alignment_held_out"]) == ("", "")
    each = {**data, "captions": [f"flower {number}" for number in range(40)]}
    assert unmeasured(each, Evaluation(), prompted=True)["spread"].endswith("have one caption")
    enough = Evaluation(seeds=tuple(range(10)))
    assert not any(unmeasured(data, enough, prompted=True).values())
    first = unmeasured(data, Evaluation(samples=1), prompted=True)
    assert first["alignment_held_out"].startswith("none of the 1 captions")
    assert unmeasured(data, Evaluation(samples=10), prompted=False)["recall"].startswith("10 samp")
    assert unmeasured(pictures(40), Evaluation(), prompted=True) == {}, "not prepared"


def test_alignment_needs_captions_that_are_classes_and_a_judge() -> None:
    stages = {"ddpm": Able(measures=(), likelihood=False, upscales=False, tokenizes=False)}

    def said(data: dict[str, Any], judged: bool, prompted: bool | None = True) -> str:
        found = measured(data, stages, judged=judged, prompted=prompted, seeds=1)
        return " ".join(refusals(["alignment"], found))

    classed = pictures(40, caption=["rose", "tulip"])
    assert said(pictures(40), True).endswith("the captions of flowers are no classes")
    assert said(classed, False).endswith("the recipe has no judge")
    assert said(classed, True, prompted=False).endswith("the first stage reads no captions")
    assert said(classed, True) == ""


@pytest.mark.parametrize(
    ("recipe", "sizes", "message"),
    [
        ("shapes-latent", ["32x32", "40x24", "24x40"], ""),
        ("shapes-dvae", ["32x32", "40x24"], "dvae learns pictures of one size, and shapes has"),
        ("shapes-clip", ["32x32", "40x24"], "take ddpm, or latent-diffusion with kl-autoencoder"),
        ("shapes", ["32x32", "40x24"], "stages.upsampler: low_size belongs to squares, got 16"),
        ("shapes-latent", ["36x28"], "stages.latent: a side of size 36x28 must be a multiple of 2"),
    ],
)
def test_who_learns_one_size_alone_refuses_pictures_of_several(
    recipe: str, sizes: list[str], message: str
) -> None:
    data = {**known("shapes", ROOT), "sizes": sizes}
    asked = load(RECIPES / f"{recipe}.yaml")
    if not message:
        assert "autoencoder_psnr" in check_for(asked, data)
        return
    with pytest.raises(RecipeError, match=re.escape(message)):
        check_for(asked, data)
