import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked():
    if not shutil.which("git"):
        pytest.skip("Without git there is no list of the project's files.")
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("The folder is no git checkout, so there is no list of the project's files.")
    return [ROOT / name for name in found.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_make_command_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`make ([a-z]+)`|^ {4}make ([a-z]+)", readme, re.M))
    named = {inline or block for inline, block in named}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"app", "demo", "test", "lab"} <= named <= targets


def test_every_command_of_the_readme_is_understood():
    from mmpt.__main__ import parser

    commands = re.findall(r"python -m mmpt (.*)", (ROOT / "README.md").read_text())
    assert len(commands) >= 5
    for command in commands:
        words = re.sub(r"[\[\]]", "", command).split("#")[0]  # options in brackets are given, of choices the first
        parser().parse_args([word.split("|")[0] for word in shlex.split(words)])


def test_numbers_of_the_readme():
    from mmpt.scenes import NAMES
    from mmpt.tasks import TASKS

    readme = (ROOT / "README.md").read_text()
    assert f"{len(NAMES)} OpenMoji classes" in readme and f"{len(TASKS)} instruction tasks" in readme


def test_the_readme_shows_the_table_as_it_was_measured():
    assert (ROOT / "assets/results/full/table.md").read_text() in (ROOT / "README.md").read_text()


def test_notebooks_are_kept_without_outputs():
    for path in tracked():
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text())["cells"]
            assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path.name


def test_no_file_names_a_folder_of_one_machine():
    for path in tracked():
        if path.suffix not in (".png", ".safetensors") and path != Path(__file__):
            assert not re.search(r"(?<![\w.])/(root|home/\w+|work|Users/\w+|tmp/\w+)/", path.read_text()), path


def test_files_that_the_readme_links_exist():
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (ROOT / "README.md").read_text())
    local = [a or b for a, b in links if not (a or b).startswith("http")]
    assert local and all((ROOT / link).exists() for link in local)


def test_no_tracked_file_is_large():
    assert max(path.stat().st_size for path in tracked()) <= 20 << 20


def test_every_requirement_has_a_tested_version():
    def names(file):
        return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
                for line in (ROOT / file).read_text().splitlines() if re.match(r"\w", line)}  # fmt: skip

    assert names("requirements.txt") <= names("constraints.txt")
    assert "file:" not in (ROOT / "constraints.txt").read_text()


def test_attribution():
    notice = (ROOT / "NOTICE").read_text()
    for name in ("OpenMoji", "CC BY-SA 4.0", "SmolLM2-135M-Instruct"):
        assert name in notice
