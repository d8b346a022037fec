"""Parts of one's own: registered under a name, named in the config, at work in every command; and
never imported by data."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import typer.main
from torch import nn

from promptsg import parts
from promptsg.backbone import Backbone, load_towers
from promptsg.caches import embedding_kind, foreign_code
from promptsg.checkpoints import load_run
from promptsg.cli import app
from promptsg.config import Config, PromptSGError
from promptsg.controls import gradient_table
from promptsg.data import eval_transform
from promptsg.embedding import measure
from promptsg.fusion import Fused
from promptsg.model import PromptSG
from promptsg.training import Trainer, loss_terms

FILM = """
import torch
from torch import nn
from promptsg.fusion import Fused
from promptsg.heads import HeadOutput
from promptsg.parts import register


@register("fusion", "film")
class Film(nn.Module):
    "A text scales and shifts the embedding."

    def __init__(self, dim, start=0.0):
        super().__init__()
        self.scale, self.shift = nn.Linear(dim, dim), nn.Linear(dim, dim)
        for layer in (self.scale, self.shift):
            nn.init.constant_(layer.weight, start)
            nn.init.zeros_(layer.bias)

    def forward(self, text, patches, embedding):
        said = text.mean(1)
        even = patches.new_full((patches.shape[0], 1, patches.shape[1]), 1 / patches.shape[1])
        return Fused(embedding * (1 + self.scale(said)) + self.shift(said), even)


@register("head", "narrow")
class Narrow(nn.Module):
    "A linear map to 16 numbers, and a classifier on these."

    def __init__(self, dim, num_classes, width=16):
        super().__init__()
        self.out_dim = width
        self.down, self.classifier = nn.Linear(dim, width), nn.Linear(width, num_classes)

    def forward(self, features, labels=None):
        x = self.down(features)
        return HeadOutput(x, self.classifier(x))


@register("loss", "spread")
def spread(output, labels, config, scale=1.0):
    return scale * output.embedding.square().sum(1).mean()
"""


@pytest.fixture
def registry(monkeypatch):
    "What a test registers is gone after it."
    monkeypatch.setattr(parts, "_own", {kind: {} for kind in parts.BUILT_IN})
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield parts._own
    for name in ("film", "film_two"):
        sys.modules.pop(name, None)


@pytest.fixture
def film(registry, tmp_path):
    "A file of one's own parts, brought in."
    file = tmp_path / "film.py"
    file.write_text(FILM)
    parts.bring(file)
    return file


def own(config, **changes):
    return config.replace(
        **dict(
            fusion="film",
            classifier="narrow",
            losses={"spread": 0.01},
            epochs=1,
            steps_per_epoch=2,
            train_aspects=(),
        )
        | changes
    )


def said(action):
    with pytest.raises(PromptSGError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the registry


def test_the_package_s_parts_are_in_the_registry():
    for kind, these in parts.BUILT_IN.items():
        for name in these:
            assert callable(parts.part(kind, name))
    assert not any(
        parts.is_own(kind, name) for kind in parts.BUILT_IN for name in parts.names(kind)
    )


@pytest.mark.parametrize(
    "kind, name, made, words",
    [
        ("fusion", "film", print, "torch.nn.Module"),
        ("head", "mine", lambda: None, "torch.nn.Module"),
        ("loss", "mine", dict, "a function"),
        ("loss", "mine", 3, "a function"),
        ("loss", "keys", nn.Linear, "PyTorch keeps the name"),
        ("backbone", "mine", nn.Linear, "Backbone"),
        ("fusion", "patches", nn.Linear, "exists already (in promptsg)"),
        ("head", "linear", nn.Linear, "exists already (in promptsg)"),
        ("loss", "triplet", lambda: None, "exists already"),
        ("fusion", "os.system", nn.Linear, "cannot be the name"),
        ("fusion", "../film", nn.Linear, "cannot be the name"),
        ("fusion", 3, nn.Linear, "cannot be the name"),
        ("prompt", "mine", nn.Linear, "not a kind of part"),
    ],
)
def test_a_bad_registration_is_one_sentence(registry, kind, name, made, words):
    assert words in said(lambda: parts.register(kind, name)(made))
    assert not any(registry.values())


@pytest.mark.parametrize("name", ["vitb16", "hand-vit-tiny", "RN50"])
def test_a_tower_s_name_is_taken(registry, name):
    assert "exists already" in said(
        lambda: parts.register("backbone", name)(type("Mine", (Backbone,), {}))
    )


def test_a_name_belongs_to_one_place_and_a_cell_may_run_again(registry):
    def make(place):
        made = lambda output, labels, config: output.embedding.sum()
        made.__module__, made.__qualname__ = place, "mine"
        return made

    first, again, other = make("one"), make("one"), make("other")
    parts.register("loss", "mine")(first)
    parts.register("loss", "mine")(again)
    assert parts.part("loss", "mine") is again
    assert "in one.mine" in said(lambda: parts.register("loss", "mine")(other))


# --- the config, and what it may not do


@pytest.mark.parametrize("field", ["fusion", "classifier"])
@pytest.mark.parametrize(
    "name", ["film", "os.system", "antigravity", "/tmp/film.py", "promptsg.bench"]
)
def test_a_config_imports_nothing(registry, field, name):
    modules = set(sys.modules)
    sentence = said(lambda: Config(**{field: name}))
    assert "--import" in sentence and "nearest known" in sentence
    assert set(sys.modules) == modules


def test_neither_does_a_run_folder_or_a_model_s(film, quick, splits, tmp_path, registry):
    "A process that has not brought the part gets the sentence, and the file is not run."
    run, model = tmp_path / "run", tmp_path / "model"
    Trainer(own(quick), splits, run, progress=False).fit()
    load_run(run).save_pretrained(model)
    film.write_text("raise SystemExit('imported')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from promptsg.model import PromptSG\nfrom promptsg.training import load_run\n"
        "for read in (load_run, PromptSG.from_pretrained):\n"
        "    try:\n        read(sys.argv.pop(1))\n"
        "    except Exception as error:\n        print(type(error).__name__, error)\n"
        "assert 'film' not in sys.modules"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(run), str(model)], capture_output=True, text=True
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and len(lines) == 2, ended.stderr
    assert all(
        line.startswith("PartError") and "'film'" in line and "--import MODULE" in line
        for line in lines
    )
    assert not any("save the model again" in line for line in lines)


def test_an_unknown_tower_says_how_to_bring_one(registry):
    assert "--import MODULE" in said(lambda: PromptSG(Config(model="my-net"), 2))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(losses={"triplet": 1.0}), "loss_tri_weight"),
        (dict(losses={"spread": -1}), "at least 0"),
        (dict(losses={"spread": "much"}), "losses"),
        (dict(losses={"spraed": 1}), "'spread'"),
        (dict(part_options={"fusion": {"start": 1}}), "names no registered part"),
        (dict(part_options={"narrow": {}}), "names no registered part"),
        (
            dict(losses={"spread": 1}, part_options={"spread": {"scale": float("nan")}}),
            "part_options",
        ),
    ],
)
def test_weights_and_options_are_checked(film, changes, words):
    assert words in said(lambda: Config(**changes))


def test_options_reach_the_part_and_wrong_ones_are_a_sentence(film, quick):
    options = {"fusion": {"start": 0.5}, "head": {"width": 5}, "spread": {"scale": 3.0}}
    model = PromptSG(own(quick, part_options=options), 4).eval()
    assert (model.fusion.scale.weight == 0.5).all() and model.out_dim == 5
    output, labels = model(torch.randn(2, 3, *model.backbone.image_size)), torch.tensor([0, 1])
    plain = own(quick)
    ratio = (
        loss_terms(output, labels, model.config)["spread"]
        / loss_terms(output, labels, plain)["spread"]
    )
    assert ratio.item() == pytest.approx(3)
    wrong = own(quick, part_options={"fusion": {"stop": 1}})
    assert "stop" in said(lambda: PromptSG(wrong, 4)) and "part_options" in said(
        lambda: PromptSG(wrong, 4)
    )
    assert Config.from_yaml(written(model.config)) == model.config


def written(config):
    import tempfile
    from pathlib import Path

    file = Path(tempfile.mkdtemp()) / "config.yml"
    file.write_text(config.to_yaml())
    return file


def test_the_config_alone_imports_no_torch():
    code = (
        "import sys; from promptsg.config import Config; Config(fusion='text').hash; assert "
        "'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bring


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "there is no such file"),
        ("x = 1\n", "registers no part"),
        ("1 / 0\n", "ZeroDivisionError"),
        ("def (\n", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
    ],
)
def test_what_cannot_be_brought_is_one_sentence(registry, tmp_path, text, words):
    file = tmp_path / "film_two.py"
    if text is not None:
        file.write_text(text)
    assert words in said(lambda: parts.bring(file))


def test_a_file_does_not_take_another_module_s_name(registry, tmp_path):
    file = tmp_path / "json.py"
    file.write_text(FILM)
    assert "another module named json" in said(lambda: parts.bring(file))


def test_a_module_is_brought_once(film):
    before = sys.modules["film"]
    assert parts.bring(film) is before and parts.bring("film") is before


def test_an_installed_package_s_parts_have_a_short_name(registry, tmp_path, monkeypatch):
    "Its metadata is read for the sentence; only --import imports it."
    (tmp_path / "film_two.py").write_text(FILM)
    about = tmp_path / "filmpack-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: filmpack\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[promptsg.parts]\nfilm = film_two\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sentence = said(lambda: Config(fusion="film"))
    assert "--import film" in sentence and "film_two" not in sys.modules
    parts.bring("film")
    assert Config(fusion="film").fusion == "film"


# --- at work


def test_own_parts_work_from_training_to_a_model_handed_on(film, quick, splits, tmp_path):
    config, run = own(quick, whiten=True), tmp_path / "run"
    Trainer(config, splits, run, progress=False).fit()
    assert "loss_spread" in (run / "metrics.csv").read_text().splitlines()[0]
    model = load_run(run)
    assert model.fusion.shift.weight.abs().max() > 0  # it was trained
    result = measure(model, splits, progress=False)[0]["clipfh"]
    assert result.record["parts"]["fusion film"]["class"] == "film.Film"
    assert set(result.record["parts"]) == {"fusion film", "head narrow", "loss spread"}
    table = gradient_table(run, splits, steps=1)
    assert table.loc["fusion", "spread"] > 0 and table.loc["head", "spread"] == 0
    model.save_pretrained(tmp_path / "model")
    again = PromptSG.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, *model.backbone.image_size)
    assert torch.equal(again.embed(images), model.embed(images)) and again.embed(images).shape == (
        2,
        16,
    )
    assert model.attention_maps(images).shape == (2, 1, *model.backbone.grid)


def test_the_commands_take_import(promptsg, registry, hands, tmp_path):
    "train, evaluate, search, look and export of one run, each told by --import what to bring."
    file, config, run = tmp_path / "film.py", tmp_path / "film.yml", tmp_path / "run"
    file.write_text(FILM)
    config.write_text(
        "fusion: film\nclassifier: narrow\nlosses: {spread: 0.01}\nepochs: 1\nsteps_per_epoch: 1\n"
        "batch_size: 16\nnum_splits: 2\nmodel: hand-vit-tiny\n"
    )

    def command(*arguments, code=0, bring=True):
        registry.update({kind: {} for kind in parts.BUILT_IN})
        sys.modules.pop("film", None)
        return promptsg(*arguments, *(["--import", file] if bring else []), code=code)

    command("train", "--data", hands, "--config", config, "--out", run)
    refused = command("evaluate", "--data", hands, "--run", run, bring=False, code=2)
    assert "--import MODULE" in refused.stderr and refused.stderr.count("\n") == 1
    assert "clipfh" in command("evaluate", "--data", hands, "--run", run).stdout
    query = next((hands / "Hands").glob("*.jpg"))
    command(
        "search", "--gallery", hands, "--query", query, "--run", run, "--out", tmp_path / "found"
    )
    command("export", "--run", run, "--out", tmp_path / "model")
    assert (
        json.loads((tmp_path / "model" / "config.json").read_text())["parts"]["head narrow"][
            "class"
        ]
        == "film.Narrow"
    )
    assert "`film.Film`" in (tmp_path / "model" / "README.md").read_text()
    command("embed", "--data", hands, "--run", run, "--out", tmp_path / "rows")
    assert "fields that differ: none" in command("compare", "--runs", run, "--with", run).stdout


def test_every_command_that_reads_a_config_has_import():
    for name, command in typer.main.get_command(app).commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert "--import" in options or not options & {"--config", "--run", "--runs"}, name


def test_a_report_has_own_parts_over_seeds(promptsg, film, hands, tmp_path):
    sets = [
        "fusion=film",
        "losses={spread: 0.01}",
        "epochs=1",
        "steps_per_epoch=1",
        "batch_size=16",
        "num_splits=2",
    ]
    arguments = [word for one in sets for word in ("--set", one)]
    promptsg(
        "report",
        "--data",
        hands,
        "--backbone",
        "hand-vit-tiny",
        "--versions",
        "paper",
        "--seeds",
        "0",
        "1",
        "--protocol",
        "clipfh",
        "--no-controls",
        "--looking",
        "0",
        "--no-decisions",
        "--out",
        tmp_path / "report",
        *arguments,
    )
    runs = [*(tmp_path / "report").rglob("metrics.csv")]
    assert len(runs) >= 2 and all(
        "loss_spread" in one.read_text() for one in runs if "seed" in str(one)
    )


def test_onnx_has_own_parts(film, quick, tmp_path):
    pytest.importorskip("onnxruntime")
    from promptsg.sharing import TOLERANCE, export_onnx

    model = PromptSG(own(quick, part_options={"fusion": {"start": 0.01}}), 4).eval()
    assert export_onnx(model, tmp_path / "model.onnx") < TOLERANCE


def test_code_that_fixes_the_batch_is_told(registry, quick, tmp_path):
    pytest.importorskip("onnxruntime")
    from promptsg.sharing import export_onnx

    file = tmp_path / "film.py"
    file.write_text(
        FILM.replace("patches.new_full((patches.shape[0]", "patches.new_full((len(patches)")
    )
    parts.bring(file)
    model = PromptSG(own(quick), 4).eval()
    assert "every batch size" in said(lambda: export_onnx(model, tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_the_explorer_opens_own_parts(film, quick, hands, splits, tmp_path):
    from promptsg.data import read_11k
    from promptsg.explorer import OpenRun

    Trainer(own(quick), splits, tmp_path / "run", progress=False).fit()
    run = OpenRun(tmp_path / "run", read_11k(hands), progress=False)
    embeddings, attention = run.seen("simplified", run.config.simplified_prompt)
    assert attention.shape[1:] == (1, *run.model.backbone.grid)


@pytest.mark.parametrize(
    "broken, words",
    [
        (lambda *given: given[2], "gave a Tensor"),
        (
            lambda text, patches, v: Fused(v[:, :3], torch.ones(len(v), 1, patches.shape[1])),
            "shape (2, 3);",
        ),
        (lambda text, patches, v: Fused(v, None), "attention of shape ()"),
    ],
)
def test_a_fusion_that_gives_something_else_is_told(registry, quick, broken, words):
    @parts.register("fusion", "odd")
    class Odd(nn.Module):
        def __init__(self, dim):
            super().__init__()

        def forward(self, *given):
            return broken(*given)

    model = PromptSG(quick.replace(fusion="odd"), 4).eval()
    assert words in said(lambda: model(torch.randn(2, 3, *model.backbone.image_size)))


def test_a_head_or_loss_that_gives_something_else_is_told(registry, quick):
    @parts.register("head", "odd")
    class Odd(nn.Module):
        def __init__(self, dim, num_classes):
            super().__init__()

        def forward(self, features, labels=None):
            return features

    @parts.register("loss", "rows")
    def rows(output, labels, config):
        return output.embedding

    model = PromptSG(quick.replace(classifier="odd"), 4).eval()
    assert "HeadOutput" in said(lambda: model(torch.randn(2, 3, *model.backbone.image_size)))
    output = SimpleNamespace(embedding=torch.ones(2, 3))
    config = quick.replace(
        losses={"rows": 1.0}, loss_id_weight=0, loss_tri_weight=0, supcon_loss_weight=0
    )
    assert "one number" in said(lambda: loss_terms(output, torch.tensor([0, 1]), config))


# --- a loss with parameters of its own


@pytest.fixture
def centre(registry):
    "A registered centre loss whose centres are learnt."

    @parts.register("loss", "my_centres")
    class Centres(nn.Module):
        def __init__(self, dim, num_classes, start=0.0):
            super().__init__()
            self.centres = nn.Parameter(torch.full((num_classes, dim), start))

        def forward(self, output, labels, config):
            return (output.embedding - self.centres[labels]).square().sum(1).mean()

    return Centres


def with_centres(config, **changes):
    return config.replace(losses={"my_centres": 0.01}, steps_per_epoch=2, **changes)


def test_a_loss_s_own_parameters_train_in_one_group(centre, quick, splits, tmp_path):
    config = with_centres(quick, part_options={"my_centres": {"start": 0.5}})
    trainer = Trainer(config, splits, tmp_path / "run", progress=False)
    trainer.set_up()
    centres = trainer.model.losses["my_centres"].centres
    assert centres.shape == (len(trainer.classes), trainer.model.backbone.dim)
    holds = lambda group: any(p is centres for p in group["params"])
    groups = [group["name"] for group in trainer.optimizer.param_groups if holds(group)]
    assert groups == ["modules"] and (centres == 0.5).all()
    row = trainer._train_epoch(0)
    assert row["loss_my_centres"] > 0 and (centres != 0.5).any()


def test_a_loss_s_own_parameters_are_resumed(centre, quick, splits, tmp_path, monkeypatch):
    config = with_centres(quick, weight_average=0.5)
    Trainer(config, splits, tmp_path / "whole", progress=False).fit()
    train, stop = Trainer._train_epoch, [True]

    def once(trainer, epoch):
        if epoch == 1 and stop.pop():
            raise KeyboardInterrupt
        return train(trainer, epoch)

    monkeypatch.setattr(Trainer, "_train_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, splits, tmp_path / "run", progress=False).fit()
    saved = load_run(tmp_path / "run", "last").losses["my_centres"].centres
    stop.append(False)
    Trainer(config, splits, tmp_path / "run", progress=False).fit(resume=True)
    whole, run = (load_run(tmp_path / name, "last") for name in ("whole", "run"))
    assert saved.any() and not torch.equal(saved, run.losses["my_centres"].centres)
    for (name, a), b in zip(whole.state_dict().items(), run.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    run.save_pretrained(tmp_path / "model")
    again = PromptSG.from_pretrained(tmp_path / "model")
    assert torch.equal(again.losses["my_centres"].centres, run.losses["my_centres"].centres)


def test_a_loss_with_parameters_changes_nothing_else(centre, quick):
    torch.manual_seed(0)
    plain = PromptSG(quick, 4).state_dict()
    torch.manual_seed(0)
    model = PromptSG(with_centres(quick), 4)
    own = {name: t for name, t in model.state_dict().items() if not name.startswith("losses.")}
    assert [*own] == [*plain] and all(torch.equal(own[name], plain[name]) for name in own)
    assert not PromptSG(quick.replace(losses={"my_centres": 0}), 4).losses
    # no embedding depends on it
    still = eval_transform(model.backbone.image_size, model.mean, model.std)
    before = embedding_kind(model, still)
    model.losses["my_centres"].centres.data.add_(1)
    assert embedding_kind(model, still) == before and foreign_code(model) == ""


def test_a_loss_class_that_does_not_fit_is_told(centre, quick):
    options = dict(part_options={"my_centres": {"stop": 1}})
    assert "does not take them" in said(lambda: PromptSG(with_centres(quick, **options), 4))
    output = SimpleNamespace(embedding=torch.ones(2, 3), losses={})
    only = dict(loss_id_weight=0, loss_tri_weight=0, supcon_loss_weight=0)
    config = with_centres(quick, **only)
    assert "no part of this model" in said(lambda: loss_terms(output, torch.tensor([0, 1]), config))


# --- which code it was


def changed(film, old, new):
    "The file's parts again, with another line of code."
    text = film.read_text()
    assert old in text
    film.write_text(text.replace(old, new))
    sys.modules.pop("film")
    import linecache

    linecache.clearcache()
    parts.bring(film)


def test_two_parts_of_one_name_are_told_apart(film, quick, splits, tmp_path, capsys):
    config, run = own(quick), tmp_path / "run"
    Trainer(config, splits, run, progress=False).fit()
    before, stored = config.hash, parts.code_in(config)
    changed(film, '"A text scales and shifts the embedding."', "# another comment")
    assert config.hash == before and parts.other_code(stored, config) == ""
    changed(film, "(1 + self.scale(said))", "(2 + self.scale(said))")
    assert config.hash != before
    assert parts.other_code(stored, config).startswith(
        "fusion film ('film.Film' then, 'film.Film' now)"
    )
    assert "other code of fusion film" in said(
        lambda: Trainer(config, splits, run, progress=False).fit(resume=True)
    )
    capsys.readouterr()
    load_run(run)
    assert "other code of fusion film" in capsys.readouterr().err


def test_a_result_of_other_code_is_not_written_over(film, quick, splits, tmp_path):
    config = own(quick)
    model = PromptSG(config, 4).eval()
    measure(model, splits, progress=False)[0]["clipfh"].save(tmp_path / "result")
    changed(film, "(1 + self.scale(said))", "(2 + self.scale(said))")
    other = measure(PromptSG(config, 4).eval(), splits, progress=False)[0]["clipfh"]
    assert "another config_hash" in said(lambda: other.save(tmp_path / "result"))


@pytest.mark.parametrize(
    "stored", [None, {}, [], "film", {"fusion film": 3}, {"fusion film": {"class": 3}}]
)
def test_a_damaged_record_of_code_is_no_crash(film, stored):
    assert isinstance(parts.other_code(stored, Config(fusion="film")), str)


def test_no_embedding_of_own_code_comes_from_a_cache(film, quick):
    from promptsg.caches import foreign_code

    assert foreign_code(PromptSG(own(quick), 4)) in ("Film", "Narrow")


# --- backbones


def small_net(registry):
    @parts.register("backbone", "small-net")
    class SmallNet(Backbone):
        mean, std = (0.5,) * 3, (0.25,) * 3

        def __init__(self, image_size=None, width=8):
            self._width = width
            net = nn.ModuleDict(
                dict(
                    stem=nn.Conv2d(3, width, 8, 8),
                    one=nn.Conv2d(width, width, 1),
                    two=nn.Conv2d(width, width, 1),
                )
            )
            super().__init__(net, image_size)

        def set_image_size(self, size):
            self.image_size = size or (32, 16)
            self.grid = tuple(side // 8 for side in self.image_size)

        @property
        def dim(self):
            return self._width

        width = dim

        @property
        def blocks(self):
            return [self.visual["one"], self.visual["two"]]

        def stem(self, images):
            return self.visual["stem"](images)

        def state(self, x):
            return x.mean((2, 3))

        def end(self, x, mixed):
            return x.mean((2, 3)), x.flatten(2).mT, None

    return SmallNet


def test_a_backbone_of_one_s_own(registry, quick, splits, tmp_path):
    small_net(registry)
    config = quick.replace(
        model="small-net",
        language=False,
        unfreeze_blocks=1,
        epochs=1,
        steps_per_epoch=1,
        part_options={"backbone": {"width": 12}},
    )
    run = tmp_path / "run"
    Trainer(config, splits, run, progress=False).fit()
    model = load_run(run)
    assert (
        model.backbone.image_size == (32, 16) and model.mean == (0.5,) * 3 and model.out_dim == 12
    )
    assert not any(p.requires_grad for p in model.backbone.blocks[0].parameters())
    result = measure(model, splits, progress=False)[0]["clipfh"]
    assert "backbone small-net" in result.record["parts"]
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 32, 16)
    assert torch.equal(
        PromptSG.from_pretrained(tmp_path / "model").embed(images), model.embed(images)
    )


def test_a_backbone_s_weights_come_from_a_file(registry, tmp_path):
    from promptsg.backbone import save_tensors

    net = small_net(registry)()
    save_tensors(tmp_path / "net.safetensors", net.visual.state_dict())
    found = load_towers("small-net", str(tmp_path / "net.safetensors")).backbone
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), found.parameters(), strict=True))
    assert "no file" in said(lambda: load_towers("small-net", "openai"))
    same, other = (load_towers("small-net", "random", seed=seed).backbone for seed in (0, 1))
    again = load_towers("small-net", "random", seed=0).backbone
    weight = lambda backbone: backbone.visual["stem"].weight
    assert torch.equal(weight(same), weight(again)) and not torch.equal(weight(same), weight(other))


# --- timm's towers

VIT, NET = "timm:test_vit", "timm:test_resnet"


@pytest.mark.parametrize("name", [VIT, NET])
def test_a_tower_of_timm_s_is_timm_s(name):
    "The embedding is what timm pools, the patches what its last maps or tokens say."
    backbone = load_towers(name, "random", (64, 96)).backbone.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = backbone(images)
        whole = backbone.visual.forward_features(images)
        assert torch.allclose(found.embedding, backbone.visual(images), atol=1e-6)
    there = whole[:, backbone.visual.num_prefix_tokens :] if name == VIT else whole.flatten(2).mT
    assert (
        torch.allclose(found.patches, there, atol=1e-6)
        and there.shape[1] == backbone.grid[0] * backbone.grid[1]
    )
    assert found.embedding.shape[1] == backbone.dim and found.pooled.shape[1] == backbone.width
    assert len(found.states) == min(3, len(backbone.blocks))
    split = backbone.features_after(backbone.features_before(images))
    assert torch.equal(split.embedding, found.embedding)


def test_a_timm_tower_trains_in_part(quick, splits, tmp_path):
    config = quick.replace(
        model=VIT,
        pretrained="random",
        language=False,
        image_size=(32, 32),
        unfreeze_blocks=2,
        cache_frozen=True,
        whiten=True,
        epochs=1,
        steps_per_epoch=1,
    )
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    model = load_run(tmp_path / "run")
    frozen = [any(p.requires_grad for p in block.parameters()) for block in model.backbone.blocks]
    assert sum(frozen) == 2 and frozen == sorted(frozen)
    assert measure(model, splits, progress=False)[0]["clipfh"].record["parts"] == {}
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(
        PromptSG.from_pretrained(tmp_path / "model").embed(images), model.embed(images)
    )


def test_timm_weights_come_from_a_file(tmp_path):
    import timm

    from promptsg.backbone import save_tensors

    theirs = timm.create_model("test_vit").eval()  # with its classifier, which is left out
    save_tensors(tmp_path / "vit.safetensors", theirs.state_dict())
    backbone = load_towers(VIT, str(tmp_path / "vit.safetensors")).backbone.eval()
    images = torch.randn(2, 3, *backbone.image_size)
    with torch.no_grad():
        theirs = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.allclose(backbone(images).embedding, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model="timm:test_vti"), "did you mean timm:test_vit"),
        (dict(model=VIT), "are no file"),
        (dict(model=VIT, pretrained="random", image_size=(33, 32)), "multiple of the patch size"),
        (
            dict(model="timm:swin_tiny_patch4_window7_224", pretrained="random"),
            "backbone of your own",
        ),
        (dict(model=VIT, pretrained="random", language=True), "language to false"),
        (dict(model=VIT, pretrained="random", unfreeze_blocks=99), "blocks"),
    ],
)
def test_what_timm_cannot_give_is_one_sentence(changes, words):
    assert words in said(lambda: PromptSG(Config(**{"language": False, **changes}), 2))


def test_a_foreign_model_names_no_tower_larger_than_its_weights(quick, tmp_path):
    config = quick.replace(model=VIT, pretrained="random", language=False, image_size=(32, 32))
    PromptSG(config, 2).eval().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    record["tower"] = "timm:vit_large_patch16_224"
    file.write_text(json.dumps(record))
    assert "describes another model" in said(lambda: PromptSG.from_pretrained(tmp_path))
