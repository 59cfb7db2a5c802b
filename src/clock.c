/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  Which clock is asked for what.
 *
 * How long something takes is measured by a clock that nobody sets: intervals,
 * timeouts, when the worker looks next.  What has a date is told by the wall
 * clock, which may jump: expiry, the history, rates (see
 * ak_rate_follow_clock()).  The periods of quotas go by the wall clock too,
 * but never back.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "portability/instr_time.h"

#include "apikeys.h"

/*
 * Microseconds since some moment in the past, the same one for all processes
 * of the server.  Unlike the wall clock it never jumps.
 */
int64
ak_elapsed(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MICROSEC(now);
}

/* From now until then, in ms, rounded up; 0 if it has come. */
long
ak_ms_until(int64 elapsed)
{
	int64		left = elapsed - ak_elapsed();

	return left <= 0 ? 0 : Min((left + 999) / 1000, INT_MAX);
}

/*
 * The time by which periods are chosen: the wall clock, but never back by more
 * than a second, lest a clock that is set back reopen a period that is over.
 */
TimestampTz
ak_database_clock(AkDatabase *db, TimestampTz now)
{
	uint64		seen = pg_atomic_read_u64(&db->seen);

	while (now > (TimestampTz) seen + USECS_PER_SEC)
		if (pg_atomic_compare_exchange_u64(&db->seen, &seen, (uint64) now))
			return now;
	return Max(now, (TimestampTz) seen);
}
