/*-------------------------------------------------------------------------
 *
 * stats.c
 *	  Statistics of this database since the server's start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/tuplestore.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_statistics);

static void
put(ReturnSetInfo *result, const char *name, uint64 value,
	const char *description)
{
	Datum		values[3];
	bool		nulls[3] = {0};

	values[0] = CStringGetTextDatum(name);
	values[1] = Int64GetDatum((int64) value);
	values[2] = CStringGetTextDatum(description);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/* The entries that are in use, and those of a slot's generation. */
static void
count_entries(uint32 generation, uint64 *all, uint64 *own)
{
	*all = *own = 0;
	for (int i = 0; i < ak_max_tracked_keys; i++)
		if (ak_shared->entries[i].in_use)
		{
			++*all;
			if (ak_shared->entries[i].key.generation == generation)
				++*own;
		}
}

static uint64
count_reservations(void)
{
	uint64		n = 0;

	for (int i = 0; i < ak_max_databases; i++)
		if (OidIsValid(ak_shared->databases[i].dboid))
			n += pg_atomic_read_u32(&ak_shared->databases[i].reserved);
	return n;
}

static uint64
in_ms(int64 us)
{
	return (us + 999) / 1000;
}

/* apikeys.statistics() -> SETOF (name text, value bigint, description text) */
Datum
apikeys_statistics(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	AkDatabase *db;
	AkLane		total = {0};
	uint64		seconds = 0;
	uint64		used;
	uint64		tracked;
	int64		counts_lag;
	int64		history_lag;

	AcceptInvalidationMessages();
	db = ak_catalog()->db;
	for (int i = 0; i < AK_LANES; i++)
	{
		AkLane	   *lane = &db->lanes[i].lane;

		LWLockAcquire(ak_lane_lock(db, i), LW_SHARED);
		for (int o = 0; o < AK_OUTCOMES; o++)
			total.outcomes[o] += lane->outcomes[o];
		total.dropped += lane->dropped;
		total.unrecorded += lane->unrecorded;
		LWLockRelease(ak_lane_lock(db, i));
	}
	if (db->last_flush != 0)
		seconds = (ak_elapsed() - db->last_flush) / USECS_PER_SEC;
	count_entries(db->generation, &used, &tracked);
	counts_lag = ak_counts_lag(db);
	history_lag = ak_history_lag(db);

	InitMaterializedSRF(fcinfo, 0);
	for (int o = AK_VALID; o >= 0; o--)
		put(result, ak_outcome_name(o), total.outcomes[o],
			"verifications with this outcome");
	put(result, "flush_lag_ms", in_ms(Max(counts_lag, history_lag)),
		"age of the oldest change that is due and not durable: the larger of the next two");
	put(result, "counts_lag_ms", in_ms(counts_lag),
		"the same of counts, on their way to apikeys.usage");
	put(result, "history_lag_ms", in_ms(history_lag),
		"the same of records, on their way to apikeys.requests");
	put(result, "history_rows", db->history_rows,
		"records written to apikeys.requests");
	put(result, "history_dropped", total.dropped,
		"records lost because the history buffer was full");
	put(result, "history_unrecorded", total.unrecorded,
		"verifications that a standby could not record");
	put(result, "history_chunks_free", ak_shared->nfree_chunks,
		"free chunks (8 kB) of the history buffer, all databases");
	put(result, "history_chunks",
		ak_history_buffer * UINT64CONST(1024) / AK_CHUNK_SIZE,
		"chunks (8 kB) of the history buffer, free or not");
	put(result, "rollup_rows_written", db->rollup_rows,
		"rows written to apikeys.rollups");
	put(result, "rollup_pending", db->rollup_pending,
		"counts in apikeys.rollup_journal, to be added to apikeys.rollups");
	put(result, "last_used_pending", db->uses_pending,
		"keys whose last_used_at is due, many of them in eight flushes");
	put(result, "usage_rows_written", db->usage_rows,
		"rows written to apikeys.usage");
	put(result, "ceilings_raised", db->ceilings_raised,
		"those of them that somebody asked for: a higher ceiling, or another change of a count");
	put(result, "counts_pending", db->ntracked,
		"counts that the worker will write yet, the latest after ten intervals");
	put(result, "reservations_held", pg_atomic_read_u32(&db->reserved),
		"reservations that are neither settled nor past their deadline");
	put(result, "reservations_used", count_reservations(),
		"the same, all databases");
	put(result, "reservations_capacity", ak_max_reservations,
		"reservations that can be held at once (apikeys.max_reservations)");
	put(result, "reservations_settled", total.outcomes[AK_SETTLED],
		"reservations that were settled");
	put(result, "reservations_released", total.outcomes[AK_RELEASED],
		"reservations that were given back at their deadline");
	put(result, "charge_waits", db->charge_waits,
		"times a verification slept until the worker made room");
	put(result, "tracked_keys", tracked,
		"entries of this database in the meter: counts, rates by themselves, requests by id");
	put(result, "meter_used", used,
		"the same, all databases");
	put(result, "meter_capacity", ak_max_tracked_keys,
		"entries that the meter can hold (apikeys.max_tracked_keys)");
	put(result, "evictions", pg_atomic_read_u64(&ak_shared->evictions),
		"entries evicted from the meter, all databases");
	put(result, "flush_failures", db->flush_failures,
		"transactions of the worker that failed and are tried again");
	put(result, "seconds_since_flush", seconds,
		"age of the last flush that had something to write");
	put(result, "worker_attached", db->worker != NULL,
		"1 while a worker is attached to this database");
	put(result, "meter_open", db->open,
		"1 while verifications are admitted without waiting for a worker");
	return (Datum) 0;
}
