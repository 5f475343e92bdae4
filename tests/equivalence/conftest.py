from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from tests.equivalence import tiny


@pytest.fixture(scope="session", autouse=True)
def quiet_and_small() -> Iterator[None]:
    """Tiny tensors are fastest on one thread; and no progress bars."""
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """A random model of an architecture and the folder that it is saved in; made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (tiny.save_model(name, folder), folder)
        return made[name]

    return make
