/* Counts the file operations of a process below given folders, and kills the process or fails the operation at a chosen one.
 *
 * Loaded with LD_PRELOAD; does nothing until `drill_arm` is called. Python, safetensors (Rust) and Arrow (C++) all write through these
 * functions of libc. Reads are never counted. `connect` and `getaddrinfo` refuse every address except the loopback interface, and log it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NOTHING, COUNT, KILL, FAIL_ONCE, FAIL_FROM_HERE };

#define ROOTS 16
static char roots[ROOTS][PATH_MAX];
static int number_of_roots;
static _Atomic int action = NOTHING;
static _Atomic long events;
static long target;
static int error_number;
static int log_file = -1;

#define REAL(name) ({ \
    static __typeof__(&name) real_; \
    if (!real_) real_ = (__typeof__(&name)) dlsym(RTLD_NEXT, #name); \
    real_; \
})

/* Write a line of the log. One call of write, so that threads do not mix their lines. */
static void note(const char *kind, const char *path) {
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%s\t%s\n", kind, path);
    if (log_file >= 0 && size > 0) syscall(SYS_write, log_file, line, (size_t)size < sizeof line ? (size_t)size : sizeof line - 1);
}

static void path_of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
}

static void absolute(int folder, const char *name, char *path) {
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    char parent[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(parent, sizeof parent)) parent[0] = 0;
    } else path_of_descriptor(folder, parent);
    if ((size_t)snprintf(path, PATH_MAX, "%s/%s", parent, name) >= PATH_MAX) path[PATH_MAX - 1] = 0;
}

static int is_watched(const char *path) {
    for (int i = 0; i < number_of_roots; i++) {
        size_t size = strlen(roots[i]);
        if (!strncmp(path, roots[i], size) && (path[size] == 0 || path[size] == '/')) return 1;
    }
    return 0;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Count an operation. Return whether it is the chosen one (or a later one that fails too); a chosen one with KILL does not return unless
 * `torn`, which lets the caller write a part first. `grows`: the operation needs space, which a full disk refuses. */
static int event(const char *kind, const char *path, int grows, int torn) {
    if (action == NOTHING || !is_watched(path)) return 0;
    long number = atomic_fetch_add(&events, 1) + 1;
    note(kind, path);
    switch (action) {
        case KILL:
            if (number != target) return 0;
            if (torn) return 1;
            die();
            return 0;
        case FAIL_ONCE:
            return number == target;
        case FAIL_FROM_HERE:
            return number >= target && grows;
        default:
            return 0;
    }
}

static int failed(void) {
    errno = error_number;
    return -1;
}

#define CHECK_AT(kind, folder, name, grows) \
    do { \
        char path_[PATH_MAX]; \
        if (action != NOTHING) { \
            absolute(folder, name, path_); \
            if (event(kind, path_, grows, 0)) return failed(); \
        } \
    } while (0)

#define CHECK_DESCRIPTOR(kind, descriptor, grows) \
    do { \
        char path_[PATH_MAX]; \
        if (action != NOTHING) { \
            path_of_descriptor(descriptor, path_); \
            if (event(kind, path_, grows, 0)) return failed(); \
        } \
    } while (0)

/* Called once in the process under test. Roots are separated by newlines. */
void drill_arm(const char *folders, long chosen, int what, int error, int log) {
    number_of_roots = 0;
    while (*folders && number_of_roots < ROOTS) {
        size_t size = strcspn(folders, "\n");
        memcpy(roots[number_of_roots], folders, size);
        roots[number_of_roots++][size] = 0;
        folders += size + (folders[size] == '\n');
    }
    events = 0;
    target = chosen;
    error_number = error;
    log_file = log;
    action = what;
}

/* Creation */

#define OPENED(function, folder, name, flags, call) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    } \
    if ((flags) & (O_CREAT | O_TRUNC)) CHECK_AT("create", folder, name, 1); \
    return call

int open(const char *name, int flags, ...) { OPENED(open, AT_FDCWD, name, flags, REAL(open)(name, flags, mode)); }
int open64(const char *name, int flags, ...) { OPENED(open64, AT_FDCWD, name, flags, REAL(open64)(name, flags, mode)); }
int openat(int folder, const char *name, int flags, ...) { OPENED(openat, folder, name, flags, REAL(openat)(folder, name, flags, mode)); }
int openat64(int folder, const char *name, int flags, ...) { OPENED(openat64, folder, name, flags, REAL(openat64)(folder, name, flags, mode)); }

int creat(const char *name, mode_t mode) { CHECK_AT("create", AT_FDCWD, name, 1); return REAL(creat)(name, mode); }
int creat64(const char *name, mode_t mode) { CHECK_AT("create", AT_FDCWD, name, 1); return REAL(creat64)(name, mode); }

static int is_for_writing(const char *mode) { return strpbrk(mode, "wa") != NULL; }

FILE *fopen(const char *name, const char *mode) {
    char path[PATH_MAX];
    if (action != NOTHING && is_for_writing(mode)) {
        absolute(AT_FDCWD, name, path);
        if (event("create", path, 1, 0)) { failed(); return NULL; }
    }
    return REAL(fopen)(name, mode);
}

FILE *fopen64(const char *name, const char *mode) {
    char path[PATH_MAX];
    if (action != NOTHING && is_for_writing(mode)) {
        absolute(AT_FDCWD, name, path);
        if (event("create", path, 1, 0)) { failed(); return NULL; }
    }
    return REAL(fopen64)(name, mode);
}

int mkdir(const char *name, mode_t mode) { CHECK_AT("mkdir", AT_FDCWD, name, 1); return REAL(mkdir)(name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) { CHECK_AT("mkdir", folder, name, 1); return REAL(mkdirat)(folder, name, mode); }
int link(const char *from, const char *to) { CHECK_AT("link", AT_FDCWD, to, 1); return REAL(link)(from, to); }
int linkat(int a, const char *from, int b, const char *to, int flags) { CHECK_AT("link", b, to, 1); return REAL(linkat)(a, from, b, to, flags); }
int symlink(const char *from, const char *to) { CHECK_AT("link", AT_FDCWD, to, 1); return REAL(symlink)(from, to); }
int symlinkat(const char *from, int b, const char *to) { CHECK_AT("link", b, to, 1); return REAL(symlinkat)(from, b, to); }

/* Writing. A killed write, and the first failed one, write half of the bytes, as a full disk does. */

static int torn_write(const char *kind, int descriptor) {
    char path[PATH_MAX];
    if (action == NOTHING) return 0;
    path_of_descriptor(descriptor, path);
    return event(kind, path, 1, 1);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    if (descriptor > 2 && torn_write("write", descriptor)) {
        long half = (long)size / 2;
        int first = events == target;
        if (half && first) {
            ssize_t done = REAL(write)(descriptor, data, half);
            if (action == KILL) die();
            if (action == FAIL_FROM_HERE) return done;
        }
        if (action == KILL) die();
        return failed();
    }
    return REAL(write)(descriptor, data, size);
}

#define WHOLE(descriptor) \
    if (torn_write("write", descriptor)) { \
        if (action == KILL) die(); \
        return failed(); \
    }

ssize_t pwrite(int d, const void *data, size_t size, off_t offset) { WHOLE(d) return REAL(pwrite)(d, data, size, offset); }
ssize_t pwrite64(int d, const void *data, size_t size, off64_t offset) { WHOLE(d) return REAL(pwrite64)(d, data, size, offset); }
ssize_t writev(int d, const struct iovec *parts, int count) { WHOLE(d) return REAL(writev)(d, parts, count); }
ssize_t pwritev(int d, const struct iovec *parts, int count, off_t offset) { WHOLE(d) return REAL(pwritev)(d, parts, count, offset); }
ssize_t sendfile(int d, int from, off_t *offset, size_t count) { WHOLE(d) return REAL(sendfile)(d, from, offset, count); }
ssize_t sendfile64(int d, int from, off64_t *offset, size_t count) { WHOLE(d) return REAL(sendfile64)(d, from, offset, count); }
ssize_t copy_file_range(int from, off64_t *a, int d, off64_t *b, size_t size, unsigned flags) {
    WHOLE(d) return REAL(copy_file_range)(from, a, d, b, size, flags);
}
int ftruncate(int d, off_t size) { CHECK_DESCRIPTOR("write", d, 1); return REAL(ftruncate)(d, size); }
int ftruncate64(int d, off64_t size) { CHECK_DESCRIPTOR("write", d, 1); return REAL(ftruncate64)(d, size); }
int truncate(const char *name, off_t size) { CHECK_AT("write", AT_FDCWD, name, 1); return REAL(truncate)(name, size); }
int posix_fallocate(int d, off_t start, off_t size) { CHECK_DESCRIPTOR("write", d, 1); return REAL(posix_fallocate)(d, start, size); }

/* Syncing */

int fsync(int descriptor) { CHECK_DESCRIPTOR("sync", descriptor, 0); return REAL(fsync)(descriptor); }
int fdatasync(int descriptor) { CHECK_DESCRIPTOR("sync", descriptor, 0); return REAL(fdatasync)(descriptor); }

/* Renaming and removing */

int rename(const char *from, const char *to) { CHECK_AT("rename", AT_FDCWD, to, 0); return REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { CHECK_AT("rename", b, to, 0); return REAL(renameat)(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    CHECK_AT("rename", b, to, 0);
    return REAL(renameat2)(a, from, b, to, flags);
}
int unlink(const char *name) { CHECK_AT("unlink", AT_FDCWD, name, 0); return REAL(unlink)(name); }
int unlinkat(int folder, const char *name, int flags) { CHECK_AT("unlink", folder, name, 0); return REAL(unlinkat)(folder, name, flags); }
int rmdir(const char *name) { CHECK_AT("unlink", AT_FDCWD, name, 0); return REAL(rmdir)(name); }

/* Network: loopback only */

static int is_elsewhere(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) return (ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24) != 127;
    if (address->sa_family == AF_INET6) return !IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
    return 0;
}

int connect(int socket, const struct sockaddr *address, socklen_t size) {
    if (action != NOTHING && is_elsewhere(address)) {
        note("network", "connect");
        errno = ENETUNREACH;
        return -1;
    }
    return REAL(connect)(socket, address, size);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    if (action != NOTHING && node && strcmp(node, "localhost") && strncmp(node, "127.", 4) && strcmp(node, "::1")) {
        note("network", node);
        return EAI_FAIL;
    }
    return REAL(getaddrinfo)(node, service, hints, result);
}
