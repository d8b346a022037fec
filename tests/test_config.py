"The reference's YAML fields work or are refused with a reason; mistakes name the key."

from typing import Optional

import pytest

from promptsg.config import UNMEASURED, Config, PromptSGError, read_yaml, tower_name

REFERENCE = """
experiment: stage3
dataset: 11k
aspect: dorsal_r
model: vitb16
variant: v8
stage: 3
clip_model: ViT-B/16
pretrained: openai
freeze_text_encoder: true
pseudo_token_dim: 512
pseudo_token_init: random
cross_attention_layers: 1
transformer_layers: 3
attention_heads: 8
use_composed_prompt: true
prompt_template: "A detailed photo of {}'s {aspect} hand for identification."
simplified_prompt: "A photo of a hand."
batch_size: 32
epochs: 20
early_stop_patience: 7
lr_clip_visual: 1e-6
lr_modules: 1e-6
weight_decay: 1e-4
supcon_loss_weight: 0.5
supcon_temperature: 0.07
loss_tri_weight: 1.0
loss_id_weight: 1.0
num_workers: 4
shuffle: true
pin_memory: true
classifier: arcface
bnneck_reduction: true
bnneck_dim: 1024
arcface_scale: 30
arcface_margin: 0.35
unfreeze_blocks: 4
val_type: images
output_dir: runs/v8
save_frequency: 5
log_frequency: 10
num_splits: 10
"""


def test_the_references_fields_are_read(tmp_path):
    (tmp_path / "v8.yml").write_text(REFERENCE)
    config = Config.from_yaml(tmp_path / "v8.yml")
    assert (
        config.tower == "ViT-B-16-quickgelu"
        and config.lr_modules == 1e-6
        and config.bnneck_dim == 1024
    )


@pytest.mark.parametrize(
    "line, reason",
    [
        ("stage: 2", "stage 3"),
        ("freeze_text_encoder: false", "frozen"),
        ("shuffle: false", "triplet"),
        ("save_dir: x", "run folder"),
        ("resume_from_checkpoint: x.pt", "--resume"),
        ("model_path: x.pt", "--run"),
        ("pseudo_token_init: zeros", "inversion MLP"),
    ],
)
def test_refused_fields_say_why(tmp_path, line, reason):
    (tmp_path / "c.yml").write_text(line)
    with pytest.raises(PromptSGError, match=reason):
        Config.from_yaml(tmp_path / "c.yml")


def test_a_misspelt_key_names_the_nearest(tmp_path):
    (tmp_path / "c.yml").write_text("supcon_los_weight: 1.0")
    with pytest.raises(PromptSGError, match="c.yml.*supcon_loss_weight"):
        Config.from_yaml(tmp_path / "c.yml")


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "\x00"])
def test_a_file_that_is_no_config(tmp_path, text):
    (tmp_path / "c.yml").write_text(text)
    with pytest.raises(PromptSGError, match="c.yml"):
        Config.from_yaml(tmp_path / "c.yml")


def test_frozen_and_hashed():
    config = Config()
    with pytest.raises(Exception, match="frozen"):
        config.epochs = 3
    assert config.hash == Config().hash != config.replace(seed=1).hash


@pytest.mark.parametrize(
    "name, tower",
    [
        ("vitb16", "ViT-B-16-quickgelu"),
        ("ViT-B/16", "ViT-B-16-quickgelu"),
        ("rn50", "RN50-quickgelu"),
        ("ViT-B-16", "ViT-B-16"),
        ("RN50", "RN50-quickgelu"),
        ("hand-vit-tiny", "hand-vit-tiny"),
    ],
)
def test_tower_names(name, tower):
    assert tower_name(name) == tower


@pytest.mark.parametrize("line", ["precision: no", "precision: 'no'", "precision: off"])
def test_precision_no_is_not_yamls_false(tmp_path, line):
    (tmp_path / "c.yml").write_text(line)
    assert Config.from_yaml(tmp_path / "c.yml") == Config(precision=False) == Config()
    with pytest.raises(PromptSGError, match="precision"):
        Config(precision=True)


# --- bounds
@pytest.mark.parametrize(
    "field, value",
    [
        ("seed", -1),
        ("seed", 2**70),
        ("image_size", 0),
        ("image_size", (64, -3)),
        ("image_size", 10**9),
        ("image_size", (True, True)),
        ("steps_per_epoch", 10**12),
        ("inversion_hidden", 10**10),
        ("inversion_layers", 1000),
        ("num_splits", 10**6),
        ("num_workers", 100_000),
        ("batch_size", 10**9),
        ("epochs", 10**9),
        ("attention_heads", 0),
        ("identity_level", 9),
        ("arcface_margin", 3.2),
        ("dropout", 1.0),
        ("lr_modules", 0.0),
        ("transformer_layers", 10**6),
    ],
)
def test_numbers_out_of_bounds_say_why(field, value):
    with pytest.raises(
        PromptSGError,
        match=f"^{field} must be (at least|at most|above|below) [0-9.]+ [(].*[a-z].*[)], not ",
    ) as said:
        Config(**{field: value})
    assert len(str(said.value)) < 250


NUMBERS = [
    name
    for name, field in Config.model_fields.items()
    if field.annotation in (int, float, Optional[int], Optional[float]) and name != "stage"
]


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_is_bounded_on_both_sides(field):
    assert len(NUMBERS) > 40
    ends = {type(rule).__name__.lower() for rule in Config.model_fields[field].metadata}
    assert ends & {"ge", "gt"} and ends & {"le", "lt"} and Config.model_fields[field].description
    for value in (float("nan"), float("inf"), True, 10**400, -(10**400)):
        with pytest.raises(PromptSGError, match=field):
            Config(**{field: value})


def test_a_warm_up_longer_than_the_training_is_refused():
    assert Config(epochs=2, warmup_epochs=2).warmup_epochs == 2
    with pytest.raises(PromptSGError, match="warmup_epochs is longer"):
        Config(epochs=2, warmup_epochs=2.5)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(step_at=(3, 2)), "step_at"),
        (dict(step_at=(0, 2)), "step_at"),
        (dict(step_at=(2, 2)), "step_at"),
        (dict(step_at=(2,), schedule="cosine"), "schedule: step"),
        (dict(warmup_start=1.5), "at most 1"),
        (dict(crop_from=64), "image_size"),
        (dict(crop_from=(64, 32), image_size=48), "neither side larger"),
        (dict(crop_from=64, image_size=48, crop_padding=2), "choose one"),
        (dict(crop_from=64, image_size=48, cache_frozen=True, unfreeze_blocks=1), "crop_from out"),
        (dict(classifier="bnneck_pair"), "fusion: none, or language: false"),
        (dict(classifier="bnneck_pair", language=False, bnneck_reduction=True), "bnneck_reduction"),
        (dict(fusion="none", supcon_loss_weight=0), "supcon_loss_weight"),
        (dict(inversion_dropout=0.5), "inversion_kind: handid"),
        (dict(optimizer="sgd"), "adamw"),
        (dict(pixel_norm="mine"), "imagenet"),
    ],
)
def test_what_clip_handid_brought_is_refused_where_it_does_not_fit(changes, words):
    with pytest.raises(PromptSGError) as error:
        Config(**changes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_one_number_is_a_square():
    assert Config(image_size=160) == Config(image_size=(160, 160)) != Config(image_size=(160, 96))


@pytest.mark.parametrize(
    "name",
    ["a`b", "a|b", "a\nb", "<b>", "../up", "", "x" * 101, "a/b", ".hidden", "\udcff", "a\0b"],
)
def test_names_are_plain(name):
    for field in ("variant", "experiment"):
        with pytest.raises(PromptSGError, match=field):
            Config(**{field: name})
    assert (
        Config(variant="v8-logged", experiment="Hände 2 (mine), a=1+2 @ home_x.y").variant
        == "v8-logged"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{aspect.__class__.__mro__}",
        "{aspect:>3000000000}",
        "{0}",
        "{{",
        "a } b",
        "{a{}spect}",
        "{color}",
        "{{}}",
    ],
)
def test_anything_else_in_braces_is_refused(template):
    for changes in (
        dict(simplified_prompt=template),
        dict(prompt_template="A {} hand " + template),
    ):
        with pytest.raises(PromptSGError, match="in braces"):
            Config(**changes)


# --- what is measured
OTHER = dict(
    experiment="other",
    compile=True,
    checkpoint_blocks=True,
    cache_pixels=False,
    cache_embeddings=False,
    num_workers=3,
    pin_memory=True,
    output_dir="x",
    save_frequency=2,
    log_frequency=3,
    tracker="tensorboard",
)


def test_the_hash_is_of_what_results_depend_on():
    config, other = Config(), Config(**OTHER)
    # the last three are refused
    assert OTHER.keys() | {"save_dir", "resume_from_checkpoint", "model_path"} == UNMEASURED
    assert config != other and config.hash == other.hash and config.changed(other) == {}
    assert config.changed(other.replace(seed=1, lr_head=0.1)) == {
        "seed": (0, 1),
        "lr_head": (None, 0.1),
    }


@pytest.mark.parametrize(
    "changes",
    [
        dict(seed=1),
        dict(cache_frozen=True, unfreeze_blocks=1),
        dict(precision="bf16"),
        dict(identity_level=2),
    ],
)
def test_the_hash_moves_with_what_they_depend_on(changes):
    assert (
        Config().hash != Config(**changes).hash
        and Config().changed(Config(**changes)).keys() == changes.keys()
    )


# --- YAML
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
BAD_YAML = {
    "anchors": LAUGHS,
    "deep": "[" * 5000,
    "deep ": "{a: " * 5000,
    "'seed' is given twice in line 3": "seed: 1\nepochs: 2\nseed: 2",
    "line 1": "seed: [1",
    "longer": "# " + "x" * 200_000,
    "UTF-8": b"experiment: h\xe4nde",
    "month": "seed: 2020-99-99",
    "digits": "seed: " + "9" * 5000,
    "tag": "seed: !!python/object/apply:os.system [ls]",
    "found": "a: @x",
}


@pytest.mark.parametrize("words", BAD_YAML)
def test_yaml_is_bounded(tmp_path, words):
    text = BAD_YAML[words]
    (tmp_path / "c.yml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PromptSGError, match=f"c.yml.*{words.strip()}") as said:
        Config.from_yaml(tmp_path / "c.yml")
    assert len(str(said.value)) < 400 and "\n" not in str(said.value)


def test_no_files(tmp_path):
    for path, words in (
        (tmp_path, "folder"),
        (tmp_path / "none.yml", "No such file"),
        (tmp_path / ("x" * 300), "too long"),
        ("a\0b", "null"),
    ):
        with pytest.raises(PromptSGError, match=words):
            Config.from_yaml(path)


def test_files_are_utf8_whatever_the_machine_says(tmp_path, monkeypatch):
    import locale

    monkeypatch.setattr(locale, "getpreferredencoding", lambda *a: "cp1252")
    for start in (b"", b"\xef\xbb\xbf"):  # with the mark that Windows' editor puts first
        (tmp_path / "c.yml").write_bytes(
            start + 'experiment: 手の甲\nprompt_template: "Foto ä {}"'.encode()
        )
        assert Config.from_yaml(tmp_path / "c.yml").experiment == "手の甲"


def test_a_key_called_self_is_unknown():
    with pytest.raises(PromptSGError, match="unknown key 'self'"):
        Config(**{"self": 1})
    with pytest.raises(PromptSGError, match="unknown key '1'"):
        Config(**{str(key): value for key, value in read_yaml("1: 2").items()})


# --- on the command line
@pytest.mark.parametrize(
    "pair, value",
    [
        ("prompt_template={} hand", "{} hand"),
        ("prompt_template=@{} hand", "@{} hand"),
        ("prompt_template=A {}: back", "A {}: back"),
        ("seed=3", 3),
        ("image_size=[224, 128]", [224, 128]),
        ("image_size=160", 160),
        ("precision=no", "no"),
        ("text_pretrained=null", None),
        ("pretrained=null", "null"),
        ("output_dir=a=b", "a=b"),
    ],
)
def test_sets_take_text_as_text(pair, value):
    from promptsg.cli import parse_sets

    assert parse_sets([pair]) == {pair.split("=")[0]: value}


@pytest.mark.parametrize("pair", ["seed=[1", "seed", "seed=&a 1", "image_size=" + "[" * 3000])
def test_sets_that_cannot_be_read_are_one_sentence(pair):
    from promptsg.cli import parse_sets

    with pytest.raises(PromptSGError, match="--set"):
        parse_sets([pair])


@pytest.mark.parametrize(
    "text, words",
    [
        ("paper@ViT-B-32", "--set model="),
        ("paper@" + "x" * 300, "not known"),
        ("x" * 300, "too long"),
        ("", "folder"),
        ("no\udcff@vitb16", "not known"),
        ("a\0b@vitb16", "not known"),
        ("@", "not known"),
    ],
)
def test_configs_that_are_none_are_one_sentence(text, words):
    from promptsg.cli import read_config

    with pytest.raises(PromptSGError, match=words):
        read_config(text)


def test_a_number_of_six_thousand_digits_is_one_sentence():
    with pytest.raises(PromptSGError, match="seed must be at most 4294967295 .*too large to show"):
        Config(seed=10**6000)
