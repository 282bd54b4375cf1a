"""Who has which subnet: network config, leases, peers (pure) and the stores that hold them."""
