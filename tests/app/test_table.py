import json

from app.table import TASKS, tables
from mmpt.backbones import ASSETS


def test_tables_hold_what_was_measured():
    frame, figure = tables()[TASKS]
    for name in ("none", "m2pt"):
        figures = json.loads((ASSETS / "results" / f"tasks-{name}.json").read_text())["figures"]
        assert dict(zip(frame["task"], frame[name])) == figures
    assert len(figure.data[0].z) == len(frame)


def test_without_results_there_is_no_table(tmp_path):
    assert tables(tmp_path) == {}
