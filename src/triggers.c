/*-------------------------------------------------------------------------
 *
 * triggers.c
 *	  Triggers that run often or that SQL cannot say.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/sysattr.h"
#include "access/xact.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/rel.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_keys_before_write);
PG_FUNCTION_INFO_V1(apikeys_burst_follows_amount);
PG_FUNCTION_INFO_V1(apikeys_announce_change);
PG_FUNCTION_INFO_V1(apikeys_in_subscription);

/* ----- durable commits ----- */

static bool durable_commit_wanted = false;

/*
 * ForceSyncCommit() makes the commit durable here, but waits for a synchronous
 * standby only if synchronous_commit says so: raise it, for this transaction,
 * at the last moment at which no SET can undo it.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (durable_commit_wanted &&
				synchronous_commit < SYNCHRONOUS_COMMIT_ON)
				(void) set_config_option("synchronous_commit", "on",
										 PGC_USERSET, PGC_S_SESSION,
										 GUC_ACTION_LOCAL, true, 0, false);
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			durable_commit_wanted = false;
			break;
		default:
			break;
	}
}

/*
 * Once acknowledged, the transaction must not be lost: creating or revoking a
 * key under synchronous_commit = off, for instance.
 */
void
ak_force_durable_commit(void)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		registered = true;
	}
	ForceSyncCommit();
	durable_commit_wanted = true;
}

/*
 * apikeys.announce_change(): AFTER each statement that changes keys, and each
 * row of what backends remember.  Keys are read anew each time.
 */
Datum
apikeys_announce_change(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger",
						"announce_change")));
	ak_force_durable_commit();
	if (strcmp(RelationGetRelationName(data->tg_relation), "keys") != 0)
		ak_catalog_announce(RelationGetRelid(data->tg_relation));
	return PointerGetDatum(NULL);
}

/* ----- keys ----- */

/* A column of a row of apikeys.keys. */
static Datum
key_column(HeapTuple tuple, TupleDesc desc, AkKeyColumn column, bool *isnull)
{
	return heap_getattr(tuple, ak_catalog()->keys_attnum[column], desc, isnull);
}

static void
id_of(HeapTuple tuple, TupleDesc desc, AkKeyColumn column, char id[AK_ID_LEN])
{
	bool		isnull;
	Datum		value = key_column(tuple, desc, column, &isnull);

	id[0] = '\0';
	if (!isnull)
		text_to_cstring_buffer(DatumGetTextPP(value), id, AK_ID_LEN);
}

/*
 * Hold the user's number of live keys to what the plan allows.  The lock makes
 * concurrent creations for one user wait for each other; the count is of what
 * they have committed by then, whatever the transaction's snapshot.
 */
static void
check_max_keys(const char *user_id, const AkPlan *plan)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, ak_catalog()->keys,
						 hash_bytes((const unsigned char *) user_id,
									strlen(user_id)), 3);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (ak_count_live_keys(user_id, plan->max_keys_per_user) >=
		plan->max_keys_per_user)
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("user \"%s\" has as many live keys as plan \"%s\" allows (%d)",
						user_id, plan->id, plan->max_keys_per_user),
				 errhint("Delete a key of the user, or raise max_keys_per_user of the plan.")));
}

static HeapTuple
set_timestamp(HeapTuple tuple, TupleDesc desc, AkKeyColumn column,
			  TimestampTz value)
{
	int			attnum = ak_catalog()->keys_attnum[column];
	Datum		datum = TimestampTzGetDatum(value);
	bool		isnull = false;

	return heap_modify_tuple_by_cols(tuple, desc, 1, &attnum, &datum, &isnull);
}

/*
 * Check the permissions that are new to a key: a row that has got others by
 * other ways can still be changed and deleted.
 */
static void
check_permissions(HeapTuple old, HeapTuple new, TupleDesc desc)
{
	bool		isnull;
	Datum		value = key_column(new, desc, AK_KEY_PERMISSIONS, &isnull);
	ArrayType  *permissions;

	if (isnull)
		return;					/* the table's constraint says so */
	permissions = DatumGetArrayTypeP(value);
	if (old != NULL)
	{
		ArrayType  *before;

		value = key_column(old, desc, AK_KEY_PERMISSIONS, &isnull);
		before = DatumGetArrayTypeP(value);
		if (VARSIZE(before) == VARSIZE(permissions) &&
			memcmp(before, permissions, VARSIZE(before)) == 0)
			return;
	}
	ak_check_permissions(permissions);
}

/*
 * A key joins those of its user: find the plan that will apply to it, and hold
 * the user to its number of keys.
 */
static void
join_user(HeapTuple tuple, TupleDesc desc, AkPlan *plan)
{
	char		user_id[AK_ID_LEN];
	char		plan_id[AK_ID_LEN];
	char		api_id[AK_ID_LEN];
	AkUser		user = {.exists = false};
	bool		shared;

	id_of(tuple, desc, AK_KEY_USER_ID, user_id);
	id_of(tuple, desc, AK_KEY_PLAN_ID, plan_id);
	id_of(tuple, desc, AK_KEY_API_ID, api_id);
	if (user_id[0] != '\0')
	{
		ak_user_hold(user_id);
		ak_user_by_id(user_id, &user);
	}
	ak_applicable_plan(plan_id, &user, api_id, plan, &shared);

	/* An unknown plan, which has no name, is for the foreign key to refuse. */
	if (user_id[0] != '\0' && plan->name != NULL &&
		plan->max_keys_per_user >= 0)
		check_max_keys(user_id, plan);
}

/* A new key must not be one that has expired. */
void
ak_check_expiry(TimestampTz expires_at)
{
	if (expires_at <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expires_at must be in the future")));
}

/*
 * A new key: check it, and let its plan say when it expires.
 */
static HeapTuple
complete_new_key(HeapTuple tuple, TupleDesc desc)
{
	AkPlan		plan;
	bool		isnull;
	Datum		expires_at = key_column(tuple, desc, AK_KEY_EXPIRES_AT, &isnull);

	if (!isnull)
		ak_check_expiry(DatumGetTimestampTz(expires_at));
	check_permissions(NULL, tuple, desc);

	join_user(tuple, desc, &plan);
	if (isnull && plan.has_lifetime)
		tuple = set_timestamp(tuple, desc, AK_KEY_EXPIRES_AT,
							  DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
																	  TimestampTzGetDatum(GetCurrentTransactionStartTimestamp()),
																	  IntervalPGetDatum(&plan.lifetime))));
	return tuple;
}

/* A text[] or cidr[] of a key is a list. */
void
ak_check_dimensions(ArrayType *array, const char *name)
{
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be an array of one dimension", name),
				 errhint("Give them one after the other, such as {one,two}.")));
}

static void
check_lists(HeapTuple tuple, TupleDesc desc)
{
	static const struct
	{
		AkKeyColumn column;
		const char *name;
	}			lists[] = {
		{AK_KEY_PERMISSIONS, "permissions"},
		{AK_KEY_ROLES, "roles"},
		{AK_KEY_ALLOWED_IPS, "allowed_ips"}
	};

	for (int i = 0; i < lengthof(lists); i++)
	{
		bool		isnull;
		Datum		value = key_column(tuple, desc, lists[i].column, &isnull);

		if (!isnull)
			ak_check_dimensions(DatumGetArrayTypeP(value), lists[i].name);
	}
}

/* Made by this transaction, rather than restored or put back on deletion. */
static bool
is_new(HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	Datum		created_at = key_column(tuple, desc, AK_KEY_CREATED_AT, &isnull);

	if (isnull || DatumGetTimestampTz(created_at) !=
		GetCurrentTransactionStartTimestamp())
		return false;
	(void) key_column(tuple, desc, AK_KEY_DELETED_AT, &isnull);
	return isnull;
}

static void
check_unchanged(HeapTuple old, HeapTuple new, TupleDesc desc,
				AkKeyColumn column, const char *name)
{
	bool		old_null;
	bool		new_null;
	Datum		before = key_column(old, desc, column, &old_null);
	Datum		after = key_column(new, desc, column, &new_null);
	Form_pg_attribute att = TupleDescAttr(desc, ak_catalog()->keys_attnum[column] - 1);

	if (old_null != new_null ||
		(!old_null && !(att->attbyval ? before == after :
						memcmp(DatumGetPointer(before),
							   DatumGetPointer(after), att->attlen) == 0)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("column \"%s\" of a key cannot be changed", name)));
}

/* A live key that had another user before, or was deleted. */
static bool
changes_hands(HeapTuple old, HeapTuple new, TupleDesc desc)
{
	char		before[AK_ID_LEN];
	char		after[AK_ID_LEN];
	bool		was_live;
	bool		is_live;

	id_of(old, desc, AK_KEY_USER_ID, before);
	id_of(new, desc, AK_KEY_USER_ID, after);
	(void) key_column(old, desc, AK_KEY_DELETED_AT, &was_live);
	(void) key_column(new, desc, AK_KEY_DELETED_AT, &is_live);
	return is_live && (!was_live || strcmp(before, after) != 0);
}

/* apikeys.keys_before_write(): BEFORE INSERT OR UPDATE, each row of keys. */
Datum
apikeys_keys_before_write(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	HeapTuple	tuple;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger before each row",
						"keys_before_write")));
	desc = RelationGetDescr(data->tg_relation);
	if (TRIGGER_FIRED_BY_UPDATE(data->tg_event))
	{
		tuple = data->tg_newtuple;
		check_lists(tuple, desc);
		check_unchanged(data->tg_trigtuple, tuple, desc, AK_KEY_ID, "id");
		check_unchanged(data->tg_trigtuple, tuple, desc, AK_KEY_CREATED_AT,
						"created_at");
		if (changes_hands(data->tg_trigtuple, tuple, desc))
		{
			AkPlan		plan;

			join_user(tuple, desc, &plan);
		}
		check_permissions(data->tg_trigtuple, tuple, desc);
		tuple = set_timestamp(tuple, desc, AK_KEY_UPDATED_AT,
							  GetCurrentTransactionStartTimestamp());
	}
	else
	{
		tuple = data->tg_trigtuple;
		check_lists(tuple, desc);
		if (is_new(tuple, desc))
			tuple = complete_new_key(tuple, desc);
	}
	return PointerGetDatum(tuple);
}

/* ----- rates ----- */

static int64
bigint_of(HeapTuple tuple, TupleDesc desc, const char *column, bool *isnull)
{
	Datum		value = heap_getattr(tuple, SPI_fnumber(desc, column), desc,
									 isnull);

	return *isnull ? 0 : DatumGetInt64(value);
}

/*
 * apikeys.burst_follows_amount(): BEFORE UPDATE OF amount, each row of limits.
 *
 * A burst that equals the amount, as one that was not given, goes on equalling it,
 * unless the statement sets it too.  In C, since nothing else can see which columns a
 * statement sets.
 */
Datum
apikeys_burst_follows_amount(PG_FUNCTION_ARGS)
{
	TriggerData *data = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	int			burst;
	Datum		value;
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_BEFORE(data->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(data->tg_event) ||
		!TRIGGER_FIRED_BY_UPDATE(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called as a trigger before each row",
						"burst_follows_amount")));
	desc = RelationGetDescr(data->tg_relation);
	burst = SPI_fnumber(desc, "burst");
	if (bms_is_member(burst - FirstLowInvalidHeapAttributeNumber,
					  data->tg_updatedcols) ||
		bigint_of(data->tg_trigtuple, desc, "burst", &isnull) !=
		bigint_of(data->tg_trigtuple, desc, "amount", &isnull))
		return PointerGetDatum(data->tg_newtuple);
	value = Int64GetDatum(bigint_of(data->tg_newtuple, desc, "amount", &isnull));
	return PointerGetDatum(heap_modify_tuple_by_cols(data->tg_newtuple, desc, 1,
													 &burst, &value, &isnull));
}

/* ----- logical replication ----- */

/*
 * apikeys.in_subscription(): triggers that are ENABLE ALWAYS ask.
 *
 * A subscriber does what was done at the publisher, and what that one's triggers
 * have done comes as changes of their own.  If a trigger here does it again, or
 * refuses it, the subscription stops, and no revocation comes through any more.
 *
 * Only a superuser's counts, who could do without triggers: another's must not be
 * a way around them.
 */
Datum
apikeys_in_subscription(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(IsLogicalWorker() && superuser_arg(GetSessionUserId()));
}
