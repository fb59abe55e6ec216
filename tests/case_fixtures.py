"""Small models with a min-max plan whose weights have few bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from fitted_cases import Case, Feeds, build_case, correlated, seeded_transformer


@pytest.fixture
def case_of(tmp_path: Path) -> Callable[..., Case]:
    """``case_of(model, feeds, bits=.., attention=.., exclude=..)``: any model, calibrated with ``feeds``."""

    def build(model: onnx.ModelProto, feeds: Feeds, **options: Any) -> Case:
        return build_case(model, feeds, tmp_path, **options)

    return build


@pytest.fixture
def transformer_case(tmp_path: Path) -> Callable[..., Case]:
    """``transformer_case(seed, samples, bits=..)``: the text transformer with weights of a seed."""

    def build(seed: int = 0, samples: int = 8, **options: Any) -> Case:
        return build_case(seeded_transformer(seed), correlated(seed, samples), tmp_path, **options)

    return build
