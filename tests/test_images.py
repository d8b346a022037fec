"""Pictures are read as a viewer shows them; caches hold what was written; augmentation belongs to
the image."""

import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torch.utils.data import DataLoader

from promptsg import images
from promptsg.config import Config, PromptSGError, one_line
from promptsg.data import (
    HandDataset,
    PixelCache,
    PKSampler,
    eval_transform,
    mixed_seed,
    train_transform,
)
from promptsg.images import (
    IMAGE_ENDINGS,
    ImageError,
    check_images,
    load_image,
    progress_bar,
    survey,
    why_not_read,
)


# --- the random numbers of augmentation belong to (seed, epoch, row, draw)
@pytest.fixture
def noise(tmp_path):
    "Twelve pictures of noise of three people, the first with two pictures."
    rng, paths = np.random.default_rng(0), [str(tmp_path / f"{n}.png") for n in range(12)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (20, 16, 3), dtype=np.uint8)).save(path)
    return pd.DataFrame({"path": paths, "identity": list("aabbbbbccccc")})


def epoch_of(frame, workers, epoch=1, share=(0, 1), seed=0):
    "The images (B, 3, H, W) of an epoch's batches."
    data = HandDataset(frame, train_transform((20, 16), flip=0.5, jitter=0.3), seed=seed)
    sampler = PKSampler(frame.identity, 2, 4, seed, batches=4, share=share, numbered=True)
    for part in (data, sampler):
        part.set_epoch(epoch)
    return [
        batch["image"] for batch in DataLoader(data, batch_sampler=sampler, num_workers=workers)
    ]


def test_augmentation_is_the_same_whatever_the_workers_and_processes(noise):
    torch.manual_seed(0)
    one = epoch_of(noise, 0)
    for workers in (1, 2):
        torch.manual_seed(workers)
        assert all(map(torch.equal, one, epoch_of(noise, workers)))
    halves = [epoch_of(noise, 0, share=(i, 2)) for i in range(2)]
    assert all(torch.equal(whole, torch.cat(pair)) for whole, *pair in zip(one, *halves))
    for other in (epoch_of(noise, 0, epoch=2), epoch_of(noise, 0, seed=1)):
        assert not any(map(torch.equal, one, other))


def test_two_draws_of_an_image_differ_and_no_other_random_number_is_touched(noise):
    data = HandDataset(noise, train_transform((20, 16), flip=0.5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second, plain = data[5, 0], data[5, 1], data[5]
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first["image"], second["image"]) and torch.equal(
        first["image"], plain["image"]
    )
    assert first["index"] == second["index"] == 5 and torch.equal(data[-7]["image"], plain["image"])
    assert len({data[n, 0]["image"].std().item() for n in range(12)}) == 12
    with pytest.raises(IndexError):
        data[12]


def test_a_numbered_sampler_counts_the_draws_of_an_epoch():
    people = list("aabbbbbccccc")
    numbered, plain = (
        PKSampler(people, 2, 4, seed=2, batches=6, numbered=n) for n in (True, False)
    )
    pairs, rows = (sum(sampler, []) for sampler in (numbered, plain))
    assert [row for row, _ in pairs] == rows
    assert pairs == [(row, rows[:place].count(row)) for place, row in enumerate(rows)]
    assert pairs == sum(numbered, [])  # each epoch counts from 0


def test_seeds_keep_every_number_apart():
    seeds = {
        mixed_seed(seed, epoch, row, draw)
        for seed in (0, 2**40)
        for epoch in range(4)
        for row in range(50)
        for draw in range(3)
    }
    assert len(seeds) == 2 * 4 * 50 * 3 and all(0 <= seed < 2**32 for seed in seeds)


# --- any image that Pillow can write is read as a viewer shows it
def noise_of(rng, *shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def smooth(rng, height, width, bands):
    "Slopes, which lossy formats keep nearly as they are: (height, width, bands), uint8."
    down, right = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    levels = [40 + 150 * (weight * down + (1 - weight) * right) for weight in rng.random(bands)]
    return np.stack(levels, -1).round().astype(np.uint8)


def on_white(colour, alpha):
    "(H, W, 3) or (H, W, 1) over white by alpha (H, W) of 0..255."
    share = alpha[..., None] / 255
    return np.broadcast_to(colour * share + 255 * (1 - share), (*alpha.shape, 3))


def pillow_and_expected(mode, rng, height, width, make):
    """A picture of a mode, the options to save it with, and what a viewer shows (H, W, 3), from
    NumPy alone.

    `make(rng, H, W, bands)` are the bytes. A mode with + has a transparent colour beside the
    pixels."""
    plain, _, extra = mode.partition("+")
    x = make(rng, height, width, {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "PA": 2}.get(plain, 1))
    grey, options = x[..., 0], {}
    if plain == "1":
        image, shown = Image.fromarray(grey > 127), np.where(x > 127, 255, 0)
        if extra:
            options, shown = {"transparency": 0}, np.full_like(shown, 255)
    elif plain == "L":
        image, shown = Image.fromarray(grey), x
        if extra:
            options, shown = {"transparency": int(grey[0, 0])}, np.where(x == x[0, 0], 255, x)
    elif plain in ("P", "PA"):
        colours = noise_of(rng, 256, 3)
        image, shown = Image.fromarray(grey).convert("L"), colours[grey].astype(float)
        image.putpalette(colours.tobytes())
        if plain == "PA":
            image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(x[..., 1])))
            image.putpalette(colours.tobytes())
            shown = on_white(shown, x[..., 1])
        if extra == "int":
            options, shown = {"transparency": int(grey[0, 0])}, np.where(x == x[0, 0], 255, shown)
        if extra == "bytes":
            alphas = noise_of(rng, 256)
            options, shown = {"transparency": alphas.tobytes()}, on_white(shown, alphas[grey])
    elif plain == "RGB":
        image, shown = Image.fromarray(x), x
        if extra:
            options = {"transparency": tuple(map(int, x[0, 0]))}
            shown = np.where((x == x[0, 0]).all(-1, keepdims=True), 255, x)
    elif plain in ("RGBA", "LA"):
        image, shown = Image.fromarray(x), on_white(x[..., :-1], x[..., -1])
    elif plain == "CMYK":
        image, shown = Image.fromarray(x, "CMYK"), (255 - x[..., :3]) * (1 - x[..., 3:] / 255)
    elif plain in ("I;16", "I;16B", "I"):
        deep = grey.astype(np.uint32) * 257 - grey // 2  # not only multiples of 257
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[plain]
        image, shown = Image.fromarray(deep.astype(kind)), deep[..., None] * (255 / 65535)
        if extra:
            options = {"transparency": int(deep[0, 0])}
            shown = np.where(x == x[0, 0], 255, shown)
    else:
        image, shown = Image.fromarray(grey.astype(np.float32) / 255), x
    assert image.mode == plain
    return image, options, np.broadcast_to(shown, (height, width, 3)).astype(float)


EXACT = {  # formats that keep every pixel, and the modes they keep
    "PNG": "1 1+ L L+ LA P P+int P+bytes RGB RGB+ RGBA I;16 I;16+ I;16B",
    "TIFF": "1 L LA P PA RGB RGBA CMYK I I;16 I;16B F",
    "BMP": "1 L P RGB",
    "DIB": "1 L P RGB",
    "GIF": "1 L P P+int",
    "TGA": "1 L LA P RGB RGBA",
    "QOI": "RGB RGBA",
    "SGI": "L RGB RGBA",
    "PPM": "1 L RGB I I;16 F",
    "IM": "1 L LA P PA RGB RGBA CMYK I I;16 I;16B F",
    "PCX": "1 L P RGB",
    "DDS": "L LA RGB RGBA",
    "JPEG2000": "L LA RGB RGBA CMYK I;16",
    "WEBP": "L P RGB RGBA",
    "ICO": "L P RGB RGBA",
    "MSP": "1",
    "XBM": "1",
    "BLP": "P",
}
CLOSE = {"JPEG": "L RGB CMYK", "MPO": "L RGB CMYK", "AVIF": "L RGB RGBA", "HEIF": "L RGB RGBA I;16"}
LEFT_OUT = {"SPIDER", "ICNS"}  # has no ending of its own; stretches what it is given
TURNED = {"PNG", "TIFF", "WEBP", "JPEG", "MPO", "AVIF", "HEIF"}  # say how they lie
OPTIONS = {
    "WEBP": dict(lossless=True, exact=True),
    "JPEG": dict(quality=98, subsampling=0),
    "MPO": dict(quality=98, subsampling=0),
    "AVIF": dict(quality=98, subsampling="4:4:4", speed=10),
    "HEIF": dict(quality=98, chroma=444),
}
CASES = [
    (kind, mode)
    for table in (EXACT, CLOSE)
    for kind, modes in table.items()
    for mode in modes.split()
    if kind in Image.SAVE
]
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}  # EXIF 2.3, table 6


def read_back(kind, mode, orientation, height, width, seed, folder):
    rng, lossy = np.random.default_rng(seed), kind in CLOSE
    image, options, expected = pillow_and_expected(
        mode, rng, height, width, smooth if lossy else noise_of
    )
    options |= OPTIONS.get(kind, {}) | ({"sizes": [image.size]} if kind == "ICO" else {})
    if kind in TURNED:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"], expected = exif.tobytes(), UPRIGHT[orientation](expected)
    image.save(folder / "picture", kind, **options)
    return load_image(folder / "picture"), expected, 5 if lossy else 1


def test_every_format_that_pillow_writes_and_reads_is_tried():
    assert {
        kind for kind in Image.SAVE if kind in (*images._FORMATS, "MPO")
    } <= EXACT.keys() | CLOSE.keys() | LEFT_OUT


@pytest.mark.parametrize(
    "kind, mode",
    [
        ("PNG", "RGBA"),
        ("PNG", "P+bytes"),
        ("PNG", "I;16+"),
        ("TIFF", "F"),
        ("TIFF", "CMYK"),
        ("PNG", "LA"),
        ("TIFF", "PA"),
    ],
)
def test_a_large_picture_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch, kind, mode):
    whole, expected, _ = read_back(kind, mode, 6, 19, 7, 0, tmp_path)
    monkeypatch.setattr(images, "_LARGE", 30)
    assert load_image(tmp_path / "picture").tobytes() == whole.tobytes()


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    case=st.sampled_from(CASES),
    orientation=st.integers(1, 8),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_any_image_that_pillow_can_write_is_read_as_a_viewer_shows_it(
    tmp_path_factory, case, orientation, height, width, seed
):
    folder = tmp_path_factory.getbasetemp()
    shown, expected, tolerance = read_back(*case, orientation, height, width, seed, folder)
    assert shown.mode == "RGB" and shown.size == expected.shape[1::-1]
    assert np.abs(np.asarray(shown) - expected).max() <= tolerance


# --- kinds that Pillow reads and does not write
def test_a_tiff_of_12_bits_and_one_whose_zero_is_white(tmp_path):
    levels = np.linspace(0, 4095, 64).round().astype(np.uint16).reshape(8, 8)
    pairs = levels.reshape(-1, 2).astype(int)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    tiff(tmp_path / "12.tif", 8, 8, 12, 1, packed.astype(np.uint8).tobytes())
    assert (
        np.abs(np.asarray(load_image(tmp_path / "12.tif"))[..., 0] - levels / 4095 * 255).max()
        < 0.51
    )
    for bits, white in ((8, 255), (16, 65535)):
        ramp = np.linspace(0, white, 64).round().astype(f"<u{bits // 8}").reshape(8, 8)
        tiff(tmp_path / "0.tif", 8, 8, bits, 0, ramp.tobytes())
        assert (
            np.abs(
                np.asarray(load_image(tmp_path / "0.tif"))[..., 2] - (255 - ramp / white * 255)
            ).max()
            < 0.51
        )


def tiff(path, width, height, bits, photometric, data):
    "A little-endian TIFF of one strip; photometric 0: zero is white, 1: zero is black."
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
    }
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + fields + bytes(4))


def png(path, width, height, depth, colour, rows, *chunks):
    chunk = lambda name, data: (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_the_transparent_colour_of_a_png_with_16_bits_a_band(tmp_path):
    # their low and high bytes are swapped
    colours = [(0x12FF, 0x3400, 0x5601), (0xFF12, 0x0034, 0x0156)]
    rows = b"\0" + b"".join(struct.pack(">3H", *colour) for colour in colours)
    png(tmp_path / "a.png", 2, 1, 16, 2, rows, (b"tRNS", struct.pack(">3H", *colours[0])))
    assert np.asarray(load_image(tmp_path / "a.png"))[0].tolist() == [[255, 255, 255], [255, 0, 1]]


@pytest.mark.parametrize("bits, row", [(2, 0b00_01_10_11), (4, 0x14)])
def test_the_transparent_grey_of_a_png_with_few_bits(tmp_path, bits, row):
    count, white = 8 // bits, 2**bits - 1
    levels = [row >> bits * (count - 1 - place) & white for place in range(count)]
    png(tmp_path / "a.png", count, 1, bits, 0, bytes([0, row]), (b"tRNS", struct.pack(">H", 1)))
    expected = [255 if level == 1 else level * 255 // white for level in levels]
    assert np.asarray(load_image(tmp_path / "a.png"))[0, :, 0].tolist() == expected


def test_lab_colours(tmp_path):
    # white, black, red: L, a, b
    lab = np.array([[[255, 0, 0], [0, 0, 0], [136, 80, 67]]], np.uint8)
    Image.fromarray(lab, "LAB").save(tmp_path / "a.tif")
    found = np.asarray(load_image(tmp_path / "a.tif"))[0].astype(int)
    assert (
        found[0].min() >= 253
        and found[1].max() <= 2
        and found[2, 0] > 240
        and found[2, 1:].max() < 40
    )


@pytest.mark.parametrize(
    "values, content",
    [
        (np.array([[0.0, 1.5]], np.float32), "numbers outside 0..1,"),
        (np.array([[np.nan, 0.5]], np.float32), "numbers"),
        (np.array([[-0.5, 0.5]], np.float32), "numbers"),
        (np.array([[0, 65536]], np.int32), "values outside 0..65535"),
        (np.array([[-1, 9]], np.int32), "values outside 0..65535"),
    ],
)
@pytest.mark.parametrize("look", [load_image, lambda path: check_images([path], progress=False)])
def test_numbers_without_a_known_white_are_an_error(tmp_path, values, content, look):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(
        ImageError, match=f"a.tif cannot be read: it holds {content}.* save it with 8 or 16 bits"
    ):
        look(tmp_path / "a.tif")


def test_the_first_frame_of_several(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for name in ("a.gif", "a.tif", "a.png", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], duration=50, lossless=True
        )
        assert load_image(tmp_path / name).getpixel((8, 8)) == (255, 0, 0)


# --- read or one sentence, and no warning
def is_one_sentence(error, path):
    text = str(error.value)
    return (
        text.startswith(f"{one_line(path)} cannot be read: it ")
        and "\n" not in text
        and text.count(";") == 1
    )


def test_a_picture_above_pillows_bound_is_one_sentence(tmp_path):
    png(tmp_path / "bomb.png", 20_000, 20_000, 8, 0, b"")
    for look in (load_image, lambda path: check_images([path], progress=False)):
        with pytest.raises(
            ImageError, match="bomb.png cannot be read: it has more than 178,956,970 pixels"
        ):
            look(tmp_path / "bomb.png")


def test_below_the_bound_nothing_warns(tmp_path):
    Image.new("P", (10, 10), 3).save(tmp_path / "a.png", transparency=bytes([9] * 255))
    code = (
        "import sys; from PIL import Image; from promptsg.images import load_image; "
        "Image.MAX_IMAGE_PIXELS = 60; "
        "print(load_image(sys.argv[1]).size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("(10, 10)\n", "")


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 90), (8, 8)])
def test_tiny_jpegs_are_read(tmp_path, size):
    Image.new("RGB", size, "red").save(tmp_path / "a.jpg")
    check_images([tmp_path / "a.jpg"], progress=False)
    assert load_image(tmp_path / "a.jpg").size == size


def damaged(data, seed):
    """Bytes cut off, flipped or swapped for others, most of them near the beginning where the
    numbers stand."""
    rng = np.random.default_rng(seed)
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        place = int(len(data) * rng.random() ** 4)
        data[place] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return bytes(data[: int(rng.integers(1, len(data)))] if seed % 4 == 0 else data)


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES}))
def test_a_damaged_file_is_read_or_is_one_sentence(tmp_path, kind):
    modes = [mode for name, mode in CASES if name == kind]
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, options, _ = pillow_and_expected(modes[seed % len(modes)], rng, 12, 9, noise_of)
        image.save(tmp_path / "a", kind, **options)
        (tmp_path / "a").write_bytes(damaged((tmp_path / "a").read_bytes(), seed))
        for look in (load_image, images._glance):
            try:
                look(tmp_path / "a")
            except ImageError as error:
                assert str(error).startswith(
                    f"{tmp_path / 'a'} cannot be read: "
                ) and "\n" not in str(error)


@pytest.mark.parametrize(
    "error",
    [
        struct.error,
        ZeroDivisionError,
        OverflowError,
        RuntimeError,
        TypeError,
        EOFError,
        AttributeError,
        IndexError,
        KeyError,
        AssertionError,
        NotImplementedError,
    ],
)
def test_whatever_a_decoder_raises_is_one_sentence(tmp_path, monkeypatch, error):
    def fail(*args, **named):
        raise error("two\nlines")

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError) as found:
        load_image(tmp_path / "a.png")
    assert is_one_sentence(found, tmp_path / "a.png")


def test_what_is_no_file_and_what_would_run_a_program(tmp_path):
    (tmp_path / "page.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("page.jpg", "empty.png", "folder.png", "pipe.png", "absent.png", "n\0ul.png"):
        with pytest.raises(ImageError) as found:
            load_image(f"{tmp_path}/{name}")
        assert is_one_sentence(found, f"{tmp_path}/{name}")
    assert not {"EPS", "WMF", "PDF", "MPEG", "HDF5", "GRIB", "BUFR"} & set(images._FORMATS)


def test_damaged_exif_data_does_not_cost_the_picture(tmp_path):
    for exif in (
        b"Exif\0\0MM\0*\0\0\0\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9),
    ):
        Image.new("RGB", (9, 5), "red").save(tmp_path / "a.jpg", exif=exif)
        assert load_image(tmp_path / "a.jpg").size == (9, 5)


# --- which files are pictures
def test_endings():
    usual = {
        ".jpg",
        ".jpeg",
        ".png",
        ".bmp",
        ".webp",
        ".gif",
        ".tif",
        ".tiff",
        ".jp2",
        ".avif",
        ".mpo",
        ".heic",
    }
    others = {
        ".eps",
        ".ps",
        ".pdf",
        ".wmf",
        ".emf",
        ".svg",
        ".mpg",
        ".h5",
        ".grib",
        ".txt",
        ".npy",
        "",
    }
    assert usual <= IMAGE_ENDINGS and not others & IMAGE_ENDINGS
    assert all(ending == ending.lower() and ending.startswith(".") for ending in IMAGE_ENDINGS)
    assert all(why_not_read(ending) is None for ending in {*IMAGE_ENDINGS, ".JPG", ".txt", ""})
    assert (
        "camera" in why_not_read(".NEF")
        and "PNG" in why_not_read(".svg")
        and "Pillow" in why_not_read(".jxl")
    )


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(images, "IMAGE_ENDINGS", IMAGE_ENDINGS - {".heic"})
    assert "pip install pillow-heif" in why_not_read(".HEIC")


# --- bars
class Terminal(io.StringIO):
    isatty = lambda self: True


@pytest.mark.parametrize(
    "stderr, show, drawn",
    [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)],
)
def test_a_bar_is_drawn_on_a_terminal_alone(monkeypatch, stderr, show, drawn):
    monkeypatch.setattr(sys, "stderr", stderr())
    assert list(progress_bar(range(3), show, desc="counting")) == [0, 1, 2]
    assert ("counting" in sys.stderr.getvalue()) == drawn


# --- what there is to say about the pictures
def test_survey(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for name, size, options in [
        ("a.jpg", (40, 40), {}),
        ("b.png", (31, 90), {}),
        ("c.jpg", (50, 40), {"exif": exif}),
        ("d.tif", (60, 40), {"exif": exif}),
        ("e.jpg", (70, 70), {}),
    ]:
        Image.new("RGB", size, name[0] == "a" and "red" or "blue").save(tmp_path / name, **options)
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "own.jpg").write_bytes((tmp_path / "e.jpg").read_bytes())
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "e.jpg").read_bytes()[:300])
    who = {
        "a.jpg": "x",
        "b.png": "x",
        "c.jpg": "x",
        "d.tif": "y",
        "e.jpg": "y",
        "copy.jpg": "y",
        "own.jpg": "y",
        "torn.jpg": "z",
        "absent.jpg": "z",
    }
    frame = pd.DataFrame(
        [(str(tmp_path / name), identity) for name, identity in who.items()],
        columns=["path", "identity"],
    )
    unreadable, turned, small, same = survey(pd.concat([frame, frame]), progress=False)
    names = lambda finding: [os.path.basename(path) for path in finding.examples]
    assert (unreadable.count, names(unreadable)) == (2, ["torn.jpg", "absent.jpg"])
    assert (turned.count, names(turned)) == (2, ["c.jpg", "d.tif"])
    assert (small.count, names(small)) == (1, ["b.png"])
    assert same.count == 2 and same.examples == [f"{tmp_path / 'a.jpg'} = {tmp_path / 'copy.jpg'}"]
    assert [finding.count for finding in survey(frame[:1], progress=False)] == [0] * 4


# --- caches hold what was written
def other_array(change):
    "A damage: the file becomes another valid .npy file, with whatever follows the array in it."

    def damage(data):
        array = np.load(io.BytesIO(data))
        with io.BytesIO() as made:
            np.save(made, change(array))
            return made.getvalue() + data[len(data) - 16 :]

    return damage


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[:-40],
    "header alone": lambda data: data[:128],
    "bit of a pixel": lambda data: flip(data, 200),
    "bit of the header": lambda data: flip(data, 30),
    "another type": other_array(
        lambda x: x.view(np.int8) if x.dtype == np.uint8 else x.view(np.int16)
    ),
    "another shape": other_array(lambda x: x.reshape(x.shape[0], -1)),
    "no array": lambda data: b"x" * len(data),
}


@pytest.fixture
def pixels(noise, tmp_path):
    "Makes a cache over the pictures of noise, as a new process would."

    def make():
        cache = PixelCache((8, 6), tmp_path / "cache", progress=False)
        cache.add(noise.path)
        return cache

    return make


@pytest.mark.parametrize("damage", DAMAGES)
def test_cached_pixels_that_are_not_as_written_are_made_again(noise, pixels, capsys, damage):
    first = pixels()
    right = [first.load(path).clone() for path in noise.path]
    for path in noise.path[:2]:
        first.files[path].write_bytes(DAMAGES[damage](first.files[path].read_bytes()))
    again = pixels()
    assert (
        capsys.readouterr().err == f"cache {again.folder}: 2 entries not as written, made again\n"
    )
    assert all(torch.equal(again.load(path), pixel) for path, pixel in zip(noise.path, right))
    pixels()
    assert capsys.readouterr().err == ""


def test_cached_pixels_of_another_image_are_seen(noise, pixels, capsys):
    first, (one, two) = pixels(), noise.path[:2]
    right = first.load(one).clone()
    first.files[one].write_bytes(first.files[two].read_bytes())
    assert (
        torch.equal(pixels().load(one), right)
        and "1 entry not as written" in capsys.readouterr().err
    )


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_cached_pixels_that_vanish_during_a_training_are_made_again(noise, pixels, capsys, damage):
    cache, path = pixels(), noise.path[3]
    right = cache.load(path).clone()
    damage(cache.files[path])
    assert torch.equal(cache.load(path), right) and torch.equal(cache.load(path), right)
    assert capsys.readouterr().err.count("1 entry not as written") == 1


def test_what_a_killed_process_left_is_deleted_a_day_later(pixels):
    folder = pixels().folder
    for name, hours in ((".promptsg-old.npy", 25), (".promptsg-new.npy", 1)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - 3600 * hours,) * 2)
    count = len(list(folder.iterdir()))
    pixels()
    assert not (folder / ".promptsg-old.npy").exists() and len(list(folder.iterdir())) == count - 1


def test_a_full_disk_is_no_fault_of_the_images(pixels, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(
        PromptSGError, match="cannot be written .No space left on device.; free space"
    ):
        pixels()


class Tower(torch.nn.Module):
    "Stands in for a model whose frozen blocks give (B, 4, 5)."

    cut, stride = 1, None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(20.0).view(4, 5), requires_grad=False)
        self.made = 0

    def features_before(self, images):
        self.made += len(images)
        return images.mean((1, 2, 3)).view(-1, 1, 1) * self.weight


@pytest.fixture
def frozen(noise, tmp_path):
    """Makes frozen features of the pictures of noise, as a new process would; with how many were
    computed."""
    from promptsg.caches import FrozenFeatures

    def make(rows=noise):
        model = torch.nn.Module()
        model.backbone, model.config = Tower(), Config()
        features = FrozenFeatures(
            model, rows, eval_transform((8, 6)), tmp_path / "frozen", 5, progress=False
        )
        return features, model.backbone.made

    return make


def test_frozen_features_are_made_once_and_shared(noise, frozen, tmp_path):
    features, made = frozen(noise[:7])
    assert made == 7 and frozen(noise[:7])[1] == 0 and frozen()[1] == 5
    data = features.dataset(noise[:7], dict.fromkeys("ab", 3))
    image = eval_transform((8, 6))(load_image(noise.path[6]))
    expected = (image.mean() * torch.arange(20.0).view(4, 5)).half()
    torch.testing.assert_close(data[6]["frozen"], expected)
    assert data[6, 2]["frozen"].equal(data[6]["frozen"]) and data[6]["label"] == 3
    assert sorted(file.suffix for file in features.folder.iterdir()) == [
        ".json",
        ".json",
        ".npy",
        ".npy",
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_frozen_features_that_are_not_as_written_are_made_again(noise, frozen, capsys, damage):
    features, _ = frozen()
    right = [features.load(path) for path in noise.path]
    [file] = features.folder.glob("*.npy")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    again, made = frozen()
    assert "not as written, made again" in capsys.readouterr().err and 1 <= made <= 12
    assert all(again.load(path).equal(row) for path, row in zip(noise.path, right))
    assert frozen()[1] == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"rows": 3}',
        '{"rows": {"a": 1}}',
        '{"rows": {"a": [99, ""]}}',
        "[" * 9999,
        '{"rows": {"a": [true, ""]}}',
        '{"rows": {"a": [0.0, ""]}}',
        '{"rows": {}}',
        "\xff",
    ],
)
def test_a_damaged_index_of_frozen_features_is_made_again(noise, frozen, capsys, text):
    features, _ = frozen()
    [index] = features.folder.glob("*.json")
    index.write_text(text, encoding="latin-1")
    assert frozen()[1] == 12 and "1 entry not as written, made again" in capsys.readouterr().err
    assert len(list(features.folder.iterdir())) == 2 and frozen()[1] == 0


def test_rows_that_changed_places_in_an_index_are_seen(noise, frozen, capsys):
    features, _ = frozen()
    [index] = features.folder.glob("*.json")
    rows = json.loads(index.read_text())["rows"]
    one, two = list(rows)[:2]
    rows[one], rows[two] = rows[two], rows[one]
    index.write_text(json.dumps({"rows": rows}))
    assert frozen()[1] == 2 and "2 entries not as written" in capsys.readouterr().err


def test_frozen_features_without_an_index_are_deleted_a_day_later(noise, frozen):
    features, _ = frozen()
    for name, hours in (("old.npy", 25), ("new.npy", 1)):
        (features.folder / name).write_bytes(b"no index was written")
        os.utime(features.folder / name, (time.time() - 3600 * hours,) * 2)
    frozen()
    assert not (features.folder / "old.npy").exists() and (features.folder / "new.npy").exists()
    [file] = {place[0] for place in features.places.values()}
    os.truncate(file, 300)
    with pytest.raises(PromptSGError, match="cut off while it was used; start again"):
        [features.load(path) for path in noise.path]
