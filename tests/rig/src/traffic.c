/* Traffic whose every byte is checked. The same static program runs in the guest and on the host.
 *
 *   traffic udp-send HOST PORT SIZE SECONDS [PER-SECOND]   datagrams of SIZE or MIN-MAX bytes, then a goodbye
 *   traffic udp-recv PORT SECONDS                          until the goodbye, at most SECONDS
 *   traffic udp-echo PORT                                  sends every datagram back, until it is killed
 *   traffic udp-ping HOST PORT SIZE COUNT                  one datagram in flight, against udp-echo
 *   traffic tcp-send HOST PORT SECONDS                     records down one connection
 *   traffic tcp-recv PORT SECONDS                          one connection until its end, at most SECONDS
 *
 * SIGINT ends the time of a sender. The last line of each is its result in JSON; a receiver's first line is "ready", once nothing can get lost. A record (a datagram, or a piece of the TCP stream) starts with a header that holds
 * its length, its sequence number and a CRC-32 of all that follows the CRC; the body differs from record to record,
 * so that bytes of another record in its place are seen. A receiver remembers every sequence number: it tells
 * records that are lost, damaged, doubled and late from each other.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x76687531u
#define GOODBYE UINT64_MAX
#define LARGEST 65507
#define TCP_RECORD 16384
#define REMEMBERED (1u << 28) /* sequence numbers, one bit each */

struct header {
    uint32_t magic;
    uint32_t crc;
    uint64_t sequence; /* GOODBYE in a datagram that ends the test */
    uint32_t length;   /* of the whole record */
    uint32_t sent;     /* in a goodbye: how many records there were */
};

struct tally {
    uint64_t received, bytes, damaged, doubled, late, next;
    uint8_t *seen;
};

static uint32_t crc_table[8][256];
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void make_crc_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        crc_table[0][i] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (int i = 0; i < 256; i++) {
            uint32_t before = crc_table[slice - 1][i];
            crc_table[slice][i] = before >> 8 ^ crc_table[0][before & 255];
        }
}

/* Eight bytes a step: under emulation the check must not be what limits the traffic. */
static uint32_t crc32_of(const uint8_t *data, size_t size)
{
    uint32_t crc = ~0u;
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low, high;
        memcpy(&low, data, 4);
        memcpy(&high, data + 4, 4);
        low ^= crc;
        crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255] ^
              crc_table[4][low >> 24] ^ crc_table[3][high & 255] ^ crc_table[2][high >> 8 & 255] ^
              crc_table[1][high >> 16 & 255] ^ crc_table[0][high >> 24];
    }
    while (size--)
        crc = crc >> 8 ^ crc_table[0][(crc ^ *data++) & 255];
    return ~crc;
}

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

static void build(uint8_t *record, uint32_t length, uint64_t sequence, uint32_t sent)
{
    struct header header = {MAGIC, 0, sequence, length, sent};
    uint64_t noise = sequence * 0x9e3779b97f4a7c15u + 1;
    for (uint32_t i = sizeof header; i < length; i += 8) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        memcpy(record + i, &noise, length - i < 8 ? length - i : 8);
    }
    memcpy(record, &header, sizeof header);
    header.crc = crc32_of(record + 8, length - 8);
    memcpy(record, &header, sizeof header);
}

/* Counts one record; tells whether it was the goodbye, and then how many records there were. */
static int account(struct tally *tally, const uint8_t *record, size_t length, uint32_t *sent)
{
    struct header header;
    memcpy(&header, record, length < sizeof header ? length : sizeof header);
    if (length < sizeof header || header.magic != MAGIC || header.length != length ||
        header.crc != crc32_of(record + 8, length - 8)) {
        tally->damaged++;
        return 0;
    }
    if (header.sequence == GOODBYE) {
        *sent = header.sent;
        return 1;
    }
    uint8_t *seen = &tally->seen[header.sequence / 8 % (REMEMBERED / 8)], bit = 1 << header.sequence % 8;
    if (*seen & bit) {
        tally->doubled++;
        return 0;
    }
    *seen |= bit;
    tally->received++;
    tally->bytes += length;
    if (header.sequence < tally->next)
        tally->late++;
    else
        tally->next = header.sequence + 1;
    return 0;
}

static void report(const struct tally *tally, uint64_t sent, double seconds, int complete)
{
    printf("{\"complete\": %s, \"sent\": %llu, \"received\": %llu, \"bytes\": %llu, \"lost\": %llu, "
           "\"damaged\": %llu, \"doubled\": %llu, \"late\": %llu, \"seconds\": %.3f}\n",
           complete ? "true" : "false", (unsigned long long)sent, (unsigned long long)tally->received,
           (unsigned long long)tally->bytes, (unsigned long long)(sent - tally->received),
           (unsigned long long)tally->damaged, (unsigned long long)tally->doubled,
           (unsigned long long)tally->late, seconds);
}

static struct sockaddr_in address_of(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (host && inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "%s is not an IPv4 address\n", host);
        exit(2);
    }
    return address;
}

static int connected(int kind, const char *host, const char *port, double patience)
{
    struct sockaddr_in address = address_of(host, port);
    double end = now() + patience;
    for (;;) {
        int fd = socket(AF_INET, kind, 0);
        if (fd < 0)
            die("socket");
        if (!connect(fd, (void *)&address, sizeof address))
            return fd;
        if (now() > end)
            die("connect");
        close(fd);
        usleep(20000); /* the other side may not listen yet */
    }
}

static int bound(int kind, const char *port)
{
    struct sockaddr_in address = address_of(NULL, port);
    int fd = socket(AF_INET, kind, 0), one = 1, room = 32 << 20;
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (kind == SOCK_DGRAM && setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room))
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (bind(fd, (void *)&address, sizeof address))
        die("bind");
    return fd;
}

static void say_ready(void)
{
    puts("ready");
    fflush(stdout);
}

static int readable(int fd, double until)
{
    struct pollfd poll_fd = {fd, POLLIN, 0};
    double left = until - now();
    return left > 0 && poll(&poll_fd, 1, (int)(left * 1000) + 1) > 0;
}

static struct tally fresh_tally(void)
{
    struct tally tally = {0};
    tally.seen = calloc(1, REMEMBERED / 8);
    if (!tally.seen)
        die("calloc");
    return tally;
}

static int udp_send(const char *host, const char *port, const char *size, double seconds, double rate)
{
    static uint8_t record[LARGEST];
    const char *range = strchr(size, '-');
    uint32_t smallest = atoi(size), largest = atoi(range ? range + 1 : size);
    if (smallest < sizeof(struct header) || largest > LARGEST || smallest > largest) {
        fprintf(stderr, "SIZE is %zu to %d bytes\n", sizeof(struct header), LARGEST);
        return 2;
    }
    int fd = connected(SOCK_DGRAM, host, port, 0);
    double start = now(), time;
    uint32_t sent = 0;
    while ((time = now()) - start < seconds && !interrupted) {
        double early = rate > 0 ? sent / rate - (time - start) : 0;
        if (early > 0) {
            usleep(early * 1e6 + 1);
            continue;
        }
        uint32_t length = smallest + sent * 7919u % (largest - smallest + 1);
        build(record, length, sent, 0);
        if (send(fd, record, length, 0) >= 0)
            sent++;
        else if (errno != ENOBUFS && errno != ECONNREFUSED && errno != ENETUNREACH && errno != EAGAIN)
            die("send");
    }
    /* one goodbye may be lost like any other datagram */
    for (int i = 0; i < 5; i++) {
        build(record, sizeof(struct header), GOODBYE, sent);
        send(fd, record, sizeof(struct header), 0);
        usleep(50000);
    }
    printf("{\"sent\": %u, \"seconds\": %.3f}\n", sent, time - start);
    return 0;
}

static int udp_recv(const char *port, double seconds)
{
    static uint8_t record[LARGEST + 1];
    struct tally tally = fresh_tally();
    int fd = bound(SOCK_DGRAM, port), complete = 0;
    uint32_t sent = 0;
    double end = now() + seconds, first = 0, last = 0;
    say_ready();
    while (!complete && readable(fd, end)) {
        ssize_t length = recv(fd, record, sizeof record, 0);
        if (length < 0)
            continue;
        complete = account(&tally, record, length, &sent);
        last = now();
        if (first == 0)
            first = last;
    }
    report(&tally, complete ? sent : tally.next, last - first, complete);
    return complete ? 0 : 1;
}

__attribute__((noreturn)) static void udp_echo(const char *port)
{
    static uint8_t record[LARGEST];
    int fd = bound(SOCK_DGRAM, port);
    say_ready();
    for (;;) {
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(fd, record, sizeof record, 0, (void *)&from, &size);
        if (length >= 0)
            sendto(fd, record, length, 0, (void *)&from, size);
    }
}

static int ascending(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

static int udp_ping(const char *host, const char *port, uint32_t size, uint32_t count)
{
    static uint8_t record[LARGEST];
    struct tally tally = fresh_tally();
    double *times = calloc(count, sizeof *times), start = now();
    int fd = connected(SOCK_DGRAM, host, port, 0);
    if (!times || size < sizeof(struct header) || size > LARGEST)
        return 2;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t before = tally.received;
        uint32_t ignored;
        double sent_at = now();
        build(record, size, i, 0);
        if (send(fd, record, size, 0) < 0)
            continue;
        while (tally.received == before && readable(fd, sent_at + 1)) {
            ssize_t length = recv(fd, record, sizeof record, 0);
            if (length >= 0)
                account(&tally, record, length, &ignored);
        }
        if (tally.received != before)
            times[tally.received - 1] = (now() - sent_at) * 1e6;
    }
    qsort(times, tally.received, sizeof *times, ascending);
    printf("{\"sent\": %u, \"received\": %llu, \"damaged\": %llu, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           count, (unsigned long long)tally.received, (unsigned long long)tally.damaged, now() - start,
           tally.received ? times[tally.received / 2] : 0.0, tally.received ? times[tally.received * 99 / 100] : 0.0);
    return tally.received == count ? 0 : 1;
}

static int tcp_send(const char *host, const char *port, double seconds)
{
    static uint8_t record[TCP_RECORD];
    int fd = connected(SOCK_STREAM, host, port, 10);
    double start = now();
    uint64_t sequence = 0;
    for (int last = 0; !last; sequence++) {
        last = interrupted || now() - start >= seconds;
        build(record, TCP_RECORD, sequence, 0);
        for (size_t done = 0; done < TCP_RECORD;) {
            ssize_t written = send(fd, record + done, TCP_RECORD - done, MSG_NOSIGNAL);
            if (written < 0)
                die("send");
            done += written;
        }
    }
    build(record, sizeof(struct header), GOODBYE, sequence);
    if (send(fd, record, sizeof(struct header), MSG_NOSIGNAL) != sizeof(struct header))
        die("send");
    /* the receiver closes once it has everything: until then the data may still be on its way */
    shutdown(fd, SHUT_WR);
    readable(fd, now() + 30);
    printf("{\"sent\": %llu, \"seconds\": %.3f}\n", (unsigned long long)sequence, now() - start);
    return 0;
}

/* Reads exactly `size` bytes. 0 at the end of the stream or of the time. */
static int fill(int fd, uint8_t *data, size_t size, double end)
{
    for (size_t done = 0; done < size;) {
        if (!readable(fd, end))
            return 0;
        ssize_t length = recv(fd, data + done, size - done, 0);
        if (length <= 0)
            return 0;
        done += length;
    }
    return 1;
}

static int tcp_recv(const char *port, double seconds)
{
    static uint8_t record[TCP_RECORD];
    struct tally tally = fresh_tally();
    struct header header;
    uint32_t sent = 0;
    int listener = bound(SOCK_STREAM, port), complete = 0;
    double end = now() + seconds;
    if (listen(listener, 1))
        die("listen");
    say_ready();
    if (!readable(listener, end)) {
        fprintf(stderr, "nobody connected\n");
        return 1;
    }
    int fd = accept(listener, NULL, NULL);
    double start = now();
    while (!complete && fill(fd, record, sizeof header, end)) {
        memcpy(&header, record, sizeof header);
        if (header.length < sizeof header || header.length > TCP_RECORD) {
            tally.damaged++; /* the stream has lost its record boundaries */
            break;
        }
        if (!fill(fd, record + sizeof header, header.length - sizeof header, end))
            break;
        complete = account(&tally, record, header.length, &sent);
    }
    report(&tally, complete ? sent : tally.next, now() - start, complete);
    return complete ? 0 : 1;
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "";
    make_crc_table();
    if (strstr(mode, "-send"))
        signal(SIGINT, on_interrupt); /* restarts what it interrupts; a shell's background jobs ignore it otherwise */
    if (count >= 6 && !strcmp(mode, "udp-send"))
        return udp_send(words[2], words[3], words[4], atof(words[5]), count > 6 ? atof(words[6]) : 0);
    if (count == 4 && !strcmp(mode, "udp-recv"))
        return udp_recv(words[2], atof(words[3]));
    if (count == 3 && !strcmp(mode, "udp-echo"))
        udp_echo(words[2]);
    if (count == 6 && !strcmp(mode, "udp-ping"))
        return udp_ping(words[2], words[3], atoi(words[4]), atoi(words[5]));
    if (count == 5 && !strcmp(mode, "tcp-send"))
        return tcp_send(words[2], words[3], atof(words[4]));
    if (count == 4 && !strcmp(mode, "tcp-recv"))
        return tcp_recv(words[2], atof(words[3]));
    fprintf(stderr, "usage: see the head of traffic.c\n");
    return 2;
}
