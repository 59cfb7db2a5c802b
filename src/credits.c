/*-------------------------------------------------------------------------
 *
 * credits.c
 *	  Credits: when they refill.
 *
 * The balance of a key or a user is what was granted to it, in all, minus what
 * it has consumed, in all: the first is in its row (and, change by change, in
 * apikeys.ledger), the second in the meter.  Neither is ever written over by
 * the other.
 *
 * A refill raises the balance to an amount, if it is lower.  Refills are a
 * function of time: the meter applies the last one that is due when it next
 * looks at the count, which is the same as if it had been applied on time,
 * since nothing was consumed in between.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_is_refill);
PG_FUNCTION_INFO_V1(apikeys_refill_times);
PG_FUNCTION_INFO_V1(apikeys_balance);
PG_FUNCTION_INFO_V1(apikeys_credit_account);

/* 2000-01-03, a Monday, in microseconds since 2000. */
#define SOME_MONDAY (2 * USECS_PER_DAY)

/* A century. */
#define EVERY_MAX (INT64CONST(36525) * USECS_PER_DAY)

static bool
is_whole_days(const Interval *every)
{
	return every->month == 0 && every->time == 0;
}

static bool
is_whole_weeks(const Interval *every)
{
	return is_whole_days(every) && every->day % 7 == 0;
}

/*
 * The last refill (span->start) and the next one (span->end) of credits, as of
 * a moment.  False if they do not refill.
 *
 * Several months count from January, several weeks or days from the week or
 * day in which the refill was set up, other intervals from that moment.  All
 * of it is in UTC; a day that a month does not have is its last one.
 */
bool
ak_refill_at(const AkCredits *credits, TimestampTz now, AkSpan *span)
{
	const Interval *every = &credits->refill_every;
	int			day = Max(credits->refill_day, 1);
	TimestampTz anchor;

	if (!credits->is_limited || credits->refill_amount == 0)
		return false;
	if (every->month > 0)
	{
		anchor = (day - 1) * USECS_PER_DAY;	/* in January 2000 */
		ak_months_at(every->month, anchor, now, span);
		return true;
	}

	if (is_whole_weeks(every))
		ak_fixed_at(7 * USECS_PER_DAY,
					SOME_MONDAY + (day - 1) * USECS_PER_DAY,
					credits->refill_since, span);
	else if (is_whole_days(every))
		ak_fixed_at(USECS_PER_DAY, 0, credits->refill_since, span);
	else
		ak_fixed_at(USECS_PER_SEC, 0, credits->refill_since, span);
	anchor = span->start;
	ak_fixed_at(every->day * USECS_PER_DAY + every->time, anchor, now, span);
	return true;
}

/*
 * A refill's moment as the meter keeps it, in seconds since 2000; 0 is before
 * any.
 */
uint32
ak_refill_mark(TimestampTz at)
{
	return Min(Max(at / USECS_PER_SEC, 0), PG_UINT32_MAX);
}

/* Whether credits can refill at an interval, and on a day (0: not chosen). */
static bool
is_refill(const Interval *every, int day)
{
	int			last_day = 0;

	if (every->month != 0)
	{
		if (every->month < 0 || every->month > 100 * MONTHS_PER_YEAR ||
			every->day != 0 || every->time != 0)
			return false;
		last_day = 31;
	}
	else
	{
		int64		usecs;

		if (every->day < 0 || every->day > 36525 || every->time < 0 ||
			every->time > EVERY_MAX || every->time % USECS_PER_SEC != 0)
			return false;
		usecs = every->day * USECS_PER_DAY + every->time;
		if (usecs <= 0 || usecs > EVERY_MAX)
			return false;
		if (is_whole_weeks(every))
			last_day = 7;
	}
	return day >= 0 && day <= last_day;
}

/*
 * apikeys.is_refill(every interval, day int) -> boolean
 *
 * Whether credits can refill at an interval: months alone, or days and shorter
 * units of whole seconds; a day of the month (1 to 31) for months, of the week
 * (1 to 7) for whole weeks, none (NULL) for others.
 */
Datum
apikeys_is_refill(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0) || (!PG_ARGISNULL(1) && PG_GETARG_INT32(1) < 1))
		PG_RETURN_BOOL(false);
	PG_RETURN_BOOL(is_refill(PG_GETARG_INTERVAL_P(0),
							 PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1)));
}

/*
 * apikeys.refill_times(every interval, day int, since timestamptz,
 *						at timestamptz) -> (previous, next timestamptz)
 *
 * The last refill at or before a moment, and the next one.  Errors: 22023 for
 * what is_refill() refuses, 22008 beyond the range of timestamps.
 */
Datum
apikeys_refill_times(PG_FUNCTION_ARGS)
{
	AkCredits	credits = {.is_limited = true,.refill_amount = 1};
	AkSpan		span;
	TupleDesc	desc;
	Datum		values[2];
	bool		nulls[2] = {0};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(2) || PG_ARGISNULL(3))
		PG_RETURN_NULL();
	credits.refill_every = *PG_GETARG_INTERVAL_P(0);
	credits.refill_day = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
	credits.refill_since = PG_GETARG_TIMESTAMPTZ(2);
	if (!is_refill(&credits.refill_every, credits.refill_day))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("credits cannot refill at this interval, or on this day")));
	if (TIMESTAMP_NOT_FINITE(credits.refill_since) ||
		TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(3)))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type");
	(void) ak_refill_at(&credits, PG_GETARG_TIMESTAMPTZ(3), &span);
	values[0] = TimestampTzGetDatum(span.start);
	values[1] = TimestampTzGetDatum(span.end);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}

/*
 * The arguments that the next two functions share, as a limit: subject_id,
 * subject, credits, refill_amount, refill_every, refill_day, refill_since.
 */
static void
limit_of_args(FunctionCallInfo fcinfo, AkCharge *charge)
{
	AkCredits	credits = {.is_limited = true};

	AcceptInvalidationMessages();

	/* Unlimited credits do not refill. */
	if (!PG_ARGISNULL(2))
		credits.granted = PG_GETARG_INT64(2);
	if (!PG_ARGISNULL(2) && !PG_ARGISNULL(3))
	{
		if (PG_ARGISNULL(4) || PG_ARGISNULL(6) ||
			!is_refill(PG_GETARG_INTERVAL_P(4),
					   PG_ARGISNULL(5) ? 0 : PG_GETARG_INT32(5)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("credits cannot refill at this interval, or on this day")));
		credits.refill_amount = PG_GETARG_INT64(3);
		credits.refill_every = *PG_GETARG_INTERVAL_P(4);
		credits.refill_day = PG_ARGISNULL(5) ? 0 : PG_GETARG_INT32(5);
		credits.refill_since = PG_GETARG_TIMESTAMPTZ(6);
	}
	charge->now = ak_database_clock(ak_catalog()->db, GetCurrentTimestamp());
	charge->nlimits = 1;
	charge->refundable = false;
	charge->by_hand = false;
	charge->has_request = false;
	ak_credits_limit(&charge->limits[0], &credits, PG_GETARG_UUID_P(0),
					 strcmp(text_to_cstring(PG_GETARG_TEXT_PP(1)), "user") == 0,
					 0, charge->now);
}

/*
 * apikeys.balance(...) -> bigint: what is left of credits, NULL if they are
 * unlimited.
 */
Datum
apikeys_balance(PG_FUNCTION_ARGS)
{
	AkCharge	charge;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	limit_of_args(fcinfo, &charge);
	ak_meter_look(&charge);
	PG_RETURN_INT64(PG_GETARG_INT64(2) - charge.limits[0].count.charged);
}

/*
 * apikeys.credit_account(..., apply_refill boolean)
 *		-> (spent bigint, charged bigint, next_refill timestamptz)
 *
 * What was consumed of credits in all, the same less what refills have added,
 * and when the next refill is due, NULL if none.  With apply_refill, one that
 * is due is applied, and durable, before this returns.
 *
 * Errors: 53000 if the worker does not come in time.
 */
Datum
apikeys_credit_account(PG_FUNCTION_ARGS)
{
	AkCharge	charge;
	const AkLimit *limit = &charge.limits[0];
	TupleDesc	desc;
	Datum		values[3];
	bool		nulls[3] = {0};

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(7))
		PG_RETURN_NULL();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type");
	limit_of_args(fcinfo, &charge);
	if (PG_GETARG_BOOL(7) && limit->refill_due > 0)
		(void) ak_meter_change(&charge, AK_REFILL);
	else
		ak_meter_look(&charge);

	values[0] = Int64GetDatum(limit->count.billed);
	values[1] = Int64GetDatum(limit->count.charged);
	values[2] = TimestampTzGetDatum(limit->refill_next);
	nulls[2] = limit->refill_next == DT_NOEND;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
