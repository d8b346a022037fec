"Towers against open_clip's own, weight files good and bad, and position embeddings resized."

import pickle
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from promptsg.backbone import (
    WEIGHTS,
    QuickGELU,
    _resized,
    check_numbers,
    load_text,
    load_towers,
    model_config,
    read_state_dict,
    read_tensors,
    save_tensors,
)
from promptsg.config import PromptSGError


@pytest.fixture(scope="module")
def tiny():
    return load_towers("hand-vit-tiny")


def test_openai_names_mean_quickgelu():
    towers = load_towers("vitb32", "random")
    assert any(type(m).__name__ == "QuickGELU" for m in towers.backbone.modules())
    assert not any(
        type(m).__name__ == "QuickGELU"
        for m in load_towers("ViT-B-32", "random").backbone.modules()
    )


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_features_equal_open_clip(name):
    backbone = load_towers(name, "random").backbone.eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = backbone(images)
        assert torch.allclose(features.embedding, backbone.visual(images), atol=1e-4)
    assert (
        len(features.states) == 3
        and features.patches.shape[1] == backbone.grid[0] * backbone.grid[1]
    )


@pytest.mark.parametrize("name", ["hand-vit-tiny", "hand-rn-tiny"])
def test_states_left_out_are_those_that_no_loss_could_move(name):
    backbone = load_towers(name).backbone.eval()
    backbone.unfreeze(1)
    images = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    few = backbone(images)
    backbone.frozen = 0  # as if nothing were kept on disk
    whole = backbone(images)
    assert [len(features.states) for features in (few, whole)] == [1, 3]
    assert torch.equal(few.states[0], whole.states[0]) and torch.equal(
        few.embedding, whole.embedding
    )
    assert [state.requires_grad for state in whole.states] == [True, False, False]


def test_resize_agrees_with_open_clip():
    model = open_clip.create_model("ViT-B-32", force_image_size=(192, 96))
    embedding = torch.randn(1 + 49, 768)
    state = {"visual.positional_embedding": embedding.clone()}
    open_clip.model.resize_pos_embed(state, model)
    assert torch.allclose(
        _resized(embedding, (7, 7), (6, 3)), state["visual.positional_embedding"], atol=1e-5
    )


def test_resnet_takes_a_portrait_image():
    backbone = load_towers("hand-rn-tiny", image_size=(160, 96)).backbone.eval()
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 160, 96)).patches.shape[1] == 5 * 3


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}],
)
def test_image_tower_alone_from_a_file(tiny, tmp_path, wrap):
    state = wrap({k: v.contiguous() for k, v in tiny.backbone.visual.state_dict().items()})
    torch.save(state, tmp_path / "tower.pt")
    towers = load_towers("hand-vit-tiny", str(tmp_path / "tower.pt"))
    assert towers.text is None
    assert torch.equal(towers.backbone.visual.proj, tiny.backbone.visual.proj)


def test_whole_model_from_a_file(tiny, tmp_path):
    state = {f"visual.{k}": v.contiguous() for k, v in tiny.backbone.visual.state_dict().items()}
    # OpenAI's layout: text tensors without a prefix
    state |= {k: v.contiguous() for k, v in tiny.text.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    towers = load_towers("hand-vit-tiny", str(tmp_path / "clip.safetensors"))
    assert torch.equal(towers.text.text_projection, tiny.text.text_projection)


class Trap:
    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    trap, Trap.path = Trap(), str(tmp_path / "executed")
    (tmp_path / "model.pt").write_bytes(pickle.dumps(trap))
    torch.save({"weight": trap}, tmp_path / "zip.pt")
    for name in ("model.pt", "zip.pt"):
        with pytest.raises(PromptSGError, match="refused"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_bad_files_are_one_sentence(tiny, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-4])
    for name, word in (
        ("missing.safetensors", "does not exist"),
        ("half.safetensors", "not a complete"),
        ("other.safetensors", "does not match"),
    ):
        with pytest.raises(PromptSGError, match=word):
            load_towers("hand-vit-tiny", str(tmp_path / name))


# --- what is no weights
NAN, INF = float("nan"), float("inf")
NO_WEIGHTS = {
    "nothing but zeros": {"a": torch.zeros(3, 3)},
    "not finite": {"a": torch.tensor([1.0, NAN])},
    "not finite, first in 'b'": {"a": torch.ones(2), "b": torch.tensor([INF])},
    "complex64 in 'a'": {"a": torch.ones(2, dtype=torch.complex64)},
    "int8 in 'a'": {"a": torch.ones(2, 2, dtype=torch.int8)},
    "float8_e4m3fn": {"a": torch.ones(4).to(torch.float8_e4m3fn)},
    "int64": {"a": torch.ones(2, dtype=torch.int64)},
}


@pytest.mark.parametrize("words", NO_WEIGHTS)
def test_what_is_no_weights_is_refused(words, tmp_path):
    torch.save(NO_WEIGHTS[words], tmp_path / "a.pt")
    with pytest.raises(PromptSGError, match=f"a.pt holds .*{words}"):
        read_state_dict(tmp_path / "a.pt")


def test_counts_and_masks_are_no_faults():
    check_numbers(
        {
            "a": torch.ones(2).half(),
            "n.num_batches_tracked": torch.tensor(3),
            "text.attn_mask": torch.full((2, 2), -INF),
        },
        "here",
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ({1: torch.ones(2)}, "not a state dict"),
        ({"state_dict": 3}, "not a state dict"),
        ([torch.ones(2)], "not a state dict"),
        ({"a": torch.ones(1).expand(10**6, 10**6)}, "more numbers than it holds"),
    ],
)
def test_files_of_other_things(content, words, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(PromptSGError, match=words):
        read_state_dict(tmp_path / "a.pt")


def test_a_packed_file_is_not_unpacked(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**8))
    with pytest.raises(PromptSGError, match="was refused"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "no\udcff.pt", "a\0b.safetensors", ""])
def test_names_that_no_file_has(name):
    with pytest.raises(PromptSGError, match="does not exist"):
        read_state_dict(name)


def test_a_flipped_bit_is_found(tmp_path):
    tensors = {"a": torch.randn(4, 4), "b": torch.ones(3).bfloat16(), "n": torch.tensor(3)}
    save_tensors(tmp_path / "a.safetensors", tensors, note="x")
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata["note"] == "x" and all(
        torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in tensors.items()
    )
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-1] ^= 4
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(PromptSGError, match="damaged: its numbers are not those"):
        read_state_dict(tmp_path / "a.safetensors")


# --- TorchScript, as OpenAI publishes CLIP
class Scripted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.parts, self.share = (
            torch.nn.Linear(2, 3),
            torch.nn.ModuleList([torch.nn.BatchNorm1d(3)]),
            torch.nn.Parameter(torch.randn(5).half()),
        )
        self.turned = torch.nn.Parameter(torch.randn(3, 2).T)

    def forward(self, x):
        return self.parts[0](self.part(x)) * self.share.sum() + self.turned.sum()


@pytest.fixture
def scripted(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.trace(Scripted().eval(), torch.zeros(1, 2))
        torch.jit.save(model, tmp_path / "openai.pt")
    return model


def test_a_torchscript_archive_is_read_without_running_it(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", None)
    found = read_state_dict(tmp_path / "openai.pt")
    assert found.keys() == scripted.state_dict().keys()
    assert all(
        torch.equal(found[name], tensor.float()) for name, tensor in scripted.state_dict().items()
    )


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "functools.partial"])
def test_nothing_in_an_archive_is_called(name, tmp_path):
    import zipfile

    module, function = name.rsplit(".", 1)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"\x80\x02).")
        archive.writestr("a/data.pkl", f"c{module}\n{function}\n(X\x04\x00\x00\x00exittR.".encode())
    with pytest.raises(PromptSGError, match="nothing in it was executed"):
        read_state_dict(tmp_path / "a.pt")


# --- tags, text towers, random weights
@pytest.mark.parametrize(
    "model, pretrained, words",
    [
        ("vitb32", "laion2b_s34b_b79k", "belong to ViT-B-32; set model to ViT-B-32$"),
        ("vitb16", "openia", "set pretrained to openai"),
        (
            "ViT-B-32",
            "laion2b_s32b_b82k",
            "belong to ViT-L-14; for ViT-B-32 set pretrained to laion2b",
        ),
        ("hand-vit-tiny", "openai", "for hand-vit-tiny set pretrained to embedded"),
        ("x" * 300, "openai", "not known"),
    ],
)
def test_tags_that_a_tower_does_not_have(model, pretrained, words):
    with pytest.raises(PromptSGError, match=words) as said:
        load_towers(model, pretrained)
    assert "hub" not in str(said.value)


@pytest.mark.parametrize(
    "text_cfg",
    [
        "[]",
        "3",
        '{"width": 10000000000}',
        '{"width": "64", "heads": 2, "layers": 1}',
        '{"width": 64, "heads": 2, "layers": 1, "vocab_size": 1e9}',
        '{"context_length": 40, "vocab_size": 4014, "width": 64, "heads": 3, "layers": 1}',
        "[" * 100_000,
        '{"context_length": 40, "vocab_size": 4014, "width": 64, "heads": 2, "layers": 1000000000}',
    ],
)
def test_a_bad_text_cfg_builds_nothing(text_cfg, tmp_path):
    from open_clip.transformer import TextTransformer

    text = TextTransformer(
        context_length=40, vocab_size=4014, width=64, heads=2, layers=1, output_dim=8
    )
    save_tensors(tmp_path / "text.safetensors", text.state_dict(), text_cfg=text_cfg)
    with pytest.raises(
        PromptSGError, match="text.safetensors (describes another text tower|does not say)"
    ):
        load_text(tmp_path / "text.safetensors", 8)


def test_weights_of_another_image_size_say_so(tiny, tmp_path):
    other = load_towers("hand-vit-tiny", image_size=(64, 64)).backbone.visual.state_dict()
    save_tensors(tmp_path / "small.safetensors", {f"visual.{name}": t for name, t in other.items()})
    with pytest.raises(PromptSGError, match="images of another size"):
        load_towers("hand-vit-tiny", str(tmp_path / "small.safetensors"))


def test_random_weights_are_the_seeds_alone():
    weights = lambda seed: torch.cat(
        [
            p.flatten()
            for t in [load_towers("hand-rn-tiny", "random", seed=seed)]
            for m in (t.backbone, t.text)
            for p in m.parameters()
        ]
    )
    torch.manual_seed(1)
    before, one = torch.get_rng_state(), weights(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one, weights(3)) and not torch.equal(one, weights(4))


@pytest.mark.parametrize("language", [True, False])
def test_other_weights_draw_as_they_always_did(quick, language):
    """The towers are drawn first from the global stream and then filled, so that what trains starts
    from the same numbers."""
    from promptsg.fusion import MultiModalInteraction
    from promptsg.heads import LinearHead
    from promptsg.inversion import TextualInversionMLP
    from promptsg.model import PromptSG

    torch.manual_seed(7)
    model = PromptSG(quick.replace(language=language), 9)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    open_clip.CustomTextCLIP(**model_config("hand-vit-tiny"))
    if language:
        by_hand = TextualInversionMLP(
            128,
            model.prompt.width,
            512,
            model.prompt.text.token_embedding.weight.std().item(),
            3,
            True,
        )
        fusion = MultiModalInteraction(128, 4, 1, 2, quick.fusion, quick.dropout)
        for own, other in ((model.inversion, by_hand), (model.fusion, fusion)):
            assert all(
                torch.equal(a, b)
                for a, b in zip(own.state_dict().values(), other.state_dict().values(), strict=True)
            )
    assert torch.equal(LinearHead(128, 9).classifier.weight, model.head.classifier.weight)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_run_from_random_weights_is_read_back(quick, splits, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.training import Trainer

    config = quick.replace(pretrained="random", unfreeze_blocks=1, epochs=1, steps_per_epoch=1)
    run = Trainer(config, splits, tmp_path / "run", progress=False).fit()
    torch.manual_seed(5)
    one, two = load_run(run), load_run(run)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_frozen_batch_norm_stays_still():
    backbone = load_towers("hand-rn-tiny").backbone
    backbone.unfreeze(1)
    before = {
        k: v.clone() for k, v in backbone.state_dict().items() if "running" in k and "layer1" in k
    }
    backbone.train()(torch.randn(4, 3, *backbone.image_size))
    after = backbone.state_dict()
    assert before and all(torch.equal(v, after[k]) for k, v in before.items())


def test_cheaper_activation_is_open_clips():
    x = (4 * torch.randn(500, generator=torch.Generator().manual_seed(0))).double().requires_grad_()
    assert torch.autograd.gradcheck(QuickGELU(), x[:5])
    ours, theirs = QuickGELU()(x), open_clip.model.QuickGELU()(x)
    assert torch.allclose(ours, theirs) and torch.allclose(
        *(torch.autograd.grad(y.square().sum(), x)[0] for y in (ours, theirs))
    )
    with torch.no_grad():
        kept = x.clone()
        assert torch.allclose(QuickGELU()(x), theirs) and torch.equal(x, kept)


def test_quickgelu_tower_equals_open_clip():
    ours = load_towers("vitb32", "random")
    theirs = open_clip.CustomTextCLIP(**model_config("ViT-B-32-quickgelu")).eval()
    assert not any(
        type(m) is open_clip.model.QuickGELU
        for tower in (ours.backbone, ours.text)
        for m in tower.modules()
    )
    (
        theirs.visual.load_state_dict(ours.backbone.visual.state_dict()),
        theirs.text.load_state_dict(ours.text.state_dict()),
    )
    images, ids = (
        torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
        ours.tokenizer(["A hand."]),
    )
    with torch.no_grad():
        assert torch.allclose(
            ours.backbone.eval()(images).embedding, theirs.visual(images), atol=1e-4
        )
        assert torch.allclose(ours.text.eval()(ids), theirs.text(ids), atol=1e-4)


def test_resnet_runs_channels_last_and_equals_channels_first():
    backbone = load_towers("hand-rn-tiny").backbone.eval()
    images = torch.randn(2, 3, *backbone.image_size, generator=torch.Generator().manual_seed(0))
    assert backbone.features_before(images).is_contiguous(memory_format=torch.channels_last)
    gradients = []
    for out in (backbone(images).embedding, backbone.visual(images)):
        backbone.zero_grad()
        out.square().sum().backward()
        gradients.append(backbone.visual.conv1.weight.grad.clone())
        assert torch.allclose(out, backbone.visual(images), atol=1e-4)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-3 * gradients[1].abs().max()


def test_fused_attention_wherever_the_towers_attend(tiny):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    for name in ("hand-vit-tiny", "hand-rn-tiny"):
        backbone = load_towers(name).backbone
        with Calls() as calls:
            Calls.names.clear()
            backbone(torch.randn(2, 3, *backbone.image_size))
        assert any("scaled_dot_product" in call for call in calls.names) and not any(
            "softmax" in call for call in calls.names
        )


def test_bfloat16_autocast_keeps_losses_in_float32(quick):
    from promptsg.model import PromptSG
    from promptsg.training import loss_terms

    torch.manual_seed(0)
    model, labels = PromptSG(quick, 4).train(), torch.arange(8) // 2
    images = torch.randn(
        8, 3, *model.backbone.image_size, generator=torch.Generator().manual_seed(0)
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images, labels=labels)
    terms = loss_terms(out, labels, quick)  # outside, as the training loop does
    exact = loss_terms(model(images, labels=labels), labels, quick)
    assert out.logits.dtype == torch.bfloat16 and all(
        term.dtype == torch.float32 for term in terms.values()
    )
    for name in terms:
        assert abs(terms[name] - exact[name]) < 0.05 * max(1, exact[name].abs())


def test_weights_are_found_beside_a_folder_of_the_packages_name(tmp_path):
    """A clone named promptsg in the working folder: Python takes it for a namespace package, and an
    editable install gives the modules."""
    (tmp_path / "promptsg").mkdir()
    code = f"""
import sys
from importlib.util import spec_from_file_location

class Installed:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("promptsg."):
            file = name.split(".")[1] + ".py"
            return spec_from_file_location(name, {str(WEIGHTS.parent)!r} + "/" + file)

sys.path[:] = ["", *(entry for entry in sys.path if entry and entry != {str(WEIGHTS.parents[1])!r})]
sys.meta_path.insert(0, Installed)
import promptsg
from promptsg.backbone import model_config
print(promptsg.__file__, model_config("hand-vit-tiny")["embed_dim"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (
        done.returncode == 0
        and done.stdout.split()[0] == "None"
        and done.stdout.split()[1].isdigit()
    ), done.stderr
