"""Whole studies, from data to scores and figures: spirals, patients, hoppers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["datasets"])
