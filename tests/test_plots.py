import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from promptsg.config import PromptSGError
from promptsg.plots import plot_attention, plot_cmc, plot_ranked_lists, plot_training, save_figure, set_style

CURVES = {"a": np.linspace([0.4, 0.5], 1, 20).T, "b": np.linspace(0.8, 1, 20)}
HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "loss_id": [2.0, 1.5, 1.0], "loss_triplet": [np.nan] * 3,
                        "lr_visual": [5e-6] * 3, "lr_modules": [5e-5] * 3, "val_rank1": [0.5, 0.7, 0.6], "val_mAP": [0.6, 0.8, 0.7]})


def image(value=128, size=(12, 16)):
    return np.full((*size, 3), value, np.uint8)


def ranked(**changes):
    return dict(query=image(), gallery=[image(10), image(20), image(30)], right=[True, False, np.bool_(True)],
                similarity=[0.9, 0.8, 0.7], **changes)


def all_figures():
    return [plot_cmc(CURVES), plot_ranked_lists([ranked(), ranked(title="p")]), plot_training(HISTORY),
            plot_attention(np.stack([image()] * 2), np.ones((2, 3, 4)), ["x", "y"])]


def test_every_plot_gives_a_figure_leaves_nothing_behind_and_saves(tmp_path):
    before = dict(plt.rcParams)
    for i, figure in enumerate(all_figures()):
        assert isinstance(figure, Figure)
        path = save_figure(figure, tmp_path / "new" / f"{i}.png", dpi=50)
        assert np.asarray(Image.open(path).convert("L")).std() > 5  # not blank
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [f"{i}.png" for i in range(4)]  # no half files


def test_cmc_draws_the_mean_in_percent_in_the_axes_it_is_given():
    figure, ax = plt.subplots()
    assert plot_cmc(CURVES, ax=ax) is figure
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * CURVES["a"].mean(0))
    assert "rank-1 45.0 %" in ax.get_legend_handles_labels()[1][0]
    plt.close(figure)


def test_ranked_lists_sign_frame_and_similarity():
    axes = plot_ranked_lists([ranked(), dict(query=image(), gallery=[image()])], top=3).axes
    assert [ax.get_xlabel() for ax in axes[:4]] == ["", "✓ 0.90", "✗ 0.80", "✓ 0.70"]
    frames = [ax.spines["left"].get_edgecolor() for ax in axes]
    assert frames[1] == frames[3] != frames[2] and frames[5] not in frames[:4]  # nobody knows: neither right nor wrong
    assert not axes[6].axison and not axes[7].axison  # a short list leaves its places empty
    assert len(plot_ranked_lists([ranked()], top=2).axes) == 3


def test_ranked_lists_take_paths_pil_images_and_floats(tmp_path):
    Image.fromarray(image(50)).save(tmp_path / "hand.png")
    row = dict(query=tmp_path / "hand.png", gallery=[str(tmp_path / "hand.png"), Image.fromarray(image(50)), image(50) / 255.0])
    shown = [np.asarray(ax.images[0].get_array()) for ax in plot_ranked_lists([row]).axes]
    assert all(np.array_equal(picture, image(50)) for picture in shown)


def test_attention_is_relative_to_an_even_share_on_one_scale():
    maps = np.full((2, 3, 4), 0.01)
    maps[0, 0, 3] = 0.23
    figure = plot_attention(np.stack([image()] * 2), maps)
    strong, even = figure.axes[1].images[1], figure.axes[3].images[1]
    assert np.isclose(strong.get_array()[0, 3], 0.23 / maps[0].mean()) and np.allclose(even.get_array(), 1)
    assert strong.get_clim() == even.get_clim() and strong.get_clim()[0] == 0


def test_attention_with_one_column_for_each_word():
    figure = plot_attention(np.stack([image()] * 2), np.random.default_rng(0).random((2, 3, 4, 5)), words=["a", "s*", "hand"])
    assert [ax.get_title() for ax in figure.axes[:4]] == ["image", "a", "s*", "hand"]


def test_training_leaves_out_what_is_empty_and_marks_the_best_epoch():
    losses, validation, rates = plot_training(HISTORY).axes
    assert [line.get_label() for line in losses.lines] == ["total", "identity"]
    assert validation.get_title() == "best mAP 80.0 % in epoch 2" and len(rates.lines) == 2
    plot_training(pd.DataFrame({"epoch": [0], "loss": [1.0]}))  # no validation at all


def test_a_failed_save_keeps_the_old_figure(tmp_path, monkeypatch):
    figure = plot_cmc(CURVES)
    path = save_figure(figure, tmp_path / "a.png", dpi=50)
    old = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda self, to, **_: (to.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, path)
    assert path.read_bytes() == old


def test_set_style_changes_a_notebooks_own_plots():
    with plt.rc_context():
        set_style()
        assert not plt.rcParams["axes.spines.top"]


@pytest.mark.parametrize("call, word", [
    (lambda: plot_cmc({}), "at least one"),
    (lambda: plot_cmc({"a": [45.0, 60.0]}), "fractions"),
    (lambda: plot_cmc({"a": [np.nan]}), "fractions"),
    (lambda: plot_ranked_lists([]), "at least one"),
    (lambda: plot_ranked_lists([dict(query=image(), gallery=[image()], right=[True, False])]), "equally many"),
    (lambda: plot_ranked_lists([dict(gallery=[image()])]), "needs a query"),
    (lambda: plot_ranked_lists([dict(query=image(), gallery=["nowhere.jpg"])]), "nowhere.jpg"),
    (lambda: plot_ranked_lists([dict(query=np.zeros((4, 4)), gallery=[image()])]), "height, width, 3"),
    (lambda: plot_attention(np.stack([image()]), np.ones((2, 3, 4))), "2 maps where 1"),
    (lambda: plot_attention(np.stack([image()]), np.zeros((1, 3, 4))), "empty"),
    (lambda: plot_attention(np.stack([image()]), np.ones((1, 3, 4)), ["a", "b"]), "titles"),
    (lambda: plot_training(pd.DataFrame({"loss": [1.0]})), "epoch"),
    (lambda: save_figure(Figure(), "figure.hand"), "png"),
])
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()
