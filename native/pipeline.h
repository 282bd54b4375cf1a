/* pipeline.h - the order of the stages; see pipeline.c. */
#ifndef CANAL_PIPELINE_H
#define CANAL_PIPELINE_H
#include "worker.h"

/* n packets read from a TUN port: w->packets[i].data points behind a raw vnet header, .size = bytes behind it. */
void pipeline_from_tun(struct worker *w, struct port *port, uint32_t n);
/* n datagrams received from an underlay port: w->datagrams. */
void pipeline_from_underlay(struct worker *w, struct port *port, uint32_t n);
#endif
