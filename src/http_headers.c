/*-------------------------------------------------------------------------
 *
 * http_headers.c
 *	  Headers of an answer, and what the limits say in them.
 *
 * RateLimit-Policy and RateLimit are those of the IETF's draft
 * (ratelimit-headers): a list of limits by name, each with its quota (q) and
 * window (w), or with what remains (r) and the seconds to its reset (t).  A
 * rate's quota is its burst, its window the time in which that refills.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "http.h"

/* Integers of structured fields have at most 15 digits (RFC 8941). */
#define FIELD_INTEGER_MAX INT64CONST(999999999999999)

/* Add a header; the texts stay the caller's. */
void
ak_header_add(AkHeaders *headers, const char *name, const char *value)
{
	if (headers->n == AK_HEADERS_MAX)
		elog(ERROR, "too many headers");
	headers->headers[headers->n].name = name;
	headers->headers[headers->n].value = value;
	headers->n++;
}

/*
 * A text as a header can hold it: what is not printable ASCII, and the percent
 * sign, is percent-encoded; so are spaces at its ends, which whoever reads a
 * header takes away.
 */
char *
ak_header_text(const char *value)
{
	StringInfoData text;

	initStringInfo(&text);
	for (const unsigned char *c = (const unsigned char *) value; *c != '\0'; c++)
	{
		bool		is_end = text.len == 0 || c[1] == '\0';

		if (*c < ' ' || *c > '~' || *c == '%' || (*c == ' ' && is_end))
			appendStringInfo(&text, "%%%02X", *c);
		else
			appendStringInfoChar(&text, *c);
	}
	return text.data;
}

/* A string of a structured field (RFC 8941). */
static void
append_name(StringInfo field, const char *name)
{
	if (field->len > 0)
		appendStringInfoString(field, ", ");
	appendStringInfoChar(field, '"');
	for (const char *c = ak_header_text(name); *c != '\0'; c++)
	{
		if (*c == '"' || *c == '\\')
			appendStringInfoChar(field, '\\');
		appendStringInfoChar(field, *c);
	}
	appendStringInfoChar(field, '"');
}

/* Whole seconds, rounded up: who waits that long has waited enough. */
static int64
seconds_until(TimestampTz then, TimestampTz now)
{
	return then <= now ? 0 : (then - now + USECS_PER_SEC - 1) / USECS_PER_SEC;
}

/*
 * The time in which a rate's burst refills, in whole seconds rounded up, by what
 * was set: the emission interval is rounded itself, and would tell one too
 * many.  So would the last bits of a quotient that is no whole number.
 */
static int64
window_of_rate(const AkRate *rate)
{
	double		refill = (double) rate->burst * rate->period / rate->amount;

	return Max((int64) ceil(refill / USECS_PER_SEC * (1 - 1e-15)), 1);
}

/* What the headers say of one limit. */
typedef struct Shown
{
	int64		quota;
	int64		window;
	int64		remaining;
	int64		reset;			/* seconds from now */
} Shown;

/* False for a limit that has nothing to say, such as an unlimited quota. */
static bool
show(const AkDecided *decided, int i, Shown *shown)
{
	const AkCharge *charge = decided->charge;
	const AkLimit *limit = &charge->limits[i];

	if (limit->amount < 0)
		return false;
	shown->quota = Min(limit->amount, FIELD_INTEGER_MAX);
	shown->remaining = Min(ak_limit_remaining(charge, limit),
						   FIELD_INTEGER_MAX);
	if (ak_limit_is_rate(limit))
	{
		TimestampTz full_at = ak_rate_full_at(&limit->rate,
											  limit->count.charged,
											  charge->now);

		shown->window = window_of_rate(&limit->rate);
		shown->reset = Min(seconds_until(full_at, charge->now), shown->window);
	}
	else if (i == 0)
	{
		shown->window = (charge->span.end - charge->span.start) / USECS_PER_SEC;
		shown->reset = seconds_until(charge->span.end, charge->now);
	}
	else
		return false;
	return true;
}

/* X-RateLimit-*, of the limit that leaves least. */
static void
add_legacy(AkHeaders *headers, const AkDecided *decided)
{
	const AkCharge *charge = decided->charge;
	Shown		least = {.remaining = PG_INT64_MAX};
	bool		refuses = false;

	for (int i = 0; i < charge->nlimits; i++)
	{
		const AkLimit *limit = &charge->limits[i];
		Shown		shown;

		if (!show(decided, i, &shown))
			continue;
		if ((limit->refuses && !refuses) ||
			(limit->refuses == refuses && shown.remaining < least.remaining))
		{
			least = shown;
			refuses = limit->refuses;
		}
	}
	if (least.remaining == PG_INT64_MAX)
		return;
	ak_header_add(headers, "X-RateLimit-Limit",
				  psprintf(INT64_FORMAT, least.quota));
	ak_header_add(headers, "X-RateLimit-Remaining",
				  psprintf(INT64_FORMAT, least.remaining));
	ak_header_add(headers, "X-RateLimit-Reset",
				  psprintf(INT64_FORMAT,
						   (int64) timestamptz_to_time_t(charge->now) + least.reset));
}

/* The headers that tell of the limits a request was held to. */
void
ak_headers_of_limits(AkHeaders *headers, const AkDecided *decided)
{
	StringInfoData policy;
	StringInfoData state;

	if (decided->charge == NULL)
		return;
	initStringInfo(&policy);
	initStringInfo(&state);
	for (int i = 0; i < decided->charge->nlimits; i++)
	{
		const char *name = decided->charge->limits[i].name;
		Shown		shown;

		if (!show(decided, i, &shown))
			continue;
		append_name(&policy, name);
		appendStringInfo(&policy, ";q=" INT64_FORMAT ";w=" INT64_FORMAT,
						 shown.quota, shown.window);
		append_name(&state, name);
		appendStringInfo(&state, ";r=" INT64_FORMAT ";t=" INT64_FORMAT,
						 shown.remaining, shown.reset);
	}
	if (policy.len > 0)
	{
		ak_header_add(headers, "RateLimit-Policy", policy.data);
		ak_header_add(headers, "RateLimit", state.data);
	}
	if (decided->outcome == AK_RATE_LIMITED ||
		decided->outcome == AK_USAGE_EXCEEDED)
	{
		TimestampTz at = ak_charge_retry_at(decided->charge);

		if (at != DT_NOEND)
			ak_header_add(headers, "Retry-After",
						  psprintf(INT64_FORMAT,
								   Max(seconds_until(at, decided->charge->now), 1)));
	}
	if (ak_legacy_rate_headers)
		add_legacy(headers, decided);
}

/* Append the headers to some JSON, as an object. */
void
ak_headers_as_object(const AkHeaders *headers, StringInfo json)
{
	appendStringInfoChar(json, '{');
	for (int i = 0; i < headers->n; i++)
	{
		if (i > 0)
			appendStringInfoChar(json, ',');
		escape_json(json, headers->headers[i].name);
		appendStringInfoChar(json, ':');
		escape_json(json, headers->headers[i].value);
	}
	appendStringInfoChar(json, '}');
}

/*
 * Add headers to those of PostgREST's answer, an array of objects with one
 * header each; what is there already stays.
 */
void
ak_headers_append(const AkHeaders *headers)
{
	const char *before = GetConfigOption("response.headers", true, false);
	char	   *after;
	StringInfoData json;

	if (headers->n == 0)
		return;
	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	for (int i = 0; i < headers->n; i++)
	{
		appendStringInfo(&json, "%s{", i > 0 ? "," : "");
		escape_json(&json, headers->headers[i].name);
		appendStringInfoChar(&json, ':');
		escape_json(&json, headers->headers[i].value);
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');

	after = json.data;
	if (before != NULL && before[0] != '\0')
	{
		Datum		old = DirectFunctionCall1(jsonb_in, CStringGetDatum(before));
		Datum		new = DirectFunctionCall1(jsonb_in, CStringGetDatum(after));

		if (!JB_ROOT_IS_ARRAY(DatumGetJsonbP(old)))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("setting \"response.headers\" is no JSON array")));
		after = DatumGetCString(DirectFunctionCall1(jsonb_out,
													DirectFunctionCall2(jsonb_concat, old, new)));
	}
	(void) set_config_option("response.headers", after, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}
