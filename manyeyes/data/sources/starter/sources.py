"""The real material of the starter data, divided among the splits before anything is drawn.

Design decisions:

- Handwritten digit scans and table rows are dealt to train, val and test once, in the same way for
  every seed. A scan or a group of rows never reaches two splits, whatever is drawn from it; and
  what the zoo's parts were trained on is training data under every seed.
- scikit-learn ships its data inside the package, so nothing is fetched.
- Chart features were chosen so that means are whole numbers from 0 to 99 in a unit one could
  print (millimetres, years, tenths): nothing is normalised, the bars are the data.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from manyeyes.data.dataset.sample import SPLITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Source:
    """Where material comes from and under which licence."""

    licence: str
    """SPDX name."""
    provenance: str


_UCI = "a copy of the UCI Machine Learning Repository's data set, shipped with scikit-learn"
SOURCES: Mapping[str, Source] = {
    "digits": Source(
        "CC-BY-4.0",
        "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998), " + _UCI,
    ),
    "iris": Source("CC-BY-4.0", "Iris (R. A. Fisher, 1936), " + _UCI),
    "wine": Source("CC-BY-4.0", "Wine (S. Aeberhard, M. Forina, 1992), " + _UCI),
    "breast_cancer": Source(
        "CC-BY-4.0",
        "Breast Cancer Wisconsin, Diagnostic (W. Wolberg, O. Mangasarian, N. Street, W. Street, "
        "1993), " + _UCI,
    ),
    "diabetes": Source(
        "BSD-3-Clause",
        "Diabetes (B. Efron, T. Hastie, I. Johnstone, R. Tibshirani: Least Angle Regression, "
        "2004), shipped with scikit-learn under its licence; the authors state no other",
    ),
    "documents": Source(
        "CC0-1.0",
        "Drawn by manyeyes from its word list in the DejaVu, STIX and Computer Modern fonts that "
        "ship with matplotlib",
    ),
    "scenes": Source("CC0-1.0", "Drawn by manyeyes"),
    "chat": Source("CC0-1.0", "Written by manyeyes from templates and its word list"),
}

DEALT = 7
"""Seed of the dealing: that of the zoo's training data, and no recipe's."""
SHARES = {"train": 0.70, "val": 0.08, "test": 0.22}
"""How scans and row groups are dealt to the splits."""


@dataclass(frozen=True)
class Scan:
    """One handwritten digit."""

    entity: str
    digit: int
    ink: NDArray[np.float32]
    """(8, 8), 0 paper to 1 ink."""


@dataclass(frozen=True)
class Feature:
    """A column of a table, in a unit in which its values are whole numbers from 0 to 99."""

    table: str
    column: int
    title: str
    """One word of the vocabulary."""
    factor: float
    """From the table's unit to the printed one: a power of ten."""


FEATURES: tuple[Feature, ...] = (
    Feature("iris", 0, "sepal", 10.0),  # length, cm to mm
    Feature("iris", 2, "petal", 10.0),  # length, cm to mm
    Feature("wine", 1, "malic", 10.0),  # g/l to tenths
    Feature("wine", 3, "ash", 1.0),  # alcalinity
    Feature("breast_cancer", 20, "radius", 1.0),  # worst radius
    Feature("breast_cancer", 21, "texture", 1.0),  # worst texture
    Feature("diabetes", 0, "years", 1.0),  # age
    Feature("diabetes", 2, "body", 1.0),  # body mass index
)


@dataclass(frozen=True)
class RowGroup:
    """A few rows of one table, averaged into one bar."""

    entity: str
    means: NDArray[np.float64]
    """(number of columns,) in the table's own units."""


@dataclass(frozen=True)
class Material:
    """What one split may draw from."""

    scans: Mapping[int, tuple[Scan, ...]]
    """Digit to its scans."""
    groups: Mapping[str, tuple[RowGroup, ...]]
    """Table to its row groups."""


def generator(seed: int, *names: str) -> np.random.Generator:
    """Return the random generator of one named part, independent of all other parts."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def load_material() -> dict[str, Material]:
    """Deal all scans and table rows to the splits."""
    scans = _deal_scans()
    groups = {table: _deal_groups(table) for table in ROWS_PER_BAR}
    return {
        split: Material(scans[split], {table: dealt[split] for table, dealt in groups.items()})
        for split in SPLITS
    }


def _deal_scans() -> dict[str, dict[int, tuple[Scan, ...]]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images / 16.0).astype(np.float32)
    dealt: dict[str, dict[int, tuple[Scan, ...]]] = {split: {} for split in SPLITS}
    rng = generator(DEALT, "digits")
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(digits.target == digit))
        for split, part in _deal(indices).items():
            dealt[split][digit] = tuple(
                Scan(f"digits:{index}", digit, pixels[index]) for index in part
            )
    return dealt


# Rows averaged into one bar, per table: few, so that the bars keep the spread of the data.
ROWS_PER_BAR = {"iris": 1, "wine": 1, "breast_cancer": 2, "diabetes": 2}


def _deal_groups(table: str) -> dict[str, tuple[RowGroup, ...]]:
    rows = _load_table(table)
    size = ROWS_PER_BAR[table]
    order = generator(DEALT, "tables", table).permutation(len(rows))
    groups = [
        RowGroup(
            f"{table}:rows:" + "+".join(str(index) for index in sorted(order[at : at + size])),
            rows[order[at : at + size]].mean(axis=0),
        )
        for at in range(0, len(rows) - size + 1, size)
    ]
    return {
        split: tuple(groups[index] for index in part)
        for split, part in _deal(np.arange(len(groups))).items()
    }


def _load_table(table: str) -> NDArray[np.float64]:
    """Load a table that ships with scikit-learn, in its own units: (rows, columns)."""
    from sklearn import datasets

    match table:
        case "iris":
            loaded = datasets.load_iris()
        case "wine":
            loaded = datasets.load_wine()
        case "breast_cancer":
            loaded = datasets.load_breast_cancer()
        case _:
            # scaled=False: years and kg/m2 rather than the centred columns of the default.
            loaded = datasets.load_diabetes(scaled=False)
    return np.asarray(loaded.data, dtype=np.float64)


def _deal(indices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Cut a shuffled list into the splits' shares."""
    num_test = round(len(indices) * SHARES["test"])
    num_val = round(len(indices) * SHARES["val"])
    return {
        "test": indices[:num_test],
        "val": indices[num_test : num_test + num_val],
        "train": indices[num_test + num_val :],
    }
