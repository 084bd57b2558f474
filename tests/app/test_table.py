import json

from app.table import TASKS, tables
from mmpt.files import ASSETS


def test_tables_hold_what_was_measured():
    frame, figure = tables()[TASKS]
    for name in ("none", "m2pt"):
        result = json.loads((ASSETS / "results" / f"tasks-{name}.json").read_text())
        assert dict(zip(frame["task"], frame[f"{name} ({result['n']:,})"])) == result["figures"]
    assert len(figure.data[0].z) == len(frame)


def test_without_results_there_is_no_table(tmp_path):
    assert tables(tmp_path) == {}
