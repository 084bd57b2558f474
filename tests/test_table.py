"""The table says what the results say."""

import csv
import io
from math import hypot

import pytest

from mmpt.rows import MAIN
from mmpt.suites import TOGETHER
from mmpt.table import figure, markdown, summarise, to_csv, write

ALIGN, M2PT = MAIN[:2]
T_1 = 12.706204736  # 97.5 % of Student's t with one degree of freedom


def result(average, value, tuned=None, group="mini"):
    """As `mmpt.experiments.run` gives it: every suite's chief figure is `value`."""
    suites = {
        name: {
            "figures": {"chief": value, "other": 1.0},
            "interval": {"chief": [value - 4, value + 6], "other": [0.0, 2.0]},
            "chance": {"chief": 30.0, "other": 0.0},
            "unparsed": 5.0,
        }
        for name in TOGETHER[group]
    }
    tuning = {"tuned_parameters": tuned, "questions": 600, "seconds": 120.0, "peak_mib": 900} if tuned else {}
    totals = {"figures": {"average": average}, "chance": {"average": 25.0}, "suites": suites}
    figures = {"count": average - 9, "place": average + 11, "mean": average + 1}
    tasks = {"n": 34, "figures": figures, "chance": {"count": 20.0, "place": 34.0, "mean": 27.0}}
    return {"base_parameters": 1000, "tuning": tuning, "tasks": tasks, "suites": totals}


@pytest.fixture
def rows():
    return [summarise(ALIGN, [result(20.0, 40.0)]), summarise(M2PT, [result(50.0, 60.0, 9), result(54.0, 70.0, 9)])]


def test_a_table_has_the_columns_that_were_measured():
    rows = [summarise(M2PT, [result(20.0, 40.0, 9, "mpt4lm")])]
    head = markdown(rows).splitlines()[0]
    assert head.endswith("| Average | *mini-snli-ve* | *mini-vqa* | *mini-gqa* |")
    assert len(figure(rows).layout.annotations) >= 4


def test_summary(rows):
    align, m2pt = rows
    assert (align["method"], align["seeds"], align["Average"]) == ("Align (untouched)", 1, 20.0)
    assert align["Average sd"] is None and "tuned" not in align
    assert (m2pt["tuned"], m2pt["share"], m2pt["questions_s"], m2pt["minutes"]) == (9, 0.9, 5.0, 2.0)
    assert m2pt["Average"] == 52.0 and m2pt["Average sd"] == m2pt["tasks sd"] == pytest.approx(8**0.5)
    assert (align["mini-vsr"], align["mini-vsr low"], align["mini-vsr high"]) == (40.0, 36.0, 46.0)
    assert m2pt["mini-vsr"] == 65.0 and m2pt["mini-vsr high"] == 100.0  # no further
    assert m2pt["mini-vsr low"] == pytest.approx(65 - hypot(5, T_1 * 5))  # questions: 10 / 2; seeds: 60 and 70
    assert m2pt["mini-mme high"] == pytest.approx(65 + hypot(5, T_1 * 5))  # of 1,200
    assert (m2pt["mini-vsr chance"], m2pt["unparsed"]) == (30.0, 5.0)
    assert (align["tasks"], m2pt["tasks"], m2pt["tasks chance"]) == (21.0, 53.0, 27.0)


def test_intervals_of_means_over_tasks_and_over_suites(rows):
    align, m2pt = rows
    questions = 1.96 * hypot((11 * 89 / 16) ** 0.5, (31 * 69 / 16) ** 0.5) / 2  # 17 of each task, mean 21
    assert (align["tasks low"], align["tasks high"]) == pytest.approx((21 - questions, 21 + questions))
    assert (align["Average low"], align["Average high"]) == pytest.approx((20 - 5 / 7**0.5, 20 + 5 / 7**0.5))
    assert m2pt["Average low"] == pytest.approx(52 - hypot(5 / 7**0.5, T_1 * 2))  # seeds: 50 and 54


def test_more_seeds_do_not_narrow_the_interval_over_questions():
    one, three = (summarise(M2PT, [result(0.3, 60.0, 9)] * n) for n in (1, 3))
    assert one["Average low"] == three["Average low"] == 0
    assert one["Average high"] == pytest.approx(three["Average high"])


def test_rows_measured_without_the_tuning_tasks_have_no_cell_for_them(rows):
    older = {key: value for key, value in rows[0].items() if not key.startswith("tasks")}
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown([older, rows[1]]).splitlines()]
    assert [line[4] for line in lines] == ["tuning tasks", "--:", "–", "**53.0** [22, 84]", "27.0"]
    assert "tuning tasks" not in markdown([older])


def test_markdown(rows):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(rows).splitlines()]
    assert len({len(line) for line in lines}) == 1
    head, _, align, m2pt, chance = (dict(zip(lines[0], line)) for line in lines)
    assert (
        align["tuned"] == "–" and align["*mini-pope*"] == "40.0 [36, 46]" and align["Average"] == "**20.0** [18, 22]"
    )
    assert m2pt["tuned"] == "9 (0.9 %)" and m2pt["Average"] == "**52.0** [27, 77]" and m2pt["questions/s"] == "5.0"
    assert align["tuning tasks"] == "**21.0** [7, 35]" and chance["tuning tasks"] == "27.0"
    assert (
        chance["Method"] == "best fixed answer (tuning tasks: a guess)"
        and chance["Average"] == "25.0"
        and chance["*mini-vsr*"] == "30.0"
    )


def test_csv_holds_every_number(rows):
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["method"] for row in read] == ["Align (untouched)", "M²PT"]
    assert read[0]["tuned"] == "" and float(read[0]["mini-mnist high"]) == 46.0
    assert set(read[0]) == set(rows[0]) | set(rows[1])


def test_figure(rows):
    traces = figure(rows).data
    assert len(traces) == 2 + len(TOGETHER["mini"])
    assert list(traces[0].x) == [21.0, 53.0] and list(traces[1].x) == [20.0, 52.0]
    assert list(traces[2].x) == [40.0, 65.0] and traces[1].error_x.array[0] == pytest.approx(5 / 7**0.5)
    assert traces[2].error_x.array[0] == 6.0 and traces[2].error_x.arrayminus[0] == 4.0


def test_files(rows, tmp_path):
    assert write(rows, tmp_path) == (tmp_path / "table.md").read_text() == markdown(rows)
    assert {file.name for file in tmp_path.iterdir()} == {"table.md", "table.csv", "table.html"}
