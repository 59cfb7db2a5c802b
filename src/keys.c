/*-------------------------------------------------------------------------
 *
 * keys.c
 *	  Make keys, and give a key a new secret.
 *
 * These are the only places where a secret exists: it goes into the one row
 * that is returned, and the buffers are cleared.  Tables see its digest and
 * its start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikey_create);
PG_FUNCTION_INFO_V1(apikey_regenerate);

/* The longest grace: what is longer would end after the last of all times. */
#define GRACE_YEARS 10000

/* Arguments of apikey_create(). */
enum
{
	ARG_NAME,
	ARG_USER_ID,
	ARG_PLAN_ID,
	ARG_METADATA,
	ARG_EXPIRES_AT,
	ARG_PREFIX,
	ARG_API_ID,
	ARG_PERMISSIONS,
	ARG_ENABLED,
	ARG_ALLOWED_IPS,
	ARG_ROLES,
	ARG_CREDITS,
	ARG_REFILL_AMOUNT,
	ARG_REFILL_EVERY,
	ARG_REFILL_DAY,
	ARG_COUNT
};

/* apikeys.issued_key: id, api_key, then the rest of a key object. */
#define OUT_API_KEY 1
#define OUT_COLUMNS 25

/* The columns of apikeys.issued_key but for the secret, in order. */
#define RETURNING_KEY \
	" RETURNING id, api_id, name, user_id, plan_id," \
	" CASE WHEN deleted_at IS NOT NULL THEN 'deleted'" \
	" WHEN NOT enabled OR fenced_at IS NOT NULL THEN 'disabled'" \
	" WHEN expires_at <= statement_timestamp() THEN 'expired'" \
	" ELSE 'active' END," \
	" start, permissions, metadata, expires_at, created_at, updated_at," \
	" last_used_at, deleted_at, enabled, allowed_ips, regenerated_at," \
	" previous_expires_at, roles," \
	" apikeys.balance(id, 'key', credits, refill_amount, refill_every," \
	" refill_day, refill_since), refill_amount, refill_every, refill_day," \
	" fenced_at"

/* Run a statement whose plan is kept for the backend's life. */
static int
execute_kept(SPIPlanPtr *plan, const char *query, int nargs, Oid *types,
			 Datum *values, const char *nulls)
{
	int			result;

	if (*plan == NULL)
	{
		*plan = SPI_prepare(query, nargs, types);
		if (*plan == NULL || SPI_keepplan(*plan) != 0)
			elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	}
	result = SPI_execute_plan(*plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute: %s", SPI_result_code_string(result));
	return result;
}

/*
 * The answer: the one row that the last statement returned, with the secret,
 * which is cleared.
 */
static Datum
issued_key(FunctionCallInfo fcinfo, char *secret)
{
	TupleDesc	desc;
	Datum		row[OUT_COLUMNS];
	bool		row_nulls[OUT_COLUMNS];
	Datum		values[OUT_COLUMNS];
	bool		nulls[OUT_COLUMNS];
	text	   *api_key = cstring_to_text(secret);
	HeapTuple	tuple;
	Datum		whole;
	Datum		result;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE ||
		desc->natts != OUT_COLUMNS ||
		SPI_tuptable->tupdesc->natts != OUT_COLUMNS - 1)
		elog(ERROR, "unexpected columns in apikeys.issued_key");

	heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, row,
					  row_nulls);
	for (int i = 0; i < OUT_COLUMNS; i++)
	{
		int			from = i < OUT_API_KEY ? i : i - 1;

		values[i] = i == OUT_API_KEY ? PointerGetDatum(api_key) : row[from];
		nulls[i] = i == OUT_API_KEY ? false : row_nulls[from];
	}
	tuple = heap_form_tuple(BlessTupleDesc(desc), values, nulls);
	whole = HeapTupleGetDatum(tuple);	/* a copy, if a value was out of line */
	result = SPI_datumTransfer(whole, false, -1);
	explicit_bzero(DatumGetPointer(whole), VARSIZE(DatumGetPointer(whole)));
	explicit_bzero(tuple->t_data, tuple->t_len);
	explicit_bzero(VARDATA(api_key), VARSIZE_ANY_EXHDR(api_key));
	explicit_bzero(secret, strlen(secret));
	return result;
}

/* The start of a secret and its digest, as the tables keep them. */
static void
stored_form(const char *secret, Datum *start, Datum *digest)
{
	bytea	   *bytes = palloc(VARHDRSZ + AK_DIGEST_LEN);

	SET_VARSIZE(bytes, VARHDRSZ + AK_DIGEST_LEN);
	ak_secret_digest(secret, strlen(secret), (uint8 *) VARDATA(bytes));
	*digest = PointerGetDatum(bytes);
	*start = PointerGetDatum(cstring_to_text_with_len(secret,
													  ak_secret_start_length(secret)));
}

/* The api of a new key; "default" is made when it is first needed. */
static void
find_or_make_api(const char *id, AkApi *api)
{
	if (strlen(id) < AK_ID_LEN && ak_api_by_id(id, api))
		return;
	if (strcmp(id, "default") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("api \"%s\" does not exist", id),
				 errhint("Insert a row into apikeys.apis first.")));
	if (SPI_execute("INSERT INTO apikeys.apis (id, name)"
					" VALUES ('default', 'Default') ON CONFLICT DO NOTHING",
					false, 0) < 0)
		elog(ERROR, "could not make the default api");
}

static void
check_plan(const char *id)
{
	AkPlan		plan;
	bool		exists = strlen(id) < AK_ID_LEN && ak_plan_by_id(id, &plan);

	/* An inactive plan may be prepared for; a deleted one may not. */
	if (exists && !plan.is_deleted)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_NO_DATA_FOUND),
			 errmsg("plan \"%s\" does not exist", id),
			 exists ? errdetail("It was deleted.") : 0,
			 exists ? errhint("apikey_plan_create() revives it.") :
			 errhint("Make it with apikey_plan_create().")));
}

/* A user needs no row; but the keys of one that was deleted are refused. */
static void
check_user(const char *id)
{
	AkUser		user;

	if (ak_user_by_id(id, &user) && user.is_deleted)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("user \"%s\" does not exist", id),
				 errdetail("It was deleted."),
				 errhint("apikey_user_create() revives it.")));
}

static void
check_roles(ArrayType *roles)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(roles, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls,
					  &n);
	for (int i = 0; i < n; i++)
	{
		AkRole		role;
		char	   *name;

		if (nulls[i])
			continue;			/* the table's constraint says so */
		name = TextDatumGetCString(names[i]);
		if (!ak_role_by_name(name, &role))
			ereport(ERROR,
					(errcode(ERRCODE_NO_DATA_FOUND),
					 errmsg("role \"%s\" does not exist", name),
					 errhint("Make it with apikey_role_create().")));
	}
}

static const char *
choose_prefix(FunctionCallInfo fcinfo, const AkApi *api)
{
	char	   *prefix;

	if (PG_ARGISNULL(ARG_PREFIX))
		return api->default_prefix[0] != '\0' ?
			api->default_prefix : ak_default_prefix;
	prefix = text_to_cstring(PG_GETARG_TEXT_PP(ARG_PREFIX));
	if (!ak_prefix_is_valid(prefix))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid prefix"),
				 errdetail("A prefix is 1 to %d letters, digits or underscores.",
						   AK_PREFIX_MAX)));
	return prefix;
}

static void
check_array(FunctionCallInfo fcinfo, int arg, const char *name)
{
	ArrayType  *array;

	if (PG_ARGISNULL(arg))
		return;
	array = PG_GETARG_ARRAYTYPE_P(arg);
	ak_check_dimensions(array, name);
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not contain nulls", name)));
}

/*
 * What the table's constraints and triggers would refuse too, but in words of
 * ours and before the statement: constraints show the row, digest and all, and
 * triggers the statement.
 */
static void
check_values(FunctionCallInfo fcinfo)
{
	text	   *name = PG_GETARG_TEXT_PP(ARG_NAME);
	int			length = pg_mbstrlen_with_len(VARDATA_ANY(name),
											  VARSIZE_ANY_EXHDR(name));

	if (length < 1 || length > 255)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("name of a key must have between 1 and 255 characters")));
	if (!PG_ARGISNULL(ARG_USER_ID))
	{
		text	   *user_id = PG_GETARG_TEXT_PP(ARG_USER_ID);

		if (VARSIZE_ANY_EXHDR(user_id) < 1 ||
			VARSIZE_ANY_EXHDR(user_id) >= AK_ID_LEN)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("user_id must have between 1 and %d bytes",
							AK_ID_LEN - 1)));
	}
	if (!PG_ARGISNULL(ARG_METADATA) &&
		!JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(ARG_METADATA)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("metadata must be a JSON object")));
	if (!PG_ARGISNULL(ARG_EXPIRES_AT))
		ak_check_expiry(PG_GETARG_TIMESTAMPTZ(ARG_EXPIRES_AT));
	check_array(fcinfo, ARG_PERMISSIONS, "permissions");
	check_array(fcinfo, ARG_ROLES, "roles");
	check_array(fcinfo, ARG_ALLOWED_IPS, "allowed_ips");
	if (!PG_ARGISNULL(ARG_CREDITS) && PG_GETARG_INT64(ARG_CREDITS) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("credits must not be negative"),
				 errhint("NULL is unlimited.")));
}

/*
 * apikey_create(name text, user_id text, plan_id text, metadata jsonb,
 *				 expires_at timestamptz, prefix text, api_id text,
 *				 permissions text[], enabled boolean, allowed_ips cidr[],
 *				 roles text[], credits bigint, refill_amount bigint,
 *				 refill_every interval, refill_day int) -> apikeys.issued_key
 *
 * Errors: 22004 and 22023 for arguments, P0002 for an unknown plan, api or
 * role and for a deleted user, 23514 if the user has as many keys as the plan
 * allows.
 */
Datum
apikey_create(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {
		TEXTOID, TEXTOID, TEXTOID, JSONBOID, TIMESTAMPTZOID, TEXTOID, TEXTOID,
		TEXTARRAYOID, BOOLOID, CIDRARRAYOID, TEXTARRAYOID, INT8OID, INT8OID,
		INTERVALOID, INT4OID, BYTEAOID
	};
	Datum		values[lengthof(types)];
	char		nulls[lengthof(types)];
	char		secret[AK_SECRET_MAX + 1];
	AkApi		api = {.exists = false};
	Datum		result;

	AcceptInvalidationMessages();
	if (PG_ARGISNULL(ARG_NAME) || PG_ARGISNULL(ARG_API_ID) ||
		PG_ARGISNULL(ARG_ENABLED))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null",
						PG_ARGISNULL(ARG_NAME) ? "name" :
						PG_ARGISNULL(ARG_API_ID) ? "api_id" : "enabled")));
	check_values(fcinfo);

	SPI_connect();
	find_or_make_api(text_to_cstring(PG_GETARG_TEXT_PP(ARG_API_ID)), &api);
	if (!PG_ARGISNULL(ARG_PLAN_ID))
		check_plan(text_to_cstring(PG_GETARG_TEXT_PP(ARG_PLAN_ID)));
	if (!PG_ARGISNULL(ARG_USER_ID))
		check_user(text_to_cstring(PG_GETARG_TEXT_PP(ARG_USER_ID)));
	if (!PG_ARGISNULL(ARG_ROLES))
		check_roles(PG_GETARG_ARRAYTYPE_P(ARG_ROLES));

	for (int i = 0; i < ARG_COUNT; i++)
	{
		values[i] = fcinfo->args[i].value;
		nulls[i] = fcinfo->args[i].isnull ? 'n' : ' ';
	}
	ak_secret_make(choose_prefix(fcinfo, &api), secret);
	stored_form(secret, &values[ARG_PREFIX], &values[ARG_COUNT]);
	nulls[ARG_PREFIX] = nulls[ARG_COUNT] = ' ';

	execute_kept(&plan,
				 "INSERT INTO apikeys.keys (name, user_id, plan_id, metadata,"
				 " expires_at, start, api_id, permissions, enabled,"
				 " allowed_ips, roles, credits, refill_amount, refill_every,"
				 " refill_day, digest) VALUES ($1, $2, $3,"
				 " coalesce($4, '{}'), $5, $6, $7, coalesce($8, '{}'), $9,"
				 " $10, coalesce($11, '{}'), coalesce($12, $13), $13, $14, $15,"
				 " $16)" RETURNING_KEY,
				 lengthof(types), types, values, nulls);
	result = issued_key(fcinfo, secret);
	SPI_finish();
	PG_RETURN_DATUM(result);
}

/*
 * Say that a key does not exist, and whether it was deleted.
 */
static void
refuse_unknown_key(Datum id)
{
	Oid			type = UUIDOID;

	(void) SPI_execute_with_args("SELECT apikeys.refuse_unknown('key', $1::text)",
								 1, &type, &id, NULL, false, 0);
	elog(ERROR, "unknown key was not refused");
}

/*
 * Take the prefix of a key's secret from its start, and lock the key.  A fenced
 * key's secret may not get a grace.
 */
static void
lock_prefix(Datum id, bool has_grace, char prefix[AK_PREFIX_MAX + 1])
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {UUIDOID};
	char	   *start;
	int			length;
	bool		is_null;

	execute_kept(&plan,
				 "SELECT start, fenced_at FROM apikeys.keys"
				 " WHERE id = $1 AND deleted_at IS NULL FOR UPDATE",
				 lengthof(types), types, &id, NULL);
	if (SPI_processed == 0)
		refuse_unknown_key(id);
	(void) SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2,
						 &is_null);
	if (has_grace && !is_null)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("key \"%s\" is fenced",
						ak_uuid_text(DatumGetUUIDP(id))),
				 errdetail("Its secret is refused and cannot be given a grace."),
				 errhint("Regenerate it without a grace, or lift the fence with apikey_unfence().")));
	start = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	length = Max((int) strlen(start) - AK_START_RANDOM - 1, 0);
	strlcpy(prefix, start, Min(length, AK_PREFIX_MAX) + 1);

	/* A key imported by hand may show any start. */
	if (!ak_prefix_is_valid(prefix))
		strlcpy(prefix, ak_default_prefix, AK_PREFIX_MAX + 1);
}

/*
 * apikey_regenerate(id uuid, grace interval) -> apikeys.issued_key
 *
 * Give a key a new secret; all else stays.  With a grace, the old secret works
 * for that long (10,000 years at most), though never beyond the key's expiry.
 * A fence is on the old secret: it is lifted.
 *
 * Errors: P0002 for an unknown or deleted key, 22004 and 22023 for arguments,
 * 55000 for a grace of a fenced key.
 */
Datum
apikey_regenerate(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	static Oid	types[] = {UUIDOID, INTERVALOID, TEXTOID, BYTEAOID};
	Datum		values[lengthof(types)];
	Interval	none = {0};
	Interval	longest = {.month = GRACE_YEARS * MONTHS_PER_YEAR};
	bool		has_grace;
	char		prefix[AK_PREFIX_MAX + 1];
	char		secret[AK_SECRET_MAX + 1];
	Datum		result;

	AcceptInvalidationMessages();
	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", PG_ARGISNULL(0) ? "id" : "grace")));
	if (DatumGetBool(DirectFunctionCall2(interval_lt, PG_GETARG_DATUM(1),
										 IntervalPGetDatum(&none))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("grace must not be negative")));
	has_grace = DatumGetBool(DirectFunctionCall2(interval_gt, PG_GETARG_DATUM(1),
												 IntervalPGetDatum(&none)));

	SPI_connect();
	values[0] = PG_GETARG_DATUM(0);
	values[1] = PG_GETARG_DATUM(1);
	if (DatumGetBool(DirectFunctionCall2(interval_gt, values[1],
										 IntervalPGetDatum(&longest))))
		values[1] = IntervalPGetDatum(&longest);
	lock_prefix(values[0], has_grace, prefix);
	ak_secret_make(prefix, secret);
	stored_form(secret, &values[2], &values[3]);
	execute_kept(&plan,
				 "UPDATE apikeys.keys SET start = $3, digest = $4,"
				 " regenerated_at = now(), fenced_at = NULL,"
				 " previous_digest = CASE WHEN $2 > '0' THEN digest END,"
				 " previous_expires_at = CASE WHEN $2 > '0'"
				 " THEN least(expires_at, clock_timestamp() + $2) END"
				 " WHERE id = $1 AND deleted_at IS NULL" RETURNING_KEY,
				 lengthof(types), types, values, NULL);
	if (SPI_processed != 1)
		elog(ERROR, "key vanished while it was locked");
	result = issued_key(fcinfo, secret);
	SPI_finish();
	PG_RETURN_DATUM(result);
}
