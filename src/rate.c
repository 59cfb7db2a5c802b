/*-------------------------------------------------------------------------
 *
 * rate.c
 *	  Rates: the arithmetic of the generic cell rate algorithm (ITU-T I.371).
 *
 * A rate's whole state is one number, the theoretical arrival time (TAT) of
 * the next request: each request moves it on by one emission interval, from
 * now at the earliest, and may move it no further than burst emission
 * intervals ahead of now.  So a burst passes at once, after it one request an
 * emission interval, and there is no edge of a window at which twice as many
 * pass.
 *
 * Times are nanoseconds since 2000, in 64 bits.  The emission interval is
 * rounded up to a nanosecond; the burst is a multiple of it, so that exactly
 * burst requests pass at once.
 *
 * What is given back late has in part come back by itself, as time went by, and
 * others may have used it since.  So it counts only as far as it cannot have:
 * what is kept in the end has passed as if the rest had never been asked for, or
 * later, but never sooner.
 *
 * A rate is not written down while it is used: after a crash it counts as used
 * up at the moment of the crash, and fills again from there.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "apikeys.h"

#define NS_PER_USEC INT64CONST(1000)

/* The longest time that a rate may take to fill: a century. */
#define FILL_MAX (INT64CONST(36525) * USECS_PER_DAY * NS_PER_USEC)

/*
 * A rate of so many requests per period.  False if it cannot be computed with:
 * amount and burst at least 1, the period positive and without months, no more
 * than a request a nanosecond, and full again within a century.
 */
bool
ak_rate_make(int64 amount, const Interval *period, int64 burst, AkRate *rate)
{
	int64		usecs;

	if (amount < 1 || burst < 1 || period->month != 0 ||
		period->day > 36525 || period->day < -36525 ||
		period->time > FILL_MAX / NS_PER_USEC ||
		period->time < -FILL_MAX / NS_PER_USEC)
		return false;
	usecs = period->day * USECS_PER_DAY + period->time;
	if (usecs <= 0 || usecs > FILL_MAX / NS_PER_USEC ||
		amount > usecs * NS_PER_USEC)
		return false;
	rate->amount = amount;
	rate->period = usecs;
	rate->emission = (usecs * NS_PER_USEC - 1) / amount + 1;
	rate->burst = burst;
	return burst <= FILL_MAX / rate->emission;
}

/* Where the meter keeps a subject's rate: by its name, whoever sets it. */
void
ak_rate_key(MeterKey *key, const char *name)
{
	key->period = AK_RATE;
	key->period_start = hash_bytes_extended((const unsigned char *) name,
											strlen(name), 0);
}

/*
 * How far ahead of now the arrival time is: no further than a burst that was
 * used up, since the rate may have been another one when it was set.
 */
static int64
ahead_of(const AkRate *rate, int64 arrival, TimestampTz now)
{
	int64		ahead = arrival - now * NS_PER_USEC;

	return Min(Max(ahead, 0), rate->burst * rate->emission);
}

/* Whether a request of some cost may pass. */
bool
ak_rate_admits(const AkRate *rate, int64 arrival, int64 cost, TimestampTz now)
{
	if (cost > rate->burst)
		return false;
	return ahead_of(rate, arrival, now) <= (rate->burst - cost) * rate->emission;
}

/* The arrival time after a request that passes. */
int64
ak_rate_charge(const AkRate *rate, int64 arrival, int64 cost, TimestampTz now)
{
	return now * NS_PER_USEC + ahead_of(rate, arrival, now) +
		cost * rate->emission;
}

/*
 * How far the arrival time moves back at the end of a request that could be
 * given back, of whose cost "used" is kept.
 *
 * Had it cost only that, the arrival time would be sooner by the rest, or by as
 * little as the least that any request since has found ahead of itself.  That is
 * no less than what is still to come of the arrival time that the request left
 * behind; of it, the caller has taken off what was given back since, or knows
 * nothing (0), but the request's own time it left behind at least.
 */
int64
ak_rate_settle(const AkRate *rate, int64 cost, int64 used,
			   TimestampTz charged_at, int64 arrival_then, TimestampTz now)
{
	int64		own = charged_at * NS_PER_USEC + cost * rate->emission;
	int64		to_come = Max(arrival_then, own) - now * NS_PER_USEC;

	return Min((cost - used) * rate->emission, Max(to_come, 0));
}

/* How many requests would pass at once. */
int64
ak_rate_remaining(const AkRate *rate, int64 arrival, TimestampTz now)
{
	return rate->burst - (ahead_of(rate, arrival, now) + rate->emission - 1) /
		rate->emission;
}

static TimestampTz
to_usecs(int64 ns)
{
	return (ns + NS_PER_USEC - 1) / NS_PER_USEC;
}

/* When the whole burst can pass again. */
TimestampTz
ak_rate_full_at(const AkRate *rate, int64 arrival, TimestampTz now)
{
	return now + to_usecs(ahead_of(rate, arrival, now));
}

/* Whether that is now, whatever the rate. */
bool
ak_rate_is_full(int64 arrival, TimestampTz now)
{
	return arrival <= now * NS_PER_USEC;
}

/* When a request of some cost, at most the burst, can pass. */
TimestampTz
ak_rate_retry_at(const AkRate *rate, int64 arrival, int64 cost, TimestampTz now)
{
	return now + to_usecs(Max(ahead_of(rate, arrival, now) -
							  (rate->burst - cost) * rate->emission, 0));
}

/* The arrival time of a rate that was used up at a crash. */
int64
ak_rate_after_crash(const AkRate *rate, TimestampTz crash)
{
	return crash == DT_NOBEGIN ? 0 :
		crash * NS_PER_USEC + rate->burst * rate->emission;
}
