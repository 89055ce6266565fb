"""Data to learn from: generated, or taken from a package."""

from np_latentode.datasets.clinical import clinical
from np_latentode.datasets.hopper import hopper
from np_latentode.datasets.spirals import SpiralFamily, SpiralPosterior, Spirals, spirals

__all__ = ["SpiralFamily", "SpiralPosterior", "Spirals", "clinical", "hopper", "spirals"]
