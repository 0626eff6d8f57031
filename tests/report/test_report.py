"""The report: right numbers, nothing invented, nothing loaded from outside."""

from __future__ import annotations

import base64
import functools
import html as html_module
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unicorn_monai.data.layout import WEATHER as WORDS_OF_WEATHER
from unicorn_monai.evaluation.expected_iou import CALIBRATED
from unicorn_monai.evaluation.recommendation import JURY, REVERSE, SYNTHETIC
from unicorn_monai.evaluation.verdict import CRITERIA
from unicorn_monai.report import figures, naming
from unicorn_monai.report.recommended import REASONS, networks_of, reason_of
from unicorn_monai.report.report import WEATHER, render, write_report
from unicorn_monai.report.results import Results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "img", "wbr", "br"}


def setup(mean: float, ci: list[float] | None = None) -> dict:
    iou = [0.954, mean, 0.345, float("nan")]
    return {
        "iou": iou,
        "mean_iou": mean,
        "mean_iou_layers": 0.4321,
        "mean_dice": 0.7654,
        "n_test": 120,
        "n_subjects": 14,
        "ci95": ci,
    }


def results() -> dict:
    """Lower bound 0.5, upper bound 0.8: 0.68 closes 0.18 / 0.3 = 60 %, [0.65, 0.71] is 50 to 70 %."""
    curve = [{"requested": x, "measured_mean": x / 2, "measured_std": 0.01} for x in (0.05, 0.1, 0.2)]
    control = {
        "spearman": 0.678,
        "mean_absolute_error": 0.0614,
        "label_fidelity_mean_iou": 0.8123,
        "oracle_mean_iou": 0.815,
    }
    return {
        "labels": ["vitreous", "RNFL", "OPL", "choroid"],
        "segmentation": {
            "lower_bound": setup(0.5),
            "unicorn": setup(0.62),
            "unicorn+real": setup(0.68, [0.65, 0.71]),
            "unicorn_paper+real": setup(0.6),
            "upper_bound": setup(0.8),
        },
        "gap": {"unicorn+real": {"share": 0.6, "ci95": [0.55, 0.64], "n_subjects": 14}},
        "uncertainty": {
            "labeled": {"mean": 0.0289, "std": 0.002, "n": 400},
            "unlabeled": {"mean": 0.19, "std": 0.05, "n": 9},
        },
        "control": control | {"oracle": "upper bound's network", "curve": curve},
        "control_paper": control | {"oracle": "upper bound's network", "curve": curve},
        "autoencoder": {
            "labeled": {"high_pass_std": [0.2, 0.23], "entropy": [0.1, 0.099]},
            "unlabeled": {"high_pass_std": [0.2, 0.16]},
        },
        "diffusion": {"latent_std": 1.049},
        "seconds": {"autoencoder": 611.2, "unicorn_synthesis": 4.25, "pictures": 7322},
        "environment": {"machine": "x86_64"},
        "simulated": "devices and anatomy",
    }


def recommended() -> dict:
    """Agreement puts the synthetic images first, 0.06 behind the best candidate; density the lower bound."""
    return {
        "setup": "unicorn",
        "criterion": "agreement",
        "estimate": 0.713,
        "low": 0.662,
        "high": 0.758,
        "images": 150,
        "candidates": ["lower_bound", "unicorn", "unicorn+real"],
        "scores": {
            "density": {"lower_bound": 5.1, "unicorn": 4.0, "unicorn+real": 4.4},
            "agreement": {"lower_bound": 0.41, "unicorn": 0.88, "unicorn+real": 0.86},
        },
        "estimates": {"lower_bound": 0.4, "unicorn": 0.713, "unicorn+real": 0.7},
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with everything a report can show."""
    write(tmp_path / "results.json", results())
    experiment = {"settings": {"seed": 7, "modes": ["compositional"]}, "versions": {"monai": "1.6.1"}}
    write(
        tmp_path / "experiment.json", experiment | {"git_revision": "abc123", "command": "unicorn-monai demo --seed 7"}
    )
    write(tmp_path / "uncertainties.json", {"labeled": [0.02, 0.03], "unlabeled": [0.1, 0.2, 0.3], "unicorn": []})
    (tmp_path / "pictures").mkdir()
    Image.new("L", (64, 32), 90).save(tmp_path / "pictures" / "sheet.png")
    caption = {"file": "sheet.png", "title": "Side by side", "caption": "Rows: label map, image."}
    write(tmp_path / "pictures" / "captions.json", [caption])
    return tmp_path


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def report(run: Path, **changes: object) -> str:
    """The report's HTML, with some entries of results.json changed, or removed where they are None."""
    content = {key: value for key, value in (results() | changes).items() if value is not None}
    write(run / "results.json", content)
    return write_report(run).read_text(encoding="utf-8")


def text(html: str) -> str:
    """What a reader sees, with plain spaces and minus signs."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    plain = re.sub(r"<[^>]+>", " ", body)
    for written, meant in (("\u00a0", " "), ("&nbsp;", " "), ("&#39;", "'"), ("\u2212", "-")):
        plain = plain.replace(written, meant)
    return re.sub(r"\s+", " ", plain)


def row(html: str, head: str) -> list[str]:
    """Cells of the first table row with this heading."""
    cells = re.search(rf'<th scope="row">(?:<small>\d+</small>)?{re.escape(head)}</th>(.*?)</tr>', html)
    assert cells, head
    return [text(cell).strip() for cell in re.findall(r"<td.*?>(.*?)</td>", cells[1])]


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_file_is_whole_and_loads_nothing(run: Path):
    html, tags = report(run), Tags()
    tags.feed(html)
    assert tags.open == []
    assert {tag for tag, _ in tags.seen}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in tags.seen:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|//|@import|url\(", html.replace("data:image/png;base64,", "").split("</head>")[0])
    assert "default-src 'none'" in html
    assert [path.name for path in run.iterdir() if "report" in path.name] == ["report.html"]


def test_gap_by_hand():
    gap = Results.of(results()).gap_closed()
    assert gap.share == pytest.approx(0.6)
    assert gap.ci95 == pytest.approx((0.55, 0.64))  # not (0.5, 0.7): that of the score with both bounds as exact
    other = Results.of(results()).gap_closed("unicorn")
    assert (other.share, other.ci95) == (pytest.approx(0.4), None)
    assert Results().gap_closed() is None
    for changed in (
        {"lower_bound": setup(0.8), "upper_bound": setup(0.5), "unicorn+real": setup(0.6)},
        results()["segmentation"] | {"unicorn+real": setup(float("nan"))},
    ):
        assert Results.of(results() | {"segmentation": changed}).gap_closed() is None


@pytest.mark.parametrize(
    ("score", "ci", "expected"),
    [
        (
            0.68,
            [0.55, 0.64],
            "closed 60 % of the gap between lower and upper bound (95 % interval 55 % to 64 %); it did not",
        ),
        (0.56, [-0.1, 0.5], "it did not reach the upper bound; the interval includes 0, so a gain is not shown"),
        (0.47, None, "did not improve on the lower bound: it closed -10 % of the gap"),
        (0.83, None, "reached the upper bound: it closed 110 % of the gap"),
        (0.7994, None, "closed 99.8 % of the gap between lower and upper bound ; it did not reach the upper bound"),
    ],
)
def test_verdict_says_plainly(run: Path, score: float, ci: list | None, expected: str):
    segmentation = results()["segmentation"] | {"unicorn+real": setup(score)}
    gap = {"unicorn+real": {"share": (score - 0.5) / 0.3, "ci95": ci}}
    seen = text(report(run, segmentation=segmentation, gap=gap)).replace(" ;", ";").replace("( ", "(")
    assert expected.replace(" ;", ";") in seen
    assert "On simulated devices and anatomy, UnIACorN + real" in seen


def test_verdict_names_what_did_better_and_what_is_real(run: Path):
    segmentation = results()["segmentation"] | {"augmentation": setup(0.7), "cut+real": setup(0.69)}
    seen = text(report(run, segmentation=segmentation, simulated="none"))
    assert "Better in this run: Lower bound, augmented 0.700, CUT + real 0.690." in seen
    assert "Real images" in seen
    assert "imulated" not in seen
    assert "Not recorded whether the images are simulated" in text(report(run, simulated=None))


def test_table_rounds_and_marks_the_best(run: Path):
    html = report(run)
    # columns: lower bound, upper bound, unicorn+real, unicorn, unicorn_paper+real
    assert row(html, "vitreous") == ["0.95"] * 5
    assert row(html, "RNFL") == ["0.50", "0.80", "0.68", "0.62", "0.60"]
    assert row(html, "choroid") == ["not computed"] * 5
    assert row(html, "Mean IoU, all labels") == ["0.500", "0.800", "0.680", "0.620", "0.600"]
    assert row(html, "95\u00a0% interval of it")[1:4] == ["not computed", "0.650\u20130.710", "not computed"]
    assert row(html, "Mean IoU, layers only") == ["0.432"] * 5
    assert row(html, "Mean Dice") == ["0.765"] * 5
    assert row(html, "Test images") == ["120"] * 5
    assert row(html, "Test subjects") == ["14"] * 5
    assert "Layers only: without vitreous and choroid." in text(html)
    assert 'class="best">UnIACorN + real <em class="tag">best</em>' in html
    assert html.count('class="tag"') == 1
    assert "UnIACorN, paper mode + real" in html
    worse = results()["segmentation"] | {
        "unicorn+real": setup(0.4),
        "unicorn": setup(0.3),
        "unicorn_paper+real": setup(0.2),
    }
    assert 'class="best">Lower bound <em' in report(run, segmentation=worse)


def test_two_labels_are_all_layers(run: Path):
    two = results()["segmentation"]["lower_bound"] | {"iou": [0.9, 0.8]}
    seen = text(report(run, labels=["vitreous", "retina"], segmentation={"lower_bound": two}))
    assert "Layers only: all labels." in seen


def test_checks_control_times_and_provenance(run: Path):
    seen = text(report(run))
    assert "Labelled device, autoencoder: speckle within ±15 % 0.200 → 0.230 (+15 %) ✓ OK" in seen
    assert "Labelled device, autoencoder: entropy within ±15 % 0.100 → 0.099 (-1 %) ✓ OK" in seen
    assert "Unlabelled device, autoencoder: speckle within ±15 % 0.200 → 0.160 (-20 %) ✗ outside" in seen
    assert "Unlabelled device, autoencoder: entropy within ±15 % not computed" in seen
    assert "0.9 to 1.1 of the training's 1.05 ✓ OK" in seen
    assert "1.30 ✗ outside" in text(report(run, diffusion={"latent_std": 1.3}))
    assert row(report(run), "Rank correlation") == ["0.68", "0.68"]
    assert row(report(run), "Labelled device") == ["0.029", "0.002", "400"]
    for expected in (
        "10 min 11 s",
        "4.2 s",
        "2 h 2 min",
        "Together 2 h 12 min.",
        "unicorn-monai demo --seed 7",
        "abc123",
    ):
        assert expected in seen
    assert "seed 7 git revision abc123 machine x86_64 monai 1.6.1" in seen
    assert "Together 2 h 12 min, some side by side: 1 h 10 min by the clock." in text(report(run, wall_seconds=4200.2))


def test_missing_is_called_so(run: Path):
    seen = text(report(run, segmentation={}))
    assert "how much of the gap UnIACorN + real closed cannot be computed : nothing was scored." in seen
    assert "Mean uncertainty: Labelled device 0.029, Unlabelled device 0.190, UnIACorN not computed" in seen
    partial = {key: results()["segmentation"][key] for key in ("lower_bound", "unicorn+real")}
    assert "cannot be computed : no score for Upper bound." in text(report(run, segmentation=partial))
    assert row(report(run, segmentation=partial), "Mean Dice") == ["0.765", "not computed", "0.765", "not computed"]
    assert "On simulated devices and anatomy, UnIACorN + real raised the mean IoU from 0.500 to 0.680 (0.180). How" in (
        text(report(run, segmentation=partial))
    )
    high = results()["segmentation"] | {"lower_bound": setup(0.9)}
    assert "the upper bound is not above the lower bound" in text(report(run, segmentation=high))
    assert "FID to the" not in seen
    fid = {"unlabeled": {"labeled": 152.61}}
    assert row(report(run, fid=fid), "Labelled device")[-1] == "152.6"
    assert row(report(run, fid=fid), "Unlabelled device")[-1] == "not computed"


def test_without_an_upper_bound_the_gain_is_told_and_why_there_is_no_more(run: Path):
    partial = {key: results()["segmentation"][key] for key in ("lower_bound", "unicorn+real")}
    gain = {"difference": 0.18, "ci95": [-0.02, 0.31], "n_subjects": 14}
    found = {"segmentation": partial, "differences": {"lower_bound": {"unicorn+real": gain}}, "gap": {}}
    seen = text(report(run, **found, not_computed={"upper_bound": "it needs <true> labels"}))
    assert "(0.180, 95 % interval -0.020 to 0.310; it includes 0, so a gain is not shown)." in seen
    assert "It needs &lt;true&gt; labels." in seen
    assert "Upper bound, not computed: it needs &lt;true&gt; labels." in seen
    less = {**partial, "unicorn+real": setup(0.4)}
    assert "UnIACorN + real lowered the mean IoU from 0.500 to 0.400 (-0.100)." in text(report(run, segmentation=less))


def test_without_labels_the_report_opens_with_the_network_to_use(run: Path):
    weights = run / "segmentation" / "unicorn" / "model.pt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    why = {"segmentation": "scores need label maps of test images"}
    html = report(run, segmentation={}, recommendation=recommended(), not_computed=why)
    seen = text(html)
    assert "Use this network: UnIACorN . Expected mean IoU 0.66 to 0.76." in seen
    assert seen.index("Use this network") < seen.index("How this was found out") < seen.index("cannot be computed")
    assert "so 3 networks looked at 150 of its images. This one was chosen because its label maps agree" in seen
    assert "Its weights in the run folder: segmentation/unicorn/model.pt ." in seen
    assert f"<pre>unicorn-monai label --studies SCANS --run {run.name}</pre>" in html
    assert html.count("<h1>") == 1
    assert "Criterion \u201cagreement\u201d of every network" in seen
    assert "Which network would have been chosen" not in seen
    weights.unlink()
    assert "Its weights are not in the run folder." in text(write_report(run).read_text())


def test_why_no_network_is_recommended_is_told(run: Path):
    why = {"not_computed": "fewer than 8 unlabelled images"}
    seen = text(report(run, segmentation={}, recommendation=why))
    assert "Which network to use cannot be said : fewer than 8 unlabelled images." in seen
    seen = text(report(run, recommendation=why))
    assert "cannot be said" not in seen
    assert "Which network would have been chosen without labels? not computed : fewer than 8 unlabelled images" in seen
    assert "Which network" not in text(report(run)), "a run without the entry says nothing of it"


def test_with_labels_what_the_choice_without_them_cost_is_told_further_down(run: Path):
    html = report(run, recommendation=recommended())
    seen = text(html)
    assert "Use this network" not in seen
    assert seen.index("of the gap between lower and upper bound") < seen.index("Which network would have been chosen")
    assert row(html, "agreement (used)") == ["UnIACorN", "0.620", "0.060"]
    assert row(html, "density") == ["Lower bound", "0.500", "0.180"]
    assert "Expected mean IoU 0.713 (0.662 to 0.758), true one 0.620." in seen


def test_nothing_that_a_recommendation_says_becomes_html(run: Path):
    evil = {"setup": EVIL, "criterion": EVIL, "candidates": [EVIL], "scores": {EVIL: {EVIL: 0.5}}}
    write(run / "experiment.json", {"settings": {"output": EVIL}})
    for recommendation in (recommended() | evil, {"not_computed": EVIL}):
        tags = Tags()
        tags.feed(html := report(run, segmentation={}, recommendation=recommendation))
        assert "&lt;img" in html
        assert {"script"}.isdisjoint(tag for tag, _ in tags.seen)
        assert not [key for _, attributes in tags.seen for key in attributes if key.startswith("on")]


def test_every_criterion_has_its_reason_in_words():
    assert {*CRITERIA, CALIBRATED, JURY, REVERSE, SYNTHETIC} == set(REASONS)
    assert "\u201cluck\u201d" in reason_of("luck")


def test_the_networks_of_a_run_are_those_whose_weights_are_there(tmp_path: Path):
    files = ["bundles/retinal_unet/models", "segmentation/fda", "segmentation/none/log"]
    for name in files:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / ("x" if "log" in name else "model.pt")).touch()
    found = {setup: str(path.relative_to(tmp_path)) for setup, path in networks_of(tmp_path).items()}
    assert found == {
        "lower_bound": "bundles/retinal_unet/models/model.pt",
        "fda": "segmentation/fda/model.pt",
    }


def audit() -> dict:
    share = {"count": 3, "n": 200, "share": 0.015, "ci95": [0.003, 0.043]}
    levels = {quantity: {"99": share} for quantity in ("residual", "embedding")}
    return {
        "sets": {"synthetic": levels, "control": levels, "held_out": levels},
        "planted": {"exact": levels},
        "flagged": ["images/1.png", "images/2.png", "images/3.png"],
        "thresholds": {"residual": {"99": 0.131}},
        "held_out_thresholds": {"residual": {"99": 0.091}, "synthetic": levels},
        "expected_by_chance": 2.0,
        "n_training": 800,
    }


def test_distances_have_the_real_sets_as_columns_and_say_what_is_missing(run: Path):
    one = {"labeled": 1.5, "unlabeled": 2.25, "cut": None}
    fid = dict.fromkeys(("cut", "labeled", "unlabeled"), one)
    fid |= {"kid": {"cut": {"labeled": 0.0012, "unlabeled": 0.1}}, "kid_std": {"cut": {"labeled": 0.0004}}}
    html = report(run, fid=fid | {"n": 120, "features": "an <encoder>"})
    cells = re.findall(r'<th scope="row">CUT</th>(.*?)</tr>', html)[-2]
    assert text(cells).split() == ["1.50", "1.2", "±", "0.4", "2.25"]
    every = html.split("Every pair of sets</summary>")[1].split("</details>")[0]
    assert text(re.search(r'<th scope="row">CUT</th>(.*?)</tr>', every)[1]).split()[-3:] == ["2.25", "not", "computed"]
    assert [text(cell).strip() for cell in re.findall(r"<th scope=\"col\">(.*?)</th>", every)[1:]] == [
        "to Labelled device", "to Unlabelled device", "to CUT",
    ]  # fmt: skip
    assert "120 images of each set. Features: an &lt;encoder&gt;." in html
    assert "no feature network was given" in text(report(run, fid={"not_computed": "no feature network was given"}))


def test_the_search_for_copies_gives_counts_with_intervals_and_the_closest_pairs(run: Path):
    (run / "memorization").mkdir()
    Image.new("L", (40, 30), 90).save(run / "memorization" / "closest.png")
    html = report(run, memorization=audit())
    assert "3 of 200 synthetic images are flagged" in text(html)
    assert "about 2 are expected where nothing is copied" in text(html)
    assert row(html, "Planted copies, unchanged") == ["3 of 200 0.3 % to 4 %"] * 2
    assert html.count("data:image/png") == 2
    assert "Held-out real images against training images would give 0.091, above which 3 of 200" in text(html)
    assert "a correlation above 0.131." in text(html)
    assert "too few images" in text(report(run, memorization={"not_computed": "too few images"}))


def test_the_fusion_weights_have_a_row_and_a_picture_each(run: Path):
    folder = run / "pictures" / "weights_unicorn"
    folder.mkdir()
    Image.new("L", (40, 30), 90).save(folder / "weight_1.5.png")
    line = {"weight": 1.5, "spearman": None, "distance": 0.0321, "label_consistency": 0.71, "picture": "weight_1.5.png"}
    html = report(run, weights={"unicorn": {"table": [line], "weight": 1.5, "reason": "weight 1.5: <best>"}})
    assert row(html, "1.5") == ["not computed"] * 3 + ["0.032", "0.71", "not computed"]
    assert "weight 1.5: &lt;best&gt;" in html
    same = {"table": [], "weight": None, "reason": "no weight: all label maps are the same."}
    assert "not computed : no weight: all label maps are the same." in text(report(run, weights={"unicorn": same}))
    none = {"table": [line], "weight": None, "reason": "no weight: give a better judge."}
    assert "take no weight: give a better judge. Label" in text(report(run, weights={"unicorn": none}))
    assert "not computed : needs the network of the set-up “Lower bound, augmented”." in text(report(run))
    assert html.count("data:image/png") == 2


def on_both_devices() -> dict:
    """Every set-up 0.05 better on the labelled device, of which validation images alone have label maps."""
    scored = results()["segmentation"]
    for name, scores in scored.items():
        ends = [scores["mean_iou"], scores["mean_iou"] + 0.1]
        there = {"mean_iou": scores["mean_iou"] + 0.05, "ci95": ends, "ci_unit": "image blocks", "ece": 0.012}
        there |= {"nll": 0.2, "split": "validation", "boundary": {"all_mean_um": 3.21}}
        scores |= {"ece": 0.087, "nll": 0.456, "ci_unit": "image blocks", "n_subjects": 1, "labelled_device": there}
        scores["validation"] = {"mean_iou": 0.555 if name == "lower_bound" else 0.9}
    return scored


def test_scores_of_the_labelled_device_and_the_calibration_have_rows(run: Path):
    html = report(run, segmentation=on_both_devices())
    assert row(html, "Calibration error (ECE)") == ["0.087"] * 5
    assert row(html, "Negative log-likelihood") == ["0.456"] * 5
    assert row(html, "Mean IoU on the labelled device") == ["0.550", "0.850", "0.730", "0.670", "0.650"]
    assert row(html, "95\u00a0% interval there")[0] == "0.500\u20130.600"
    assert row(html, "Calibration error there") == ["0.012"] * 5
    assert row(html, "Boundary error there, mean (µm)") == ["3.2"] * 5
    seen = text(html)
    assert "Intervals are over image blocks and trainings, since the test images are of fewer than three" in seen
    assert "Labelled device: its validation images, since no test image there has a label map, intervals over" in seen
    older = text(report(run))  # of a run without such scores
    assert "Calibration error" not in older
    assert "Mean IoU on the labelled device" not in older


def test_the_strongest_opponent_is_named_with_how_it_was_chosen(run: Path):
    strongest = {"setup": "lower_bound", "validation_mean_iou": 0.555, "chosen_by": "validation images"}
    seen = text(report(run, strongest=strongest, differences={"lower_bound": {"unicorn": {"difference": 0.1}}}))
    assert "Strongest opponent: Lower bound, with a mean IoU of 0.555 on the validation images of the" in seen
    why = {"not_computed": "no validation image has a label map"}
    seen = text(report(run, strongest=why, differences={"lower_bound": {"unicorn": {"difference": 0.1}}}))
    assert "Strongest opponent, not computed: no validation image has a label map." in seen


def test_differences_are_signed_and_have_intervals(run: Path):
    value = {"difference": 0.0214, "ci95": [-0.01, 0.05], "n_subjects": 14}
    html = report(run, differences={"lower_bound": {"unicorn+real": value, "cut": value | {"ci95": None}}})
    assert row(html, "CUT") == ["+0.021"]
    assert "+0.021 -0.010 to 0.050" in text(html)


def test_surfaces_and_trainings_are_shown_where_they_were_measured(run: Path):
    scores = results()["segmentation"]
    boundary = {"mean_um": [1.0, 2.0, None], "p95_um": [3.0, 4.0, 5.0], "all_mean_um": 1.5, "all_p95_um": 4.0}
    more = {"boundary": boundary, "broken_columns": {"share": 0.125}, "trainings": {"std": 0.011}}
    scores["unicorn+real"] |= more | {"per_image": {"mean_iou": 0.6789}}
    html = report(run, segmentation=scores)
    at = 2  # column of UnIACorN + real
    assert row(html, "Boundary error, mean (\u00b5m)")[at] == "1.5"
    assert row(html, "A-scans with a broken layer")[at] == "12 %"
    assert row(html, "Std over trainings")[at] == "0.011"
    assert row(html, "Mean IoU, mean over images")[at] == "0.679"
    assert row(html, "below OPL") == ["not computed / 5.0"]


def test_several_trainings_and_the_budget_are_told_in_a_sentence(run: Path):
    write(run / "experiment.json", {"settings": {"trainings": 3}})
    budget = {"core_seconds": 5400.0, "threads": 1, "stages": ["autoencoder", "<diffusion>"]}
    seen = text(report(run, budget={"cyclegan": budget, "cut": budget | {"threads": 2}}))
    assert (
        "Every segmentation network was trained 3 times with other seeds; scores are means. The generator was" in seen
    )
    expected = (
        "Equal compute: CycleGAN and CUT had 1 h 30 min of core time each (seconds times threads; CycleGAN on 1, "
    )
    assert (
        expected + "CUT on 2), what UnIACorN needs before it can draw an image: autoencoder, &lt;diffusion&gt;." in seen
    )
    write(run / "experiment.json", {"settings": {"trainings": 1}})
    assert "other seeds" not in text(report(run, budget={"cyclegan": None}))
    assert "Equal compute" not in text(report(run, budget={"cyclegan": None}))


def test_hashes_are_given_and_resumptions_told_beside_the_start(run: Path):
    start = {"command": "unicorn-monai demo", "git_revision": "abc", "versions": {"torch": "2.13", "monai": "1.6.1"}}
    again = {"command": "unicorn-monai demo --resume", "git_revision": "def", "versions": {"torch": "2.14"}}
    write(run / "experiment.json", start | {"resumed": [start | {"command": "the same"}, again]})
    html = report(run, sha256={"labeled/dataset.json": "0123", "bundles/retinal_unet/models/model.pt": "4567"})
    seen = text(html)
    assert "git revision abc" in seen
    assert (
        "The above is of the start; the run was resumed 2 times. Resumptions the same unicorn-monai demo --resume"
        in seen
    )
    assert "--resume\ngit revision def\ntorch 2.14</pre>" in html
    assert "labeled/dataset.json&#34;: &#34;0123&#34;" in html
    assert "Sha256 of data sets and weights: not computed" in text(report(run))


def test_streets_have_domains_where_scans_have_devices(run):
    html = report(run, modality="RGB", environment={"machine": "a device"})
    seen = text(html)
    assert "Unlabelled domain, autoencoder: speckle" in seen
    assert "the labelled domain's" in seen
    assert "layers only" not in seen
    assert len(re.findall(r"\bdevice\b", seen)) == 1  # what the machine is called stays
    assert "Unlabelled device" in text(report(run))


def test_the_weathers_are_those_that_have_words():
    assert set(WORDS_OF_WEATHER) == WEATHER


def test_a_report_is_the_same_text_every_time(run: Path):
    many = results()["segmentation"] | {f"other_{i}": setup(0.5) for i in range(20)}
    html = report(run, segmentation=many)
    code = (
        f"from unicorn_monai.report.report import render; from pathlib import Path; print(render(Path({str(run)!r})))"
    )
    for seed in "12":  # of the order of sets
        environment = os.environ | {"PYTHONHASHSEED": seed}
        again = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        assert again.stdout.decode().rstrip("\n") == html.rstrip("\n")


@pytest.mark.parametrize("name", ["$\\frac{1}{0}$", "<b>&\"'</b>", "\u4e2d\u6587", "a\nb", "x" * 3000, "", ": #f0d000"])
def test_a_chart_shows_a_name_as_it_is_and_refers_to_nothing(name: str):
    charts = (
        figures.dots([(name, 0.5, (0.4, 0.6)), ("b", 0.7, None)], name, (0.5, 0.7)),
        figures.histograms({name: [0.1, 0.2]}, 0.1),
        figures.curve({name: [(0.1, 0.2, 0.0)]}),
    )
    for chart in charts:
        tags = Tags()
        tags.feed(chart)
        assert tags.open == []
        assert {tag for tag, _ in tags.seen} <= {"svg", "g", "path", "text"}
        assert not re.search(r"url\(|href|\bid=|#f0d0", re.sub(r"<text.*?</text>", "", chart))
    for line in filter(str.strip, name.split("\n")):
        assert html_module.escape(line, quote=False) in charts[0]


WORDS = {
    "without": ({}, "Label map only"),
    "weathers": ({"fog": "foggy scene"}, "Label map and weather words"),
    "others": ({"fog": "foggy scene", "harbour": "harbour"}, "Label map and words"),
}


@pytest.mark.parametrize(("words", "name"), WORDS.values(), ids=WORDS.keys())
def test_what_the_label_map_is_joined_by_is_said(run: Path, words: dict, name: str):
    html = report(run, words=words, segmentation=results()["segmentation"] | {"semantic_only+real": setup(0.6)})
    assert f">{name} + real<" in html
    assert "Label map only" not in html or not words


def test_empty_run(tmp_path: Path):
    write(tmp_path / "results.json", {})
    html = write_report(tmp_path).read_text(encoding="utf-8")
    seen = text(html)
    assert seen.count("not computed") > 12
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", seen)
    assert not re.search(r"\b0\.0+\b", seen)
    assert "<svg" not in html


def test_text_is_escaped(run: Path):
    evil = "<img src=x onerror=alert(1)>&\"'"
    changed = results()
    changed["labels"][1] = evil
    changed["segmentation"][evil] = setup(0.1)
    changed["uncertainty"][evil] = {"mean": 0.1}
    changed["control"]["oracle"] = changed["simulated"] = evil
    changed["control_" + evil] = changed["control"]
    changed["seconds"][evil] = 1.0
    changed["environment"][evil] = evil
    changed["commands"] = {evil: "</pre><script>"}
    write(run / "uncertainties.json", {evil: [0.1]})
    write(run / "experiment.json", {"settings": {"seed": evil, "modes": [evil]}, "command": evil, "git_revision": evil})
    write(run / "pictures" / "captions.json", [{"file": "sheet.png", "title": evil, "caption": evil}])
    html, tags = report(run, **changed), Tags()
    tags.feed(html)
    assert [attributes["alt"] for tag, attributes in tags.seen if tag == "img"] == [evil]
    assert {"script"}.isdisjoint(tag for tag, _ in tags.seen)
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert html.count("&lt;img src=x onerror=alert(1)&gt;&amp;&#34;&#39;") > 12


def spots(node: object, path: tuple = ()) -> Iterator[tuple]:
    """Where anything stands in a JSON document."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from spots(child, (*path, key))


def changed(content: Any, spot: tuple, value: object, rename: bool = False) -> Any:
    """A JSON document with something else at one place, or with another name for what stands there."""
    content = json.loads(json.dumps(content))
    parent = functools.reduce(lambda node, key: node[key], spot[:-1], content)
    if rename and isinstance(parent, dict):
        parent[value] = parent.pop(spot[-1])
    else:
        parent[spot[-1]] = value
    return content


def whole(run: Path) -> dict[str, Any]:
    """The files of a run with everything that a report shows, by name."""
    difference = {"unicorn+real": {"difference": 0.1, "ci95": [0.05, 0.15]}}
    row = {"weight": 1.0, "requested_mean": 0.1, "measured_mean": 0.1, "picture": "1.png"}
    boundary = {"all_mean_um": 1.0, "all_p95_um": 2.0, "mean_um": [1.0] * 3, "p95_um": [2.0] * 3}
    content = results() | {
        "memorization": audit(),
        "fid": {"unlabeled": {"unicorn": 1.0}, "labeled": {"unicorn": 2.0}, "n": 9, "features": "f"},
        "differences": {"lower_bound": difference},
        "weights": {"unicorn": {"table": [row], "reason": "the best"}},
        "budget": {"cut": {"threads": 2, "core_seconds": 9.0, "stages": ["autoencoder"]}},
        "not_computed": {"cyclegan": "no time"},
        "recommendation": recommended(),
        "sha256": {"weights": "ab"},
        "commands": {"autoencoder": "run"},
    }
    content["segmentation"]["unicorn"] |= {
        "boundary": boundary,
        "broken_columns": {"share": 0.1},
        "sub_domains": {"fog": {"mean_iou": 0.4}},
        "trainings": {"std": 0.01},
        "n_subjects": 3,
        "per_image": {"mean_iou": 0.5},
    }
    write(run / "results.json", content)
    write(run / "experiment.json", json.loads((run / "experiment.json").read_text()) | {"resumed": [{"command": "c"}]})
    names = ("results.json", "experiment.json", "uncertainties.json", "pictures/captions.json")
    return {name: json.loads((run / name).read_text()) for name in names}


EVIL = "\"><img src=x onerror=alert(1)></pre><script>\x1b[31m\u202e'"


@pytest.mark.parametrize("value", [EVIL, [EVIL, {EVIL: EVIL}]], ids=["text", "list"])
def test_nothing_that_a_file_says_becomes_html_whatever_is_expected_there(run: Path, value: object):
    tried = 0
    for name, content in whole(run).items():
        for spot, rename in itertools.product(spots(content), (False, True)):
            write(run / name, changed(content, spot, EVIL if rename else value, rename))
            try:
                html, tags = render(run), Tags()
            except ValueError:  # a sentence
                continue
            tags.feed(html)
            tried += 1
            assert {"script"}.isdisjoint(tag for tag, _ in tags.seen), (name, spot)
            assert not [key for _, attributes in tags.seen for key in attributes if key.startswith("on")], (name, spot)
            assert not {"\x1b", "\u202e"} & set(html), (name, spot)
        write(run / name, content)
    assert tried > 200


@pytest.mark.parametrize("name", ["pictures/sheet.png", "pictures", "memorization/closest.png", "experiment.json"])
def test_only_what_lies_in_the_run_is_taken_in(run: Path, tmp_path_factory, name: str):
    whole(run)
    (run / "memorization").mkdir()
    shutil.copy(run / "pictures" / "sheet.png", run / "memorization" / "closest.png")
    write_report(run)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    shutil.move(run / name, elsewhere)
    (run / name).symlink_to(elsewhere)
    with pytest.raises(ValueError, match="outside the run; a report takes in only what lies in the run's own folder"):
        write_report(run)


def test_a_picture_may_be_linked_within_the_run(run: Path):
    (run / "pictures" / "sheet.png").rename(run / "pictures" / "real.png")
    (run / "pictures" / "sheet.png").symlink_to("real.png")
    assert "data:image/png" in write_report(run).read_text()


def test_pictures_are_inside(run: Path):
    html = report(run)
    source = re.search(r'src="data:image/png;base64,([^"]+)"', html)
    assert source
    assert Image.open(io.BytesIO(base64.b64decode(source[1]))).size == (64, 32)
    assert 'class="small"' in html
    assert 'style="min-width:64px;max-width:256px"' in html
    (run / "pictures" / "sheet.png").unlink()
    assert "not computed : sheet.png is missing" in text(report(run))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.json", "{", "not valid JSON"),
        ("results.json", "[]", r"is \[\]; expected an object"),
        ("results.json", '{"segmentation": 3}', "'segmentation' is 3; expected an object"),
        (
            "results.json",
            '{"labels": ["a"], "segmentation": {"unicorn": {"iou": [1, 2]}}}',
            "'unicorn' .* 2 IoUs; expected 1",
        ),
        (
            "uncertainties.json",
            '{"labeled": [0.1, 1.5]}',
            r"uncertainties.json': 'labeled\.1' is 1\.5; expected less than or equal to 1",
        ),
        ("uncertainties.json", '{"labeled": [NaN]}', r"uncertainties.json': 'labeled\.0' is nan; expected"),
        ("pictures/captions.json", '[{"file": "../secret.png"}]', r"'\.\./secret\.png'"),
        ("pictures/sheet.png", "no picture", "not a PNG"),
    ],
)
def test_damage_is_named(run: Path, file: str, content: str, message: str):
    (run / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        write_report(run)


def test_no_results(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no results\.json"):
        write_report(tmp_path)


def test_a_wide_table_begins_with_the_bounds_the_method_and_the_best(run: Path):
    scores = results()["segmentation"] | {"cut": setup(0.55), "augmentation": setup(0.7), "cyclegan": {}}
    html = report(run, segmentation=scores)
    cells = row(html, "Mean IoU, all labels")
    assert cells == ["0.500", "0.800", "0.680", "0.620", "0.700", "0.600", "0.550", "not computed"]
    assert 'class="best">0.700' in html


def test_axis_and_numbers():
    ticks = figures._ticks([0.47, 0.82])
    assert ticks == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert figures._labels(ticks) == ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9"]
    same = figures._ticks([0.3, 0.3])
    assert same[0] <= 0.3 <= same[-1]
    assert 3 <= len(same) <= 8
    assert same[-1] - same[0] < 0.01
    assert naming.percent(0.996) == "99.6\u00a0%"
    assert naming.percent(-0.123) == "\u221212\u00a0%"
    assert naming.duration(59.7) == "1 min 0 s"
    assert naming.fixed(None, 2) == naming.percent(None) == naming.duration(None) == naming.MISSING
    assert Results.of({"wall_seconds": float("inf")}).wall_seconds is None
    with pytest.raises(ValueError, match="'wall_seconds' is True; expected a finite number"):
        Results.of({"wall_seconds": True})


def chromium(folder: Path, *options: str) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}", *options]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [390, 1200])
def test_renders(run: Path, tmp_path: Path, width: int, scheme: str):
    report(run)
    frame, picture = tmp_path / "frame.html", tmp_path / "picture.png"
    # A window cannot be as narrow as a phone, a frame can.
    frame.write_text(
        f'<body style="margin:0"><iframe src="{(run / "report.html").as_uri()}" width="{width}" height="3000">'
    )
    preferred = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    chromium(tmp_path, preferred, "--window-size=1200,3000", f"--screenshot={picture}", frame.as_uri())
    shown = Image.open(picture).convert("RGB").crop((2, 2, width - 2, 3000))
    assert len(shown.getcolors(maxcolors=1 << 24)) > 50
    edge = shown.crop((width - 12, 100, width - 6, 2900))  # the margin right of the cards: nothing sticks out
    colours = edge.getcolors(maxcolors=1 << 24)
    assert len(colours) == 1
    page = max(colours[0][1])
    assert page < 60 if scheme == "dark" else page > 200


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.slow
def test_prints_on_few_white_pages(run: Path, tmp_path: Path):
    report(run)
    options = ("--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    chromium(tmp_path, "--blink-settings=preferredColorScheme=0", *options, (run / "report.html").as_uri())
    printed = (tmp_path / "report.pdf").read_bytes()
    pages = max(map(int, re.findall(rb"/Type /Pages\s*/Count (\d+)", printed)))  # of a tree
    assert printed.startswith(b"%PDF")
    assert 2 <= pages <= 12
    assert b"/MediaBox [0 0 594" in printed or b"/MediaBox [0 0 595" in printed  # A4
