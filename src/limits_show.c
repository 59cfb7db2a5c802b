/*-------------------------------------------------------------------------
 *
 * limits_show.c
 *	  What the limits of a request say after the decision: what remains, until
 *	  when, and when a refused request can pass.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "apikeys.h"

/* Of a quota or rate what may still be admitted now, of credits the balance. */
int64
ak_limit_remaining(const AkCharge *charge, const AkLimit *limit)
{
	if (ak_limit_is_rate(limit))
		return ak_rate_remaining(&limit->rate, limit->count.charged,
								 charge->now);
	return Max(limit->amount - limit->count.charged, 0);
}

static TimestampTz
reset_time(const AkCharge *charge, const AkLimit *limit)
{
	if (ak_limit_is_rate(limit))
		return ak_rate_full_at(&limit->rate, limit->count.charged, charge->now);
	return ak_limit_is_credits(limit) ? limit->refill_next : charge->span.end;
}

/*
 * When a limit that refuses can admit as much: DT_NOEND if waiting does not
 * help.
 */
static TimestampTz
retry_at(const AkCharge *charge, const AkLimit *limit)
{
	if (limit->cost > (ak_limit_is_credits(limit) ?
					   limit->refill_amount : limit->amount))
		return DT_NOEND;
	if (ak_limit_is_rate(limit))
		return ak_rate_retry_at(&limit->rate, limit->count.charged,
								limit->cost, charge->now);
	return reset_time(charge, limit);
}

/*
 * When a refused request can pass, as far as its limits can tell: DT_NOEND if
 * waiting does not help.
 */
TimestampTz
ak_charge_retry_at(const AkCharge *charge)
{
	TimestampTz at = charge->now;

	for (int i = 0; i < charge->nlimits; i++)
		if (charge->limits[i].refuses)
			at = Max(at, retry_at(charge, &charge->limits[i]));
	return at;
}

static void
push_key(JsonbParseState **state, const char *key)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = (char *) key;
	value.val.string.len = strlen(key);
	pushJsonbValue(state, WJB_KEY, &value);
}

static void
push_string(JsonbParseState **state, const char *key, const char *string)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = jbvString;
	value.val.string.val = pstrdup(string);
	value.val.string.len = strlen(string);
	pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_number(JsonbParseState **state, const char *key, int64 number, bool isnull)
{
	JsonbValue	value;

	push_key(state, key);
	value.type = isnull ? jbvNull : jbvNumeric;
	if (!isnull)
		value.val.numeric = int64_to_numeric(number);
	pushJsonbValue(state, WJB_VALUE, &value);
}

static void
push_time(JsonbParseState **state, const char *key, TimestampTz at)
{
	char		buffer[MAXDATELEN + 1];

	if (at == DT_NOEND)
	{
		push_number(state, key, 0, true);
		return;
	}
	(void) JsonEncodeDateTime(buffer, TimestampTzGetDatum(at), TIMESTAMPTZOID,
							  NULL);
	push_string(state, key, buffer);
}

static const char *
kind_of(const AkLimit *limit)
{
	return ak_limit_is_rate(limit) ? "rate" :
		ak_limit_is_credits(limit) ? "credits" : "quota";
}

/*
 * The limits as JSON: an array of objects with name, kind (quota, credits or
 * rate), limit (of credits what they refill to), remaining, reset_time (null
 * where there is none) and refused.
 */
Datum
ak_charge_show(const AkCharge *charge)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;

	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		bool		unlimited = ak_is_unlimited(&limit->key, limit->amount);
		TimestampTz reset = reset_time(charge, limit);

		pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
		push_string(&state, "name", limit->name);
		push_string(&state, "kind", kind_of(limit));
		if (ak_limit_is_credits(limit))
			push_number(&state, "limit", limit->refill_amount,
						limit->refill_amount == 0);
		else
			push_number(&state, "limit", limit->amount, unlimited);
		push_number(&state, "remaining",
					unlimited ? 0 : ak_limit_remaining(charge, limit), unlimited);
		push_time(&state, "reset_time", reset);
		push_key(&state, "refused");
		value.type = jbvBool;
		value.val.boolean = limit->refuses;
		pushJsonbValue(&state, WJB_VALUE, &value);
		pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY,
														   NULL)));
}
