"""Results of experiments as one table: Markdown for people, CSV for programs, a figure for the eye."""

import csv
import io
import math
from pathlib import Path
from statistics import mean, stdev

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.stats import t as student

from mmpt.figures import COLOURS, titled
from mmpt.files import write_whole
from mmpt.rows import Experiment
from mmpt.suites import SUITES

AVERAGE = "Average"  # the paper's: all columns but MME
TUNING = "tuning tasks"


def summarise(experiment: Experiment, results: list[dict]) -> dict:
    """One row: means over the seeds.

    Args:
        results: what `mmpt.experiments.run` gave, one a seed.

    Returns:
        dict with method, seeds, tuned (parameters), share (per cent), questions_s (a second while tuning), peak_mib,
        minutes (of tuning); tasks (right answers to fresh questions of what was tuned, per cent), where measured; for
        each suite its chief figure; AVERAGE; each with its low and high ends of the 95 % interval over questions and
        seeds, its standard deviation over seeds ("… sd", None for one seed) and its chance (of tasks a guess without
        looking, else the best fixed answer); and unparsed (per cent, mean over suites).
    """
    row = {"method": experiment.row, "seeds": len(results)}
    tuning = [r["tuning"] for r in results if r["tuning"]]
    if tuning:
        row |= {
            "tuned": tuning[0]["tuned_parameters"],
            "share": 100 * tuning[0]["tuned_parameters"] / results[0]["base_parameters"],
            "questions_s": mean(t["questions"] / t["seconds"] for t in tuning),
            "peak_mib": max(t["peak_mib"] for t in tuning),
            "minutes": mean(t["seconds"] for t in tuning) / 60,
        }
    if all("tasks" in r for r in results):
        tasks = [r["tasks"] for r in results]
        means = [t["figures"]["mean"] for t in tasks]
        row |= _measured("tasks", means, [_of_tasks(t) for t in tasks], tasks[0]["chance"]["mean"])
    for name in results[0]["suites"]["suites"]:
        suites = [r["suites"]["suites"][name] for r in results]
        chief = next(iter(suites[0]["figures"]))
        values, intervals = [s["figures"][chief] for s in suites], [s["interval"][chief] for s in suites]
        row |= _measured(name, values, intervals, suites[0]["chance"][chief])
    suites = [r["suites"] for r in results]
    averages = [s["figures"]["average"] for s in suites]
    row |= _measured(AVERAGE, averages, [_of_average(s) for s in suites], suites[0]["chance"]["average"])
    row["unparsed"] = mean(s["unparsed"] for r in results for s in r["suites"]["suites"].values())
    return row


def _measured(name, values, intervals, chance):
    """What a row says of one column, from a value and a 95 % interval over questions for each seed."""
    value, sd = mean(values), stdev(values) if len(values) > 1 else None
    top = math.inf if name == "mini-mme" else 100  # MME's are sums
    low, high = intervals[0]
    if sd is not None:  # all seeds are asked the same questions: the interval is widened by the chance of the seeds
        questions = mean(high - low for low, high in intervals) / 2
        seeds = student.ppf(0.975, len(values) - 1) * sd / math.sqrt(len(values))
        low, high = value - math.hypot(questions, seeds), value + math.hypot(questions, seeds)
    ends = {f"{name} low": max(0, low), f"{name} high": min(top, high)}
    return {name: value} | ends | {f"{name} sd": sd, f"{name} chance": chance}


def _of_tasks(result):
    """The interval of the mean over tasks, each of which was asked equally many questions."""
    figures = dict(result["figures"])
    value, n = figures.pop("mean"), result["n"] / len(figures)
    half = 1.96 * math.sqrt(sum(f * (100 - f) / (n - 1) for f in figures.values())) / len(figures)
    return value - half, value + half


def _of_average(result):
    """The interval of the average, of suites whose questions have nothing to do with each other."""
    parts = [s["interval"][next(iter(s["figures"]))] for name, s in result["suites"].items() if name != "mini-mme"]
    half, average = math.hypot(*((high - low) / 2 for low, high in parts)) / len(parts), result["figures"]["average"]
    return average - half, average + half


def suites_of(rows: list[dict]) -> list[str]:
    """The suites that the rows hold, in the order of the table."""
    return [name for name in SUITES if name in rows[0]]


def markdown(rows: list[dict]) -> str:
    """The table with one line a method and its 95 % intervals, and the chance level as the last line."""
    columns = {TUNING: "tasks"} if any("tasks" in row for row in rows) else {}
    columns |= {"Average": AVERAGE} | {f"*{name}*": name for name in suites_of(rows)}
    head = ["Method", "tuned", "questions/s", "peak MiB", *columns]
    lines = [head, ["---", *["--:"] * (len(head) - 1)]]
    for row in rows:
        tuned = f"{row['tuned']:,} ({row['share']:.3g} %)" if "tuned" in row else "–"
        speed, peak = (
            f"{row[key]:.{digits}f}" if key in row else "–" for key, digits in (("questions_s", 1), ("peak_mib", 0))
        )
        lines.append([row["method"], tuned, speed, peak, *(_cell(row, name) for name in columns.values())])
    guesses = next((row for row in rows if "tasks" in row), rows[0])
    label = "best fixed answer" + " (tuning tasks: a guess)" * ("tasks" in guesses)
    lines.append([label, "", "", "", *(f"{guesses[f'{name} chance']:.1f}" for name in columns.values())])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row, name):
    if name not in row:
        return "–"
    value = f"**{row[name]:.1f}**" if name in ("tasks", AVERAGE) else f"{row[name]:.1f}"
    return f"{value} [{row[f'{name} low']:.0f}, {row[f'{name} high']:.0f}]"


def to_csv(rows: list[dict]) -> str:
    """Every number of every row; columns that a row has not are empty."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def figure(rows: list[dict]) -> go.Figure:
    """A panel a suite: each method's figure with its 95 % interval, and what the best fixed answer gets."""
    tuned = {TUNING: "tasks"} if all("tasks" in row for row in rows) else {}
    names = tuned | {name: name for name in (AVERAGE, *suites_of(rows))}
    deep, tall = math.ceil(len(names) / 3), 80 + 22 * len(rows)  # rows of panels, and pixels of one with what is below
    panels = make_subplots(
        rows=deep, cols=3, subplot_titles=[*names], shared_yaxes=True, vertical_spacing=70 / tall / deep
    )
    methods = [row["method"] for row in rows]
    for i, name in enumerate(names.values()):
        at = {"row": i // 3 + 1, "col": i % 3 + 1}
        values = [row[name] for row in rows]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [row[f"{name} high"] - row[name] for row in rows],
            "arrayminus": [row[name] - row[f"{name} low"] for row in rows],
        }
        panels.add_trace(
            go.Scatter(
                x=values, y=methods, mode="markers", error_x=bars, marker={"size": 9, "color": COLOURS["textual"]}
            ),
            **at,
        )
        panels.add_vline(rows[0][f"{name} chance"], line={"dash": "dot", "color": COLOURS["question"]}, **at)
    panels.update_yaxes(autorange="reversed")
    note = "95 % intervals over questions and seeds; dotted: the best fixed answer" + (
        ", or a guess without looking" if tuned else ""
    )
    return titled(
        panels.update_layout(showlegend=False),
        "What each method scores",
        note,
        100 + deep * tall,
    )


def write(rows: list[dict], folder: Path) -> str:
    """Write table.md, table.csv and table.html to `folder`; returns the Markdown."""
    text = markdown(rows)
    write_whole(folder / "table.md", text)
    write_whole(folder / "table.csv", to_csv(rows))
    write_whole(folder / "table.html", figure(rows).to_html(include_plotlyjs="cdn"))
    return text
