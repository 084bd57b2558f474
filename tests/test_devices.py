"""That nothing stays behind on the CPU when a model is on another device."""

import subprocess
import sys
from pathlib import Path


def test_all_of_it_runs_on_another_device():
    cases = Path(__file__).with_name("elsewhere_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    run = subprocess.run(command, cwd=cases.parents[1], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:]
