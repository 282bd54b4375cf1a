"""Everything that owns a file descriptor: TUN devices, underlay sockets, netlink, and fakes of them."""
