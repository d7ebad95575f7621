"""What every configuration file is made of: strict tables, and numbers that say their unit and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Source = Annotated[str, Field(min_length=12)]
"""Where a number comes from: a publication, a measurement with its command, or the word assumption and the reason."""


class Table(BaseModel):
    """A table that knows all of its keys, and whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Quantity(Table):
    """A number with its unit and source, written ``{ value = 0.77, unit = "pJ", source = "..." }``."""

    value: float
    unit: str
    source: Source


_LEAST = 1e-15
Item = TypeVar("Item")


def _checked(unit: str, low: float, high: float, whole: bool, above_zero: bool) -> Callable[[Quantity], Quantity]:
    def check(quantity: Quantity) -> Quantity:
        if quantity.unit != unit:
            raise ValueError(f"has the unit {quantity.unit!r}; it must be {unit!r}")
        value = quantity.value
        if whole and value != int(value):
            raise ValueError(f"is {value}; it must be a whole number")
        if not low <= value <= high:
            bound = "greater than 0" if above_zero and value <= 0 else f"at least {low:g}"
            raise ValueError(f"is {value:g}; it must be {bound} and at most {high:g} {unit}")
        return quantity

    return check


def positive(unit: str, *, most: float = 1e15, whole: bool = False) -> AfterValidator:
    """Marks a quantity as greater than zero, in ``unit``: ``Annotated[Quantity, positive("pJ")]``.

    The least and the most are so far apart that they exclude no machine, and near enough that products of such numbers
    and their quotients stay finite.
    """
    return AfterValidator(_checked(unit, _LEAST, most, whole, True))


def amount(unit: str, *, most: float = 1e15) -> AfterValidator:
    """Marks a quantity as zero or greater, in ``unit``."""
    return AfterValidator(_checked(unit, 0.0, most, False, False))


def _distinct(values: list[Item]) -> list[Item]:
    for at, value in enumerate(values):
        if value in values[:at]:
            raise ValueError(f"has {value!r} twice")
    return values


Share: TypeAlias = Annotated[Quantity, amount("1", most=1.0)]
"""A part of a whole, 0 to 1."""

Loss: TypeAlias = Annotated[Quantity, amount("1", most=0.99)]
"""A part of a whole that is lost; something is left."""

Efficiency: TypeAlias = Annotated[Quantity, positive("1", most=1.0)]
"""A factor greater than 0 and at most 1."""

Names: TypeAlias = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]
"""Names or keys, none of them twice."""

Values: TypeAlias = Annotated[list[float], Field(min_length=1), AfterValidator(_distinct)]
"""What a knob or an axis takes in turn, nothing twice."""

Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
Size: TypeAlias = Annotated[int, Field(gt=0, le=1 << 24)]
Bits: TypeAlias = Annotated[float, Field(ge=1, le=64)]
