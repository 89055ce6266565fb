"""The commands of `np-latentode`."""
