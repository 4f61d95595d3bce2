/* Preloaded, it makes each fsync and fdatasync take as long as SLOWSYNC says, in microseconds, as on a slower disk. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int slowed(const char *name, int descriptor)
{
    int (*sync)(int) = (int (*)(int)) dlsym(RTLD_NEXT, name);
    const char *wanted = getenv("SLOWSYNC");
    struct timespec until;
    int result, error;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (wanted ? atol(wanted) : 0) * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    result = sync(descriptor);
    error = errno;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
    errno = error;
    return result;
}

int fsync(int descriptor)
{
    return slowed("fsync", descriptor);
}

int fdatasync(int descriptor)
{
    return slowed("fdatasync", descriptor);
}
