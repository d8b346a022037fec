"The reference's YAML fields work or are refused with a reason; mistakes name the key."
import pytest

from promptsg.config import Config, PromptSGError, tower_name

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
    assert config.tower == "ViT-B-16-quickgelu" and config.lr_modules == 1e-6 and config.bnneck_dim == 1024


@pytest.mark.parametrize("line, reason", [("stage: 2", "stage 3"), ("freeze_text_encoder: false", "frozen"), ("shuffle: false", "triplet"),
                                          ("save_dir: x", "run folder"), ("resume_from_checkpoint: x.pt", "--resume"), ("model_path: x.pt", "--run"),
                                          ("pseudo_token_init: zeros", "inversion MLP")])
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


@pytest.mark.parametrize("name, tower", [("vitb16", "ViT-B-16-quickgelu"), ("ViT-B/16", "ViT-B-16-quickgelu"), ("rn50", "RN50-quickgelu"),
                                         ("ViT-B-16", "ViT-B-16"), ("RN50", "RN50-quickgelu"), ("hand-vit-tiny", "hand-vit-tiny")])
def test_tower_names(name, tower):
    assert tower_name(name) == tower


@pytest.mark.parametrize("line", ["precision: no", "precision: 'no'", "precision: off"])
def test_precision_no_is_not_yamls_false(tmp_path, line):
    (tmp_path / "c.yml").write_text(line)
    assert Config.from_yaml(tmp_path / "c.yml") == Config(precision=False) == Config()
    with pytest.raises(PromptSGError, match="precision"):
        Config(precision=True)
