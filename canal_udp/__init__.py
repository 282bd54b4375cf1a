"""Canal UDP: a pod network in user space."""

__version__ = "0.1.0"
