/*-------------------------------------------------------------------------
 *
 * period.c
 *	  Calendar periods: which one is now, when it began, when it ends.
 *
 * Every period is anchor + n x unit, computed here and nowhere else, in UTC.
 * Months are counted from the anchor each time, never from the period before,
 * so that an anchor on the 31st stays one: it means the last day of a shorter
 * month.  A year is twelve months, which puts 29 February on the 28th.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/datetime.h"

#include "apikeys.h"

static const char *const period_names[] = {
	[AK_MINUTE] = "minute",
	[AK_HOUR] = "hour",
	[AK_DAY] = "day",
	[AK_WEEK] = "week",
	[AK_MONTH] = "month",
	[AK_YEAR] = "year",
	[AK_CREDITS] = "credits",
};

const char *
ak_period_name(AkPeriod period)
{
	return period_names[period];
}

bool
ak_period_parse(const char *name, AkPeriod *period)
{
	for (int i = 0; i < lengthof(period_names); i++)
		if (strcmp(name, period_names[i]) == 0)
		{
			*period = i;
			return true;
		}
	return false;
}

static void
refuse_out_of_range(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
			 errmsg("timestamp out of range")));
}

static int64
floor_div(int64 a, int64 b)
{
	return a / b - (a % b < 0 ? 1 : 0);
}

/* Months since year 0 of a moment, in UTC. */
static int
month_number(TimestampTz at)
{
	struct pg_tm tm;
	fsec_t		fsec;

	if (timestamp2tm(at, NULL, &tm, &fsec, NULL, NULL) != 0)
		refuse_out_of_range();
	return tm.tm_year * MONTHS_PER_YEAR + tm.tm_mon - 1;
}

/* The anchor moved into a month: same day and time, or the month's last day. */
static TimestampTz
anchor_in_month(TimestampTz anchor, int month)
{
	struct pg_tm tm;
	fsec_t		fsec;
	Timestamp	result;

	if (timestamp2tm(anchor, NULL, &tm, &fsec, NULL, NULL) != 0)
		refuse_out_of_range();
	tm.tm_year = floor_div(month, MONTHS_PER_YEAR);
	tm.tm_mon = month - tm.tm_year * MONTHS_PER_YEAR + 1;
	tm.tm_mday = Min(tm.tm_mday, day_tab[isleap(tm.tm_year)][tm.tm_mon - 1]);
	if (tm2timestamp(&tm, fsec, NULL, &result) != 0)
		refuse_out_of_range();
	return result;
}

/* Periods of a whole number of months. */
void
ak_months_at(int unit, TimestampTz anchor, TimestampTz now, AkSpan *span)
{
	int			origin = month_number(anchor);
	int			n = floor_div(month_number(now) - origin, unit);

	/* The anchor's day may not have come yet in this month. */
	if (anchor_in_month(anchor, origin + n * unit) > now)
		n--;
	span->start = anchor_in_month(anchor, origin + n * unit);
	span->end = anchor_in_month(anchor, origin + (n + 1) * unit);
}

/* Periods of a fixed length, in microseconds. */
void
ak_fixed_at(int64 length, TimestampTz anchor, TimestampTz now, AkSpan *span)
{
	/* Only the anchor's phase matters: this cannot overflow. */
	int64		phase = anchor - floor_div(anchor, length) * length;

	span->start = floor_div(now - phase, length) * length + phase;
	if (!IS_VALID_TIMESTAMP(span->start) || span->start >= END_TIMESTAMP - length)
		refuse_out_of_range();
	span->end = span->start + length;
}

static void
compute_period(AkPeriod period, TimestampTz anchor, TimestampTz now,
			   AkSpan *span)
{
	if (anchor == AK_CALENDAR)
	{
		/* 2000-01-01 is a Saturday; the Monday after it is two days later. */
		anchor = period == AK_WEEK ? 2 * USECS_PER_DAY : 0;
	}

	switch (period)
	{
		case AK_MINUTE:
			ak_fixed_at(USECS_PER_MINUTE, anchor, now, span);
			return;
		case AK_HOUR:
			ak_fixed_at(USECS_PER_HOUR, anchor, now, span);
			return;
		case AK_DAY:
			ak_fixed_at(USECS_PER_DAY, anchor, now, span);
			return;
		case AK_WEEK:
			ak_fixed_at(7 * USECS_PER_DAY, anchor, now, span);
			return;
		case AK_MONTH:
			ak_months_at(1, anchor, now, span);
			return;
		case AK_YEAR:
			ak_months_at(MONTHS_PER_YEAR, anchor, now, span);
			return;
		case AK_CREDITS:
			span->start = DT_NOBEGIN;
			span->end = DT_NOEND;
			return;
	}
}

/*
 * The period that holds "now".  The anchor is the start of one period, or
 * AK_CALENDAR for the calendar's: a week then begins on Monday.
 *
 * Errors: 22008 beyond the range of timestamps.
 */
void
ak_period_at(AkPeriod period, TimestampTz anchor, TimestampTz now,
			 AkSpan *span)
{
	/* The last answer mostly holds still; an error leaves it as it was. */
	static AkPeriod last_period = AK_MINUTE;
	static TimestampTz last_anchor = 0;
	static AkSpan last = {0, 0};

	if (period != last_period || anchor != last_anchor ||
		now < last.start || now >= last.end)
	{
		compute_period(period, anchor, now, span);
		last = *span;
		last_period = period;
		last_anchor = anchor;
	}
	else
		*span = last;
}
