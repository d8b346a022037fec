"""Bad input of every kind, and beside it the harmless input that looks like it.

`cases()` yields `Case`s, the same each time. `make(place)` prepares a case in a `Place` and returns
the arguments of a command, or a function to call. A bad case must end in one sentence that holds
`words`; a good one must work."""

import io
import json
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import NamedTuple

import numpy as np

from promptsg.config import Config

SEED, CONFIG = 0, "paper@hand-vit-tiny"


class Case(NamedTuple):
    kind: str
    name: str
    make: Callable  # Place -> arguments, or a function
    words: str = ""  # in the sentence; for a good case in what is printed
    good: bool = False


@dataclass
class Place:
    """Where a case happens. `folder` is empty, its own, and the working folder; the rest is shared,
    and not to be changed."""

    folder: Path
    hands: Path  # a data folder
    trained: Path  # a measured run on it
    reported: Path  # a report of one such run

    @property
    def picture(self):
        return sorted((self.hands / "Hands").iterdir())[0]

    def copy(self, source, name):
        "A copy of a folder whose files may be replaced, but not changed in place."
        return Path(copytree(source, self.folder / name, copy_function=os.link))

    def run(self):
        return self.copy(self.trained, "run")

    def file(self, name, content=b""):
        "A new file, or another content for one that is there."
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


def cases():
    "All cases: a seeded draw where there are more ways than could be tried."
    for make in (
        settings_text,
        settings_fields,
        yaml_files,
        options,
        outputs,
        tables,
        layouts,
        pictures,
        weights,
        runs,
        checkpoints,
        models,
        reports,
        uploads,
        names,
        good,
    ):
        kind = make.__name__
        for name, *rest in make(random.Random(SEED)):
            yield Case(kind, name, *rest)


# --- settings
def training(*sets, config=CONFIG, out="out"):
    "train with such settings."
    return lambda place: [
        "train",
        "--config",
        config,
        "--data",
        place.hands,
        "--out",
        place.folder / out,
        *(word for text in sets for word in ("--set", text)),
    ]


def settings_text(rng):
    "What stands behind --set: text that is no setting, no YAML, or more than plain values."
    deep, long = "[" * 5000, "9" * 5000
    wrong = {
        "no equals sign": "epochs",
        "nothing": "",
        "only an equals sign": "=",
        "no name": "=3",
        "no value": "epochs=",
        "an open list": "seed=[1",
        "an open map": "seed={",
        "a tab": "seed=\t- \t1",
        "two documents": "seed=1\n---\n2",
        "an anchor": "epochs=&a 3",
        "an alias": "epochs=*a",
        "a tag": "epochs=!!python/name:os.system",
        "a call": "epochs=!!python/object/apply:os.system [id]",
        "a deep list": "epochs=" + deep,
        "a deep map": "epochs=" + "{a: " * 5000,
        "thousands of digits": "epochs=" + long,
        "thousands of hex digits": "epochs=0x" + "f" * 5000,
        "a long text": "epochs=" + "a" * 200_000,
        "an exponent": "lr_modules=1e999",
        "a date": "epochs=2001-01-01",
        "an impossible date": "epochs=2001-99-99",
        "a map for a number": "epochs={a: 1}",
        "a list for a number": "epochs=[1, 2]",
        "a word": "epochs=many",
        "bytes that are no text": "epochs=\udc80",
        "a bare byte": "epochs=\x00",
        "a set": "epochs=!!set {1, 2}",
        "binary": "epochs=!!binary aGk=",
        "an unknown field": "epohcs=3",
        "a private name": "__class__=3",
        "a method": "replace=3",
        "a dotted name": "epochs.real=3",
        "three sides": "image_size=[1, 2, 3]",
        "words for sides": "image_size=[a, b]",
        "half a side": "image_size=160.5",
        "an aspect twice removed": "aspect=back",
        "a list of lists": "train_aspects=[[dorsal_l]]",
        "a name with a line's end": "experiment=a\nb",
        "a name with a bell": "variant=a\x07b",
        "a name out of the folder": "experiment=../../x",
        "a name of 101 letters": "variant=" + "a" * 101,
        "a backtick": "variant=a`<script>",
        "an empty name": "experiment=",
    }
    for name, text in wrong.items():
        yield name, training(text), "--set" if "=" not in text else ""
    places = [
        "{aspect.__class__.__mro__}",
        "{aspect:>3000000000}",
        "{0}",
        "{0.__init__}",
        "{{}}",
        "{!r}",
        "{aspect!r}",
        "{aspect[0]}",
        "}{",
        "{",
        "}",
        "{} {}",
        "{aspect",
        "{ }",
        "{ aspect }",
        "{a}",
        "no place at all",
    ]
    for text in places:
        yield (
            f"prompt {text}",
            training(
                f"prompt_template=A {text} hand of {{}}."
                if text != "no place at all"
                else f"prompt_template={text}"
            ),
            "prompt",
        )
    yield (
        "a place in the simplified prompt",
        training("simplified_prompt=A {} hand"),
        "simplified_prompt",
    )
    yield (
        "a prompt of 5,000 letters",
        training("prompt_template={} " + "a" * 5000),
        "prompt_template",
    )
    yield "a prompt of 900 words", training("prompt_template={} " + "hand " * 800), "shorten"


def _numbers():
    "(name, low, high) of the fields that are numbers."
    for name, field in Config.model_fields.items():
        ends = {
            key: getattr(one, key)
            for one in field.metadata
            for key in ("ge", "gt", "le", "lt")
            if hasattr(one, key)
        }
        if ends:
            yield name, ends.get("ge", ends.get("gt")), ends.get("le", ends.get("lt"))


def settings_fields(rng):
    """Each field with values of the wrong kind and out of range; from the command line, from a
    file, in the library."""
    ways = (training_way, yaml_way, library_way)
    for name, low, high in _numbers():
        kind = {
            "below": low - 1,
            "above": 2 * high + 1,
            "nan": float("nan"),
            "inf": float("inf"),
            "huge": 10**400,
            "truth": True,
            "text": "wenig",
            "list": [low],
        }
        for what, value in kind.items():
            yield f"{name} {what}", rng.choice(ways)(name, value), name
    numbers = {name for name, *_ in _numbers()}
    for name in [name for name in Config.model_fields if name not in numbers]:
        wrong = [{"a": 1}, [[1]], 2.5] if not Config.takes_text(name) else [{"a": 1}, ["x"], 7]
        for value in wrong if name not in ("image_size", "train_aspects") else wrong[:2]:
            yield f"{name} {value}", rng.choice(ways[1:])(name, value), name


def training_way(name, value):
    return training(f"{name}={_yaml(value)}")


def yaml_way(name, value):
    def make(place):
        file = place.file("c.yml", f"{name}: {_yaml(value)}\n")
        return ["train", "--config", file, "--data", place.hands, "--out", place.folder / "out"]

    return make


def library_way(name, value):
    return lambda place: lambda: Config(**{name: value})


def _yaml(value):
    if isinstance(value, float) and value in (float("inf"),) or value != value:
        return ".inf" if value == value else ".nan"
    return json.dumps(value)


# --- config files
def with_config(content, name="c.yml"):
    "train with a config file of that content."

    def make(place):
        file = content(place) if callable(content) else place.file(name, content)
        return ["train", "--config", file, "--data", place.hands, "--out", place.folder / "out"]

    return make


def _laughs(levels=9):
    "A billion of a thing, in a few lines."
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join(
        lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    )


def _made(path, make):
    make(path)
    return path


def yaml_files(rng):
    "A config file that is none."
    texts = {
        "a bomb of anchors": _laughs(),
        "a bomb of merges": "a: &a {x: 1}\nb: {<<: [*a, *a, *a]}",
        "an anchor": "epochs: &x 3",
        "an anchor of itself": "&a [*a]",
        "lists 5,000 deep": "a: " + "[" * 5000 + "]" * 5000,
        "maps 5,000 deep": "{a: " * 5000 + "1" + "}" * 5000,
        "blocks 2,000 deep": "\n".join(" " * i + "a:" for i in range(2000)),
        "sequences 3,000 deep": "- " * 3000,
        "9 deep": "a: [[[[[[[[[1]]]]]]]]]",
        "key twice": "epochs: 3\nepochs: 4",
        "quoted key twice": "epochs: 3\n'epochs': 4",
        "a list": "- a\n- b",
        "nothing": "",
        "a comment alone": "# epochs: 3",
        "an empty list": "[]",
        "0": "0",
        "false": "false",
        "an empty text": "''",
        "a word": "epochs",
        "a number": "3",
        "a date": "2001-01-01",
        "two documents": "epochs: 3\n---\nepochs: 4",
        "a tab": "\tepochs: 3",
        "an open bracket": "epochs: [",
        "NUL": "\x00",
        "NUL inside": "epochs: 3\x00",
        "a call": "epochs: !!python/object/apply:os.system ['echo hi']",
        "an unknown tag": "epochs: !x 3",
        "a list as a key": "? [a]\n: 3",
        "a map as a key": "? {a: 1}\n: 3",
        "a number as a key": "3: 4",
        "no key": ": 4",
        "a key of 5,000 letters": "a" * 5000 + ": 3",
        "a key with a line's end": '"a\\nb": 3',
        "an escape code as a key": '"\\e[2J": 3',
        "a value with an escape code": 'aspect: "\\e[2J"',
        "a mark of another colour": "epochs: 3\n%YAML 9.9",
        "a number of 5,000 digits": "epochs: " + "9" * 5000,
        "base 60": "epochs: " + ":".join(["59"] * 2000),
        "200 kilobytes": "# " + "a" * 200_000,
        "an unknown field": "epohcs: 3",
        "private": "__init__: 3",
        "null for a number": "epochs: null",
        "null for a word": "model: null",
        "pretrained with NUL": 'pretrained: "a\\0b"',
        "pretrained 300": "pretrained: " + "a" * 300,
        "no place for s*": 'prompt_template: "hand"',
    }
    for name, text in texts.items():
        yield name, with_config(text)
    bytes_ = {
        "UTF-16": "epochs: 3".encode("utf-16"),
        "Latin-1": "experiment: Händel".encode("latin-1"),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
        "random bytes": rng.randbytes(2000),
        "half a letter": "epochs: 3 # é".encode()[:-1],
        "gzip": b"\x1f\x8b" + rng.randbytes(500),
    }
    for name, content in bytes_.items():
        yield name, with_config(content), "c.yml"
    yield "a folder", with_config(lambda place: place.hands), "folder"
    yield "missing", with_config(lambda place: place.folder / "none.yml"), "none.yml"
    yield "a pipe", with_config(lambda place: _made(place.folder / "pipe", os.mkfifo)), "pipe"
    yield "endless", with_config(lambda place: "/dev/zero"), "/dev/zero"
    yield (
        "a link to itself",
        with_config(lambda place: _made(place.folder / "loop", lambda path: path.symlink_to(path))),
        "loop",
    )


# --- the words of a command
COMMANDS = (
    "train",
    "evaluate",
    "embed",
    "search",
    "export",
    "report",
    "synth",
    "demo",
    "doctor",
    "align-text",
    "bench",
    "look",
    "tune",
    "versions",
    "pretrain",
)


def command(*words):
    """A command; words in braces are of the place: {hands}, {run}, {folder}, {picture}, {none}
    (which is not there)."""

    def make(place):
        known = dict(
            hands=place.hands,
            folder=place.folder,
            picture=place.picture,
            none=place.folder / "none",
            out=place.folder / "out",
            run=place.trained,
        )
        return [
            known[word[1:-1]] if word[1:-1] in known and word[0] == "{" else word for word in words
        ]

    return make


def options(rng):
    "Options that are not there, lack something, or have values that are none."
    for name in COMMANDS:
        yield f"{name}: an unknown option", command(name, "--no-such-option", "x")
        if name not in ("doctor", "bench", "versions"):
            yield f"{name}: no value", command(name, "--out")
    for name in (
        "train",
        "evaluate",
        "embed",
        "search",
        "export",
        "synth",
        "align-text",
        "pretrain",
    ):
        yield f"{name}: nothing", command(name)
    run = ["--run", "{run}", "--data", "{hands}"]
    evaluate = ["evaluate", *run]
    for name, *words in (
        ("an unknown command", "serch"),
        ("a command with a line's end", "tra\nin"),
        ("an empty command", ""),
        ("no config", "train", "--data", "{hands}"),
        ("resume what is not there", "train", "--resume", "--data", "{hands}", "--out", "{none}"),
        ("resume without a folder", "train", "--resume", "--data", "{hands}"),
        ("both kinds", *evaluate, "--config", CONFIG),
        ("none of both", "evaluate", "--data", "{hands}"),
        ("cross without a run", "evaluate", "--config", CONFIG, "--data", "{hands}", "--cross"),
        ("a run that is not there", "evaluate", "--run", "{none}", "--data", "{hands}"),
        ("a run that is data", "evaluate", "--run", "{hands}", "--data", "{hands}"),
        ("a run that is a file", "evaluate", "--run", "{picture}", "--data", "{hands}"),
        ("data that is not there", "evaluate", "--run", "{run}", "--data", "{none}"),
        ("data that is a picture", "evaluate", "--run", "{run}", "--data", "{picture}"),
        ("an unknown protocol", *evaluate, "--protocol", "all"),
        ("an empty protocol", *evaluate, "--protocol", ""),
        ("other splits", *evaluate, "--set", "split_seed=1"),
        ("another aspect", *evaluate, "--set", "aspect=hand"),
        ("another tower", *evaluate, "--set", "model=hand-rn-tiny"),
        ("other weights", *evaluate, "--set", "pretrained=random"),
        ("another width", *evaluate, "--set", "inversion_hidden=8"),
        ("another head", *evaluate, "--set", "classifier=arcface"),
        ("another size", *evaluate, "--set", "image_size=100"),
        ("level 0", *evaluate, "--identity-level", "0"),
        ("level -1", *evaluate, "--identity-level", "-1"),
        ("level 99", "embed", *run, "--identity-level", "99", "--set", "dataset=folders"),
        ("level huge", "doctor", "--data", "{folder}", "--identity-level", "9" * 30),
        ("level x", "doctor", "--data", "{hands}", "--identity-level", "x"),
        ("cross on the run's own data", *evaluate, "--cross"),
        ("top 0", "search", *run, "--query", "{picture}", "--top", "0"),
        ("top x", "search", *run, "--query", "{picture}", "--top", "x"),
        ("no query", "search", *run),
        ("a query that is not there", "search", *run, "--query", "{none}"),
        ("a query that is a folder", "search", *run, "--query", "{hands}"),
        ("embed nothing", "embed", "--run", "{run}", "--data", "{none}"),
        ("embed an empty folder", "embed", "--run", "{run}", "--data", "{folder}"),
        ("embed into a folder", "embed", *run, "--out", "{hands}"),
        ("export data", "export", "--run", "{hands}", "--out", "{none}"),
        ("report of nothing", "report", "--data", "{none}", "--out", "{out}"),
        ("report v99", "report", "--versions", "v99", "--data", "{hands}", "--out", "{none}"),
        ("report on vit", "report", "--backbone", "vit", "--data", "{hands}", "--out", "{none}"),
        ("report's pair", "report", "--pair", "v8", "--data", "{hands}", "--out", "{none}"),
        (
            "report's pair of nothing",
            "report",
            "--pair",
            ":",
            "--data",
            "{hands}",
            "--out",
            "{none}",
        ),
        (
            "report's unknown pair",
            "report",
            "--versions",
            "paper",
            "--pair",
            "paper:v99",
            "--data",
            "{hands}",
            "--out",
            "{none}",
        ),
        ("report's seed", "report", "--seeds", "-1", "--data", "{hands}", "--out", "{none}"),
        (
            "report's huge seed",
            "report",
            "--seeds",
            str(2**70),
            "--data",
            "{hands}",
            "--out",
            "{none}",
        ),
        ("report's aspect", "report", "--aspect", "back", "--data", "{hands}", "--out", "{none}"),
        ("report's protocol", "report", "--protocol", "x", "--data", "{hands}", "--out", "{none}"),
        (
            "report varies the aspect",
            "report",
            "--set",
            "aspect=dorsal_l",
            "--data",
            "{hands}",
            "--out",
            "{none}",
        ),
        (
            "report's published",
            "report",
            "--versions",
            "paper",
            "--published",
            "{none}",
            "--data",
            "{hands}",
            "--out",
            "{none}",
        ),
        ("report's config", "report", "--set", "epochs=-1", "--data", "{hands}", "--out", "{none}"),
        ("synth 0 people", "synth", "--train", "0", "--out", "{none}"),
        ("synth -1", "synth", "--test", "-1", "--out", "{none}"),
        ("synth 901", "synth", "--train", "901", "--out", "{none}"),
        (
            "synth 10^9 test people",
            "synth",
            "--train",
            "1",
            "--test",
            "1000000000",
            "--out",
            "{none}",
        ),
        (
            "synth 10^9 images",
            "synth",
            "--train",
            "1",
            "--test",
            "1",
            "--images",
            "1000000000",
            "--out",
            "{none}",
        ),
        ("synth 1 image", "synth", "--images", "1", "--out", "{none}"),
        (
            "synth seed -1",
            "synth",
            "--train",
            "1",
            "--test",
            "1",
            "--seed",
            "-1",
            "--out",
            "{none}",
        ),
        ("synth seed x", "synth", "--seed", "x", "--out", "{none}"),
        ("demo on nothing", "demo", "--data", "{none}", "--out", "{none}"),
        ("demo's setting", "demo", "--set", "epochs=-1", "--out", "{none}"),
        ("demo's config", "demo", "--config", "{none}", "--out", "{none}"),
        ("demo on a picture", "demo", "--data", "{picture}", "--out", "{none}"),
        ("doctor on nothing", "doctor", "--data", "{none}"),
        ("doctor on an empty folder", "doctor", "--data", "{folder}"),
        ("doctor on a picture", "doctor", "--data", "{picture}"),
        ("align nothing", "align-text", "--data", "{none}", "--config", CONFIG, "--out", "{none}"),
        (
            "align without a tower",
            "align-text",
            "--data",
            "{hands}",
            "--config",
            "paper@x",
            "--out",
            "{none}",
        ),
        ("an unknown benchmark", "bench", "speed"),
        ("an empty benchmark", "bench", ""),
        ("versions of nothing", "versions", "--backbone", "vit"),
        ("versions of nobody", "versions", "--backbone", ""),
        ("pretrain what", "pretrain", "hand", "--out", "{none}"),
        ("pretrain seed -1", "pretrain", "hand-vit-tiny", "--seed", "-1", "--out", "{none}"),
    ):
        yield name, command(*words)


# --- where the output goes
def _writes(place):
    "Commands that write, without their --out."
    run, config = ["--run", place.trained], ["--config", CONFIG]
    data = ["--data", place.hands]
    return {
        "train": ["train", *config, *data],
        "evaluate": ["evaluate", *run, *data],
        "embed": ["embed", *run, *data],
        "search": ["search", *run, "--query", place.picture, *data],
        "export": ["export", *run],
        "report": ["report", *data],
        "synth": ["synth", "--train", "1", "--test", "1", "--images", "2"],
        "demo": ["demo", *data],
        "align-text": ["align-text", *config, *data],
        "bench": ["bench", "splits", "--quick"],
        "pretrain": ["pretrain", "hand-vit-tiny"],
    }


_WRITES_FILE = ("embed", "align-text", "bench", "pretrain")  # the others write a folder


def outputs(rng):
    "--out where nothing can be written."

    def to(name, out):
        return lambda place: [*_writes(place)[name], "--out", out(place)]

    a_file = lambda place: place.file("mine", b"mine")
    for name in (
        "train",
        "evaluate",
        "embed",
        "search",
        "export",
        "report",
        "synth",
        "demo",
        "align-text",
        "bench",
        "pretrain",
    ):
        yield f"{name}: in a file", to(name, lambda place: a_file(place) / "out")
        yield f"{name}: 300 letters", to(name, lambda place: place.folder / ("a" * 300))
        yield f"{name}: NUL", to(name, lambda place: "a\0b")
        yield (
            f"{name}: a loop of links",
            to(
                name,
                lambda place: (
                    _made(place.folder / "loop", lambda path: path.symlink_to(path)) / "out"
                ),
            ),
        )
        if name in _WRITES_FILE:
            yield f"{name}: a folder", to(name, lambda place: place.folder)
            yield f"{name}: nothing", to(name, lambda place: "")
        else:
            yield f"{name}: a file", to(name, a_file), "is a file"
        yield f"{name}: a device", to(name, lambda place: "/dev/null/out")
    for name, folder in {
        "NUL": "a\0b",
        "300 letters": "a" * 300,
        "in a file": "c.yml/out",
        "a file": "c.yml",
    }.items():
        yield (
            f"output_dir: {name}",
            lambda place, folder=folder: [
                "train",
                "--data",
                place.hands,
                "--config",
                place.file("c.yml", f"output_dir: {json.dumps(folder)}"),
            ],
        )


# --- tables
HEAD = "id,age,gender,skinColor,accessories,nailPolish,aspectOfHand,imageName,irregularities"


def _hand_info(rows, head=HEAD, images=("a.jpg",)):
    "doctor on a folder with that HandInfo.csv."

    def make(place):
        for name in images:
            place.file(f"data/Hands/{name}", place.picture.read_bytes())
        text = rows if isinstance(rows, bytes) else "\n".join([head, *rows]) + "\n"
        place.file("data/HandInfo.csv", text)
        return lambda: _read(place.folder / "data")

    return make


def _read(path, **options):
    from promptsg.readers import read_data

    return read_data(path, **options)


def _row(**cells):
    known = dict(
        id="559",
        age="20",
        gender="male",
        skinColor="fair",
        accessories="0",
        nailPolish="0",
        aspectOfHand="dorsal right",
        imageName="a.jpg",
        irregularities="0",
    )
    return ",".join(str(value) for value in {**known, **cells}.values())


def _own_table(text, name="t.csv"):
    "A table of one's own beside two pictures."

    def make(place):
        for image in ("a.jpg", "b.jpg"):
            place.file(f"data/{image}", place.picture.read_bytes())
        file = place.file(f"data/{name}", text)
        return lambda: _read(file)

    return make


def tables(rng):
    "HandInfo.csv and tables of one's own."
    ids = [
        "1.0",
        "1e3",
        "9" * 400,
        "99999999",
        "-1",
        "+1",
        " ",
        "",
        "nan",
        "inf",
        "0x1F",
        "1 2",
        "1_000",
        "٣",
        "１２",
        "1;2",
        "a",
        "1.5",
        "=1+1",
        "None",
        "\x00",
    ]
    for text in ids:
        yield f"id {text[:20]!r}", _hand_info([_row(id=text)]), "HandInfo.csv"
    for column in ("age", "accessories", "nailPolish", "irregularities"):
        for text in ("x", "", "1e3", "nan", "9" * 400, "1.5"):
            yield f"{column} {text[:9]!r}", _hand_info([_row(**{column: text})]), column
    for column in HEAD.split(","):
        head = ",".join(name for name in HEAD.split(",") if name != column)
        yield f"no {column}", _hand_info([_row()], head), column
    wrong = {
        "aspect back": [_row(aspectOfHand="back")],
        "aspect empty": [_row(aspectOfHand="")],
        "image twice": [_row(), _row()],
        "image of two people": [_row(), _row(id="560")],
        "image empty": [_row(imageName="")],
        "image a path": [_row(imageName="../../x.jpg")],
        "image NUL": [_row(imageName="a\0.jpg")],
        "too few cells": ["559,20"],
        "too many cells": [_row() + ",1"],
        "no rows": [],
        "blank rows": ["", ""],
        "an open quote": ['"559,20'],
    }
    for name, rows in wrong.items():
        yield name, _hand_info(rows)
    yield "a column twice", _hand_info([_row() + ",1"], HEAD + ",id"), "two columns"
    yield "semicolons", _hand_info([_row().replace(",", ";")], HEAD.replace(",", ";")), "no column"
    yield "one endless line", _hand_info(b"a" * 3_000_000), "HandInfo.csv"
    yield "one endless cell", _hand_info([_row(gender="a" * 300_000)]), "HandInfo.csv"
    yield "NUL bytes", _hand_info(bytes(5000)), "HandInfo.csv"
    yield "UTF-16", _hand_info(f"{HEAD}\n{_row()}\n".encode("utf-16")), "UTF-8"
    yield "Latin-1", _hand_info(f"{HEAD}\n{_row(gender='höher')}\n".encode("latin-1")), "UTF-8"
    yield "empty", _hand_info(b""), "HandInfo.csv"
    yield "a picture", _hand_info(b"\xff\xd8\xff" + rng.randbytes(900)), "HandInfo.csv"
    yield "no picture of it there", _hand_info([_row()], images=("b.jpg",)), "Hands"
    own = {
        "no identity": "path\na.jpg\n",
        "no path": "identity\nann\n",
        "path twice": "path,identity\na.jpg,ann\na.jpg,bob\n",
        "the same path in two ways": "path,identity\na.jpg,ann\n./a.jpg,bob\n",
        "image twice": "path,identity,image\na.jpg,ann,x\nb.jpg,bob,x\n",
        "identity empty": "path,identity\na.jpg,\n",
        "path empty": "path,identity\n,ann\n",
        "side": "path,identity,side\na.jpg,ann,left\n",
        "aspect": "path,identity,aspect\na.jpg,ann,back\n",
        "camera empty": "path,identity,camera\na.jpg,ann,\n",
        "look-alikes": "path,identity\na.jpg,ann\nb.jpg,ann\u200b\n",
        "no file there": "path,identity\nnone.jpg,ann\n",
        "a folder": "path,identity\n.,ann\n",
        "path NUL": "path,identity\na\0.jpg,ann\n",
        "a pipe's name": "path,identity\n/dev/zero,ann\n",
        "empty": "",
        "head alone": "path,identity\n",
        "ragged": "path,identity\na.jpg\n",
        "a line's end in a name": 'path,identity\na.jpg,"a\nb"\n',
        "path of 5,000 letters": f"path,identity\n{'a' * 5000},ann\n",
        "path column twice": "path,path,identity\na.jpg,b.jpg,ann\n",
    }
    for name, text in own.items():
        yield f"own: {name}", _own_table(text), "t.csv"
    yield "own: binary", _own_table(rng.randbytes(3000)), "t.csv"
    yield (
        "own: repeated images, train",
        lambda place: (
            _own_table("path,identity,image\na.jpg,ann,x\nb.jpg,bob,x\n")(place),
            [
                "train",
                "--config",
                CONFIG,
                "--data",
                place.folder / "data" / "t.csv",
                "--out",
                place.folder / "out",
            ],
        )[-1],
        "twice",
    )


# --- layouts
def _folders(*files, **options):
    "read_data on a folder with pictures of these names."

    def make(place):
        for name in files:
            place.file(f"data/{name}", place.picture.read_bytes())
        (place.folder / "data").mkdir(exist_ok=True)
        return lambda: _read(place.folder / "data", **options)

    return make


def layouts(rng):
    "Folders of which nobody can say who is who, or that hold nothing."
    yield "empty", _folders()
    yield "pictures alone", _folders("a.jpg", "b.jpg"), "folder of its own"
    yield "text alone", _folders("ann/a.txt")
    yield "hidden alone", _folders(".ipynb_checkpoints/a.jpg", "ann/._a.jpg")
    yield "a blank before", _folders("ann/a.jpg", " ann/b.jpg"), "look the same"
    yield "a blank after", _folders("ann/a.jpg", "ann /b.jpg"), "look the same"
    yield "no width", _folders("ann/a.jpg", "an\u200bn/b.jpg"), "look the same"
    yield "composed and not", _folders("\u00e9va/a.jpg", "e\u0301va/b.jpg"), "look the same"
    yield "wide letters", _folders("ann/a.jpg", "ａｎｎ/b.jpg"), "look the same"
    yield "two levels", _folders("cats/tom/a.jpg", "dogs/rex/a.jpg"), "--identity-level"
    yield "both levels", _folders("tom/a.jpg", "dogs/rex/a.jpg"), "--identity-level"
    yield "train and test", _folders("train/a.jpg", "test/b.jpg"), "parts of a data set"
    yield (
        "Market's",
        _folders("bounding_box_train/a.jpg", "bounding_box_test/b.jpg", "query/c.jpg"),
        "parts of a data set",
    )
    yield (
        "one name under two",
        _folders("cats/tom/a.jpg", "dogs/tom/a.jpg", identity_level=2),
        "one identity or two",
    )
    yield (
        "a person on both sides",
        _folders("train/tom/a.jpg", "test/tom/a.jpg", identity_level=2),
        "both|train and on the test",
    )
    yield "a level too deep", _folders("tom/a.jpg", identity_level=3), "3 folders deep"
    yield "level 0", _folders("tom/a.jpg", identity_level=0), "identity_level"
    yield "not HD", _folders("tom/a.jpg", dataset="hd"), "Original Images"
    yield "HD without people", _folders("Original Images/1-501/1_1.jpg"), "502-712"
    yield (
        "HD without a number",
        _folders("Original Images/1-501/x.jpg", "Original Images/502-712/502_1.jpg"),
        "number",
    )
    yield "not MBA-Net's", _folders("tom/a.jpg", dataset="mbanet"), "query0"
    mba = [
        "train_all/1/a.jpg",
        "train_all/2/b.jpg",
        "test/3/c.jpg",
        "test/3/d.jpg",
        "query0/3/c.jpg",
        "gallery0/3/d.jpg",
    ]
    for lost in ("train_all", "test", "query0", "gallery0"):
        yield (
            f"MBA-Net's without {lost}",
            _folders(*(name for name in mba if not name.startswith(lost))),
        )
    yield (
        "MBA-Net's with a person on both sides",
        _folders(*mba, "train_all/3/c.jpg"),
        "both|train and on the test",
    )
    yield "MBA-Net's with a gap", _folders(*mba, "query2/3/c.jpg", "gallery2/3/d.jpg"), "gap"
    yield (
        "a device as HandInfo.csv",
        lambda place: (
            place.file("data/Hands/a.jpg"),
            (place.folder / "data" / "HandInfo.csv").symlink_to("/dev/zero"),
            lambda: _read(place.folder / "data"),
        )[-1],
        "HandInfo.csv",
    )
    yield (
        "a pipe as HandInfo.csv",
        lambda place: (
            place.file("data/Hands/a.jpg"),
            os.mkfifo(place.folder / "data" / "HandInfo.csv"),
            lambda: _read(place.folder / "data"),
        )[-1],
        "HandInfo.csv",
    )
    yield (
        "pipes as pictures",
        lambda place: (
            place.file("data/ann/x.txt"),
            os.mkfifo(place.folder / "data" / "ann" / "a.jpg"),
            lambda: _read(place.folder / "data"),
        )[-1],
        "no image",
    )
    for name in (
        "a\nb",
        "\udc80\udcff",
        "\x1b[2J",
        "a\x00b",
        "a" * 300,
        "",
        "~nobody",
        "-",
        "*",
        "$HOME/x",
    ):
        yield f"data called {ascii(name)[:20]}", lambda place, name=name: ["doctor", "--data", name]
        yield (
            f"query called {ascii(name)[:20]}",
            lambda place, name=name: [
                "search",
                "--run",
                place.trained,
                "--data",
                place.hands,
                "--query",
                name,
            ],
        )
    yield "one person, train", lambda place: _train_on(place, "ann/a.jpg", "ann/b.jpg")
    yield "two people, train", lambda place: _train_on(place, "ann/a.jpg", "ann/b.jpg", "bob/c.jpg")
    yield (
        "a run's data without its pictures",
        lambda place: (
            place.copy(place.hands, "data"),
            [path.unlink() for path in sorted((place.folder / "data" / "Hands").iterdir())[::2]],
            ["evaluate", "--run", place.trained, "--data", place.folder / "data"],
        )[-1],
        "missing",
    )
    yield (
        "a run's data with another picture",
        lambda place: (
            place.copy(place.hands, "data"),
            [
                place.file(path, path.read_bytes() + b" ")
                for path in sorted((place.folder / "data" / "Hands").iterdir())
            ],
            ["evaluate", "--run", place.trained, "--data", place.folder / "data"],
        )[-1],
        "changed in content",
    )


def _train_on(place, *files):
    _folders(*files)(place)
    return [
        "train",
        "--config",
        CONFIG,
        "--data",
        place.folder / "data",
        "--out",
        place.folder / "out",
    ]


# --- pictures
_PILLOW = (
    "BMP",
    "DDS",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MSP",
    "PCX",
    "PNG",
    "PPM",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
    "XBM",
)
_ENDING = {"JPEG": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}


def _encoded(kind, size=(64, 48)):
    "A picture of noise, as a file of that format."
    from PIL import Image

    noise = np.random.default_rng(SEED).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image, opened = Image.fromarray(noise), io.BytesIO()
    image = image.convert("1") if kind in ("MSP", "XBM") else image
    image.save(opened, "TIFF" if kind == "TIFF" else kind)
    return opened.getvalue()


def png(width, height, data=b"", depth=8, colour=2, *more):
    "A PNG that claims a size; `more` chunks: (name, content)."
    chunk = lambda name, body: (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)


def _claims():
    "Small files that claim to be enormous pictures."
    jpeg = bytearray(_encoded("JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65500, 65500)
    gif = bytearray(_encoded("GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp = bytearray(_encoded("BMP"))
    bmp[18:26] = struct.pack("<ii", 2**30, 2**30)
    return {
        "png": png(10**6, 10**6),
        "jpg": bytes(jpeg),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "ppm": b"P6 1000000 1000000 255\n",
        "pfm": b"Pf\n1000000 1000000\n-1\n",
        "xbm": b"#define a_width 1000000\n#define a_height 1000000\nstatic char a[] = {0};",
    }


def _look(name, content):
    "The picture is read, as training and search read it."

    def make(place):
        file = place.file(name, content)

        def look():
            from promptsg.images import load_image

            return load_image(file)

        return look

    return make


def pictures(rng):
    "Pictures that are damaged, none, or made to harm."
    for kind in _PILLOW:
        ending = _ENDING.get(kind, kind.lower())
        whole = _encoded(kind)
        yield f"{kind} half", _look(f"half.{ending}", whole[: len(whole) // 2]), "cannot be read"
        yield f"{kind} head", _look(f"head.{ending}", whole[:20]), "cannot be read"
        yield f"{kind} nothing", _look(f"nothing.{ending}", b""), "cannot be read"
    for ending, content in _claims().items():
        yield (
            f"{ending} that claims to be enormous",
            _look(f"claim.{ending}", content),
            "cannot be read",
        )
    yield "170 megapixels of nothing", _look("big.png", png(13000, 13000)), "cannot be read"
    yield "a width of 0", _look("zero.png", png(0, 10)), "cannot be read"
    yield "depth 99", _look("deep.png", png(4, 4, bytes(99), 99)), "cannot be read"
    yield (
        "text of a gigabyte",
        _look(
            "text.png",
            png(4, 4, bytes(52), 8, 2, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        ),
        "cannot be read",
    )
    yield "no picture", _look("a.jpg", b"no picture"), "cannot be read"
    yield "random", _look("a.png", rng.randbytes(4000)), "cannot be read"
    yield "HTML", _look("a.jpg", b"<html><script>"), "cannot be read"
    yield (
        "PostScript",
        _look("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"),
        "cannot be read",
    )
    yield "a zip", _look("a.jpg", b"PK\x03\x04" + bytes(99)), "cannot be read"
    yield "NaN as a float", _look("nan.tif", _deep(np.full((9, 9), np.nan, np.float32))), "white"
    yield "negative numbers", _look("minus.tif", _deep(np.full((9, 9), -5, np.int32))), "white"
    yield "a folder", lambda place: _look_at(place.hands), "cannot be read"
    yield (
        "a pipe",
        lambda place: _look_at(_made(place.folder / "a.jpg", os.mkfifo)),
        "cannot be read",
    )
    yield (
        "endless",
        lambda place: _look_at(
            _made(place.folder / "a.jpg", lambda path: path.symlink_to("/dev/zero"))
        ),
        "cannot be read",
    )
    for name, content in {
        "torn": _encoded("JPEG")[:-400],
        "empty": b"",
        "enormous": png(10**6, 10**6),
    }.items():
        yield (
            f"search for a {name} one",
            lambda place, content=content: [
                "search",
                "--run",
                place.trained,
                "--data",
                place.hands,
                "--query",
                place.file("q.jpg", content),
            ],
            "q.jpg",
        )
        yield (
            f"doctor on a {name} one",
            lambda place, content=content: [
                "doctor",
                "--data",
                place.file("d/ann/q.jpg", content).parents[1],
            ],
            "pictures",
        )
        yield (
            f"embed a {name} one",
            lambda place, content=content: [
                "embed",
                "--run",
                place.trained,
                "--data",
                place.file("q.jpg", content),
            ],
            "q.jpg",
        )


def _look_at(path):
    from promptsg.images import load_image

    return lambda: load_image(path)


def _deep(array):
    from PIL import Image

    opened = io.BytesIO()
    Image.fromarray(array).save(opened, "TIFF")
    return opened.getvalue()


# --- weight files
class _Runs:
    "A pickle of it would run a command."

    def __reduce__(self):
        return os.system, ("touch executed",)


def _tower():
    from promptsg.backbone import WEIGHTS, read_tensors

    return dict(read_tensors(WEIGHTS / "hand-vit-tiny.safetensors")[0])


def _safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _pretrained(content, name="w.safetensors"):
    "A tower is loaded from that file."

    def make(place):
        file = place.folder / name
        content(file) if callable(content) else place.file(name, content)

        def load():
            from promptsg.backbone import load_towers

            return load_towers("hand-vit-tiny", str(file))

        return load

    return make


def _tensors(change, name="w.safetensors", **metadata):
    "Weights of the tower, changed by `change(tensors)`."

    def write(file):
        import torch
        from safetensors.torch import save_file

        tensors = _tower()
        tensors = change(tensors) or tensors
        if name.endswith(".safetensors"):
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, file, metadata or None
            )
        else:
            torch.save(tensors, file)

    return _pretrained(write, name)


def _only(value):
    "Every number of a kind replaced."

    def change(tensors):
        return {name: value(tensor) for name, tensor in tensors.items()}

    return change


def weights(rng):
    "Weight files that are damaged, of something else, or would run code."
    import torch

    claim = {"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    raw = {
        "empty": b"",
        "8 bytes": bytes(8),
        "a header of terabytes": struct.pack("<Q", 10**13),
        "tensors of terabytes": _safetensors(claim),
        "a header that is no JSON": _safetensors(b"{{{{"),
        "a header that is a list": _safetensors([1]),
        "an unknown type": _safetensors(
            {"w": {"dtype": "X", "shape": [1], "data_offsets": [0, 1]}}, b"a"
        ),
        "a negative shape": _safetensors(
            {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "no tensor": _safetensors({}),
        "a header 5,000 deep": _safetensors(b'{"a":' * 5000),
        "text": b"hello",
        "random": rng.randbytes(5000),
    }
    for name, content in raw.items():
        yield f"safetensors: {name}", _pretrained(content), "w.safetensors"
    from promptsg.backbone import WEIGHTS

    whole = (WEIGHTS / "hand-vit-tiny.safetensors").read_bytes
    yield "safetensors: half", lambda place: _pretrained(whole()[: 10**5])(place), "w.safetensors"
    changes = {
        "zeros": _only(torch.zeros_like),
        "NaN": _only(lambda t: t * float("nan")),
        "infinite": _only(lambda t: t.float() * float("inf")),
        "int8": _only(lambda t: t.to(torch.int8)),
        "complex": _only(lambda t: t.to(torch.complex64)),
        "boolean": _only(lambda t: t.bool()),
        "a tensor too few": lambda tensors: tensors.popitem() and None,
        "a tensor too many": lambda tensors: tensors.update({"visual.x": torch.ones(3)}),
        "another shape": lambda tensors: {
            name: tensor[..., :1] if tensor.ndim else tensor for name, tensor in tensors.items()
        },
        "scalars": _only(lambda t: torch.ones(())),
    }
    for name, change in changes.items():
        for file in ("w.safetensors", "w.pt"):
            if not (name == "complex" and file == "w.safetensors"):
                yield f"{file}: {name}", _tensors(change, file), file
    saved = lambda value, **how: lambda file: torch.save(value, file, **how)
    pickled = {
        "runs a command": saved({"a": _Runs()}),
        "runs a command, old": saved({"a": _Runs()}, _use_new_zipfile_serialization=False),
        "whole numbers as names": saved({1: torch.ones(2)}),
        "a list": saved([torch.ones(2)]),
        "a tensor": saved(torch.ones(2)),
        "a number": saved(3),
        "names of nothing": saved({"a": None}),
        "nested": saved({"state_dict": {"state_dict": {}}}),
        "empty": saved({}),
        "a module": saved(torch.nn.Linear(2, 2)),
        "one number seen as many": saved({"a": torch.ones(1).expand(10**6)}),
        "sparse": saved({"a": torch.ones(2, 2).to_sparse()}),
        "on no device": saved({"a": torch.ones(2, device="meta")}),
    }
    for name, write in pickled.items():
        yield f"pickle: {name}", _pretrained(write, "w.pt"), "w.pt"
    yield "pickle: bare", _pretrained(pickle.dumps({"a": _Runs()}), "w.pt"), "w.pt"
    yield "pickle: a zip bomb", _pretrained(_zip_bomb, "w.pt"), "w.pt"
    yield "pickle: an empty zip", _pretrained(b"PK\x05\x06" + bytes(18), "w.pt"), "w.pt"
    yield "a folder", lambda place: _load(place.hands)
    yield "a pipe", lambda place: _load(_made(place.folder / "pipe.safetensors", os.mkfifo))
    yield "endless", lambda place: _load("/dev/zero")
    yield "NUL", lambda place: _load("a\0b")
    yield "missing", lambda place: _load("none.pt"), "none.pt"
    for name in ("openai", "laion2b", "", ".", "~", "a" * 300, "http://x/y.pt"):
        yield f"weights called {name[:20]}", lambda place, name=name: _load(name)
    for name in ("vit", "", "a" * 300, "../x", "\0", "a\nb"):
        yield f"tower called {ascii(name)[:20]}", lambda place, name=name: _load("random", name)
    sizes = dict(context_length=40, vocab_size=4014, width=256, heads=4, layers=4)
    for name, cfg in {
        "text_cfg missing": None,
        "text_cfg no JSON": "{",
        "text_cfg a list": "[]",
        "text_cfg a number": "3",
        "text_cfg deep": "[" * 5000,
        **{
            f"text_cfg {key} {value}": json.dumps({**sizes, key: value})
            for key, value in (
                ("layers", 10**9),
                ("width", 10**9),
                ("heads", 0),
                ("heads", 3),
                ("vocab_size", -1),
                ("context_length", "x"),
                ("width", None),
                ("layers", 1.5),
            )
        },
    }.items():
        yield name, lambda place, cfg=cfg: _load_text(place, cfg), "t.safetensors"


def _zip_bomb(file):
    import zipfile

    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**8))
        archive.writestr("a/constants.pkl", b"")


def _load(weights, model="hand-vit-tiny"):
    from promptsg.backbone import load_towers

    return lambda: load_towers(model, str(weights))


def _load_text(place, cfg):
    import torch
    from safetensors.torch import save_file

    from promptsg.backbone import load_text

    file = place.folder / "t.safetensors"
    save_file(
        {"text_projection": torch.ones(2, 2)}, file, None if cfg is None else {"text_cfg": cfg}
    )
    return lambda: load_text(file, 2)


# --- run folders
_JUNK = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "half": b'{"a": [1, ',
    "not UTF-8": b'{"a": "\xff"}',
    "binary": bytes(range(256)),
    "5,000 deep": b"[" * 5000,
    "NUL": bytes(50),
    "NaN": b"NaN",
    "an empty object": b"{}",
    "digits": b'{"format": ' + b"9" * 5000 + b"}",
}


def damaged(file, content, *words):
    """A command on a copy of the run in which a file is another; `content`: bytes, a function of
    the old text, or None."""

    def make(place):
        run = place.run()
        old = run / file
        if content is None:
            old.unlink()
        else:
            place.file(old, content(old.read_text()) if callable(content) else content)
        known = {
            "{run}": run,
            "{hands}": place.hands,
            "{out}": place.folder / "out",
            "{picture}": place.picture,
        }
        return [known.get(word, word) for word in words]

    return make


EVALUATE = ("evaluate", "--run", "{run}", "--data", "{hands}")
EXPORT = ("export", "--run", "{run}", "--out", "{out}")
RESUME = ("train", "--resume", "--data", "{hands}", "--out", "{run}")


def changed(**values):
    "Values of a JSON object replaced."
    return lambda text: json.dumps({**json.loads(text), **values})


def runs(rng):
    "Run folders in which a file is missing, damaged or another's."
    for name, content in _JUNK.items():
        for words in (EVALUATE, RESUME):
            yield (
                f"config.yml, {words[0]}: {name}",
                damaged("config.yml", b"[]" if content == b"{}" else content, *words),
                "config.yml",
            )
        yield f"splits.json: {name}", damaged("splits.json", content, *EVALUATE), "splits.json"
        yield (
            f"splits.json, export: {name}",
            damaged("splits.json", content, *EXPORT),
            "splits.json",
        )
        yield (
            f"state.json, export: {name}",
            damaged("best/state.json", content, *EXPORT),
            "state.json",
        )
        if name not in ("NaN", "null", "a number"):
            yield (
                f"metrics.csv, export: {name}",
                damaged("metrics.csv", content, *EXPORT),
                "metrics.csv",
            )
        yield (
            f"result.json, export: {name}",
            damaged("evaluation-clipfh/result.json", content, *EXPORT),
            "evaluation-clipfh",
        )
        yield (
            f"per_query.csv, export: {name}",
            damaged("evaluation-clipfh/per_query.csv", content, *EXPORT),
            "evaluation-clipfh",
        )
        yield (
            f"per_split.csv, export: {name}",
            damaged("evaluation-clipfh/per_split.csv", content, *EXPORT),
            "evaluation-clipfh",
        )
    for file in (
        "config.yml",
        "splits.json",
        "metrics.csv",
        "best/state.json",
        "best/checkpoint.safetensors",
    ):
        yield f"{file}, export: missing", damaged(file, None, *EXPORT), file.split("/")[-1]
    another = lambda old, new: lambda text: text.replace(old, new)
    for name, change in {
        "another tower": another("hand-vit-tiny", "hand-rn-tiny"),
        "another head": another("classifier: linear", "classifier: arcface"),
        "another width": another("inversion_hidden: 512", "inversion_hidden: 64"),
        "no language": another("language: true", "language: false"),
        "other weights": another("pretrained: embedded", "pretrained: random"),
        "a field too many": lambda text: text + "x: 1\n",
        "a bomb": lambda text: text + _laughs(),
        "a real CLIP": another("hand-vit-tiny", "nowhere"),
        "frozen blocks": another("unfreeze_blocks: null", "unfreeze_blocks: 1"),
    }.items():
        yield f"config.yml: {name}", damaged("config.yml", change, *EVALUATE)
    for name, values in {
        "classes a number": dict(classes=3),
        "best_epoch text": dict(best_epoch="one"),
        "best_epoch 99": dict(best_epoch=99),
        "best_epoch huge": dict(best_epoch=10**400),
        "best_epoch null": dict(best_epoch=None),
    }.items():
        yield f"state.json, export: {name}", damaged("best/state.json", changed(**values), *EXPORT)
    for name, values in {
        "images a number": dict(images=3),
        "images of numbers": dict(images=[[1, 2, 3]]),
        "images too short": dict(images=[["a", "b"]]),
        "a place out of range": dict(test=[10**9]),
        "a negative place": dict(test=[-1]),
        "a place as text": dict(train=["a"]),
        "a place as truth": dict(train=[True]),
        "queries flat": dict(queries=[1]),
        "queries null": dict(queries=None),
        "queries of text": dict(queries="abc"),
        "people numbers": dict(people=[1]),
        "people null": dict(people=None),
        "excluded a list": dict(excluded=[]),
        "aspect a number": dict(aspect=3),
        "format 3": dict(format=3),
        "format text": dict(format="2"),
        "no test": dict(test=[]),
        "no queries": dict(queries=[], galleries=[], galleries_all=[]),
        "fewer galleries": dict(galleries=[[0]]),
        "excluded of text": dict(excluded={"worn": "many"}),
        "cross text": dict(cross="yes"),
        "source a list": dict(source=[1]),
        "aspect another": dict(aspect="palmar_l"),
        "a hash null": dict(images=[["a.jpg", "1:x", None]]),
        "empty queries": dict(queries=[[], [], []]),
    }.items():
        yield f"splits.json: {name}", damaged("splits.json", changed(**values), *EVALUATE), ""
    result = "evaluation-clipfh/result.json"
    for name, values in {
        "cmc text": dict(cmc="x"),
        "cmc ragged": dict(cmc=[[1], [1, 2]]),
        "cmc short": dict(cmc=[[1]]),
        "cmc null": dict(cmc=[None]),
        "cmc of objects": dict(cmc=[{}]),
        "summary a list": dict(summary=[]),
        "summary text": dict(summary={"mAP": "x"}),
        "protocol text": dict(protocol="clipfh"),
        "protocol numbers": dict(protocol={"name": 1, "gallery": 2, "ap": 3}),
        "machine a list": dict(machine=[]),
        "versions text": dict(versions="x"),
        "queries text": dict(queries="x"),
        "config a list": dict(config=[1]),
        "splits null": dict(splits=None),
        "splits 99": dict(splits=99),
        "left_out a list": dict(left_out=[]),
    }.items():
        yield f"result.json, export: {name}", damaged(result, changed(**values), *EXPORT), ""
    for name, text in {
        "a column less": "split,path\n0,a\n",
        "words": "split,rank1,rank5,rank10,mAP,mINP\na,b,c,d,e,f\n",
        "no rows": "split,rank1,rank5,rank10,mAP,mINP\n",
        "above 1": "split,rank1,rank5,rank10,mAP,mINP\n0,9,9,9,9,9\n",
        "huge": "split,rank1,rank5,rank10,mAP,mINP\n0,1e999,1,1,1,1\n",
    }.items():
        yield (
            f"per_split.csv, export: {name}",
            damaged("evaluation-clipfh/per_split.csv", text.encode(), *EXPORT),
        )
    for name, text in {
        "no val_mAP": "epoch,loss\n1,2\n",
        "words": "epoch,loss,val_rank1,val_mAP\n1,a,b,c\n",
        "no row": "epoch,loss,val_rank1,val_mAP\n",
        "epoch twice": "epoch,loss,val_rank1,val_mAP\n1,2,.5,.5\n1,2,.5,.5\n",
        "epoch a word": "epoch,loss,val_rank1,val_mAP\none,1,.5,.5\n",
        "ragged": "epoch,loss\n1,2,3,4,5\n1\n1,2,3,4,5,6,7\n",
    }.items():
        yield (
            f"metrics.csv, export: {name}",
            damaged("metrics.csv", text.encode(), *EXPORT),
            "metrics.csv",
        )
    for file in (
        "config.yml",
        "splits.json",
        "metrics.csv",
        "best/state.json",
        "evaluation-clipfh/result.json",
        "evaluation-clipfh/per_query.csv",
    ):
        for what, place_it in {
            "a folder": Path.mkdir,
            "a pipe": os.mkfifo,
            "endless": lambda path: path.symlink_to("/dev/zero"),
        }.items():
            yield (
                f"{file}: {what}",
                lambda place, file=file, place_it=place_it: _replaced(place, file, place_it),
            )


def _replaced(place, file, place_it):
    run = place.run()
    (run / file).unlink()
    place_it(run / file)
    return ["export", "--run", run, "--out", place.folder / "out"]


# --- checkpoints
def _checkpoint(change, *words, state=None, tensors=None, which="best", more=False):
    """A command on a run whose checkpoint has other bytes, or another state or tensors under a
    right checksum."""

    def make(place):
        from promptsg.backbone import read_tensors, save_tensors

        run = place.run()
        file = run / which / "checkpoint.safetensors"
        if more:  # an epoch is left to train
            place.file(
                run / "config.yml",
                (run / "config.yml").read_text().replace("epochs: 1", "epochs: 2", 1),
            )
        if change:
            place.file(file, change(file.read_bytes()))
        else:
            found, about = read_tensors(file)
            about.pop("sha256"), about.pop("format")
            old = json.loads(about["state"])
            about["state"] = state(old) if callable(state) else about["state"]
            found = (tensors and tensors(found)) or found
            file.unlink()
            save_tensors(
                file, found, **{key: value for key, value in about.items() if value is not None}
            )
        known = {"{run}": run, "{hands}": place.hands, "{out}": place.folder / "out"}
        return [known.get(word, word) for word in words or EVALUATE]

    return make


def checkpoints(rng):
    "Checkpoints with other bytes, another state, or weights that are no numbers."
    import torch

    flip = lambda at: lambda content: content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
    for name, change in {
        "empty": lambda content: b"",
        "half": lambda content: content[: len(content) // 2],
        "a byte less": lambda content: content[:-1],
        "a byte more": lambda content: content + b"a",
        "a bit of its size": flip(1),
        "a bit of its head": flip(40),
        "random": lambda content: rng.randbytes(9999),
    }.items():
        yield name, _checkpoint(change), "checkpoint"
    for share in (0.3, 0.6, 0.9):
        yield (
            f"a bit at {share}",
            _checkpoint(lambda content, share=share: flip(int(len(content) * share))(content)),
            "checkpoint",
        )
    with_ = lambda **values: lambda old: json.dumps({**old, **values})
    for name, state in {
        "none": lambda old: None,
        "no JSON": lambda old: "{",
        "a list": lambda old: "[]",
        "deep": lambda old: "[" * 9000,
        "epoch text": with_(epoch="one"),
        "epoch null": with_(epoch=None),
        "classes a number": with_(classes=7),
        "classes empty": with_(classes=[]),
        "classes a million": with_(classes=["a"] * 10**6),
        "history text": with_(history="x"),
        "history of numbers": with_(history=[1]),
        "frozen_hash a number": with_(frozen_hash=3),
        "frozen_hash another": with_(frozen_hash="0" * 16),
        "digits": lambda old: '{"epoch": ' + "9" * 5000 + "}",
    }.items():
        yield f"state: {name}", _checkpoint(None, state=state)
    last = {
        "epoch text": with_(epoch="one"),
        "classes another": with_(classes=["a"]),
        "classes of lists": with_(classes=[["a"]]),
        "history empty rows": with_(history=[{}]),
        "history words": with_(history=[{"epoch": "a", "val_mAP": "b"}]),
        "epoch -1": with_(epoch=-1),
        "epoch huge": with_(epoch=10**30),
        "epoch true": with_(epoch=True),
        "epoch 99": with_(epoch=99),
        "history null": with_(history=[{"epoch": None, "val_mAP": None}]),
    }
    for name, state in last.items():
        yield (
            f"resume, state: {name}",
            _checkpoint(None, *RESUME, state=state, which="last", more=True),
        )
    change = lambda value, kind="model/": (
        lambda found: {
            name: value(tensor) if name.startswith(kind) else tensor
            for name, tensor in found.items()
        }
    )
    for name, tensors in {
        "NaN": change(lambda t: t * float("nan") if t.is_floating_point() else t),
        "infinite": change(lambda t: t + float("inf") if t.is_floating_point() else t),
        "another shape": change(lambda t: t[..., :1] if t.ndim else t),
        "no tensor": lambda found: {"x": torch.ones(1)},
        "another name": lambda found: {name.upper(): tensor for name, tensor in found.items()},
        "int8": change(lambda t: t.to(torch.int8)),
        "half of them": lambda found: dict(list(found.items())[::2]),
    }.items():
        for words in (EVALUATE, EXPORT):
            yield f"weights, {words[0]}: {name}", _checkpoint(None, *words, tensors=tensors)
    for name, tensors in {
        "an unknown weight": lambda found: {**found, "optimizer/nothing/step": torch.ones(())},
        "another shape": change(lambda t: torch.ones(3), "optimizer/"),
        "no name": lambda found: {**found, "optimizer/x": torch.ones(1)},
        "NaN": change(lambda t: t * float("nan"), "optimizer/"),
        "unknown entry": lambda found: {
            **found,
            next(n for n in found if n.startswith("optimizer/")).rsplit("/", 1)[0]
            + "/x": torch.ones(1),
        },
    }.items():
        yield (
            f"optimizer, resume: {name}",
            _checkpoint(None, *RESUME, tensors=tensors, which="last", more=True),
        )


# --- models to hand on
def _handed_on(content):
    "A folder with weights of two numbers and that config.json."

    def make(place):
        from safetensors.numpy import save_file

        (place.folder / "model").mkdir()
        save_file(
            {"backbone.x": np.ones(2, np.float32)}, place.folder / "model" / "model.safetensors"
        )
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        place.file("model/config.json", text)

        def load():
            from promptsg.model import PromptSG

            return PromptSG.from_pretrained(place.folder / "model", local_files_only=True)

        return load

    return make


def models(rng):
    "Folders that PromptSG.from_pretrained is given."
    right = {
        "config": Config(model="hand-vit-tiny").model_dump(mode="json"),
        "tower": "hand-vit-tiny",
        "text_cfg": None,
        "identities": 3,
        "trained_on": None,
    }
    for name, content in _JUNK.items():
        yield name, _handed_on(content), "config.json"
    for name, values in {
        "config a list": dict(config=[]),
        "config null": dict(config=None),
        "config unknown": dict(config={"x": 1}),
        "config huge": dict(config={"inversion_hidden": 10**12}),
        "tower a number": dict(tower=3),
        "tower unknown": dict(tower="x"),
        "tower a path": dict(tower="../../x"),
        "tower large": dict(tower="ViT-bigG-14"),
        "identities 0": dict(identities=0),
        "identities huge": dict(identities=10**12),
        "identities true": dict(identities=True),
        "identities text": dict(identities="3"),
        "text_cfg a list": dict(text_cfg=[]),
        "text_cfg huge": dict(text_cfg={"width": 10**9}),
        "trained_on text": dict(trained_on="x"),
        "trained_on of numbers": dict(trained_on=[1]),
    }.items():
        yield name, _handed_on({**right, **values})
    for name in ("none", "a/b/c", "", "a" * 300, "a\0b", "../x"):
        yield f"a folder called {name[:9]!r}", lambda place, name=name: _from(name)


def _from(name):
    from promptsg.model import PromptSG

    return lambda: PromptSG.from_pretrained(name, local_files_only=True)


# --- reports
RUN = "hand-vit-tiny/dorsal_r/paper-seed0"


def reports(rng):
    "Report folders in which something is damaged."

    def load(file, content):
        def make(place):
            from promptsg.report import load_report

            out = place.copy(place.reported, "report")
            place.file(out / file, content)
            return lambda: load_report(out)

        return make

    for name, content in _JUNK.items():
        if name != "an empty object":
            yield f"report.json: {name}", load("report.json", content), "report.json"
        yield (
            f"result.json: {name}",
            load(f"{RUN}/evaluation-clipfh/result.json", content),
            "evaluation-clipfh",
        )
        yield (
            f"per_query.csv: {name}",
            load(f"{RUN}/evaluation-clipfh/per_query.csv", content),
            "evaluation-clipfh",
        )
    for name, content in {
        "command a list": b'{"command": [], "data_hash": "x"}',
        "no hash": b'{"command": "x"}',
        "hash a number": b'{"command": "x", "data_hash": 3}',
    }.items():
        yield f"report.json: {name}", load("report.json", content), "report.json"
        yield (
            f"report.json, begun again: {name}",
            lambda place, content=content: _again(place, "report.json", content),
            "report.json",
        )
    yield (
        "begun again on other data",
        lambda place: _again(place, "report.json", b'{"command": "x", "data_hash": "x"}'),
        "other data",
    )
    yield (
        "begun again with another config",
        lambda place: _again(place, f"{RUN}/config.yml", b"epochs: 77\n"),
        "started with",
    )
    yield (
        "begun again on a damaged config",
        lambda place: _again(place, f"{RUN}/config.yml", b"\xff"),
        "config.yml",
    )
    published = {
        "empty": b"",
        "words": b"backbone,version,rank1,mAP\na,b,c,d\n",
        "no mAP": b"backbone,version\na,b\n",
        "binary": bytes(range(256)),
        "not UTF-8": b"backbone,version,rank1,rank5,rank10,mAP\n\xff,a,1,1,1,1\n",
    }
    for name, content in published.items():
        yield (
            f"published: {name}",
            lambda place, content=content: [
                "report",
                "--versions",
                "paper",
                "--data",
                place.hands,
                "--out",
                place.folder / "out",
                "--published",
                place.file("p.csv", content),
            ],
            "p.csv",
        )


def _again(place, file, content):
    out = place.copy(place.reported, "report")
    (out / RUN / "config.yml").unlink()  # else the settings that are asked for differ
    place.file(out / file, content)
    return [
        "report",
        "--backbone",
        "hand-vit-tiny",
        "--versions",
        "paper",
        "--protocol",
        "clipfh",
        "--data",
        place.hands,
        "--out",
        out,
    ]


# --- the explorer
def uploads(rng):
    "What is typed or uploaded into the explorer. The function gets the explorer."
    for name in (
        "..",
        "",
        ".",
        "a" * 300,
        "a\0b",
        "/etc/passwd",
        "\udc80",
        "\n",
        "-",
        "con",
        "日本" * 100 + ".jpg",
    ):
        yield (
            f"upload {ascii(name)[:20]}",
            lambda place, name=name: lambda explorer: explorer.set_upload(name, b"no picture"),
            "cannot be read",
        )
    for name, content in {
        "nothing": b"",
        "enormous": png(10**6, 10**6),
        "torn": _encoded("JPEG")[:-400],
    }.items():
        yield (
            f"upload of {name}",
            lambda place, content=content: lambda explorer: explorer.set_upload("a.png", content),
            "a.png",
        )
    for words in (
        "{aspect.__class__}",
        "{aspect:>3000000000}",
        "{",
        "no place",
        "{} {}",
        "{} " + "hand " * 500,
        "",
        "\x00",
        "{0}",
    ):
        yield (
            f"words {words[:20]!r}",
            lambda place, words=words: lambda explorer: explorer.set_prompt(words),
        )
    for path in ("none.jpg", "", "a\0b", "a" * 5000, "/dev/zero", "~nobody/x.jpg", "/"):
        yield (
            f"query {path[:20]!r}",
            lambda place, path=path: lambda explorer: explorer.set_query(path),
        )
    yield "another run", lambda place: lambda explorer: explorer.set_run("nobody"), "nobody"


# --- names
def names(rng):
    "VERSION@BACKBONE, and what else is found by its name."
    letters = "".join(map(chr, range(32, 127))) + "äß日\u200b\u202e\x1b\n\t\udc80"
    strange = [
        "@",
        "a@",
        "@a",
        "paper@",
        "@hand-vit-tiny",
        "paper@ViT-B-32",
        "paper@@hand-vit-tiny",
        "v99@vitb16",
        "paper-logged@vitb16",
        "v8-logged-logged@vitb16",
        "paper@" + "a" * 300,
        "a" * 300 + "@hand-vit-tiny",
        "a" * 300,
        "a" * 5000,
        "$HOME@$x",
        "a\nb@c",
        "a\udc80@b",
        "\x1b[2J@x",
        "paper@hand-vit-tiny\n",
        "a\0@b",
        "a\0",
        "~",
        "-",
        "日本@語",
        "../" * 50 + "etc/passwd",
        "/etc/passwd@x",
        "{}@{}",
        "%s@%n",
        "paper@hand-vit-tiny@x",
        "PAPER@hand-vit-tiny",
    ]
    strange += ["".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(20)]
    for number, name in enumerate(strange):
        yield f"config {number} {ascii(name)[:24]}", training(config=name)


# --- and what only looks bad
def good(rng):
    "Harmless input that looks like the bad."

    def config(text, **right):
        def make(place):
            def check():
                from promptsg.cli import read_config

                found = read_config(CONFIG, [text])
                assert {name: getattr(found, name) for name in right} == right

            return check

        return make

    for text, field, value in (
        ("prompt_template={} hand", "prompt_template", "{} hand"),
        ("prompt_template=@{} hand", "prompt_template", "@{} hand"),
        ("prompt_template=a {}: back", "prompt_template", "a {}: back"),
        ("simplified_prompt=- a 'hand' # 1", "simplified_prompt", "- a 'hand' # 1"),
        ("simplified_prompt=the {aspect} hand, a=b", "simplified_prompt", "the {aspect} hand, a=b"),
        ("simplified_prompt=*", "simplified_prompt", "*"),
        ("simplified_prompt=format me %s $HOME", "simplified_prompt", "format me %s $HOME"),
        ("simplified_prompt=null", "simplified_prompt", "null"),
        ("pretrained=null", "pretrained", "null"),
        ("text_pretrained=null", "text_pretrained", None),
        ("image_size=160", "image_size", (160, 160)),
        ("image_size=[224, 128]", "image_size", (224, 128)),
        ("image_size=null", "image_size", None),
        ("precision=no", "precision", "no"),
        ("variant=mine", "variant", "mine"),
        ("experiment=日本 1", "experiment", "日本 1"),
        ("seed=4294967295", "seed", 2**32 - 1),
        ("seed=0x10", "seed", 16),
        ("lr_modules=1e-3", "lr_modules", 1e-3),
        ("lr_modules=0.5", "lr_modules", 0.5),
        ("epochs= 7 ", "epochs", 7),
        ("dropout=0", "dropout", 0),
        ("warmup_epochs=0.5", "warmup_epochs", 0.5),
        ("train_aspects=[dorsal_l, palmar_r]", "train_aspects", ("dorsal_l", "palmar_r")),
        ("num_splits=1000", "num_splits", 1000),
        ("shuffle=true", "shuffle", True),
    ):
        yield text, config(text, **{field: value}), "", True
    for name, text in {
        "UTF-8 with a mark": "\ufeffexperiment: Händel",
        "Chinese": "experiment: 日本",
        "an empty map": "{}",
        "comments": "# epochs: 3\nepochs: 3 # three",
        "a list": "image_size: [224, 128]",
        "a folded sentence": "prompt_template: >-\n  a {}\n  hand",
        "quoted braces": 'prompt_template: "{} hand"',
        "Windows' line ends": "epochs: 3\r\nseed: 4\r\n",
    }.items():
        yield (
            f"config: {name}",
            lambda place, text=text: lambda: Config.from_yaml(place.file("c.yml", text)),
            "",
            True,
        )
    for name, row in {
        "id 559": _row(),
        "id 0000559": _row(id="0000559"),
        "id 1": _row(id="1"),
        "a quoted name": _row(imageName='"a.jpg"'),
        "accessories 0.0": _row(accessories="0.0"),
        "blanks": _row(id=" 559 "),
    }.items():
        yield name, _hand_info([row]), "", True
    for name in (
        "日本.jpg",
        "a$HOME b.jpg",
        "=1+1.jpg",
        "-rf.jpg",
        "a`b`.jpg",
        "a;b'c.jpg",
        "%s{}.jpg",
    ):
        yield f"a picture called {name}", _folders(f"ann/{name}", "bob/b.jpg"), "", True
        yield (
            f"doctor on {name}",
            lambda place, name=name: (
                _folders(f"ann/{name}", "bob/b.jpg")(place),
                ["doctor", "--data", place.folder / "data"],
            )[-1],
            "2 images of 2 people",
            True,
        )
    yield "names in Chinese", _folders("日本/a.jpg", "中国/b.jpg"), "", True
    yield "own table", _own_table("path,identity\na.jpg,ann\nb.jpg,bob\n"), "", True
    yield (
        "own table with everything",
        _own_table(
            "path,identity,side,aspect,camera\na.jpg,ann,train,dorsal "
            "right,1\nb.jpg,bob,test,dorsal_r,2\n"
        ),
        "",
        True,
    )
    for kind in _PILLOW:
        yield (
            f"a whole {kind}",
            _look(f"a.{_ENDING.get(kind, kind.lower())}", _encoded(kind)),
            "",
            True,
        )
    yield "one pixel", _look("a.png", png(1, 1, bytes(4))), "", True
    yield "a PNG called jpg", _look("a.jpg", _encoded("PNG")), "", True
    for name in ("w.safetensors", "w.pt"):
        yield f"the tower's own weights as {name}", _tensors(lambda tensors: None, name), "", True
    yield (
        "the run as it is",
        lambda place: ["export", "--run", place.run(), "--out", place.folder / "a $name 日本"],
        "the model is in",
        True,
    )
    yield (
        "the run with an epoch more",
        _checkpoint(None, *RESUME, which="last", more=True),
        "trained",
        True,
    )
    yield "the report as it is", lambda place: _loaded(place.reported), "", True
    yield (
        "the explorer",
        lambda place: lambda explorer: explorer.set_upload("..", _encoded("JPEG")),
        "",
        True,
    )
    yield (
        "the explorer's words",
        lambda place: lambda explorer: explorer.set_prompt("A {} hand: 100 % `x`."),
        "",
        True,
    )
    yield (
        "search, with a strange name",
        lambda place: [
            "search",
            "--run",
            place.trained,
            "--data",
            place.hands,
            "--query",
            place.file("=日本 $x.png", _encoded("PNG")),
            "--out",
            place.folder / "found",
        ],
        "nearest|similarity",
        True,
    )
    yield "versions", command("versions", "--backbone", "hand-rn-tiny"), "v11", True


def _loaded(out):
    from promptsg.report import load_report

    return lambda: load_report(out)
