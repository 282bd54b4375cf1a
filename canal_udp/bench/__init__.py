"""Measuring: overlays against each other under the same conditions, and the stages of the data plane by themselves."""
