/*-------------------------------------------------------------------------
 *
 * rate_fuzz.c
 *	  Fuzz rates and periods (src/rate.c, src/period.c, src/credits.c).
 *
 * An input is the numbers of a limit and the times of requests.  What rates
 * admit is compared with the same in 128 bits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "apikeys.h"
#include "fuzz.h"

/* In 2191: 64 bits of nanoseconds end in 2292, and a rate fills in a century. */
#define NOW_MAX (INT64CONST(70000) * USECS_PER_DAY)

extern Datum apikeys_is_refill(PG_FUNCTION_ARGS);

/* What is asked for, and what of it is out of range. */
static void
fuzz_interval(FuzzInput *input, Interval *interval)
{
	int			kind = fuzz_below(input, 4);

	memset(interval, 0, sizeof(Interval));
	if (kind == 0)
	{
		interval->month = fuzz_number(input, 4);
		interval->day = fuzz_number(input, 4);
		interval->time = fuzz_number(input, 8);
	}
	else if (kind == 1)
		interval->month = fuzz_below(input, 1300);
	else if (kind == 2)
		interval->day = fuzz_below(input, 40000);
	else
		interval->time = fuzz_below(input, 1 << 20) *
			(fuzz_below(input, 2) ? USECS_PER_SEC : 1);
}

static void
try_rate(FuzzInput *input)
{
	const int64 century = INT64CONST(36525) * 86400 * 1000000000;
	Interval	period;
	AkRate		rate;
	int64		amount;
	int64		burst;
	int64		arrival = 0;
	TimestampTz now;
	__int128	ns;

	fuzz_interval(input, &period);
	amount = fuzz_number(input, 1 + fuzz_below(input, 8));
	burst = fuzz_number(input, 1 + fuzz_below(input, 8));
	ns = ((__int128) period.day * USECS_PER_DAY + period.time) * 1000;
	if (!ak_rate_make(amount, &period, burst, &rate))
	{
		CHECK(amount < 1 || burst < 1 || period.month != 0 || ns <= 0 ||
			  amount > ns || ns > century ||
			  period.time > century / 1000 || period.time < -century / 1000 ||
			  period.day > 36525 || period.day < -36525 ||
			  (ns + amount - 1) / amount * (__int128) burst > century);
		return;
	}
	CHECK(rate.burst == burst);
	CHECK((__int128) rate.emission * amount >= ns);
	CHECK((__int128) (rate.emission - 1) * amount < ns);
	CHECK((__int128) rate.emission * burst <= century);

	now = fuzz_number(input, 8) % NOW_MAX;
	while (input->size > 0)
	{
		int64		cost = fuzz_number(input, 1 + fuzz_below(input, 4)) % AK_COST_MAX;
		__int128	ahead = Max((__int128) arrival - (__int128) now * 1000, 0);
		__int128	room = ((__int128) burst - cost) * rate.emission;
		bool		admits;
		bool		is_far;
		int64		remaining;
		TimestampTz at;

		/* The clock stepped back: what is reckoned is the most there can be. */
		is_far = ahead > (__int128) burst * rate.emission;
		ahead = Min(ahead, (__int128) burst * rate.emission);
		admits = ak_rate_admits(&rate, arrival, cost, now);
		CHECK(admits == (ahead <= room));
		remaining = ak_rate_remaining(&rate, arrival, now);
		CHECK(remaining >= 0 && remaining <= burst);
		CHECK(admits == (cost <= remaining));
		at = ak_rate_full_at(&rate, arrival, now);
		CHECK(at >= now);
		if (!is_far)
		{
			CHECK(ak_rate_remaining(&rate, arrival, at) == burst);
			CHECK(at == now || ak_rate_remaining(&rate, arrival, at - 1) < burst);
		}
		if (cost <= burst)
		{
			at = ak_rate_retry_at(&rate, arrival, cost, now);
			CHECK((at == now) == admits);
			CHECK(is_far || ak_rate_admits(&rate, arrival, cost, at));
			CHECK(is_far || at == now ||
				  !ak_rate_admits(&rate, arrival, cost, at - 1));
		}
		if (admits)
		{
			int64		then = ak_rate_charge(&rate, arrival, cost, now);
			int64		used = cost > 0 ? fuzz_below(input, 256) % (cost + 1) : 0;
			TimestampTz later = now + fuzz_below(input, 1 << 20);
			int64		back;

			CHECK(then == (__int128) now * 1000 + ahead + (__int128) cost * rate.emission);
			CHECK(ak_rate_remaining(&rate, then, now) == remaining - cost);
			back = ak_rate_settle(&rate, cost, used, now, then, later);
			CHECK(back >= 0);
			CHECK(back <= (__int128) (cost - used) * rate.emission);
			if (later == now)
				CHECK(back == (__int128) (cost - used) * rate.emission);
			arrival = then - (fuzz_below(input, 2) ? back : 0);
		}
		now = (now + fuzz_number(input, 1 + fuzz_below(input, 6))) % NOW_MAX;
	}
}

/* The spans of a kind, one after the other, leave no gap. */
typedef void (*SpanAt) (void *arg, TimestampTz now, AkSpan *span);

static bool
try_span(SpanAt span_at, void *arg, TimestampTz now, AkSpan *span)
{
	volatile bool good = true;

	PG_TRY();
	{
		span_at(arg, now, span);
	}
	PG_CATCH();
	{
		good = false;
	}
	PG_END_TRY();
	return good;
}

static void
try_spans(SpanAt span_at, void *arg, TimestampTz now)
{
	AkSpan		span;
	AkSpan		other;

	if (!try_span(span_at, arg, now, &span))
	{
		/* Only near the ends of what a timestamp can be. */
		CHECK(now < MIN_TIMESTAMP + 101 * INT64CONST(366) * USECS_PER_DAY ||
			  now > END_TIMESTAMP - 101 * INT64CONST(366) * USECS_PER_DAY);
		return;
	}
	CHECK(span.start <= now && now < span.end);
	CHECK(IS_VALID_TIMESTAMP(span.start) && IS_VALID_TIMESTAMP(span.end));
	CHECK(try_span(span_at, arg, span.start, &other));
	CHECK(other.start == span.start && other.end == span.end);
	CHECK(try_span(span_at, arg, span.end - 1, &other));
	CHECK(other.start == span.start && other.end == span.end);
	if (try_span(span_at, arg, span.end, &other))
		CHECK(other.start == span.end);
	if (span.start > MIN_TIMESTAMP && try_span(span_at, arg, span.start - 1, &other))
		CHECK(other.end == span.start);
}

typedef struct Period
{
	AkPeriod	period;
	TimestampTz anchor;
} Period;

/* Minutes that each period has, at least and at most. */
static const int64 lengths[][2] = {
	[AK_MINUTE] = {1, 1},
	[AK_HOUR] = {60, 60},
	[AK_DAY] = {24 * 60, 24 * 60},
	[AK_WEEK] = {7 * 24 * 60, 7 * 24 * 60},
	[AK_MONTH] = {28 * 24 * 60, 31 * 24 * 60},
	[AK_YEAR] = {365 * 24 * 60, 366 * 24 * 60},
};

static void
period_span(void *arg, TimestampTz now, AkSpan *span)
{
	Period	   *period = arg;

	ak_period_at(period->period, period->anchor, now, span);
	CHECK(span->end - span->start >= lengths[period->period][0] * USECS_PER_MINUTE);
	CHECK(span->end - span->start <= lengths[period->period][1] * USECS_PER_MINUTE);
}

static void
refill_span(void *arg, TimestampTz now, AkSpan *span)
{
	CHECK(ak_refill_at(arg, now, span));
}

/* Mostly of our days, but any that there is. */
static TimestampTz
fuzz_time(FuzzInput *input)
{
	if (fuzz_below(input, 8) > 0)
		return fuzz_number(input, 8) % NOW_MAX;
	return (uint64) MIN_TIMESTAMP + fuzz_number(input, 8) %
		((uint64) END_TIMESTAMP - MIN_TIMESTAMP);
}

/* Several of them: the last answer is kept for the next question. */
static void
try_periods(FuzzInput *input)
{
	char	   *name = fuzz_string(input->data, input->size);
	AkPeriod	parsed;

	if (ak_period_parse(name, &parsed))
		CHECK(strcmp(ak_period_name(parsed), name) == 0);
	while (input->size > 0)
	{
		Period		period = {.period = fuzz_below(input, AK_CREDITS)};
		TimestampTz now = fuzz_time(input);

		period.anchor = fuzz_below(input, 2) ? AK_CALENDAR : fuzz_time(input);
		CHECK(ak_period_parse(ak_period_name(period.period), &parsed));
		CHECK(parsed == period.period);
		try_spans(period_span, &period, now);
	}
}

static void
try_refill(FuzzInput *input)
{
	AkCredits	credits = {.is_limited = true,.refill_amount = 1};
	LOCAL_FCINFO(fcinfo, 2);

	fuzz_interval(input, &credits.refill_every);
	credits.refill_day = (int8) fuzz_number(input, 1);
	InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = IntervalPGetDatum(&credits.refill_every);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = Int32GetDatum(credits.refill_day);
	fcinfo->args[1].isnull = credits.refill_day == 0;
	if (!DatumGetBool(apikeys_is_refill(fcinfo)))
		return;

	/* The whole week in which it was set up can be written down. */
	credits.refill_since = fuzz_time(input);
	credits.refill_since = Max(credits.refill_since,
							   MIN_TIMESTAMP + 8 * USECS_PER_DAY);
	credits.refill_since = Min(credits.refill_since,
							   END_TIMESTAMP - 8 * USECS_PER_DAY);
	try_spans(refill_span, &credits, fuzz_time(input));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FuzzInput	input = {data, size};

	switch (fuzz_below(&input, 3))
	{
		case 0:
			try_rate(&input);
			break;
		case 1:
			try_periods(&input);
			break;
		case 2:
			try_refill(&input);
			break;
	}
	fuzz_end();
	return 0;
}
