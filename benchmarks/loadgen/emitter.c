/* A server of known latency: streams server-sent events like vLLM's, and knows when it sent each one.
 *
 * emitter PORT SECONDS [TTFT_US GAP_US BURST_US]
 *
 * Answers POST of any path with max_tokens events (from the body), one write(2) an event: the first TTFT_US after the
 * request was read, the others GAP_US apart. With BURST_US, events leave only at multiples of BURST_US of the monotonic
 * clock, all streams' at once, as an engine's step does. GAP_US 0: everything as fast as the socket takes it.
 * A GET is answered with a list of models, POST of /tokenize with 404, a body without "stream":true with its usage only.
 *
 * Each content event carries its send time (CLOCK_REALTIME, ns) as its text, "@NNNNNNNNNNNNNNNNNNN", 20 bytes.
 * On exit prints JSON: its CPU seconds, what it sent, the true TTFT (from the request's arrival, by SO_TIMESTAMPNS, to
 * the write) and gaps: p50, p99, mean in us; requests a second between the first and last end.
 *
 * One thread, epoll and a timer wheel of 100 us. Several on one port share its connections. Linux only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 16384
#define SLOT_US 100
#define SLOTS 65536 /* 6.5 s of wheel */
#define BUFFER 262144

typedef struct Conn {
    int fd, tokens, sent, waiting, chat, closing;
    char *in;
    size_t in_length, in_size;
    int64_t asked_ns, last_ns, due_us;
    struct Conn *next;
    char *out; /* what the socket did not take */
    size_t out_length;
} Conn;

static Conn *conns[MAX_FD];
static Conn *wheel[SLOTS];
static int64_t wheel_at; /* the slot (absolute) that is next */
static int64_t ttft_us = 10000, gap_us = 20000, burst_us;
static int epoll_fd;
static volatile sig_atomic_t stopping;
static int64_t events_sent, requests_done, first_end_ns, last_end_ns;
static float *ttfts, *gaps;
static size_t ttft_count, gap_count, ttft_size, gap_size;

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void keep(float **list, size_t *count, size_t *size, double value) {
    if (*count == *size) {
        *size = *size ? *size * 2 : 1 << 16;
        *list = realloc(*list, *size * sizeof(float));
    }
    (*list)[(*count)++] = (float)value;
}

static void drop(Conn *c) {
    /* A waiting connection is still in the wheel: it is freed when its slot comes. */
    if (c->fd >= 0) {
        conns[c->fd] = NULL;
        close(c->fd);
        c->fd = -1;
    }
    if (!c->waiting) {
        free(c->in);
        free(c->out);
        free(c);
    }
}

static void schedule(Conn *c, int64_t due_us) {
    if (burst_us) due_us = (due_us + burst_us - 1) / burst_us * burst_us;
    int64_t slot = due_us / SLOT_US;
    if (slot < wheel_at) slot = wheel_at;
    if (slot > wheel_at + SLOTS - 2) slot = wheel_at + SLOTS - 2;
    c->due_us = due_us;
    c->waiting = 1;
    c->next = wheel[slot % SLOTS];
    wheel[slot % SLOTS] = c;
}

static int put(Conn *c, const char *data, size_t length) {
    if (c->out_length) goto queue;
    ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return -1;
    if (n < 0) n = 0;
    if ((size_t)n == length) return 0;
    data += n;
    length -= n;
queue:
    c->out = realloc(c->out, c->out_length + length);
    memcpy(c->out + c->out_length, data, length);
    c->out_length += length;
    struct epoll_event e = {EPOLLIN | EPOLLOUT, {.fd = c->fd}};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    return 0;
}

static size_t event(char *out, Conn *c, int64_t stamp_ns, int last) {
    char json[640];
    int n;
    const char *finish = last ? "\"length\"" : "null";
    if (c->chat)
        n = snprintf(json, sizeof json,
                     "data: {\"id\":\"chatcmpl-%08x9f4e1c2ab7d05e66\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,"
                     "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@%019lld\"},\"logprobs\":null,"
                     "\"finish_reason\":%s,\"token_ids\":null}]}\n\n",
                     c->fd, (long long)stamp_ns, finish);
    else
        n = snprintf(json, sizeof json,
                     "data: {\"id\":\"cmpl-%08x9f4e1c2ab7d05e66\",\"object\":\"text_completion\",\"created\":1763800000,"
                     "\"model\":\"bench\",\"choices\":[{\"index\":0,\"text\":\"@%019lld\",\"logprobs\":null,"
                     "\"finish_reason\":%s,\"stop_reason\":null,\"token_ids\":null,\"prompt_token_ids\":null}]}\n\n",
                     c->fd, (long long)stamp_ns, finish);
    return (size_t)sprintf(out, "%x\r\n%s\r\n", n, json);
}

static size_t ending(char *out, Conn *c) {
    char json[512];
    int n = snprintf(json, sizeof json,
                     "data: {\"id\":\"%s-%08x9f4e1c2ab7d05e66\",\"object\":\"%s\",\"created\":1763800000,\"model\":\"bench\","
                     "\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d}}\n\n",
                     c->chat ? "chatcmpl" : "cmpl", c->fd, c->chat ? "chat.completion.chunk" : "text_completion", 16,
                     16 + c->tokens, c->tokens);
    return (size_t)sprintf(out, "%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", n, json);
}

/* One token; the last one takes the ending along. Returns 0 when the answer goes on. */
static int step(Conn *c) {
    char out[2048];
    size_t length = 0;
    if (!c->sent && c->chat) {
        const char *role = "data: {\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,\"model\":\"bench\","
                           "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
        length = (size_t)sprintf(out, "%zx\r\n%s\r\n", strlen(role), role);
    }
    int last = c->sent + 1 == c->tokens;
    int64_t stamp_ns = now_ns(CLOCK_REALTIME);
    length += event(out + length, c, stamp_ns, last);
    if (last) length += ending(out + length, c);
    if (put(c, out, length)) return -1;
    if (c->sent)
        keep(&gaps, &gap_count, &gap_size, (stamp_ns - c->last_ns) * 1e-3);
    else
        keep(&ttfts, &ttft_count, &ttft_size, (stamp_ns - c->asked_ns) * 1e-3);
    c->last_ns = stamp_ns;
    c->sent++;
    events_sent++;
    if (last) {
        requests_done++;
        last_end_ns = stamp_ns;
        if (!first_end_ns) first_end_ns = stamp_ns;
    }
    return last;
}

static int begin(Conn *c, const char *body, const char *path) {
    const char *tokens = strstr(body, "\"max_tokens\""), *newer = strstr(body, "\"max_completion_tokens\"");
    if (!tokens && newer) tokens = newer;
    c->tokens = 16;
    if (tokens && (tokens = strchr(tokens, ':'))) c->tokens = atoi(tokens + 1) > 0 ? atoi(tokens + 1) : 1;
    c->sent = 0;
    c->chat = strstr(path, "chat") != NULL;
    char out[512];
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        const char *commas = strstr(body, "\"prompt\":");
        int counted = 16;
        if (commas) commas += strspn(commas + 9, " ") + 9;
        if (commas && *commas == '[') { /* token ids: as many as there are */
            counted = 1;
            for (commas++; *commas && *commas != ']'; commas++) counted += *commas == ',';
        } else { /* one token a byte of the prompt, and 16 for a template */
            const char *text = strstr(body, "\"content\"");
            if (!text) text = strstr(body, "\"prompt\"");
            if (text && (text = strchr(text + 8, ':')) && (text = strchr(text, '"')))
                counted += (int)(strchr(text + 1, '"') - text - 1);
        }
        char json[256];
        int n = snprintf(json, sizeof json,
                         "{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":1,\"model\":\"bench\",\"choices\":[{\"index\":0,"
                         "\"text\":\"a\",\"message\":{\"role\":\"assistant\",\"content\":\"a\"},\"finish_reason\":\"stop\"}],"
                         "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":1,\"total_tokens\":%d}}",
                         counted, counted + 1);
        int length = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", n, json);
        return put(c, out, (size_t)length);
    }
    int length = snprintf(out, sizeof out,
                          "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                          "transfer-encoding: chunked\r\n\r\n");
    if (put(c, out, (size_t)length)) return -1;
    if (!gap_us && !ttft_us) {
        int done;
        while ((done = step(c)) == 0) {}
        return done < 0 ? -1 : 0;
    }
    schedule(c, now_ns(CLOCK_MONOTONIC) / 1000 + ttft_us);
    return 0;
}

static int parse(Conn *c, int64_t arrived_ns) {
    for (;;) {
        c->in[c->in_length] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return 0;
        size_t body = 0, head = (size_t)(end - c->in) + 4;
        char *length = strcasestr(c->in, "content-length:");
        if (length && length < end) body = (size_t)atol(length + 15);
        if (c->in_length < head + body) return 0;
        char path[256] = "";
        sscanf(c->in, "%*s %255s", path);
        char saved = c->in[head + body];
        c->in[head + body] = 0;
        c->asked_ns = arrived_ns;
        int bad;
        if (!strncmp(c->in, "GET", 3)) {
            const char *models = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1,\"owned_by\":\"vllm\",\"max_model_len\":131072}]}";
            char out[512];
            int n = snprintf(out, sizeof out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                             strlen(models), models);
            bad = put(c, out, (size_t)n);
        } else if (strstr(path, "tokenize")) {
            const char *none = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
            bad = put(c, none, strlen(none));
        } else
            bad = begin(c, c->in + head, path);
        if (bad) return -1;
        c->in[head + body] = saved;
        memmove(c->in, c->in + head + body, c->in_length - head - body);
        c->in_length -= head + body;
    }
}

static int receive(Conn *c) {
    if (c->in_size - c->in_length < 65536) {
        c->in_size = c->in_size ? c->in_size * 2 : BUFFER;
        c->in = realloc(c->in, c->in_size);
    }
    char control[64];
    struct iovec io = {c->in + c->in_length, c->in_size - c->in_length - 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(c->fd, &m, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
    if (n < 0) return 0;
    int64_t arrived_ns = now_ns(CLOCK_REALTIME);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    if (h && h->cmsg_type == SCM_TIMESTAMPNS) {
        struct timespec t;
        memcpy(&t, CMSG_DATA(h), sizeof t);
        arrived_ns = t.tv_sec * 1000000000LL + t.tv_nsec;
    }
    c->in_length += (size_t)n;
    return parse(c, arrived_ns);
}

static void flush(Conn *c) {
    ssize_t n = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL);
    if (n <= 0) return;
    memmove(c->out, c->out + n, c->out_length - (size_t)n);
    c->out_length -= (size_t)n;
    if (!c->out_length) {
        struct epoll_event e = {EPOLLIN, {.fd = c->fd}};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
    }
}

static int smaller(const void *a, const void *b) { return (*(float *)a > *(float *)b) - (*(float *)a < *(float *)b); }

static void summary(const char *name, float *list, size_t n) {
    double sum = 0;
    qsort(list, n, sizeof(float), smaller);
    for (size_t i = 0; i < n; i++) sum += list[i];
    printf("\"%s_us\": {\"n\": %zu, \"p50\": %.1f, \"p99\": %.1f, \"mean\": %.1f}, ", name, n, n ? list[n / 2] : 0.0,
           n ? list[(size_t)(n * 0.99)] : 0.0, n ? sum / n : 0.0);
}

static void stop(int signal) { (void)signal, stopping = 1; }

int main(int argc, char **argv) {
    if (argc < 3) return fprintf(stderr, "usage: emitter PORT SECONDS [TTFT_US GAP_US BURST_US]\n"), 2;
    double seconds = atof(argv[2]);
    if (argc > 3) ttft_us = atol(argv[3]);
    if (argc > 4) gap_us = atol(argv[4]);
    if (argc > 5) burst_us = atol(argv[5]);
    signal(SIGTERM, stop), signal(SIGINT, stop), signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    prctl(PR_SET_TIMERSLACK, 1000);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("listen"), 1;
    epoll_fd = epoll_create1(0);
    struct epoll_event e = {EPOLLIN, {.fd = listener}}, ready[256];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    int64_t end_ns = now_ns(CLOCK_MONOTONIC) + (int64_t)(seconds * 1e9);
    wheel_at = now_ns(CLOCK_MONOTONIC) / 1000 / SLOT_US;
    printf("ready\n"), fflush(stdout);
    while (!stopping && now_ns(CLOCK_MONOTONIC) < end_ns) {
        int64_t slot = now_ns(CLOCK_MONOTONIC) / 1000 / SLOT_US;
        int armed = 0;
        while (wheel_at <= slot) {
            Conn *c = wheel[wheel_at % SLOTS];
            wheel[wheel_at % SLOTS] = NULL;
            wheel_at++;
            while (c) {
                Conn *next = c->next;
                c->waiting = 0;
                if (c->fd < 0) drop(c);
                else {
                    int done = step(c);
                    if (done < 0) drop(c);
                    else if (!done) schedule(c, c->due_us + gap_us);
                }
                c = next;
            }
        }
        /* Sleep until the next slot that holds somebody, at most 5 ms. */
        int64_t wait_us = 5000;
        for (int ahead = 0; ahead < 50; ahead++)
            if (wheel[(wheel_at + ahead) % SLOTS]) {
                wait_us = (wheel_at + ahead) * SLOT_US - now_ns(CLOCK_MONOTONIC) / 1000;
                armed = 1;
                break;
            }
        if (wait_us < 0) wait_us = 0;
        if (armed || wait_us) {
            fd_set set;
            FD_ZERO(&set);
            FD_SET(epoll_fd, &set);
            struct timeval t = {0, wait_us};
            select(epoll_fd + 1, &set, NULL, NULL, &t);
        }
        int n = epoll_wait(epoll_fd, ready, 256, 0);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int accepted;
                while ((accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (accepted >= MAX_FD) { close(accepted); continue; }
                    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    setsockopt(accepted, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
                    Conn *c = calloc(1, sizeof(Conn));
                    c->fd = accepted;
                    conns[accepted] = c;
                    struct epoll_event one = {EPOLLIN, {.fd = accepted}};
                    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, accepted, &one);
                }
                continue;
            }
            Conn *c = conns[fd];
            if (!c) continue;
            if (ready[i].events & EPOLLOUT) flush(c);
            if (ready[i].events & ~EPOLLOUT && receive(c)) drop(c);
        }
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"cpu_s\": %.6f, \"events\": %lld, \"requests\": %lld, ",
           usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + 1e-6 * (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec),
           (long long)events_sent, (long long)requests_done);
    summary("ttft", ttfts, ttft_count);
    summary("gap", gaps, gap_count);
    printf("\"rps\": %.3f}\n", requests_done > 1 ? (requests_done - 1) / ((last_end_ns - first_end_ns) * 1e-9) : 0.0);
    return 0;
}
