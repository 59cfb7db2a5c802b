/*-------------------------------------------------------------------------
 *
 * rollup.c
 *	  Count requests by key, outcome, hour and day.  Runs in a database's worker.
 *
 * The transaction that writes history also writes down what it adds to the
 * counts, in apikeys.rollup_journal (rollup_journal.c).  So the two agree,
 * whatever dies when, and nothing has to be counted again after a crash.  From
 * the journal the counts are added to apikeys.rollups in transactions of their
 * own, which empty it: at once where there is little, else in a round every
 * 30 s, so that a key costs few row updates however busy it is.  A round is of
 * what was there when it began: what comes meanwhile would have the same rows
 * written again.
 *
 * Adding and tidying go by short steps, one at a time: between two of them the
 * worker looks whether anybody waits for a ceiling.  They commit without
 * waiting for the disk: what a crash undoes of a step is done again.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "worker.h"

/*
 * Counts added in one step, as many as there is time for.  Keys that come again
 * and again have many counts for one row, and the rows are what takes time: so
 * a row is written the more seldom, the more counts a step takes.
 */
#define STEP_COUNTS 10000
#define STEP_COUNTS_MIN 1000
#define STEP_COUNTS_MAX 100000

/*
 * Few counts are added after a second or more, so many that the journal grows
 * (by some 30 bytes each) at once, others after 30 s.
 */
#define FEW_COUNTS 1000
#define MANY_COUNTS 2000000
#define FEW_INTERVAL (1 * USECS_PER_SEC)
#define USUAL_INTERVAL (30 * USECS_PER_SEC)

/* Keys looked at, and rows removed, in one step of tidying. */
#define TIDY_KEYS 1000
#define TIDY_ROWS 10000

/* Steps when the worker leaves; the journal keeps the rest. */
#define CLOSING_STEPS 10

/* How long a worker that only comes to tidy up may take over it. */
#define VISIT_TIME (1 * USECS_PER_SEC)

/*
 * When to add: DT_NOEND if there is nothing, 0 (long ago) for at once.  A
 * worker begins with a look.
 */
static int64 add_at = 0;
static int64 retry_at = 0;		/* not before, after a failure */
static int64 added_at = 0;		/* when the last round began */
static bool in_round = false;
static pg_uuid_t round_end;		/* its last row */
static int64 add_time = 0;		/* that the last step took */
static int64 step_counts = STEP_COUNTS; /* of the next step */

/* ----- when to add ----- */

/*
 * Adding a few counts soon shall not take more than a hundredth of the worker's
 * time: under an old snapshot each step leaves dead versions of its rows, and
 * the next ones have to pass over them all.
 */
static int64
few_interval(void)
{
	return Min(Max(FEW_INTERVAL, 100 * add_time), USUAL_INTERVAL);
}

/* When to add what is pending, which is more than nothing. */
static int64
next_round(const AkDatabase *db)
{
	return added_at + (db->rollup_pending <= FEW_COUNTS ? few_interval() :
					   db->rollup_pending <= MANY_COUNTS ? USUAL_INTERVAL : 0);
}

/* So many counts were committed to the journal. */
void
ak_rollup_noted(AkDatabase *db, int counts)
{
	if (counts == 0)
		return;
	db->rollup_pending += counts;
	if (!in_round)
		add_at = next_round(db);
}

/* ----- from the journal to the rollups ----- */

typedef struct Step
{
	int64		counts;			/* taken from the journal */
	int64		left;			/* in it, for another round */
	uint64		rows;			/* written, or removed */
	bool		is_last;		/* nothing more to do now */
	pg_uuid_t	position;		/* of tidying: keys up to this one are done */
} Step;

/* False if there is nothing in the journal. */
static bool
begin_round(void)
{
	if (SPI_execute("SELECT id FROM apikeys.rollup_journal"
					" ORDER BY id DESC LIMIT 1", true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.rollup_journal");
	if (SPI_processed == 0)
		return false;
	round_end = *DatumGetUUIDP(ak_returned(0, 1, NULL));
	return true;
}

/*
 * Take some rows of the round, in the order of keys: a flush's rows follow the
 * keys, so what several flushes have counted of the same keys comes together,
 * and is one update of a row.  Only this worker adds rows to the rollups, so no
 * other can come between the look for a row and its insertion.
 */
static void
add_counts(void *arg)
{
	Step	   *step = arg;
	Oid			take_types[] = {INT8OID, INT4OID, UUIDOID};
	Datum		take_args[] = {
		Int64GetDatum(step_counts), Int32GetDatum(1000), UUIDPGetDatum(&round_end)
	};
	Datum		ids;
	Oid			types[AK_ROLLUP_COLUMNS];
	Datum		columns[AK_ROLLUP_COLUMNS];
	bool		isnull;

	ak_set_locally("synchronous_commit", "off");
	memset(step, 0, sizeof(Step));
	step->is_last = true;
	in_round = in_round || begin_round();
	if (!in_round)
		return;
	if (SPI_execute_with_args("SELECT array_agg(s.id), coalesce(sum(s.counts), 0)::bigint,"
							  " (sum(s.counts) < $1 AND count(*) < $2) IS NOT FALSE,"
							  " (SELECT coalesce(sum(n.counts), 0)::bigint"
							  " FROM apikeys.rollup_journal n WHERE n.id > $3)"
							  " FROM (SELECT j.id, j.counts,"
							  " sum(j.counts) OVER (ORDER BY j.first_key, j.id) - j.counts AS before"
							  " FROM (SELECT id, first_key, counts FROM apikeys.rollup_journal"
							  " WHERE id <= $3"
							  " ORDER BY first_key, id LIMIT $2) j) s"
							  " WHERE s.before < $1",
							  3, take_types, take_args, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.rollup_journal");
	ids = ak_returned(0, 1, &isnull);
	step->counts = DatumGetInt64(ak_returned(0, 2, NULL));
	step->is_last = DatumGetBool(ak_returned(0, 3, NULL));
	step->left = DatumGetInt64(ak_returned(0, 4, NULL));
	if (isnull)
		return;
	ak_plan_by_index();
	ak_journal_take(ids, types, columns);
	if (SPI_execute_with_args("WITH counts AS MATERIALIZED ("
							  "SELECT * FROM unnest($1, $2, $3, $4, $5, $6)"
							  " AS c (key_id, step, start, code, requests, cost)),"
							  " totals AS (INSERT INTO apikeys.rollup_totals AS t"
							  " (step, start, code, requests, cost)"
							  " SELECT c.step, c.start, c.code, sum(c.requests), sum(c.cost)"
							  " FROM counts c GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
							  " ON CONFLICT ON CONSTRAINT rollup_totals_pkey DO UPDATE"
							  " SET requests = t.requests + excluded.requests,"
							  " cost = t.cost + excluded.cost)"
							  " MERGE INTO apikeys.rollups AS r"
							  " USING counts c"
							  " ON r.key_id = c.key_id AND r.step = c.step"
							  " AND r.start = c.start AND r.code = c.code"
							  " WHEN MATCHED THEN UPDATE"
							  " SET requests = r.requests + c.requests, cost = r.cost + c.cost"
							  " WHEN NOT MATCHED THEN"
							  " INSERT (key_id, step, start, code, requests, cost)"
							  " VALUES (c.key_id, c.step, c.start, c.code, c.requests, c.cost)",
							  AK_ROLLUP_COLUMNS, types, columns, NULL, false,
							  0) != SPI_OK_MERGE)
		elog(ERROR, "could not write apikeys.rollups");
	step->rows = SPI_processed;
}

/*
 * A flush that falls due during a step waits for its end: so a step shall not
 * take longer than half an interval, as far as that is up to its size.
 */
static void
fit_step(const Step *step)
{
	int64		interval = ak_flush_interval * INT64CONST(1000);
	bool		was_full = step->counts > step_counts / 2;

	if (add_time > interval / 2)
		step_counts = Max(step_counts / 2, STEP_COUNTS_MIN);
	else if (add_time < interval / 4 && was_full)
		step_counts = Min(step_counts * 2, STEP_COUNTS_MAX);
}

/* False if it has failed: it is tried again after a while. */
static bool
add_step(AkDatabase *db)
{
	Step		step;
	int64		begin = ak_elapsed();

	if (!in_round)
		added_at = begin;
	if (!ak_worker_transaction(add_counts, &step))
	{
		retry_at = ak_elapsed() + USUAL_INTERVAL;
		return false;
	}
	add_time = ak_elapsed() - begin;
	fit_step(&step);
	db->rollup_rows += step.rows;
	db->rollup_pending -= Min(db->rollup_pending, step.counts);
	if (step.is_last)
	{
		/* A worker before this one may have left more than was known. */
		db->rollup_pending = step.left;
		in_round = false;
		add_at = step.left > 0 ? next_round(db) : DT_NOEND;
	}
	return true;
}

/* ----- tidying: hours past their retention, purged keys ----- */

/*
 * Look at the next keys, by the index, and remove rows of theirs.  Of a key
 * that is not there those of two days ago: it may have been verified by the
 * transaction that creates it.
 */
static void
tidy_keys(void *arg)
{
	Step	   *step = arg;
	Oid			walk_types[] = {UUIDOID, INT4OID};
	Datum		walk_args[] = {
		UUIDPGetDatum(&step->position), Int32GetDatum(TIDY_KEYS)
	};
	Oid			types[] = {UUIDARRAYOID, TIMESTAMPTZOID, INT4OID};
	Datum		args[3];
	ArrayType  *keys;
	bool		isnull;

	ak_set_locally("synchronous_commit", "off");
	ak_plan_by_index();
	if (SPI_execute_with_args("WITH RECURSIVE walk AS ("
							  "(SELECT r.key_id FROM apikeys.rollups r"
							  " WHERE r.key_id > $1 ORDER BY r.key_id LIMIT 1)"
							  " UNION ALL"
							  " SELECT (SELECT r.key_id FROM apikeys.rollups r"
							  " WHERE r.key_id > w.key_id ORDER BY r.key_id LIMIT 1)"
							  " FROM walk w WHERE w.key_id IS NOT NULL)"
							  " SELECT array_agg(s.key_id) FROM (SELECT w.key_id FROM walk w"
							  " WHERE w.key_id IS NOT NULL LIMIT $2) s",
							  2, walk_types, walk_args, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.rollups");
	step->rows = 0;
	step->is_last = true;
	args[0] = ak_returned(0, 1, &isnull);
	if (isnull)
		return;
	args[1] = TimestampTzGetDatum(ak_rollup_retention == 0 ? DT_NOBEGIN :
								  GetCurrentTimestamp() -
								  ak_rollup_retention * USECS_PER_MINUTE);
	args[2] = Int32GetDatum(TIDY_ROWS);
	if (SPI_execute_with_args("DELETE FROM apikeys.rollups WHERE ctid = ANY (ARRAY("
							  "SELECT o.ctid FROM unnest($1) AS k (id), LATERAL ("
							  "SELECT r.ctid FROM apikeys.rollups r"
							  " WHERE r.key_id = k.id AND r.step = 'hour' AND r.start < $2"
							  " UNION ALL"
							  " SELECT r.ctid FROM apikeys.rollups r"
							  " WHERE r.key_id = k.id AND r.start < now() - interval '2 days'"
							  " AND NOT EXISTS (SELECT FROM apikeys.keys e WHERE e.id = k.id)"
							  ") o LIMIT $3))",
							  3, types, args, NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not remove old rollups");
	step->rows = SPI_processed;
	if (SPI_execute_with_args("DELETE FROM apikeys.rollup_totals"
							  " WHERE step = 'hour' AND start < $1",
							  1, &types[1], &args[1], NULL, false, 0) != SPI_OK_DELETE)
		elog(ERROR, "could not remove old totals");

	/* As many as allowed, doubles counted once: these keys may have more. */
	step->is_last = false;
	if (step->rows < TIDY_ROWS / 2)
	{
		int			n;

		keys = DatumGetArrayTypeP(args[0]);
		n = ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys));
		memcpy(&step->position, ARR_DATA_PTR(keys) + (n - 1) * UUID_LEN,
			   UUID_LEN);
		step->is_last = n < TIDY_KEYS;
	}
}

static void
tidy_step(AkDatabase *db)
{
	int64		begin = ak_elapsed();
	Step		step = {.position = db->rollup_tidied};
	bool		ok = ak_worker_transaction(tidy_keys, &step);

	db->rollup_tidying = ok && !step.is_last;
	if (db->rollup_tidying)
		db->rollup_tidied = step.position;
	else if (ok)
		memset(&db->rollup_tidied, 0, sizeof(pg_uuid_t));
	db->rollup_tidied_at = ak_elapsed();
	db->rollup_tidy_pause = 100 * (db->rollup_tidied_at - begin);
}

/*
 * A walk over all keys begins as often as other maintenance; but each step of it
 * is followed by a pause, so that it does not take more than a hundredth of the
 * worker's time.
 */
static int64
tidy_due(AkDatabase *db)
{
	int64		interval = ak_sweep_interval * USECS_PER_SEC;

	return db->rollup_tidied_at +
		Max(db->rollup_tidy_pause, db->rollup_tidying ? 0 : interval);
}

/* ----- what the worker calls ----- */

/* When ak_rollup_step() shall be called. */
int64
ak_rollup_due(AkDatabase *db)
{
	return Min(Max(add_at, retry_at), tidy_due(db));
}

/*
 * Do the next step, if one is due: one short transaction.  Adding and tidying
 * take turns, or tidying would wait as long as one round follows another.
 */
void
ak_rollup_step(AkDatabase *db)
{
	static bool tidied_last = false;
	int64		now = ak_elapsed();
	bool		adds = Max(add_at, retry_at) <= now;
	bool		tidies = tidy_due(db) <= now && !(adds && tidied_last);

	if (tidies)
		tidy_step(db);
	else if (adds)
		(void) add_step(db);
	tidied_last = tidies;
}

/* The worker leaves: what is noted shall be seen. */
void
ak_rollup_close(AkDatabase *db)
{
	step_counts = STEP_COUNTS;
	for (int i = 0; i < CLOSING_STEPS && add_at != DT_NOEND; i++)
		if (!add_step(db))
			break;
}

/*
 * A worker came only to tidy up, for a short time: it makes no pauses.  It leaves
 * early if it is called: somebody waits for one that opens the meter.
 */
void
ak_rollup_visit(AkDatabase *db)
{
	int64		begin = ak_elapsed();
	int64		now = begin;

	while (now >= ak_rollup_due(db) && now - begin < VISIT_TIME)
	{
		ak_rollup_step(db);
		db->rollup_tidy_pause = 0;
		if (db->called_at != 0)
			break;
		now = ak_elapsed();
	}
}
