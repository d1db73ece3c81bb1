/* A crowd of websocket clients in one process that costs next to nothing per frame, so that it is the server that is
 * measured. It checks each socket's sequence: every event carries `"n": "<number>"`, and its time `"at": "<seconds>"`
 * of CLOCK_MONOTONIC, which all processes of a machine share.
 *
 *     crowd <address> <port> <tls 0|1> <path> <speak> <sockets> <groups> <at once> <headers> <subscribe>
 *
 * speak      plain     one text with the group's name, answered "ok"
 *            socketio  Engine.IO 4 and a `groups` event, acknowledged
 *            carillon  version 2 of Carillon's protocol
 * sockets    socket i is in group i % groups
 * at once    handshakes under way at the beginning; coming back, each socket looks after itself
 * headers    what goes into the request besides the usual: lines that end in \r\n; a %d in it is the socket's number
 * subscribe  carillon: the value of "groups"; a %d in it is the group's number
 *
 * On stdout, one JSON object a line: {"ready": …} first, then one for each command on stdin:
 *     count <events> <patience>     until so many have come, or nothing for `patience` seconds
 *     idle <seconds>                answer pings
 *     resume <events> <patience>    as count; a socket that is closed comes back from its position, as clients do
 * Counting begins anew with each command but `resume`. `behind`: events that came after one with a later number, so
 * doubled or out of order; `skipped`: numbers that were passed over.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { AWAY, CONNECTING, TLS_SHAKES, UPGRADING, GREETING, SUBSCRIBING, LIVE };

struct client {
    int fd, group;
    enum state state;
    SSL *ssl;
    SSL_SESSION *session;
    unsigned char *rest; /* the beginning of a frame whose end has not come */
    size_t rest_size;
    long last;         /* number of the newest event */
    char position[64]; /* behind it */
    double at;         /* AWAY: when to come back */
    int attempts, asked_to_wait;
};

static struct sockaddr_in server;
static SSL_CTX *tls;
static const char *path, *headers, *subscribe;
static char speak; /* p, s or c */
static int count, groups, at_once;
static struct client *clients;
static int poll_fd, under_way, live, reconnects;

static long events, behind, skipped, closed, unrecovered, wire_bytes;
static double last_event;
static long closes_by_code[5000];

/* Latencies in steps of one per cent from a microsecond up. */
#define STEPS 2400
static long latencies[STEPS];

static unsigned char buffer[1 << 20];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    fprintf(stderr, "crowd: %s (%s)\n", what, strerror(errno));
    exit(1);
}

static int session_came(SSL *ssl, SSL_SESSION *session) {
    struct client *c = SSL_get_app_data(ssl);
    if (c->session) SSL_SESSION_free(c->session);
    c->session = session;
    return 1;
}

static void watch(struct client *c, int operation, unsigned what) {
    struct epoll_event event = {.events = what, .data.ptr = c};
    epoll_ctl(poll_fd, operation, c->fd, &event);
}

static void start(struct client *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("no more sockets: raise ulimit -n");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->rest_size = 0;
    c->asked_to_wait = -1;
    under_way++;
    c->state = CONNECTING;
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) fail("connect");
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void gone(struct client *c) {
    if (c->state == AWAY) return;
    if (c->state == LIVE) live--;
    else under_way--;
    close(c->fd);
    if (c->ssl) {
        SSL_set_shutdown(c->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN); /* or the session is not kept */
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    free(c->rest);
    c->rest = NULL;
    c->rest_size = 0;
    c->state = AWAY;
    closed++;
    /* As our clients do: what the server asked for, or full jitter. */
    double most = fmin(10, 0.5 * (1 << (c->attempts < 6 ? c->attempts : 6)));
    c->at = now() + (c->asked_to_wait >= 0 ? c->asked_to_wait / 1000.0 : drand48() * most);
    c->attempts++;
}

static void give(struct client *c, const void *data, size_t size) {
    /* Small, and the socket's buffer is empty: it goes out whole, or the socket is no good. */
    long written = c->ssl ? SSL_write(c->ssl, data, size) : send(c->fd, data, size, MSG_NOSIGNAL);
    if (written != (long)size) gone(c);
}

static void give_frame(struct client *c, int opcode, const char *text, size_t size) {
    unsigned char frame[8192];
    size_t head = 2;
    if (size > sizeof frame - 8) fail("a message to the server is too long");
    frame[0] = 0x80 | opcode;
    if (size < 126) frame[1] = 0x80 | size;
    else {
        frame[1] = 0x80 | 126;
        frame[2] = size >> 8;
        frame[3] = size & 255;
        head = 4;
    }
    memset(frame + head, 0, 4); /* a mask of zeros */
    memcpy(frame + head + 4, text, size);
    give(c, frame, head + 4 + size);
}

static void give_text(struct client *c, const char *text) { give_frame(c, 1, text, strlen(text)); }

static void upgrade(struct client *c) {
    char request[8192], lines[4096];
    snprintf(lines, sizeof lines, headers, (int)(c - clients));
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s\r\n",
                        path, speak == 'c' ? "Sec-WebSocket-Protocol: carillon.v2\r\n" : "", lines);
    c->state = UPGRADING;
    give(c, request, size);
}

static void ask(struct client *c) {
    char text[4096], wanted[3000];
    c->state = SUBSCRIBING;
    if (speak == 'p') snprintf(text, sizeof text, "g-%d", c->group);
    else if (speak == 's') snprintf(text, sizeof text, "420[\"groups\",[\"g-%d\"]]", c->group);
    else {
        snprintf(wanted, sizeof wanted, subscribe, c->group);
        if (*c->position)
            snprintf(text, sizeof text, "{\"groups\": %s, \"since\": \"%s\"}", wanted, c->position);
        else snprintf(text, sizeof text, "{\"groups\": %s}", wanted);
    }
    give_text(c, text);
}

static void subscribed(struct client *c) {
    c->state = LIVE;
    c->attempts = 0;
    under_way--;
    live++;
}

static char *find(const unsigned char *text, size_t size, const char *what) {
    return memmem(text, size, what, strlen(what));
}

static void heard(struct client *c, unsigned char *text, size_t size) {
    char *found;
    size_t head = size < 400 ? size : 400; /* where number and time stand */
    if (speak == 'c' && size > 14 && !memcmp(text, "{\"position\": \"", 14)) {
        char *end = memchr(text + 14, '"', size - 14);
        size_t length = end ? (size_t)(end - (char *)text - 14) : 0;
        if (length && length < sizeof c->position) {
            memcpy(c->position, text + 14, length);
            c->position[length] = 0;
        }
    }
    if ((found = find(text, head, "\"n\": \"")) || (found = find(text, head, "\"n\":\""))) {
        long number = strtol(strchr(found + 3, '"') + 1, NULL, 10);
        if (number <= c->last) behind++;
        else {
            skipped += (number - (c->last < 0 ? c->group - groups : c->last)) / groups - 1;
            c->last = number;
        }
        events++;
        last_event = now();
        if ((found = find(text, head, "\"at\": \"")) || (found = find(text, head, "\"at\":\""))) {
            double late = last_event - strtod(strchr(found + 4, '"') + 1, NULL);
            int step = late > 1e-6 ? log(late * 1e6) / log(1.01) : 0;
            latencies[step < STEPS ? step : STEPS - 1]++;
        }
        return;
    }
    if (speak == 's' && size == 1 && *text == '2') give_text(c, "3");
    else if (speak == 'c' && (found = find(text, size, "\"reconnect_after\": ")))
        c->asked_to_wait = atoi(found + 19);
    else if (speak == 'c' && find(text, size, "\"recovered\": ")) {
        if (find(text, size, "false")) unrecovered++;
        if (c->state == SUBSCRIBING) subscribed(c);
    } else if (c->state == GREETING) {
        if (speak == 's' && *text == '0') give_text(c, "40");
        else if (speak == 's' ? find(text, size, "\"sid\"") : find(text, size, "\"accept\": true")) ask(c);
    } else if (c->state == SUBSCRIBING && find(text, size, speak == 'c' ? "groups_current" : "ok")) {
        if (speak != 'c' || !*c->position) subscribed(c);
    }
}

/* Takes whole frames off the front; how many bytes they had. */
static size_t frames(struct client *c, unsigned char *data, size_t size) {
    size_t done = 0;
    while (size - done >= 2 && c->state != AWAY) {
        unsigned char *at = data + done;
        size_t head = 2, length = at[1] & 127;
        if (length == 126) {
            if (size - done < 4) break;
            head = 4;
            length = at[2] << 8 | at[3];
        } else if (length == 127) {
            if (size - done < 10) break;
            head = 10;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | at[i];
        }
        if (size - done < head + length) break;
        switch (at[0] & 15) {
        case 1: heard(c, at + head, length); break;
        case 8:
            if (length >= 2) {
                unsigned code = at[head] << 8 | at[head + 1];
                if (code < 5000) closes_by_code[code]++;
                give_frame(c, 8, (char *)at + head, 2);
            }
            gone(c);
            break;
        case 9: give_frame(c, 10, (char *)at + head, length); break;
        }
        done += head + length;
    }
    return done;
}

static void readable(struct client *c) {
    size_t size = c->rest_size;
    if (size) memcpy(buffer, c->rest, size);
    for (;;) {
        long got = c->ssl ? SSL_read(c->ssl, buffer + size, sizeof buffer - size)
                          : recv(c->fd, buffer + size, sizeof buffer - size, 0);
        if (got <= 0) {
            int again = c->ssl ? SSL_get_error(c->ssl, got) == SSL_ERROR_WANT_READ : got < 0 && errno == EAGAIN;
            if (!again) {
                gone(c);
                return;
            }
            break;
        }
        wire_bytes += got;
        size += got;
        if (c->state == UPGRADING) {
            unsigned char *end = memmem(buffer, size, "\r\n\r\n", 4);
            if (!end) continue;
            if (memcmp(buffer, "HTTP/1.1 101", 12)) {
                if (!reconnects) {
                    fprintf(stderr, "crowd: refused: %.*s\n", (int)(size < 300 ? size : 300), buffer);
                    exit(1);
                }
                gone(c);
                return;
            }
            size -= end + 4 - buffer;
            memmove(buffer, end + 4, size);
            c->state = GREETING;
            if (speak == 'p') ask(c);
        }
        size_t done = frames(c, buffer, size);
        if (c->state == AWAY) return;
        size -= done;
        memmove(buffer, buffer + done, size);
        if (!c->ssl || size > sizeof buffer / 2) break;
    }
    if (size > c->rest_size) c->rest = realloc(c->rest, size);
    if (size) memcpy(c->rest, buffer, size);
    else {
        free(c->rest);
        c->rest = NULL;
    }
    c->rest_size = size;
}

static void ready(struct client *c, unsigned what) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            if (!reconnects) {
                errno = error;
                fail("connect");
            }
            gone(c);
            return;
        }
        if (tls) {
            c->ssl = SSL_new(tls);
            SSL_set_app_data(c->ssl, c);
            SSL_set_fd(c->ssl, c->fd);
            SSL_set_tlsext_host_name(c->ssl, "localhost");
            if (c->session) SSL_set_session(c->ssl, c->session);
            c->state = TLS_SHAKES;
        } else {
            upgrade(c);
            if (c->state != AWAY) watch(c, EPOLL_CTL_MOD, EPOLLIN);
            return;
        }
    }
    if (c->state == TLS_SHAKES) {
        int done = SSL_connect(c->ssl);
        int error = SSL_get_error(c->ssl, done);
        if (done == 1) {
            upgrade(c);
            if (c->state != AWAY) watch(c, EPOLL_CTL_MOD, EPOLLIN);
        } else if (error == SSL_ERROR_WANT_READ) watch(c, EPOLL_CTL_MOD, EPOLLIN);
        else if (error != SSL_ERROR_WANT_WRITE) {
            if (!reconnects) fail("TLS");
            gone(c);
        }
        return;
    }
    if (what & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
}

static void turn(int milliseconds) {
    static struct epoll_event found[1024];
    int many = epoll_wait(poll_fd, found, 1024, milliseconds);
    for (int i = 0; i < many; i++) {
        struct client *c = found[i].data.ptr;
        if (c->state != AWAY) ready(c, found[i].events);
    }
}

static void come_back(void) {
    double time = now();
    for (int i = 0; i < count && (reconnects || under_way < at_once); i++)
        if (clients[i].state == AWAY && clients[i].at <= time) start(&clients[i]);
}

static double percentile(double part) {
    long all = 0, seen = 0;
    for (int i = 0; i < STEPS; i++) all += latencies[i];
    for (int i = 0; i < STEPS; i++)
        if ((seen += latencies[i]) && seen >= all * part) return pow(1.01, i + 0.5) / 1000; /* milliseconds */
    return 0;
}

static double processor(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void report(double back, double cpu) {
    printf("{\"events\": %ld, \"last\": %.6f, \"behind\": %ld, \"skipped\": %ld, \"closed\": %ld, "
           "\"unrecovered\": %ld, \"live\": %d, \"back\": %.3f, \"bytes\": %ld, \"cpu\": %.3f, \"p50\": %.4f, "
           "\"p90\": %.4f, \"p99\": %.4f, \"p100\": %.4f, \"codes\": {",
           events, last_event, behind, skipped, closed, unrecovered, live, back, wire_bytes, processor() - cpu,
           percentile(0.5), percentile(0.9), percentile(0.99), percentile(1));
    for (int code = 0, any = 0; code < 5000; code++)
        if (closes_by_code[code]) printf("%s\"%d\": %ld", any++ ? ", " : "", code, closes_by_code[code]);
    printf("}}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 11) fail("ten arguments: see the top of crowd.c");
    signal(SIGPIPE, SIG_IGN);
    server.sin_family = AF_INET;
    server.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) fail("the address is no IPv4 address");
    if (atoi(argv[3])) {
        tls = SSL_CTX_new(TLS_client_method());
        /* One machine, one second of life: what is measured is not who the server is. */
        SSL_CTX_set_verify(tls, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS);
        SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(tls, session_came);
    }
    path = argv[4];
    speak = *argv[5];
    count = atoi(argv[6]);
    groups = atoi(argv[7]);
    at_once = atoi(argv[8]);
    headers = argv[9];
    subscribe = argv[10];
    poll_fd = epoll_create1(0);
    clients = calloc(count, sizeof *clients);
    double began = now();
    for (int i = 0; i < count; i++) clients[i].group = i % groups, clients[i].last = -1;
    while (live < count) {
        come_back();
        turn(100);
        if (closed) fail("a socket was closed in the handshake");
        if (now() - began > 300) fail("the handshakes take too long");
    }
    printf("{\"ready\": %d, \"seconds\": %.4f, \"cpu\": %.3f}\n", live, now() - began, processor());
    fflush(stdout);

    char line[200];
    while (fgets(line, sizeof line, stdin)) {
        char what[20];
        double first = 0, patience = 0;
        if (sscanf(line, "%19s %lf %lf", what, &first, &patience) < 2) fail("no such command");
        int resuming = !strcmp(what, "resume");
        double cpu = processor();
        if (!resuming) {
            events = behind = skipped = closed = unrecovered = wire_bytes = 0;
            memset(latencies, 0, sizeof latencies);
            memset(closes_by_code, 0, sizeof closes_by_code);
            for (int i = 0; i < count; i++) clients[i].last = -1;
        }
        printf("{\"began\": %.6f}\n", began = now());
        fflush(stdout);
        double back = 0;
        if (!strcmp(what, "idle")) {
            while (now() - began < first) turn(50);
        } else {
            reconnects = resuming;
            long before = -1;
            double heard_at = now();
            int whole = !resuming;
            while (events < first || !whole) {
                turn(20);
                if (resuming) {
                    come_back();
                    if (!whole && closed >= count && live == count) whole = 1, back = now();
                }
                if (events != before) before = events, heard_at = now();
                else if (now() - heard_at > patience) break;
            }
        }
        report(back, cpu);
    }
    return 0;
}
