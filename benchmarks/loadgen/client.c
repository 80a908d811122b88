/* The yardstick: what a streaming client costs in C. Counts events and gaps, parses no JSON.
 *
 * client PORT CONCURRENCY REQUESTS TOKENS [stamps]
 *
 * Keeps CONCURRENCY kept-alive connections busy with streamed completions of TOKENS events until REQUESTS are done.
 * epoll, one recvmsg an event, chunks followed with a small state machine; with "stamps", the error of each read's
 * kernel timestamp and user-space time against the send time in the event ("@NNN..."). Prints JSON. Linux only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BINS 2400
typedef struct {
    int fd, events, head;
    int64_t last_ns, sent_ns;
    int tail; /* bytes of "\n\n" or the terminating chunk seen */
} Conn;

static int64_t gap_bins[BINS], events, done, started, requests, tokens;
static char request[4096];
static int request_length, stamps;
static float *kernel_errors, *user_errors;
static size_t error_count, error_size;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int ask(Conn *c) {
    if (started >= requests) return 0;
    started++;
    c->events = 0, c->head = 1, c->sent_ns = now_ns(CLOCK_REALTIME);
    return send(c->fd, request, (size_t)request_length, 0) == request_length ? 1 : -1;
}

static int smaller(const void *a, const void *b) { return (*(float *)a > *(float *)b) - (*(float *)a < *(float *)b); }

int main(int argc, char **argv) {
    if (argc < 5) return fprintf(stderr, "usage: client PORT CONCURRENCY REQUESTS TOKENS [stamps]\n"), 2;
    int concurrency = atoi(argv[2]);
    requests = atol(argv[3]), tokens = atol(argv[4]), stamps = argc > 5;
    char body[1024];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"bench\",\"prompt\":[100,101,102,103,104,105,106,107,108,109,110,111,112,113,114,115],\"stream\":true,"
                     "\"stream_options\":{\"include_usage\":true},\"ignore_eos\":true,\"max_tokens\":%ld}", (long)tokens);
    request_length = snprintf(request, sizeof request,
                              "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", n, body);
    int epoll_fd = epoll_create1(0), on = 1, open = 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    Conn *conns = calloc((size_t)concurrency, sizeof(Conn));
    int64_t begin_ns = now_ns(CLOCK_MONOTONIC);
    for (int i = 0; i < concurrency; i++) {
        Conn *c = &conns[i];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) return perror("connect"), 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(c->fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        struct epoll_event e = {EPOLLIN, {.ptr = c}};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
        if (ask(c) == 1) open++;
    }
    static char buffer[65536 + 1];
    while (open) {
        struct epoll_event ready[256];
        int count = epoll_wait(epoll_fd, ready, 256, 5000);
        if (count <= 0) return fprintf(stderr, "nothing came for 5 s\n"), 1;
        for (int i = 0; i < count; i++) {
            Conn *c = ready[i].data.ptr;
            char control[64];
            struct iovec io = {buffer, sizeof buffer - 1};
            struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
            ssize_t got = recvmsg(c->fd, &m, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) return fprintf(stderr, "closed by the server\n"), 1;
            buffer[got] = 0;
            int64_t stamp_ns = 0;
            struct cmsghdr *h = CMSG_FIRSTHDR(&m);
            if (h && h->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec t;
                memcpy(&t, CMSG_DATA(h), sizeof t);
                stamp_ns = t.tv_sec * 1000000000LL + t.tv_nsec;
            }
            char *at = buffer;
            int last = 0;
            while ((at = strstr(at, "data: "))) {
                at += 6;
                if (!strncmp(at, "[DONE]", 6)) { last = 1; break; }
                if (c->events == tokens) continue; /* the usage */
                if (c->events) {
                    double gap_us = (stamp_ns - c->last_ns) * 1e-3;
                    int bin = gap_us > 1 ? (int)ceil(log(gap_us) * 100.4992) : 0;
                    gap_bins[bin < BINS ? bin : BINS - 1]++;
                }
                c->last_ns = stamp_ns;
                c->events++, events++;
                if (stamps && c->events > 10) { /* not while connections are still being made */
                    char *mark = strchr(at, '@');
                    if (mark) {
                        if (error_count == error_size) {
                            error_size = error_size ? error_size * 2 : 1 << 16;
                            kernel_errors = realloc(kernel_errors, error_size * sizeof(float));
                            user_errors = realloc(user_errors, error_size * sizeof(float));
                        }
                        int64_t sent = atoll(mark + 1);
                        kernel_errors[error_count] = (float)((stamp_ns - sent) * 1e-3);
                        user_errors[error_count++] = (float)((now_ns(CLOCK_REALTIME) - sent) * 1e-3);
                    }
                }
            }
            if (last) {
                done++;
                int more = ask(c);
                if (more < 0) return perror("send"), 1;
                if (!more) open--;
            }
        }
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    printf("{\"cpu_s\": %.6f, \"events\": %lld, \"requests\": %lld, \"wall_s\": %.6f", cpu_s, (long long)events, (long long)done,
           (now_ns(CLOCK_MONOTONIC) - begin_ns) * 1e-9);
    if (error_count) {
        qsort(kernel_errors, error_count, sizeof(float), smaller), qsort(user_errors, error_count, sizeof(float), smaller);
        printf(", \"kernel_error_us\": {\"p50\": %.1f, \"p99\": %.1f}, \"user_error_us\": {\"p50\": %.1f, \"p99\": %.1f}",
               kernel_errors[error_count / 2], kernel_errors[(size_t)(error_count * 0.99)], user_errors[error_count / 2],
               user_errors[(size_t)(error_count * 0.99)]);
    }
    printf("}\n");
    return 0;
}
