/*-------------------------------------------------------------------------
 *
 * purge.c
 *	  Remove for good what was deleted.
 *
 * A DELETE marks rows: the triggers put them back (60_triggers.sql).  They let
 * rows go only while apikey_purge() runs in the session, and ask for that here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_in_purge);
PG_FUNCTION_INFO_V1(apikey_purge);

static bool in_purge = false;

/* apikeys.in_purge(): the soft-delete triggers ask. */
Datum
apikeys_in_purge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(in_purge);
}

/* Deleted, and nothing refers to it any more. */
#define UNUSED_USER \
	" u.deleted_at <= now() - $1 AND u.id = ANY ($2)" \
	" AND NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.user_id = u.id)"
#define UNUSED_PLAN \
	" p.deleted_at <= now() - $1" \
	" AND NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.plan_id = p.id)" \
	" AND NOT EXISTS (SELECT FROM apikeys.users u WHERE u.plan_id = p.id)" \
	" AND NOT EXISTS (SELECT FROM apikeys.apis a WHERE a.default_plan_id = p.id)"

/* What a purge is asked for: parameters of its statements. */
typedef struct Purge
{
	Datum		older_than;
	Datum		user_ids;
} Purge;

/*
 * Run a statement of the purge.  It sees what is committed by now, whatever the
 * transaction's snapshot: a key that was made meanwhile keeps its user and plan.
 */
static int64
purge_with(const Purge *purge, const char *query)
{
	Oid			types[] = {INTERVALOID, TEXTARRAYOID};
	Datum		values[] = {purge->older_than, purge->user_ids};
	SPIPlanPtr	plan = SPI_prepare(query, 2, types);

	if (plan == NULL ||
		SPI_execute_snapshot(plan, values, NULL, GetLatestSnapshot(),
							 InvalidSnapshot, false, true, 0) < 0)
		elog(ERROR, "could not purge");
	return SPI_processed;
}

/*
 * Lock the deleted users who seem to have no keys, and whom nobody is giving one
 * (ak_user_hold), so that another look at their keys is good until the transaction
 * ends.  Returns their ids.
 */
static Datum
lock_deleted_users(const Purge *purge)
{
	bool		isnull;

	(void) purge_with(purge, "SELECT coalesce(array_agg(l.id), $2)"
					  " FROM (SELECT u.id FROM apikeys.users u"
					  " WHERE u.deleted_at <= now() - $1"
					  " AND NOT EXISTS (SELECT FROM apikeys.keys k WHERE k.user_id = u.id)"
					  " FOR UPDATE SKIP LOCKED) l");
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
}

/*
 * apikey_purge(older_than interval) -> bigint
 *
 * Remove for good the keys, users and plans that were deleted at least that
 * long ago; users and plans that something still refers to stay: without its
 * user's row, a key would be let in.  Their usage is removed by the worker,
 * within a day or so.  Returns how many keys, users and plans went.
 */
Datum
apikey_purge(PG_FUNCTION_ARGS)
{
	Purge		purge;
	int64		removed = 0;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("older_than must not be null")));
	purge.older_than = PG_GETARG_DATUM(0);
	purge.user_ids = PointerGetDatum(construct_empty_array(TEXTOID));
	if (DatumGetBool(DirectFunctionCall2(interval_lt, purge.older_than,
										 IntervalPGetDatum(palloc0(sizeof(Interval))))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("older_than must not be negative")));

	SPI_connect();
	in_purge = true;
	PG_TRY();
	{
		(void) purge_with(&purge,
						  "DELETE FROM apikeys.limits l USING apikeys.keys k"
						  " WHERE l.key_id = k.id"
						  " AND k.deleted_at <= now() - $1");
		removed += purge_with(&purge, "DELETE FROM apikeys.keys"
							  " WHERE deleted_at <= now() - $1");
		purge.user_ids = lock_deleted_users(&purge);
		(void) purge_with(&purge,
						  "DELETE FROM apikeys.limits l USING apikeys.users u"
						  " WHERE l.user_id = u.id AND" UNUSED_USER);
		removed += purge_with(&purge, "DELETE FROM apikeys.users u"
							  " WHERE" UNUSED_USER);
		(void) purge_with(&purge,
						  "DELETE FROM apikeys.limits l USING apikeys.plans p"
						  " WHERE l.plan_id = p.id AND" UNUSED_PLAN);
		removed += purge_with(&purge, "DELETE FROM apikeys.plans p"
							  " WHERE" UNUSED_PLAN);
	}
	PG_FINALLY();
	{
		in_purge = false;
	}
	PG_END_TRY();
	SPI_finish();
	PG_RETURN_INT64(removed);
}
