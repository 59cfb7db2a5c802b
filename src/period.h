/*-------------------------------------------------------------------------
 *
 * period.h
 *	  Calendar periods; see period.c.
 *
 * Times are microseconds since 2000, in UTC, as everywhere.
 *
 *-------------------------------------------------------------------------
 */
#ifndef APIKEYS_PERIOD_H
#define APIKEYS_PERIOD_H

#include "utils/timestamp.h"

typedef enum AkPeriod
{
	AK_MINUTE,
	AK_HOUR,
	AK_DAY,
	AK_WEEK,
	AK_MONTH,
	AK_YEAR,
	AK_CREDITS					/* for ever: no plan's */
} AkPeriod;

typedef struct AkSpan
{
	TimestampTz start;			/* first moment of the period */
	TimestampTz end;			/* first moment of the next one */
} AkSpan;

extern const char *ak_period_name(AkPeriod period);
extern bool ak_period_parse(const char *name, AkPeriod *period);
extern void ak_period_at(AkPeriod period, TimestampTz anchor, TimestampTz now,
						 AkSpan *span);
extern void ak_months_at(int unit, TimestampTz anchor, TimestampTz now,
						 AkSpan *span);
extern void ak_fixed_at(int64 length, TimestampTz anchor, TimestampTz now,
						AkSpan *span);

/* No anchor: the calendar, in UTC. */
#define AK_CALENDAR DT_NOBEGIN

#endif							/* APIKEYS_PERIOD_H */
