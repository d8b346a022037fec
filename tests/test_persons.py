"Persons: official sets, their protocol, the field's recipe, and the paper's table."

import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from promptsg.backbone import load_towers
from promptsg.checkpoints import load_run
from promptsg.config import Config, PromptSGError
from promptsg.data import PKSampler, camera_numbers, train_transform
from promptsg.embedding import Embedder, measure
from promptsg.evaluation import (
    Embeddings,
    Result,
    evaluate,
    notes,
    paired_difference,
    rankable,
    shown_gallery,
)
from promptsg.losses import supcon
from promptsg.metrics import evaluate_features
from promptsg.model import PromptSG
from promptsg.persons import PUBLISHED, cost_of_training, published_rows, reproduce, row_config
from promptsg.readers import OFFICIAL, for_data, read_data
from promptsg.splits import Splits, cross_splits, make_splits, official_splits
from promptsg.training import Trainer
from promptsg.versions import PERSONS, version, versions_of

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


def market(root, train=4, test=4, cameras=3, shots=2, distractors=3, junk=2, size=None):
    """A set in Market-1501's names: a person is a colour; `size` (width, height): pictures, else
    empty files."""
    rng = np.random.default_rng(0)

    def add(folder, name, colour=(0, 0, 0)):
        file = root / folder / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if size is None:
            file.touch()
        else:
            noise = rng.integers(0, 60, (size[1], size[0], 3))
            Image.fromarray((np.array(colour) * 190 + noise).astype(np.uint8)).save(file)

    colours = rng.random((train + test + 1, 3))
    for person in range(1, train + test + 1):
        for camera in range(1, cameras + 1):
            for shot in range(shots):
                folder = FOLDERS[0] if person <= train else FOLDERS[2]
                add(folder, f"{person:04d}_c{camera}s1_{shot:06d}_01", colours[person])
            if person > train:
                add("query", f"{person:04d}_c{camera}s1_{shot + 1:06d}_00", colours[person])
    for number in range(distractors):
        add(FOLDERS[2], f"0000_c{1 + number % cameras}s1_{number:06d}_01", rng.random(3))
    for number in range(junk):
        add(FOLDERS[2], f"-1_c1s1_{number:06d}_01")
    return root


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return market(tmp_path_factory.mktemp("market"), size=(32, 64))


@pytest.fixture(scope="module")
def frame(drawn):
    return read_data(drawn, "market1501")


def features_of(frame, noise=1.0, seed=0):
    "Embeddings in which an identity has a direction; nobody has none."
    rng = np.random.default_rng(seed)
    places, names = pd.factorize(frame.identity)
    rows = rng.normal(size=(len(names), 16))[places] + noise * rng.normal(size=(len(frame), 16))
    rows[frame.pid == "nobody"] = rng.normal(size=((frame.pid == "nobody").sum(), 16))
    unit = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    return Embeddings({path: row for row, path in enumerate(frame.path)}, unit)


# --- the protocol


def published_definition(distances, q_ids, g_ids, q_cams, g_cams, top=50):
    """The field's evaluation, written from its description: for each query the gallery in order of
    distance, less the images of its person by its camera; average precision is the mean, over right
    images, of the share of right ones so far; queries without a right image do not count."""
    precisions, curves = [], []
    for row in range(len(distances)):
        ranked = sorted(range(len(g_ids)), key=lambda place: distances[row, place])
        kept = [
            place
            for place in ranked
            if not (g_ids[place] == q_ids[row] and g_cams[place] == q_cams[row])
        ]
        right = [g_ids[place] == q_ids[row] for place in kept]
        if not any(right):
            continue
        found, sum_ = 0, 0.0
        for place, hit in enumerate(right, 1):
            found += hit
            sum_ += hit * found / place
        precisions.append(sum_ / found)
        first = right.index(True)
        curves.append([float(first < k) for k in range(1, top + 1)])
    return np.mean(precisions), np.mean(curves, 0)


def test_official_is_the_published_definition():
    """Random features with Market-like people, cameras, distractors and queries without a right
    image."""
    rng, people = np.random.default_rng(0), 30
    q_ids, g_ids = rng.integers(1, people, 60), rng.integers(0, people - 2, 400)
    q_cams, g_cams = rng.integers(0, 6, 60), rng.integers(0, 6, 400)
    centres = rng.normal(size=(people, 16))
    draw = lambda ids: centres[ids] * (ids > 0)[:, None] + 1.5 * rng.normal(size=(len(ids), 16))
    q, g = (
        torch.nn.functional.normalize(torch.from_numpy(draw(ids)).float(), dim=1)
        for ids in (q_ids, g_ids)
    )
    ours = evaluate_features(q, g, q_ids, g_ids, q_cams, g_cams)
    mean_ap, curve = published_definition(
        1 - (q.double() @ g.double().T).numpy(), q_ids, g_ids, q_cams, g_cams
    )
    assert ours["queries_without_match"] > 0
    assert abs(ours["mAP"] - mean_ap) < 1e-6
    assert np.abs(np.array(ours["cmc_curve"]) - curve[: len(ours["cmc_curve"])]).max() < 1e-6


def test_official_ranks_distractors_and_excludes_the_own_camera(frame):
    splits, found = official_splits(frame), features_of(frame)
    result = evaluate(found, splits, "official")
    query, gallery = splits.queries[0], splits.galleries_all[0]
    assert (gallery.pid == "nobody").sum() == 3 and not (query.pid == "nobody").any()
    q, g = found.of(query).double(), found.of(gallery).double()
    mean_ap, curve = published_definition(
        1 - (q @ g.T).numpy(),
        list(query.identity),
        list(gallery.identity),
        list(query.camera),
        list(gallery.camera),
    )
    assert result.per_split.mAP[0] == pytest.approx(mean_ap, abs=1e-6)
    assert result.per_split.rank1[0] == pytest.approx(curve[0]) and result.record["camera_filter"]
    # no distractors there
    assert result.per_split.mAP[0] < evaluate(found, splits, "clipfh").per_split.mAP[0]
    assert evaluate(found, splits, "official").record["same_galleries_as"] is None


def test_one_split_has_an_interval_over_people(frame, tmp_path):
    splits = official_splits(frame)
    result = evaluate(features_of(frame, 2.0), splits, "official")
    ends = result.interval("mAP")
    assert ends.units == splits.test.pid.nunique() and ends.low < ends.difference < ends.high
    assert ends.difference == pytest.approx(result.summary["mean"].mAP)
    assert any("95 % intervals over 4 people" in line for line in notes({"x": result}))
    worse = evaluate(features_of(frame, 9.0), splits, "official")
    assert paired_difference(worse, result).difference == pytest.approx(
        result.summary["mean"].mAP - worse.summary["mean"].mAP
    )
    result.save(tmp_path)
    assert Result.load(tmp_path).interval("mAP") == pytest.approx(ends)


def test_official_needs_data_with_roles(frame):
    plain = frame.drop(columns="role")
    plain.attrs = {}
    splits = make_splits(
        plain.assign(side=plain.side.replace("extra", "test")), "person", 1, val="none"
    )
    with pytest.raises(PromptSGError, match="names none"):
        evaluate(features_of(frame), splits, "official")
    with pytest.raises(PromptSGError, match="no official split"):
        official_splits(plain)


# --- splits


def test_all_train_people_are_used_once(frame, tmp_path):
    splits = official_splits(frame)
    assert (
        not len(splits.val)
        and not len(splits.val_query)
        and len(splits.train) == (frame.role == "train").sum()
    )
    assert set(splits.queries[0].role) == {"query"} and set(splits.galleries_all[0].role) == {
        "gallery"
    }
    assert not set(splits.train.pid) & set(splits.galleries_all[0].pid)
    splits.save(tmp_path / "splits.json")
    again = Splits.load(tmp_path / "splits.json", frame)
    for name in ("train", "val", "test"):
        assert getattr(again, name).image.tolist() == getattr(splits, name).image.tolist()
    assert again.galleries_all[0].equals(splits.galleries_all[0].reset_index(drop=True))


def test_another_official_set_is_measured_on_its_own_queries(frame):
    splits = cross_splits(frame, "person", 10)
    assert (
        len(splits.queries) == 1 and set(splits.test.role) == {"query", "gallery"} and splits.cross
    )
    assert splits.queries[0].image.tolist() == official_splits(frame).queries[0].image.tolist()


def test_ranked_lists_show_the_ranked_images(frame):
    splits = official_splits(frame)
    query, gallery = splits.queries[0].iloc[0], shown_gallery(splits)
    left = rankable(query, gallery)
    own = (gallery.identity == query.identity) & (gallery.camera == query.camera)
    assert (gallery.pid == "nobody").any() and own.sum() == 2 and len(left) == len(gallery) - 2
    assert not ((left.identity == query.identity) & (left.camera == query.camera)).any()


# --- the recipe


def test_instances_come_from_all_cameras():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(6), 20)
    # most by camera 1
    cameras = np.where(np.arange(120) % 20 < 15, "1", rng.choice(["2", "3", "4"], 120))
    seen = {name: [] for name in ("images", "cameras")}
    for name, given in (("images", None), ("cameras", cameras)):
        for batch in PKSampler(people, 3, 4, batches=8, cameras=given):
            assert len(set(batch)) == 12
            seen[name] += [len(set(cameras[batch[start : start + 4]])) for start in (0, 4, 8)]
    there = {len(set(cameras[people == person])) for person in range(6)}
    assert set(seen["cameras"]) <= {min(4, count) for count in there}
    assert np.mean(seen["images"]) < np.mean(seen["cameras"])


def test_images_of_a_small_person_are_repeated():
    sampler = PKSampler(["a", "a", "b"], 2, 4, cameras=["1", "2", "1"])
    (batch,) = list(sampler)
    assert sorted(batch) == [0, 0, 1, 1, 2, 2, 2, 2]


def test_augmentation_pads_with_black_and_erases_with_noise():
    image = torch.full((3, 40, 20), 200, dtype=torch.uint8)
    for fill, inside in (("edge", True), ("black", False)):
        transform = train_transform((40, 20), (0, 0, 0), (1, 1, 1), pad=10, erase=0, crop_fill=fill)
        torch.manual_seed(0)
        values = {
            round(value, 3) for one in range(6) for value in transform(image).unique().tolist()
        }
        assert (values == {round(200 / 255, 3)}) == inside and (0.0 in values) != inside
    for fill in ("mean", "noise"):
        transform = train_transform((40, 20), (0, 0, 0), (1, 1, 1), pad=0, erase=1, erase_fill=fill)
        torch.manual_seed(1)
        found = transform(image)
        changed = found[(found - 200 / 255).abs() > 1e-4]
        assert len(changed) and (len(changed.unique()) == 1) == (fill == "mean")
        assert fill == "mean" or changed.std() == pytest.approx(1, abs=0.3)


def test_overlapping_patches_cover_the_image():
    plain, dense = (
        load_towers("hand-vit-tiny", image_size=(64, 48), patch_stride=stride).backbone.eval()
        for stride in (None, 8)
    )
    assert plain.grid == (4, 3) and dense.grid == (7, 5)
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        seen, many = plain.visual.conv1(images), dense.visual.conv1(images)
        # every second is a plain patch
        assert torch.allclose(seen, many[:, :, ::2, ::2], atol=1e-5)
        assert dense(images).patches.shape[1] == 35 and dense(images).embedding.isfinite().all()
    with pytest.raises(PromptSGError, match="at most 16"):
        load_towers("hand-vit-tiny", patch_stride=17)


def test_a_resnets_last_stage_keeps_its_positions():
    towers = [
        load_towers("hand-rn-tiny", image_size=(128, 64), patch_stride=stride).backbone.eval()
        for stride in (None, 16)
    ]
    assert [tower.grid for tower in towers] == [(4, 2), (8, 4)]
    with torch.no_grad():
        assert towers[1](torch.randn(1, 3, 128, 64)).patches.shape[1] == 32
    with pytest.raises(PromptSGError, match="32, as it comes"):
        load_towers("hand-rn-tiny", patch_stride=8)


def cameras_config(**changes):
    return version("baseline", "hand-vit-tiny-person").replace(
        camera_embedding=3.0, cameras=("1", "2", "3"), **changes
    )


def test_the_camera_embedding_is_added_to_every_token():
    torch.manual_seed(0)
    model = PromptSG(cameras_config(), 4).eval()
    images = torch.randn(3, 3, *model.backbone.image_size)
    numbers = torch.tensor([0, 1, -1])
    with torch.no_grad():
        own, none = model.embed(images, cameras=numbers), model.embed(images)
        assert not torch.allclose(own[:2], none[:2], atol=1e-4)
        assert torch.allclose(own[2], none[2], atol=1e-6)  # not known: the mean of all
        same = model.embed(images[:1].expand(2, -1, -1, -1), cameras=numbers[:2])
        assert not torch.allclose(same[0], same[1], atol=1e-4)
        model.backbone.camera.zero_()
        plain = PromptSG(cameras_config().replace(camera_embedding=0.0), 4).eval()
        assert torch.allclose(model.embed(images, cameras=numbers), plain.embed(images), atol=1e-5)
    model.train()(
        images, labels=torch.tensor([0, 1, 1]), cameras=numbers
    ).embedding.sum().backward()
    assert model.backbone.camera.grad.abs().sum() > 0


def test_cameras_are_numbered_by_name_and_unknown_is_minus_one(frame):
    assert for_data(cameras_config().replace(cameras=()), frame).cameras == ("1", "2", "3")
    assert camera_numbers(pd.DataFrame({"camera": ["2", "9"]}), ("1", "2")) == [1, -1]
    assert camera_numbers(pd.DataFrame({"path": ["x"]}), ("1",)) == [-1]
    with pytest.raises(PromptSGError, match="none is named"):
        PromptSG(cameras_config().replace(cameras=()), 4)
    with pytest.raises(PromptSGError, match="vision transformer"):
        PromptSG(
            version("baseline", "hand-rn-tiny-person").replace(camera_embedding=1, cameras=("1",)),
            4,
        )


def test_supcon_has_two_halves():
    torch.manual_seed(0)
    image, text, labels = torch.randn(6, 8), torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2])
    halves = [
        supcon(image, text, labels, direction=way) for way in ("image_to_text", "text_to_image")
    ]
    assert sum(halves).item() == pytest.approx(supcon(image, text, labels).item(), rel=1e-6)
    assert halves[0] != halves[1] and supcon(
        text, image, labels, direction="text_to_image"
    ).item() == pytest.approx(halves[0].item())
    with pytest.raises(PromptSGError, match="direction"):
        supcon(image, text, labels, direction="up")


def test_without_interaction_the_image_embedding_ranks():
    torch.manual_seed(0)
    model = PromptSG(version("no_interaction", "hand-vit-tiny-person"), 4).train()
    output = model(torch.randn(4, 3, *model.backbone.image_size), labels=torch.arange(4))
    assert torch.equal(output.embedding, output.visual)
    supcon(output.visual, output.text, torch.tensor([0, 0, 1, 1])).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.inversion.parameters() if p.ndim > 1)
    assert output.attention is None  # no text looks anywhere, so there is no map


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(val_type="none"), "select: last"),
        (dict(camera_embedding=1, unfreeze_blocks=1, cache_frozen=True), "cache_frozen"),
        (dict(camera_embedding=1, precision="int8"), "int8"),
        (dict(fusion="none", text_queries="words"), "no words"),
        (dict(cameras=("1", "1")), "twice"),
        (dict(patch_stride=0), "patch_stride must be at least 1"),
        (dict(aspect="dog"), "person"),
        (dict(crop_fill="red"), "black"),
        (dict(dataset="market"), "market1501"),
    ],
)
def test_bad_fields_are_one_sentence(changes, words):
    with pytest.raises(PromptSGError, match=words):
        Config(**changes)


# --- versions, training, the table


def test_the_paper_on_persons_has_its_published_numbers():
    for tower in ("vitb16", "rn50"):
        c = version("paper", f"{tower}-person")
        assert (c.epochs, c.batch_size, c.instances, c.image_size) == (60, 64, 4, (256, 128))
        assert (c.lr_clip_visual, c.lr_modules, c.step_epochs, c.step_gamma) == (
            5e-6,
            5e-5,
            20,
            0.1,
        )
        assert (c.triplet_margin, c.supcon_loss_weight, c.triplet_states, c.weight_decay) == (
            0.3,
            0.5,
            3,
            0,
        )
        assert (c.model, c.val_type, c.select, c.num_splits, c.aspect_words) == (
            tower,
            "none",
            "last",
            1,
            "person",
        )


def test_ablations_differ_in_the_named_part():
    from promptsg.versions import difference

    paper = version("paper", "vitb16-person")
    changed = {
        name: set(difference(paper, version(name, "vitb16-person"))) - {"variant"}
        for name in PERSONS
    }
    assert changed["baseline"] == {"language"} and changed["no_interaction"] == {"fusion"}
    assert changed["no_text_to_image"] == changed["no_image_to_text"] == {"supcon_direction"}
    assert changed["one_cross"] == changed["one_self"] == {"transformer_layers"}
    assert changed["no_pseudo_token"] == {
        "use_composed_prompt",
        "eval_prompt",
        "supcon_loss_weight",
    }
    with pytest.raises(PromptSGError, match="v1"):
        version("v1", "vitb16-person")
    with pytest.raises(PromptSGError, match="one_cross"):
        version("one_cross", "vitb16")
    assert set(PERSONS) <= set(versions_of("rn50-person")) and set(PERSONS) & set(
        versions_of("rn50")
    ) == {"best"}


def test_prompts_name_the_sets_subject(frame):
    hands = for_data(Config(model="hand-vit-tiny"), frame)
    assert hands.prompt_template == "A photo of a {} {aspect}." and hands.aspect_words == "person"
    assert (hands.num_splits, hands.dataset, hands.train_aspects) == (1, "market1501", ())
    mine = for_data(Config(prompt_template="A {} pedestrian."), frame)
    assert mine.prompt_template == "A {} pedestrian."
    model = PromptSG(row_config("paper", small=True), 2)
    assert model.prompt.sentence.text == "A photo of a person."


def test_training_on_everybody_keeps_the_last_epoch_and_resumes(frame, tmp_path):
    changes = dict(epochs=2, batch_size=8, steps_per_epoch=2, patch_stride=12)
    changes |= dict(camera_embedding=1.0, instances_over="cameras")
    config = for_data(row_config("baseline", small=True, changes=changes), frame)
    splits = official_splits(frame)
    run = Trainer(config, splits, tmp_path / "run", progress=False).fit()
    history = pd.read_csv(run / "metrics.csv")
    assert history.val_mAP.isna().all() and history.epoch.tolist() == [1, 2]
    Trainer(config, splits, run, progress=False).fit(resume=True)
    model = load_run(run)
    assert model.config.cameras == ("1", "2", "3") and model.backbone.grid == (10, 5)
    result = measure(model, splits, ("official",), progress=False)[0]["official"]
    assert 0 < result.per_split.mAP[0] <= 1
    embeddings = Embedder(model, model.config, progress=False).embed(splits.test)
    again = Embedder(model, model.config.replace(cache_embeddings=False), progress=False).embed(
        splits.test
    )
    assert torch.allclose(embeddings.of(splits.test), again.of(splits.test), atol=1e-5)
    half = Trainer(config, splits, tmp_path / "half", progress=False)
    half.config = config.replace(epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train = Trainer._train_epoch

        def stopped(self, epoch):
            if epoch:
                raise KeyboardInterrupt
            return train(self, epoch)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_train_epoch", stopped)
            half.fit()
    Trainer(config, splits, tmp_path / "half", progress=False).fit(resume=True)
    one, two = (load_run(folder).state_dict() for folder in (run, tmp_path / "half"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_table_has_published_and_measured_results(drawn, tmp_path):
    table = reproduce(
        "market1501",
        drawn,
        tmp_path,
        names=["paper"],
        small=True,
        progress=False,
        changes=dict(batch_size=8, steps_per_epoch=1),
    )
    assert table.row.tolist() == ["paper", "paper, simplified prompt"]
    assert table["mAP published"].tolist() == [94.6, 94.1] and table["Rank-1 published"][0] == 97.0
    assert math.isnan(table["Rank-1 published"][1]) and (table.low <= table.mAP).all()
    assert (tmp_path / "paper" / "evaluation-official-simplified" / "result.json").is_file()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("checkpoint.safetensors")}
    again = reproduce(
        "market1501",
        drawn,
        tmp_path,
        names=["paper"],
        small=True,
        progress=False,
        changes=dict(batch_size=8, steps_per_epoch=1),
    )
    assert again.mAP.tolist() == table.mAP.tolist()
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_unknown_rows_are_one_sentence():
    assert all(
        row.version in versions_of(f"{tower}-person")
        for (_, tower), rows in PUBLISHED.items()
        for row in rows
    )
    assert {dataset for dataset, _ in PUBLISHED} <= set(OFFICIAL)
    for arguments, words in (
        (("veri776",), "has no row"),
        (("market1501", "vitl14"), "has no row"),
        (("market1501", "rn50", ["one_cross"]), "no row 'one_cross'"),
    ):
        with pytest.raises(PromptSGError, match=words):
            published_rows(*arguments)


def test_paper_needs_more_operations_than_its_baseline():
    table = cost_of_training("market1501", small=True, batch=8, rounds=1)
    count = lambda name: float(
        table["where"][(table.row == name) & table["where"].str.contains("operations")]
        .iloc[0]
        .split(": ")[1]
        .split()[0]
    )
    assert count("paper") > count("baseline") > 1e12 and "60 epochs" in table


# --- chosen on train people


def test_cross_validation_follows_the_official_protocol(frame):
    from promptsg.tune import cross_validate, train_people

    people = train_people(official_splits(frame)).sort_values("image", ignore_index=True)
    rows = features_of(people, 0.5).of(people).double()
    found = cross_validate(
        (rows @ rows.T).float(), people, "person", 16, folds=2, protocol="official"
    )
    from promptsg.heads import Whitening
    from promptsg.tune import person_folds

    for fold, value in enumerate(found):
        held = person_folds(people, 2) == fold
        whitening = Whitening(16)
        whitening.fit(
            rows[~held].float(), torch.from_numpy(pd.factorize(people.identity[~held])[0])
        )
        seen = torch.nn.functional.normalize(whitening(rows[held].float()), dim=1).double()
        own = people[held]
        mean_ap, _ = published_definition(
            1 - (seen @ seen.T).numpy(), *[list(own.identity)] * 2, *[list(own.camera)] * 2
        )
        assert value == pytest.approx(mean_ap, abs=1e-3)


def test_parts_are_added_while_they_help(frame):
    from promptsg.persons import choose_parts

    people = frame[frame.role == "train"].reset_index(drop=True)
    good, bad = (
        features_of(people, 0.3).of(people),
        torch.nn.functional.normalize(
            torch.randn(len(people), 16, generator=torch.Generator().manual_seed(0)), dim=1
        ),
    )
    table = choose_parts({"noise": bad, "good": good}, people, folds=2, progress=False)
    assert table.parts.tolist() == ["good", "good, noise"] and table.kept.tolist() == [True, False]
    started = choose_parts(
        {"noise": bad, "good": good}, people, ("noise",), folds=2, progress=False
    )
    assert started.parts.tolist()[:2] == ["noise", "noise, good"] and started.kept[1]


def test_words_may_stand_alone():
    config = version("best", "hand-vit-tiny-person").replace(patch_grid=(1, 1), pool_beside=False)
    alone, beside = (PromptSG(one, 2).eval() for one in (config, config.replace(pool_beside=True)))
    images = torch.randn(2, 3, *alone.backbone.image_size)
    with torch.no_grad():
        one, both = (model(images).embedding for model in (alone, beside))
    assert alone.parts == ("person", "clothes", "backpack") and one.shape[1] == 3 * 128
    assert torch.allclose(one, both[:, 2 * 128 :], atol=1e-6)
    with pytest.raises(PromptSGError, match="pool_beside"):
        Config(pool_beside=False)


def test_free_table_has_each_embedding_plain_and_whitened(frame):
    from promptsg.persons import free_table

    config = for_data(version("training_free", "hand-vit-tiny-person"), frame)
    table = free_table(
        config,
        official_splits(frame),
        {"class token": ["class token"], "person": ["person"], "no word": ["no word"]},
        ["person", "dog"],
        progress=False,
    )
    assert (
        table.whitened.tolist() == [False] * 3 + [True] * 3
        and (table["mAP low"] <= table["mAP"]).all()
    )
