/*-------------------------------------------------------------------------
 *
 * marks.c
 *	  What waits on disk while the meter is closed: rates that are not full, and
 *	  reservations that are held.  Runs in a database's worker.
 *
 * Both are known to memory alone while the meter is open, and their tables are
 * empty: after a crash a rate counts as used up, and what a reservation held
 * stays charged.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"

#include "reserve.h"
#include "worker.h"

/* ----- rows on their way to a table, as arrays ----- */

#define COLUMNS_MAX 13

typedef struct Rows
{
	const Oid  *types;			/* of the columns */
	int			ncolumns;
	int			n;
	int			capacity;
	Datum	   *columns[COLUMNS_MAX];
} Rows;

static void
add_row(Rows *rows, const Datum *values)
{
	if (rows->n == rows->capacity)
	{
		rows->capacity = Max(64, 2 * rows->capacity);
		for (int c = 0; c < rows->ncolumns; c++)
			rows->columns[c] = rows->n == 0 ?
				palloc(rows->capacity * sizeof(Datum)) :
				repalloc_huge(rows->columns[c], rows->capacity * sizeof(Datum));
	}
	for (int c = 0; c < rows->ncolumns; c++)
		rows->columns[c][rows->n] = values[c];
	rows->n++;
}

/* Run an INSERT whose parameters are the columns. */
static void
insert_rows(const Rows *rows, const char *query)
{
	Oid			types[COLUMNS_MAX];
	Datum		args[COLUMNS_MAX];

	if (rows->n == 0)
		return;
	for (int c = 0; c < rows->ncolumns; c++)
		args[c] = ak_array_of(rows->types[c], rows->columns[c], rows->n, &types[c]);
	if (SPI_execute_with_args(query, rows->ncolumns, types, args, NULL, false,
							  0) != SPI_OK_INSERT)
		elog(ERROR, "could not execute: %s", query);
}

static Datum
uuid_copy(const pg_uuid_t *id)
{
	pg_uuid_t  *copy = palloc(sizeof(pg_uuid_t));

	*copy = *id;
	return UUIDPGetDatum(copy);
}

/* ----- rates ----- */

static const Oid rate_types[] = {UUIDOID, BOOLOID, INT8OID, INT8OID};

static void
collect_rate(const MeterEntry *entry, void *arg)
{
	Datum		values[] = {
		uuid_copy(&entry->key.subject_id),
		BoolGetDatum(entry->key.is_user),
		Int64GetDatum(entry->rate_name),
		Int64GetDatum(entry->arrival)
	};

	add_row(arg, values);
}

/*
 * In the order of the index, which takes a fifth less time.  A dump that was
 * loaded while the meter was open may have left rows there: memory knows better,
 * and what it does not know stays.
 */
static void
leave_rates(AkDatabase *db)
{
	Rows		rows = {.types = rate_types,.ncolumns = lengthof(rate_types)};

	ak_meter_each_rate(db->generation, collect_rate, &rows);
	insert_rows(&rows, "INSERT INTO apikeys.rate_marks"
				" SELECT * FROM unnest($1, $2, $3, $4)"
				" AS r (subject_id, is_user, name_hash, arrival)"
				" ORDER BY subject_id, name_hash"
				" ON CONFLICT (subject_id, name_hash)"
				" DO UPDATE SET arrival = excluded.arrival");
}

static void
take_rates(AkDatabase *db)
{
	TimestampTz now = GetCurrentTimestamp();

	if (SPI_execute("DELETE FROM apikeys.rate_marks"
					" RETURNING subject_id, is_user, name_hash, arrival",
					false, 0) != SPI_OK_DELETE_RETURNING)
		elog(ERROR, "could not read apikeys.rate_marks");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int64		arrival = DatumGetInt64(ak_returned(i, 4, NULL));
		MeterKey	key;

		ak_meter_key(&key, ak_catalog(), DatumGetUUIDP(ak_returned(i, 1, NULL)),
					 DatumGetBool(ak_returned(i, 2, NULL)), AK_RATE,
					 DatumGetInt64(ak_returned(i, 3, NULL)));
		if (!ak_rate_is_full(arrival, now))
			ak_meter_put_rate(&key, arrival);
	}
}

/* ----- reservations: a row for each limit that one holds ----- */

static const Oid hold_types[] = {
	UUIDOID, INT4OID, UUIDOID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID,
	UUIDOID, BOOLOID, INT4OID, INT8OID, INT8OID, INT8OID, INT8OID
};

static void
leave_reservations(AkDatabase *db)
{
	Rows		rows = {.types = hold_types,.ncolumns = lengthof(hold_types)};
	AkReservation *held;
	int			n = ak_reservations_held(db, true, &held);

	for (int i = 0; i < n; i++)
		for (int h = 0; h < held[i].nholds; h++)
		{
			const AkHold *hold = &held[i].holds[h];
			Datum		values[] = {
				UUIDPGetDatum(&held[i].key.id),
				Int32GetDatum(h),
				UUIDPGetDatum(&held[i].key_id),
				Int64GetDatum(held[i].max_cost),
				TimestampTzGetDatum(held[i].charged_at),
				TimestampTzGetDatum(held[i].deadline),
				UUIDPGetDatum(&hold->key.subject_id),
				BoolGetDatum(hold->key.is_user),
				Int32GetDatum(hold->key.period),
				Int64GetDatum(hold->key.period_start),
				Int64GetDatum(hold->amount),
				Int64GetDatum(hold->emission),
				Int64GetDatum(hold->lost)
			};

			add_row(&rows, values);
		}
	insert_rows(&rows, "INSERT INTO apikeys.reservation_marks"
				" SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9,"
				" $10, $11, $12, $13)");
}

/* Limits are a key's and its user's: more partitions cannot be locked at once. */
#define ONE_SUBJECT(kind) \
	"min(subject_id::text) FILTER (WHERE " kind ") OVER r IS NOT DISTINCT FROM" \
	" max(subject_id::text) FILTER (WHERE " kind ") OVER r"

/*
 * Rows that no worker has left may say anything; memory takes what it could hold
 * itself.
 */
static void
take_reservations(AkDatabase *db)
{
	AkReservation held = {.nholds = 0};
	char	   *query = psprintf("WITH taken AS (DELETE FROM apikeys.reservation_marks RETURNING *)"
								 " SELECT reservation_id, n, key_id, max_cost, charged_at,"
								 " deadline, subject_id, is_user, period, period_start,"
								 " amount, emission, lost, count(*) OVER r,"
								 " count(*) OVER r <= %d AND min(n) OVER r = 0"
								 " AND max(n) OVER r = count(*) OVER r - 1"
								 " AND bool_and((period = %d OR period BETWEEN 0 AND %d)"
								 " AND max_cost BETWEEN 1 AND %lld AND emission >= 0) OVER r"
								 " AND " ONE_SUBJECT("is_user") " AND " ONE_SUBJECT("NOT is_user")
								 " FROM taken WINDOW r AS (PARTITION BY reservation_id)"
								 " ORDER BY reservation_id, n",
								 AK_HOLDS_MAX, AK_RATE, AK_CREDITS,
								 (long long) AK_COST_MAX);

	if (SPI_execute(query, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.reservation_marks");
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		int			n = DatumGetInt32(ak_returned(i, 2, NULL));
		AkHold	   *hold;

		if (!DatumGetBool(ak_returned(i, 15, NULL)))
		{
			ereport(WARNING,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("a row of apikeys.reservation_marks cannot be a reservation's"),
					 errdetail("What reservation \"%s\" holds stays charged.",
							   ak_uuid_text(DatumGetUUIDP(ak_returned(i, 1, NULL))))));
			continue;
		}
		hold = &held.holds[n];
		held.key.id = *DatumGetUUIDP(ak_returned(i, 1, NULL));
		held.key.generation = db->generation;
		held.state = AK_HELD;
		held.key_id = *DatumGetUUIDP(ak_returned(i, 3, NULL));
		held.max_cost = DatumGetInt64(ak_returned(i, 4, NULL));
		held.charged_at = DatumGetTimestampTz(ak_returned(i, 5, NULL));
		held.deadline = DatumGetTimestampTz(ak_returned(i, 6, NULL));
		ak_meter_key(&hold->key, ak_catalog(), DatumGetUUIDP(ak_returned(i, 7, NULL)),
					 DatumGetBool(ak_returned(i, 8, NULL)), DatumGetInt32(ak_returned(i, 9, NULL)),
					 DatumGetInt64(ak_returned(i, 10, NULL)));
		hold->amount = DatumGetInt64(ak_returned(i, 11, NULL));
		hold->emission = DatumGetInt64(ak_returned(i, 12, NULL));
		hold->lost = DatumGetInt64(ak_returned(i, 13, NULL));
		held.nholds = n + 1;
		if (held.nholds == DatumGetInt64(ak_returned(i, 14, NULL)))
			ak_reservations_put(db, &held);
	}
}

/* ----- both ----- */

/* Write down what only memory knows; the meter is closed. */
void
ak_marks_leave(AkDatabase *db)
{
	leave_rates(db);
	leave_reservations(db);
}

/*
 * Take it back into memory, before the meter opens.  If the transaction then
 * fails it is there too early, which is harmless: it only says what was used.
 */
void
ak_marks_take(AkDatabase *db)
{
	take_rates(db);
	take_reservations(db);
}
