import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from promptsg.config import Config, PromptSGError
from promptsg.data import (
    CLIP_MEAN,
    CLIP_STD,
    HandDataset,
    PixelCache,
    PKSampler,
    Splits,
    batches,
    cache_folder,
    check_images,
    class_index,
    counted,
    data_hash,
    eval_transform,
    for_data,
    make_splits,
    read_11k,
    read_data,
    read_folders,
    read_hd,
    read_images,
    read_picture,
    train_transform,
)

COLUMNS = [
    "id",
    "age",
    "gender",
    "skinColor",
    "accessories",
    "nailPolish",
    "aspectOfHand",
    "imageName",
    "irregularities",
]


def jpeg(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level % 256, 80, 80)).save(path)


def write_11k(root, people=8, images=3, aspects=("dorsal right", "dorsal left")):
    rows = []
    for person in range(people):
        number = person if person < people // 2 else 1100 + person
        for aspect in aspects:
            for _ in range(images):
                name = f"Hand_{len(rows):07d}.jpg"
                jpeg(root / "Hands" / name, level=len(rows))
                rows.append([f"{number:07d} ", 30, "male", "dark", 0, 0, aspect, name, 0])
    pd.DataFrame(rows, columns=COLUMNS).to_csv(root / "HandInfo.csv", index=False)
    return root


def edit(root, change):
    file = root / "HandInfo.csv"
    table = pd.read_csv(file, dtype=str)
    change(table).to_csv(file, index=False)


@pytest.fixture
def root(tmp_path):
    return write_11k(tmp_path / "11k")


# --- the protocol's counts, from the published CSV
# identities/images: train, val, test; gallery_all = the test identities of all four aspects
PROTOCOL = {
    "dorsal_r": (72, 890, 71, 1042),
    "dorsal_l": (73, 735, 73, 1061),
    "palmar_r": (72, 905, 71, 988),
    "palmar_l": (76, 928, 75, 1023),
}


@pytest.fixture(scope="session")
def published():
    folder = os.environ.get("PROMPTSG_DATA")
    if not folder or not (Path(folder) / "11k/HandInfo.csv").exists():
        pytest.skip("PROMPTSG_DATA does not name a folder with 11k/HandInfo.csv")
    return read_11k(Path(folder) / "11k", missing="keep")


@pytest.mark.parametrize("aspect", PROTOCOL)
def test_published_counts(published, aspect):
    people, images, test_people, test_images = PROTOCOL[aspect]
    splits = make_splits(published, aspect, val="images")
    assert splits.counts.apply(tuple, axis=1).to_dict() == {
        "train": (people, images),
        "val": (people, people),
        "val_query": (people, people),
        "val_gallery": (people, people),
        "test": (test_people, test_images),
        "queries": (test_people, test_images - test_people),
        "galleries": (test_people, test_people),
        "galleries_all": (290, 290),
    }
    assert len(splits.queries) == len(splits.galleries) == len(splits.galleries_all) == 10


def test_real_images_are_read_and_counted(published):
    frame = read_11k(Path(os.environ["PROMPTSG_DATA"]) / "11k")
    assert len(frame) + frame.attrs["excluded"].get("image file missing", 0) == len(published)
    item = HandDataset(frame.head(1), eval_transform((224, 128)))[0]
    assert item["image"].shape == (3, 224, 128) and item["label"] == -1


# --- readers
def test_ids_are_stripped_and_sides_follow_the_aspect(root):
    edit(root, lambda t: t.assign(id=t.id.replace("0000003 ", "0001042 ")))
    frame = read_11k(root)
    assert not frame.pid.str.contains(" ").any()
    side = frame[frame.pid == "0001042"].groupby("aspect").side.first()
    # MBA-Net's thresholds differ by aspect
    assert dict(side) == {"dorsal_r": "train", "dorsal_l": "test"}


def test_accessories_and_missing_files_are_counted(root):
    edit(root, lambda t: t.assign(accessories=["1"] + ["0"] * (len(t) - 1)))
    (root / "Hands/Hand_0000005.jpg").unlink()
    frame = read_11k(root)
    assert frame.attrs["excluded"] == {
        "accessories worn": 1,
        "description (.csv)": 1,
        "image file missing": 1,
    }
    assert len(frame) == 46 and len(read_11k(root, missing="keep")) == 47
    with pytest.raises(PromptSGError, match="Hand_0000005.jpg"):
        read_11k(root, missing="error")


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.drop(columns="aspectOfHand"), "no column 'aspectOfHand'"),
        (lambda t: t.assign(id="x"), "id of Hand_0000000.jpg is 'x'"),
        (lambda t: t.assign(aspectOfHand="dorsal"), "unknown aspect: 'dorsal'"),
        (lambda t: t.assign(imageName="a.jpg"), "lists an image twice: 'a.jpg'"),
        (lambda t: t.assign(imageName=t.imageName + "x"), "none of the images"),
    ],
)
def test_a_bad_csv_is_one_sentence(root, change, words):
    edit(root, change)
    with pytest.raises(PromptSGError, match=words) as error:
        read_11k(root)
    assert "\n" not in str(error.value)


def test_hd(tmp_path):
    base = tmp_path / "Original Images"
    for name in (
        "1-501/1_1",
        "1-501/1_2",
        "1-501/447_1",
        "1-501/447_2",
        "1-501/448_1",
        "1-501/448_2",
        "1-501/600_1",
        "1-501/600_2",
        "502-712/448_1",
        "502-712/712_1",
        "502-712/712_2",
    ):
        jpeg(base / f"{name}.jpg")
    frame = read_hd(tmp_path)
    assert frame.groupby("side").pid.unique().map(set).to_dict() == {
        "train": {"1", "447"},
        "test": {"448", "600"},
        "extra": {"1448", "1712"},
    }
    splits = make_splits(frame, "hand", val="images")
    assert splits.counts.images.to_dict() == dict(
        train=2,
        val=2,
        val_query=2,
        val_gallery=2,
        test=4,
        queries=2,
        galleries=2,
        galleries_all=2 + 3,
    )
    jpeg(base / "1-501/noname.jpg")
    with pytest.raises(PromptSGError, match="noname.jpg"):
        read_hd(tmp_path)


def test_hd_published_counts():
    # MBA-Net counts 251/2156 + 251 train, 251/2243 test, 213 extra people.
    def people(start, count, images, side):
        sizes = np.full(count, images // count) + (np.arange(count) < images % count)
        return [
            (f"{start + n}:hand", f"{start + n}", side, f"{start + n}_{i}.jpg")
            for n, size in enumerate(sizes)
            for i in range(size)
        ]

    rows = (
        people(1, 251, 2156 + 251, "train")
        + people(448, 251, 2243, "test")
        + people(1502, 213, 1593 - 251, "extra")
    )
    frame = pd.DataFrame(rows, columns=["identity", "pid", "side", "image"]).assign(
        aspect="hand", path=range(len(rows))
    )
    counts = (
        make_splits(frame, "hand", n_splits=1, val="images").counts.apply(tuple, axis=1).to_dict()
    )
    assert (
        counts["train"] == (251, 2156)
        and counts["val"] == (251, 251)
        and counts["test"] == (251, 2243)
    )
    assert counts["queries"][1] == 1992 and counts["galleries_all"] == (464, 1593)


def test_folders_halve_the_people(tmp_path):
    for person in "abcdefghij":
        for n in range(3):
            jpeg(tmp_path / person / f"{n}.png")
    frame = read_folders(tmp_path)
    assert set(frame.pid) == set("abcdefghij") and set(frame.side) == {""}
    splits = make_splits(frame, "hand")
    assert splits.test.pid.nunique() == 5 and not set(splits.test.pid) & set(splits.train.pid)
    assert list(splits.galleries_all[0].image) == list(splits.galleries[0].image)
    with pytest.raises(PromptSGError, match="sub-folders"):
        read_folders(tmp_path / "a")


def folders(root, people, images=5):
    "One folder per person."
    for person in range(people):
        for n in range(images):
            jpeg(root / f"person {person}" / f"{n}.jpg", level=16 * person + n)
    return root


def test_a_folder_says_how_it_is_read_and_fits_the_config(root, tmp_path):
    eleven, own = read_data(root, "folders"), read_data(folders(tmp_path / "own", 2))
    config = Config(train_aspects=("dorsal_l",))
    assert set(eleven.aspect) == {"dorsal_r", "dorsal_l"} and for_data(config, eleven) == config
    assert set(own.aspect) == {"hand"} and for_data(config, own) == config.replace(
        dataset="folders", aspect="hand", train_aspects=()
    )
    # what was read, not what was said before
    assert for_data(config.replace(dataset="hd"), own).dataset == "folders"
    deep = own.copy()
    deep.attrs.update(dataset="folders", identity_level=2)
    assert (
        for_data(config, deep).identity_level == 2
        and for_data(config.replace(identity_level=3), own).identity_level is None
    )
    own.attrs = {}
    assert for_data(config.replace(dataset="hd", identity_level=3), own) == config.replace(
        dataset="folders", aspect="hand", train_aspects=(), identity_level=3
    )
    with pytest.raises(PromptSGError, match="the data folder .*nowhere does not exist"):
        read_data(tmp_path / "nowhere")


def test_one_picture_is_a_table_of_a_row(root, tmp_path):
    picture = root / "Hands" / "Hand_0000003.jpg"
    assert (
        list(read_images(picture).path) == list(read_picture(picture).path) == [str(picture)]
        and len(read_images(root)) == 48
    )
    for read in (read_picture, read_images):
        with pytest.raises(
            PromptSGError, match="the picture .*nope.jpg does not exist .looked for /"
        ):
            read(tmp_path / "nope.jpg")


# people in the data -> identities to train on, to validate on, to test on
@pytest.mark.parametrize(
    "people, sizes",
    [(6, (2, 1, 3)), (7, (2, 1, 4)), (8, (2, 2, 4)), (10, (3, 2, 5)), (60, (27, 3, 30))],
)
def test_few_people_leave_two_to_train_on(tmp_path, people, sizes):
    splits = make_splits(read_folders(folders(tmp_path, people)), "hand")
    assert (
        tuple(part.identity.nunique() for part in (splits.train, splits.val, splits.test)) == sizes
    )


def test_too_few_people_are_told_which_option_helps(tmp_path):
    frame = read_folders(folders(tmp_path, 4))
    with pytest.raises(PromptSGError, match="2 train identities .* --set val_type=images"):
        make_splits(frame, "hand")
    assert make_splits(frame, "hand", val="images").train.identity.nunique() == 2


# --- splits
def names(splits):
    return [
        list(part.image)
        for part in (
            splits.train,
            splits.val_query,
            splits.val_gallery,
            *splits.queries,
            *splits.galleries_all,
        )
    ]


def test_splits_depend_on_the_seed_and_not_on_the_order(root):
    frame = read_11k(root)
    splits = make_splits(frame, "dorsal_r")
    assert names(splits) == names(make_splits(frame.sample(frac=1, random_state=0), "dorsal_r"))
    assert names(splits) != names(make_splits(frame, "dorsal_r", seed=1))
    assert len({tuple(gallery.image) for gallery in splits.galleries}) > 1
    four = make_splits(frame, "dorsal_r", n_splits=4)
    assert [list(g.image) for g in four.galleries] == [list(g.image) for g in splits.galleries[:4]]


def test_each_split_divides_the_test_images(root):
    splits = make_splits(read_11k(root), "dorsal_r")
    for query, gallery in zip(splits.queries, splits.galleries):
        assert not gallery.identity.duplicated().any() and set(gallery.identity) == set(
            splits.test.identity
        )
        assert sorted([*query.image, *gallery.image]) == sorted(splits.test.image)


def test_galleries_all_holds_each_aspects_own_gallery(root):
    frame = read_11k(root)
    right, left = make_splits(frame, "dorsal_r"), make_splits(frame, "dorsal_l")
    for i in range(10):
        assert set(right.galleries_all[i].image) == {
            *right.galleries[i].image,
            *left.galleries[i].image,
        }


def test_validation_people_are_train_side_and_not_trained_on(root):
    splits = make_splits(read_11k(root), "dorsal_r", train_aspects=("dorsal_l",))
    assert splits.val.identity.nunique() == 2
    assert not set(splits.val.pid) & set(splits.train.pid) and not set(splits.test.pid) & set(
        splits.train.pid
    )
    assert set(splits.train.aspect) == {"dorsal_r", "dorsal_l"}
    assert len(splits.val_gallery) == 2 and len(splits.val_query) == len(splits.val) - 2


def test_images_for_validation_are_not_trained_on(root):
    splits = make_splits(read_11k(root), "dorsal_r", val="images")
    assert not set(splits.val.image) & set(splits.train.image)
    assert (
        set(splits.val.identity) == set(splits.train.identity) == set(splits.val_gallery.identity)
    )
    assert set(splits.val_gallery.image) <= set(splits.train.image)


def test_a_tested_person_is_never_trained_on_through_another_aspect(root):
    # dorsal_r: train; dorsal_l: test
    edit(root, lambda t: t.assign(id=t.id.replace("0000003 ", "0001042 ")))
    splits = make_splits(read_11k(root), "dorsal_l", val="images", train_aspects=("dorsal_r",))
    assert "0001042" in set(splits.test.pid) and "0001042" not in set(splits.train.pid)


def test_a_single_test_image_is_gallery_only_and_counted(root):
    frame = read_11k(root)
    gone = frame[(frame.pid == "0001104") & (frame.aspect == "dorsal_r")].index[:2]
    splits = make_splits(frame.drop(gone), "dorsal_r")
    assert splits.excluded["single test image (gallery only)"] == 1
    for query, gallery in zip(splits.queries, splits.galleries):
        assert "0001104" in set(gallery.pid) and "0001104" not in set(query.pid)


@pytest.mark.parametrize(
    "change, arguments, words",
    [
        (lambda f: f, dict(aspect="palmar_r"), "palmar_r"),
        (lambda f: f, dict(val="test"), "val='test'"),
        (lambda f: f, dict(train_aspects=("palmar_l",)), "palmar_l"),
        (
            lambda f: f.assign(side=["train", "test", "test"] * 16),
            {},
            "person 0000000 is on the train and the test side",
        ),
        (lambda f: f.assign(side=["", "test", "test"] * 16), {}, "some have none"),
        (lambda f: f.assign(side="train"), {}, "no test person"),
        (lambda f: f[(f.side == "train") | (f.index % 3 == 0)], {}, "no test identity"),
        (lambda f: f[(f.side == "test") | (f.pid == "0000000")], {}, "too few to hold out"),
    ],
)
def test_impossible_splits_are_one_sentence(root, change, arguments, words):
    with pytest.raises(PromptSGError, match=words):
        make_splits(change(read_11k(root)), **{"aspect": "dorsal_r", **arguments})


def test_splits_are_stored(root, tmp_path):
    frame = read_11k(root)
    splits = make_splits(frame, "dorsal_r", train_aspects=("dorsal_l",))
    splits.save(tmp_path / "splits.json")
    loaded = Splits.load(tmp_path / "splits.json", frame)
    assert names(loaded) == names(splits) and loaded.excluded == splits.excluded
    pd.testing.assert_frame_equal(loaded.train, splits.train)
    with pytest.raises(PromptSGError, match="Hand_"):
        Splits.load(tmp_path / "splits.json", frame[frame.aspect == "dorsal_l"])
    (tmp_path / "splits.json").write_text("{")
    with pytest.raises(PromptSGError, match="splits.json"):
        Splits.load(tmp_path / "splits.json", frame)


def test_data_hash_sees_content_and_not_order(root):
    frame = read_11k(root)
    assert data_hash(frame) == data_hash(frame[::-1]) != data_hash(frame[1:])
    before = data_hash(frame)
    Path(frame.path[0]).write_bytes(b"shorter")
    assert data_hash(frame) != before


# --- batches and images
def test_pk_batches():
    identities = ["a"] * 2 + ["b"] * 9 + ["c"] * 9 + ["d"] * 20
    sampler = PKSampler(identities, p=3, k=4, seed=5)
    assert len(sampler) == len(list(sampler)) == 40 // 12
    for batch in sampler:
        held = pd.Series([identities[row] for row in batch]).value_counts()
        assert len(held) == 3 and set(held) == {4}
        for identity in set(held.index) - {"a"}:
            rows = [row for row in batch if identities[row] == identity]
            assert len(set(rows)) == 4  # drawn without replacement where there are enough
    assert list(sampler) == list(PKSampler(identities, p=3, k=4, seed=5))
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    with pytest.raises(
        PromptSGError, match="5 identities cannot be drawn from the 4 .* batch_size=16"
    ):
        PKSampler(identities, p=5, k=4)


def test_transforms_share_their_normalisation():
    image = Image.new("RGB", (20, 30), (255, 0, 0))
    plain = eval_transform((8, 4))(image)
    assert plain.shape == (3, 8, 4) and plain.dtype == torch.float32
    assert torch.allclose(
        plain[:, 0, 0],
        torch.tensor(
            [(1 - 0.48145466) / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
        ),
    )
    # a crop of a plain image is that image
    assert torch.equal(plain, train_transform((8, 4), erase=0.0)(image))


def test_flip_is_off_by_default():
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    still = train_transform((8, 8), pad=0, erase=0.0)
    assert all(torch.equal(still(image), eval_transform((8, 8))(image)) for _ in range(8))
    assert torch.equal(
        train_transform((8, 8), pad=0, erase=0.0, flip=1.0)(image), still(image).flip(-1)
    )


@pytest.mark.parametrize(
    "settings, theirs",
    [
        (dict(pad=8, erase=0.0), [v2.RandomCrop((19, 17), padding=8, padding_mode="edge")]),
        (dict(pad=30, erase=0.0), [v2.RandomCrop((19, 17), padding=30, padding_mode="edge")]),
        (dict(pad=0, erase=0.7), [v2.RandomErasing(0.7)]),
    ],
)
def test_augmentation_is_torchvisions(settings, theirs):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (19, 17, 3), dtype=np.uint8))
    steps = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(CLIP_MEAN, CLIP_STD),
    ]
    for seed in range(30):
        torch.manual_seed(seed)
        ours = train_transform((19, 17), **settings)(image)
        torch.manual_seed(seed)
        torch.testing.assert_close(ours, v2.Compose([*steps, *theirs])(image), atol=2e-6, rtol=1e-5)


def test_dataset_items_and_damaged_files(root):
    frame = read_11k(root)
    labels = class_index(frame)
    data = HandDataset(frame, eval_transform((6, 8)), labels)
    assert (
        data[7]["label"] == labels[frame.identity[7]]
        and data[7]["index"] == 7
        and len(data) == len(frame)
    )
    with pytest.raises(PromptSGError, match="0001104:dorsal_l"):
        HandDataset(frame, eval_transform((6, 8)), class_index(frame[frame.side == "train"]))
    file = Path(frame.path[7])
    file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(PromptSGError, match=file.name):
        data[7]
    file.unlink()
    with pytest.raises(PromptSGError, match=f"{file.name} cannot be read: it is missing"):
        data[7]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_one_sentence(root, workers):
    frame = read_11k(root)
    Path(frame.path[0]).write_bytes(b"no image")
    loader = torch.utils.data.DataLoader(
        HandDataset(frame, eval_transform((6, 8))), batch_size=4, num_workers=workers
    )
    with pytest.raises(PromptSGError) as error:
        list(batches(loader))
    assert str(error.value).startswith(frame.path[0]) and "\n" not in str(error.value)


# --- decoded once
@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = [str(tmp_path / f"{n}.jpg") for n in range(4)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(path)
    return pd.DataFrame({"path": paths, "identity": list("aabb")})


def refuse(path):
    raise AssertionError(f"{path} was decoded again")


def test_a_crop_out_of_a_larger_image_is_a_part_of_it():
    image = torch.arange(3 * 12 * 10, dtype=torch.uint8).view(3, 12, 10)
    whole = eval_transform((12, 10))(image)
    parts = [whole[:, top : top + 8, left : left + 6] for top in range(5) for left in range(5)]
    cut = train_transform((8, 6), pad=0, erase=0.0, crop_from=(12, 10))
    crops = [cut(image) for _ in range(60)]
    places = {[torch.equal(crop, part) for part in parts].index(True) for crop in crops}
    assert len(places) > 10


@pytest.mark.parametrize(
    "transform", [eval_transform((24, 20)), train_transform((24, 20), flip=0.5, jitter=0.1)]
)
def test_cached_pixels_give_the_same_tensors_and_are_decoded_once(
    photos, tmp_path, monkeypatch, transform
):
    def tensors(pixels):
        torch.manual_seed(0)
        return torch.stack(
            [item["image"] for item in HandDataset(photos, transform, pixels=pixels)]
        )

    decoded = tensors(None)
    assert torch.equal(tensors(PixelCache((24, 20), tmp_path / "cache", progress=False)), decoded)
    monkeypatch.setattr("promptsg.data.load_image", refuse)
    assert torch.equal(tensors(PixelCache((24, 20), tmp_path / "cache", progress=False)), decoded)


def test_a_changed_image_or_size_is_never_stale(photos, tmp_path):
    add = lambda size: (
        cache := PixelCache(size, tmp_path / "cache", progress=False),
        cache.add(photos.path),
    )[0]
    path, before = photos.path[0], add((24, 20))
    assert before.load(path).shape == (3, 24, 20) and add((20, 24)).load(path).shape == (3, 20, 24)
    Image.new("RGB", (160, 120), (9, 9, 9)).save(path)
    assert add((24, 20)).load(path).max() < 20 < before.load(path).max()


def test_equal_images_share_a_file_and_new_ones_are_added(photos, tmp_path, monkeypatch):
    cache = PixelCache((8, 8), tmp_path / "cache", progress=False)
    Path(photos.path[1]).write_bytes(Path(photos.path[0]).read_bytes())
    cache.add(photos.path[:2])
    assert len(list(cache.folder.iterdir())) == 1
    cache.add(photos.path)
    assert len(list(cache.folder.iterdir())) == 3 and not list(cache.folder.glob(".promptsg-*"))
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" == PixelCache((8, 8)).folder.parent


def test_a_broken_image_or_cache_file_is_one_sentence_and_leaves_no_half_file(photos, tmp_path):
    cache = PixelCache((8, 8), tmp_path / "cache", progress=False)
    Path(photos.path[2]).write_bytes(b"no image")
    with pytest.raises(PromptSGError, match="2.jpg cannot be read: it is damaged"):
        HandDataset(photos, eval_transform((8, 8)), pixels=cache)
    with pytest.raises(PromptSGError, match="absent.jpg cannot be read"):
        cache.add(["absent.jpg"])
    assert all(np.load(file).shape == (3, 8, 8) for file in cache.folder.iterdir())


@pytest.mark.parametrize(
    "find",
    [
        lambda paths, cache: check_images(paths, progress=False),
        lambda paths, cache: cache.add(paths),
    ],
)
def test_all_unreadable_images_are_one_sentence(photos, tmp_path, find):
    cache = PixelCache((8, 8), tmp_path / "cache", progress=False)
    find(photos.path, cache)
    for path in photos.path:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])  # the header is there, the end is not
    with pytest.raises(
        PromptSGError, match=r"4 images cannot be read.*0.jpg, .*1.jpg, .*2.jpg and 1 more; restore"
    ) as error:
        find(photos.path, PixelCache((8, 8), tmp_path / "cache", progress=False))
    assert "3.jpg" not in str(error.value)
    with pytest.raises(PromptSGError, match="0.jpg cannot be read: it is damaged"):
        find(photos.path[:1], PixelCache((8, 8), tmp_path / "cache", progress=False))


def test_counted():
    assert [counted(n, "image") for n in (0, 1, 2)] == [
        "0 images",
        "1 image",
        "2 images",
    ] and counted(2, "person", "people") == "2 people"
