import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked():
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("The folder is no git checkout, so there is no list of the project's files.")
    return [ROOT / name for name in found.stdout.split("\0") if name and (ROOT / name).exists()]


def test_every_make_command_of_the_readme_exists():
    named = set(re.findall(r"(?:^ +|`)make ([a-z]+)\b", (ROOT / "README.md").read_text(), re.M))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"app", "demo", "test", "lab"} <= targets and named and named <= targets


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
