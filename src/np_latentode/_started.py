"""When the package began to be imported, before JAX is."""

import time

STARTED = time.perf_counter()
