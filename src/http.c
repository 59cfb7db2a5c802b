/*-------------------------------------------------------------------------
 *
 * http.c
 *	  Verify the key of an HTTP request that PostgREST describes in settings.
 *
 * apikey_authenticate() is PostgREST's db-pre-request function: it lets the
 * request pass, as the role that the key's plan or api names, or raises what
 * PostgREST turns into a refusal.  apikey_check() answers for a gateway, which
 * guards something else, and so returns normally whatever it decides.
 *
 * PostgREST reads status, headers and body of an error from its message and
 * its detail, if the SQLSTATE is PGRST.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/formatting.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "http.h"

PG_FUNCTION_INFO_V1(apikey_authenticate);
PG_FUNCTION_INFO_V1(apikey_check);
PG_FUNCTION_INFO_V1(apikeys_in_maintenance);

/* Arguments of apikey_check(). */
enum
{
	ARG_PERMISSIONS,
	ARG_COST,
	ARG_API_ID,
	ARG_AUTH_REQUEST
};

/* ----- the request ----- */

/* A setting; NULL if it is unset, for which PostgREST leaves it empty. */
static const char *
setting(const char *name)
{
	const char *value = GetConfigOption(name, true, false);

	return value == NULL || value[0] == '\0' ? NULL : value;
}

/*
 * A header of the request as text, NULL if there is none.  The settings may
 * hold a secret: no message of the parser's gets out.
 */
static NullableDatum
header(const char *name)
{
	const char *headers = setting("request.headers");
	MemoryContext caller = CurrentMemoryContext;
	NullableDatum result = {.isnull = true};
	Datum		json;

	if (headers == NULL)
		return result;
	json = CStringGetTextDatum(headers);
	PG_TRY();
	{
		LOCAL_FCINFO(fcinfo, 2);

		InitFunctionCallInfoData(*fcinfo, NULL, 2, InvalidOid, NULL, NULL);
		fcinfo->args[0].value = json;
		fcinfo->args[0].isnull = false;
		fcinfo->args[1].value = CStringGetTextDatum(name);
		fcinfo->args[1].isnull = false;
		result.value = json_object_field_text(fcinfo);
		result.isnull = fcinfo->isnull;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		if (ERRCODE_TO_CATEGORY(geterrcode()) != ERRCODE_DATA_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
				 errmsg("setting \"request.headers\" is no JSON object")));
	}
	PG_END_TRY();
	explicit_bzero(VARDATA_ANY(DatumGetPointer(json)),
				   VARSIZE_ANY_EXHDR(DatumGetPointer(json)));
	return result;
}

static void
clear(NullableDatum text)
{
	if (!text.isnull)
		explicit_bzero(VARDATA_ANY(DatumGetPointer(text.value)),
					   VARSIZE_ANY_EXHDR(DatumGetPointer(text.value)));
}

/*
 * The secret that a header holds.  Spaces and tabs at the ends of its value are
 * no part of it (RFC 9110); PostgREST leaves those at its end.
 */
static NullableDatum
secret_of_header(const char *name)
{
	NullableDatum value = header(name);
	NullableDatum trimmed = value;
	const char *start;
	const char *end;

	if (value.isnull)
		return value;
	start = VARDATA_ANY(DatumGetPointer(value.value));
	end = start + VARSIZE_ANY_EXHDR(DatumGetPointer(value.value));
	while (start < end && (*start == ' ' || *start == '\t'))
		start++;
	while (start < end && (end[-1] == ' ' || end[-1] == '\t'))
		end--;
	trimmed.value = PointerGetDatum(cstring_to_text_with_len(start, end - start));
	clear(value);
	return trimmed;
}

static char *
header_string(const char *name)
{
	NullableDatum value = header(name);

	return value.isnull ? NULL : TextDatumGetCString(value.value);
}

static NullableDatum
as_text(const char *string)
{
	NullableDatum text = {.isnull = string == NULL};

	if (string != NULL)
		text.value = CStringGetTextDatum(string);
	return text;
}

/* Outside a request there is nothing to decide about. */
static void
check_request(void)
{
	if (setting("request.method") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there is no HTTP request"),
				 errdetail("PostgREST describes a request in settings such as \"request.headers\"."),
				 errhint("From SQL, call apikey_verify().")));
}

/* Whether a list of a setting has an element. */
static bool
is_listed(const char *list, const char *element)
{
	Size		length = strlen(element);

	for (const char *at = list; *at != '\0';)
	{
		Size		n;

		at += strspn(at, ", ");
		n = strcspn(at, ", ");
		if (n == length && n > 0 && memcmp(at, element, n) == 0)
			return true;
		at += n;
	}
	return false;
}

/* ----- the answer ----- */

/* Refuse what could not be decided: PostgREST would blame the method. */
static void
raise_standby(void)
{
	ereport(ERROR,
			(errcode(AK_ERRCODE_PGRST),
			 errmsg_internal("{\"code\":\"25006\",\"message\":\"this server is a standby and keeps no counts\",\"details\":null,\"hint\":null}"),
			 errdetail_internal("{\"status\":503,\"headers\":{}}"),
			 errhidestmt(true), errhidecontext(true)));
}

/*
 * Decide about the request's key.  Copies of the secret are cleared; the
 * setting that PostgREST has made holds it until the transaction ends.
 */
static void
decide(AkAsked *asked, AkDecided *decided)
{
	MemoryContext caller = CurrentMemoryContext;
	char	   *name = asc_tolower(ak_http_header, strlen(ak_http_header));
	char	   *api_id = asked->api_id;

	asked->secret = secret_of_header(name);
	if (ak_trusted_proxies[0] != '\0')
		asked->ip_address = ak_client_address(header_string("x-forwarded-for"));
	if (api_id == NULL && ak_http_api[0] != '\0')
		asked->api_id = ak_http_api;
	PG_TRY();
	{
		ak_verify(asked, decided);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(caller);
		clear(asked->secret);
		if (geterrcode() != ERRCODE_READ_ONLY_SQL_TRANSACTION)
			PG_RE_THROW();
		FlushErrorState();
		raise_standby();
	}
	PG_END_TRY();
	clear(asked->secret);
}

/*
 * Raise what PostgREST answers with the outcome.  It hides the statement and
 * the context, by which the server log knows it: see redact.c.
 */
static void
refuse(const AkDecided *decided)
{
	AkHeaders	headers = {0};
	StringInfoData detail;

	ak_headers_of_decision(&headers, decided);
	initStringInfo(&detail);
	appendStringInfo(&detail, "{\"status\":%d,\"headers\":",
					 ak_http_status(decided));
	ak_headers_as_object(&headers, &detail);
	appendStringInfoChar(&detail, '}');

	ereport(ERROR,
			(errcode(AK_ERRCODE_PGRST),
			 errmsg_internal("{\"code\":\"%s\",\"message\":\"%s\",\"details\":null,\"hint\":%s}",
							 ak_outcome_name(decided->outcome), ak_http_message(decided),
							 decided->outcome != AK_MALFORMED ? "null" :
							 psprintf("\"Send the API key in the header %s.\"", ak_http_header)),
			 errdetail_internal("%s", detail.data),
			 errhidestmt(true), errhidecontext(true)));
}

/* ----- the role ----- */

static void
bad_role(const char *role, const char *detail, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot switch to role \"%s\", which the key's plan or api names", role),
			 errdetail_internal("%s", detail),
			 errhint("%s", hint)));
}

/*
 * Go on as the role that the plan, or else the api, names, to the end of the
 * transaction.  It is never a superuser, and one that the session's user could
 * set anyhow.
 */
static void
switch_role(const AkDecided *decided)
{
	const char *role = decided->subject->plan.http_role;
	AkApi		api;
	Oid			oid;

	if (role[0] == '\0' && ak_api_by_id(decided->key->api_id, &api))
		role = api.http_role;
	if (role[0] == '\0')
		return;

	oid = get_role_oid(role, true);
	if (!OidIsValid(oid))
		bad_role(role, "The role does not exist.",
				 "Create it, or change http_role.");
	if (superuser_arg(oid))
		bad_role(role, "The role is a superuser.",
				 "Name a role with fewer rights as http_role.");
	if (!ak_may_set_role(GetSessionUserId(), oid))
		bad_role(role, "The role of the connection is no member of it.",
				 "Grant the role to the one that PostgREST connects as.");
	(void) set_config_option("role", role, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* ----- SQL ----- */

/*
 * apikeys.in_maintenance() -> boolean
 *
 * Functions that run as their owner keep this state of their caller.
 */
Datum
apikeys_in_maintenance(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(InSecurityRestrictedOperation());
}

/*
 * apikey_authenticate() -> void
 *
 * Verify the key of PostgREST's request.  Must run with the rights of its
 * caller, whose role it changes.
 *
 * Errors: PGRST for a refusal, 55000 outside a request or for a role that
 * cannot be set, 53000 if the worker does not keep up.
 */
Datum
apikey_authenticate(PG_FUNCTION_ARGS)
{
	AkAsked		asked = {.cost = 1};
	AkDecided	decided;
	AkHeaders	headers = {0};
	const char *path;

	check_request();
	path = setting("request.path");
	if (path != NULL && is_listed(ak_http_public_paths, path))
		PG_RETURN_VOID();

	asked.endpoint = as_text(path);
	asked.method = as_text(setting("request.method"));
	decide(&asked, &decided);
	if (decided.outcome != AK_VALID)
		refuse(&decided);

	ak_headers_of_decision(&headers, &decided);
	ak_headers_append(&headers);
	switch_role(&decided);
	PG_RETURN_VOID();
}

/*
 * The request that a gateway asks about, as it says: nginx and others send its
 * path and method in headers.  The query string is none of the history's
 * business.
 */
static void
read_original(AkAsked *asked)
{
	char	   *path = header_string("x-original-uri");
	char	   *method = header_string("x-original-method");

	if (path != NULL)
		path[strcspn(path, "?#")] = '\0';
	asked->endpoint = as_text(path ? path : setting("request.path"));
	asked->method = as_text(method ? method : setting("request.method"));
}

/* Who is calling, for the gateway to tell. */
static void
add_caller(AkHeaders *headers, const AkKey *key)
{
	ak_header_add(headers, "X-Api-Key-Id", ak_uuid_text(&key->id));
	if (key->user_id[0] != '\0')
		ak_header_add(headers, "X-Api-Key-User", ak_header_text(key->user_id));
}

/* PostgREST shows of an error no column: details tell which argument it is. */
static void
name_argument(void *name)
{
	errdetail_internal("field \"%s\"", (const char *) name);
}

static void
read_check_arguments(FunctionCallInfo fcinfo, AkAsked *asked)
{
	ErrorContextCallback named = {
		error_context_stack, name_argument, (void *) "cost"
	};

	error_context_stack = &named;
	asked->cost = ak_cost_arg(fcinfo, ARG_COST);
	named.arg = (void *) "permissions";
	if (!PG_ARGISNULL(ARG_PERMISSIONS))
		asked->permissions = ak_permissions_expression(PG_GETARG_DATUM(ARG_PERMISSIONS));
	error_context_stack = named.previous;
	if (!PG_ARGISNULL(ARG_API_ID))
		asked->api_id = text_to_cstring(PG_GETARG_TEXT_PP(ARG_API_ID));
}

/*
 * apikey_check(permissions text, cost bigint, api_id text,
 *				auth_request boolean) -> json
 *
 * Verify the key of a request for a gateway.  The decision is the answer's
 * status; auth_request of nginx takes no 429, and can have a 403 instead.
 *
 * Errors: 22004 and 22023 for arguments, 55000 outside a request, 53000 if the worker
 * does not keep up.
 */
Datum
apikey_check(PG_FUNCTION_ARGS)
{
	AkAsked		asked = {0};
	AkDecided	decided;
	AkHeaders	headers = {0};
	int			status;

	check_request();
	read_check_arguments(fcinfo, &asked);
	read_original(&asked);
	decide(&asked, &decided);

	status = ak_http_status(&decided);
	if (decided.outcome == AK_VALID)
		add_caller(&headers, decided.key);
	ak_headers_of_decision(&headers, &decided);
	ak_header_add(&headers, "X-Api-Key-Code", ak_outcome_name(decided.outcome));
	ak_header_add(&headers, "X-Api-Key-Status", psprintf("%d", status));
	ak_header_add(&headers, "Cache-Control", "no-store");
	if (status == 429 && !PG_ARGISNULL(ARG_AUTH_REQUEST) &&
		PG_GETARG_BOOL(ARG_AUTH_REQUEST))
		status = 403;
	if (status != 200)
	{
		ak_header_add(&headers, "Content-Type", AK_PROBLEM_TYPE);
		(void) set_config_option("response.status", psprintf("%d", status),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
	}
	ak_headers_append(&headers);
	PG_RETURN_TEXT_P(cstring_to_text(ak_http_body(&decided, status)));
}
