/*-------------------------------------------------------------------------
 *
 * answer.c
 *	  A decision as a row of apikeys.verification.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "verify.h"

static Datum
seconds_until(TimestampTz then, TimestampTz now)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = Max(then - now, 0);
	return DirectFunctionCall1(interval_justify_hours,
							   IntervalPGetDatum(interval));
}

static void
set_text(Datum *values, bool *nulls, int column, const char *value)
{
	nulls[column] = value == NULL || value[0] == '\0';
	if (!nulls[column])
		values[column] = CStringGetTextDatum(value);
}

static void
set_from_key(Datum *values, bool *nulls, int column, const AkKey *key,
			 AkKeyColumn from)
{
	values[column] = key->values[from];
	nulls[column] = key->nulls[from];
}

/* The columns of apikeys.verification. */
void
ak_answer(const Request *request, const Decision *d,
		  Datum values[OUT_COLUMNS], bool nulls[OUT_COLUMNS])
{
	memset(values, 0, OUT_COLUMNS * sizeof(Datum));
	memset(nulls, true, OUT_COLUMNS * sizeof(bool));

	values[OUT_VALID] = BoolGetDatum(d->outcome == AK_VALID);
	nulls[OUT_VALID] = false;
	set_text(values, nulls, OUT_CODE, ak_outcome_name(d->outcome));

	if (d->key_is_known)
	{
		const AkKey *key = &d->key;

		set_from_key(values, nulls, OUT_KEY_ID, key, AK_KEY_ID);
		set_from_key(values, nulls, OUT_API_ID, key, AK_KEY_API_ID);
		set_from_key(values, nulls, OUT_NAME, key, AK_KEY_NAME);
		set_from_key(values, nulls, OUT_USER_ID, key, AK_KEY_USER_ID);
		set_from_key(values, nulls, OUT_PERMISSIONS, key, AK_KEY_PERMISSIONS);
		set_from_key(values, nulls, OUT_METADATA, key, AK_KEY_METADATA);
		set_from_key(values, nulls, OUT_EXPIRES_AT, key, AK_KEY_EXPIRES_AT);
		set_text(values, nulls, OUT_PLAN_ID, d->subject.plan.id);
		set_text(values, nulls, OUT_PLAN_NAME, d->subject.plan.name);
	}
	if (d->is_metered)
	{
		const AkCharge *charge = &d->charge;
		const AkLimit *quota = &charge->limits[0];
		const AkLimit *credits = ak_charge_credits(charge);

		values[OUT_CURRENT_USAGE] = Int64GetDatum(quota->count.billed);
		nulls[OUT_CURRENT_USAGE] = false;
		values[OUT_RESET_TIME] = TimestampTzGetDatum(charge->span.end);
		nulls[OUT_RESET_TIME] = false;
		set_text(values, nulls, OUT_PERIOD,
				 ak_period_name(d->subject.plan.period));
		if (quota->amount >= 0)
		{
			values[OUT_LIMIT] = Int64GetDatum(quota->amount);
			nulls[OUT_LIMIT] = false;
			values[OUT_REMAINING] = Int64GetDatum(ak_limit_remaining(charge, quota));
			nulls[OUT_REMAINING] = false;
		}
		if (d->outcome != AK_VALID && ak_charge_retry_at(charge) != DT_NOEND)
		{
			values[OUT_RETRY_AFTER] = seconds_until(ak_charge_retry_at(charge),
													request->now);
			nulls[OUT_RETRY_AFTER] = false;
		}
		if (credits != NULL)
		{
			values[OUT_CREDITS] = Int64GetDatum(ak_limit_remaining(charge, credits));
			nulls[OUT_CREDITS] = false;
		}
		if (charge->has_request)
		{
			values[OUT_REPEATED] = BoolGetDatum(charge->repeated);
			nulls[OUT_REPEATED] = false;
		}
		if (request->costs != NULL)
		{
			values[OUT_LIMITS] = ak_charge_show(charge);
			nulls[OUT_LIMITS] = false;
		}
	}
}
