"""Encapsulations in Python: what the data plane shall do, how many bytes it costs, and codecs that say how it looks."""
