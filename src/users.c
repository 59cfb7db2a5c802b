/*-------------------------------------------------------------------------
 *
 * users.c
 *	  Find the user of a key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "common/hashfn.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "remember.h"

/*
 * There may be many, most without a row: what is remembered of one takes as
 * much memory as it needs.  Of two whose ids have the same hash, one is.
 */
#define USERS_MAX 16384

typedef struct KnownUser
{
	uint64		id_hash;
	const char *id;
	const char *plan_id;
	bool		exists;			/* else the rest is unset */
	bool		is_usable;
	bool		is_deleted;
	pg_uuid_t	subject_id;
	TimestampTz custom_start;
	AkCredits  *credits;		/* NULL: not limited */
	AkRates		rates;
} KnownUser;

static AkMemory users = {.name = "apikeys users",.key_size = sizeof(uint64),.entry_size = sizeof(KnownUser),.max = USERS_MAX};

/* Whether there are any users, as of these changes. */
static uint64 any_users_changes = 0;
static bool any_users;

static bool
visit_any(Relation rel, HeapTuple tuple, void *arg)
{
	*(bool *) arg = true;
	return false;
}

/* Many databases have none: then no id need be looked up. */
static bool
are_there_users(const AkCatalog *catalog, uint64 changes)
{
	if (any_users_changes != changes)
	{
		bool		found = false;

		ak_visit_rows(catalog->users, catalog->users_pkey, NULL, NULL, visit_any,
					  &found);
		any_users = found;
		any_users_changes = changes;
	}
	return any_users;
}

static uint64
hash_of_id(const char *id)
{
	return hash_bytes_extended((const unsigned char *) id, strlen(id), 0);
}

static const KnownUser *
remembered_user(const char *id)
{
	uint64		hash = hash_of_id(id);
	const KnownUser *known = ak_remembered(&users, &hash);

	return known != NULL && strcmp(known->id, id) == 0 ? known : NULL;
}

static void
remember_user(const AkUser *user, uint64 changes)
{
	KnownUser	known = {
		.id_hash = hash_of_id(user->id),
		.exists = user->exists,
		.is_usable = user->is_usable,
		.is_deleted = user->is_deleted,
		.subject_id = user->subject_id,
		.custom_start = user->custom_start
	};

	ak_memory_prepare(&users, changes);
	known.id = MemoryContextStrdup(users.context, user->id);
	known.plan_id = user->plan_id[0] == '\0' ? "" :
		MemoryContextStrdup(users.context, user->plan_id);
	if (user->credits.is_limited)
	{
		known.credits = MemoryContextAlloc(users.context, sizeof(AkCredits));
		*known.credits = user->credits;
	}
	known.rates = ak_keep_rates(&users, &user->rates);
	ak_remember(&users, &known);
}

static void
recall_user(const KnownUser *known, AkUser *user)
{
	user->exists = known->exists;
	user->is_usable = known->is_usable;
	user->is_deleted = known->is_deleted;
	strlcpy(user->plan_id, known->plan_id, AK_ID_LEN);
	user->subject_id = known->subject_id;
	user->custom_start = known->custom_start;
	if (known->credits != NULL)
		user->credits = *known->credits;
	else
		user->credits.is_limited = false;
	user->rates = known->rates;
}

static void
read_refill(Relation rel, HeapTuple tuple, AkCredits *credits)
{
	bool		isnull;
	Datum		value = ak_column_of(rel, tuple, "refill_amount", &isnull);

	if (isnull)
		return;
	credits->refill_amount = DatumGetInt64(value);
	value = ak_column_of(rel, tuple, "refill_every", &isnull);
	credits->refill_every = *DatumGetIntervalP(value);
	value = ak_column_of(rel, tuple, "refill_since", &isnull);
	credits->refill_since = DatumGetTimestampTz(value);
	value = ak_column_of(rel, tuple, "refill_day", &isnull);
	credits->refill_day = isnull ? 0 : DatumGetInt32(value);
}

static bool
visit_user(Relation rel, HeapTuple tuple, void *arg)
{
	AkUser	   *user = arg;
	bool		isnull;
	bool		not_deleted;
	Datum		value;

	user->exists = true;
	value = ak_column_of(rel, tuple, "is_disabled", &isnull);
	(void) ak_column_of(rel, tuple, "deleted_at", &not_deleted);
	user->is_deleted = !not_deleted;
	user->is_usable = !DatumGetBool(value) && not_deleted;
	value = ak_column_of(rel, tuple, "plan_id", &isnull);
	ak_copy_id(user->plan_id, value, isnull);
	value = ak_column_of(rel, tuple, "custom_start", &isnull);
	user->custom_start = isnull ? AK_CALENDAR : DatumGetTimestampTz(value);
	value = ak_column_of(rel, tuple, "subject_id", &isnull);
	user->subject_id = *DatumGetUUIDP(value);
	value = ak_column_of(rel, tuple, "credits", &isnull);
	user->credits.is_limited = !isnull;
	if (!isnull)
	{
		user->credits.granted = DatumGetInt64(value);
		read_refill(rel, tuple, &user->credits);
	}
	return false;
}

/* A user's row, if there is one; it may be disabled or deleted. */
bool
ak_user_by_id(const char *id, AkUser *user)
{
	const AkCatalog *catalog = ak_catalog();
	uint64		changes = ak_catalog_changes();
	const KnownUser *known;

	memset(user, 0, sizeof(AkUser));
	strlcpy(user->id, id, AK_ID_LEN);
	user->custom_start = AK_CALENDAR;
	if (!are_there_users(catalog, changes))
		return false;
	known = remembered_user(id);
	if (known != NULL)
	{
		recall_user(known, user);
		return user->exists;
	}
	ak_visit_rows(catalog->users, catalog->users_pkey, "id", id, visit_user, user);
	if (user->exists)
		ak_rates_of(AK_OWNER_USER, CStringGetTextDatum(id),
					CurrentMemoryContext, &user->rates);
	remember_user(user, changes);
	return user->exists;
}

static bool
visit_place(Relation rel, HeapTuple tuple, void *arg)
{
	*(ItemPointer) arg = tuple->t_self;
	return false;
}

/*
 * Hold a user's row until the transaction ends, as a foreign key would: a key
 * whose user is purged meanwhile would be let in, without the user's limits.
 * Waits for who is deleting the row, and holds what that has left of it.
 */
void
ak_user_hold(const char *id)
{
	const AkCatalog *catalog = ak_catalog();
	Relation	rel;
	TupleTableSlot *slot;
	ItemPointerData place;
	TM_FailureData failure;
	TM_Result	result;

	if (!are_there_users(catalog, ak_catalog_changes()))
		return;
	rel = table_open(catalog->users, RowShareLock);
	slot = table_slot_create(rel, NULL);
	do
	{
		CHECK_FOR_INTERRUPTS();
		ItemPointerSetInvalid(&place);
		ak_visit_rows(catalog->users, catalog->users_pkey, "id", id,
					  visit_place, &place);
		if (!ItemPointerIsValid(&place))
			break;
		result = table_tuple_lock(rel, &place, GetLatestSnapshot(), slot,
								  GetCurrentCommandId(false), LockTupleKeyShare,
								  LockWaitBlock, 0, &failure);
	} while (result == TM_Updated || result == TM_Deleted);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);

	/* What is remembered of the user may be older than what was waited for. */
	AcceptInvalidationMessages();
}
