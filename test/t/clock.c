/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  A wall clock that a test can set while a server runs.
 *
 * Preloaded into the server.  The file named by APIKEYS_TEST_CLOCK holds how
 * far the clock is off, in seconds, as 64 bits in the machine's order; whoever
 * writes it sets the clock of all processes at once.  If 64 more bits follow that
 * are not 0, the clock stands still there, in microseconds since 1970.  The
 * monotonic clock is left alone.
 *
 * libfaketime would do, were it not that it leaves those processes unfaked that
 * a signal handler forks out of select(), as the postmaster of PostgreSQL 15
 * forks background workers.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

#define STANDS_AT offset[1]

__attribute__((constructor)) static void
map_offset(void)
{
	const char *path = getenv("APIKEYS_TEST_CLOCK");
	int			fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void	   *map = fd < 0 ? MAP_FAILED :
		mmap(NULL, 2 * sizeof(*offset), PROT_READ, MAP_SHARED, fd, 0);

	if (map == MAP_FAILED)
		abort();
	close(fd);
	offset = map;
}

int
clock_gettime(clockid_t id, struct timespec *ts)
{
	int			result = syscall(SYS_clock_gettime, id, ts);

	if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
	{
		int64_t		at = STANDS_AT;

		ts->tv_sec = at != 0 ? at / 1000000 : ts->tv_sec + *offset;
		if (at != 0)
			ts->tv_nsec = at % 1000000 * 1000;
	}
	return result;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *at)
{
	struct timespec ts;

	if (clock_gettime(CLOCK_REALTIME, &ts) != 0)
		return -1;
	if (at != NULL)
		*at = ts.tv_sec;
	return ts.tv_sec;
}
