/*-------------------------------------------------------------------------
 *
 * incarnation.c
 *	  Open and close the meter of a database.  Runs in its worker.
 *
 * An incarnation is the time that a meter is open.  It is durable before its
 * first admission; closed cleanly, it tells the next one that apikeys.usage
 * holds the exact counts, and left open, that there was a crash.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "postmaster/interrupt.h"
#include "utils/builtins.h"

#include "reserve.h"
#include "worker.h"

/*
 * Incarnations that were not closed ended in a crash, here or on the primary
 * that this server was promoted from, or came with a restore.
 *
 * No row that was written before may seem to be newer than the crash, though
 * the clock was set back since: an incarnation ends after its last row, and
 * never starts before others ended, as the clock was then.
 */
static void
supersede_incarnations(void *arg)
{
	if (SPI_execute("UPDATE apikeys.incarnations"
					" SET superseded_at = greatest(clock_timestamp(), started_at)"
					" WHERE closed_at IS NULL AND superseded_at IS NULL",
					false, 0) < 0)
		elog(ERROR, "could not supersede incarnations");

	/*
	 * What that has cost of credits goes into the ledger at once: they may not
	 * be used for years.
	 */
	if (SPI_processed > 0 &&
		SPI_execute("WITH crashed AS (UPDATE apikeys.usage u SET charged = u.ceiling"
					" FROM apikeys.usage b JOIN apikeys.incarnations i ON i.id = b.incarnation"
					" WHERE u.subject_id = b.subject_id AND u.period = 'credits'"
					" AND b.period = 'credits' AND b.charged <> b.ceiling"
					" AND i.closed_at IS NULL"
					" RETURNING u.subject_id, u.subject, b.charged - u.ceiling AS change)"
					" INSERT INTO apikeys.ledger (subject_id, subject, kind, operation, amount, actor)"
					" SELECT subject_id, subject, 'credits', 'correction', change, NULL FROM crashed",
					false, 0) < 0)
		elog(ERROR, "could not correct credits");
}

static void
begin_incarnation(void *arg)
{
	AkDatabase *db = arg;
	bool		isnull;
	Datum		horizon;
	Oid			types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum		args[] = {UUIDPGetDatum(&db->incarnation), 0};

	supersede_incarnations(NULL);
	if (SPI_execute("SELECT greatest(clock_timestamp(), max(greatest(started_at, closed_at, superseded_at)))"
					" FROM apikeys.incarnations", false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read apikeys.incarnations");
	args[1] = ak_returned(0, 1, NULL);

	/* Closed incarnations have nothing more to tell; old crashes neither. */
	if (SPI_execute("DELETE FROM apikeys.incarnations WHERE closed_at IS NOT NULL"
					" OR superseded_at < now() - interval '3 years'", false, 0) < 0)
		elog(ERROR, "could not remove old incarnations");
	ak_marks_take(db);
	if (SPI_execute_with_args("INSERT INTO apikeys.incarnations (id, started_at)"
							  " VALUES ($1, $2)",
							  2, types, args, NULL, false, 0) < 0 ||
		SPI_execute("SELECT max(superseded_at) FROM apikeys.incarnations",
					false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not begin an incarnation");
	horizon = ak_returned(0, 1, &isnull);
	db->crash_horizon = isnull ? DT_NOBEGIN : DatumGetTimestampTz(horizon);
}

static void
end_incarnation(void *arg)
{
	AkDatabase *db = arg;
	Oid			types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum		args[] = {
		UUIDPGetDatum(&db->incarnation),
		TimestampTzGetDatum(db->last_written + 1)
	};

	ak_marks_leave(db);
	if (SPI_execute_with_args("UPDATE apikeys.incarnations"
							  " SET closed_at = greatest(clock_timestamp(), started_at, $2)"
							  " WHERE id = $1",
							  2, types, args, NULL, false, 0) < 0)
		elog(ERROR, "could not end an incarnation");
}

/*
 * Settle what a crash has left, soon after the server's start: keys made later
 * then know that it did not concern them.
 */
bool
ak_incarnation_settle(AkDatabase *db)
{
	return db->incarnation_open ||
		ak_worker_transaction(supersede_incarnations, NULL);
}

/*
 * Open the meter: from now on verifications are admitted, unless the worker
 * leaves.  A worker that takes over from one that died goes on with its
 * incarnation, whose counts are still in memory.
 */
bool
ak_incarnation_open(AkDatabase *db)
{
	if (!db->incarnation_open)
	{
		ak_uuidv7(&db->incarnation);
		if (!ak_worker_durable_transaction(begin_incarnation, db))
			return false;
		db->incarnation_open = true;
		pg_write_barrier();
		db->opened++;
	}

	/*
	 * SIGTERM may have cancelled the wait for a standby: nothing may be admitted
	 * in an incarnation that it does not know.
	 */
	if (ShutdownRequestPending || ak_my_db_is_closing)
		return true;
	pg_write_barrier();
	db->open = true;
	ConditionVariableBroadcast(&db->changed);
	return true;
}

static bool
flush_all_history(AkDatabase *db)
{
	AkHistoryFlush history;

	ak_flush_history_begin(db, &history);
	while (!history.done)
		if (!ak_flush_history_part(db, &history))
			return false;
	return true;
}

/*
 * Close the meter: nothing more is admitted; then all is written, exactly as it
 * is, and forgotten, since the next incarnation reads it anew.  False if it
 * could not be written: the counts stay in memory for the next worker.
 */
bool
ak_incarnation_close(AkDatabase *db, AkFlush *flush)
{
	db->open = false;
	ak_meter_barrier();
	ak_history_barrier(db);

	/* The second pass finds everything clean. */
	if (!ak_flush_counts(flush, AK_PASS_CLOSING) ||
		!ak_flush_counts(flush, AK_PASS_CLOSING) ||
		!ak_counts_are_clean(db) ||
		!flush_all_history(db) ||
		!ak_worker_transaction(end_incarnation, db))
		return false;
	db->incarnation_open = false;
	ak_meter_forget(db->generation, true);
	ak_reservations_forget(db->generation, true);
	ak_history_forget(db);		/* empty: its chunks may serve others */
	return true;
}
