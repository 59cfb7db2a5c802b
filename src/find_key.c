/*-------------------------------------------------------------------------
 *
 * find_key.c
 *	  Find keys, by the digest of a secret or by id.
 *
 * Keys are read from the table each time, through the index or at the place
 * where they were last found, with a latest snapshot: a revoke holds for
 * every verification that starts after its commit, whatever the caller's
 * isolation level, and for the caller's own earlier commands.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_am.h"
#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apikeys.h"

/*
 * Open apikeys.keys.  The catalog is as of the lock: REINDEX CONCURRENTLY waits
 * for who holds it before it drops an index, but not for who has only looked up
 * the index's OID.
 */
static Relation
open_keys(const AkCatalog **catalog)
{
	Relation	rel = table_open(ak_catalog()->keys, AccessShareLock);

	*catalog = ak_catalog();
	return rel;
}

/* Copy what the decision needs out of a row. */
static void
read_key(Relation rel, const AkCatalog *catalog, HeapTuple tuple, AkKey *key)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Datum	   *values = palloc(desc->natts * sizeof(Datum));
	bool	   *nulls = palloc(desc->natts * sizeof(bool));

	heap_deform_tuple(tuple, desc, values, nulls);
	for (int i = 0; i < AK_KEY_COLUMNS; i++)
	{
		key->values[i] = values[catalog->keys_attnum[i] - 1];
		key->nulls[i] = nulls[catalog->keys_attnum[i] - 1];
	}
	key->id = *DatumGetUUIDP(key->values[AK_KEY_ID]);
	ak_copy_id(key->api_id, key->values[AK_KEY_API_ID], key->nulls[AK_KEY_API_ID]);
	ak_copy_id(key->user_id, key->values[AK_KEY_USER_ID], key->nulls[AK_KEY_USER_ID]);
	ak_copy_id(key->plan_id, key->values[AK_KEY_PLAN_ID], key->nulls[AK_KEY_PLAN_ID]);
}

/*
 * The row of apikeys.keys whose indexed column equals "value", if visible to
 * the snapshot, and the root of its chain of updates.  Values point into a copy
 * in the current memory context.
 *
 * The locks are kept to the end of the transaction, as a query keeps them: the
 * next verification in it then finds them held.
 */
static bool
find_key(Relation rel, const AkCatalog *catalog, Oid indexid,
		 RegProcedure equal, Datum value, Snapshot snapshot, AkKey *key,
		 ItemPointer root)
{
	Relation	index = index_open(indexid, AccessShareLock);
	IndexScanDesc scan;
	ScanKeyData scankey;
	TupleTableSlot *slot;
	ItemPointer tid;
	bool		found = false;

	ScanKeyInit(&scankey, 1, BTEqualStrategyNumber, equal, value);
	scan = ak_index_beginscan(rel, index, snapshot, 1);
	index_rescan(scan, &scankey, 1, NULL, 0);
	slot = table_slot_create(rel, NULL);
	while (!found &&
		   (tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		*root = *tid;
		found = index_fetch_heap(scan, slot);
	}
	if (found)
		read_key(rel, catalog, ExecCopySlotHeapTuple(slot), key);
	ExecDropSingleTupleTableSlot(slot);
	index_endscan(scan);
	index_close(index, NoLock);
	return found;
}

static bool
digest_matches(const AkKey *key, AkKeyColumn column, const uint8 *digest)
{
	const bytea *stored;

	if (key->nulls[column])
		return false;
	stored = DatumGetByteaPP(key->values[column]);
	return VARSIZE_ANY_EXHDR(stored) == AK_DIGEST_LEN &&
		timingsafe_bcmp(VARDATA_ANY(stored), digest, AK_DIGEST_LEN) == 0;
}

/*
 * Pin the page that a hint tells of, or InvalidBuffer: the table may have been
 * cut since.
 *
 * The buffer is asked first whether it still has the page, which saves the look
 * into the buffer table.  The server does not count that as a use of the page,
 * so each sixteenth time goes the usual way, lest a busy page be evicted.
 */
static Buffer
pin_hinted(Relation rel, const AkHint *hint)
{
	static uint32 uses = 0;
	BlockNumber block = ItemPointerGetBlockNumber(&hint->root);

	if (++uses % 16 != 0 && hint->buffer > 0 && hint->buffer <= NBuffers &&
		ReadRecentBuffer(ak_file_of(rel), MAIN_FORKNUM, block, hint->buffer))
		return hint->buffer;
	if (block >= RelationGetNumberOfBlocks(rel))
		return InvalidBuffer;
	return ReadBuffer(rel, block);
}

/* The key at the place where its digest was last found, if it is there still. */
static bool
find_hinted(Relation rel, const AkCatalog *catalog, const uint8 *digest,
			Snapshot snapshot, AkKey *key)
{
	AkHint		hint;
	Buffer		buffer;
	ItemPointerData tid;
	HeapTupleData tuple;
	bool		found;

	if (rel->rd_rel->relam != HEAP_TABLE_AM_OID || !ak_hint_find(digest, &hint))
		return false;
	buffer = pin_hinted(rel, &hint);
	if (!BufferIsValid(buffer))
		return false;

	tid = hint.root;
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	found = heap_hot_search_buffer(&tid, rel, buffer, snapshot, &tuple, NULL,
								   true);
	LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	if (found)
	{
		read_key(rel, catalog, heap_copytuple(&tuple), key);
		found = digest_matches(key, AK_KEY_DIGEST, digest);
	}
	ReleaseBuffer(buffer);

	if (found && hint.buffer != buffer)
	{
		hint.buffer = buffer;
		ak_hint_keep(digest, &hint);
	}
	return found;
}

/*
 * The key that a secret belongs to, by its digest: the current secret, or the
 * one before while its grace lasts.
 */
bool
ak_key_by_digest(const uint8 digest[AK_DIGEST_LEN], TimestampTz now, AkKey *key)
{
	const AkCatalog *catalog;
	Relation	rel = open_keys(&catalog);
	char		buffer[VARHDRSZ + AK_DIGEST_LEN];
	Datum		value = PointerGetDatum(buffer);
	Snapshot	snapshot;
	AkHint		hint = {.buffer = InvalidBuffer};
	ItemPointerData root;
	bool		found;

	SET_VARSIZE(buffer, sizeof(buffer));
	memcpy(VARDATA(buffer), digest, AK_DIGEST_LEN);

	/* One snapshot for both, or a regeneration could slip in between. */
	Assert(ActiveSnapshotSet());
	snapshot = GetLatestSnapshot();
	found = find_hinted(rel, catalog, digest, snapshot, key);
	if (!found)
	{
		found = find_key(rel, catalog, catalog->keys_digest_key, F_BYTEAEQ,
						 value, snapshot, key, &hint.root) &&
			digest_matches(key, AK_KEY_DIGEST, digest);
		if (found)
			ak_hint_keep(digest, &hint);
	}
	if (!found)
		found = find_key(rel, catalog, catalog->keys_previous_digest_key,
						 F_BYTEAEQ, value, snapshot, key, &root) &&
			digest_matches(key, AK_KEY_PREVIOUS_DIGEST, digest) &&
			DatumGetTimestampTz(key->values[AK_KEY_PREVIOUS_EXPIRES_AT]) > now;
	table_close(rel, NoLock);
	return found;
}

/* The key of an id, deleted or not.  False if there is none. */
bool
ak_key_by_id(const pg_uuid_t *id, AkKey *key)
{
	const AkCatalog *catalog;
	Relation	rel = open_keys(&catalog);
	ItemPointerData root;
	bool		found;

	Assert(ActiveSnapshotSet());
	found = find_key(rel, catalog, catalog->keys_pkey, F_UUID_EQ,
					 UUIDPGetDatum(id), GetLatestSnapshot(), key, &root);
	table_close(rel, NoLock);
	return found;
}

/* The same.  Errors: P0002 if there is none. */
void
ak_key_must_exist(const pg_uuid_t *id, AkKey *key)
{
	if (!ak_key_by_id(id, key))
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("key \"%s\" does not exist", ak_uuid_text(id))));
}
