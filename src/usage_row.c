/*-------------------------------------------------------------------------
 *
 * usage_row.c
 *	  How a row of apikeys.usage is read back into the meter.
 *
 * The rule is that what is read is never less than what was admitted:
 *
 *	  the row's incarnation		the count resumes at
 *	  this one, or closed		the row's count: nothing was admitted beyond it
 *	  neither (a crash)			the row's ceiling: as much may have been
 *
 * A count that has a closed incarnation's row, or none, may also have been used
 * by a later incarnation that crashed before its first write: then one headroom
 * is added, which is as much as could be admitted without a row.  (A subject
 * that was made after the crash is spared.)  What a crash adds is charged, not
 * billed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apikeys.h"

/* Columns, in the order of the install script. */
enum
{
	USAGE_SUBJECT_ID = 1,
	USAGE_SUBJECT,
	USAGE_PERIOD,
	USAGE_PERIOD_START,
	USAGE_CURRENT_USAGE,
	USAGE_CHARGED,
	USAGE_CEILING,
	USAGE_INCARNATION,
	USAGE_UPDATED_AT,
	USAGE_REFILLED_AT
};

enum
{
	INCARNATION_ID = 1,
	INCARNATION_STARTED_AT,
	INCARNATION_CLOSED_AT,
	INCARNATION_SUPERSEDED_AT
};

enum
{
	RATE_MARK_SUBJECT_ID = 1,
	RATE_MARK_IS_USER,
	RATE_MARK_NAME_HASH,
	RATE_MARK_ARRIVAL
};

static Datum
get_column(HeapTuple tuple, Relation rel, int attnum)
{
	bool		isnull;

	return heap_getattr(tuple, attnum, RelationGetDescr(rel), &isnull);
}

static bool
is_null(HeapTuple tuple, int attnum)
{
	return heap_attisnull(tuple, attnum, NULL);
}

/*
 * Lock a table or index of the meter for reading, and wait for it no longer than
 * for the worker.  Errors: 53000 if that was not long enough.
 */
static void
lock_in_time(Oid relid)
{
	MemoryContext context = CurrentMemoryContext;
	int			callers = LockTimeout;
	bool		is_ours = callers == 0 || callers > ak_meter_timeout;

	if (ConditionalLockRelationOid(relid, AccessShareLock))
		return;
	PG_TRY();
	{
		if (is_ours)
			LockTimeout = Max(ak_meter_timeout, 1);
		LockRelationOid(relid, AccessShareLock);
		LockTimeout = callers;
	}
	PG_CATCH();
	{
		LockTimeout = callers;
		if (!is_ours || geterrcode() != ERRCODE_LOCK_NOT_AVAILABLE)
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("the meter could not admit the request within %d ms",
						ak_meter_timeout),
				 errdetail("Relation \"%s\" is locked.", get_rel_name(relid)),
				 errhint("Look in pg_locks for who holds it.")));
	}
	PG_END_TRY();
}

/* Whether an incarnation ended cleanly.  Only closed ones are ever removed. */
static bool
is_closed(const AkCatalog *catalog, const pg_uuid_t *incarnation)
{
	Relation	rel = table_open(catalog->incarnations, AccessShareLock);
	ScanKeyData scankey;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		closed;

	ScanKeyInit(&scankey, INCARNATION_ID, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(incarnation));
	scan = systable_beginscan(rel, catalog->incarnations_pkey, true,
							  GetLatestSnapshot(), 1, &scankey);
	tuple = systable_getnext(scan);
	closed = !HeapTupleIsValid(tuple) ||
		!is_null(tuple, INCARNATION_CLOSED_AT);
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return closed;
}

/*
 * Periods that began before this moment may have lost counts to a crash.  The
 * worker publishes it when it opens the meter; before that (somebody looks at
 * a count that nobody has used yet) the table tells.
 */
static TimestampTz
crash_horizon(const AkCatalog *catalog)
{
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	TimestampTz horizon = DT_NOBEGIN;

	/* None is open now that has not been superseded. */
	if (catalog->db->opened > 0)
		return catalog->db->crash_horizon;

	rel = table_open(catalog->incarnations, AccessShareLock);
	scan = systable_beginscan(rel, InvalidOid, false, GetLatestSnapshot(),
							  0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		if (!is_null(tuple, INCARNATION_CLOSED_AT))
			continue;
		if (is_null(tuple, INCARNATION_SUPERSEDED_AT))
			horizon = DT_NOEND;
		else
			horizon = Max(horizon,
						  DatumGetTimestampTz(get_column(tuple, rel,
														 INCARNATION_SUPERSEDED_AT)));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return horizon;
}

/*
 * When a subject was made, or long ago if its id does not tell: ids are uuids
 * of version 7, which begin with the time in milliseconds.
 */
static TimestampTz
made_at(const pg_uuid_t *id)
{
	int64		milliseconds = 0;

	if (id->data[6] >> 4 != 7)
		return DT_NOBEGIN;
	for (int i = 0; i < 6; i++)
		milliseconds = milliseconds << 8 | id->data[i];
	return milliseconds * 1000 -
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;
}

/*
 * The last crash that may have concerned a subject, or DT_NOBEGIN.
 */
TimestampTz
ak_crash_horizon(const AkCatalog *catalog, const pg_uuid_t *subject_id)
{
	TimestampTz horizon = Min(crash_horizon(catalog), GetCurrentTimestamp());

	return horizon > made_at(subject_id) ? horizon : DT_NOBEGIN;
}

/*
 * Read a count into entry->charged, lost, ceiling, written and refilled.  False
 * if there is no row.  The caller holds no lock, and sees to it that no newer count is
 * in memory.
 */
bool
ak_usage_row(const MeterKey *key, int64 limit, MeterEntry *entry)
{
	const AkCatalog *catalog = ak_catalog();
	AkDatabase *db = catalog->db;
	int64		headroom = ak_meter_headroom(key, limit);
	Relation	rel;
	ScanKeyData scankey[3];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	lock_in_time(catalog->usage);
	lock_in_time(catalog->usage_pkey);
	rel = table_open(catalog->usage, NoLock);
	ScanKeyInit(&scankey[0], USAGE_SUBJECT_ID, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(&key->subject_id));
	ScanKeyEntryInitialize(&scankey[1], 0, USAGE_PERIOD, BTEqualStrategyNumber,
						   InvalidOid, get_typcollation(TEXTOID), F_TEXTEQ,
						   CStringGetTextDatum(ak_period_name(key->period)));
	ScanKeyInit(&scankey[2], USAGE_PERIOD_START, BTEqualStrategyNumber,
				F_TIMESTAMPTZ_EQ, TimestampTzGetDatum(key->period_start));
	scan = systable_beginscan(rel, catalog->usage_pkey, true,
							  GetLatestSnapshot(), 3, scankey);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		int64		billed = DatumGetInt64(get_column(tuple, rel, USAGE_CURRENT_USAGE));
		int64		charged = DatumGetInt64(get_column(tuple, rel, USAGE_CHARGED));
		int64		ceiling = DatumGetInt64(get_column(tuple, rel, USAGE_CEILING));
		TimestampTz updated_at = DatumGetTimestampTz(get_column(tuple, rel, USAGE_UPDATED_AT));
		pg_uuid_t	incarnation = *DatumGetUUIDP(get_column(tuple, rel, USAGE_INCARNATION));

		entry->written = charged;
		entry->refilled = is_null(tuple, USAGE_REFILLED_AT) ? 0 :
			ak_refill_mark(DatumGetTimestampTz(get_column(tuple, rel, USAGE_REFILLED_AT)));
		if (db->opened > 0 &&
			memcmp(&incarnation, &db->incarnation, UUID_LEN) == 0)
		{
			entry->charged = charged;
			entry->ceiling = ceiling;
		}
		else if (!is_closed(catalog, &incarnation))
			entry->charged = entry->ceiling = ceiling;
		else if (crash_horizon(catalog) > updated_at)
			entry->charged = entry->ceiling = charged + headroom;
		else
		{
			entry->charged = charged;
			entry->ceiling = charged + headroom;
		}
		entry->lost = entry->charged - billed;
	}
	else
	{
		entry->written = AK_UNWRITTEN;
		entry->charged = ak_crash_horizon(catalog, &key->subject_id) >
			key->period_start ? headroom : 0;
		entry->ceiling = headroom;
		entry->lost = entry->charged;
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	UnlockRelationOid(catalog->usage_pkey, AccessShareLock);
	return found;
}

/*
 * Where a rate stood when the meter was closed, or 0.  While the meter is open
 * the marks are in memory.
 */
int64
ak_rate_mark(const MeterKey *key)
{
	const AkCatalog *catalog = ak_catalog();
	Relation	rel = table_open(catalog->rate_marks, AccessShareLock);
	ScanKeyData scankey[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		arrival = 0;

	ScanKeyInit(&scankey[0], RATE_MARK_SUBJECT_ID, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(&key->subject_id));
	ScanKeyInit(&scankey[1], RATE_MARK_NAME_HASH, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum(key->period_start));
	scan = systable_beginscan(rel, catalog->rate_marks_pkey, true,
							  GetLatestSnapshot(), 2, scankey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		arrival = DatumGetInt64(get_column(tuple, rel, RATE_MARK_ARRIVAL));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return arrival;
}
