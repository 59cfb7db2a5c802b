/*-------------------------------------------------------------------------
 *
 * health.c
 *	  How a database's worker is doing: how far it is behind, and what last went
 *	  wrong.
 *
 * The lag is the age of the oldest change that is due and not durable.  Nobody
 * notes when each change was made: the worker notes, before it begins a pass
 * that succeeds, when that was.  What there is now has come since.  A worker
 * that had nothing to do is called by whoever brings it something; what there
 * is then is no older than the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/inval.h"

#include "apikeys.h"

PG_FUNCTION_INFO_V1(apikeys_worker);

/* In us, of work that there is; "flushed" is one of the two in the slot. */
static int64
lag_since(AkDatabase *db, const int64 *flushed)
{
	int64		since;

	if (db->worker != NULL && !db->worker_awake)
		since = db->called_at;	/* 0: it is about to be called */
	else
	{
		pg_read_barrier();
		since = *flushed;
	}
	return since == 0 ? 0 : Max(ak_elapsed() - since, 0);
}

/* Whether there is no count that the worker, or the next one, has to look after. */
bool
ak_counts_are_clean(AkDatabase *db)
{
	return db->ntracked == 0 && pg_atomic_read_u32(&db->dirty) == AK_NONE;
}

/*
 * How far apikeys.usage is behind, in us.  The row of a busy count is not due
 * at each pass; a ceiling that is asked for is.
 */
int64
ak_counts_lag(AkDatabase *db)
{
	if (ak_counts_are_clean(db))
		return 0;
	return lag_since(db, &db->counts_flushed);
}

/* How far apikeys.requests is behind, in us. */
int64
ak_history_lag(AkDatabase *db)
{
	return ak_history_is_empty(db) ? 0 : lag_since(db, &db->history_flushed);
}

/*
 * Note the error that a transaction of the worker was ended by; to be called
 * after its abort, before the error is forgotten.
 */
void
ak_failure_note(AkDatabase *db)
{
	ErrorData  *error = CopyErrorData();
	const char *message = error->message != NULL ? error->message : "";
	int			length = pg_mbcliplen(message, strlen(message),
									  sizeof(db->last_failure.message) - 1);

	LWLockAcquire(ak_shared->control, LW_EXCLUSIVE);
	db->flush_failures++;
	db->last_failure.at = GetCurrentTimestamp();
	db->last_failure.sqlerrcode = error->sqlerrcode;
	memcpy(db->last_failure.message, message, length);
	db->last_failure.message[length] = '\0';
	LWLockRelease(ak_shared->control);
	FreeErrorData(error);
}

/*
 * apikeys.worker() -> (pid int, last_flush_at timestamptz,
 *						last_failure_at timestamptz, last_failure_code text,
 *						last_failure_message text)
 */
Datum
apikeys_worker(PG_FUNCTION_ARGS)
{
	AkDatabase *db;
	AkFailure	failure;
	TupleDesc	desc;
	Datum		values[5] = {0};
	bool		nulls[5] = {0};
	int			pid;
	int64		last_flush;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "unexpected result type");
	AcceptInvalidationMessages();
	db = ak_catalog()->db;
	LWLockAcquire(ak_shared->control, LW_SHARED);
	pid = db->worker == NULL ? 0 : db->worker->pid;
	failure = db->last_failure;
	last_flush = db->last_flush;
	LWLockRelease(ak_shared->control);

	values[0] = Int32GetDatum(pid);
	nulls[0] = pid == 0;
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp() -
									(ak_elapsed() - last_flush));
	nulls[1] = last_flush == 0;
	nulls[2] = nulls[3] = nulls[4] = failure.at == 0;
	if (failure.at != 0)
	{
		values[2] = TimestampTzGetDatum(failure.at);
		values[3] = CStringGetTextDatum(unpack_sql_state(failure.sqlerrcode));
		values[4] = CStringGetTextDatum(failure.message);
	}
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													  values, nulls)));
}
