"""The benchmark's page: right numbers from a small table, every cell shown or called missing, the same text again."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from unicorn_monai.report import benchmark_table
from unicorn_monai.report.benchmark_page import PAGE, PICTURE, TABLE, new_page, write_page
from unicorn_monai.report.benchmark_table import (
    METHODS,
    Table,
    criteria,
    estimates,
    in_three_lines,
    missing,
    read_table,
)
from unicorn_monai.report.documents import filled, write_documents
from unicorn_monai.report.heat_map import draw

FOLDER = Path(__file__).parent.parent.parent / "docs" / "results" / "benchmark"


def one(mean: float, ci95: list[float] | None = None, **more: Any) -> dict[str, Any]:
    own = {"ci_unit": "subjects", "mean_iou_labelled_device": 0.9, "ece": 0.05, "trainings": 3, "commit": "abcdef1234"}
    return {"mean_iou": mean, "ci95": ci95} | own | more


def advice(method: str, regret: float, estimate: float) -> dict[str, Any]:
    return {"method": method, "mean_iou": 0.3, "regret": regret, "estimate": estimate, "criterion": "agreement"}


def content() -> dict[str, Any]:
    """Two shifts: histogram closes half of the gap of 0.4 on one, augmentation a tenth of 0.2 on the other."""
    return {
        "shifts": {
            "home_oct": {
                "methods": {
                    "upper_bound": one(0.8),
                    "unicorn_plus+real": one(0.72),
                    "histogram": one(0.6, [0.55, 0.65]),
                    "lower_bound": one(0.4),
                    "augmentation": one(0.5),
                    "unicorn_plus": one(0.7),
                },
                "strongest": "histogram",
                "unicorn_plus_minus_strongest": {"mean": 0.1, "ci95": [0.05, 0.15]},
                "recommendation": {
                    "method": "unicorn_plus",
                    "mean_iou": 0.7,
                    "regret": 0.02,
                    "estimate": 0.66,
                    "criterion": "agreement",
                },
            },
            "camvid_day_dusk": {
                "methods": {
                    "lower_bound": one(0.3, ci_unit="blocks"),
                    "upper_bound": one(0.5),
                    "augmentation": one(0.32),
                    "histogram": {"why": "fewer than 8 unlabelled images"},
                },
                "strongest": "augmentation",
                "recommendation": advice("lower_bound", 0.03, 0.4),
            },
        }
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / TABLE).write_text(json.dumps(content()), encoding="utf-8")
    return tmp_path


def table(**changes: Any) -> Table:
    return Table.model_validate(content() | changes)


def test_methods_are_in_their_order_the_bounds_first_and_last():
    expected = ["lower_bound", "augmentation", "histogram", "unicorn_plus", "unicorn_plus+real", "upper_bound"]
    assert table().methods == expected
    names = ["new", "augmentation+geometry", "unicorn+real+augmentation", "augmentation", "unicorn"]
    some = {"shifts": {"a": {"methods": {name: {} for name in names}}}}
    expected = ["augmentation", "augmentation+geometry", "unicorn", "unicorn+real+augmentation", "new"]
    assert Table.model_validate(some).methods == expected
    assert len(set(METHODS)) == len(METHODS)


def test_the_gap_closed_by_hand():
    home, dusk = table().shifts.values()
    assert home.closed("histogram") == pytest.approx(0.5)
    assert dusk.closed("augmentation") == pytest.approx(0.1)
    assert dusk.closed("histogram") is None
    assert dusk.closed("unicorn_plus") is None


def test_tables_show_scores_and_leave_empty_what_is_missing():
    rows = {row[0]: row[1:] for row in benchmark_table.scores(table())}
    assert rows["method"] == ["home_oct", "camvid_day_dusk"]
    assert rows["histogram"] == ["**0.600 (0.550 to 0.650)**", ""]
    assert rows["augmentation"] == ["0.500", "**0.320**"]
    assert {row[0]: row[1:] for row in benchmark_table.closed(table())}["histogram"] == ["50 %", ""]
    assert benchmark_table.shifts(table())[1:] == [
        ["home_oct", "histogram", "0.600", "+0.100 (+0.050 to +0.150)", "subjects", "abcdef1"],
        ["camvid_day_dusk", "augmentation", "0.320", "not computed", "blocks, subjects", "abcdef1"],
    ]
    assert benchmark_table.recommendations(table())[1] == [
        *("home_oct", "unicorn_plus", "agreement", "0.660", "0.700", "0.020")
    ]


def test_three_lines_say_what_the_table_holds():
    assert in_three_lines(table()).splitlines() == [
        "- **Opponents.** On 2 shifts, strong augmentation closes 10 to 25 % of the gap between the bounds, the "
        "strongest opponent 10 to 50 %: augmentation (1), histogram (1).",
        "- **UnIACorN** minus the strongest opponent: +0.100 mean IoU on 1 shift, better on 1, worse on 0, undecided "
        "on 0 (95 % intervals).",
        "- **Without labels**, the recommended network is at most 0.02 behind the best on 1 of 2 shifts (at worst "
        "0.030), its expected mean IoU within 0.05 on 1 of 2.",
    ]
    bare = Table.model_validate({"shifts": {"a": {"methods": {"fda": {}}}}})
    assert in_three_lines(bare).count("\n") == 2
    assert "not computed" in in_three_lines(bare)
    assert "no network is recommended yet" in in_three_lines(bare)


def test_what_is_missing_is_named_with_its_reason():
    lines = missing(table(not_run=["snow"])).splitlines()
    assert lines[:3] == [
        "- camvid_day_dusk: histogram: fewer than 8 unlabelled images",
        "- camvid_day_dusk: unicorn_plus, unicorn_plus+real: no result",
        "- snow: every method: not run yet",
    ]
    assert lines[3].startswith(
        "- every shift: augmentation+geometry, self_training+geometry, self_training+chosen, svdna, fda, "
    )
    whole = {"shifts": {"a": {"methods": dict.fromkeys(METHODS, one(0.5))}}}
    assert missing(Table.model_validate(whole)).startswith("Every method")


def test_the_record_of_criteria_and_estimators_names_the_worst():
    advised = advice("histogram", 0.0, 0.6) | {
        "regrets": {"density": 0.1, "agreement": 0.0},
        "errors": {"belief": -0.04},
    }
    two = content()["shifts"]
    two["home_oct"]["recommendation"] = advised
    found = Table.model_validate({"shifts": two})
    assert criteria(found) == [
        ["criterion", "home_oct", "camvid_day_dusk", "worst"],
        ["density", "0.100", "", "0.100"],
        ["agreement", "0.000", "", "0.000"],
    ]
    name, here, elsewhere, worst = estimates(found)[1]
    assert (name, elsewhere, worst) == ("belief", "", here)
    assert here.endswith("0.040")
    assert criteria(table())[1][0] == "not computed"


def test_a_page_is_made_and_its_words_stay(folder: Path):
    page = write_page(folder)
    text = page.read_text(encoding="utf-8")
    assert "| histogram | **0.600 (0.550 to 0.650)** |  |" in text
    assert f"]({PICTURE})" in text
    assert filled(page) == text
    page.write_text(f"Own words.\n\n{new_page()}", encoding="utf-8")
    (folder / PICTURE).unlink()
    assert write_page(folder).read_text(encoding="utf-8") == f"Own words.\n\n{text}"
    assert (folder / PICTURE).is_file()


def test_lines_are_written_into_another_document(folder: Path):
    document = folder / "other.md"
    marker = "<!-- text: table.json benchmark_in_three_lines -->"
    document.write_text(f"# Results\n\n{marker}\n<!-- /text -->\n\nMore.\n", encoding="utf-8")
    assert write_documents([document]) == str(document)
    assert document.read_text() == f"# Results\n\n{marker}\n\n{in_three_lines(table())}\n\n<!-- /text -->\n\nMore.\n"


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("text: table.json poem", "a text is of 'poem'; expected FILE and one of benchmark_in_three_lines"),
        ("text: table.json table.json benchmark_missing", "expected one table.json"),
        ("table: table.json benchmark_poem", "expected FILE... and one of scores.*benchmark_closed"),
        ("table: empty.json benchmark_scores", "'.*empty.json' has no method on any shift"),
        ("table: wrong.json benchmark_scores", r"shifts.a.methods.fda.mean_iou' is 'high'; expected a finite number"),
    ],
)
def test_what_cannot_be_written_is_refused(folder: Path, order: str, message: str):
    (folder / "empty.json").write_text('{"shifts": {}}')
    (folder / "wrong.json").write_text('{"shifts": {"a": {"methods": {"fda": {"mean_iou": "high"}}}}}')
    document = folder / "other.md"
    document.write_text(f"<!-- {order} --><!-- /{order.partition(':')[0]} -->")
    with pytest.raises(ValueError, match=message):
        filled(document)


def test_a_folder_without_a_table_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=f"holds no {TABLE}"):
        write_page(tmp_path)


def test_the_picture_shows_every_score_and_marks_what_is_missing():
    drawn = draw(table())
    root = ElementTree.fromstring(drawn)
    words = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"home_oct", "camvid_day_dusk", "unicorn_plus+real", "0.600", "0.55 to 0.65", "0.320"} <= set(words)
    assert sum(bool(re.fullmatch(r"0\.\d{3}", word)) for word in words) == 9, "a number for each score"
    hatched = re.findall(r"fill: url\(#", drawn)
    assert len(hatched) == 3 + 1, "three cells, and the legend"
    assert draw(table()) == drawn
    assert not re.search(r"dc:date|href=\"http", drawn)


def test_the_colour_is_the_gap_closed():
    """White at the lower bound, green at the upper one, red below the lower."""
    shift = {"lower_bound": one(0.4), "upper_bound": one(0.8), "histogram": one(0.2)}
    drawn = draw(Table.model_validate({"shifts": {"a": {"methods": shift}}}))
    cells = re.findall(r'style="fill: (#\w{6}); stroke: #ffffff', drawn)
    assert cells[:3] == ["#ffffff", "#d9705f", "#1f8f7a"]


def test_a_name_stays_text_whatever_it_holds():
    evil = "<script>$x^2$</script>&"
    some = {"shifts": {evil: {"methods": {evil: one(0.5), "fda": {"why": evil}}}}}
    drawn = draw(Table.model_validate(some))
    assert "<script>" not in drawn
    ElementTree.fromstring(drawn)
    assert "<script>" not in missing(Table.model_validate(some))


@pytest.mark.parametrize("place", [*FOLDER.glob(TABLE)], ids=lambda place: place.parent.name)
def test_the_committed_picture_is_that_of_the_committed_table(place: Path):
    assert (place.parent / PICTURE).read_text(encoding="utf-8") == draw(read_table(place))
    assert (place.parent / PAGE).is_file()
