/*-------------------------------------------------------------------------
 *
 * request_id.c
 *	  Charge a request once, however often it is retried.
 *
 * A request that names itself leaves a mark: an entry of the meter, made in the
 * critical section that charges it.  The worker writes it to
 * apikeys.request_ids, from where it is read back once it was evicted.  After
 * a crash, only what was not yet written may be charged once more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "common/hashfn.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "apikeys.h"

/* Columns, in the order of the install script. */
enum
{
	REQUEST_ID_KEY_ID = 1,
	REQUEST_ID_HASH,
	REQUEST_ID_CHARGED_AT
};

/* Where the meter keeps a request's mark. */
void
ak_request_key(MeterKey *key, const AkCatalog *catalog,
			   const pg_uuid_t *key_id, const char *request_id)
{
	ak_meter_key(key, catalog, key_id, false, AK_REQUEST,
				 hash_bytes_extended((const unsigned char *) request_id,
									 strlen(request_id), 0));
}

/* Whether a request was charged, not too long ago. */
bool
ak_request_is_known(const MeterEntry *entry, TimestampTz now)
{
	return entry->charged != 0 &&
		entry->charged > now - ak_request_id_window * USECS_PER_SEC;
}

/*
 * When a request was charged, as the table knows it, or 0.  The caller holds no
 * lock.
 */
TimestampTz
ak_request_row(const MeterKey *key)
{
	const AkCatalog *catalog = ak_catalog();
	Relation	rel = table_open(catalog->request_ids, AccessShareLock);
	ScanKeyData scankey[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		isnull;
	TimestampTz charged_at = 0;

	ScanKeyInit(&scankey[0], REQUEST_ID_KEY_ID, BTEqualStrategyNumber,
				F_UUID_EQ, UUIDPGetDatum(&key->subject_id));
	ScanKeyInit(&scankey[1], REQUEST_ID_HASH, BTEqualStrategyNumber,
				F_INT8EQ, Int64GetDatum(key->period_start));
	scan = systable_beginscan(rel, catalog->request_ids_pkey, true,
							  GetLatestSnapshot(), 2, scankey);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		charged_at = DatumGetTimestampTz(heap_getattr(tuple, REQUEST_ID_CHARGED_AT,
													  RelationGetDescr(rel), &isnull));
	if (charged_at == DT_NOBEGIN)
		charged_at = 0;			/* given back */
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return charged_at;
}
