/* What Berkeley DB is to call in place of the system: each fails as told, for files whose path has a part in it. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static char wanted[256];
static int kinds, number, left;

enum { READS = 1, WRITES = 2, SYNCS = 4, OPENS = 8 };

void fail(const char *part, int which, int error, int after)
{
    strncpy(wanted, part, sizeof wanted - 1);
    kinds = which;
    number = error;
    left = after;
}

static int fails_path(const char *path, int kind)
{
    if (!(kinds & kind) || !strstr(path, wanted) || left-- > 0)
        return 0;
    left = 0;
    errno = number;
    return 1;
}

static int fails(int descriptor, int kind)
{
    char link[64], path[4096];
    ssize_t length;

    if (!kinds)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return fails_path(path, kind);
}

ssize_t failing_pread(int descriptor, void *data, size_t size, off_t offset)
{
    return fails(descriptor, READS) ? -1 : pread(descriptor, data, size, offset);
}

ssize_t failing_read(int descriptor, void *data, size_t size)
{
    return fails(descriptor, READS) ? -1 : read(descriptor, data, size);
}

ssize_t failing_pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    return fails(descriptor, WRITES) ? -1 : pwrite(descriptor, data, size, offset);
}

ssize_t failing_write(int descriptor, const void *data, size_t size)
{
    return fails(descriptor, WRITES) ? -1 : write(descriptor, data, size);
}

int failing_fsync(int descriptor)
{
    return fails(descriptor, SYNCS) ? number : fdatasync(descriptor) ? errno : 0;
}

int failing_open(const char *path, int flags, int mode)
{
    return fails_path(path, OPENS) ? -1 : open(path, flags, mode);
}
