"""The blocks of columns whose moments are kept, and the name that tells one choice of them from another."""

from __future__ import annotations

import pytest

from speq.conversion.calibrate import Calibration
from speq.conversion.observe import WIDEST, block_width
from speq.formats.feedback import DAMPING, PASSES


@pytest.mark.parametrize(
    ("columns", "width"),
    [(1, 64), (576, 576), (1500, 1536), (1536, 1536), (2048, 2048), (2049, 1088), (8960, 1792), (65536, 2048)],
)
def test_blocks_are_few_and_of_equal_width(columns, width):
    assert block_width(columns) == width


def test_blocks_cover_the_columns():
    for columns in range(1, 9000, 37):
        width = block_width(columns)
        assert width <= WIDEST
        assert width % 64 == 0
        assert -(-columns // width) == -(-columns // WIDEST)


def test_the_identity_names_what_codes_depend_on():
    for choice in (f"blocks of up to {WIDEST}", f"damping {DAMPING:g}", f"{PASSES} passes"):
        assert choice in Calibration.identity
