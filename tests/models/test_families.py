"""What every family keeps: learn, repeat for a seed, round-trip through JSON and safetensors.

Causality by gradient and sums over all outcomes need a family's own tensors: its own tests have them.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import FAMILIES, JUDGES, build, configure, describe, trainable
from models.declared import declared, of
from models.family import Family
from models.outline import outline
from models.parts.rows import join, take
from models.request import Request
from tests.models.families_kit import batch_of, counted, made, prompts, request, shaken, tiny

SMALL = {"tiny", "chat"}  # presets that measure something in no time


@pytest.mark.parametrize("name", FAMILIES)
def test_training_lowers_the_loss(name: str) -> None:
    """Players that work against one another have no loss that falls: what they draw comes nearer to the pictures."""
    model = tiny(name)
    batch = batch_of(model)
    moves, several = made(model).kind == "clip", len(model.players) > 1
    longest = moves or (several and "sound" in batch)  # sounds pay for mels, too
    steps = 60 if longest else 50 if several else 30
    rate = 3e-3 if moves else 1e-2  # layers over time take no larger steps
    if model.counts:  # a mixture of both stripes is no structure to pixels that are independent
        batch = {key: rows[[0] * 15 + [1]] for key, rows in batch.items()}
        before = model(batch).total
        assert counted(model, batch)(batch).total < 0.8 * before
        return
    optimizers = [
        (
            player,
            torch.optim.Adam(
                model.player_parameters(player), lr=rate, betas=(0.5, 0.99), fused=True
            ),
        )
        for player in model.players
    ]
    alone = len(model.players) == 1
    before, losses = 0.0 if alone else distance(model, batch), []
    for _ in range(steps):
        for player, optimizer in optimizers:
            optimizer.zero_grad()
            found = model(batch, player)
            found.total.backward()
            torch.nn.utils.clip_grad_norm_(model.player_parameters(player), 1.0)  # as training does
            optimizer.step()
            if found.seen:
                model.follow(found.seen, torch.ones(()))
            losses.append(found.total.item())
    if alone:
        assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    else:
        assert distance(model, batch) < 0.8 * before


@pytest.mark.parametrize("name", [*FAMILIES, *JUDGES])
def test_a_class_declares_in_its_source_what_it_has(name: str) -> None:
    """Recipes are checked by the source, without torch."""
    assert declared(name) == of(trainable(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_measures_is_what_it_said_it_would(name: str) -> None:
    for preset in SMALL & trainable(name).presets.keys():
        model = trainable(name)(trainable(name).presets[preset]).eval()
        assert isinstance(model, Family)
        if model.counts:
            counted(model, batch_of(model))
        with torch.no_grad():
            assert tuple(model.measure(batch_of(model, 4))) == model.measured
        assert set(model.measured) <= set(model.measures)


@pytest.mark.parametrize("name", [*FAMILIES, *JUDGES])
def test_an_outline_of_every_preset_can_be_made_and_does_what_the_network_can(name: str) -> None:
    for preset, config in trainable(name).presets.items():
        outlined = outline(trainable(name), config)
        assert not [one for one in outlined.parameters() if one.device.type != "meta"]
        if preset == "tiny" and name in FAMILIES:
            assert isinstance(outlined, Family)
            assert outlined.capabilities == tiny(name).capabilities


def distance(model: Family, batch: Mapping[str, torch.Tensor]) -> float:
    """Return how far a drawn picture is from the nearest of the batch, a pixel, on average; of sound, its mels."""
    model.eval()
    if "sound" in batch:
        found = float(model.measure(batch)["mel_error"].mean())
        model.train()
        return found
    drawn = model.sample(request(model, tuple(range(64)))).flatten(1)
    model.train()
    return float(torch.cdist(drawn, batch["pixels"].flatten(1), p=1).min(1).values.mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_one_owner_and_gets_a_gradient(name: str) -> None:
    """Distributed training waits for ever on a parameter that the loss does not reach."""
    model = tiny(name)
    assert model.counts == (not list(model.parameters())) == bool(model.sums)
    if model.counts:
        return
    owned = [id(p) for player in model.players for p in model.player_parameters(player)]
    assert sorted(owned) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for player in model.players:
        model(batch_of(model), player).total.backward()
        assert all(p.grad is not None for p in model.player_parameters(player))


@pytest.mark.parametrize("name", [name for name in FAMILIES if trainable(name).counts])
@settings(max_examples=10, deadline=None)
@given(parts=st.integers(1, 16))
def test_sums_are_the_same_in_one_batch_or_in_many(name: str, parts: int) -> None:
    """So workers' sums can be added up: float64, and nothing but sums is kept of the rows."""
    whole, cut = (counted(tiny(name), batch_of(tiny(name)), count) for count in (1, parts))
    for names in whole.sums:
        assert all(whole.get_buffer(one).dtype == torch.float64 for one in names)
    torch.testing.assert_close(whole.state_dict(), cut.state_dict(), rtol=0, atol=1e-9)


def check_samples(model: Family, samples: torch.Tensor, count: int) -> None:
    """Check that samples are pictures, codes, latents or embeddings of some, sound or text, as the contract has it."""
    config, kind = model.config, made(model).kind
    assert len(samples) == count
    if kind == "codes":
        assert samples.dtype == torch.int64
        assert samples.shape[1:] == made(model).shape
        assert 0 <= samples.min() <= samples.max() < config.codes
        return
    if kind in {"embedding", "latent"}:
        assert samples.isfinite().all()
        assert samples.shape[1:] == made(model).shape
        return
    if kind == "mel":
        assert samples.isfinite().all()
        assert samples.shape[1] == config.mel.mels
        assert samples.min() >= config.mel.floor
        return
    if kind == "text":
        assert samples.dtype == torch.int64
        ended = samples < 0
        assert (ended[:, 1:] >= ended[:, :-1]).all(), "nothing is written after the end"
        assert samples.min() >= -1
        assert all(isinstance(model.text_of(row[row >= 0]), str) for row in samples)
        return
    least = 0 if kind in {"pixels", "clip", "volume"} else -1
    assert samples.isfinite().all()
    assert least <= samples.min() <= samples.max() <= 1
    if kind in {"pixels", "clip"}:
        picture = (config.channels, config.image_size, config.image_size)
        assert samples.shape[1:] == ((config.frames, *picture) if kind == "clip" else picture)
    elif kind == "volume":
        assert samples.shape[1:] == (4, *[config.resolution] * 3)
    else:
        assert samples.dim() == 2
        assert config.sample_rate > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_are_what_they_should_be_and_repeat_for_a_seed(name: str) -> None:
    """Of one seed, and of five: the least, the largest and a repeated one among them."""
    model = shaken(name)
    for seeds in ((2**32 + 1,), (0, 2**63 - 1, 7, 7, 1)):
        first, second = (model.sample(request(model, seeds)) for _ in range(2))
        check_samples(model, first, len(seeds))
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_gives_its_sample_alone_or_in_a_batch(name: str) -> None:
    """Matrix products round differently at another batch size, hence the tolerance: 1/40 level. Tokens are equal."""
    model, seeds = shaken(name), (3, 1, 4, 1, 5)
    asked = request(model, seeds)
    together = model.sample(asked)
    for row, seed in enumerate(seeds):
        one = dataclasses.replace(
            asked,
            seeds=(seed,),
            prompts=asked.prompts[row : row + 1],
            dialogues=asked.dialogues[row : row + 1],
            given={name: rows[row : row + 1] for name, rows in asked.given.items()},
        )
        alone, among = model.sample(one)[0], together[row]
        if model.capabilities.modality == "text":
            alone, among = alone[alone >= 0], among[among >= 0]
        if made(model).kind == "sound":  # silence follows what others are longer by
            assert not among[len(alone) :].any()
            among = among[: len(alone)]
        if made(model).kind == "mel":  # silence follows what others are longer by
            assert (among[:, alone.shape[1] :] == model.config.mel.floor).all()
            among = among[:, : alone.shape[1]]
        torch.testing.assert_close(among, alone, rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_model_takes_of_real_samples_is_what_it_can_be_tried_on(name: str) -> None:
    model = shaken(name)
    given = model.given_of(batch_of(model, 3))
    ports = {key: port for key, port in model.inputs.items() if port.kind != "text"}
    assert {key for key, port in ports.items() if not port.optional} <= given.keys() <= ports.keys()
    drawn = model.sample(dataclasses.replace(request(model, (1, 2, 3)), given=given))
    check_samples(model, drawn, 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_sampling_leaves_the_global_generator_alone(name: str) -> None:
    model = shaken(name)
    asked = request(model, (1, 2))
    before = torch.get_rng_state()
    model.sample(asked)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_restores_the_same_sampler(name: str, tmp_path: Path) -> None:
    chat = shaken(name, preset="chat") if "chat" in trainable(name).presets else None
    for trained in (shaken(name), reader(name), chat):
        if trained is None:
            continue
        own = {key: tensor.clone() for key, tensor in trained.state_dict().items()}  # some are tied
        safetensors.torch.save_file(own, tmp_path / "model.safetensors")
        document = json.loads(json.dumps(describe(trained)))
        restored = build(document)
        assert isinstance(restored, Family)
        assert restored.config == trained.config
        restored.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        models = (trained.eval(), restored.eval())
        before, after = (model.sample(request(model, (7, 8))) for model in models)
        torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_likelihood_is_given_where_it_is_declared(name: str) -> None:
    model = shaken(name)
    if model.capabilities.likelihood:
        torch.manual_seed(0)
        nats = model.log_prob(batch_of(model, 4))
        assert nats.shape == (4,)
        assert nats.isfinite().all()
        torch.manual_seed(0)
        *between, last = model.rating(batch_of(model, 4))
        assert set(between) <= {None}
        assert torch.equal(last, nats)
    else:
        with pytest.raises(NotImplementedError, match="declares no likelihood"):
            model.log_prob(batch_of(model, 4))


ASKED: Mapping[str, Any] = {
    "prompts": ("abc",),
    "prompt_tokens": ((10,),),
    "dialogues": ((("user", "abc"),),),
    "steps": 3,
    "guidance": 2.0,
    "seconds": 0.1,
    "max_tokens": 3,
    "temperature": 0.5,
    "top_k": 1,
    "top_p": 0.5,
    "logprobs": 0,
}
"""A value of every text and option of a Request that asks for something."""
NO_TEXT: Mapping[str, Any] = {"prompts": (), "prompt_tokens": (), "dialogues": ()}
"""A row is asked for by one of them."""


def reader(name: str) -> Family | None:
    """Return a tiny model that learned captions, or None where the family learns none."""
    config = dataclasses.asdict(trainable(name).presets["tiny"])
    if "vocabulary" not in config:
        return None
    reads = {"text": "caption"} if "text" in config else {}
    known = {"vocabulary": ("red", "green", "blue")}  # of either stripes: batches alternate
    model = trainable(name)(configure(name, "tiny", reads, known))
    assert isinstance(model, Family)
    return counted(model, batch_of(model)) if model.counts else model


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_that_is_asked_for_is_silently_ignored(name: str) -> None:
    """What a family has no use for is refused by name; a value that asks for nothing is not."""
    for model in filter(None, (shaken(name), reader(name))):
        able, kind = request(model, (1,)), model.capabilities
        reads = kind.condition == "text" and {"prompts"} | (
            {"dialogues"} if kind.chats else {"prompt_tokens"} if kind.modality == "text" else set()
        )
        for field in ASKED.keys() - set(model.takes) - (reads or set()):
            texts = {**NO_TEXT, field: ASKED[field]} if field in NO_TEXT else {}
            options = able.options if texts else {**able.options, field: ASKED[field]}
            with pytest.raises(ValueError, match=f"^{field}: this model .*; leave it out, got"):
                model.sample(dataclasses.replace(able, **texts, options=options))
        for field in {"guidance", "temperature", "top_p"} - set(model.takes):
            model.sample(dataclasses.replace(able, options={**able.options, field: 1}))
        with pytest.raises(ValueError, match=r"^clip: this model takes no such input"):
            model.sample(dataclasses.replace(able, given={"clip": torch.zeros(1, 3)}))
        with pytest.raises(ValueError, match=r"^eta: this model has none; leave it out, got 1"):
            model.sample(dataclasses.replace(able, options={**able.options, "eta": 1}))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_prompt_a_model_draws_of_all_captions_or_refuses(name: str) -> None:
    for model in (shaken(name), reader(name)):
        if model is None or model.capabilities.condition == "none":
            continue
        asked = dataclasses.replace(request(model, (1, 2)), prompts=(), dialogues=())
        if model.capabilities.unprompted:
            check_samples(model, model.sample(asked), 2)
            if "guidance" in model.takes and not asked.given:
                with pytest.raises(ValueError, match=r"^guidance: there is no prompt"):
                    model.sample(dataclasses.replace(asked, options={"guidance": 2.0}))
        else:
            with pytest.raises(ValueError, match="give one prompt a seed"):
                model.sample(asked)
        if "caption_drop" in {field.name for field in dataclasses.fields(model.config)}:
            without = {"caption_drop": 0.0, "guidance": 1.0}  # it never learned to go without
            deaf = type(model)(dataclasses.replace(model.config, **without))
            with pytest.raises(ValueError, match="give one prompt a seed"):
                deaf.sample(asked)
            for guidance in (0.0, 3.0):
                refused = f"guidance must be 1 where caption_drop is 0.*got {guidance}"
                with pytest.raises(ValueError, match=refused):
                    deaf.sample(
                        dataclasses.replace(request(model, (1, 2)), options={"guidance": guidance})
                    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_word_that_was_never_learned_is_refused_and_text_none_learns_no_words(name: str) -> None:
    model = reader(name)
    if model is None:
        return
    with pytest.raises(ValueError, match="unknown word 'four'"):
        model.sample(dataclasses.replace(request(model, (1,)), prompts=("four",)))
    if hasattr(model.config, "text"):
        deaf = type(model)(dataclasses.replace(model.config, text="none"))
        assert deaf.capabilities.condition == "none"
        assert deaf.encode(["anything"]) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_captions_that_are_missing_from_a_batch_are_named(name: str) -> None:
    model = reader(name)
    if model is None:
        return
    batch = {key: rows for key, rows in batch_of(model).items() if key != "tokens"}
    learns: list[Callable[[], object]] = [partial(model, batch, one) for one in model.players]
    if model.counts:
        learns = [partial(model.absorb, batch)]
    elif model.capabilities.likelihood:
        learns.append(partial(model.log_prob, batch))
    for learn in learns:
        with pytest.raises(ValueError, match="the batch needs tokens"):
            learn()


@pytest.mark.parametrize("name", FAMILIES)
def test_likelihoods_are_asked_for_in_one_way(name: str) -> None:
    """And what is drawn for one comes from the generator that is given, not from the global one."""
    for verb in ("log_prob", "rating"):
        ours, all_s = (inspect.signature(getattr(one, verb)) for one in (trainable(name), Family))
        assert ours.parameters.keys() == all_s.parameters.keys()
    model = shaken(name)
    if model.capabilities.likelihood:
        before, batch = torch.get_rng_state(), batch_of(model, 4)
        generators = (torch.Generator().manual_seed(5) for _ in range(2))
        first, second = (model.log_prob(batch, generator) for generator in generators)
        assert torch.equal(first, second)
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_model_measures_of_itself_is_finite_and_repeats(name: str) -> None:
    model = shaken(name)
    before = torch.get_rng_state()
    first, second = (model.measure(batch_of(model, 32)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert values.dim() == 1 < len(values), f"{key}: one number of all rows has no interval"
        assert values.isfinite().all(), key
        assert torch.equal(values, second[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_stepwise_families_have_the_whole_contract(name: str) -> None:
    """What goes step by step ends where `sample` does, whatever neighbours it had on the way."""
    model: Any = shaken(name)
    verbs = ("begin", "step", "done", "preview", "finish")
    if not model.capabilities.stepwise:
        assert not all(hasattr(model, verb) for verb in verbs)
        return
    asked = request(model, (3, 1, 4))
    rows, steps = model.begin(asked), 0
    assert all(len(tensor) == 3 for tensor in rows.values()), "rows join and part"
    while not model.done(rows).all():
        check_samples(model, model.preview(rows), 3)
        rows, steps = model.step(rows), steps + 1
    ends_itself = model.capabilities.modality == "text"
    assert model.steps_of(asked) == (1 if ends_itself else steps)
    finished = model.finish(rows)
    torch.testing.assert_close(finished, model.sample(asked), rtol=0, atol=1e-4)
    assert torch.equal(model.finish(model.step(rows)), finished), "what is done stays as it is"


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_join_in_mid_flight_end_as_they_do_alone(name: str) -> None:
    model: Any = shaken(name)
    if not model.capabilities.stepwise:
        return
    requests = [request(model, (seed,)) for seed in (3, 1)]
    early, late = (model.begin(asked) for asked in requests)
    rows = join([model.step(early), late])
    while not model.done(rows).all():
        rows = model.step(rows)
    for place, asked in enumerate(requests):
        ended, alone = model.finish(take(rows, [place])), model.sample(asked)
        torch.testing.assert_close(ended, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_drawing_in_parts_is_what_is_drawn_at_once(name: str) -> None:
    model = shaken(name)
    if not model.capabilities.stepwise and model.capabilities.modality != "text":
        asked = request(model, (3, 1, 4))
        *between, last = model.drawing(asked)
        assert between == [None] * (model.steps_of(asked) - 1)
        torch.testing.assert_close(last, model.sample(asked), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_given_where_they_are_declared(name: str) -> None:
    model = shaken(name)
    if not model.capabilities.embeds:
        with pytest.raises(NotImplementedError, match="declares no embeddings"):
            model.embed(["abc"])
        return
    one, other = prompts(model, 2)
    together = model.embed([one, f"{other} {one}", one])
    assert together.dim() == 2
    assert together.isfinite().all()
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(together[1], model.embed([f"{other} {one}"])[0], rtol=0, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompts_tokens_are_as_likely_as_log_prob_has_them_where_that_is_declared(
    name: str,
) -> None:
    model = shaken(name)
    if not model.capabilities.recalls:
        with pytest.raises(NotImplementedError, match="declares no recall"):
            model.recalled("abc")
        return
    found = model.recalled("cab abc")
    again = model.recalled(tuple(found["tokens"].tolist()))
    assert torch.equal(found["nats"], again["nats"])
    assert found["likeliest"].shape == found["likeliest_nats"].shape
    assert (found["likeliest_nats"][:, 0] >= found["nats"]).all()
    whole = model.log_prob(model.examples([(("text", "cab abc"),)])).sum()
    assert whole <= found["nats"].sum(), "that of the end comes to it"
    with pytest.raises(ValueError, match="shorten it"):
        model.recalled("abc " * 500)


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_codes_and_back_where_that_is_declared(name: str) -> None:
    """A picture has its codes alone or in a batch, and codes have one picture: nothing else passes between stages."""
    model = shaken(name)
    if not model.capabilities.tokenizes:
        with pytest.raises(NotImplementedError, match="declares no codes"):
            model.codes(torch.rand(1, 1, 8, 8))
        with pytest.raises(NotImplementedError, match="declares no codes"):
            model.painted(torch.zeros(1, 4, dtype=torch.int64))
        return
    pixels = batch_of(model)["pixels"]
    index = model.codes(pixels)
    assert index.dtype == torch.int64
    assert index.shape == (len(pixels), model.config.side**2)
    assert 0 <= index.min() <= index.max() < model.config.codes
    assert torch.equal(index[:1], model.codes(pixels[:1]))
    check_samples(model, model.painted(index), len(pixels))
    assert not torch.equal(model.painted(index[:1]), model.painted((index[:1] + 1) % 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_follow_how_often_each_place_had_each_code(name: str) -> None:
    model = shaken(name)
    if not model.capabilities.tokenizes:
        return
    counts = dict(model.named_buffers())
    (prior_PK,) = (buffer for key, buffer in counts.items() if key.endswith("places_PK"))
    index_P = torch.arange(len(prior_PK)) % model.config.codes
    prior_PK.zero_()[torch.arange(len(prior_PK)), index_P] = 1.0  # place p has code p
    expected = model.painted(index_P[None]).expand(2, -1, -1, -1)
    torch.testing.assert_close(model.sample(Request(seeds=(1, 2))), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation_moves_nothing(name: str) -> None:
    model = shaken(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for player in model.players:
        model(batch_of(model), player)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_who_chats_answers_a_dialogue_with_a_history(name: str) -> None:
    model = shaken(name)
    if not model.capabilities.chats:
        return
    history = (("system", "abc"), ("user", "abc"), ("assistant", "cba"), ("user", "bca"))
    asked = Request(seeds=(1,), dialogues=(history,), max_tokens=4)
    check_samples(model, model.sample(asked), 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_text_learns_from_records_and_refuses_others(name: str) -> None:
    model = tiny(name)
    if model.capabilities.modality != "text":
        with pytest.raises(NotImplementedError, match="learns no text"):
            model.examples([(("text", "abc"),)])
        return
    rows = batch_of(model)
    assert len({len(tensor) for tensor in rows.values()}) == 1
    again = batch_of(model)
    assert all(torch.equal(rows[key], again[key]) for key in rows), "a pure function of the records"
    with pytest.raises(ValueError, match=r"role|learn|nobody"):
        model.examples([(("nobody", "abc"), ("somebody", "abc"))])


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if "dropout" in declared(name).settings]
)
def test_dropout_is_of_training_alone(name: str) -> None:
    """What is drawn, measured or validated has none of it, and nor had older versions, which do not name it."""
    plain, dropping = tiny(name, dropout=0.0), tiny(name, dropout=0.5)
    with torch.no_grad():
        for model in (plain, dropping):
            for number, parameter in enumerate(model.parameters()):
                noise = torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(number)
                )
                parameter.add_(0.05 * noise)
    batch = batch_of(plain)

    def loss(model: Family) -> float:
        torch.manual_seed(1)
        return model(batch).total.item()

    assert loss(dropping) != loss(plain)
    assert loss(dropping.eval()) == loss(plain) == loss(plain.eval())
    document = describe(plain)
    if trainable(name).Config().dropout == 0:  # the field's own value
        del document["config"]["dropout"]
    older = build(document)
    assert isinstance(older, Family)
    older.load_state_dict(dropping.state_dict())
    first, second = (one.sample(request(one, (1, 2))) for one in (dropping, older.eval()))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_is_a_config_that_round_trips(name: str) -> None:
    cls = trainable(name)
    assert "tiny" in cls.presets
    for config in cls.presets.values():
        assert configure(name, "tiny", dataclasses.asdict(config), {}) == config


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown family 'vea'; did you mean 'vae'\?"):
        trainable("vea")


def test_an_unknown_preset_and_an_unknown_setting_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no preset 'huge'; choose one of tiny"):
        configure("ddpm", "huge", {}, {})
    with pytest.raises(ValueError, match=r"no setting 'widht'; did you mean 'widths'\?"):
        configure("ddpm", "tiny", {"widht": 1}, {})
    config = configure("ddpm", "tiny", {"steps": 3}, {"image_size": 16, "attributes": ()})
    assert (config.image_size, config.steps) == (16, 3)
