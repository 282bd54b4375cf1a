/* io.h - the worker's system calls; see io.c. */
#ifndef CANAL_IO_H
#define CANAL_IO_H
#include "worker.h"

extern const struct io_ops io_kernel;

/* Read up to a batch of packets from a TUN into w->packets. Returns how many; 0 when there is nothing; *failed = errno that will not go away. */
uint32_t io_read_tun(struct worker *w, struct port *port, int *failed);
/* Receive up to DATAGRAMS_MAX datagrams into w->datagrams. */
uint32_t io_receive(struct worker *w, struct port *port, int *failed);
/* Drain the socket's error queue: path MTU events become CANAL_EVENT_MTU. */
void io_read_errors(struct worker *w, const struct port *port);
#endif
