"""Hosts, pods and underlay networks as namespaces on one machine, with real daemons, faults and traffic."""
