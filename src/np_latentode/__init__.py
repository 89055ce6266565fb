"""Latent ODEs as NumPyro models: irregular time series in, calibrated forecasts out.

`__init__.pyi` lists the public names. Each is imported at its first use, so that a command that
needs little starts in a fraction of a second.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
