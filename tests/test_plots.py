import matplotlib

matplotlib.use("Agg")

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.metrics import roc_curve

from promptsg.biometrics import compare_all
from promptsg.config import PromptSGError
from promptsg.error_plots import (
    plot_det,
    plot_groups,
    plot_open_set,
    plot_reliability,
    plot_roc,
    plot_scores,
)
from promptsg.image_plots import (
    plot_attention,
    plot_attention_grid,
    plot_embedding_map,
    plot_ranked_lists,
    plot_steps,
)
from promptsg.plots import (
    VERSION_LOOKS,
    plot_cmc,
    plot_differences,
    plot_published,
    plot_versions,
    save_figure,
    set_style,
    version_style,
)
from promptsg.training_plots import kept_epoch, plot_curves, plot_loss_terms, plot_training

CURVES = {"a": np.linspace([0.4, 0.5], 1, 20).T, "b": np.linspace(0.8, 1, 20)}
NEAREST = dict(
    gallery=[np.full((12, 16, 3), 9, np.uint8)] * 4,
    similarity=[0.9, 0.8, 0.7, 0.6],
    right=[True, False, False, False],
)
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "loss": [3.0, 2.0, 1.0],
        "loss_id": [2.0, 1.5, 1.0],
        "loss_triplet": [np.nan] * 3,
        "lr_visual": [5e-6] * 3,
        "lr_modules": [5e-5] * 3,
        "val_rank1": [0.5, 0.7, 0.6],
        "val_mAP": [0.6, 0.8, 0.7],
    }
)


def image(value=128, size=(12, 16)):
    return np.full((*size, 3), value, np.uint8)


def ranked(**changes):
    return (
        dict(
            query=image(),
            gallery=[image(10), image(20), image(30)],
            right=[True, False, np.bool_(True)],
            similarity=[0.9, 0.8, 0.7],
        )
        | changes
    )


COMPARED = compare_all(
    np.random.default_rng(0).normal(size=(60, 4)) + np.repeat(np.eye(20, 4) * 3, 3, 0),
    np.repeat(range(20), 3),
)
GROUPS_TABLE = pd.DataFrame(
    {
        "group": ["all", "female", "male", "other"],
        "people": [20, 10, 8, 2],
        "images": [60, 30, 24, 6],
        "FMR": [0.02, 0.0, 0.04, np.nan],
        "FMR_low": [0.01, 0, 0.01, np.nan],
        "FMR_high": [0.04, 0.05, 0.1, np.nan],
        "FNMR": [0.2, 0.1, 0.3, np.nan],
        "FNMR_low": [0.1, 0, 0.2, np.nan],
        "FNMR_high": [0.3, 0.2, 0.5, np.nan],
    }
)
CHAIN = [
    "zero-shot",
    "image_only",
    *[f"v{i}" for i in range(1, 12)],
    "v3-logged",
    "v7-logged",
    "simplified",
    "paper",
    "best",
]
LEVELS = {name: 0.2 + 0.045 * i for i, name in enumerate(CHAIN)}  # a known figure for each version


def results(names=CHAIN, **columns):
    "Two seeds of two splits each, 0.02 about the version's level."
    rows = [
        dict(
            version=name,
            seed=seed,
            split=split,
            rank1=LEVELS[name] + 0.02 * (2 * split - 1),
            mAP=LEVELS[name] + 0.03,
            **columns,
        )
        for name in names
        for seed in range(2)
        for split in range(2)
    ]
    return pd.DataFrame(rows)


def two_normals(apart, n=400):
    rng = np.random.default_rng(int(10 * apart))
    return np.r_[rng.normal(apart, 1, n), rng.normal(0, 1, 5 * n)], np.arange(6 * n) < n


def clouds(people=20, each=5):
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(people), each)
    return rng.normal(0, 3, (people, 8))[who] + rng.normal(size=(len(who), 8)), [
        f"P{person:02d}" for person in who
    ]


DIFFERENCES = pd.DataFrame(
    [
        ("image_only", "paper", "rank1", 3.0, 1.0, 5.0),
        ("image_only", "paper", "mAP", 2.0, -1.0, 5.0),
        ("v3", "v3-logged", "rank1", -4.0, -6.0, -2.0),
    ],
    columns=["a", "b", "measure", "difference", "low", "high"],
)

FIGURES = {
    "cmc": lambda: plot_cmc(CURVES),
    "cmc of all versions": lambda: plot_cmc(
        {name: np.linspace(level, 1, 20) for name, level in LEVELS.items()}
    ),
    "ranked lists": lambda: plot_ranked_lists([ranked(), ranked(title="p")]),
    "ranked lists, ten wide": lambda: plot_ranked_lists(
        [dict(query=image(), gallery=[image()] * 10, distance=range(10))]
    ),
    "ranked lists with names": lambda: plot_ranked_lists(
        [
            ranked(
                names=["query.jpg", "a_very_long_name_of_a_file.jpg", *["Hand_0000001.jpg"] * 9],
                gallery=[image()] * 10,
                right=None,
                similarity=[0.123] * 10,
            )
        ]
        * 2,
        digits=3,
        note="at random",
    ),
    "ranked lists with words": lambda: plot_ranked_lists(
        [
            ranked(
                names=["q", "a", "b", "c"],
                likelihood_ratio=["1,000,000", "20", "0.5"],
                alike=["alike: moles, unlike: a long sleeve"] * 3,
            )
        ]
        * 2
    ),
    "training": lambda: plot_training(HISTORY),
    "training of one epoch": lambda: plot_training(HISTORY[:1]),
    "training, three rates": lambda: plot_training(
        HISTORY.assign(lr_head=1e-3, loss_supcon=1.0, loss_centre=1.0)
    ),
    "steps": lambda: plot_steps(
        image(),
        np.arange(64) - 30,
        "A photo of a s* person's dorsal right hand.",
        np.ones((3, 4)),
        NEAREST,
    ),
    "attention": lambda: plot_attention(np.stack([image()] * 2), np.ones((2, 3, 4)), ["x", "y"]),
    "attention grid": lambda: plot_attention_grid(
        image(), np.ones((3, 4, 2, 2)), ["photo", "s*", "person's"], [f"head {k}" for k in range(4)]
    ),
    "attention grid, large": lambda: plot_attention_grid(
        image(), np.ones((9, 12, 2, 2)), ["person's"] * 9, range(12)
    ),
    "curves": lambda: plot_curves(
        {"paper": [HISTORY, HISTORY.assign(loss=HISTORY.loss + 1)], "image_only": HISTORY}
    ),
    "curves of all versions": lambda: plot_curves(
        {name: HISTORY.assign(val_mAP=level) for name, level in LEVELS.items()}
    ),
    "curves, all kinds": lambda: plot_curves(
        {"paper": HISTORY, "v8": HISTORY[:1]}, ("loss", "val_mAP", "lr_visual")
    ),
    "loss terms of one epoch": lambda: plot_loss_terms({"paper": HISTORY[:1], "v8": HISTORY}),
    "loss terms": lambda: plot_loss_terms(dict.fromkeys(CHAIN[:6], HISTORY)),
    "versions": lambda: plot_versions(results()),
    "versions, four groups": lambda: plot_versions(
        pd.concat(
            [
                results(CHAIN[:3], backbone=backbone, protocol=protocol)
                for backbone in ("hand-vit-tiny", "rn50")
                for protocol in ("clipfh", "mba")
            ]
        )
    ),
    "differences": lambda: plot_differences(DIFFERENCES),
    "differences, four groups": lambda: plot_differences(
        pd.concat(
            [
                DIFFERENCES.assign(backbone=backbone, protocol=protocol)
                for backbone in ("hand-vit-tiny", "rn50")
                for protocol in ("clipfh", "mba")
            ]
        )
    ),
    "published": lambda: plot_published(results(CHAIN[2:13]), results()),
    "roc": lambda: plot_roc({"paper": two_normals(2), "image_only": two_normals(3)}),
    "roc of all versions": lambda: plot_roc(
        {name: two_normals(1 + 3 * level) for name, level in LEVELS.items()}
    ),
    "det": lambda: plot_det({"paper": COMPARED, "image_only": COMPARED}, draws=20),
    "open set": lambda: plot_open_set(
        {
            "paper": pd.DataFrame(
                {
                    "enrolled": 5,
                    "FNIR at FPIR 10 %": [0.2, 0.3],
                    "FNIR at FPIR 20 %": [0.2, 0.2],
                    "FNIR at FPIR 30 %": [0.1, 0.1],
                }
            )
        }
    ),
    "reliability": lambda: plot_reliability(
        {"logistic": pd.DataFrame({"predicted": [0.1, 0.9], "observed": [0.2, 0.8]})}
    ),
    "groups": lambda: plot_groups({"gender": GROUPS_TABLE, "age": GROUPS_TABLE}),
    "scores": lambda: plot_scores(*two_normals(2)),
    "map": lambda: plot_embedding_map(*clouds()),
}


def drawn(figure):
    FigureCanvasAgg(figure).draw()  # pyplot took the canvas when it forgot the figure
    return figure


def pixels(figure):
    return np.asarray(drawn(figure).canvas.buffer_rgba())


def written(figure):
    "Every visible text of a drawn figure with its box in pixels."
    hidden = {
        text
        for ax in figure.axes
        if not ax.get_visible() or not ax.axison
        for text in ax.findobj(Text)
    }
    hidden |= {
        text
        for ax in figure.axes
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim()))
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for text in (tick.label1, tick.label2)
        if not min(limits) - 1e-9 <= tick.get_loc() <= max(limits) + 1e-9 or not text.get_visible()
    }
    found = [
        text
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def crossing(one, other, slack=1):
    return (min(one.x1, other.x1) - max(one.x0, other.x0) > slack) and (
        min(one.y1, other.y1) - max(one.y0, other.y0) > slack
    )


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_no_text_lies_on_another(name):
    figure = drawn(FIGURES[name]())
    texts, (width, height) = written(figure), figure.canvas.get_width_height()
    assert width <= 920 and texts
    outside = [
        text
        for text, box in texts
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    overlapping = [
        (a, b)
        for i, (a, one) in enumerate(texts)
        for b, other in texts[i + 1 :]
        if crossing(one, other)
    ]
    assert not outside and not overlapping


def test_the_check_above_can_fail():
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.text(0.5, 0.5, "one"), ax.text(0.5, 0.5, "two"), ax.text(5, 0.5, "out of sight")
    boxes = dict(written(drawn(figure)))
    assert (
        crossing(boxes["one"], boxes["two"])
        and boxes["out of sight"].x0 > figure.canvas.get_width_height()[0]
    )
    plt.close(figure)


@pytest.mark.parametrize("name", ["cmc", "roc", "cmc of all versions", "roc of all versions"])
def test_the_legend_lies_on_no_curve(name):
    figure = drawn(FIGURES[name]())
    ax = figure.axes[0]
    legend = (ax.get_legend() or figure.legends[0]).get_window_extent()
    points = [
        ax.transData.transform(line.get_xydata())
        for line in ax.lines
        if len(line.get_xdata()) > 2 and line.get_color() != "#767676"
    ]
    assert len(points) > 1 and not any(legend.contains(*point) for line in points for point in line)


def test_curves_that_lie_on_each_other_can_both_be_seen():
    figure = drawn(
        plot_cmc({"paper, clipfh": CURVES["b"], "paper, mba": CURVES["b"], "v3": CURVES["a"]})
    )
    below, above, alone = figure.axes[0].lines
    assert (
        below.get_linewidth() > 2 * above.get_linewidth()
        and above.get_gapcolor() == "white"
        and above.get_linestyle() == ":"
    )
    places = lambda line: set(np.arange(20)[line.get_markevery()[0] :: line.get_markevery()[1]])
    # filled and hollow markers take turns
    assert places(below) | places(above) == set(range(20)) and not places(below) & places(above)
    assert alone.get_markevery() is None and alone.get_gapcolor() is None


def test_training_legends_hide_nothing_and_name_the_groups():
    figure = drawn(plot_training(HISTORY.assign(lr_head=1e-3)))
    for ax in figure.axes:
        assert not crossing(ax.get_legend().get_window_extent(), ax.get_window_extent())
    assert [text.get_text() for text in figure.axes[2].get_legend().get_texts()] == [
        "image tower",
        "inversion and fusion",
        "classifier",
    ]
    same = plot_training(HISTORY.assign(lr_head=HISTORY.lr_modules)).axes[2]
    assert [line.get_label() for line in same.lines] == [
        "image tower",
        "inversion and fusion, classifier",
    ]


def test_steps_show_what_they_are_given():
    figure = plot_steps(
        image(), np.r_[np.arange(1, 20), -40], "A photo of a s* person.", np.ones((3, 4)), NEAREST
    )
    word = next(ax for ax in figure.axes if ax.get_xlabel() == "20 numbers").images[0]
    assert (
        word.get_array().shape == (2, 16)
        and word.get_array().count() == 20
        and word.get_clim() == (-40, 40)
    )
    found = [
        ax.get_xlabel()
        for ax in figure.findobj(plt.Axes)
        if ax.get_xlabel()[:1] in "✓✗" and ax.get_xlabel()
    ]
    assert found == ["✓ 0.90", "✗ 0.80", "✗ 0.70", "✗ 0.60"]
    assert "$s^*$" in next(
        text.get_text() for text in figure.findobj(Text) if "photo" in text.get_text()
    )


def test_curves_panels_share_one_legend_of_every_run():
    figure = drawn(FIGURES["curves of all versions"]())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == CHAIN
    assert all(
        not crossing(figure.legends[0].get_window_extent(), ax.get_window_extent())
        for ax in figure.axes
    )


# --- the look of a version


def look_of(line):
    return to_hex(line.get_color()), line.get_marker(), line.get_linestyle()


def test_a_version_looks_the_same_in_every_figure_and_place():
    style = version_style("v3")
    expected = (style["color"], style["marker"], style["linestyle"])
    one = plot_cmc({"v3": [0.5, 1], "paper": [0.6, 1]}).axes[0].lines[0]
    last = plot_cmc({"paper": [0.6, 1], "v1": [0.4, 1], "v3": [0.5, 1]}).axes[0].lines[2]
    curve = plot_curves({"v1": HISTORY, "v3": HISTORY}).axes[0].lines[1]
    roc = [
        line
        for line in plot_roc({"v1": two_normals(1), "v3": two_normals(2)}).axes[0].lines
        if line.get_label().startswith("v3")
    ][0]
    assert look_of(one) == look_of(last) == look_of(curve) == look_of(roc) == expected
    dot = plot_versions(results(["v1", "v3"])).axes[0].lines[1]
    assert (to_hex(dot.get_color()), dot.get_marker()) == expected[:2]


def test_logged_variants_share_colour_and_marker_only():
    plain, logged = version_style("v3"), version_style("v3-logged")
    assert plain["color"] == logged["color"] and plain["marker"] == logged["marker"]
    assert (plain["linestyle"], logged["linestyle"]) == ("-", "--") and logged[
        "markerfacecolor"
    ] == "white"


def test_names_that_go_on_and_names_nobody_knows():
    assert version_style("paper, mba") == version_style("paper@vitb16") == version_style("paper")
    assert version_style("untrained") == version_style("zero-shot") and version_style(
        "v11"
    ) != version_style("v1")
    assert (
        version_style("v12") == version_style("v12")
        and version_style("v12")["linestyle"] == ":" == version_style("papers")["linestyle"]
    )
    looks = [
        look_of(line)
        for line in plot_cmc(
            {f"paper, {i}": [0.5, 1] for i in range(4)} | {"mine": [0.1, 1], "yours": [0.2, 1]}
        )
        .axes[0]
        .lines
    ]
    assert len(set(looks)) == 6 and len({look[0] for look in looks[:4]}) == 1


def test_versions_can_be_told_apart_in_grey_or_by_marker():
    colours, markers = zip(*VERSION_LOOKS.values())
    assert len(set(colours)) == len(set(markers)) == 18  # so that no pair hangs on colour alone
    luminance = [
        np.dot(
            np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4),
            (0.2126, 0.7152, 0.0722),
        )
        for c in map(np.array, map(to_rgb, colours))
    ]
    assert max(luminance) < 0.5  # all show on white paper
    chain = [luminance[i] for i, name in enumerate(VERSION_LOOKS) if name.startswith("v")]
    ratios = [(max(a, b) + 0.05) / (min(a, b) + 0.05) for a, b in zip(chain, chain[1:])]
    assert np.median(ratios) > 2  # most neighbours in the chain differ in lightness


# --- what is drawn


def test_every_plot_gives_a_figure_leaves_nothing_behind_and_saves(tmp_path):
    before = dict(plt.rcParams)
    # each function once
    names = [name for name in FIGURES if "," not in name and "all" not in name]
    for name in names:
        figure = FIGURES[name]()
        assert isinstance(figure, Figure)
        path = save_figure(figure, tmp_path / "new" / f"{name}.png", dpi=40)
        assert np.asarray(Image.open(path).convert("L")).std() > 5  # not blank
    assert plt.get_fignums() == [] and dict(plt.rcParams) == before
    # no half files
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == sorted(
        f"{name}.png" for name in names
    )


def test_cmc_draws_the_mean_in_percent_in_the_axes_it_is_given():
    figure, ax = plt.subplots()
    assert plot_cmc(CURVES, ax=ax) is figure
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * CURVES["a"].mean(0))
    assert "rank-1 45.0 %" in ax.get_legend_handles_labels()[1][0]
    plt.close(figure)


def test_cmc_legend_has_the_order_of_the_curves():
    legend = plot_cmc({"v1": [0.2, 1], "paper": [0.9, 1], "v2": [0.5, 1]}).axes[0].get_legend()
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == ["paper", "v2", "v1"]


def test_ranked_lists_say_what_their_numbers_are():
    distant = plot_ranked_lists([dict(query=image(), gallery=[image()] * 2, distance=[0.1, 1.25])])
    assert distant.axes[2].get_xlabel() == "1.25" and distant.get_supxlabel() == "distance"
    assert "cosine similarity" in plot_ranked_lists([ranked()]).get_supxlabel()


def test_ranked_lists_sign_frame_and_similarity():
    axes = plot_ranked_lists([ranked(), dict(query=image(), gallery=[image()])], top=3).axes
    assert [ax.get_xlabel() for ax in axes[:4]] == ["", "✓ 0.90", "✗ 0.80", "✓ 0.70"]
    frames = [ax.spines["left"].get_edgecolor() for ax in axes]
    # nobody knows: neither right nor wrong
    assert frames[1] == frames[3] != frames[2] and frames[5] not in frames[:4]
    assert not axes[6].axison and not axes[7].axison  # a short list leaves its places empty
    assert len(plot_ranked_lists([ranked()], top=2).axes) == 3


def test_ranked_lists_have_as_many_digits_as_asked_for():
    one, two = plot_ranked_lists([ranked()]), plot_ranked_lists([ranked()], digits=3)
    assert one.axes[1].get_xlabel() == "✓ 0.90" and two.axes[1].get_xlabel() == "✓ 0.900"


def test_ranked_lists_name_images_and_say_the_note():
    figure = drawn(
        plot_ranked_lists(
            [
                ranked(
                    names=["q.jpg", "Hand_0000001.jpg", "a_very_long_name_of_a_file.jpg", "b.png"]
                )
            ],
            note="at random (seed 7)",
        )
    )
    assert [ax.texts[0].get_text() for ax in figure.axes] == [
        "q",
        "Hand_0000001",
        "a_very…_a_file",
        "b",
    ]
    assert figure.get_supxlabel().endswith("; at random (seed 7)")
    assert not plot_ranked_lists([ranked()]).axes[1].texts


def test_ranked_lists_have_likelihood_ratios_between_names_and_words():
    row = ranked(
        names=list("qabc"), likelihood_ratio=["20", "2", "0.5"], alike=["alike: moles"] * 3
    )
    figure = plot_ranked_lists([row, ranked()], top=2)
    below = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert below == [
        ["q"],
        ["a", "LR 20", "alike: moles"],
        ["b", "LR 2", "alike: moles"],
        *[[]] * 3,
    ]
    assert "LR: likelihood ratio" in figure.get_supxlabel()
    assert "LR" not in plot_ranked_lists([ranked()]).get_supxlabel()


def test_a_search_shows_the_likelihood_ratios_of_its_table(tmp_path):
    from promptsg.cli import ranked_figure

    Image.fromarray(image()).save(tmp_path / "a.png")
    row = dict(image="a.png", path=str(tmp_path / "a.png"), identity="7:dorsal_r")
    table = pd.DataFrame([row, row]).assign(likelihood_ratio=["1,200", "0.3"])
    lists = [(table.iloc[0], table, [0.9, 0.1])]
    figure = ranked_figure(lists, named=True)
    assert [ax.texts[-1].get_text() for ax in figure.axes] == ["7", "LR 1,200", "LR 0.3"]
    lists = [(table.iloc[0], table.drop(columns="likelihood_ratio"), [0.9, 0.1])]
    assert [len(ax.texts) for ax in ranked_figure(lists, named=True).axes] == [1, 1, 1]


def test_a_figure_drawn_anew_is_the_figure_drawn_new():
    lists = lambda *rows, **more: plot_ranked_lists(
        [dict(query=image(), **row) for row in rows], **more
    )
    first = dict(gallery=[image(10), image(200)], similarity=[0.9, 0.8], right=[True, False])
    other = dict(gallery=[image(90), image(30)[:20]], distance=[0.1, 0.2])
    grid = lambda seed, strength, **more: plot_attention_grid(
        [image(seed), image(2 * seed)],
        np.random.default_rng(seed).random((2, 3, 4, 5)) ** seed,
        [f"row {seed}", "b"],
        [f"head {seed}", "c", "d"],
        strength,
        **more,
    )
    for old, new in (
        (
            lambda **more: lists(first, first, **more),
            lambda **more: lists(other, dict(gallery=[image(5)]), **more),
        ),
        (lambda **more: grid(9, 1.0, **more), lambda **more: grid(2, 0.5, **more)),
    ):
        for before, after in ((old, new), (new, old)):
            figure = before()
            assert after(figure=figure) is figure
            assert np.array_equal(pixels(figure), pixels(after()))


def test_a_figure_of_another_size_is_not_drawn_into():
    figure = plot_ranked_lists([ranked()], top=2)
    assert (
        plot_ranked_lists([ranked()], top=3, figure=figure) is not figure and len(figure.axes) == 3
    )
    assert plot_ranked_lists([ranked()], top=2, figure=Figure()).axes


def test_ranked_lists_take_paths_pil_images_and_floats(tmp_path):
    Image.fromarray(image(50)).save(tmp_path / "hand.png")
    row = dict(
        query=tmp_path / "hand.png",
        gallery=[str(tmp_path / "hand.png"), Image.fromarray(image(50)), image(50) / 255.0],
    )
    shown = [np.asarray(ax.images[0].get_array()) for ax in plot_ranked_lists([row]).axes]
    assert all(np.array_equal(picture, image(50)) for picture in shown)


def test_attention_is_relative_to_an_even_share_on_one_scale():
    maps = np.full((2, 3, 4), 0.01)
    maps[0, 0, 3] = 0.23
    figure = plot_attention(np.stack([image()] * 2), maps)
    strong, even = figure.axes[1].images[1], figure.axes[3].images[1]
    assert np.isclose(strong.get_array()[0, 3], 0.23 / maps[0].mean()) and np.allclose(
        even.get_array(), 1
    )
    assert strong.get_clim() == even.get_clim() and strong.get_clim()[0] == 0


def test_attention_with_one_column_for_each_word():
    figure = plot_attention(
        np.stack([image()] * 2),
        np.random.default_rng(0).random((2, 3, 4, 5)),
        words=["a", "s*", "hand"],
    )
    assert [ax.get_title() for ax in figure.axes[:4]] == ["image", "a", "s*", "hand"]


def test_attention_grid_has_each_map_in_its_place_on_one_scale():
    maps = np.full((2, 3, 4, 5), 0.01)
    maps[1, 2, 3, 0] = 0.5
    figure = plot_attention_grid(image(), maps, ["s*", "hand"], ["h1", "h2", "h3"])
    axes = np.array(figure.axes[:8]).reshape(2, 4)
    heats = [[ax.images[1] for ax in row[1:]] for row in axes]
    assert np.unravel_index(heats[1][2].get_array().argmax(), (4, 5)) == (3, 0) and np.allclose(
        heats[0][0].get_array(), 1
    )
    assert {heat.get_clim() for row in heats for heat in row} == {(0, 0.5 / maps[1, 2].mean())}
    assert [ax.get_title() for ax in axes[0]] == ["image", "h1", "h2", "h3"] and [
        row[1].get_ylabel() for row in axes
    ] == ["s*", "hand"]
    assert "even share" in figure.axes[-1].get_ylabel() and not axes[1, 0].get_visible()
    own = plot_attention_grid([image(10), image(200)], maps).axes
    assert (np.asarray(own[0].images[0].get_array()) == 10).all() and (
        np.asarray(own[4].images[0].get_array()) == 200
    ).all()


def test_strength_is_how_much_a_map_covers():
    maps = np.random.default_rng(0).random((1, 1, 4, 5))
    full, half, bare = (
        plot_attention_grid(image(), maps, strength=strength).axes[1].images[1].get_alpha()
        for strength in (1, 0.5, 0)
    )
    np.testing.assert_allclose(half, full / 2)
    assert (bare == 0).all() and (full > 0).all()


def test_a_peak_of_attention_is_drawn_in_the_colour_of_its_value():
    maps = np.full((1, 1, 7, 7), 0.01)
    maps[0, 0, 3, 3] = 1.0
    figure = drawn(plot_attention_grid(np.full((70, 70, 3), 255, np.uint8), maps))
    x, y = figure.axes[1].transData.transform((34.5, 34.5)).round().astype(int)
    pixel = np.asarray(figure.canvas.buffer_rgba())[::-1][y, x, :3] / 255
    dark = np.array(matplotlib.colormaps["rocket_r"](1.0)[:3])
    np.testing.assert_allclose(pixel, 0.85 * dark + 0.15, atol=0.1)  # the scale's end, over white


def test_curves_draw_the_mean_of_the_seeds_and_each_seed():
    figure = plot_curves(
        {"paper": [HISTORY, HISTORY.assign(loss=HISTORY.loss + 1)], "image_only": HISTORY},
        ("loss", "val_mAP"),
    )
    loss, validation = figure.axes
    labelled = {
        line.get_label(): line.get_ydata()
        for line in loss.lines
        if not line.get_label().startswith("_")
    }
    np.testing.assert_allclose(labelled["paper"], [3.5, 2.5, 1.5])
    np.testing.assert_allclose(labelled["image_only"], [3, 2, 1])
    assert (
        len(loss.lines) == 4 and loss.get_ylabel() == "loss, total" and loss.get_xlabel() == "epoch"
    )
    np.testing.assert_allclose(validation.lines[-1].get_ydata(), [60, 80, 70])


def test_runs_of_unequal_length_each_keep_their_epochs():
    figure = plot_curves({"v1": [HISTORY, HISTORY[:2].assign(loss=5.0)]}, ("loss",))
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), [4, 3.5, 1])


def test_loss_terms_add_up_to_the_loss_on_one_axis():
    figure = plot_loss_terms(
        {"image_only": HISTORY, "paper": HISTORY.assign(loss_supcon=[4.0, 3.0, 2.0])}
    )
    top = lambda ax: max(
        path.vertices[:, 1].max() for band in ax.collections for path in band.get_paths()
    )
    first, second = figure.axes[:2]
    assert (
        np.isclose(top(first), 2.0)
        and np.isclose(top(second), 6.0)
        and first.get_ylim() == second.get_ylim()
    )
    # the empty triplet is left out
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "contrastive",
        "identity",
    ]


def test_versions_draw_mean_spread_order_and_reference_lines():
    figure = plot_versions(results(["paper", "v10", "v2", "image_only", "zero-shot"]))
    rank1, m_ap = figure.axes
    assert [label.get_text() for label in rank1.get_yticklabels()] == [
        "zero-shot",
        "image_only",
        "v2",
        "v10",
        "paper",
    ]
    bars = {round(container.lines[0].get_ydata()[0]): container for container in rank1.containers}
    for i, name in enumerate(["zero-shot", "image_only", "v2", "v10", "paper"]):
        middle, (segment,) = bars[i].lines[0].get_xdata()[0], bars[i].lines[2][0].get_segments()
        spread = 100 * np.std([-0.02, 0.02] * 2, ddof=1)
        np.testing.assert_allclose(
            [middle, *segment[:, 0]],
            [100 * LEVELS[name], 100 * LEVELS[name] - spread, 100 * LEVELS[name] + spread],
        )
    lines = [
        line.get_xdata()[0]
        for line in rank1.lines
        if line.get_linestyle() in (":", "--") and len(line.get_xdata()) == 2
    ]
    np.testing.assert_allclose(lines, [100 * LEVELS["zero-shot"], 100 * LEVELS["image_only"]])
    assert [text.get_text() for text in rank1.texts][
        3
    ] == f"{100 * LEVELS['v10']:.1f} ± {100 * np.std([-0.02, 0.02] * 2, ddof=1):.1f}"
    assert (rank1.get_xlabel(), m_ap.get_xlabel()) == (
        "Rank-1 (%)",
        "mAP (%)",
    ) and "splits and seeds" in figure.get_supxlabel()


def test_only_the_exact_reference_names_draw_a_line():
    table = pd.concat(
        [results([name]).assign(version=label) for name, label in BASES.items()], ignore_index=True
    )
    figure = plot_versions(table)
    for ax in figure.axes:
        lines = [line for line in ax.lines if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in lines if len(line.get_xdata()) == 2] == [
            pytest.approx(ax.containers[0].lines[0].get_xdata()[0])
        ]
    assert "lines: zero-shot (dotted)" in figure.get_supxlabel()
    assert "lines" not in plot_versions(results(["paper", "best"])).get_supxlabel()


BASES = {"zero-shot": "zero-shot", "v1": "zero-shot, whitened", "v2": "paper"}


def test_versions_have_a_panel_for_each_backbone_and_protocol():
    figure = FIGURES["versions, four groups"]()
    titles = [ax.get_title(loc="left") for ax in figure.axes[::2]]
    assert titles == ["hand-vit-tiny, clipfh", "hand-vit-tiny, mba", "rn50, clipfh", "rn50, mba"]


def test_one_measurement_has_no_spread_and_an_empty_one_no_dot():
    table = pd.DataFrame({"version": ["v1", "v2"], "rank1": [0.5, np.nan]})
    (ax,) = plot_versions(table, measures=("rank1",)).axes
    assert [text.get_text() for text in ax.texts] == ["50.0"] and len(ax.containers) == 1


def test_differences_draw_intervals_and_say_which_are_decided():
    figure = plot_differences(DIFFERENCES)
    rank1, m_ap = figure.axes
    drawn = [
        line
        for line in rank1.lines
        if len(line.get_xdata()) == 2 and len(set(line.get_ydata())) == 1
    ]
    np.testing.assert_allclose([line.get_xdata() for line in drawn], [[1, 5], [-6, -2]])
    dots = [[line for line in ax.lines if len(line.get_xdata()) == 1] for ax in (rank1, m_ap)]
    assert [to_hex(dot.get_markerfacecolor()) for dot in dots[0]] == [
        version_style("paper")["color"],
        version_style("v3")["color"],
    ]
    assert to_hex(dots[1][0].get_markerfacecolor()) == "#ffffff"  # the interval holds 0
    assert [text.get_text() for text in rank1.texts] == ["+3.0 [+1.0, +5.0]", "−4.0 [−6.0, −2.0]"]
    assert [label.get_text() for label in rank1.get_yticklabels()] == [
        "paper − image_only",
        "v3-logged − v3",
    ]


def test_published_figures_are_hollow_beside_ours():
    theirs = pd.DataFrame({"version": ["v1", "v2"], "rank1": [0.6, 0.7]})
    ours = pd.DataFrame({"version": ["v1", "v1", "paper"], "rank1": [0.64, 0.66, 0.9]})
    (ax,) = plot_published(theirs, ours, measures=("rank1",)).axes
    assert [text.get_text() for text in ax.texts] == ["60.0 → 65.0", "70.0 → –", "– → 90.0"]
    dots = [
        (line.get_xdata()[0], to_hex(line.get_markerfacecolor()))
        for line in ax.lines
        if line.get_marker() not in ("None", "")
    ]
    assert (60.0, "#ffffff") in dots and any(
        np.isclose(x, 65) and face == version_style("v1")["color"] for x, face in dots
    )


def test_roc_is_scikit_learns_and_marks_the_equal_error():
    scores, genuine = two_normals(2)
    (ax,) = plot_roc({"paper": (scores, genuine)}).axes
    curve = max(ax.lines[:2], key=lambda line: len(line.get_xdata()))
    far, tar, _ = roc_curve(genuine, scores)
    upper = np.array([tar[far <= x / 100 + 1e-12].max() for x in curve.get_xdata()])
    np.testing.assert_allclose(curve.get_ydata() / 100, upper, atol=1e-9)
    mark = next(line for line in ax.lines if len(line.get_xdata()) == 1)
    error = far[np.argmin(np.abs(far - (1 - tar)))]
    assert abs(mark.get_xdata()[0] - 100 * error) < 0.5 and np.isclose(
        mark.get_xdata()[0] + mark.get_ydata()[0], 100
    )
    assert ax.get_xscale() == "log" and np.isclose(ax.get_xlim()[0], 100 / 2000)


def test_scores_of_each_kind_add_up_to_100_percent():
    scores, genuine = two_normals(2)
    (ax,) = plot_scores(scores, genuine).axes
    heights, edges = np.histogram(scores[genuine], np.linspace(scores.min(), scores.max(), 51))
    outline = ax.patches[0].get_xy()
    assert np.isclose(outline[:, 1].max(), 100 * heights.max() / genuine.sum())
    threshold = ax.lines[0].get_xdata()[0]
    missed, accepted = (scores[genuine] < threshold).mean(), (scores[~genuine] >= threshold).mean()
    assert abs(missed - accepted) < 0.005


def test_the_map_is_scikit_learns_pca_with_its_variance():
    features, who = clouds()
    figure = plot_embedding_map(features, who, people=["P03", "P07"])
    (ax,) = figure.axes
    expected = PCA(2).fit(features)
    drawn = np.concatenate([np.asarray(dots.get_offsets()) for dots in ax.collections])
    order = [i for one in ("P03", "P07") for i, name in enumerate(who) if name == one] + [
        i for i, name in enumerate(who) if name not in ("P03", "P07")
    ]
    np.testing.assert_allclose(
        np.abs(drawn), np.abs(expected.transform(features))[order], atol=1e-9
    )
    assert (
        ax.get_xlabel()
        == f"component 1 ({100 * expected.explained_variance_ratio_[0]:.0f} % of the variance)"
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "P03",
        "P07",
        "others (18)",
    ]


def test_the_map_colours_those_with_most_images_and_takes_a_function():
    features, who = clouds()
    figure = plot_embedding_map(
        np.r_[features, features[:3]],
        [*who, "P19", "P19", "P18"],
        people=2,
        method=lambda x: x[:, :2],
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["P18", "P19"]
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets()[0], features[90, :2])


def test_training_has_no_panel_without_values():
    only_loss = plot_training(HISTORY[["epoch", "loss"]])
    assert [ax.get_ylabel() for ax in only_loss.axes] == ["loss"]
    untrained = plot_training(HISTORY[["epoch", "val_mAP"]].assign(epoch=[0, 1, 2], loss=np.nan))
    assert [ax.get_ylabel() for ax in untrained.axes] == ["held-out people (%)"]
    with pytest.raises(PromptSGError, match="no values"):
        plot_training(HISTORY[["epoch"]])


def test_the_learning_rate_has_a_logarithmic_axis_of_its_own_with_a_unit():
    one, several = plot_training(HISTORY), plot_curves({"paper": HISTORY}, ("loss", "lr_visual"))
    for ax in (one.axes[-1], several.axes[-1]):
        assert ax.get_ylabel().startswith("learning rate (per step)")
        assert ax.get_yscale() == "log"
    assert "lr" not in "".join(line.get_label() for ax in one.axes[:2] for line in ax.lines)
    assert len(drawn(one).axes[-1].get_yticklabels()) > 1


def test_one_epoch_is_drawn_as_points():
    table = HISTORY[:1]
    for ax in plot_training(table).axes:
        shown = [line for line in ax.lines if line.get_linestyle() == "-"]
        assert shown and all(line.get_marker() not in ("", "None", "none") for line in shown)
        assert ax.get_xticks().tolist() == [1]
    (seeds,) = plot_curves({"paper": [table, table.assign(loss=5.0)]}, ("loss",)).axes
    assert sorted(line.get_ydata()[0] for line in seeds.lines) == [3, 4, 5]
    assert all(line.get_marker() not in ("", "None", "none") for line in seeds.lines)
    terms = plot_loss_terms({"paper": table.assign(loss_supcon=1.0)}).axes[0]
    assert [line.get_ydata()[0] for line in terms.lines] == [2, 3]
    assert [bar.get_height() for bar in terms.patches] == [2, 1]


def test_training_leaves_out_what_is_empty():
    losses, _, rates = plot_training(HISTORY).axes
    assert [line.get_label() for line in losses.lines] == ["total", "identity"] and len(
        rates.lines
    ) == 2
    plot_training(pd.DataFrame({"epoch": [0], "loss": [1.0]}))  # no validation at all


@pytest.mark.parametrize(
    "values, select, epoch, title",
    [
        ([0.6, 0.8, 0.7], "best", 2, "kept: epoch 2, the best, mAP 80.0 %"),
        ([0.6, 0.8, 0.7], "last", 3, "kept: epoch 3, the last, mAP 70.0 %"),
        # of equal ones the last, as the training keeps it
        ([0.8, 0.8, 0.7], "best", 2, "kept: epoch 2, the best, mAP 80.0 %"),
        ([np.nan] * 3, "last", 3, "kept: epoch 3, the last"),
    ],
)
def test_training_marks_the_epoch_that_was_kept(values, select, epoch, title):
    metrics = HISTORY.assign(val_mAP=values)
    validation = plot_training(metrics, select).axes[1]
    marks = [line for line in validation.lines if line.get_linestyle() == ":"]
    assert validation.get_title() == title and [list(line.get_xdata()) for line in marks] == [
        [epoch, epoch]
    ]
    assert kept_epoch(metrics, select).epoch == epoch
    assert (
        kept_epoch(HISTORY.assign(val_mAP=np.nan)) is None
        and kept_epoch(HISTORY.drop(columns="val_mAP")) is None
    )


def test_a_full_disk_is_one_sentence_and_keeps_the_old_figure(tmp_path, monkeypatch):
    figure = plot_cmc(CURVES)
    path = save_figure(figure, tmp_path / "a.png", dpi=50)
    old = path.read_bytes()

    def full(self, to, **_):
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(PromptSGError, match="a.png cannot be written .No space left"):
        save_figure(figure, path)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_failed_save_keeps_the_old_figure(tmp_path, monkeypatch):
    figure = plot_cmc(CURVES)
    path = save_figure(figure, tmp_path / "a.png", dpi=50)
    old = path.read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda self, to, **_: (to.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, path)
    assert path.read_bytes() == old


def test_functions_of_the_other_modules_can_be_imported_from_plots():
    from promptsg import image_plots, plots, training_plots

    for module in (image_plots, training_plots):
        for name in module.__all__:
            assert getattr(plots, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="plot_nothing"):
        plots.plot_nothing  # noqa: B018


def test_set_style_changes_a_notebooks_own_plots():
    with plt.rc_context():
        set_style()
        assert not plt.rcParams["axes.spines.top"]


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: plot_cmc({}), "at least one"),
        (lambda: plot_cmc({"a": [45.0, 60.0]}), "fractions"),
        (lambda: plot_cmc({"a": [np.nan]}), "fractions"),
        (lambda: plot_ranked_lists([]), "at least one"),
        (
            lambda: plot_ranked_lists(
                [dict(query=image(), gallery=[image()], right=[True, False])]
            ),
            "equally many",
        ),
        (lambda: plot_ranked_lists([dict(gallery=[image()])]), "needs a query"),
        (lambda: plot_ranked_lists([dict(query=image(), gallery=["nowhere.jpg"])]), "nowhere.jpg"),
        (
            lambda: plot_ranked_lists([dict(query=np.zeros((4, 4)), gallery=[image()])]),
            "height, width, 3",
        ),
        (lambda: plot_attention(np.stack([image()]), np.ones((2, 3, 4))), "2 maps where 1"),
        (lambda: plot_attention(np.stack([image()]), np.zeros((1, 3, 4))), "sum above 0"),
        (lambda: plot_attention(np.stack([image()]), np.ones((1, 3, 4)), ["a", "b"]), "titles"),
        (lambda: plot_attention(np.stack([image()]), np.ones((1, 3, 4)), strength=1.5), "strength"),
        (lambda: plot_training(pd.DataFrame({"loss": [1.0]})), "epoch"),
        (lambda: plot_ranked_lists([ranked(distance=[1, 2, 3])]), "both"),
        (lambda: plot_ranked_lists([ranked(names=["q", "a"])]), "2 names"),
        (
            lambda: plot_steps(image(), np.ones((2, 3)), "a s*", np.ones((3, 4)), NEAREST),
            "one vector",
        ),
        (lambda: plot_steps(image(), np.zeros(8), "a s*", np.ones((3, 4)), NEAREST), "not all 0"),
        (
            lambda: plot_steps(
                image(), np.ones(8), "a s*", np.ones((3, 4)), NEAREST | {"right": [True]}
            ),
            "equally many",
        ),
        (lambda: plot_attention_grid(image(), np.ones((3, 4, 5))), "rows, columns"),
        (lambda: plot_attention_grid(image(), -np.ones((1, 1, 4, 5))), "0 or more"),
        (
            lambda: plot_attention_grid(image(), np.ones((2, 1, 4, 5)), ["a"]),
            "2 rows but 1 row label",
        ),
        (lambda: plot_attention_grid([image()] * 3, np.ones((2, 1, 4, 5))), "3 images"),
        (lambda: plot_curves({}), "at least one"),
        (lambda: plot_curves({"paper": pd.DataFrame({"loss": [1.0]})}), "'paper' has no epochs"),
        (lambda: plot_curves({"paper": HISTORY}, ("los",)), "'los'"),
        (lambda: plot_loss_terms({"paper": HISTORY[["epoch"]]}), "no loss term"),
        (lambda: plot_loss_terms({"paper": HISTORY.assign(loss_id=-1.0)}), "negative"),
        (lambda: plot_versions(results().drop(columns="mAP")), "no column mAP"),
        (lambda: plot_versions(results()[:0]), "no rows"),
        (lambda: plot_versions(results().assign(mAP=71.3)), "percent"),
        (lambda: plot_published(results().assign(rank1=71.3), results()), "published table"),
        (lambda: plot_differences(DIFFERENCES.assign(high=300.0)), "percentage points"),
        (lambda: plot_differences(DIFFERENCES.assign(low=50.0, high=60.0)), "does not contain"),
        (lambda: plot_differences(DIFFERENCES.drop(columns="low")), "no column low"),
        (lambda: plot_roc({}), "at least one"),
        (lambda: plot_det({}), "at least one"),
        (lambda: plot_det({"paper": [0.5]}), "Comparisons"),
        (
            lambda: plot_open_set(
                {
                    "paper": pd.DataFrame(
                        {"enrolled": [5], "FNIR at FPIR 10 %": [0.2], "FNIR at FPIR 20 %": [0.2]}
                    )
                }
            ),
            "three rates",
        ),
        (lambda: plot_groups({}), "at least one"),
        (lambda: plot_reliability({"a": 3}), "reliability"),
        (lambda: plot_roc({"paper": ([0.5, 0.6], [True, True])}), "one kind"),
        (lambda: plot_scores([0.5, np.nan], [True, False]), "NaN"),
        (lambda: plot_embedding_map(np.ones((5, 3)), range(5)), "collapsed"),
        (lambda: plot_embedding_map(np.ones((5, 3)), range(4)), "must be"),
        (lambda: plot_embedding_map(*clouds(), people=["nobody"]), "nobody"),
        (lambda: plot_embedding_map(*clouds(), method="tsne"), "'tsne'"),
        (lambda: plot_embedding_map(*clouds(), method=lambda x: x), "shape"),
        (lambda: save_figure(Figure(), "figure.hand"), "png"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, word):
    with pytest.raises(PromptSGError, match=word):
        call()


def test_a_det_curve_of_two_normal_distributions_is_straight():
    rng, people = np.random.default_rng(0), 283
    pairs = np.stack(np.triu_indices(people, 1), 1)
    found = replace(
        COMPARED,
        genuine=np.sort(rng.normal(2, 1, 4000)),
        genuine_people=rng.integers(people, size=4000),
        impostor=np.sort(rng.normal(0, 1, len(pairs)))[::-1],
        impostor_people=pairs,
        histogram=np.array([len(pairs)]),
        sizes=np.ones((2, people)),
    )
    (ax,) = plot_det({"paper": found}, draws=2).axes
    x, y = [line for line in ax.lines if line.get_label().startswith("paper")][0].get_data()
    inner = (y > norm.ppf(0.005)) & (x > norm.ppf(0.002))
    slope, start = np.polyfit(x[inner], y[inner], 1)
    assert slope == pytest.approx(-1, abs=0.1) and start == pytest.approx(-2, abs=0.1)


def test_groups_that_are_too_small_are_named_and_not_judged():
    fmr, fnmr = plot_groups({"gender": GROUPS_TABLE}).axes
    assert [text.get_text() for text in fmr.get_yticklabels()] == [
        "female (10)",
        "male (8)",
        "other (2)",
    ]
    assert [text.get_text() for ax in (fmr, fnmr) for text in ax.texts].count("too few people") == 2
    dots = [line for line in fmr.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [0, 4] and dots[
        0
    ].get_markerfacecolor() == "white"
