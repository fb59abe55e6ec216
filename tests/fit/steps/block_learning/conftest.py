"""One thread for torch: small operations on several wait for each other when the machine has other work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fitted_cases import Case, build_case, correlated, seeded_transformer

torch.set_num_threads(1)


@pytest.fixture
def transformer_case(tmp_path: Path) -> Callable[..., Case]:
    """``transformer_case(samples, bits=..)``: the text transformer with calibration samples, min-max fitted."""

    def build(samples: int = 16, **options: Any) -> Case:
        return build_case(seeded_transformer(0), correlated(0, samples), tmp_path, **options)

    return build
