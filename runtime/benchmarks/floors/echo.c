/* Copyright (c) edgeml.fleet contributors
 * SPDX-License-Identifier: Apache-2.0
 *
 * The floor of transport: an HTTP/1.1 server that reads a request with its Content-Length and sends one canned
 * answer. One thread, epoll, loopback only. Usage: echo PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 64, CONNECTIONS = 1024, HEADER_BYTES = 4096, READ_BYTES = 256 * 1024 };

static const char answer[] = "HTTP/1.1 200 OK\r\n"
                             "content-type: application/json\r\n"
                             "content-length: 93\r\n\r\n"
                             "{\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[1,3],"
                             "\"data\":[0.125000,0.250000,0.62500]}]}";

struct connection {
    size_t header_length;       /* bytes of the header read so far */
    size_t body_left;           /* bytes of the body still to come */
    char header[HEADER_BYTES + 1];
};

static struct connection connections[CONNECTIONS];
static char buffer[READ_BYTES];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int respond(int descriptor) {
    return send(descriptor, answer, sizeof answer - 1, MSG_NOSIGNAL) == (ssize_t)(sizeof answer - 1) ? 0 : -1;
}

/* Take in what has arrived; no pipelining: h2load sends none. */
static int take(int descriptor, const char *data, size_t length) {
    struct connection *one = &connections[descriptor];
    if (one->body_left == 0) {
        if (one->header_length + length > HEADER_BYTES) {
            /* Header and the first part of a large body came in one read: only the header is kept. */
            size_t room = HEADER_BYTES - one->header_length;
            memcpy(one->header + one->header_length, data, room);
            one->header[HEADER_BYTES] = 0;
        } else {
            memcpy(one->header + one->header_length, data, length);
            one->header[one->header_length + length] = 0;
        }
        char *end = strstr(one->header, "\r\n\r\n");
        if (!end) {
            one->header_length += length;
            return one->header_length < HEADER_BYTES ? 0 : -1;
        }
        size_t header_here = (size_t)(end + 4 - one->header) - one->header_length;
        char *field = strcasestr(one->header, "\r\ncontent-length:");
        one->body_left = field && field < end ? strtoul(field + 17, NULL, 10) : 0;
        one->header_length = 0;
        length -= header_here;
    }
    if (length > one->body_left)
        return -1;
    one->body_left -= length;
    return one->body_left == 0 ? respond(descriptor) : 0;
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: echo PORT\n");
        return 2;
    }
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128))
        fail("listen");
    int poll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event))
        fail("epoll");
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int index = 0; index < ready; index++) {
            int descriptor = events[index].data.fd;
            if (descriptor == listener) {
                int accepted = accept(listener, NULL, NULL);
                if (accepted < 0 || accepted >= CONNECTIONS) {
                    close(accepted);
                    continue;
                }
                setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                memset(&connections[accepted], 0, sizeof connections[accepted]);
                event.data.fd = accepted;
                epoll_ctl(poll, EPOLL_CTL_ADD, accepted, &event);
                continue;
            }
            ssize_t length = recv(descriptor, buffer, sizeof buffer, 0);
            if (length <= 0 || take(descriptor, buffer, (size_t)length))
                close(descriptor);
        }
    }
}
