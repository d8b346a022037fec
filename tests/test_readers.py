import copy
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptsg.config import PromptSGError
from promptsg.readers import (
    DRAWN,
    OFFICIAL,
    data_hash,
    find_same,
    left_out_lines,
    person_number,
    read_11k,
    read_data,
    read_folders,
    read_images,
    read_mbanet,
    read_official,
    read_picture,
    read_table,
    reading_summary,
    walk,
)
from promptsg.splits import make_splits, official_splits

HEAD = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"
GOES = settings(
    max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def put(root, *names, text=None):
    "Files below `root`; each name's text differs unless it is given."
    for name in names:
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / name).write_text(name if text is None else text)
    return Path(root)


def hand_info(root, rows, head=HEAD, files=True):
    "HandInfo.csv with (id, image) or (id, image, accessories) rows, and the images."
    lines = [
        f"{pid},30,male,dark,{(*worn, 0)[0]},0,dorsal right,{image},0" for pid, image, *worn in rows
    ]
    put(root, "HandInfo.csv", text="\n".join([head, *lines]) + "\n")
    return put(root, *(f"Hands/{image}" for _, image, *_ in rows if files))


def refused(words, read, *arguments):
    "The call's `PromptSGError` is one line, has the words, and is returned."
    with pytest.raises(PromptSGError) as error:
        read(*arguments)
    text = str(error.value)
    assert words in text and "\n" not in text and "\udcff" not in text, text
    return text


def there(root):
    "How many entries below `root` are no folders, links to folders included: not by `walk`."
    return sum(
        len(files) + sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for place, folders, files in os.walk(root)
    )


def accounted(frame):
    "Files used and files left out: what the reasons count that do not speak of rows."
    return len(frame) + sum(
        number
        for reason, number in frame.attrs["excluded"].items()
        if not reason.endswith("image file missing")
    )


# --- one person, one id
def test_two_spellings_of_an_id_are_one_person_and_the_splits_are_those_of_seven_digits(tmp_path):
    people = [f"{n:07d}" for n in (0, 2, 30, 559, 1049, 1051, 1100, 1120, 20000, 300000)]
    rows = [(pid, f"{pid}_{i}.jpg") for pid in people for i in range(3)]
    digits = read_11k(hand_info(tmp_path / "digits", rows))
    short = read_11k(hand_info(tmp_path / "short", [(str(int(pid)), image) for pid, image in rows]))
    mixed = read_11k(
        hand_info(
            tmp_path / "mixed",
            [(f" {int(pid):04d} " if i % 2 else pid, image) for i, (pid, image) in enumerate(rows)],
        )
    )
    for other in (short, mixed):
        pd.testing.assert_frame_equal(digits.drop(columns="path"), other.drop(columns="path"))
        for one, two in zip(
            make_splits(digits, "dorsal_r", 3).galleries,
            make_splits(other, "dorsal_r", 3).galleries,
        ):
            assert list(one.image) == list(two.image)
    assert sorted(digits.pid.unique()) == people


@pytest.mark.parametrize(
    "pid", ["1.0", "1e3", "9" * 30, "12345678", "-1", "", "٣", "+5", "0x1", "nan", "1_0", "²"]
)
def test_an_id_that_is_no_number_of_seven_digits_is_refused_with_its_row(tmp_path, pid):
    root = hand_info(tmp_path, [("1", "a.jpg"), (pid, "b.jpg")])
    text = refused("id of b.jpg is ", read_11k, root)
    assert (
        "seven digits" in text and len(text) < 300 + len(str(root)) and person_number(pid) is None
    )


@pytest.mark.parametrize(
    "text, words",
    [
        (HEAD, "has no row"),
        ("", "no column 'id'"),
        (HEAD + ",id\n" + "1," * 9 + "1", "two columns 'id'"),
        (HEAD + "\n1,2", "line 2 has 2 cells, the first line has 9"),
        (HEAD + "\n" + "1," * 9 + "1", "line 2 has 10 cells"),
        (HEAD + "\n1,x,m,d,0,0,dorsal right,a.jpg,0", "age of a.jpg is 'x'"),
        (HEAD + "\n1,1e999,m,d,0,0,dorsal right,a.jpg,0", "age of a.jpg is '1e999'"),
        (HEAD + '\n1,2,m,d,0,0,dorsal right,"a\nb.jpg",0', "impossible file"),
        (HEAD + "\n1,2,m,d,0,0,dorsal right,../../etc/passwd,0", "none of the images"),
        ("\0\0", "no column 'id'"),
        (HEAD.replace(",", ";"), "with commas"),
        (HEAD + '\n"' + "x" * 200_000, "cannot be read"),
    ],
)
def test_a_hostile_hand_info_is_one_sentence(tmp_path, text, words):
    put(tmp_path, "HandInfo.csv", text=text)
    refused(words, read_11k, tmp_path)


def test_a_hand_info_that_is_not_utf8_or_no_file_is_one_sentence(tmp_path):
    (tmp_path / "HandInfo.csv").write_bytes(b"id\xff")
    refused("it is not UTF-8", read_11k, tmp_path)
    (tmp_path / "other" / "HandInfo.csv").mkdir(parents=True)
    refused("it is no file", read_data, tmp_path / "other")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/HandInfo.csv")  # opening it would wait for ever
    refused("it is no file", read_data, tmp_path / "pipe")


def test_a_hand_info_with_a_mark_at_its_begin_reads_the_same(tmp_path):
    root = hand_info(tmp_path, [("1", "a.jpg")])
    (root / "HandInfo.csv").write_bytes(b"\xef\xbb\xbf" + (root / "HandInfo.csv").read_bytes())
    assert list(read_11k(root).pid) == ["0000001"]


# --- every file counts
def test_11k_counts_every_file_by_its_reason(tmp_path):
    root = hand_info(tmp_path, [("1", "a.jpg"), ("1", "b.jpg", 1), ("2", "c.jpg")])
    hand_info_with_missing = (root / "HandInfo.csv").read_text() + "".join(
        f"3,30,male,dark,{worn},0,dorsal right,{image},0\n"
        for worn, image in ((0, "gone.jpg"), (1, "gone too.jpg"), (0, "d.heic"))
    )
    put(root, "HandInfo.csv", text=hand_info_with_missing)
    put(
        root,
        "Hands/x.jpg",
        "Hands/._a.jpg",
        "Hands/d.cr2",
        "Hands/.ipynb_checkpoints/a-checkpoint.jpg",
        "Hands/Thumbs.db",
        "__MACOSX/Hands/._b.jpg",
        "captions.csv",
        "a.jpg",
        "note.txt",
        "LICENSE",
        "Hands/sub/a.jpg",
        "odd." + "x" * 30,
    )
    frame = read_11k(root)
    assert list(frame.image) == ["a.jpg", "c.jpg"] and accounted(frame) == there(root)
    excluded = frame.attrs["excluded"]
    raw = next(reason for reason in excluded if reason.endswith("(.cr2)"))
    heic = {"image file missing": 2}  # d.heic is not there either
    assert excluded == {
        "accessories worn": 1,
        "accessories worn, image file missing": 1,
        "description (.csv)": 2,
        "hidden": 4,
        "not a picture (.txt)": 1,
        "not a picture (no ending)": 1,
        "not a picture (another ending)": 1,
        "not in Hands/": 1,
        "not named in HandInfo.csv": 2,
        raw: 1,
        **heic,
    }
    assert len(frame) + excluded["accessories worn"] + 1 + 2 == 6  # the rows of the CSV


def test_hidden_files_and_broken_links_are_no_person(tmp_path):
    root = put(
        tmp_path,
        "anna/1.jpg",
        "anna/2.jpg",
        "ben/1.jpg",
        "anna/.ipynb_checkpoints/1-checkpoint.jpg",
        "anna/._1.jpg",
        ".trash/9.jpg",
        "__MACOSX/anna/._1.jpg",
        "Thumbs.db",
        "anna/notes.txt",
        "top.jpg",
        "list.csv",
    )
    os.symlink("nowhere.jpg", root / "ben/2.jpg")
    os.symlink("3.jpg", root / "ben/3.jpg")  # leads to itself
    os.mkfifo(root / "ben/4.jpg")
    (root / "ben/5.jpg").mkdir()
    frame = read_folders(root)
    assert list(frame.image) == ["anna/1.jpg", "anna/2.jpg", "ben/1.jpg"] and set(frame.pid) == {
        "anna",
        "ben",
    }
    assert frame.attrs["excluded"] == {
        "hidden": 5,
        "not a picture (.txt)": 1,
        "not in a folder of an identity": 1,
        "description (.csv)": 1,
        "broken link": 2,
        "pipe, socket or device": 1,
    }
    assert accounted(frame) == there(root)


def test_links_to_folders_are_followed_once_and_never_in_a_circle(tmp_path):
    root, store = tmp_path / "data", put(tmp_path / "store", "ben/1.jpg", "ben/2.jpg", "cleo/1.jpg")
    put(root, "anna/1.jpg")
    os.symlink(store / "ben", root / "ben")
    os.symlink(store / "cleo", root / "a link that sorts first")
    frame = read_folders(root)
    assert (
        list(frame.image)
        == ["a link that sorts first/1.jpg", "anna/1.jpg", "ben/1.jpg", "ben/2.jpg"]
        and not frame.attrs["excluded"]
    )
    assert [Path(path).read_text() for path in frame.path] == [
        "cleo/1.jpg",
        "anna/1.jpg",
        "ben/1.jpg",
        "ben/2.jpg",
    ]
    for name, target in (
        ("up", root),
        ("anna/self", root / "anna"),
        ("anna/top", "/"),
        ("a copy", root / "anna"),
        ("again", store / "ben"),
        ("two", root / "one"),
        ("one", root / "two"),
    ):
        os.symlink(target, root / name)
    more = read_folders(root)
    assert list(more.image) == [
        "a link that sorts first/1.jpg",
        "again/1.jpg",
        "again/2.jpg",
        "anna/1.jpg",
    ]  # anna: not by "a copy"
    assert more.attrs["excluded"] == {"folder that is read already": 5, "broken link": 2}


def test_a_folder_that_cannot_be_opened_is_counted(tmp_path, monkeypatch):
    root, scan = put(tmp_path, "anna/1.jpg", "anna/2.jpg", "ben/1.jpg"), os.scandir

    def closed(place):
        if str(place).rstrip("/").endswith("ben"):
            raise PermissionError(13, "Permission denied")
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    assert read_folders(root).attrs["excluded"] == {"folder that cannot be opened": 1}
    refused("cannot be opened (Permission denied)", walk, root / "ben")


def test_names_that_no_terminal_takes_are_counted_and_never_printed(tmp_path):
    root = put(
        tmp_path,
        "anna/1.jpg",
        "anna/line\nbreak.jpg",
        "anna/" + "n" * 250 + ".jpg",
        "bell\a/1.jpg",
        "tab\t/2.jpg",
        "anna/李.jpg",
    )
    for name in (b"anna/\xff.jpg", b"\xfe"):
        place = os.fsencode(root) + b"/" + name
        open(place, "w").close() if name.endswith(b"jpg") else os.mkdir(place)
    open(os.fsencode(root) + b"/\xfe/1.jpg", "w").close()
    frame = read_folders(root)
    assert list(frame.image) == [
        "anna/1.jpg",
        f"anna/{'n' * 250}.jpg",
        "anna/李.jpg",
    ] and accounted(frame) == there(root)
    assert frame.attrs["excluded"] == {"name not in UTF-8, or with a line break": 5}


@pytest.mark.parametrize("name", ["\udcff", "a\nb", "n" * 300, "a\0b", "x" * 5000, ""])
def test_a_hostile_root_is_one_sentence(tmp_path, name):
    for read in (read_data, read_picture, read_images):
        with pytest.raises(PromptSGError) as error:
            read(f"{tmp_path}/{name}" if name else f"{tmp_path}/none/{name}")
        assert "\n" not in str(error.value) and "\udcff" not in str(error.value)


JUNK = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "",
                "anna/",
                "ben/",
                "Hands/",
                "new/",
                ".hid/",
                "__MACOSX/",
                "anna/deep/",
                "ben/x.jpg/",
                "train/",
                "test/p9/",
                "query0/p1/",
                "query0/p1/x/",
            ]
        ),
        st.sampled_from(
            [
                "1.jpg",
                "2.PNG",
                "3.heic",
                "n.txt",
                "t.csv",
                "._1.jpg",
                ".x.jpg",
                "Thumbs.db",
                "none",
                "q.tiff",
                "\udcff.jpg",
                "a\nb.jpg",
                "z",
            ]
        ),
        st.sampled_from(["file", "file", "file", "link", "broken", "folder link", "pipe"]),
    ),
    max_size=14,
)


def scatter(root, junk):
    "The junk below `root`, where it does not fall on what is there."
    for below, name, kind in junk:
        place = root / below / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(place):
                continue
        except OSError:  # a file lies where the folder should
            continue
        target = {
            "link": root / "anna/1.jpg",
            "broken": "nowhere",
            "folder link": root / "anna",
        }.get(kind)
        (
            os.mkfifo(place)
            if kind == "pipe"
            else os.symlink(target, place)
            if target
            else place.write_text(below + ascii(name))
        )


def mbanet(root, people=("1", "2"), tests=("7", "8"), splits=2):
    "MBA-Net's folders: 3 pictures of each person; of the train people one is to validate on."
    for person in people:
        names = [f"{person}_{i}.jpg" for i in range(3)]
        for part, some in (("train_all", names), ("train", names[1:]), ("val", names[:1])):
            for name in some:
                put(root, f"{part}/{person}/{name}", text=name)
    for person in tests:
        names = [f"{person}_{i}.jpg" for i in range(3)]
        for split in range(splits):
            for name in names:
                part = "gallery" if name == names[split % 3] else "query"
                put(root, f"test/{person}/{name}", f"{part}{split}/{person}/{name}", text=name)
    return Path(root)


LAYOUTS = {
    "folders": lambda root: put(root, "anna/1.jpg", "ben/1.jpg"),
    "11k": lambda root: hand_info(root, [("1", "1.jpg"), ("2", "2.jpg", 1)]),
    "hd": lambda root: put(
        root, "Original Images/1-501/1_1.jpg", "Original Images/502-712/502_1.jpg"
    ),
    "mbanet": lambda root: mbanet(root, "1", "7", 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(junk=JUNK, level=st.sampled_from([1, 2, None]))
@GOES
def test_files_used_and_files_left_out_are_the_files_there(layout, junk, level):
    root = Path(tempfile.mkdtemp())
    try:
        LAYOUTS[layout](root)
        scatter(root, junk)
        try:
            frame = read_data(root, identity_level=level)
        except PromptSGError as error:  # in doubt who is who: refused, in one line
            assert layout in ("folders", "mbanet") and "\n" not in str(error)
            return
        assert frame.attrs["dataset"] == layout or any(below == "query0/p1/" for below, *_ in junk)
        assert accounted(frame) == there(root) and all(frame.attrs["excluded"].values())
        assert not frame.image.duplicated().any() and not frame.path.duplicated().any()
        assert all(os.path.isfile(path) for path in frame.path)
    finally:
        shutil.rmtree(root)


# --- which layout
def test_the_layout_is_seen_and_said(tmp_path):
    for layout, make in LAYOUTS.items():
        frame = read_data(make(tmp_path / layout))
        assert frame.attrs["dataset"] == layout and frame.attrs["source"]
    hd = read_data(tmp_path / "hd")
    assert list(hd.identity) == ["1:hand", "1502:hand"] and list(hd.side) == [
        "train",
        "extra",
    ] == list(read_images(tmp_path / "hd").side)
    assert (
        list(read_data(tmp_path / "hd/Original Images").image)
        == list(hd.image)
        == ["1-501/1_1.jpg", "502-712/502_1.jpg"]
    )
    put(tmp_path / "11k", DRAWN)
    assert read_data(tmp_path / "11k").attrs["source"] == "drawn hands of promptsg synth"
    refused("'Original Images/1-501'", read_data, tmp_path / "folders", "hd")
    refused("holds no train_all", read_data, tmp_path / "folders", "mbanet")


def test_a_number_of_another_script_is_no_hd_person(tmp_path):
    put(tmp_path, "Original Images/1-501/²_1.jpg", "Original Images/502-712/502_1.jpg")
    refused("does not begin with a person's number", read_data, tmp_path)


def test_deeper_folders_are_refused_until_it_is_said_which_names_the_identity(tmp_path):
    root = put(
        tmp_path,
        *(
            f"{kind}/{name}/{i}.jpg"
            for kind, names in (("cat", "abc"), ("dog", "de"))
            for name in names
            for i in (1, 2)
        ),
    )
    text = refused("cat/a/1.jpg lies 2 folders below", read_data, root)
    assert "--identity-level" in text and "columns path and identity" in text
    two = read_data(root, identity_level=2)
    assert (
        sorted(set(two.pid)) == list("abcde")
        and set(two.side) == {""}
        and two.attrs["identity_level"] == 2
    )
    assert set(read_data(root, identity_level=1).pid) == {"cat", "dog"}
    put(root, "cat/0.jpg")
    assert read_data(root, identity_level=2).attrs["excluded"] == {
        "not in a folder of an identity": 1
    }
    put(root, "dog/a/1.jpg")
    refused("'a' of ", read_data, root, "11k", 2)
    refused("3 folders deep", read_data, root, "11k", 3)
    refused("identity_level=0", read_folders, root, 0)


def test_train_and_test_folders_are_sides_and_no_people(tmp_path):
    flat = put(tmp_path / "flat", "train/1.jpg", "train/2.jpg", "test/3.jpg")
    for level in (None, 1):
        assert "--identity-level 2" in refused("test, train", read_data, flat, "11k", level)
    root = put(
        tmp_path / "deep",
        *(
            f"{side}/{name}/{i}.jpg"
            for side, names in (("train", "abc"), ("val", "a"), ("test", "de"))
            for name in names
            for i in (f"{side}1", f"{side}2")
        ),
    )
    assert "--identity-level" in refused("lies 2 folders below", read_data, root)
    frame = read_data(root, identity_level=2)
    assert frame.groupby("side").pid.unique().map(sorted).to_dict() == {
        "train": list("abc"),
        "test": list("de"),
    }
    put(root, "test/b/9.jpg")
    refused("'b' of ", read_data, root, "11k", 2)
    names = ("query/1.jpg", "bounding_box_test/2.jpg", "bounding_box_train/3.jpg")
    market = put(tmp_path / "market", *names)
    refused("are parts of a data set", read_data, market)


@pytest.mark.parametrize(
    "one, two",
    [
        ("p0004", " p0004"),
        ("p0004", "p0004 "),
        ("a b", "a  b"),
        ("é", "e\u0301"),
        ("a", "a\u200b"),
        ("1", "１"),
    ],
)
def test_folders_that_look_the_same_are_refused_naming_both(tmp_path, one, two):
    root = put(tmp_path, f"{one}/1.jpg", f"{two}/1.jpg")
    text = refused("look the same", read_data, root)
    assert ascii(one) in text and ascii(two) in text


def test_ids_of_folders_stay_as_they_are_written(tmp_path):
    assert list(read_data(put(tmp_path, " p4/1.jpg", "0007/1.jpg", "007/1.jpg")).pid) == [
        " p4",
        "0007",
        "007",
    ]


# --- MBA-Net's folders
def test_mbanets_folders_are_read_as_what_they_are(tmp_path):
    root = tmp_path / "11k"
    for aspect, tests in (("dorsal_r", ("1051", "0001200")), ("palmar_l", ("1051", "1300"))):
        mbanet(root / f"train_val_test_split_{aspect}", tests=tests)
    right = root / "train_val_test_split_dorsal_r"
    shutil.copytree(right / "gallery0", right / "gallery0_all")
    put(
        right,
        "gallery0_all/21001300/1300_0.jpg",
        "gallery0_all/21001051/1051_0.jpg",
        text="1300_0.jpg",
    )
    put(root, "train_val_test_split_dorsal_l/note.jpg", "make.py")
    frame = read_data(root)
    assert frame.attrs["dataset"] == "mbanet" and accounted(frame) == there(root)
    assert frame.groupby(["aspect", "side"]).size().to_dict() == {
        (a, s): 6 for a in ("dorsal_r", "palmar_l") for s in ("test", "train")
    }
    assert set(frame.identity[frame.aspect == "dorsal_r"]) == {
        f"{n:07d}:dorsal_r" for n in (1, 2, 1051, 1200)
    }
    assert set(frame.attrs["excluded"]) == {
        "copy of a picture that is used",
        "gallery of another aspect",
        "not in MBA-Net's folders",
        "not a picture (.py)",
    }
    pairs, val = frame.attrs["pairs"], frame.attrs["val"]
    assert list(pairs) == list(val) == ["dorsal_r", "palmar_l"] and [
        len(pairs[aspect]) for aspect in pairs
    ] == [2, 2]
    names = lambda *files: [f"dorsal_r/{file}" for file in files]
    assert pairs["dorsal_r"][1] == (
        names(
            "0001051/1051_0.jpg",
            "0001051/1051_2.jpg",
            "0001200/0001200_0.jpg",
            "0001200/0001200_2.jpg",
        ),
        names("0001051/1051_1.jpg", "0001200/0001200_1.jpg"),
    )
    assert val["dorsal_r"] == names("0000001/1_0.jpg", "0000002/2_0.jpg")
    splits = make_splits(frame, "dorsal_r", 2, val="images")
    assert [
        (list(query.image), list(gallery.image))
        for query, gallery in zip(splits.queries, splits.galleries)
    ] == pairs["dorsal_r"]
    assert (
        list(splits.val.image) == val["dorsal_r"]
        and len(splits.train) == 4
        and len(splits.galleries_all[1]) == 4
    )
    one = read_data(right)
    assert (
        list(one.image) == list(frame.image[frame.aspect == "dorsal_r"])
        and one.attrs["pairs"]["dorsal_r"] == pairs["dorsal_r"]
    )
    assert {Path(path).parts[-3] for path in one.path} == {"train_all", "test"}
    assert copy.deepcopy(pairs) is pairs  # pandas copies the attributes at every step


def test_mbanets_hd_folders_have_strangers_in_their_galleries(tmp_path):
    root = mbanet(tmp_path / "train_val_test_split")
    for split in range(2):
        put(root, f"gallery{split}/1502/502_1.jpg", f"gallery{split}/1502/502_2.jpg", text="x")
    frame = read_data(root)
    assert (
        set(frame.aspect) == {"hand"}
        and set(frame.pid[frame.side == "extra"]) == {"1502"}
        and sum(frame.side == "extra") == 2
    )
    assert all(len(gallery) == 2 for _, gallery in frame.attrs["pairs"]["hand"]) and accounted(
        frame
    ) == there(root)


def test_train_all_alone_and_no_pairs_are_enough(tmp_path):
    root = mbanet(tmp_path)
    for part in ("train", "val", "query0", "query1", "gallery0", "gallery1"):
        shutil.rmtree(root / part)
    frame = read_mbanet(root)
    assert (
        not frame.attrs["pairs"]
        and not frame.attrs["val"]
        and frame.groupby("side").size().to_dict() == {"test": 6, "train": 6}
    )


@pytest.mark.parametrize(
    "break_it, words",
    [
        (lambda root: shutil.rmtree(root / "test"), "no picture in test"),
        (lambda root: shutil.rmtree(root / "gallery1"), "no picture in gallery1"),
        (
            lambda root: [shutil.rmtree(root / part) for part in ("query0", "gallery0")],
            "splits 1, not from 0",
        ),
        (
            lambda root: [shutil.rmtree(root / part) for part in ("train_all", "train", "val")],
            "no picture in train_all",
        ),
        (
            lambda root: (root / "query0/7/7_1.jpg").unlink(),
            "7/7_1.jpg in only one of test and query0",
        ),
        (
            lambda root: put(root, "gallery0/7/7_1.jpg", text="7_1.jpg"),
            "7/7_1.jpg in query0 and in gallery0",
        ),
        (lambda root: put(root, "val/1/1_1.jpg", text="1_1.jpg"), "1/1_1.jpg in train and in val"),
        (lambda root: (root / "train/1/1_1.jpg").unlink(), "1/1_1.jpg in only one of train_all"),
        (lambda root: put(root, "test/1/new.jpg"), "1 on the train and on the test side"),
        (
            lambda root: put(root, "query1/7/7_0.jpg", text="other"),
            "different pictures called 7/7_0.jpg",
        ),
        (lambda root: put(root, "gallery1/99/99.jpg"), "other strangers in gallery1"),
        (
            lambda root: put(root, "gallery0/1/s.jpg", "gallery1/1/s.jpg", text="s"),
            "1 on the train side and in the galleries",
        ),
        (
            lambda root: (root / "gallery0/7/7_0.jpg").rename(root / "query0/7/7_0.jpg"),
            "no picture of 7 in gallery0",
        ),
        (
            lambda root: (root / "train_all/1").rename(root / "train_all/1 "),
            "1/1_0.jpg in only one of train_all",
        ),
    ],
)
def test_mbanets_folders_that_contradict_each_other_are_refused(tmp_path, break_it, words):
    break_it(mbanet(tmp_path))
    refused(words, read_data, tmp_path)


# --- a table of one's own
def table(root, text, name="mine.csv"):
    put(root, name, text=text)
    return root / name


def test_a_table_says_sides_aspects_and_cameras(tmp_path):
    put(
        tmp_path,
        "a/1.jpg",
        "a/2.jpg",
        "b/1.jpg",
        "b/other.jpg",
        "a/.x.jpg",
        "c/1.jpg",
        "b/note.txt",
    )
    file = table(
        tmp_path,
        "\ufeffpath, identity ,side,aspect,camera,age\n./a/1.jpg,anna,train,dorsal right,1,30\n"
        "a/2.jpg, anna,Train,dorsal_r,02,30\r\nb/1.jpg,ben,test,palmar_l,1,\n"
        "b/gone.jpg,ben,test,palmar_l,1,\n,,,,,\n",
    )
    frame = read_data(file)
    assert list(frame.image) == ["a/1.jpg", "a/2.jpg", "b/1.jpg"] and list(frame.camera) == [
        "1",
        "02",
        "1",
    ]
    assert list(frame.identity) == ["anna:dorsal_r"] * 2 + ["ben:palmar_l"] and list(
        frame.side
    ) == ["train", "train", "test"]
    assert frame.attrs["excluded"] == {
        "image file missing": 1,
        "hidden": 1,
        "not named in mine.csv": 1,
        "not a picture (.txt)": 1,
    }
    assert frame.attrs["dataset"] == "csv" and frame.attrs["source"] == "table mine.csv"
    assert [Path(path).read_text() for path in frame.path] == ["a/1.jpg", "a/2.jpg", "b/1.jpg"]
    assert accounted(frame) == there(tmp_path / "a") + there(
        tmp_path / "b"
    )  # the folders of the named files


def test_a_table_needs_only_paths_and_identities(tmp_path):
    put(tmp_path, "pictures/1.jpg", "2.jpg")
    frame = read_images(
        table(tmp_path, f"identity,path,image\nanna,{tmp_path}/pictures/1.jpg,one\nben,2.jpg,two\n")
    )
    assert (
        list(frame.image) == ["one", "two"]
        and set(frame.aspect) == {"hand"}
        and set(frame.side) == {""}
    )
    assert "camera" not in frame and frame.attrs["excluded"] == {"description (.csv)": 1}


@pytest.mark.parametrize(
    "text, words",
    [
        ("path,who\na.jpg,x", "no column 'identity'"),
        ("path,identity\n", "no row"),
        ("path,identity\na.jpg,", "identity of line 2 is empty"),
        ("path,identity\na.jpg,x\n,x", "path of line 3 is empty"),
        ("path,identity,side\na.jpg,x,val", "side of line 2 is 'val'"),
        ("path,identity,aspect\na.jpg,x,back", "aspect of line 2 is 'back'"),
        ("path,identity,aspect\na.jpg,x,", "aspect of line 2 is empty"),
        ("path,identity,camera\na.jpg,x,1\nb.jpg,x,", "camera of line 3 is empty"),
        ("path,identity\na.jpg,x\n./a.jpg,y", "path of line 3 is listed twice"),
        ("path,identity,image\na.jpg,x,1\nb.jpg,y,1", "image of line 3 is listed twice"),
        ("path,identity\nb.jpg,x\nc.jpg,y", "no picture that it names"),
        ('path,identity\na.jpg,"x\ny"', "identity of line 3 holds a line break"),
        ('path,identity\na.jpg,anna\nb.jpg,"an\u200bna"', "look the same"),
        ("path;identity\na.jpg;x", "no column 'path'"),
        ("path,identity\na.jpg,x,1", "line 2 has 3 cells"),
        ("path,path,identity\na,b,c", "two columns"),
    ],
)
def test_a_table_with_a_fault_is_one_sentence(tmp_path, text, words):
    put(tmp_path, "a.jpg")
    refused(words, read_data, table(tmp_path, text))


# --- words, hashes, the same file
def test_the_summary_tells_images_people_aspects_and_reasons(tmp_path):
    root = hand_info(tmp_path, [("1", "a.jpg"), ("2", "b.jpg", 1), ("2", "c.jpg")])
    assert reading_summary(read_11k(root)).split("\n") == [
        "2 images of 2 people in 1 aspect (11K Hands)",
        "1 left out: accessories worn",
    ]
    assert (
        left_out_lines({"a": 2, "b": 0}) == ["2 left out: a"]
        and reading_summary(pd.DataFrame({"pid": ["1"], "aspect": ["hand"]}))
        == "1 image of 1 person in 1 aspect"
    )


def test_the_data_hash_sees_bytes_that_changed_at_the_same_size(tmp_path):
    frame = read_folders(put(tmp_path, "anna/1.jpg", "ben/1.jpg"))
    before, file = data_hash(frame), tmp_path / "ben/1.jpg"
    assert (
        before
        == data_hash(frame[::-1])
        == data_hash(frame.assign(path=frame.path))
        != data_hash(frame.assign(path=""))
    )
    file.write_text(file.read_text()[::-1])
    assert data_hash(frame) != before


def test_the_same_file_is_found_by_its_bytes_whatever_the_path(tmp_path):
    frame = read_folders(put(tmp_path / "data", "anna/1.jpg", "anna/2.jpg", "ben/1.jpg"))
    os.symlink(tmp_path / "data/anna/2.jpg", tmp_path / "link.jpg")
    shutil.copy(tmp_path / "data/anna/2.jpg", tmp_path / "copy.jpg")
    for path in (tmp_path / "data/ben/../anna/2.jpg", tmp_path / "link.jpg", tmp_path / "copy.jpg"):
        assert list(find_same(path, frame)) == [False, True, False]
    put(tmp_path, "stranger.jpg")
    same = find_same(tmp_path / "stranger.jpg", frame)
    assert (
        same.dtype == bool
        and not same.any()
        and not find_same(tmp_path / "copy.jpg", frame.assign(path="")).any()
    )
    refused("none.jpg cannot be read", find_same, tmp_path / "none.jpg", frame)


def test_only_files_of_the_same_size_are_read_to_find_the_same(tmp_path, monkeypatch):
    frame, read = read_folders(put(tmp_path / "data", "anna/1.jpg", "a/1.jpg")), []
    monkeypatch.setattr("promptsg.readers.content_hash", lambda path: read.append(Path(path)))
    find_same(tmp_path / "data/anna/1.jpg", frame)
    assert read == [tmp_path / "data/anna/1.jpg"] * 2


def test_paths_are_absolute_and_not_resolved(tmp_path, monkeypatch):
    put(tmp_path / "real", "anna/1.jpg")
    os.symlink(tmp_path / "real", tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert (
        list(read_data("link").path)
        == [str(tmp_path / "link/anna/1.jpg")]
        == list(read_picture("link/anna/1.jpg").path)
    )
    (tmp_path / "x.jpg").mkdir()
    put(tmp_path / "x.jpg", "anna/1.jpg")
    assert len(read_images("x.jpg")) == 1
    refused("is no file", read_picture, "x.jpg")


def test_the_reasons_are_sorted_and_a_count_does_not_depend_on_the_order_of_the_disk(
    tmp_path, monkeypatch
):
    root, scan = put(tmp_path, "b/1.jpg", "a/1.jpg", "z.txt", "c.csv"), os.scandir
    one = walk(root)

    class Backwards:
        def __init__(self, place):
            self.found = list(scan(place))[::-1]

        __enter__, __exit__ = lambda self: iter(self.found), lambda self, *_: None

    monkeypatch.setattr(os, "scandir", Backwards)
    assert list(walk(root).items()) == list(one.items()) and Counter(one.values())[None] == 2


# --- sets with an official division

BOXES = {
    "market1501": (
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0001_c1s1_001051_00.jpg",
        "bounding_box_test/0001_c2s1_000301_00.jpg",
    ),
    "dukemtmc": (
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c5_f0051781.jpg",
    ),
    "occluded_duke": (
        "bounding_box_train/0001_c2_f0046182.jpg",
        "query/0012_c6_f0000001.jpg",
        "bounding_box_test/0012_c7_f0000002.jpg",
    ),
    "cuhk03np": (
        "bounding_box_train/0003_c1_21.png",
        "query/0001_c1_0.png",
        "bounding_box_test/0001_c2_5.png",
    ),
    "veri776": (
        "image_train/0001_c001_00016450_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c003_00084280_0.jpg",
    ),
    "msmt17": (
        "train/0000/0000_000_01_0303morning_0015_0.jpg",
        "test/0000/0000_000_03_0303morning_0008_0.jpg",
        "test/0000/0000_001_14_0303morning_0009_0.jpg",
    ),
}


def msmt_lists(root, train, query, gallery):
    below = lambda path: path.split("/", 1)[1]
    for name, path in (("train", train), ("val", None), ("query", query), ("gallery", gallery)):
        put(root, f"list_{name}.txt", text=f"{below(path)} 0\n" if path else "")
    put(root, "list_val.txt", text=f"{below(train).replace('0015', '0016')} 0\n")
    put(root, train.replace("0015", "0016"))
    return root


@pytest.mark.parametrize("dataset", BOXES)
def test_an_official_set_says_camera_and_role(dataset, tmp_path):
    put(tmp_path / "set", *BOXES[dataset])
    if dataset == "msmt17":
        msmt_lists(tmp_path / "set", *BOXES[dataset])
    for root in (tmp_path / "set", tmp_path):  # the set's folder, or the one that it lies in
        frame = read_data(root, dataset)
        assert set(frame.role) == {"train", "query", "gallery"}
        assert frame[frame.role == "query"].camera.iloc[0] in ("1", "2", "3", "6")
        assert set(frame.aspect) == {"vehicle" if dataset == "veri776" else "person"}
        splits = official_splits(frame)
        assert not set(splits.train.pid) & set(splits.test.pid)
        assert len(splits.queries[0]) == 1 and len(splits.galleries_all[0]) == 1
        assert "a part of it" in frame.attrs["source"]


def test_junk_is_left_out_and_a_distractor_is_nobody(tmp_path):
    put(
        tmp_path,
        *BOXES["market1501"],
        "bounding_box_test/-1_c3s1_000001_01.jpg",
        "bounding_box_test/0000_c3s1_000002_01.jpg",
        "bounding_box_test/0000_c4s1_000002_01.jpg",
        "bounding_box_test/Thumbs.db",
        "gt_bbox/0001_c1s1_001051_00.jpg",
    )
    frame = read_data(tmp_path, "market1501")
    assert frame.attrs["excluded"] == {
        "hidden": 1,
        "junk of the data set (-1)": 1,
        "not in bounding_box_train, query, bounding_box_test": 1,
    }
    nobody = frame[frame.pid == "nobody"]
    assert len(nobody) == 2 and set(nobody.side) == {"extra"} and set(nobody.role) == {"gallery"}
    assert "2 people and 2 distractors" in reading_summary(frame)
    splits = official_splits(frame)
    assert len(splits.galleries_all[0]) == 3 and len(splits.galleries[0]) == 1


def whole(root, dataset):
    "Empty files, as many as were published."
    for role, folder in OFFICIAL[dataset].folders.items():
        (root / folder).mkdir(parents=True)
        for number in range(OFFICIAL[dataset].images[role]):
            person = 1 + number % 3 + 10 * (role == "train")
            (root / folder / f"{person:04d}_c{1 + number % 2}s1_{number:06d}_00.jpg").touch()
    return root


def test_a_whole_set_has_the_published_counts_and_no_more(tmp_path, monkeypatch):
    small = OFFICIAL["market1501"]._replace(images=dict(train=7, query=4, gallery=9))
    monkeypatch.setitem(OFFICIAL, "market1501", small)
    frame = read_data(whole(tmp_path, "market1501"), "market1501")
    assert frame.attrs["part"] == "" and frame.attrs["source"] == "Market-1501"
    os.remove(frame.path[frame.role == "query"].iloc[0])
    part = read_data(tmp_path, "market1501")
    assert part.attrs["part"] == "3 of 4 query images"
    put(tmp_path, "query/0001_c1s1_100000_00.jpg", "query/0002_c1s1_100000_00.jpg")
    refused("has 5 query images, more than the 4 of Market-1501", read_data, tmp_path, "market1501")


def test_published_counts_are_those_of_the_sets():
    images = {name: sum(one.images.values()) for name, one in OFFICIAL.items()}
    assert images["msmt17"] == 126_441 and images["dukemtmc"] == 36_411
    assert OFFICIAL["market1501"].images == dict(train=12_936, query=3_368, gallery=15_913)
    assert {name: one.cameras for name, one in OFFICIAL.items()}["msmt17"] == 15


@pytest.mark.parametrize(
    "names, words",
    [
        (BOXES["market1501"][1:], "no train image of Market-1501"),
        (BOXES["market1501"][:2], "no gallery image of Market-1501"),
        ((), "no train image"),
        ((*BOXES["market1501"], "query/holiday.jpg"), "does not begin with a person and a camera"),
    ],
)
def test_a_wrong_or_half_folder_is_one_sentence(names, words, tmp_path):
    put(tmp_path, *names)
    refused(words, read_data, tmp_path, "market1501")


def test_msmt17_needs_its_lists(tmp_path):
    put(tmp_path, *BOXES["msmt17"])
    refused("list_train.txt cannot be read", read_data, tmp_path, "msmt17")
    msmt_lists(tmp_path, *BOXES["msmt17"])
    put(tmp_path, "list_query.txt", text="0000/a.jpg zero\n")
    refused("where a path and a person's number belong", read_data, tmp_path, "msmt17")
    put(tmp_path, "list_query.txt", text="0000/a.jpg 0\n")
    refused("which has no camera number", read_data, tmp_path, "msmt17")
    refused("is not known", read_official, tmp_path, "market")


def test_a_table_with_roles_is_an_official_set(tmp_path):
    rows = [
        "a.jpg,7,1,train",
        "b.jpg,8,1,query",
        "c.jpg,8,2,gallery",
        "d.jpg,0,2,gallery",
        "e.jpg,-1,2,gallery",
    ]
    put(tmp_path, *["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"])
    file = tmp_path / "set.csv"
    file.write_text("path,identity,camera,role\n" + "\n".join(rows))
    frame = read_table(file)
    assert frame.attrs["excluded"]["junk of the data set (-1)"] == 1 and len(frame) == 4
    assert frame.pid.tolist() == ["7", "8", "8", "nobody"] and set(frame.aspect) == {"person"}
    splits = official_splits(frame)
    assert splits.galleries_all[0].image.tolist() == ["c.jpg", "d.jpg"]
    for head, more, words in (
        (
            "path,identity,role",
            [row.rsplit(",", 2)[0] + ",train" for row in rows],
            "no column 'camera'",
        ),
        ("path,identity,camera,role", rows[:2], "no row of the role gallery"),
        ("path,identity,camera,role", [*rows[:4], "e.jpg,9,1,probe"], "role of line 6"),
    ):
        file.write_text(head + "\n" + "\n".join(more))
        refused(words, read_table, file)


def test_images_of_unknown_identity_are_read_to_be_searched_alone(hands, tmp_path):
    pictures = sorted((hands / "Hands").iterdir())[:3]
    for picture in pictures:
        shutil.copy(picture, tmp_path / picture.name)
    (tmp_path / "notes.txt").touch()
    flat = read_images(tmp_path)
    assert list(flat.image) == [picture.name for picture in pictures]
    assert set(flat.identity) == set(flat.pid) == {"?"} and flat.attrs["excluded"]
    with pytest.raises(PromptSGError, match="only `search` and `embed`"):
        read_data(tmp_path)
    table = tmp_path / "some.csv"
    table.write_text("path,identity\n" + "".join(f"{p.name},\n" for p in pictures[:2]))
    assert list(read_images(table).identity) == ["?", "?"]
    table.write_text("path\n" + "".join(f"{p.name}\n" for p in pictures))
    assert list(read_images(table).identity) == ["?", "?", "?"]
    table.write_text("path,identity\n" + f"{pictures[0].name},anna\n{pictures[1].name},\n")
    assert list(read_images(table).identity) == ["anna:hand", "?"]
    with pytest.raises(PromptSGError, match="empty"):
        read_data(table)
