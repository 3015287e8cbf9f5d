/* A bounded load for the back-end's side: frames into a tap from the host, so that a driver has something to receive.
 *
 *   load LINK DESTINATION SIZE COUNT SECONDS
 *
 * Sends at most COUNT frames of SIZE bytes in at most SECONDS, in batches, past the queueing discipline. A frame longer
 * than 1514 bytes is a TCP segment that the kernel has not cut yet (a virtio_net_hdr with GSO goes before it). The last
 * line is {"sent": accepted by the link, "refused": its queue was full, "seconds": ...}.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#define BATCH 64
#define PLAIN 1514
#define HEADERS (14 + 20 + 20) /* Ethernet, IPv4, TCP */
#define SEGMENT 1448

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static uint16_t checksum(const uint8_t *data, size_t size, uint32_t sum)
{
    for (size_t i = 0; i < size; i += 2)
        sum += data[i] << 8 | data[i + 1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* A TCP segment between two addresses for benchmarks (RFC 2544) whose checksum is left to the receiver. */
static void build_tcp(uint8_t *frame, uint32_t size)
{
    static const uint8_t addresses[8] = {198, 18, 0, 1, 198, 18, 0, 2};
    uint8_t *ip = frame + 14, *tcp = ip + 20;
    uint16_t length = htons(size - 14), sum;
    frame[12] = 0x08;
    frame[13] = 0x00;
    ip[0] = 0x45;
    memcpy(ip + 2, &length, 2);
    ip[8] = 64;
    ip[9] = 6;
    memcpy(ip + 12, addresses, 8);
    sum = htons((uint16_t)~checksum(ip, 20, 0));
    memcpy(ip + 10, &sum, 2);
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    sum = htons(checksum(addresses, 8, 6 + size - 34));
    memcpy(tcp + 16, &sum, 2);
}

static int open_link(const char *link, int with_header)
{
    int one = 1, fd = socket(AF_PACKET, SOCK_RAW, 0), room = 1 << 26;
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(link)};
    if (fd < 0 || !address.sll_ifindex || bind(fd, (void *)&address, sizeof address))
        die(link);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    if (setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof one))
        die("PACKET_QDISC_BYPASS");
    if (with_header && setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one))
        die("PACKET_VNET_HDR");
    return fd;
}

int main(int count, char **words)
{
    static uint8_t frame[65536];
    if (count != 6) {
        fprintf(stderr, "usage: load LINK DESTINATION SIZE COUNT SECONDS\n");
        return 2;
    }
    uint32_t size = atoi(words[3]), large = size > PLAIN;
    uint64_t most = strtoull(words[4], NULL, 10), sent = 0, refused = 0;
    if (size < 60 || size > sizeof frame - 1 ||
        sscanf(words[2], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", frame, frame + 1, frame + 2, frame + 3, frame + 4, frame + 5) != 6) {
        fprintf(stderr, "DESTINATION is a MAC address, SIZE is 60 to %zu bytes\n", sizeof frame - 1);
        return 2;
    }
    frame[6] = 2;
    frame[12] = 0x88;
    frame[13] = 0xb5;
    if (large)
        build_tcp(frame, size);
    struct virtio_net_hdr header = {
        .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
        .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
        .hdr_len = HEADERS,
        .gso_size = SEGMENT,
        .csum_start = 34,
        .csum_offset = 16,
    };
    struct iovec parts[2] = {{&header, sizeof header}, {frame, size}};
    struct mmsghdr batch[BATCH] = {0};
    for (int i = 0; i < BATCH; i++)
        batch[i].msg_hdr = (struct msghdr){.msg_iov = parts + !large, .msg_iovlen = 1 + large};
    int link = open_link(words[1], large);
    double start = now(), end = start + atof(words[5]);
    while (sent < most && now() < end) {
        int taken = sendmmsg(link, batch, most - sent < BATCH ? most - sent : BATCH, 0);
        if (taken >= 0)
            sent += taken;
        else if (errno == ENOBUFS || errno == EAGAIN)
            refused++;
        else
            die("sendmmsg");
    }
    printf("{\"sent\": %llu, \"refused\": %llu, \"seconds\": %.6f}\n", (unsigned long long)sent,
           (unsigned long long)refused, now() - start);
    return 0;
}
