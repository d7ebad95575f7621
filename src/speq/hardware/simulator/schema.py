"""What every configuration file is made of: strict tables, and numbers that say their unit and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Source = Annotated[str, Field(min_length=12)]
"""Where a number comes from: a publication, a measurement with its command, or the word assumption and the reason."""


class Table(BaseModel):
    """A table that knows all of its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Quantity(Table):
    """A number with its unit and source, written ``{ value = 0.77, unit = "pJ", source = "..." }``."""

    value: float
    unit: str
    source: Source


def _checked(unit: str, low: float, high: float, whole: bool, open_low: bool) -> Callable[[Quantity], Quantity]:
    def check(quantity: Quantity) -> Quantity:
        if quantity.unit != unit:
            raise ValueError(f"has the unit {quantity.unit!r}; it must be {unit!r}")
        value = quantity.value
        if whole and value != int(value):
            raise ValueError(f"is {value}; it must be a whole number")
        if not (low < value if open_low else low <= value) or not value <= high:
            bound = f"greater than {low:g}" if open_low else f"at least {low:g}"
            raise ValueError(f"is {value:g}; it must be {bound} and at most {high:g} {unit}")
        return quantity

    return check


def positive(unit: str, *, most: float = 1e15, whole: bool = False) -> AfterValidator:
    """Marks a quantity as greater than zero, in ``unit``: ``Annotated[Quantity, positive("pJ")]``."""
    return AfterValidator(_checked(unit, 0.0, most, whole, True))


def amount(unit: str, *, most: float = 1e15) -> AfterValidator:
    """Marks a quantity as zero or greater, in ``unit``."""
    return AfterValidator(_checked(unit, 0.0, most, False, False))


Share: TypeAlias = Annotated[Quantity, amount("1", most=1.0)]
"""A part of a whole, 0 to 1."""

Efficiency: TypeAlias = Annotated[Quantity, positive("1", most=1.0)]
"""A factor greater than 0 and at most 1."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Size: TypeAlias = Annotated[int, Field(gt=0, le=1 << 24)]
Bits: TypeAlias = Annotated[float, Field(gt=0, le=64)]
