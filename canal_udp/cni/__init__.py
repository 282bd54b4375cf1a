"""The CNI plug-in's decisions, and the addresses of this node's pods."""
