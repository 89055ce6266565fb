"""Draws of the future, how good they are, and trivial baselines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, ["baselines"])
