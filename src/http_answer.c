/*-------------------------------------------------------------------------
 *
 * http_answer.c
 *	  What a decision is over HTTP: status, headers and body.
 *
 * apikey_verify_http() gives them to an application that has a request in its
 * hands; http.c to PostgREST.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/json.h"

#include "http.h"

PG_FUNCTION_INFO_V1(apikey_verify_http);

/* Arguments of apikey_verify_http(). */
enum
{
	ARG_KEY,
	ARG_ENDPOINT,
	ARG_METHOD,
	ARG_IP_ADDRESS,
	ARG_COST,
	ARG_PERMISSIONS,
	ARG_API_ID
};

/* Columns of apikeys.http_answer. */
enum
{
	OUT_STATUS,
	OUT_HEADERS,
	OUT_BODY,
	OUT_KEY_ID,
	OUT_USER_ID,
	OUT_COLUMNS
};

typedef struct Answer
{
	int			status;
	const char *message;		/* NULL if the request may go on */
} Answer;

static const Answer answers[AK_OUTCOMES] = {
	[AK_VALID] = {200, NULL},
	[AK_MALFORMED] = {401, "no valid API key was sent"},
	[AK_NOT_FOUND] = {401, "the API key is unknown"},
	[AK_DISABLED] = {403, "the API key is disabled"},
	[AK_EXPIRED] = {401, "the API key has expired"},
	[AK_FORBIDDEN] = {403, "the API key may not be used from this address"},
	[AK_INSUFFICIENT_PERMISSIONS] = {403, "the API key lacks a permission"},
	[AK_RATE_LIMITED] = {429, "too many requests"},
	[AK_USAGE_EXCEEDED] = {429, "the quota is used up"},
};

int
ak_http_status(const AkDecided *decided)
{
	return answers[decided->outcome].status;
}

/* Quota and credits have one outcome; the quota is the first limit. */
const char *
ak_http_message(const AkDecided *decided)
{
	if (decided->outcome == AK_USAGE_EXCEEDED && !decided->charge->limits[0].refuses)
		return "the credits are used up";
	return answers[decided->outcome].message;
}

static const char *
title_of(int status)
{
	switch (status)
	{
		case 401:
			return "Unauthorized";
		case 403:
			return "Forbidden";
		default:
			return "Too Many Requests";
	}
}

/* The headers that the client should see. */
void
ak_headers_of_decision(AkHeaders *headers, const AkDecided *decided)
{
	if (ak_http_status(decided) == 401)
		ak_header_add(headers, "WWW-Authenticate",
					  psprintf("ApiKey header=\"%s\"", ak_http_header));
	ak_headers_of_limits(headers, decided);
}

static void
append_member(StringInfo json, const char *name, const char *value)
{
	appendStringInfo(json, ",\"%s\":", name);
	if (value == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, value);
}

/*
 * The body as JSON: of a refusal a problem (RFC 9457), whose status is the one
 * that is sent.
 */
char *
ak_http_body(const AkDecided *decided, int status)
{
	bool		valid = decided->outcome == AK_VALID;
	StringInfoData body;

	initStringInfo(&body);
	appendStringInfoChar(&body, '{');
	if (!valid)
		appendStringInfo(&body, "\"title\":\"%s\",\"status\":%d,",
						 title_of(status), status);
	appendStringInfo(&body, "\"valid\":%s", valid ? "true" : "false");
	append_member(&body, "code", ak_outcome_name(decided->outcome));
	append_member(&body, "message", ak_http_message(decided));
	append_member(&body, "key_id",
				  valid ? ak_uuid_text(&decided->key->id) : NULL);
	append_member(&body, "user_id",
				  !valid || decided->key->user_id[0] == '\0' ? NULL : decided->key->user_id);
	appendStringInfoChar(&body, '}');
	return body.data;
}

/* ----- SQL ----- */

static void
read_arguments(FunctionCallInfo fcinfo, AkAsked *asked)
{
	asked->secret = fcinfo->args[ARG_KEY];
	asked->endpoint = fcinfo->args[ARG_ENDPOINT];
	asked->method = fcinfo->args[ARG_METHOD];
	if (!PG_ARGISNULL(ARG_IP_ADDRESS))
		asked->ip_address = PG_GETARG_INET_PP(ARG_IP_ADDRESS);
	asked->cost = ak_cost_arg(fcinfo, ARG_COST);
	if (!PG_ARGISNULL(ARG_PERMISSIONS))
		asked->permissions = ak_permissions_expression(PG_GETARG_DATUM(ARG_PERMISSIONS));
	if (!PG_ARGISNULL(ARG_API_ID))
		asked->api_id = text_to_cstring(PG_GETARG_TEXT_PP(ARG_API_ID));
}

static TupleDesc
result_desc(FunctionCallInfo fcinfo)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != OUT_COLUMNS)
		elog(ERROR, "unexpected result type of apikey_verify_http");
	return BlessTupleDesc(desc);
}

/*
 * apikey_verify_http(key text, endpoint text, method text, ip_address inet,
 *					  cost bigint, permissions text, api_id text)
 *		-> apikeys.http_answer
 *
 * Decide as apikey_verify() does; the answer is what an HTTP server sends.
 *
 * Errors: those of apikey_verify().
 */
Datum
apikey_verify_http(PG_FUNCTION_ARGS)
{
	TupleDesc	desc = result_desc(fcinfo);
	AkAsked		asked = {0};
	AkDecided	decided;
	AkHeaders	headers = {0};
	StringInfoData json;
	int			status;
	Datum		values[OUT_COLUMNS] = {0};
	bool		nulls[OUT_COLUMNS] = {0};

	read_arguments(fcinfo, &asked);
	ak_verify(&asked, &decided);

	status = ak_http_status(&decided);
	ak_headers_of_decision(&headers, &decided);
	if (status != 200)
		ak_header_add(&headers, "Content-Type", AK_PROBLEM_TYPE);
	initStringInfo(&json);
	ak_headers_as_object(&headers, &json);

	values[OUT_STATUS] = Int32GetDatum(status);
	values[OUT_HEADERS] = CStringGetTextDatum(json.data);
	values[OUT_BODY] = CStringGetTextDatum(ak_http_body(&decided, status));
	nulls[OUT_KEY_ID] = decided.outcome != AK_VALID;
	nulls[OUT_USER_ID] = nulls[OUT_KEY_ID] || decided.key->user_id[0] == '\0';
	if (!nulls[OUT_KEY_ID])
		values[OUT_KEY_ID] = UUIDPGetDatum(&decided.key->id);
	if (!nulls[OUT_USER_ID])
		values[OUT_USER_ID] = CStringGetTextDatum(decided.key->user_id);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(desc, values, nulls)));
}
