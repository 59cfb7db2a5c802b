/*-------------------------------------------------------------------------
 *
 * rollup_journal.c
 *	  What is to be added to the rollups, on its way to them.  Runs in a
 *	  database's worker.
 *
 * A flush writes down what its records add to the counts of keys: a row of
 * apikeys.rollup_journal for each hour and outcome, or a few where they are
 * many, with the keys in an array.  Later the rows of many flushes are added
 * together here, so that a key costs few row updates however busy it is.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "common/int.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "period.h"
#include "worker.h"

/* Counts in one row of the journal. */
#define ROW_COUNTS 2000

/*
 * Rows that are being filled.  A flush has one or two hours and a few outcomes;
 * where it has more, rows are written before they are full.
 */
#define OPEN_ROWS 32

/* ----- from records to the journal ----- */

/* A row that is being filled: counts of one outcome in one hour. */
typedef struct Row
{
	TimestampTz start;
	AkOutcome	outcome;
	int			n;
	Datum		key_ids[ROW_COUNTS];
	Datum		requests[ROW_COUNTS];
	Datum		costs[ROW_COUNTS];
} Row;

typedef struct Journal
{
	int			total;			/* counts in it */
	int			nrows;			/* in use */
	Row		   *rows[OPEN_ROWS];	/* allocated when they are first used */
	Row		   *last;			/* the one that was filled last, or NULL */
} Journal;

static void
write_row(Journal *journal, Row *row)
{
	Oid			types[7];
	Datum		args[7];

	if (row->n == 0)
		return;
	types[0] = TIMESTAMPTZOID;
	args[0] = TimestampTzGetDatum(row->start);
	types[1] = TEXTOID;
	args[1] = CStringGetTextDatum(ak_outcome_name(row->outcome));
	types[2] = UUIDOID;
	args[2] = row->key_ids[0];
	args[3] = ak_array_of(UUIDOID, row->key_ids, row->n, &types[3]);
	args[4] = ak_array_of(INT4OID, row->requests, row->n, &types[4]);
	args[5] = ak_array_of(INT8OID, row->costs, row->n, &types[5]);
	types[6] = INT4OID;
	args[6] = Int32GetDatum(row->n);
	if (SPI_execute_with_args("INSERT INTO apikeys.rollup_journal"
							  " (start, code, first_key, key_ids, requests, costs, counts)"
							  " VALUES ($1, $2, $3, $4, $5, $6, $7)",
							  7, types, args, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not write apikeys.rollup_journal");
	journal->total += row->n;
	row->n = 0;
}

static void
write_rows(Journal *journal)
{
	for (int i = 0; i < journal->nrows; i++)
		write_row(journal, journal->rows[i]);
	journal->nrows = 0;
	journal->last = NULL;
}

/* The row for an outcome in an hour; keys come one after another, so mostly the last. */
static Row *
row_for(Journal *journal, TimestampTz start, AkOutcome outcome)
{
	Row		   *row = journal->last;

	if (row != NULL && row->start == start && row->outcome == outcome)
		return row;
	for (int i = 0; i < journal->nrows; i++)
	{
		row = journal->rows[i];
		if (row->start == start && row->outcome == outcome)
			return row;
	}
	if (journal->nrows == OPEN_ROWS)
		write_rows(journal);
	row = journal->rows[journal->nrows];
	if (row == NULL)
		row = journal->rows[journal->nrows] = palloc(sizeof(Row));
	journal->nrows++;
	row->start = start;
	row->outcome = outcome;
	row->n = 0;
	return row;
}

/* One key in one hour. */
typedef struct Tally
{
	const pg_uuid_t *key_id;	/* NULL: nothing yet */
	AkSpan		hour;
	int32		requests[AK_VALID + 1];
	int64		cost;			/* of what was allowed, less what was given
								 * back of reservations */
} Tally;

static void
put_tally(Journal *journal, const Tally *tally)
{
	for (int o = 0; o <= AK_VALID; o++)
	{
		int64		cost = o == AK_VALID ? tally->cost : 0;
		Row		   *row;

		if (tally->requests[o] == 0 && cost == 0)
			continue;
		row = row_for(journal, tally->hour.start, o);
		row->key_ids[row->n] = UUIDPGetDatum(tally->key_id);
		row->requests[row->n] = Int32GetDatum(tally->requests[o]);
		row->costs[row->n] = Int64GetDatum(cost);
		journal->last = row;
		if (++row->n == ROW_COUNTS)
			write_row(journal, row);
	}
}

/*
 * Write down what records add to the rollups, in the caller's transaction.
 * They are sorted by key and time, or nearly so: what comes apart is added
 * together later.  Returns the number of counts, for ak_rollup_noted() after
 * the commit.
 */
int
ak_journal_write(const AkRecord **records, int n)
{
	Journal		journal = {0};
	Tally		tally = {0};

	for (int i = 0; i < n; i++)
	{
		const AkRecord *record = records[i];

		if (tally.key_id == NULL ||
			memcmp(tally.key_id, &record->key_id, UUID_LEN) != 0 ||
			record->timestamp < tally.hour.start ||
			record->timestamp >= tally.hour.end)
		{
			put_tally(&journal, &tally);
			memset(&tally, 0, sizeof(tally));
			tally.key_id = &record->key_id;
			ak_period_at(AK_HOUR, AK_CALENDAR, record->timestamp, &tally.hour);
		}
		if (record->outcome <= AK_VALID)
			tally.requests[record->outcome]++;
		if (record->outcome >= AK_VALID)
			tally.cost += record->cost;
	}
	put_tally(&journal, &tally);
	write_rows(&journal);
	return journal.total;
}

/* ----- from the journal to counts of hours and days ----- */

/* What is to be added to one row of the rollups. */
typedef struct Count
{
	pg_uuid_t	key_id;
	TimestampTz start;
	bool		is_hour;		/* else a day */
	int			code;			/* its place in Sum's list */
	int64		requests;
	int64		cost;
} Count;

typedef struct Sum
{
	int			n;
	int			capacity;
	Count	   *counts;
	List	   *codes;			/* texts, each once */
} Sum;

/* As the rollups' primary key, but for the order of codes. */
static int
compare(const Count *x, const Count *y)
{
	int			keys = memcmp(&x->key_id, &y->key_id, UUID_LEN);

	if (keys != 0)
		return keys;
	if (x->is_hour != y->is_hour)
		return x->is_hour ? 1 : -1;
	if (x->start != y->start)
		return x->start < y->start ? -1 : 1;
	return x->code - y->code;
}

#define ST_SORT sort
#define ST_ELEMENT_TYPE Count
#define ST_COMPARE(x, y) compare(x, y)
#define ST_SCOPE static
#define ST_DEFINE
#include "lib/sort_template.h"

static void
add(int64 *sum, int64 n)
{
	if (pg_add_s64_overflow(*sum, n, sum))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("bigint out of range")));
}

/* Sort, and make one of those that are of the same row. */
static void
merge(Sum *sum)
{
	int			merged = 0;

	sort(sum->counts, sum->n);
	for (int i = 1; i < sum->n; i++)
	{
		Count	   *into = &sum->counts[merged];
		const Count *next = &sum->counts[i];

		if (compare(into, next) != 0)
			sum->counts[++merged] = *next;
		else
		{
			add(&into->requests, next->requests);
			add(&into->cost, next->cost);
		}
	}
	sum->n = Min(sum->n, merged + 1);
}

/* Room for n counts more. */
static void
reserve(Sum *sum, int n)
{
	if (sum->n + n <= sum->capacity)
		return;
	sum->capacity = Max(2 * sum->capacity, sum->n + n);
	sum->counts = sum->counts == NULL ?
		MemoryContextAllocHuge(CurrentMemoryContext, sum->capacity * sizeof(Count)) :
		repalloc_huge(sum->counts, sum->capacity * sizeof(Count));
}

/* A code's place in the list, which is the same for the same text. */
static int
code_of(Sum *sum, Datum code)
{
	ListCell   *cell;

	foreach(cell, sum->codes)
		if (DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
												 PointerGetDatum(lfirst(cell)),
												 code)))
			return foreach_current_index(cell);
	sum->codes = lappend(sum->codes, DatumGetPointer(code));
	return list_length(sum->codes) - 1;
}

/* An array of the journal, which shall have so many elements. */
static const void *
elements_of(ArrayType *array, int n)
{
	if (ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) != n || ARR_HASNULL(array))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a row of apikeys.rollup_journal has arrays that do not agree"),
				 errdetail("Its arrays are to have one element for each key, none of them null.")));
	return ARR_DATA_PTR(array);
}

enum
{
	START = 1, CODE, KEY_IDS, REQUESTS, COSTS
};

/* Add a row that the last statement returned. */
static void
take_row(Sum *sum, uint64 row)
{
	TimestampTz start = DatumGetTimestampTz(ak_returned(row, START, NULL));
	int			code = code_of(sum, ak_returned(row, CODE, NULL));
	ArrayType  *key_array = DatumGetArrayTypeP(ak_returned(row, KEY_IDS, NULL));
	ArrayType  *request_array = DatumGetArrayTypeP(ak_returned(row, REQUESTS, NULL));
	ArrayType  *cost_array = DatumGetArrayTypeP(ak_returned(row, COSTS, NULL));
	int			n = ArrayGetNItems(ARR_NDIM(key_array), ARR_DIMS(key_array));
	const pg_uuid_t *key_ids = elements_of(key_array, n);
	const int32 *requests = elements_of(request_array, n);
	const int64 *costs = elements_of(cost_array, n);

	reserve(sum, n);
	for (int i = 0; i < n; i++)
	{
		Count	   *count = &sum->counts[sum->n++];

		count->key_id = key_ids[i];
		count->start = start;
		count->is_hour = true;
		count->code = code;
		count->requests = requests[i];
		count->cost = costs[i];
	}
}

/* To the hours of each key, add its days. */
static void
add_days(Sum *sum)
{
	int			hours = sum->n;
	AkSpan		day = {0};

	reserve(sum, hours);
	for (int i = 0; i < hours; i++)
	{
		Count	   *count = &sum->counts[sum->n++];

		*count = sum->counts[i];
		if (count->start < day.start || count->start >= day.end)
			ak_period_at(AK_DAY, AK_CALENDAR, count->start, &day);
		count->start = day.start;
		count->is_hour = false;
	}
}

/* As arrays, one for each column of the rollups, in its order. */
static void
as_arrays(const Sum *sum, Oid *types, Datum *columns)
{
	Datum	   *values[AK_ROLLUP_COLUMNS];
	const Oid	element_types[AK_ROLLUP_COLUMNS] = {
		UUIDOID, TEXTOID, TIMESTAMPTZOID, TEXTOID, INT8OID, INT8OID
	};
	Datum		hour = CStringGetTextDatum("hour");
	Datum		day = CStringGetTextDatum("day");

	for (int c = 0; c < AK_ROLLUP_COLUMNS; c++)
		values[c] = MemoryContextAllocHuge(CurrentMemoryContext,
										   sum->n * sizeof(Datum));
	for (int i = 0; i < sum->n; i++)
	{
		const Count *count = &sum->counts[i];

		values[0][i] = UUIDPGetDatum(&count->key_id);
		values[1][i] = count->is_hour ? hour : day;
		values[2][i] = TimestampTzGetDatum(count->start);
		values[3][i] = PointerGetDatum(list_nth(sum->codes, count->code));
		values[4][i] = Int64GetDatum(count->requests);
		values[5][i] = Int64GetDatum(count->cost);
	}
	for (int c = 0; c < AK_ROLLUP_COLUMNS; c++)
		columns[c] = ak_array_of(element_types[c], values[c], sum->n, &types[c]);
}

/*
 * Take rows out of the journal, by their ids (uuid[]), and add them together, in
 * the caller's transaction.  What is to be added to the rollups comes as arrays
 * and their types, AK_ROLLUP_COLUMNS of each, one for each column of theirs, in
 * the order of their primary key.
 */
void
ak_journal_take(Datum ids, Oid *types, Datum *columns)
{
	Oid			type = UUIDARRAYOID;
	Sum			sum = {0};

	if (SPI_execute_with_args("DELETE FROM apikeys.rollup_journal WHERE id = ANY ($1)"
							  " RETURNING start, code, key_ids, requests, costs",
							  1, &type, &ids, NULL, false, 0) != SPI_OK_DELETE_RETURNING)
		elog(ERROR, "could not empty apikeys.rollup_journal");
	for (uint64 row = 0; row < SPI_processed; row++)
		take_row(&sum, row);
	merge(&sum);
	add_days(&sum);
	merge(&sum);
	as_arrays(&sum, types, columns);
}
