import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the unit tier reaches for a hub
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """On small models more threads are slower, and change the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny():
    """The embedded model, loaded once; leave it as it was."""
    import mmpt

    return mmpt.load("tiny")
