"""Data to learn from: generated, or taken from a package."""

from np_latentode.studies.datasets.clinical import clinical
from np_latentode.studies.datasets.hopper import hopper
from np_latentode.studies.datasets.physiome import physiome
from np_latentode.studies.datasets.physiome_systems import system
from np_latentode.studies.datasets.spirals import SpiralFamily, SpiralPosterior, Spirals, spirals

__all__ = [
    "SpiralFamily",
    "SpiralPosterior",
    "Spirals",
    "clinical",
    "hopper",
    "physiome",
    "spirals",
    "system",
]
