/*-------------------------------------------------------------------------
 *
 * backend.c
 *	  What the files that are fuzzed call of the server.
 *
 * Memory comes from malloc(), chunk by chunk, so that AddressSanitizer knows
 * the end of each.  An error jumps to PG_CATCH(), as in the server.  Locks do
 * nothing: there is one process.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lwlock.h"
#include "utils/backend_status.h"
#include "utils/inet.h"
#include "utils/timestamp.h"

#include <arpa/inet.h>

#include "fuzz.h"

/* ----- inputs ----- */

uint64
fuzz_number(FuzzInput *input, int bytes)
{
	uint64		number = 0;

	for (int i = 0; i < bytes && input->size > 0; i++)
	{
		number = number << 8 | *input->data++;
		input->size--;
	}
	return number;
}

uint64
fuzz_below(FuzzInput *input, uint64 limit)
{
	return fuzz_number(input, limit > 256 ? 4 : 1) % limit;
}

char *
fuzz_copy(const void *data, size_t length)
{
	char	   *copy = palloc(length);

	memcpy(copy, data, length);
	return copy;
}

char *
fuzz_string(const void *data, size_t length)
{
	char	   *copy = palloc(length + 1);

	memcpy(copy, data, length);
	copy[length] = '\0';
	return copy;
}

uint32
fuzz_crc32(const void *data, size_t length)
{
	uint32		crc = 0xffffffff;

	for (size_t i = 0; i < length; i++)
		for (int bit = 0; bit < 8; bit++)
		{
			bool		odd = (crc ^ (((const uint8 *) data)[i] >> bit)) & 1;

			crc = (crc >> 1) ^ (odd ? 0xedb88320 : 0);
		}
	return crc ^ 0xffffffff;
}

/* ----- memory ----- */

static void **chunks;
static int	nchunks;
static int	maxchunks;

void *
palloc(Size size)
{
	void	   *chunk = malloc(size);

	CHECK(chunk != NULL || size == 0);
	if (nchunks == maxchunks)
	{
		maxchunks = maxchunks * 2 + 64;
		chunks = realloc(chunks, maxchunks * sizeof(void *));
		CHECK(chunks != NULL);
	}
	chunks[nchunks++] = chunk;
	return chunk;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void *
repalloc(void *pointer, Size size)
{
	for (int i = nchunks - 1; i >= 0; i--)
		if (chunks[i] == pointer)
			return chunks[i] = realloc(pointer, size);
	abort();
}

void
pfree(void *pointer)
{
	for (int i = nchunks - 1; i >= 0; i--)
		if (chunks[i] == pointer)
		{
			free(pointer);
			chunks[i] = chunks[--nchunks];
			return;
		}
	abort();
}

char *
pstrdup(const char *string)
{
	return fuzz_string(string, strlen(string));
}

void
fuzz_end(void)
{
	while (nchunks > 0)
		free(chunks[--nchunks]);
}

/* ----- errors ----- */

sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;
emit_log_hook_type emit_log_hook = NULL;

bool
errstart(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return elevel >= ERROR;
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	CHECK(PG_exception_stack != NULL);
	siglongjmp(*PG_exception_stack, 1);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

int
errmsg(const char *format,...)
{
	return 0;
}

int
errmsg_internal(const char *format,...)
{
	return 0;
}

/* ----- the rest ----- */

void	   *UsedShmemSegAddr = NULL;
int			pgstat_track_activity_query_size = 1024;

bool
LWLockAcquire(LWLock *lock, LWLockMode mode)
{
	return true;
}

void
LWLockRelease(LWLock *lock)
{
}

/* Not random, so that an input always does the same. */
bool
pg_strong_random(void *buffer, size_t length)
{
	static uint64 state = 0;

	for (size_t i = 0; i < length; i++)
	{
		state = state * UINT64CONST(6364136223846793005) + 1442695040888963407;
		((uint8 *) buffer)[i] = state >> 56;
	}
	return true;
}

/* Full addresses only; PostgreSQL reads abbreviated networks as well. */
int
pg_inet_net_pton(int family, const char *text, void *address, size_t size)
{
	bool		is_ip4 = family == PGSQL_AF_INET;
	size_t		length = strcspn(text, "/");
	int			bits = is_ip4 ? 32 : 128;
	char		host[64];

	if (length >= sizeof(host))
		return -1;
	memcpy(host, text, length);
	host[length] = '\0';
	if (text[length] == '/')
	{
		size_t		digits = strspn(text + length + 1, "0123456789");

		if (digits < 1 || digits > 3 || text[length + 1 + digits] != '\0' ||
			atoi(text + length + 1) > bits)
			return -1;
		bits = atoi(text + length + 1);
	}
	return inet_pton(is_ip4 ? AF_INET : AF_INET6, host, address) == 1 ? bits : -1;
}

int
bitncmp(const unsigned char *a, const unsigned char *b, int n)
{
	int			whole = memcmp(a, b, n / 8);

	if (whole != 0 || n % 8 == 0)
		return whole;
	return (a[n / 8] >> (8 - n % 8)) - (b[n / 8] >> (8 - n % 8));
}

/* Days since 2000-01-01 of the first of a month; months count from year 0. */
static int64
days_to(int64 month)
{
	static const int before[12] =
	{0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
	int64		year = month >= 0 ? month / 12 : (month - 11) / 12;
	int			within = month - year * 12;
	int64		last = (within < 2 ? year - 1 : year) + 8000;	/* leap day */

	return year * 365 + before[within] +
		last / 4 - last / 100 + last / 400 - (8000 / 4 - 8000 / 100 + 8000 / 400) -
		(2000 * 365 + 485);
}

/* In UTC. */
int
timestamp2tm(Timestamp at, int *tzp, struct pg_tm *tm, fsec_t *fsec,
			 const char **tzn, pg_tz *zone)
{
	int64		day = at / USECS_PER_DAY;
	int64		time = at % USECS_PER_DAY;
	int64		month;

	if (time < 0)
	{
		time += USECS_PER_DAY;
		day--;
	}
	month = 2000 * 12 + day * 4800 / 146097;	/* that is 400 years */
	while (days_to(month) > day)
		month--;
	while (days_to(month + 1) <= day)
		month++;
	tm->tm_year = month >= 0 ? month / 12 : (month - 11) / 12;
	tm->tm_mon = month - tm->tm_year * 12 + 1;
	tm->tm_mday = day - days_to(month) + 1;
	tm->tm_hour = time / USECS_PER_HOUR;
	tm->tm_min = time / USECS_PER_MINUTE % MINS_PER_HOUR;
	tm->tm_sec = time / USECS_PER_SEC % SECS_PER_MINUTE;
	*fsec = time % USECS_PER_SEC;
	return 0;
}

int
tm2timestamp(struct pg_tm *tm, fsec_t fsec, int *tzp, Timestamp *result)
{
	int64		day = days_to(tm->tm_year * (int64) 12 + tm->tm_mon - 1) +
		tm->tm_mday - 1;

	if (day < MIN_TIMESTAMP / USECS_PER_DAY || day >= END_TIMESTAMP / USECS_PER_DAY)
		return -1;
	*result = day * USECS_PER_DAY + tm->tm_hour * USECS_PER_HOUR +
		tm->tm_min * USECS_PER_MINUTE + tm->tm_sec * USECS_PER_SEC + fsec;
	return 0;
}

pg_time_t
timestamptz_to_time_t(TimestampTz at)
{
	return at / USECS_PER_SEC + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

const int	day_tab[2][13] =
{
	{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0},
	{31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31, 0}
};
